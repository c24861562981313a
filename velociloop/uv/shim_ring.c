/* shim_ring.c: where completions and received bytes wait for their consumer.
 *
 * Facts (H1): the consumer may stop between any two records (KeyboardInterrupt),
 * and a nested turn may consume the rest while an outer dispatch is still on the
 * stack.  Python keeps ffi.buffer objects on the segments, which dangle silently
 * if a segment moves.
 * Consequence: positions only grow; a segment is never moved and never freed
 * before the core; both start again at 0 only when every record was consumed and
 * no dispatch frame is alive.
 */
#include "shim_internal.h"

/* A quiet slab gives the pages of segments it did not need back after this many polls. */
#define TRIM_AFTER_RESETS 1024u
#define SLAB_KEEP_SEGMENTS 2

/* From here on, streams get smaller grants, so that each ready one gets some and
 * the slab stays bounded when very many are ready (uv_run() reports 48 x 1024 at most). */
#define SLAB_GENEROUS_BYTES (8u * 1048576u)
#define SLAB_SPARING_BYTES (24u * 1048576u)
#define SMALL_GRANT_BYTES 16384u
#define LEAST_GRANT_BYTES 4096u

static int grow_table(void **table, int32_t count, size_t element) {
  void *grown;

  /* Grows at powers of two. */
  if ((count & (count - 1)) != 0)
    return 0;
  grown = realloc(*table, (count == 0 ? 1u : (size_t)count * 2u) * element);
  if (grown == NULL)
    return UV_ENOMEM;
  *table = grown;
  return 0;
}

int ring_reserve(vl_core *core) {
  vl_ring *ring = &core->ring;
  void *table = ring->segments;
  vl_record *segment;
  int err;

  if (ring->words[VL_WORD_TAIL] < (int64_t)ring->count * VL_RING_SEGMENT_RECORDS)
    return 0;
  err = grow_table(&table, ring->count, sizeof(*ring->segments));
  if (err != 0)
    return err;
  ring->segments = table;
  segment = calloc(VL_RING_SEGMENT_RECORDS, sizeof(*segment));
  if (segment == NULL)
    return UV_ENOMEM;
  ring->segments[ring->count++] = segment;
  return 0;
}

int ring_push(vl_core *core, const vl_record *record) {
  vl_ring *ring = &core->ring;
  int64_t tail = ring->words[VL_WORD_TAIL];
  int err = ring_reserve(core);

  if (err != 0)
    return err;
  ring->segments[tail / VL_RING_SEGMENT_RECORDS][tail % VL_RING_SEGMENT_RECORDS] = *record;
  ring->words[VL_WORD_TAIL] = tail + 1;
  core->statistics.records++;
  return 0;
}

void ring_push_or_keep(vl_core *core, vl_late *late, const vl_record *record) {
  /* Once something waits, what follows waits behind it: order is a promise. */
  if (core->late_first == NULL && ring_push(core, record) == 0) {
    free(late->memory);
    return;
  }
  late->next = NULL;
  late->record = *record;
  if (core->late_last != NULL)
    core->late_last->next = late;
  else
    core->late_first = late;
  core->late_last = late;
  if (late->used != NULL)
    *late->used = true;
  core->statistics.late++;
}

void ring_take_late(vl_core *core) {
  vl_late *late;

  while ((late = core->late_first) != NULL) {
    if (ring_push(core, &late->record) != 0)
      return;
    core->late_first = late->next;
    if (core->late_first == NULL)
      core->late_last = NULL;
    core->statistics.late--;
    if (late->used != NULL)
      *late->used = false;
    free(late->memory); /* late itself is a part of it, or of a handle */
  }
}

void ring_reset(vl_core *core) {
  vl_slab *slab = &core->slab;
  int32_t i;

  core->ring.words[VL_WORD_HEAD] = 0;
  core->ring.words[VL_WORD_TAIL] = 0;
  if (slab->segment > slab->peak)
    slab->peak = slab->segment;
  slab->segment = 0;
  slab->offset = 0;
  slab->used = 0;
  if (slab->count <= SLAB_KEEP_SEGMENTS || ++slab->resets < TRIM_AFTER_RESETS)
    return;
  for (i = slab->peak + 1; i < slab->count; i++)
    if (i >= SLAB_KEEP_SEGMENTS)
      os_pages_release(slab->segments[i], VL_SLAB_SEGMENT_BYTES);
  slab->peak = 0;
  slab->resets = 0;
}

size_t slab_grant(const vl_core *core) {
  if (core->slab.used < SLAB_GENEROUS_BYTES)
    return VL_GRANT_BYTES;
  return core->slab.used < SLAB_SPARING_BYTES ? SMALL_GRANT_BYTES : LEAST_GRANT_BYTES;
}

char *slab_offer(vl_core *core, size_t min, size_t *size) {
  vl_slab *slab = &core->slab;
  void *table = slab->segments;
  char *segment;

  if (slab->segment < slab->count && VL_SLAB_SEGMENT_BYTES - slab->offset < min) {
    slab->segment++;
    slab->offset = 0;
  }
  if (slab->segment == slab->count) {
    if (grow_table(&table, slab->count, sizeof(*slab->segments)) != 0)
      return NULL;
    slab->segments = table;
    segment = os_pages_new(VL_SLAB_SEGMENT_BYTES);
    if (segment == NULL)
      return NULL;
    slab->segments[slab->count++] = segment;
  }
  *size = VL_SLAB_SEGMENT_BYTES - slab->offset;
  return slab->segments[slab->segment] + slab->offset;
}

void slab_commit(vl_core *core, size_t size, int32_t *segment, int64_t *offset) {
  vl_slab *slab = &core->slab;

  *segment = slab->segment;
  *offset = slab->offset;
  /* Kept at multiples of 8, for the int64_t in front of an accepted address. */
  slab->offset += ((uint32_t)size + 7u) & ~7u;
  slab->used += size;
}

void ring_free(vl_core *core) {
  int32_t i;

  for (i = 0; i < core->ring.count; i++)
    free(core->ring.segments[i]);
  free(core->ring.segments);
  for (i = 0; i < core->slab.count; i++)
    os_pages_free(core->slab.segments[i], VL_SLAB_SEGMENT_BYTES);
  free(core->slab.segments);
}

/* -- entries ------------------------------------------------------------------ */

int64_t *vl_core_words(vl_core *core) {
  return core->ring.words;
}

vl_record *vl_ring_segment(vl_core *core, int32_t index) {
  return index >= 0 && index < core->ring.count ? core->ring.segments[index] : NULL;
}

char *vl_slab_segment(vl_core *core, int32_t index) {
  return index >= 0 && index < core->slab.count ? core->slab.segments[index] : NULL;
}
