/* shim_handle.c: keys and lifetime. */
#include "shim_internal.h"

#define FIRST_SLOTS 64u
#define GENERATION_MASK 0x7fffffffu /* a key is a positive int64_t */

vl_handle *handle_new(vl_core *core, vl_kind kind, uv_handle_type type) {
  /* Only the part of the union that this type needs: a uv_pipe_t is 100 bytes larger
   * than a uv_poll_t, and an idle connection should be small. */
  vl_handle *handle = calloc(1, offsetof(vl_handle, uv) + uv_handle_size(type));

  if (handle == NULL)
    return NULL;
  handle->core = core;
  handle->kind = kind;
  handle->late.used = &handle->late_used;
  return handle;
}

static int grow_slots(vl_core *core) {
  uint32_t count = core->slot_count == 0 ? FIRST_SLOTS : core->slot_count * 2u;
  vl_slot *slots = realloc(core->slots, count * sizeof(*slots));
  uint32_t i;

  if (slots == NULL)
    return UV_ENOMEM;
  for (i = count; i-- > core->slot_count;) {
    slots[i].handle = NULL;
    slots[i].generation = 1;
    slots[i].next_free = core->free_slot;
    core->free_slot = i + 1;
  }
  core->slots = slots;
  core->slot_count = count;
  return 0;
}

int64_t handle_register(vl_handle *handle) {
  vl_core *core = handle->core;
  vl_slot *slot;
  uint32_t index;
  int err;

  if (core->free_slot == 0) {
    err = grow_slots(core);
    if (err != 0)
      return err;
  }
  index = core->free_slot - 1;
  slot = &core->slots[index];
  core->free_slot = slot->next_free;
  slot->handle = handle;
  handle->key = ((int64_t)slot->generation << 32) | (int64_t)index;
  core->statistics.handles++;
  return handle->key;
}

vl_handle *handle_find_any(const vl_core *core, int64_t key) {
  uint32_t index = (uint32_t)(key & 0xffffffff);
  uint32_t generation = (uint32_t)(key >> 32);

  if (key <= 0 || index >= core->slot_count || core->slots[index].generation != generation)
    return NULL;
  return core->slots[index].handle;
}

vl_handle *handle_find(const vl_core *core, int64_t key, vl_kind kind) {
  vl_handle *handle = handle_find_any(core, key);

  return handle != NULL && handle->kind == kind ? handle : NULL;
}

static void on_closed(uv_handle_t *uv) {
  vl_handle *handle = uv->data;
  vl_core *core = handle->core;

  core->statistics.closing--;
  if (handle->late_used) {
    /* Its end or error has not found room yet, and who closed it may have been the shim
     * (handle_lose()): the owner must still hear of it. */
    handle->late.used = NULL;
    handle->late.memory = handle;
    return;
  }
  free(handle);
}

void handle_discard(vl_handle *handle) {
  handle->core->statistics.closing++;
  handle->uv.any.data = handle;
  uv_close(&handle->uv.any, on_closed);
}

void handle_close(vl_handle *handle) {
  vl_core *core = handle->core;
  uint32_t index = (uint32_t)(handle->key & 0xffffffff);
  vl_slot *slot = &core->slots[index];

  slot->handle = NULL;
  slot->generation = slot->generation == GENERATION_MASK ? 1 : slot->generation + 1;
  slot->next_free = core->free_slot;
  core->free_slot = index + 1;
  core->statistics.handles--;
  handle_discard(handle);
}

void handle_report(vl_handle *handle, int32_t op, int64_t result) {
  vl_record record = {handle->key, op, 0, result, 0};

  /* A first end or error that still waits for room outranks this one. */
  if (!handle->late_used)
    ring_push_or_keep(handle->core, &handle->late, &record);
}

/* Under which operation the owner of a handle hears of its failure. */
static int32_t failure_op(vl_kind kind) {
  switch (kind) {
  case VL_KIND_STREAM:
    return VL_OP_READ;
  case VL_KIND_LISTENER:
    return VL_OP_ACCEPT;
  case VL_KIND_UDP:
    return VL_OP_DATAGRAM;
  case VL_KIND_POLL:
  case VL_KIND_SELECTOR:
  case VL_KIND_SIGNAL: /* has no descriptor of its own */
  case VL_KIND_PROCESS: /* never armed */
    break;
  }
  return VL_OP_POLL;
}

void handle_lose(vl_handle *handle, int err) {
  /* The selector's owner is sent to the descriptor, which tells it. */
  if (handle->kind == VL_KIND_SELECTOR)
    handle->core->selector_ready = true;
  else
    handle_report(handle, failure_op(handle->kind), err);
  handle_close(handle);
}

void handle_table_free(vl_core *core) {
  free(core->slots);
  core->slots = NULL;
  core->slot_count = 0;
  core->free_slot = 0;
}

/* -- entries ------------------------------------------------------------------ */

int vl_handle_fileno(vl_core *core, int64_t key) {
  vl_handle *handle;
  uv_os_fd_t fd = (uv_os_fd_t)0;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find_any(core, key);
  err = handle == NULL ? VL_ERR_STALE : uv_fileno(&handle->uv.any, &fd);
  core_leave(core);
  return err != 0 ? err : (int)(intptr_t)fd;
}

int vl_handle_close(vl_core *core, int64_t key) {
  vl_handle *handle;
  int err = core_enter(core);

  if (err != 0)
    return err;
  handle = handle_find_any(core, key);
  if (handle == NULL)
    err = VL_ERR_STALE;
  else
    handle_close(handle);
  core_leave(core);
  return err;
}
