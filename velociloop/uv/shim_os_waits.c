/* shim_os_waits.c: shim_os.c for shim_waits.c: an epoll instance whose registrations are good for one event each.
 *
 * Facts: a registration belongs to the number and the open file.  The kernel drops it with the file, and with
 * EPOLLONESHOT disarms it at its event: what is left behind then never wakes anybody.  EPOLL_CTL_MOD arms it
 * again, and says ENOENT if the number is another file's now. */
#include "shim_internal.h"

#ifdef __linux__

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#define MOST_EVENTS 64

static int failure(void) {
  return uv_translate_sys_error(errno);
}

int os_waits_open(void) {
  int fd = epoll_create1(EPOLL_CLOEXEC);

  return fd < 0 ? failure() : os_move_above_stdio(fd);
}

int os_waits_arm(int waits, int fd, int64_t token) {
  struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, .data = {.u64 = (uint64_t)token}};

  if (epoll_ctl(waits, EPOLL_CTL_MOD, fd, &event) == 0)
    return 0;
  if (errno != ENOENT)
    return failure();
  return epoll_ctl(waits, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : failure();
}

int os_waits_forget(int waits, int fd) {
  struct epoll_event event = {0};

  return epoll_ctl(waits, EPOLL_CTL_DEL, fd, &event) == 0 ? 0 : failure();
}

int os_waits_take(int waits, int64_t tokens[], int room) {
  struct epoll_event events[MOST_EVENTS];
  int count = epoll_wait(waits, events, room < MOST_EVENTS ? room : MOST_EVENTS, 0);
  int i;

  for (i = 0; i < count; i++)
    tokens[i] = (int64_t)events[i].data.u64;
  return count < 0 ? failure() : count;
}

int os_waits_replace(int fd) {
  int fresh = epoll_create1(EPOLL_CLOEXEC);
  int err;

  if (fresh < 0)
    return failure();
  err = dup3(fresh, fd, O_CLOEXEC) < 0 ? failure() : 0;
  (void)os_close(fresh);
  return err;
}

#else

int os_waits_open(void) {
  return UV_ENOTSUP;
}

int os_waits_arm(int waits, int fd, int64_t token) {
  (void)waits;
  (void)fd;
  (void)token;
  return UV_ENOTSUP;
}

int os_waits_forget(int waits, int fd) {
  (void)waits;
  (void)fd;
  return UV_ENOTSUP;
}

int os_waits_take(int waits, int64_t tokens[], int room) {
  (void)waits;
  (void)tokens;
  (void)room;
  return UV_ENOTSUP;
}

int os_waits_replace(int fd) {
  (void)fd;
  return UV_ENOTSUP;
}

#endif
