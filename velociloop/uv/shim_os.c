/* shim_os.c: every call of the operating system that libuv does not make for us. */
#include "shim_internal.h"

#ifdef _WIN32

#include <winsock2.h>

/* Descriptors 0-2 have no special standing among Windows sockets. */
int os_move_above_stdio(int fd) {
  return fd;
}

int os_renumber(int fd) {
  (void)os_close(fd);
  return UV_EEXIST;
}

int os_close(int fd) {
  return closesocket((SOCKET)fd) == 0 ? 0 : uv_translate_sys_error(WSAGetLastError());
}

int os_accept(int listener, void *address, size_t room, size_t *size) {
  int length = (int)room;
  SOCKET fd = accept((SOCKET)listener, address, &length);

  if (fd == INVALID_SOCKET)
    return uv_translate_sys_error(WSAGetLastError());
  *size = (size_t)length;
  return (int)fd;
}

int os_shutdown_write(int fd) {
  return shutdown((SOCKET)fd, SD_SEND) == 0 ? 0 : uv_translate_sys_error(WSAGetLastError());
}

int64_t os_read(int fd, char *out, size_t room) {
  (void)fd;
  (void)out;
  (void)room;
  return UV_ENOTSUP; /* its descriptors are no files */
}

bool os_reads_sockets(void) {
  return false;
}

int64_t os_send(int fd, const char *data, size_t size, const void *address, size_t address_size) {
  (void)fd;
  (void)data;
  (void)size;
  (void)address;
  (void)address_size;
  return UV_ENOTSUP;
}

int64_t os_write(int fd, const char *data, size_t size) {
  (void)fd;
  (void)data;
  (void)size;
  return UV_ENOTSUP;
}

int os_sockname(int fd, char *out, int room) {
  return getsockname((SOCKET)fd, (struct sockaddr *)out, &room) == 0 ? room
                                                                     : uv_translate_sys_error(WSAGetLastError());
}

int os_get_reuse_address(int fd, int *value) {
  int size = sizeof(*value);

  return getsockopt((SOCKET)fd, SOL_SOCKET, SO_REUSEADDR, (char *)value, &size) == 0
             ? 0
             : uv_translate_sys_error(WSAGetLastError());
}

int os_set_reuse_address(int fd, int value) {
  return setsockopt((SOCKET)fd, SOL_SOCKET, SO_REUSEADDR, (const char *)&value, sizeof(value)) == 0
             ? 0
             : uv_translate_sys_error(WSAGetLastError());
}

int os_hold_stdio(int held[3]) {
  held[0] = held[1] = held[2] = -1;
  return 0;
}

void os_release_stdio(int held[3]) {
  (void)held;
}

int os_guard_fork_before(void) {
  return 0;
}

int os_guard_fork_after(void) {
  return 0;
}

int os_check_room(int count) {
  (void)count;
  return 0;
}

int os_check_descriptor(const uv_loop_t *loop, int fd) {
  (void)loop;
  (void)fd;
  return 0;
}

int os_check_backend(const uv_loop_t *loop, int fd) {
  (void)loop;
  (void)fd;
  return 0;
}

int os_replace_backend(uv_loop_t *loop, int above) {
  (void)loop;
  (void)above;
  return UV_ENOTSUP;
}

/* "Signal handling on Windows" is uv_signal's alone. */
int os_signal_action(int signum, void *out) {
  (void)signum;
  (void)out;
  return 0;
}

int os_signal_set_action(int signum, const void *action) {
  (void)signum;
  (void)action;
  return 0;
}

bool os_signal_is_caught(const void *action) {
  (void)action;
  return false;
}

bool os_signal_is_same(const void *action, const void *other) {
  (void)action;
  (void)other;
  return false;
}

int os_signals_block(void *before) {
  (void)before;
  return 0;
}

int os_signals_restore(const void *before) {
  (void)before;
  return 0;
}

char *os_pages_new(size_t size) {
  return malloc(size);
}

void os_pages_free(char *pages, size_t size) {
  (void)size;
  free(pages);
}

void os_pages_release(char *pages, size_t size) {
  (void)pages;
  (void)size;
}

#else /* Unix */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/epoll.h>
#include <sys/timerfd.h>
#endif

static int failure(void) {
  return -errno; /* libuv's codes on Unix are the negated errno values */
}

_Static_assert(sizeof(struct sigaction) <= VL_ACTION_BYTES && sizeof(sigset_t) <= VL_ACTION_BYTES,
               "VL_ACTION_BYTES must have room for what a signal does");

int os_signal_action(int signum, void *out) {
  return sigaction(signum, NULL, out) == 0 ? 0 : failure();
}

int os_signal_set_action(int signum, const void *action) {
  return sigaction(signum, action, NULL) == 0 ? 0 : failure();
}

bool os_signal_is_caught(const void *action) {
  struct sigaction held;

  memcpy(&held, action, sizeof(held));
  return held.sa_handler != SIG_DFL && held.sa_handler != SIG_IGN;
}

bool os_signal_is_same(const void *action, const void *other) {
  struct sigaction one;
  struct sigaction two;

  memcpy(&one, action, sizeof(one));
  memcpy(&two, other, sizeof(two));
  return one.sa_handler == two.sa_handler;
}

int os_signals_block(void *before) {
  sigset_t all;

  if (sigfillset(&all) != 0)
    return failure();
  return -pthread_sigmask(SIG_SETMASK, &all, before); /* returns an errno value */
}

int os_signals_restore(const void *before) {
  return -pthread_sigmask(SIG_SETMASK, before, NULL);
}

int os_close(int fd) {
  /* EINTR: "the descriptor is closed" on Linux and the BSDs, and a second close()
   * could hit another thread's new file. */
  return close(fd) == 0 || errno == EINTR ? 0 : failure();
}

static int os_move_above(int fd, int above) {
  int moved = fcntl(fd, F_DUPFD_CLOEXEC, above + 1);
  /* "EINVAL: arg is greater than the maximum allowable value": there is no higher number. */
  int err = moved >= 0 ? 0 : errno == EINVAL ? UV_EMFILE : failure();

  (void)os_close(fd);
  return err != 0 ? err : moved;
}

int os_renumber(int fd) {
  return os_move_above(fd, fd > STDERR_FILENO ? fd : STDERR_FILENO);
}

int os_move_above_stdio(int fd) {
  return fd > STDERR_FILENO ? fd : os_renumber(fd);
}

int os_accept(int listener, void *address, size_t room, size_t *size) {
  socklen_t length = (socklen_t)room;
  int fd;
#ifdef __linux__
  fd = accept4(listener, address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0)
    return errno == EWOULDBLOCK ? UV_EAGAIN : failure();
#else
  int flags;

  fd = accept(listener, address, &length);
  if (fd < 0)
    return errno == EWOULDBLOCK ? UV_EAGAIN : failure();
  flags = fcntl(fd, F_GETFL);
  if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    int err = failure();
    (void)os_close(fd);
    return err;
  }
#endif
  /* "If addrlen is larger than the buffer, the address is truncated." */
  *size = (size_t)length < room ? (size_t)length : room;
  return fd;
}

int os_shutdown_write(int fd) {
  return shutdown(fd, SHUT_WR) == 0 ? 0 : failure();
}

static bool is_not_now(void) {
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* Neither blocks nor raises SIGPIPE. */
#ifdef MSG_NOSIGNAL
#define SEND_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL)
#else
#define SEND_FLAGS MSG_DONTWAIT
#endif

int64_t os_read(int fd, char *out, size_t room) {
  ssize_t size = read(fd, out, room);

  return size >= 0 ? size : is_not_now() ? UV_EAGAIN : failure();
}

bool os_reads_sockets(void) {
  return true;
}

int64_t os_send(int fd, const char *data, size_t size, const void *address, size_t address_size) {
  ssize_t sent;

  do
    sent = sendto(fd, data, size, SEND_FLAGS, address, (socklen_t)address_size);
  while (sent < 0 && errno == EINTR);
  return sent >= 0 ? sent : errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ? UV_EAGAIN : failure();
}

int64_t os_write(int fd, const char *data, size_t size) {
  ssize_t written = write(fd, data, size);

  return written >= 0 ? written : is_not_now() ? 0 : failure();
}

int os_sockname(int fd, char *out, int room) {
  socklen_t length = (socklen_t)room;

  if (getsockname(fd, (struct sockaddr *)(void *)out, &length) != 0)
    return failure();
  return (int)length < room ? (int)length : room;
}

int os_get_reuse_address(int fd, int *value) {
  socklen_t size = sizeof(*value);

  return getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, value, &size) == 0 ? 0 : failure();
}

int os_set_reuse_address(int fd, int value) {
  return setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, sizeof(value)) == 0 ? 0 : failure();
}

int os_hold_stdio(int held[3]) {
  int fd;
  int i;

  held[0] = held[1] = held[2] = -1;
  for (i = 0; i < 3; i++) {
    fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      int err = failure();
      os_release_stdio(held);
      return err;
    }
    held[i] = fd;
    if (fd > STDERR_FILENO)
      return 0;
  }
  return 0;
}

void os_release_stdio(int held[3]) {
  int i;

  for (i = 0; i < 3; i++)
    if (held[i] >= 0)
      (void)os_close(held[i]);
}

/* H11: "A lowered RLIMIT_NOFILE can make libuv's at-fork handler abort the child": it closes
 * a pipe and opens another one, for which there must be numbers below the limit.  Child
 * handlers run in the order of their registration, so ours stand before and after
 * libuv's and lift the limit between them, as far as an unprivileged process may.
 * The shim's only mutable globals: handlers of pthread_atfork() take no argument, and those
 * of the child run in its only thread. */
static struct rlimit limit_at_fork;
static bool limit_is_lifted;
static int guard_error;

static void lift_limit(void) {
  struct rlimit lifted;

  limit_is_lifted = false;
  if (getrlimit(RLIMIT_NOFILE, &limit_at_fork) != 0)
    return;
  lifted = limit_at_fork;
  lifted.rlim_cur = lifted.rlim_max;
  limit_is_lifted = setrlimit(RLIMIT_NOFILE, &lifted) == 0;
}

static void restore_limit(void) {
  if (limit_is_lifted)
    (void)setrlimit(RLIMIT_NOFILE, &limit_at_fork); /* lowering is always allowed */
}

static void register_before(void) {
  guard_error = -pthread_atfork(NULL, NULL, lift_limit);
}

static void register_after(void) {
  guard_error = -pthread_atfork(NULL, NULL, restore_limit);
}

int os_guard_fork_before(void) {
  static uv_once_t once = UV_ONCE_INIT;

  uv_once(&once, register_before);
  return guard_error;
}

int os_guard_fork_after(void) {
  static uv_once_t once = UV_ONCE_INIT;

  uv_once(&once, register_after);
  return guard_error;
}

int os_check_room(int count) {
  int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  int err = fd < 0 ? failure() : 0;

  if (err == 0 && count > 1)
    err = os_check_room(count - 1);
  if (fd >= 0)
    (void)os_close(fd);
  return err;
}

char *os_pages_new(size_t size) {
  void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  return pages == MAP_FAILED ? NULL : pages;
}

void os_pages_free(char *pages, size_t size) {
  (void)munmap(pages, size);
}

void os_pages_release(char *pages, size_t size) {
  /* Advice: if the kernel does not follow it, the memory stays in use. */
  (void)madvise(pages, size, MADV_DONTNEED);
}

#ifdef __linux__

int os_check_descriptor(const uv_loop_t *loop, int fd) {
  struct epoll_event event;

  memset(&event, 0, sizeof(event));
  event.data.fd = fd; /* libuv looks its watcher up by this */
  if (epoll_ctl(uv_backend_fd(loop), EPOLL_CTL_ADD, fd, &event) == 0 || errno == EEXIST)
    return 0; /* libuv's own ADD is told EEXIST and goes on with MOD */
  return failure();
}

int os_watch(const uv_loop_t *loop, int fd, unsigned int events, bool is_new) {
  struct epoll_event event;

  memset(&event, 0, sizeof(event));
  event.events = events;
  event.data.fd = fd;
  if (is_new && epoll_ctl(uv_backend_fd(loop), EPOLL_CTL_ADD, fd, &event) == 0)
    return 0;
  if (is_new && errno != EEXIST)
    return failure();
  return epoll_ctl(uv_backend_fd(loop), EPOLL_CTL_MOD, fd, &event) == 0 ? 0 : failure();
}

int os_check_backend(const uv_loop_t *loop, int fd) {
  struct epoll_event event;

  memset(&event, 0, sizeof(event));
  event.events = EPOLLIN;
  event.data.fd = fd;
  /* Sets what is set already.  EBADF: closed; EINVAL: "epfd is not an epoll file
   * descriptor"; ENOENT: another one, which knows nothing of fd. */
  return epoll_ctl(uv_backend_fd(loop), EPOLL_CTL_MOD, fd, &event) == 0 ? 0 : failure();
}

int os_replace_backend(uv_loop_t *loop, int above) {
  int fd = epoll_create1(EPOLL_CLOEXEC);

  fd = fd < 0 ? failure() : os_move_above(fd, above);
  if (fd < 0)
    return fd;
  loop->backend_fd = fd;
  return 0;
}

#else

int os_watch(const uv_loop_t *loop, int fd, unsigned int events, bool is_new) {
  int err = os_check_descriptor(loop, fd);

  (void)events;
  (void)is_new;
  return err == 0 ? UV_ENOTSUP : err;
}

int os_check_descriptor(const uv_loop_t *loop, int fd) {
  (void)loop;
  return fcntl(fd, F_GETFD) < 0 ? failure() : 0;
}

int os_check_backend(const uv_loop_t *loop, int fd) {
  (void)fd;
  return fcntl(uv_backend_fd(loop), F_GETFD) < 0 ? failure() : 0;
}

int os_replace_backend(uv_loop_t *loop, int above) {
  (void)loop;
  (void)above;
  return UV_ENOTSUP;
}

#endif /* __linux__ */
#endif /* Unix */

#ifdef __linux__

int os_fine_timer_open(void) {
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

  return fd < 0 ? failure() : os_move_above_stdio(fd);
}

int os_fine_timer_set(int fd, int64_t nanoseconds) {
  struct itimerspec spec;

  memset(&spec, 0, sizeof(spec));
  spec.it_value.tv_sec = (time_t)(nanoseconds / 1000000000);
  spec.it_value.tv_nsec = (long)(nanoseconds % 1000000000);
  return timerfd_settime(fd, 0, &spec, NULL) == 0 ? 0 : failure();
}

int os_fine_timer_replace(int fd) {
  int fresh = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  int err;

  if (fresh < 0)
    return failure();
  err = dup3(fresh, fd, O_CLOEXEC) < 0 ? failure() : 0;
  (void)os_close(fresh);
  return err;
}

#else

int os_fine_timer_open(void) {
  return UV_ENOTSUP;
}

int os_fine_timer_set(int fd, int64_t nanoseconds) {
  (void)fd;
  (void)nanoseconds;
  return UV_ENOTSUP;
}

int os_fine_timer_replace(int fd) {
  (void)fd;
  return UV_ENOTSUP;
}

#endif

/* -- entries ------------------------------------------------------------------ */

int vl_stdio_hold(int held[3]) {
  return os_hold_stdio(held);
}

void vl_stdio_release(int held[3]) {
  os_release_stdio(held);
}
