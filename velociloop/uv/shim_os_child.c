/* shim_os_child.c: the calls of the operating system that concern child processes, and that libuv
 * does not make for us. */
#include "shim_internal.h"

#ifdef _WIN32

int os_seal_children(bool on) {
  (void)on; /* handles are not inherited unless they were made so */
  return 0;
}

int vl_child_look(int pid, int pidfd, int wait, int *code) {
  (void)pid;
  (void)pidfd;
  (void)wait;
  (void)code;
  return UV_ENOSYS;
}

int vl_pidfd_open(int pid) {
  (void)pid;
  return UV_ENOSYS;
}

#else /* Unix */

#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/syscall.h>
#endif

/* Not in every C library's headers; the kernel's values. */
#define CLOSE_RANGE_MARK 4u /* CLOSE_RANGE_CLOEXEC, Linux 5.11 */
#define WAIT_BY_PIDFD 3     /* P_PIDFD, Linux 5.4 */

int vl_child_look(int pid, int pidfd, int wait, int *code) {
  idtype_t type = P_PID;
  id_t id = (id_t)pid;
  siginfo_t info;

#ifdef __linux__
  if (pidfd >= 0) {
    type = (idtype_t)WAIT_BY_PIDFD;
    id = (id_t)pidfd;
  }
#else
  (void)pidfd;
#endif
  memset(&info, 0, sizeof(info));
  if (waitid(type, id, &info, WEXITED | WNOWAIT | (wait ? 0 : WNOHANG)) != 0)
    return -errno;
  /* "If WNOHANG was specified and there were no children in a waitable state, [...] set si_pid to
   * 0."  macOS reports stopped children though nobody asked for them. */
  if (info.si_pid == 0 || (info.si_code != CLD_EXITED && info.si_code != CLD_KILLED && info.si_code != CLD_DUMPED))
    return 0;
  *code = info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
  return 1;
}

#if defined(__linux__) && defined(SYS_pidfd_open)

int vl_pidfd_open(int pid) {
  long fd = syscall(SYS_pidfd_open, pid, 0u); /* close-on-exec by itself */

  return fd < 0 ? -errno : os_move_above_stdio((int)fd);
}

#else

int vl_pidfd_open(int pid) {
  (void)pid;
  return UV_ENOSYS;
}

#endif

#if defined(__linux__) && defined(SYS_close_range)

/* Facts: Popen's children inherit what pass_fds names and nothing else; libuv's inherit every
 * descriptor that is not close-on-exec, and uv_spawn() has no hook.  It forks by fork(), which runs
 * pthread_atfork()'s handlers.
 * Choice: one of those marks all descriptors above 2 as close-on-exec in a child that uv_spawn()
 * makes.  The parent's stay as they are.  What becomes the child's 0, 1 and 2 is duplicated later,
 * and a duplicate is not close-on-exec.
 * A global, since such a handler takes no argument; of the thread, since another may fork meanwhile. */
static _Thread_local bool fork_is_sealed;
static int seal_error;

static int mark_from(unsigned first) {
  return syscall(SYS_close_range, first, ~0u, CLOSE_RANGE_MARK) == 0 ? 0 : -errno;
}

static void seal_child(void) {
  if (fork_is_sealed)
    (void)mark_from(3u); /* cannot fail where the attempt below has not */
}

static void register_seal(void) {
  /* ENOSYS before Linux 5.9, EINVAL before 5.11; there is no descriptor of this number. */
  seal_error = mark_from(~0u) == 0 ? -pthread_atfork(NULL, NULL, seal_child) : UV_ENOTSUP;
}

int os_seal_children(bool on) {
  static uv_once_t once = UV_ONCE_INIT;

  uv_once(&once, register_seal);
  fork_is_sealed = on && seal_error == 0;
  return seal_error;
}

#else

/* macOS: libuv starts most children by posix_spawn(), which can do it, but some by fork(). */
int os_seal_children(bool on) {
  (void)on;
  return UV_ENOTSUP;
}

#endif
#endif /* Unix */
