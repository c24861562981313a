/* shim_core.c: a core's life, and one turn of libuv. */
#include "shim_internal.h"

_Static_assert(VL_EOF == UV_EOF, "uv.cdef and libuv disagree on the end of a stream");
_Static_assert(sizeof(vl_record) == 32, "Python unpacks records of 32 bytes");

#define NS_PER_MS 1000000
#define LONGEST_WAIT_NS ((int64_t)24 * 3600 * 1000 * NS_PER_MS)
/* H7: libuv's clock has milliseconds.  Waits below this end by the fine timer; longer ones
 * stop a millisecond early by uv_timer, and the next turn waits for the rest. */
#define FINE_BELOW_NS ((int64_t)4 * NS_PER_MS)
/* A deadline this close to the one already set is the same (settime costs 1.5 us). */
#define FINE_SAME_NS 20000u

/* What uv_loop_init() opens in a process's first loop, and a little more: epoll, io_uring,
 * a pipe for signals, eventfd, timerfd, /dev/null. */
#define DESCRIPTORS_OF_A_CORE 8
/* What uv_loop_fork() opens again. */
#define DESCRIPTORS_OF_A_FORK 4

static void on_wake(uv_async_t *wake) {
  (void)wake; /* its purpose is that uv_run() returns */
}

static void on_timeout(uv_timer_t *timer) {
  (void)timer; /* likewise */
}

static void on_fine_timer(uv_poll_t *poll, int status, int events) {
  vl_core *core = poll->data;

  (void)status;
  (void)events;
  core->fine.fired = true;
}

/* -- life ------------------------------------------------------------------------ */

static void close_own_handles(vl_core *core) {
  if (core->fine.fd >= 0)
    uv_close((uv_handle_t *)&core->fine.poll, NULL);
  waits_close(core);
  uv_close((uv_handle_t *)&core->timeout, NULL);
  uv_close((uv_handle_t *)&core->wake, NULL);
}

static int finish_loop(vl_core *core) {
  int err;

  /* Nothing but closing handles is left, and each is gone after one round. */
  while (uv_run(&core->loop, UV_RUN_NOWAIT) != 0) {
  }
  err = uv_loop_close(&core->loop);
  if (core->fine.fd >= 0)
    (void)os_close(core->fine.fd);
  core->fine.fd = -1;
  waits_closed(core);
  return err;
}

static int open_fine_timer(vl_core *core) {
  int err;
  int fd = os_fine_timer_open();

  core->fine.fd = -1;
  if (fd == UV_ENOTSUP)
    return 0;
  if (fd < 0)
    return fd;
  err = uv_poll_init(&core->loop, &core->fine.poll, fd);
  if (err != 0) {
    (void)os_close(fd);
    return err;
  }
  core->fine.fd = fd;
  core->fine.poll.data = core;
  return uv_poll_start(&core->fine.poll, UV_READABLE, on_fine_timer);
}

static int open_loop(vl_core *core) {
  uv_tcp_t first;
  int err = uv_loop_init(&core->loop);

  if (err != 0)
    return err;
  core->loop.data = core;
  err = uv_async_init(&core->loop, &core->wake, on_wake);
  if (err != 0) {
    (void)uv_loop_close(&core->loop);
    return err;
  }
  err = uv_timer_init(&core->loop, &core->timeout);
  if (err == 0)
    err = open_fine_timer(core);
  if (err == 0)
    /* "if (loop->emfile_fd == -1)": the first stream of a loop opens /dev/null, which
     * must not become one of 0-2 either; see the caller. */
    err = uv_tcp_init(&core->loop, &first);
  if (err == 0)
    uv_close((uv_handle_t *)&first, NULL);
  if (err != 0) {
    close_own_handles(core);
    (void)finish_loop(core);
    return err;
  }
  /* Runs the close callback of `first`, which is on this stack. */
  (void)uv_run(&core->loop, UV_RUN_NOWAIT);
  return 0;
}

vl_core *vl_core_new(int *error) {
  vl_core *core = calloc(1, sizeof(*core));
  size_t room;
  int held[3];
  int err;

  *error = UV_ENOMEM;
  if (core == NULL)
    return NULL;
  err = uv_mutex_init(&core->entry_lock);
  if (err != 0)
    goto no_entry_lock;
  err = uv_mutex_init(&core->wake_lock);
  if (err != 0)
    goto no_wake_lock;
  /* "assert(fd > STDERR_FILENO)": libuv cannot close descriptors 0-2, so none of its own
   * may be one (H6). */
  err = os_hold_stdio(held);
  if (err != 0)
    goto no_loop;
  /* "if (uv__make_pipe(uv__signal_lock_pipefd, 0)) abort();" */
  err = os_check_room(DESCRIPTORS_OF_A_CORE);
  if (err == 0)
    err = os_guard_fork_before();
  if (err == 0)
    err = open_loop(core);
  os_release_stdio(held);
  if (err != 0)
    goto no_loop;
  err = os_guard_fork_after();
  if (err == 0)
    err = ring_reserve(core);
  /* Every record names a segment of the slab, an error's the first. */
  if (err == 0 && slab_offer(core, 1, &room) == NULL)
    err = UV_ENOMEM;
  if (err != 0)
    goto no_ring;
  *error = 0;
  return core;

no_ring:
  close_own_handles(core);
  (void)finish_loop(core);
no_loop:
  ring_free(core);
  uv_mutex_destroy(&core->wake_lock);
no_wake_lock:
  uv_mutex_destroy(&core->entry_lock);
no_entry_lock:
  free(core);
  *error = err;
  return NULL;
}

/* Above it no number is closed by the closing of a handle, whoever has the number now. */
static int highest_descriptor(const vl_core *core) {
  int highest = 2; /* standard error */
  uv_os_fd_t fd;
  uint32_t i;

  for (i = 0; i < core->slot_count; i++)
    if (core->slots[i].handle != NULL && uv_fileno(&core->slots[i].handle->uv.any, &fd) == 0 &&
        (int)(intptr_t)fd > highest)
      highest = (int)(intptr_t)fd;
  return highest;
}

int vl_core_close(vl_core *core) {
  uint32_t i;
  int err = core_enter(core);

  if (err != 0)
    return err == VL_ERR_CLOSED ? 0 : err;
  /* libuv runs the close callbacks in a turn, and a turn without backend never ends or
   * aborts (H6). */
  if (os_check_backend(&core->loop, core->fine.fd) != 0) {
    err = os_replace_backend(&core->loop, highest_descriptor(core));
    if (err != 0) {
      core_leave(core);
      return err;
    }
  }
  uv_mutex_lock(&core->wake_lock);
  core->closed = true;
  uv_mutex_unlock(&core->wake_lock);
  for (i = 0; i < core->slot_count; i++)
    if (core->slots[i].handle != NULL)
      handle_close(core->slots[i].handle);
  close_own_handles(core);
  submit_forget_refused(core);
  err = finish_loop(core);
  core_leave(core);
  return err;
}

void vl_core_free(vl_core *core) {
  vl_late *late;

  /* Not closed: a parent's core in a forked child, or one that is being polled while the
   * interpreter ends.  Its memory may be in use or inconsistent. */
  if (core->foreign || !core->closed)
    return;
  while ((late = core->late_first) != NULL) {
    core->late_first = late->next;
    free(late->memory);
  }
  ring_free(core);
  udp_free(core);
  handle_table_free(core);
  uv_mutex_destroy(&core->wake_lock);
  uv_mutex_destroy(&core->entry_lock);
  free(core);
}

int vl_core_check(vl_core *core) {
  int err = core_enter(core);

  if (err != 0)
    return err;
  /* "Closed backend + NDEBUG spins forever inside uv_run." */
  err = os_check_backend(&core->loop, core->fine.fd);
  core_leave(core);
  return err;
}

void vl_core_statistics(vl_core *core, vl_statistics *out) {
  *out = core->statistics;
  out->ring_segments = core->ring.count;
  out->slab_segments = core->slab.count;
}

/* -- fork ------------------------------------------------------------------------ */

void vl_core_abandon(vl_core *core) {
  uint32_t i;

  core->foreign = true;
  if (core->closed)
    return;
  for (i = 0; i < core->slot_count; i++)
    if (core->slots[i].handle != NULL && core->slots[i].handle->kind == VL_KIND_SIGNAL)
      signal_abandon(core->slots[i].handle);
}

int vl_core_is_foreign(const vl_core *core) {
  return core->foreign ? 1 : 0;
}

static int renew_kernel_objects(vl_core *core) {
  int held[3];
  int err = os_hold_stdio(held); /* as in vl_core_new() */

  if (err != 0)
    return err;
  err = os_check_room(DESCRIPTORS_OF_A_FORK);
  if (err == 0 && core->fine.fd >= 0)
    err = os_fine_timer_replace(core->fine.fd);
  if (err == 0)
    err = waits_renew(core);
  if (err == 0) {
    err = uv_loop_fork(&core->loop);
    if (err == 0 && core->fine.fd >= 0)
      err = os_check_descriptor(&core->loop, core->fine.fd); /* for vl_core_check() */
    if (err != 0)
      core->polling = true; /* half changed, see vl_core_adopt() */
  }
  os_release_stdio(held);
  return err;
}

int vl_core_adopt(vl_core *core) {
  int err;

  if (!core->foreign)
    return 0;
  /* Forked by one thread while another was inside uv_run(): what that thread held
   * half changed nobody can repair. */
  if (core->polling)
    return VL_ERR_FOREIGN;
  err = uv_mutex_init(&core->entry_lock); /* a new one: the old may be locked for ever */
  if (err == 0)
    err = uv_mutex_init(&core->wake_lock);
  if (err == 0 && !core->closed)
    err = renew_kernel_objects(core);
  if (err != 0)
    return err;
  core->fine.deadline = 0;
  core->fine.fired = false;
  core->foreign = false;
  return 0;
}

/* -- the turn --------------------------------------------------------------------- */

static int set_fine_timer(vl_core *core, int64_t nanoseconds) {
  core->fine.fired = false;
  core->fine.deadline = nanoseconds == 0 ? 0 : uv_hrtime() + (uint64_t)nanoseconds;
  return os_fine_timer_set(core->fine.fd, nanoseconds);
}

/* Arranges that uv_run(UV_RUN_ONCE) returns after timeout_ns at the latest. */
static int set_timeout(vl_core *core, int64_t timeout_ns) {
  vl_fine_timer *fine = &core->fine;
  bool by_fine = fine->fd >= 0 && timeout_ns > 0 && timeout_ns < FINE_BELOW_NS;
  uint64_t deadline;
  uint64_t milliseconds;
  int err = 0;

  if (by_fine) {
    deadline = uv_hrtime() + (uint64_t)timeout_ns;
    if (fine->fired || fine->deadline == 0 || deadline + FINE_SAME_NS < fine->deadline ||
        fine->deadline + FINE_SAME_NS < deadline)
      err = set_fine_timer(core, timeout_ns);
  } else if (fine->fired || (fine->deadline != 0 && timeout_ns != 0)) {
    /* Fired, it stays readable until it is set again ("never read it"); not fired, it
     * would end a longer wait. */
    err = set_fine_timer(core, 0);
  }
  if (err != 0 || by_fine || timeout_ns <= 0)
    return err;
  if (timeout_ns > LONGEST_WAIT_NS)
    timeout_ns = LONGEST_WAIT_NS;
  if (fine->fd >= 0)
    milliseconds = (uint64_t)(timeout_ns / NS_PER_MS) - 1;
  else
    milliseconds = (uint64_t)((timeout_ns + NS_PER_MS - 1) / NS_PER_MS);
  uv_update_time(&core->loop); /* a timer counts from libuv's last look at the clock */
  return uv_timer_start(&core->timeout, on_timeout, milliseconds, 0);
}

int vl_core_poll(vl_core *core, int64_t timeout_ns) {
  int64_t *words = core->ring.words;
  int result = core_enter(core);

  if (result != 0)
    return result;
  if (words[VL_WORD_HEAD] != words[VL_WORD_TAIL]) {
    core_leave(core);
    return VL_POLL_RECORDS;
  }
  if (words[VL_WORD_FRAMES] == 0)
    ring_reset(core);
  ring_take_late(core);
  core->selector_ready = false;
  result = submit_check(core);
  if (words[VL_WORD_HEAD] != words[VL_WORD_TAIL] || core->late_first != NULL || core->selector_ready)
    timeout_ns = 0;
  if (result == 0)
    result = set_timeout(core, timeout_ns);
  if (result == 0) {
    core->serial++;
    core->statistics.polls++;
    core->polling = true;
  }
  core_leave(core);
  if (result != 0)
    return result;

  (void)uv_run(&core->loop, timeout_ns == 0 ? UV_RUN_NOWAIT : UV_RUN_ONCE);
  if (timeout_ns > 0)
    (void)uv_timer_stop(&core->timeout);

  uv_mutex_lock(&core->entry_lock);
  core->polling = false;
  uv_mutex_unlock(&core->entry_lock);
  if (words[VL_WORD_HEAD] != words[VL_WORD_TAIL])
    result |= VL_POLL_RECORDS;
  if (core->selector_ready)
    result |= VL_POLL_SELECTOR;
  if (core->loop.active_reqs.count != 0)
    result |= VL_POLL_SENDING;
  return result;
}

int vl_core_wake(vl_core *core) {
  int err = 0;

  if (core->foreign)
    return VL_ERR_FOREIGN;
  uv_mutex_lock(&core->wake_lock);
  if (!core->closed)
    err = uv_async_send(&core->wake);
  uv_mutex_unlock(&core->wake_lock);
  return err;
}

/* -- libuv itself -------------------------------------------------------------------- */

const char *vl_libuv_version(void) {
  return uv_version_string();
}

void vl_error_name(int code, char *out, size_t size) {
  if (size == 0)
    return;
  out[0] = '\0';
  if (code < 0 && code > -4096)
    (void)uv_err_name_r(code, out, size);
}
