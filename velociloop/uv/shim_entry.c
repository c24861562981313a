/* shim_entry.c: what stands in front of every entry (H11).
 *
 * Fact: uv_close() beside a uv_run() in another thread corrupts memory.
 * Choice: one entry at a time, and none while a thread is inside uv_run(). */
#include "shim_internal.h"

int core_enter(vl_core *core) {
  int err;

  /* In a forked child the lock may be held by a thread that does not exist. */
  if (core->foreign)
    return VL_ERR_FOREIGN;
  uv_mutex_lock(&core->entry_lock);
  if (!core->closed && !core->polling)
    return 0;
  err = core->closed ? VL_ERR_CLOSED : VL_ERR_BUSY;
  uv_mutex_unlock(&core->entry_lock);
  return err;
}

void core_leave(vl_core *core) {
  uv_mutex_unlock(&core->entry_lock);
}
