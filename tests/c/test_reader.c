/* test_reader.c: descriptors that stay their owner's: read by the shim, or only watched. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

typedef struct {
  vl_core *core;
  int64_t key;
  int from; /* read end: watched */
  int to;
} scene;

static scene open_scene(void) {
  scene made;
  int fds[2];

  made.core = open_core();
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
  made.from = fds[0];
  made.to = fds[1];
  made.key = vl_reader_open(made.core, made.from);
  CHECK_GT(made.key, 0);
  CHECK_EQ(vl_reader_start(made.core, made.key), 0);
  return made;
}

static void end_scene(scene *of) {
  close_core(of->core);
  if (of->from >= 0)
    close_fd(of->from);
  if (of->to >= 0)
    close_fd(of->to);
}

static void write_text(int fd, const char *text) {
  CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
}

static void check_text(scene *of, const char *expected) {
  vl_record record = wait_for(of->core, of->key, VL_OP_READ);

  check_read(of->core, &record, of->key, expected);
}

TEST(a_pipe_is_read) {
  scene of = open_scene();

  check_quiet(of.core);
  write_text(of.to, "one");
  check_text(&of, "one");
  write_text(of.to, "two");
  check_text(&of, "two");
  check_quiet(of.core);
  end_scene(&of);
}

TEST(closing_the_handle_leaves_the_descriptor_open) {
  scene of = open_scene();

  CHECK_EQ(vl_handle_close(of.core, of.key), 0);
  settle(of.core);
  CHECK(is_open(of.from));
  CHECK_EQ(vl_reader_start(of.core, of.key), VL_ERR_STALE);
  CHECK_EQ(vl_reader_stop(of.core, of.key), VL_ERR_STALE);
  end_scene(&of);
}

TEST(h4_one_grant_a_poll) {
  static char data[2 * 65536];
  scene of = open_scene();
  size_t left = sizeof(data);
  vl_record record;

  CHECK_GE(fcntl(of.to, F_SETPIPE_SZ, (int)sizeof(data)), (int)sizeof(data));
  CHECK_EQ(write(of.to, data, sizeof(data)), sizeof(data));
  while (left > 0) {
    CHECK_EQ(vl_core_poll(of.core, 0), VL_POLL_RECORDS);
    CHECK_EQ(tail_of(of.core) - head_of(of.core), 1);
    CHECK(take(of.core, &record));
    CHECK_GT(record.result, 0);
    CHECK_LE(record.result, 65536);
    left -= (size_t)record.result;
  }
  end_scene(&of);
}

TEST(the_end_comes_after_the_data_and_once) {
  scene of = open_scene();

  write_text(of.to, "last words");
  close_fd(of.to);
  of.to = -1;
  check_text(&of, "last words");
  CHECK_EQ(wait_for(of.core, of.key, VL_OP_READ).result, VL_EOF);
  check_quiet(of.core);
  end_scene(&of);
}

TEST(a_stopped_reader_reads_nothing) {
  scene of = open_scene();

  CHECK_EQ(vl_reader_stop(of.core, of.key), 0);
  CHECK_EQ(vl_reader_stop(of.core, of.key), 0);
  write_text(of.to, "later");
  check_quiet(of.core);
  CHECK_EQ(vl_reader_start(of.core, of.key), 0);
  CHECK_EQ(vl_reader_start(of.core, of.key), 0);
  check_text(&of, "later");
  end_scene(&of);
}

TEST(a_reset_of_a_socket_is_an_error) {
  vl_core *core = open_core();
  vl_record record;
  int fds[2];
  int64_t key;

  make_tcp_pair(fds);
  CHECK_EQ(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
  key = vl_reader_open(core, fds[0]);
  CHECK_EQ(vl_reader_start(core, key), 0);
  send_text(fds[1], "before");
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "before");
  reset_connection(fds[1]);
  CHECK_EQ(wait_for(core, key, VL_OP_READ).result, UV_ECONNRESET);
  check_quiet(core);
  close_core(core);
  close_fd(fds[0]);
}

TEST(without_memory_the_bytes_wait_in_the_kernel) {
  scene of = open_scene();
  vl_record record;

  for (int i = 0; i < VL_RING_SEGMENT_RECORDS; i++) {
    write_text(of.to, "x");
    CHECK_EQ(vl_core_poll(of.core, 0), VL_POLL_RECORDS);
    CHECK(take(of.core, &record));
    set_frames(of.core, 1); /* so that the ring does not begin again */
  }
  faults.no_memory = true;
  write_text(of.to, "more");
  check_quiet(of.core);
  faults.no_memory = false;
  check_text(&of, "more");
  set_frames(of.core, 0);
  end_scene(&of);
}

TEST(h6_a_descriptor_closed_behind_the_back) {
  scene of = open_scene();

  CHECK_EQ(vl_core_poll(of.core, 0), 0);
  close_fd(of.from);
  of.from = -1;
  CHECK_EQ(vl_reader_stop(of.core, of.key), 0);
  CHECK_EQ(vl_reader_start(of.core, of.key), 0);
  CHECK_EQ(wait_for(of.core, of.key, VL_OP_READ).result, UV_EBADF);
  CHECK_EQ(vl_reader_start(of.core, of.key), VL_ERR_STALE);
  CHECK_EQ(vl_core_wake(of.core), 0);
  CHECK_EQ(vl_core_poll(of.core, WITHOUT_LIMIT), 0);
  end_scene(&of);
}

TEST(what_cannot_be_watched_is_refused) {
  vl_core *core = open_core();
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  int fds[2];
  int64_t key;

  CHECK_EQ(vl_reader_open(core, null), UV_EPERM);
  CHECK_EQ(vl_poll_open(core, null), UV_EPERM);
  close_fd(null);
  CHECK_EQ(vl_reader_open(core, null), UV_EBADF);
  CHECK_EQ(pipe(fds), 0);
  key = vl_poll_open(core, fds[0]);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_poll_events(core, key, VL_READABLE), 0);
  CHECK_EQ(vl_reader_open(core, fds[0]), UV_EEXIST);
  close_core(core);
  close_fd(fds[0]);
  close_fd(fds[1]);
}

TEST(a_watch_tells_of_room_and_of_the_readers_end) {
  vl_core *core = open_core();
  int fds[2];
  int64_t key;

  CHECK_EQ(pipe(fds), 0);
  key = vl_poll_open(core, fds[1]);
  check_quiet(core);
  CHECK_EQ(vl_poll_events(core, key, VL_READABLE), 0);
  check_quiet(core);
  CHECK_EQ(vl_poll_events(core, key, VL_READABLE | VL_WRITABLE), 0);
  CHECK_EQ(wait_for(core, key, VL_OP_POLL).result, VL_WRITABLE);
  CHECK_EQ(wait_for(core, key, VL_OP_POLL).result, VL_WRITABLE); /* as long as there is */
  CHECK_EQ(vl_poll_events(core, key, VL_READABLE), 0);
  check_quiet(core);
  close_fd(fds[0]);
  CHECK_EQ(wait_for(core, key, VL_OP_POLL).result, UV_EBADF);
  check_quiet(core); /* it has stopped */
  CHECK_EQ(vl_poll_events(core, key, 0), 0);
  CHECK_EQ(vl_handle_close(core, key), 0);
  CHECK_EQ(vl_poll_events(core, key, 0), VL_ERR_STALE);
  close_core(core);
  close_fd(fds[1]);
}

const test_case reader_tests[] = {
    CASE(a_pipe_is_read),
    CASE(closing_the_handle_leaves_the_descriptor_open),
    CASE(h4_one_grant_a_poll),
    CASE(the_end_comes_after_the_data_and_once),
    CASE(a_stopped_reader_reads_nothing),
    CASE(a_reset_of_a_socket_is_an_error),
    CASE(without_memory_the_bytes_wait_in_the_kernel),
    CASE(h6_a_descriptor_closed_behind_the_back),
    CASE(what_cannot_be_watched_is_refused),
    CASE(a_watch_tells_of_room_and_of_the_readers_end),
    END_OF_CASES,
};
