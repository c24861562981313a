/* shim_reader.c: reading from a descriptor that stays its owner's.
 *
 * Fact: uv_pipe_t and uv_tty_t close the descriptor they are given, and uv_tty_t opens
 * another one.  A pipe's descriptor is closed by the file object that the user gave (double
 * close).  Choice: a uv_poll_t says when to read, and read(2) is called here. */
#include "shim_internal.h"

bool reader_receive(vl_handle *handle, int fd) {
  vl_core *core = handle->core;
  vl_record record = {handle->key, VL_OP_READ, 0, 0, 0};
  size_t grant = slab_grant(core);
  size_t room = 0;
  char *to;

  /* H4: one grant a poll; uv_run() may ask the kernel more than once.  Without room nothing is
   * lost: the descriptor is still readable in the next poll. */
  if (handle->granted_in == core->serial || core->late_first != NULL || ring_reserve(core) != 0)
    return true;
  to = slab_offer(core, grant, &room);
  if (to == NULL)
    return true;
  handle->granted_in = core->serial;
  record.result = os_read(fd, to, grant);
  if (record.result == UV_EAGAIN)
    return true;
  if (record.result > 0)
    slab_commit(core, (size_t)record.result, &record.segment, &record.aux);
  else if (record.result == 0)
    record.result = VL_EOF;
  /* Its place was reserved, so this cannot fail. */
  if (ring_push(core, &record) != 0)
    abort();
  return record.result > 0;
}
