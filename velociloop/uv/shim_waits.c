/* shim_waits.c: single waits for sockets that stay their owner's (sock_recv() and the like).
 *
 * Facts (H6): libuv must not watch what its owner may close at any time; the selector's descriptors are therefore
 * watched by an instance of their own.  There a wait costs two system calls, one that registers and one that forgets.
 * Choice: another such instance, in which a registration stays and is armed for one event; libuv watches it. */
#include "shim_internal.h"

#define AT_ONCE 64

static void on_ready(uv_poll_t *poll, int status, int events) {
  vl_core *core = poll->data;
  vl_record record = {0, VL_OP_WAIT, 0, 0, 0};
  int64_t tokens[AT_ONCE];
  int room, count, i;

  (void)status;
  (void)events;
  do {
    /* What was taken is disarmed, and must be told; the rest stays there until the next poll. */
    room = AT_ONCE;
    if (core->late_first != NULL || ring_reserve(core) != 0)
      return;
    if (core->ring.words[VL_WORD_TAIL] % VL_RING_SEGMENT_RECORDS + room > VL_RING_SEGMENT_RECORDS)
      room = 1;
    count = os_waits_take(core->waits.fd, tokens, room);
    for (i = 0; i < count; i++) {
      record.aux = tokens[i];
      if (ring_push(core, &record) != 0)
        abort(); /* in the segment that was reserved */
    }
  } while (count == room);
}

static int waits_open(vl_core *core) {
  int fd = os_waits_open();
  int err;

  if (fd < 0)
    return fd;
  err = uv_poll_init(&core->loop, &core->waits.poll, fd);
  if (err != 0) {
    (void)os_close(fd);
    return err;
  }
  core->waits.fd = fd;
  core->waits.open = true;
  core->waits.poll.data = core;
  /* uv_poll_start() returns 0 for an open handle. */
  return uv_poll_start(&core->waits.poll, UV_READABLE, on_ready);
}

void waits_close(vl_core *core) {
  if (core->waits.open)
    uv_close((uv_handle_t *)&core->waits.poll, NULL);
}

void waits_closed(vl_core *core) {
  if (core->waits.open)
    (void)os_close(core->waits.fd);
  core->waits.open = false;
}

int waits_renew(vl_core *core) {
  return core->waits.open ? os_waits_replace(core->waits.fd) : 0;
}

/* -- entries ------------------------------------------------------------------ */

int vl_wait_arm(vl_core *core, int fd, int64_t token) {
  int err = core_enter(core);

  if (err != 0)
    return err;
  if (!core->waits.open)
    err = waits_open(core);
  if (err == 0)
    err = os_waits_arm(core->waits.fd, fd, token);
  core_leave(core);
  return err;
}

int vl_wait_forget(vl_core *core, int fd) {
  int err = core_enter(core);

  if (err != 0)
    return err;
  err = core->waits.open ? os_waits_forget(core->waits.fd, fd) : 0;
  core_leave(core);
  return err;
}
