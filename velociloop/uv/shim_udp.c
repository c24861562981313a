/* shim_udp.c: datagrams over IPv4 and IPv6.
 *
 * Facts (H14): one buffer serves one recvmsg(), and a datagram is at most 65,535 bytes; with UV_UDP_RECVMMSG
 * uv__udp_recvmsg() never returns if that buffer has less than 64 KiB.  It calls back with 0 bytes and no
 * address when nothing is left, and with 0 bytes and an address for an empty datagram.
 * Choice: each datagram is offered 64 KiB of slab and takes what it needs; no UV_UDP_RECVMMSG. */
#include "shim_internal.h"

#define DATAGRAM_BYTES 65536u

_Static_assert(VL_DATAGRAM_HEADER >= sizeof(int64_t) + sizeof(struct sockaddr_in6),
               "an address does not fit in front of its datagram");

/* H4: libuv receives up to 32 datagrams an event.  A flooding peer gets what a stream gets, and at most
 * one datagram more: after that much no buffer, for which uv__udp_recvmsg() returns; the watcher
 * stays, and the rest comes in the next poll, behind everybody else's. */
static void on_alloc(uv_handle_t *uv, size_t suggested, uv_buf_t *buf) {
  vl_handle *handle = uv->data;
  vl_core *core = handle->core;
  size_t room = 0;
  char *place;

  (void)suggested;
  buf->base = NULL;
  buf->len = 0;
  if (handle->granted_in != core->serial) {
    handle->granted_in = core->serial;
    handle->received = 0;
  }
  if (handle->received >= slab_grant(core) || core->late_first != NULL || ring_reserve(core) != 0)
    return;
  place = slab_offer(core, VL_DATAGRAM_HEADER + DATAGRAM_BYTES, &room);
  if (place == NULL)
    return;
  buf->base = place + VL_DATAGRAM_HEADER;
  buf->len = DATAGRAM_BYTES;
}

static size_t address_size(const struct sockaddr *address) {
  switch (address->sa_family) {
  case AF_INET:
    return sizeof(struct sockaddr_in);
  case AF_INET6:
    return sizeof(struct sockaddr_in6);
  default:
    return 0;
  }
}

static void on_receive(uv_udp_t *udp, ssize_t nread, const uv_buf_t *buf, const struct sockaddr *address,
                       unsigned flags) {
  vl_handle *handle = udp->data;
  vl_record record = {handle->key, VL_OP_DATAGRAM, 0, nread, 0};
  size_t size = VL_DATAGRAM_HEADER + (size_t)(nread < 0 ? 0 : nread);
  int64_t length;
  char *place;

  /* on_alloc()'s refusal, as UV_ENOBUFS. */
  if (buf->base == NULL)
    return;
  /* An entry of the error queue that IP_RECVERR gives a socket.  The socket's own error has been
   * received before it, and asyncio reports that one only. */
  if ((flags & UV_UDP_LINUX_RECVERR) != 0)
    return;
  if (nread < 0) {
    handle_report(handle, VL_OP_DATAGRAM, nread);
    return;
  }
  /* "nread == 0 and addr == NULL when there is nothing to read". */
  if (address == NULL)
    return;
  place = buf->base - VL_DATAGRAM_HEADER;
  length = (int64_t)address_size(address);
  memcpy(place, &length, sizeof(length));
  memcpy(place + sizeof(length), address, (size_t)length);
  slab_commit(handle->core, size, &record.segment, &record.aux);
  handle->received += size;
  /* on_alloc() reserved the place, so this cannot fail. */
  if (ring_push(handle->core, &record) != 0)
    abort();
}

static void on_sent(uv_udp_send_t *req, int status) {
  request_done(req->data, status);
}

/* The caller's bytes as an aligned address, or NULL for none.  An error if they are not an address. */
static int address_of(const char *bytes, size_t size, struct sockaddr_storage *room,
                      const struct sockaddr **out) {
  *out = NULL;
  if (size == 0)
    return 0;
  if (size > sizeof(*room))
    return UV_EINVAL;
  memset(room, 0, sizeof(*room));
  memcpy(room, bytes, size);
  *out = (const struct sockaddr *)room;
  return address_size(*out) == size ? 0 : UV_EINVAL;
}

/* -- entries ------------------------------------------------------------------- */

int64_t vl_udp_open(vl_core *core, int fd) {
  vl_handle *handle;
  int64_t key;
  int err = core_enter(core);

  if (err != 0) {
    (void)os_close(fd);
    return err;
  }
  key = adopt(core, VL_KIND_UDP, UV_UDP, fd, &handle);
  core_leave(core);
  return key;
}

int vl_udp_recv_start(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_UDP);
  if (handle == NULL) {
    err = VL_ERR_STALE;
  } else {
    err = uv_udp_recv_start(&handle->uv.udp, on_alloc, on_receive);
    if (err == UV_EALREADY)
      err = 0;
  }
  core_leave(core);
  return err;
}

int vl_udp_recv_stop(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_UDP);
  err = handle == NULL ? VL_ERR_STALE : uv_udp_recv_stop(&handle->uv.udp);
  core_leave(core);
  return err;
}

int64_t vl_udp_try_send(vl_core *core, int64_t key, const char *data, size_t size, const char *address,
                        size_t receiver_size) {
  struct sockaddr_storage room;
  const struct sockaddr *receiver;
  vl_handle *handle;
  uv_buf_t buf = request_buffer(data, size);
  int64_t sent = core_enter(core);

  if (sent != 0)
    return sent;
  handle = handle_find(core, key, VL_KIND_UDP);
  if (handle == NULL)
    sent = VL_ERR_STALE;
  else
    sent = address_of(address, receiver_size, &room, &receiver);
  if (sent == 0)
    sent = uv_udp_try_send(&handle->uv.udp, &buf, 1, receiver);
  core_leave(core);
  return sent;
}

int vl_udp_send(vl_core *core, int64_t key, int64_t token, const char *data, size_t size, const char *address,
                size_t receiver_size) {
  struct sockaddr_storage room;
  const struct sockaddr *receiver;
  vl_handle *handle;
  vl_write *write;
  uv_buf_t buf = request_buffer(data, size);
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_UDP);
  err = handle == NULL ? VL_ERR_STALE : address_of(address, receiver_size, &room, &receiver);
  write = err == 0 ? request_new(handle, token) : NULL;
  if (write != NULL) {
    err = request_given(write, uv_udp_send(&write->req.udp, &handle->uv.udp, &buf, 1, receiver, on_sent));
  } else if (err == 0) {
    err = UV_ENOMEM;
  }
  core_leave(core);
  return err;
}
