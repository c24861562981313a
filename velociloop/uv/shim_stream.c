/* shim_stream.c: TCP and Unix streams. */
#include "shim_internal.h"

/* -- reading ------------------------------------------------------------------- */

/* A stream that sends much is read when its record is dispatched, into memory that the consumer has ready: in between,
 * what the other streams sent would drive its bytes out of the processor's cache, and they would be copied once more.
 * Such a stream is one whose last read brought at least this much. */
#define MUCH_BYTES 8192u

/* H4: libuv reads a stream up to 32 times while its buffer comes back full, so one
 * sender could fill the slab.  One grant a poll; the second request gets a buffer of
 * length 0, for which uv_alloc_cb's contract is UV_ENOBUFS in the read callback. */
static void on_alloc(uv_handle_t *uv, size_t suggested, uv_buf_t *buf) {
  vl_handle *handle = uv->data;
  vl_core *core = handle->core;
  vl_record much = {handle->key, VL_OP_READ, 0, 0, handle->last_read};
  size_t grant = slab_grant(core);
  size_t room = 0;

  (void)suggested;
  buf->base = NULL;
  buf->len = 0;
  if (handle->granted_in == core->serial || core->late_first != NULL || ring_reserve(core) != 0)
    return;
  if (handle->last_read >= MUCH_BYTES && os_reads_sockets()) {
    /* No buffer: on_read() gets UV_ENOBUFS. */
    handle->granted_in = core->serial;
    if (ring_push(core, &much) != 0)
      abort(); /* reserved above */
    return;
  }
  buf->base = slab_offer(core, grant, &room);
  if (buf->base == NULL)
    return;
  handle->granted_in = core->serial;
  buf->len = grant;
}

static void on_read(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf) {
  vl_handle *handle = stream->data;
  vl_record record = {handle->key, VL_OP_READ, 0, nread, 0};

  (void)buf;
  /* "nread might be 0, which does not indicate an error or EOF. This is equivalent
   * to EAGAIN"; UV_ENOBUFS is on_alloc()'s refusal. */
  if (nread == 0 || nread == UV_ENOBUFS)
    return;
  if (nread < 0) {
    handle_report(handle, VL_OP_READ, nread);
    return;
  }
  handle->last_read = (uint32_t)nread;
  slab_commit(handle->core, (size_t)nread, &record.segment, &record.aux);
  /* on_alloc() reserved the place, so this cannot fail. */
  if (ring_push(handle->core, &record) != 0)
    abort();
}

/* -- writing ------------------------------------------------------------------- */

static void on_written(uv_write_t *req, int status) {
  request_done(req->data, status);
}

/* -- opening ------------------------------------------------------------------- */

int64_t stream_adopt(vl_core *core, int kind, int fd) {
  vl_handle *handle;
  int64_t key = adopt(core, VL_KIND_STREAM, kind == VL_STREAM_PIPE ? UV_NAMED_PIPE : UV_TCP, fd, &handle);

  if (key < 0)
    return key;
  handle->stream_kind = kind;
  /* As asyncio does for every TCP transport.  A hint: families and protocols without
   * it refuse, and a peer that has gone shows itself in the first read. */
  if (kind == VL_STREAM_TCP)
    (void)uv_tcp_nodelay(&handle->uv.tcp, 1);
  return key;
}

/* -- entries ------------------------------------------------------------------- */

int64_t vl_stream_open(vl_core *core, int kind, int fd) {
  int64_t key;
  int err = core_enter(core);

  if (err != 0) {
    (void)os_close(fd);
    return err;
  }
  key = stream_adopt(core, kind, fd);
  core_leave(core);
  return key;
}

int vl_stream_sockname(vl_core *core, int64_t key, char *out, int room) {
  vl_handle *handle;
  uv_os_fd_t fd;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_STREAM);
  err = handle == NULL ? VL_ERR_STALE : uv_fileno(&handle->uv.any, &fd);
  if (err == 0)
    err = os_sockname((int)(intptr_t)fd, out, room);
  core_leave(core);
  return err;
}

int vl_stream_close(vl_core *core, int64_t key, char *out, int room) {
  vl_handle *handle;
  uv_os_fd_t fd;
  int size = 0;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find_any(core, key);
  if (handle == NULL) {
    size = VL_ERR_STALE;
  } else {
    if (handle->kind == VL_KIND_STREAM && uv_fileno(&handle->uv.any, &fd) == 0)
      size = os_sockname((int)(intptr_t)fd, out, room);
    handle_close(handle);
    if (size < 0)
      size = 0;
  }
  core_leave(core);
  return size;
}

int vl_stream_read_start(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_STREAM);
  if (handle == NULL) {
    err = VL_ERR_STALE;
  } else {
    err = uv_read_start(&handle->uv.stream, on_alloc, on_read);
    if (err == UV_EALREADY)
      err = 0;
  }
  core_leave(core);
  return err;
}

int vl_stream_read_stop(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_STREAM);
  err = handle == NULL ? VL_ERR_STALE : uv_read_stop(&handle->uv.stream);
  core_leave(core);
  return err;
}

int64_t vl_stream_receive(vl_core *core, int64_t key, char *out, size_t room) {
  vl_handle *handle;
  uv_os_fd_t fd;
  int64_t size = core_enter(core);

  if (size != 0)
    return size;
  handle = handle_find(core, key, VL_KIND_STREAM);
  size = handle == NULL ? VL_ERR_STALE : uv_fileno(&handle->uv.any, &fd);
  if (size == 0) {
    size = os_read((int)(intptr_t)fd, out, room);
    if (size == 0)
      size = VL_EOF;
    /* "uv_read_stop() will always succeed". */
    if (size < 0 && size != UV_EAGAIN)
      (void)uv_read_stop(&handle->uv.stream);
    handle->last_read = size < 0 ? 0 : (uint32_t)size;
  }
  core_leave(core);
  return size;
}

/* What uv_try_write() does for one buffer, by send(2) instead of write(2): a way through the kernel that is 1% of an echo
 * shorter. */
static int64_t try_write(vl_core *core, int64_t key, uv_buf_t bufs[], unsigned int count) {
  vl_handle *handle;
  uv_os_fd_t fd;
  int64_t sent;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_STREAM);
  if (handle == NULL)
    sent = VL_ERR_STALE;
  else if (count == 1 && os_reads_sockets() && uv_stream_get_write_queue_size(&handle->uv.stream) == 0 &&
           uv_fileno(&handle->uv.any, &fd) == 0)
    sent = os_send((int)(intptr_t)fd, bufs[0].base, bufs[0].len, NULL, 0);
  else
    sent = uv_try_write(&handle->uv.stream, bufs, count);
  core_leave(core);
  return sent;
}

int64_t vl_stream_try_write(vl_core *core, int64_t key, const char *data, size_t size) {
  uv_buf_t bufs[1];

  bufs[0] = request_buffer(data, size);
  return try_write(core, key, bufs, 1);
}

int64_t vl_stream_try_write2(vl_core *core, int64_t key, const char *first, size_t first_size,
                             const char *second, size_t second_size) {
  uv_buf_t bufs[2];

  bufs[0] = request_buffer(first, first_size);
  bufs[1] = request_buffer(second, second_size);
  /* A first buffer that had to be cut must not be followed by the second. */
  return try_write(core, key, bufs, bufs[0].len == first_size ? 2 : 1);
}

int vl_stream_write(vl_core *core, int64_t key, int64_t token, const char *data, size_t size) {
  vl_handle *handle;
  vl_write *write;
  uv_buf_t buf;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_STREAM);
  write = handle == NULL || size > 0x7fffffffu ? NULL : request_new(handle, token);
  if (handle == NULL) {
    err = VL_ERR_STALE;
  } else if (write == NULL) {
    err = size > 0x7fffffffu ? UV_EINVAL : UV_ENOMEM;
  } else {
    buf = request_buffer(data, size);
    err = request_given(write, uv_write(&write->req.stream, &handle->uv.stream, &buf, 1, on_written));
  }
  core_leave(core);
  return err;
}

int64_t vl_stream_unsent(vl_core *core, int64_t key) {
  vl_handle *handle;
  int64_t unsent;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_STREAM);
  unsent = handle == NULL ? VL_ERR_STALE : (int64_t)uv_stream_get_write_queue_size(&handle->uv.stream);
  core_leave(core);
  return unsent;
}

int vl_stream_shutdown(vl_core *core, int64_t key) {
  vl_handle *handle;
  uv_os_fd_t fd;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_STREAM);
  err = handle == NULL ? VL_ERR_STALE : uv_fileno(&handle->uv.any, &fd);
  /* Not uv_shutdown(): "The shutdown(2) call will always be deferred", while
   * asyncio's write_eof() acts, and raises, at once. */
  if (err == 0)
    err = os_shutdown_write((int)(intptr_t)fd);
  core_leave(core);
  return err;
}
