/* shim_listener.c: accepting.
 *
 * Facts (H8): libuv 1.52's own listener accepts one connection a turn, and on EMFILE it
 * closes every waiting client without telling anyone.
 * Choice: the listening descriptor is watched with uv_poll, and accepted from in a
 * bounded loop.  The loop never owns the listening descriptor. */
#include "shim_internal.h"

#define ADDRESS_BYTES sizeof(struct sockaddr_storage)

static void stop_with(vl_handle *handle, int err) {
  /* uv_poll_stop() returns 0 always; the watcher leaves the kernel's set at once. */
  (void)uv_poll_stop(&handle->uv.poll);
  handle_report(handle, VL_OP_ACCEPT, err);
}

/* Accepts one connection: 1, 0 (none is left), or an error that ends the watch. */
static int accept_one(vl_handle *listener, int fd) {
  vl_core *core = listener->core;
  vl_record record = {listener->key, VL_OP_ACCEPT, 0, 0, 0};
  size_t room = 0;
  size_t size = 0;
  int64_t length;
  char *place;
  int accepted;

  /* Room first: a connection that cannot be reported must stay in the backlog. */
  if (ring_reserve(core) != 0)
    return UV_ENOMEM;
  place = slab_offer(core, sizeof(length) + ADDRESS_BYTES, &room);
  if (place == NULL)
    return UV_ENOMEM;
  memset(place, 0, sizeof(length) + ADDRESS_BYTES);
  accepted = os_accept(fd, place + sizeof(length), ADDRESS_BYTES, &size);
  if (accepted == UV_EAGAIN)
    return 0;
  /* "Only EAGAIN, EINTR, ECONNABORTED and EPROTO continue." */
  if (accepted == UV_EINTR || accepted == UV_ECONNABORTED || accepted == UV_EPROTO)
    return 1;
  if (accepted < 0)
    return accepted;
  record.result = stream_adopt(core, listener->stream_kind, accepted);
  if (record.result < 0)
    return (int)record.result;
  length = (int64_t)size;
  memcpy(place, &length, sizeof(length));
  slab_commit(core, sizeof(length) + size, &record.segment, &record.aux);
  if (ring_push(core, &record) != 0)
    abort(); /* reserved above */
  return 1;
}

static void on_connection(uv_poll_t *poll, int status, int events) {
  vl_handle *handle = poll->data;
  uv_os_fd_t fd;
  int more;
  int i;

  (void)events;
  if (status == 0)
    status = uv_fileno(&handle->uv.any, &fd);
  /* UV_EBADF is what uv_poll reports for POLLERR; accept() knows the real reason. */
  if (status != 0 && status != UV_EBADF) {
    stop_with(handle, status);
    return;
  }
  if (status == UV_EBADF && uv_fileno(&handle->uv.any, &fd) != 0) {
    stop_with(handle, UV_EBADF);
    return;
  }
  for (i = 0; i < handle->batch; i++) {
    more = accept_one(handle, (int)(intptr_t)fd);
    if (more == 0)
      break;
    if (more < 0) {
      stop_with(handle, more);
      return;
    }
  }
  /* After POLLERR uv_poll has stopped itself ("uv__io_stop"), though nothing was wrong. */
  if (status == UV_EBADF)
    stop_with(handle, UV_EBADF);
}

/* -- entries ------------------------------------------------------------------- */

int64_t vl_listener_open(vl_core *core, int kind, int fd, int batch) {
  vl_handle *handle;
  int64_t key = core_enter(core);

  if (key != 0)
    return key;
  key = poll_new(core, VL_KIND_LISTENER, fd, &handle);
  if (key == 0) {
    handle->stream_kind = kind;
    handle->batch = batch < 1 ? 1 : batch;
    key = poll_register(handle, UV_READABLE, on_connection);
  }
  core_leave(core);
  return key;
}

int vl_listener_restart(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_LISTENER);
  err = handle == NULL ? VL_ERR_STALE : uv_poll_start(&handle->uv.poll, UV_READABLE, on_connection);
  core_leave(core);
  return err;
}
