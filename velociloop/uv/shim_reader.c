/* shim_reader.c: reading from descriptors that stay their owner's: pipes and terminals.
 *
 * Facts: the file object that the user gave closes its descriptor, and so would uv_pipe_t; a terminal or a
 * FIFO needs nothing of what uv_pipe_t does besides.
 * Choice: watched with uv_poll, and read here, into the slab. */
#include "shim_internal.h"

static void on_readable(uv_poll_t *poll, int status, int events);

static void end_with(vl_handle *handle, int64_t result) {
  /* uv_poll_stop() returns 0 always. */
  (void)uv_poll_stop(&handle->uv.poll);
  handle_report(handle, VL_OP_READ, result);
}

/* Reads once (H4: one grant a poll): bytes, or 0 if there is nothing to report, or an end or error. */
static int64_t read_once(vl_handle *handle, int fd) {
  vl_core *core = handle->core;
  vl_record record = {handle->key, VL_OP_READ, 0, 0, 0};
  size_t grant = slab_grant(core);
  size_t room = 0;
  ssize_t count;
  char *place;

  /* Room first: what was read must be reported.  Without it the bytes wait in the kernel. */
  if (core->late_first != NULL || ring_reserve(core) != 0)
    return 0;
  place = slab_offer(core, grant, &room);
  if (place == NULL)
    return 0;
  count = os_read(fd, place, grant);
  if (count == UV_EAGAIN || count == UV_EINTR)
    return 0;
  if (count <= 0)
    return count == 0 ? UV_EOF : count;
  record.result = count;
  slab_commit(core, (size_t)count, &record.segment, &record.aux);
  if (ring_push(core, &record) != 0)
    abort(); /* reserved above */
  return count;
}

static void on_readable(uv_poll_t *poll, int status, int events) {
  vl_handle *handle = poll->data;
  uv_os_fd_t fd;
  int64_t result;
  int err = uv_fileno(&handle->uv.any, &fd);

  (void)events;
  /* UV_EBADF is what uv_poll reports for POLLERR; read() knows the real reason. */
  if (err == 0 && status != UV_EBADF)
    err = status;
  result = err != 0 ? err : read_once(handle, (int)(intptr_t)fd);
  if (result < 0) {
    end_with(handle, result);
    return;
  }
  /* After POLLERR uv_poll has stopped itself ("uv__io_stop"), though more may follow. */
  if (status == UV_EBADF) {
    err = uv_poll_start(poll, UV_READABLE, on_readable);
    if (err != 0)
      end_with(handle, err);
  }
}

/* -- entries ------------------------------------------------------------------ */

int64_t vl_reader_open(vl_core *core, int fd) {
  vl_handle *handle;
  int64_t key = core_enter(core);

  if (key != 0)
    return key;
  key = poll_new(core, VL_KIND_READER, fd, &handle);
  if (key == 0)
    key = poll_register(handle, 0, on_readable);
  core_leave(core);
  return key;
}

int vl_reader_start(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_READER);
  err = handle == NULL ? VL_ERR_STALE : uv_poll_start(&handle->uv.poll, UV_READABLE, on_readable);
  core_leave(core);
  return err;
}

int vl_reader_stop(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_READER);
  err = handle == NULL ? VL_ERR_STALE : uv_poll_stop(&handle->uv.poll);
  core_leave(core);
  return err;
}
