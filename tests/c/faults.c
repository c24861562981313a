/* faults.c: see faults.h. */
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>

#include "faults.h"

fault_state faults;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset);
int __real_madvise(void *address, size_t size, int advice);
int __real_ioctl(int fd, unsigned long request, void *argument);
int __real_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags);
int __real_epoll_create1(int flags);
ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __real_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t to_size);
ssize_t __real_writev(int fd, const struct iovec *buffers, int count);
int __real_epoll_pwait(int fd, struct epoll_event *events, int count, int timeout, const sigset_t *mask);
int __real_timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old);
int __real_clock_gettime(clockid_t clock, struct timespec *now);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset);
int __wrap_madvise(void *address, size_t size, int advice);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags);
int __wrap_epoll_create1(int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t to_size);
ssize_t __wrap_writev(int fd, const struct iovec *buffers, int count);
int __wrap_epoll_pwait(int fd, struct epoll_event *events, int count, int timeout, const sigset_t *mask);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

static bool refuse(void) {
  if (!faults.no_memory && (faults.fail_allocation == 0 || --faults.fail_allocation > 0))
    return false;
  errno = ENOMEM;
  return true;
}

void *__wrap_malloc(size_t size) {
  return refuse() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size) {
  return refuse() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size) {
  return refuse() ? NULL : __real_realloc(memory, size);
}

void *__wrap_mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
  if (!faults.no_pages)
    return __real_mmap(address, size, protection, flags, fd, offset);
  errno = ENOMEM;
  return MAP_FAILED;
}

int __wrap_madvise(void *address, size_t size, int advice) {
  faults.released++;
  return __real_madvise(address, size, advice);
}

int __wrap_ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  void *argument;

  va_start(arguments, request);
  argument = va_arg(arguments, void *);
  va_end(arguments);
  if (faults.ioctl_error == 0)
    return __real_ioctl(fd, request, argument);
  errno = faults.ioctl_error;
  faults.ioctl_error = 0;
  return -1;
}

int __wrap_epoll_create1(int flags) {
  if (faults.epoll_error == 0)
    return __real_epoll_create1(flags);
  errno = faults.epoll_error;
  faults.epoll_error = 0;
  return -1;
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
  int error = faults.accept_errors[faults.accept_error_next];

  faults.accepts++;
  if (error == 0)
    return __real_accept4(fd, address, size, flags);
  faults.accept_error_next++;
  errno = error;
  return -1;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags) {
  int error = faults.sendmsg_errors[faults.sendmsg_error_next];

  if (error == 0)
    return __real_sendmsg(fd, message, flags);
  faults.sendmsg_error_next++;
  errno = error;
  return -1;
}

ssize_t __wrap_sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t to_size) {
  int error = faults.sendmsg_errors[faults.sendmsg_error_next];

  /* The tests' own has no flags. */
  if (error == 0 || flags == 0)
    return __real_sendto(fd, data, size, flags, to, to_size);
  faults.sendmsg_error_next++;
  errno = error;
  return -1;
}

ssize_t __wrap_writev(int fd, const struct iovec *buffers, int count) {
  faults.writevs++;
  return __real_writev(fd, buffers, count);
}

int __wrap_epoll_pwait(int fd, struct epoll_event *events, int count, int timeout, const sigset_t *mask) {
  int ready;

  faults.kernel_waits++;
  if (timeout > faults.longest_wait)
    faults.longest_wait = timeout;
  if (timeout < 0)
    faults.endless_wait = true;
  if (faults.interrupt_wait) {
    faults.interrupt_wait = false;
    errno = EINTR;
    return -1;
  }
  ready = __real_epoll_pwait(fd, events, count, timeout, mask);
  /* Also without a signal: io_uring's work for a task interrupts its waits. */
  if (ready < 0 && errno == EINTR)
    faults.kernel_waits--;
  return ready;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now) {
  static struct timespec kept;
  static bool is_kept;

  if (!faults.clock_stands)
    return __real_clock_gettime(clock, now);
  if (!is_kept && __real_clock_gettime(clock, &kept) != 0)
    return -1;
  is_kept = true;
  *now = kept;
  return 0;
}

int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old) {
  faults.timer_settings++;
  return faults.timer_stands ? 0 : __real_timerfd_settime(fd, flags, value, old);
}
