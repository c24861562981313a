/* shim_signal.c: signals.
 *
 * Facts (H10): libuv's handlers form one tree a process.  The first for a signal takes it over by
 * sigaction(2), the last one's end leaves SIG_DFL ("uv__signal_unregister_handler"), and those between
 * do neither, whatever has become of the signal meanwhile.  Python's own handler writes to the
 * wakeup descriptor instead, so whichever of the two has the signal, the loop hears of it.
 * Choice: Python takes a signal first, with all of asyncio's checks, and libuv takes it from
 * Python.  What libuv leaves behind is put right here, with signals blocked in this thread. */
#include "shim_internal.h"

/* Aligned for a struct sigaction or a sigset_t. */
typedef union {
  max_align_t align;
  char bytes[VL_ACTION_BYTES];
} action_room;

static void on_signal(uv_signal_t *signal, int signum) {
  /* Without room it waits; another of the same number that comes meanwhile is merged with it, as
   * the kernel merges pending signals. */
  handle_report(signal->data, VL_OP_SIGNAL, signum);
}

void signal_abandon(vl_handle *handle) {
  /* "uv_signal_stop" returns 0 always. */
  (void)uv_signal_stop(&handle->uv.signal);
}

/* libuv's action, where it has not taken the signal because it thinks that it has it. */
static int take_up(int signum, const char *previous) {
  action_room before;

  memcpy(before.bytes, previous, sizeof(before.bytes));
  return os_signal_is_caught(&before) ? os_signal_set_action(signum, &before) : 0;
}

static int start(vl_handle *handle, int signum, const action_room *pythons, const char *previous) {
  action_room now;
  int err = uv_signal_start(&handle->uv.signal, on_signal, signum);

  memset(&now, 0, sizeof(now));
  if (err == 0)
    err = os_signal_action(signum, &now);
  if (err == 0 && os_signal_is_same(pythons, &now))
    err = take_up(signum, previous);
  return err;
}

static int64_t signal_new(vl_core *core, int signum, const char *previous) {
  vl_handle *handle = handle_new(core, VL_KIND_SIGNAL, UV_SIGNAL);
  action_room pythons;
  int held[3];
  int64_t key;
  int err;

  if (handle == NULL)
    return UV_ENOMEM;
  memset(&pythons, 0, sizeof(pythons));
  err = os_signal_action(signum, &pythons);
  /* A loop's first signal handle opens a pipe, which must not become one of 0-2 (H6). */
  if (err == 0)
    err = os_hold_stdio(held);
  if (err == 0) {
    err = uv_signal_init(&core->loop, &handle->uv.signal);
    os_release_stdio(held);
  }
  if (err != 0) {
    free(handle);
    return err;
  }
  handle->uv.any.data = handle;
  err = start(handle, signum, &pythons, previous);
  key = err != 0 ? err : handle_register(handle);
  if (key < 0) {
    handle_discard(handle);
    (void)os_signal_set_action(signum, &pythons); /* it could be read, so it can be set */
  }
  return key;
}

/* -- entries ------------------------------------------------------------------ */

int vl_signal_action(int signum, char *out) {
  action_room room;
  int err;

  memset(&room, 0, sizeof(room));
  err = os_signal_action(signum, &room);
  memcpy(out, room.bytes, sizeof(room.bytes));
  return err;
}

int64_t vl_signal_open(vl_core *core, int signum, const char *previous) {
  int64_t key = core_enter(core);

  if (key != 0)
    return key;
  key = signal_new(core, signum, previous);
  core_leave(core);
  return key;
}

int vl_signal_retake(vl_core *core, int64_t key, const char *previous) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_SIGNAL);
  err = handle == NULL ? VL_ERR_STALE : take_up(handle->uv.signal.signum, previous);
  core_leave(core);
  return err;
}

int vl_signal_close(vl_core *core, int64_t key) {
  vl_handle *handle;
  action_room action;
  action_room mask;
  int signum;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find(core, key, VL_KIND_SIGNAL);
  if (handle == NULL) {
    core_leave(core);
    return VL_ERR_STALE;
  }
  signum = handle->uv.signal.signum;
  err = os_signals_block(&mask);
  if (err == 0 && signum != 0)
    err = os_signal_action(signum, &action);
  if (err == 0) {
    handle_close(handle);
    if (signum != 0)
      err = os_signal_set_action(signum, &action);
    /* Fails only for a mask that is no mask. */
    (void)os_signals_restore(&mask);
  }
  core_leave(core);
  return err;
}
