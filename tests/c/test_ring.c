/* test_ring.c: the ring and the slab (H1), their growth and their exhaustion. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

TEST(an_empty_turn_brings_nothing) {
  vl_core *core = open_core();
  vl_statistics before = statistics_of(core);

  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(statistics_of(core).polls, before.polls + 1);
  CHECK_EQ(statistics_of(core).records, 0);
  CHECK_EQ(tail_of(core), 0);
  close_core(core);
}

TEST(h1_undrained_records_keep_libuv_from_running) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;
  int64_t polls;

  send_text(peer, "first");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  polls = statistics_of(core).polls;
  send_text(peer, "second");
  /* At once, without a limit too. */
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(statistics_of(core).polls, polls);
  CHECK(take(core, &record));
  check_read(core, &record, key, "first");
  CHECK(!take(core, &record));
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "second");
  close_core(core);
  close_fd(peer);
}

TEST(h1_a_consumer_may_stop_between_two_records) {
  vl_core *core = open_core();
  int peers[3];
  int64_t keys[3];
  vl_record record;

  for (int i = 0; i < 3; i++) {
    keys[i] = open_reader(core, &peers[i]);
    send_text(peers[i], i == 0 ? "A" : i == 1 ? "B" : "C");
  }
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(tail_of(core) - head_of(core), 3);
  CHECK(take(core, &record)); /* its dispatch is interrupted here ... */
  for (int i = 0; i < 3; i++)
    if (record.owner != keys[i])
      send_text(peers[i], "later");
  /* ... and some turns later the rest is as it was. */
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  for (int rest = 0; rest < 2; rest++) {
    CHECK(take(core, &record));
    CHECK_EQ(record.result, 1);
    for (int i = 0; i < 3; i++)
      if (record.owner == keys[i])
        CHECK_EQ(*bytes_of(core, &record), 'A' + i);
  }
  CHECK(!take(core, &record));
  close_core(core);
  for (int i = 0; i < 3; i++)
    close_fd(peers[i]);
}

TEST(h1_nested_turns_leave_the_outer_dispatch_its_bytes) {
  vl_core *core = open_core();
  int peers[2];
  int64_t keys[2];
  const char *outer_bytes;
  vl_record outer;
  vl_record record;
  int64_t position;

  for (int i = 0; i < 2; i++)
    keys[i] = open_reader(core, &peers[i]);
  send_text(peers[0], "outer");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  set_frames(core, 1);
  CHECK(take(core, &outer));
  outer_bytes = bytes_of(core, &outer);
  position = head_of(core);
  for (int turn = 0; turn < 50; turn++) {
    send_text(peers[turn % 2], "inner");
    record = wait_for(core, keys[turn % 2], VL_OP_READ);
    check_read(core, &record, keys[turn % 2], "inner");
    CHECK(bytes_of(core, &record) != outer_bytes);
    CHECK_EQ(head_of(core), ++position); /* nothing starts again at 0 under a frame */
  }
  CHECK(memcmp(outer_bytes, "outer", 5) == 0);
  set_frames(core, 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(head_of(core), 0); /* now it does */
  CHECK_EQ(tail_of(core), 0);
  close_core(core);
  for (int i = 0; i < 2; i++)
    close_fd(peers[i]);
}

/* Each empty write completes at once; all are reported in the next turn. */
static void write_many(vl_core *core, int64_t key, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    CHECK_EQ(vl_stream_write(core, key, first + i, "", 0), 0);
}

static void take_written(vl_core *core, int64_t key, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    vl_record record;

    CHECK(take(core, &record));
    CHECK_EQ(record.op, VL_OP_WRITE_DONE);
    CHECK_EQ(record.owner, key);
    CHECK_EQ(record.result, 0);
    CHECK_EQ(record.aux, first + i);
  }
}

TEST(the_ring_grows_and_its_segments_stay_where_they_are) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);
  vl_record *first = vl_ring_segment(core, 0);
  vl_record *second = NULL;

  CHECK_EQ(statistics_of(core).ring_segments, 1);
  CHECK(vl_ring_segment(core, 1) == NULL);
  for (int round = 0; round < 3; round++) {
    int64_t count = VL_RING_SEGMENT_RECORDS * 2 + 100 * round + 1;

    write_many(core, key, 1000000 * round, count);
    CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
    take_written(core, key, 1000000 * round, count);
    CHECK_EQ(head_of(core), tail_of(core));
    CHECK_EQ(statistics_of(core).ring_segments, 3);
    CHECK(vl_ring_segment(core, 0) == first);
    if (round == 0)
      second = vl_ring_segment(core, 1);
    CHECK(vl_ring_segment(core, 1) == second);
  }
  CHECK(vl_ring_segment(core, 3) == NULL);
  CHECK(vl_ring_segment(core, -1) == NULL);
  CHECK(vl_slab_segment(core, -1) == NULL);
  close_core(core);
  close_fd(peer);
}

TEST(there_is_always_a_first_segment_of_the_slab) {
  /* A record of an error names segment 0 like any other record. */
  vl_core *core = open_core();

  CHECK(vl_ring_segment(core, 0) != NULL);
  CHECK(vl_slab_segment(core, 0) != NULL);
  close_core(core);
}

#define MANY 40
#define GRANT (64 * KIBIBYTE)

/* MANY streams with more than a grant of bytes each. */
static void open_many(vl_core *core, int64_t keys[MANY], int peers[MANY]) {
  char *data = malloc(GRANT + 4096);

  CHECK(data != NULL);
  for (unsigned i = 0; i < MANY; i++) {
    keys[i] = open_reader(core, &peers[i]);
    fill_pattern(data, GRANT + 4096, 0, i);
    send_bytes(peers[i], data, GRANT + 4096);
  }
  free(data);
}

static void check_pattern(vl_core *core, vl_record *record, size_t position, unsigned seed) {
  static char expected[GRANT];
  const char *bytes = received(core, record);

  CHECK_LE(record->result, GRANT);
  fill_pattern(expected, (size_t)record->result, position, seed);
  CHECK(memcmp(bytes, expected, (size_t)record->result) == 0);
}

TEST(h4_the_slab_grows_so_that_every_ready_stream_gets_a_grant) {
  vl_core *core = open_core();
  int64_t keys[MANY];
  int peers[MANY];
  size_t got[MANY] = {0};
  vl_record record;
  char *first;

  open_many(core, keys, peers);
  first = vl_slab_segment(core, 0);
  for (int turn = 0; turn < 2; turn++) {
    CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
    CHECK_EQ(tail_of(core) - head_of(core), MANY);
    while (take(core, &record))
      for (unsigned i = 0; i < MANY; i++)
        if (record.owner == keys[i]) {
          CHECK_EQ(record.result, turn == 0 ? GRANT : 0); /* the rest is announced only */
          check_pattern(core, &record, got[i], i);
          got[i] += (size_t)record.result;
        }
  }
  for (int i = 0; i < MANY; i++)
    CHECK_EQ(got[i], GRANT + 4096);
  CHECK_EQ(statistics_of(core).slab_segments, 3); /* 40 x 64 KiB */
  CHECK(vl_slab_segment(core, 0) == first);
  close_core(core);
  for (int i = 0; i < MANY; i++)
    close_fd(peers[i]);
}

TEST(slab_exhaustion_only_delays) {
  vl_core *core = open_core();
  int64_t keys[MANY];
  int peers[MANY];
  size_t got[MANY] = {0};
  size_t total = 0;
  vl_record record;

  open_many(core, keys, peers);
  faults.no_pages = true;
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(tail_of(core) - head_of(core), 16); /* what the first segment holds */
  for (int turn = 0; total < MANY * (GRANT + 4096); turn++) {
    if (turn == 2)
      faults.no_pages = false;
    while (take(core, &record)) {
      for (unsigned i = 0; i < MANY; i++)
        if (record.owner == keys[i]) {
          CHECK_GE(record.result, 0); /* nobody hears of UV_ENOBUFS */
          check_pattern(core, &record, got[i], i);
          got[i] += (size_t)record.result;
        }
      total += (size_t)record.result;
    }
    CHECK_GE(vl_core_poll(core, 0), 0);
  }
  check_quiet(core);
  close_core(core);
  for (int i = 0; i < MANY; i++)
    close_fd(peers[i]);
}

TEST(a_quiet_slab_gives_its_pages_back) {
  vl_core *core = open_core();
  int64_t keys[MANY];
  int peers[MANY];
  char *segments[3];
  vl_record record;

  open_many(core, keys, peers);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  while (take(core, &record)) {
  }
  for (int i = 0; i < 3; i++)
    segments[i] = vl_slab_segment(core, i);
  for (int turn = 0; turn < 3000; turn++) {
    CHECK_GE(vl_core_poll(core, 0), 0);
    while (take(core, &record)) {
    }
  }
  CHECK_GE(faults.released, 1);
  CHECK_LE(faults.released, 3);
  for (int i = 0; i < 3; i++) {
    CHECK(vl_slab_segment(core, i) == segments[i]);
    memset(segments[i], 1, VL_SLAB_SEGMENT_BYTES);
  }
  close_core(core);
  for (int i = 0; i < MANY; i++)
    close_fd(peers[i]);
}

/* -- completions without room ------------------------------------------------------- */

TEST(completions_without_room_come_later_and_in_order) {
  vl_core *core = open_core();
  int64_t count = VL_RING_SEGMENT_RECORDS + 500;
  int peer;
  int other_peer;
  int64_t key = open_stream(core, &peer);
  int64_t reader = open_reader(core, &other_peer);
  vl_record record;

  write_many(core, key, 0, count);
  send_text(other_peer, "bytes");
  faults.no_memory = true;
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  faults.no_memory = false;
  CHECK_EQ(statistics_of(core).ring_segments, 1);
  CHECK_EQ(statistics_of(core).late, 500);
  CHECK_EQ(statistics_of(core).writes, 0);
  take_written(core, key, 0, VL_RING_SEGMENT_RECORDS);
  CHECK_EQ(head_of(core), tail_of(core));
  /* What waits keeps the next turn from waiting. */
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  take_written(core, key, VL_RING_SEGMENT_RECORDS, 500);
  CHECK_EQ(statistics_of(core).late, 0);
  record = wait_for(core, reader, VL_OP_READ); /* was not read while there was no room */
  check_read(core, &record, reader, "bytes");
  close_core(core);
  close_fd(peer);
  close_fd(other_peer);
}

TEST(nothing_overtakes_a_late_completion) {
  vl_core *core = open_core();
  int64_t count = VL_RING_SEGMENT_RECORDS + 500;
  int peer;
  int64_t key = open_stream(core, &peer);

  write_many(core, key, 0, count);
  faults.fail_allocation = 1; /* memory is back for all but the first without room */
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  CHECK_EQ(faults.fail_allocation, 0);
  CHECK_EQ(statistics_of(core).late, 500);
  take_written(core, key, 0, VL_RING_SEGMENT_RECORDS);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  take_written(core, key, VL_RING_SEGMENT_RECORDS, 500);
  close_core(core);
  close_fd(peer);
}

TEST(late_completions_outlive_their_handle_and_their_core) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);

  write_many(core, key, 0, VL_RING_SEGMENT_RECORDS + 500);
  faults.no_memory = true;
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  CHECK_EQ(vl_handle_close(core, key), 0);
  take_written(core, key, 0, VL_RING_SEGMENT_RECORDS);
  /* The memory is there again for half of them, and ends before the handle does. */
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  CHECK_EQ(statistics_of(core).closing, 0);
  take_written(core, key, VL_RING_SEGMENT_RECORDS, 500);
  faults.no_memory = false;
  close_fd(peer);
  key = open_stream(core, &peer);
  write_many(core, key, 0, VL_RING_SEGMENT_RECORDS + 500);
  faults.no_memory = true;
  close_core(core); /* 500 of them nobody will see; no memory may leak */
  faults.no_memory = false;
  close_fd(peer);
}

/* Fills the ring to its last place and consumes it under a frame, so that it is not reset. */
static void fill_ring(vl_core *core) {
  int peer;
  int64_t key = open_stream(core, &peer);

  set_frames(core, 1);
  write_many(core, key, 0, VL_RING_SEGMENT_RECORDS);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
  take_written(core, key, 0, VL_RING_SEGMENT_RECORDS);
  CHECK_EQ(vl_handle_close(core, key), 0);
  settle(core);
  close_fd(peer);
}

TEST(a_late_error_reaches_its_owner_though_the_shim_closed_the_handle) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  fill_ring(core);
  CHECK_EQ(vl_stream_read_stop(core, key), 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  close_fd(vl_handle_fileno(core, key)); /* H6: by someone else */
  faults.no_memory = true;
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), 0);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), 0);
  faults.no_memory = false;
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, UV_EBADF);
  set_frames(core, 0);
  check_quiet(core);
  CHECK_EQ(statistics_of(core).late, 0);
  close_core(core);
  close_fd(peer);
}

TEST(a_late_error_of_a_closed_handle_harms_nobody) {
  for (int with_memory = 0; with_memory < 2; with_memory++) {
    vl_core *core = open_core();
    int port;
    int fd = listen_tcp(&port);
    int64_t key = vl_listener_open(core, VL_STREAM_TCP, fd, 8);
    vl_record record;
    int client;

    CHECK_GT(key, 0);
    fill_ring(core);
    client = connect_tcp(port);
    faults.no_memory = true;
    CHECK_EQ(vl_core_poll(core, 0), 0); /* no room for the connection, none for the error */
    CHECK_EQ(statistics_of(core).late, 1);
    CHECK_EQ(vl_handle_close(core, key), 0);
    CHECK_EQ(vl_core_poll(core, 0), 0);
    faults.no_memory = false;
    if (with_memory) {
      CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
      CHECK(take(core, &record));
      CHECK_EQ(record.owner, key); /* a key that is stale: its reader skips it */
      CHECK_EQ(record.result, UV_ENOMEM);
      CHECK(!take(core, &record));
      CHECK_EQ(statistics_of(core).late, 0);
    }
    close_core(core);
    close_fd(client);
    close_fd(fd);
  }
}

TEST(a_core_needs_memory) {
  int error = 0;

  faults.no_memory = true;
  CHECK(vl_core_new(&error) == NULL);
  faults.no_memory = false;
  CHECK_EQ(error, UV_ENOMEM);
  faults.no_pages = true;
  CHECK(vl_core_new(&error) == NULL);
  faults.no_pages = false;
  CHECK_EQ(error, UV_ENOMEM);
}

const test_case ring_tests[] = {
    CASE(an_empty_turn_brings_nothing),
    CASE(h1_undrained_records_keep_libuv_from_running),
    CASE(h1_a_consumer_may_stop_between_two_records),
    CASE(h1_nested_turns_leave_the_outer_dispatch_its_bytes),
    CASE(the_ring_grows_and_its_segments_stay_where_they_are),
    CASE(there_is_always_a_first_segment_of_the_slab),
    CASE(h4_the_slab_grows_so_that_every_ready_stream_gets_a_grant),
    CASE(slab_exhaustion_only_delays),
    CASE(a_quiet_slab_gives_its_pages_back),
    CASE(completions_without_room_come_later_and_in_order),
    CASE(nothing_overtakes_a_late_completion),
    CASE(late_completions_outlive_their_handle_and_their_core),
    CASE(a_late_error_reaches_its_owner_though_the_shim_closed_the_handle),
    CASE(a_late_error_of_a_closed_handle_harms_nobody),
    CASE(a_core_needs_memory),
    END_OF_CASES,
};
