/* shim_exports.c: what the accelerator may call (H12). */
#include "shim_internal.h"

static const vl_exports exported = {
    .magic = VL_EXPORTS_MAGIC,
    .version = VL_EXPORTS_VERSION,
    .size = (int32_t)sizeof(vl_exports),
    .record_size = (int32_t)sizeof(vl_record),
    .core_poll = vl_core_poll,
    .core_words = vl_core_words,
    .ring_segment = vl_ring_segment,
    .slab_segment = vl_slab_segment,
    .stream_try_write = vl_stream_try_write,
    .core_wake = vl_core_wake,
    .stream_receive = vl_stream_receive,
    .udp_try_send = vl_udp_try_send,
    .wait_arm = vl_wait_arm,
    .handle_fileno = vl_handle_fileno,
    .stream_read_start = vl_stream_read_start,
    .now = uv_hrtime,
};

const vl_exports *vl_exported(void) {
  return &exported;
}
