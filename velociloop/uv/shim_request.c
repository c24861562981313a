/* shim_request.c: queued writes.  They outlive their handle, and their data is the caller's until each is done. */
#include "shim_internal.h"

vl_write *request_new(vl_handle *handle, int64_t token) {
  vl_write *write = calloc(1, sizeof(*write));

  if (write == NULL)
    return NULL;
  write->req.any.data = write;
  write->handle = handle;
  write->key = handle->key;
  write->token = token;
  write->late.memory = write;
  return write;
}

int request_given(vl_write *write, int err) {
  if (err != 0)
    free(write);
  else
    write->handle->core->statistics.writes++;
  return err;
}

void request_done(vl_write *write, int status) {
  vl_core *core = write->handle->core;
  vl_record record = {write->key, VL_OP_WRITE_DONE, 0, status, write->token};

  core->statistics.writes--;
  write->handle = NULL;
  ring_push_or_keep(core, &write->late, &record);
}

uv_buf_t request_buffer(const char *data, size_t size) {
  return uv_buf_init((char *)(uintptr_t)data, size > 0x7fffffffu ? 0x7fffffffu : (unsigned int)size);
}
