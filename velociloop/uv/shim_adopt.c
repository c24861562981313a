/* shim_adopt.c: descriptors that libuv owns from now on. */
#include "shim_internal.h"

static int init(vl_handle *handle, uv_handle_type type) {
  uv_loop_t *loop = &handle->core->loop;

  switch (type) {
  case UV_NAMED_PIPE:
    return uv_pipe_init(loop, &handle->uv.pipe, 0);
  case UV_UDP:
    return udp_init(handle);
  default:
    return uv_tcp_init(loop, &handle->uv.tcp);
  }
}

/* uv_udp_open() sets SO_REUSEADDR ("Keep backward compatibility"), which lets others bind the same
 * address and take over what is sent to it; asyncio leaves the option as it is. */
static int open_udp(uv_udp_t *udp, int fd) {
#if UV_VERSION_HEX >= ((1 << 16) | (52 << 8))
  return uv_udp_open_ex(udp, fd, 0);
#else
  int shared;
  int err = os_get_reuse_address(fd, &shared);

  if (err == 0)
    err = uv_udp_open(udp, fd);
  if (err == 0)
    (void)os_set_reuse_address(fd, shared); /* it could be read, so it can be set; and libuv owns fd now */
  return err;
#endif
}

static int open_on(vl_handle *handle, int fd) {
  switch (handle->uv.any.type) {
  case UV_NAMED_PIPE:
    return uv_pipe_open(&handle->uv.pipe, fd);
  case UV_UDP:
    return open_udp(&handle->uv.udp, fd);
  default:
    return uv_tcp_open(&handle->uv.tcp, fd);
  }
}

int64_t adopt(vl_core *core, vl_kind kind, uv_handle_type type, int fd, vl_handle **out) {
  vl_handle *handle;
  int64_t key;
  int err;

  fd = os_move_above_stdio(fd);
  if (fd < 0)
    return fd;
  handle = handle_new(core, kind, type);
  if (handle == NULL) {
    (void)os_close(fd);
    return UV_ENOMEM;
  }
  err = init(handle, type);
  if (err != 0) {
    free(handle);
    (void)os_close(fd);
    return err;
  }
  handle->uv.any.data = handle;
  err = open_on(handle, fd);
  /* UV_EEXIST: libuv still watches this number for a descriptor that somebody closed
   * behind its back.  The new file must not inherit that watcher.  The next number may be
   * of that kind too. */
  while (err == UV_EEXIST && fd >= 0) {
    fd = os_renumber(fd);
    err = fd < 0 ? fd : open_on(handle, fd);
  }
  if (err != 0) {
    if (fd >= 0)
      (void)os_close(fd);
    handle_discard(handle);
    return err;
  }
  key = handle_register(handle);
  if (key < 0)
    handle_discard(handle); /* closes the descriptor too */
  *out = handle;
  return key;
}
