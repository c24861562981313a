/* faults.h: what the operating system and the allocator shall answer, and what they were asked.
 *
 * The linker's --wrap (see Makefile) leads the calls of libuv and of the shim through faults.c. */
#ifndef VELOCILOOP_CTEST_FAULTS_H
#define VELOCILOOP_CTEST_FAULTS_H

#include <stdbool.h>

typedef struct {
  bool no_memory;        /* malloc, calloc, realloc return NULL */
  int fail_allocation;   /* so does, once, the call of this number from now on; 0: none */
  bool no_pages;         /* mmap fails with ENOMEM */
  int ioctl_error;       /* an errno value for the next ioctl, once */
  int epoll_error;       /* and for the next epoll_create1, once */
  int accept_errors[8];  /* errno values for the next accept4 calls, up to the first 0 */
  int accept_error_next;
  int sendmsg_errors[8]; /* likewise for sendmsg, and the shim's sendto */
  int sendmsg_error_next;

  int accepts;
  int writevs;
  int released;          /* madvise */
  int kernel_waits;      /* epoll_pwait; without those that a signal has ended */
  bool interrupt_wait;   /* the next one fails with EINTR */
  int longest_wait;      /* its largest timeout so far, in milliseconds */
  bool endless_wait;     /* it was called without a timeout */
  bool clock_stands;     /* clock_gettime goes on answering what it first answered then */
  int timer_settings;    /* timerfd_settime */
  bool timer_stands;     /* it does nothing */
} fault_state;

extern fault_state faults;

#endif
