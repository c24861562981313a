/* shim_poll.c: watching descriptors that stay their owner's.
 *
 * Facts: libuv allows one watcher a descriptor (UV_EEXIST), and answers UV_EPERM for a plain file.
 * uv_poll stops at POLLERR and says UV_EBADF. */
#include "shim_internal.h"

_Static_assert(VL_READABLE == (int)UV_READABLE && VL_WRITABLE == (int)UV_WRITABLE,
               "uv.cdef and libuv disagree on a poll's events");

int poll_new(vl_core *core, vl_kind kind, int fd, vl_handle **out) {
  vl_handle *handle = handle_new(core, kind, UV_POLL);
  int err;

  if (handle == NULL)
    return UV_ENOMEM;
  err = uv_poll_init(&core->loop, &handle->uv.poll, fd);
  if (err != 0) {
    free(handle);
    return err;
  }
  handle->uv.any.data = handle;
  *out = handle;
  return 0;
}

int64_t poll_register(vl_handle *handle, int events, uv_poll_cb callback) {
  int err = events == 0 ? 0 : uv_poll_start(&handle->uv.poll, events, callback);
  int64_t key = err != 0 ? err : handle_register(handle);

  if (key < 0)
    handle_discard(handle);
  return key;
}

static void on_selector(uv_poll_t *poll, int status, int events) {
  vl_handle *handle = poll->data;

  (void)status;
  (void)events;
  handle->core->selector_ready = true;
}

static void on_events(uv_poll_t *poll, int status, int events);

/* Has libuv watch for handle->events. */
static int watch(vl_handle *handle) {
  int events = handle->events & (VL_READABLE | VL_WRITABLE);

  if (handle->events & VL_RECEIVE)
    events |= UV_READABLE;
  return events == 0 ? uv_poll_stop(&handle->uv.poll) : uv_poll_start(&handle->uv.poll, events, on_events);
}

/* Reads, and says what of the events is left to be told. */
static int receive(vl_handle *handle, int events) {
  uv_os_fd_t fd = (uv_os_fd_t)-1;
  int err = uv_fileno(&handle->uv.any, &fd);

  if (err == 0 && reader_receive(handle, (int)(intptr_t)fd))
    return events & ~UV_READABLE;
  handle->events &= ~VL_RECEIVE;
  err = watch(handle);
  if (err != 0)
    handle_report(handle, VL_OP_POLL, err);
  return events & ~UV_READABLE;
}

static void on_events(uv_poll_t *poll, int status, int events) {
  vl_handle *handle = poll->data;
  vl_record record = {handle->key, VL_OP_POLL, 0, 0, 0};

  if (status != 0) {
    /* uv_poll has stopped itself after POLLERR ("uv__io_stop"). */
    (void)uv_poll_stop(&handle->uv.poll);
    if (!(handle->events & VL_RECEIVE)) {
      handle_report(handle, VL_OP_POLL, status);
      return;
    }
    /* What is still in a socket must be read all the same, and then its error is. */
    events = UV_READABLE | (handle->events & VL_WRITABLE);
    status = watch(handle);
    if (status != 0) {
      handle_report(handle, VL_OP_POLL, status);
      return;
    }
  }
  if (handle->events & VL_RECEIVE && events & UV_READABLE)
    events = receive(handle, events);
  record.result = events;
  /* Without room nothing is lost: the descriptor is still ready in the next poll. */
  if (events != 0)
    (void)ring_push(handle->core, &record);
}

/* -- entries ------------------------------------------------------------------ */

int64_t vl_poll_open(vl_core *core, int fd) {
  vl_handle *handle;
  int64_t key = core_enter(core);

  if (key != 0)
    return key;
  key = poll_new(core, VL_KIND_POLL, fd, &handle);
  if (key == 0)
    key = poll_register(handle, 0, on_events);
  core_leave(core);
  return key;
}

int vl_poll_events(vl_core *core, int64_t key, int events) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_POLL);
  if (handle == NULL) {
    err = VL_ERR_STALE;
  } else {
    handle->events = events;
    err = watch(handle);
  }
  core_leave(core);
  return err;
}

int64_t vl_descriptor_write(vl_core *core, int fd, const char *data, size_t size) {
  int64_t written = core_enter(core);

  if (written != 0)
    return written;
  written = os_write(fd, data, size);
  core_leave(core);
  return written;
}

int64_t vl_selector_open(vl_core *core, int fd) {
  vl_handle *handle;
  int64_t key = core_enter(core);

  if (key != 0)
    return key;
  key = poll_new(core, VL_KIND_SELECTOR, fd, &handle);
  if (key == 0)
    key = poll_register(handle, UV_READABLE, on_selector);
  core_leave(core);
  return key;
}
