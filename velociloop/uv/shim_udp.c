/* shim_udp.c: datagrams over IPv4 and IPv6.
 *
 * Facts (H14): a datagram is at most 65,535 bytes.  One buffer serves one recvmsg(), or up to 20 datagrams of one
 * recvmmsg() (UV_UDP_RECVMMSG), each of which lies 64 KiB behind the one before; with less than 64 KiB
 * uv__udp_recvmsg() never returns then.  It calls back with 0 bytes and no address when nothing is left, and with
 * 0 bytes and an address for an empty datagram.
 * Choice: where libuv has recvmmsg(), it reads into a buffer that the core's sockets share, of which each datagram is
 * copied into the slab; elsewhere each is offered 64 KiB of slab and takes what it needs. */
#include "shim_internal.h"

#define DATAGRAM_BYTES 65536u
#define MOST_AT_ONCE 20u

_Static_assert(VL_DATAGRAM_HEADER >= sizeof(int64_t) + sizeof(struct sockaddr_in6),
               "an address does not fit in front of its datagram");

int udp_init(vl_handle *handle) {
  handle->last_read = DATAGRAM_BYTES; /* the first is received alone */
  return uv_udp_init_ex(&handle->core->loop, &handle->uv.udp, AF_UNSPEC | UV_UDP_RECVMMSG);
}

void udp_free(vl_core *core) {
  if (core->datagrams != NULL)
    os_pages_free(core->datagrams, MOST_AT_ONCE * DATAGRAM_BYTES);
}

/* Room for as many datagrams as will bring about a grant, if they are like the last one (H4). */
static void offer_many(vl_handle *handle, size_t grant, uv_buf_t *buf) {
  vl_core *core = handle->core;
  size_t count = grant / (VL_DATAGRAM_HEADER + handle->last_read + 1u);

  /* A batch that was not full has left nothing; to ask would be a system call.  Once: the error queue is asked for
   * in the same way. */
  if (handle->drained) {
    handle->drained = false;
    return;
  }
  if (core->datagrams == NULL)
    core->datagrams = os_pages_new(MOST_AT_ONCE * DATAGRAM_BYTES);
  if (core->datagrams == NULL)
    return;
  count = count < 1 ? 1 : count > MOST_AT_ONCE ? MOST_AT_ONCE : count;
  handle->asked = (uint32_t)count;
  handle->came = 0;
  buf->base = core->datagrams;
  buf->len = count * DATAGRAM_BYTES;
}

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
    handle->drained = false;
  }
  if (handle->received >= slab_grant(core) || core->late_first != NULL || ring_reserve(core) != 0)
    return;
  if (uv_udp_using_recvmmsg(&handle->uv.udp)) {
    offer_many(handle, slab_grant(core), buf);
    return;
  }
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
  size_t room = 0;
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
  if ((flags & UV_UDP_MMSG_FREE) != 0) {
    handle->drained = handle->came > 0 && handle->came < handle->asked;
    return;
  }
  /* "nread == 0 and addr == NULL when there is nothing to read". */
  if (address == NULL)
    return;
  if ((flags & UV_UDP_MMSG_CHUNK) != 0) {
    handle->came++;
    place = slab_offer(handle->core, size, &room);
    /* Without memory it is lost, as the kernel loses it. */
    if (place == NULL || ring_reserve(handle->core) != 0)
      return;
    memcpy(place + VL_DATAGRAM_HEADER, buf->base, (size_t)nread);
  } else {
    place = buf->base - VL_DATAGRAM_HEADER;
  }
  length = (int64_t)address_size(address);
  memcpy(place, &length, sizeof(length));
  memcpy(place + sizeof(length), address, (size_t)length);
  slab_commit(handle->core, size, &record.segment, &record.aux);
  handle->received += size;
  handle->last_read = (uint32_t)nread;
  /* The place was reserved, so this cannot fail. */
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
  uv_os_fd_t fd;
  int64_t sent = core_enter(core);

  if (sent != 0)
    return sent;
  handle = handle_find(core, key, VL_KIND_UDP);
  if (handle == NULL)
    sent = VL_ERR_STALE;
  else
    sent = address_of(address, receiver_size, &room, &receiver);
  /* uv_udp_try_send() is sendmsg(2), a longer way through the kernel than sendto(2). */
  if (sent == 0 && os_reads_sockets() && uv_udp_get_send_queue_count(&handle->uv.udp) == 0 &&
      uv_fileno(&handle->uv.any, &fd) == 0)
    sent = os_send((int)(intptr_t)fd, data, size, receiver, receiver_size);
  else if (sent == 0)
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
