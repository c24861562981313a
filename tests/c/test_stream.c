/* test_stream.c: opening, reading and closing streams; keys and their generations. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

TEST(bytes_then_the_end) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  send_text(peer, "hello");
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "hello");
  close_fd(peer);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, VL_EOF);
  check_quiet(core); /* once */
  close_core(core);
}

TEST(a_reset_is_an_error_record) {
  vl_core *core = open_core();
  int fds[2];
  int64_t key;
  vl_record record;

  make_tcp_pair(fds);
  key = vl_stream_open(core, VL_STREAM_TCP, fds[0]);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  reset_connection(fds[1]);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, UV_ECONNRESET);
  check_quiet(core);
  CHECK_LT(vl_stream_try_write(core, key, "x", 1), 0);
  close_core(core);
}

TEST(h4_at_most_one_grant_of_64_kib_per_stream_and_poll) {
  vl_core *core = open_core();
  enum { SENDERS = 16, EACH = 150000 };
  static char data[EACH];
  int64_t keys[SENDERS];
  int peers[SENDERS];
  size_t got[SENDERS] = {0};
  size_t total = 0;
  vl_record record;

  for (unsigned i = 0; i < SENDERS; i++) {
    keys[i] = open_reader(core, &peers[i]);
    fill_pattern(data, EACH, 0, i);
    send_bytes(peers[i], data, EACH);
  }
  while (total < SENDERS * EACH) {
    int seen = 0;

    CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
    while (take(core, &record))
      for (unsigned i = 0; i < SENDERS; i++)
        if (record.owner == keys[i]) {
          CHECK_EQ(seen & (1 << i), 0); /* one record a poll */
          seen |= 1 << i;
          const char *bytes = received(core, &record);

          CHECK_LE(record.result, 65536);
          CHECK_GT(record.result, 0);
          fill_pattern(data, (size_t)record.result, got[i], i);
          CHECK(memcmp(data, bytes, (size_t)record.result) == 0);
          got[i] += (size_t)record.result;
          total += (size_t)record.result;
        }
    CHECK_EQ(seen, (1 << SENDERS) - 1); /* all advance alike */
  }
  close_core(core);
  for (int i = 0; i < SENDERS; i++)
    close_fd(peers[i]);
}

/* A stream that sends much is announced, and read when its consumer says so. */
TEST(much_is_read_by_its_consumer) {
  enum { MUCH = 20000 };
  static char data[MUCH], room[2 * MUCH];
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  fill_pattern(data, MUCH, 0, 1);
  send_bytes(peer, data, MUCH);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, MUCH);
  CHECK_EQ(vl_stream_receive(core, key, room, sizeof(room)), UV_EAGAIN);
  send_bytes(peer, "slab", 4); /* after a read of nothing */
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "slab");
  send_bytes(peer, data, MUCH);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, MUCH);
  for (int turn = 0; turn < 2; turn++) {
    send_bytes(peer, data, MUCH);
    for (int poll = 0; poll < 2; poll++) { /* not taken, it is announced again */
      CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
      CHECK(take(core, &record));
      CHECK_EQ(record.op, VL_OP_READ);
      CHECK_EQ(record.owner, key);
      CHECK_EQ(record.result, 0);
      CHECK_EQ(record.aux, MUCH);
      CHECK(!take(core, &record));
    }
    CHECK_EQ(vl_stream_receive(core, key, room, sizeof(room)), MUCH);
    CHECK(memcmp(room, data, MUCH) == 0);
  }
  close_fd(peer);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, 0);
  CHECK_EQ(vl_stream_receive(core, key, room, sizeof(room)), VL_EOF);
  CHECK_EQ(vl_core_poll(core, 0), 0); /* reading has stopped */
  CHECK_EQ(vl_handle_close(core, key), 0);
  CHECK_EQ(vl_stream_receive(core, key, room, sizeof(room)), VL_ERR_STALE);
  close_core(core);
}

TEST(h4_very_many_senders_get_smaller_grants_and_none_gets_nothing) {
  vl_core *core = open_core();
  enum { SENDERS = 200, EACH = 65536 };
  static char data[EACH];
  int64_t *keys = calloc(SENDERS, sizeof(*keys));
  int *peers = calloc(SENDERS, sizeof(*peers));
  int records = 0;
  int64_t smallest = EACH;
  vl_record record;

  CHECK(keys != NULL && peers != NULL);
  for (int i = 0; i < SENDERS; i++) {
    keys[i] = open_reader(core, &peers[i]);
    send_bytes(peers[i], data, EACH);
  }
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  while (take(core, &record)) {
    records++;
    CHECK_GT(record.result, 0);
    if (record.result < smallest)
      smallest = record.result;
  }
  CHECK_EQ(records, SENDERS);
  CHECK_GE(smallest, 4096);
  CHECK_LT(smallest, EACH);
  CHECK_LE(statistics_of(core).slab_segments, 11); /* 8 MiB, then a quarter of it each */
  close_core(core);
  for (int i = 0; i < SENDERS; i++)
    close_fd(peers[i]);
  free(keys);
  free(peers);
}

TEST(pausing_loses_and_reorders_nothing) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  send_text(peer, "one");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(vl_stream_read_stop(core, key), 0);
  send_text(peer, "two");
  record = wait_for(core, key, VL_OP_READ); /* was read before the stop */
  check_read(core, &record, key, "one");
  check_quiet(core);
  CHECK_EQ(vl_stream_read_stop(core, key), 0); /* twice is once */
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "two");
  CHECK_EQ(vl_stream_read_stop(core, key), 0);
  close_fd(peer);
  check_quiet(core);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, VL_EOF);
  close_core(core);
}

TEST(closing_while_records_are_pending) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  send_text(peer, "wanted by nobody");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(vl_handle_close(core, key), 0);
  check_end(peer); /* the descriptor is closed before vl_handle_close() returns */
  CHECK_EQ(statistics_of(core).handles, 0);
  CHECK_EQ(statistics_of(core).closing, 1);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS); /* not run: the handle is still there */
  CHECK(take(core, &record));
  check_read(core, &record, key, "wanted by nobody");
  settle(core);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(a_stale_key_reaches_nothing) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);
  int64_t wrong[] = {0, -1, key + 1, key ^ (INT64_C(1) << 40), INT64_MAX, INT64_MIN};
  char name[128];

  for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
    CHECK_EQ(vl_handle_close(core, wrong[i]), VL_ERR_STALE);
  CHECK_EQ(vl_handle_close(core, key), 0);
  close_fd(peer);
  CHECK_EQ(vl_handle_close(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_handle_fileno(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_stream_read_start(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_stream_read_stop(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_stream_try_write(core, key, "x", 1), VL_ERR_STALE);
  CHECK_EQ(vl_stream_try_write2(core, key, "x", 1, "y", 1), VL_ERR_STALE);
  CHECK_EQ(vl_stream_write(core, key, 1, "x", 1), VL_ERR_STALE);
  CHECK_EQ(vl_stream_shutdown(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_stream_sockname(core, key, name, sizeof(name)), VL_ERR_STALE);
  CHECK_EQ(vl_listener_restart(core, key), VL_ERR_STALE);
  close_core(core);
}

TEST(a_key_is_of_its_kind) {
  vl_core *core = open_core();
  int port;
  int fd = listen_tcp(&port);
  int64_t key = vl_listener_open(core, VL_STREAM_TCP, fd, 1);
  int peer;
  int64_t stream = open_stream(core, &peer);

  CHECK_GT(key, 0);
  CHECK_EQ(vl_handle_fileno(core, key), fd);
  CHECK_EQ(vl_stream_read_start(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_stream_write(core, key, 1, "x", 1), VL_ERR_STALE);
  CHECK_EQ(vl_listener_restart(core, stream), VL_ERR_STALE);
  close_core(core);
  CHECK(is_open(fd)); /* a listener's descriptor stays its owner's */
  close_fd(fd);
  close_fd(peer);
}

TEST(generations_tell_users_of_a_slot_apart) {
  enum { ROUNDS = 300 };
  vl_core *core = open_core();
  int64_t *keys = calloc(ROUNDS, sizeof(*keys));

  CHECK(keys != NULL);
  for (int i = 0; i < ROUNDS; i++) {
    int peer;

    keys[i] = open_stream(core, &peer);
    for (int before = 0; before < i; before++)
      CHECK_NE(keys[before], keys[i]);
    if (i > 0) {
      CHECK_EQ(keys[i] & 0xffffffff, keys[0] & 0xffffffff); /* the same slot */
      CHECK_EQ(vl_stream_try_write(core, keys[i - 1], "x", 1), VL_ERR_STALE);
      CHECK_EQ(vl_handle_close(core, keys[i - 1]), VL_ERR_STALE);
    }
    CHECK_EQ(vl_stream_try_write(core, keys[i], "x", 1), 1);
    CHECK_EQ(vl_handle_close(core, keys[i]), 0);
    if (i % 7 == 0)
      settle(core); /* the slot is free before the handle's memory is */
    close_fd(peer);
  }
  free(keys);
  close_core(core);
}

TEST(a_record_of_a_slots_former_user_is_told_by_its_key) {
  vl_core *core = open_core();
  int peer;
  int new_peer;
  int64_t key = open_reader(core, &peer);
  int64_t new_key;
  vl_record record;

  send_text(peer, "for the former");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(vl_handle_close(core, key), 0);
  new_key = open_reader(core, &new_peer);
  CHECK_EQ(new_key & 0xffffffff, key & 0xffffffff);
  CHECK(take(core, &record));
  CHECK_EQ(record.owner, key);
  CHECK_NE(record.owner, new_key);
  send_text(new_peer, "for the new");
  record = wait_for(core, new_key, VL_OP_READ);
  check_read(core, &record, new_key, "for the new");
  close_core(core);
  close_fd(peer);
  close_fd(new_peer);
}

TEST(what_cannot_be_opened_is_closed) {
  vl_core *core = open_core();
  int fds[2];

  make_pair(fds);
  close_fd(fds[0]);
  CHECK_EQ(vl_stream_open(core, VL_STREAM_TCP, fds[0]), UV_EBADF);
  CHECK_EQ(vl_stream_open(core, VL_STREAM_PIPE, fds[0]), UV_EBADF);
  CHECK_EQ(vl_stream_open(core, VL_STREAM_PIPE, -1), UV_EBADF);
  faults.ioctl_error = EIO;
  CHECK_EQ(vl_stream_open(core, VL_STREAM_TCP, fds[1]), UV_EIO);
  CHECK(!is_open(fds[1]));
  CHECK_EQ(statistics_of(core).handles, 0);
  make_pair(fds);
  faults.no_memory = true;
  CHECK_EQ(vl_stream_open(core, VL_STREAM_TCP, fds[0]), UV_ENOMEM);
  faults.no_memory = false;
  check_end(fds[1]);
  close_fd(fds[1]);
  settle(core);
  close_core(core);
  make_pair(fds);
  core = open_core();
  CHECK_EQ(vl_core_close(core), 0);
  CHECK_EQ(vl_stream_open(core, VL_STREAM_TCP, fds[0]), VL_ERR_CLOSED);
  vl_core_free(core);
  check_end(fds[1]);
  close_fd(fds[1]);
}

TEST(keys_need_memory) {
  enum { FIRST_SLOTS = 64 };
  vl_core *core = open_core();
  int peers[FIRST_SLOTS];
  int fds[2];

  for (int i = 0; i < FIRST_SLOTS; i++)
    open_stream(core, &peers[i]);
  make_pair(fds);
  faults.fail_allocation = 2; /* after the handle's own */
  CHECK_EQ(vl_stream_open(core, VL_STREAM_PIPE, fds[0]), UV_ENOMEM);
  CHECK_EQ(faults.fail_allocation, 0);
  check_end(fds[1]);
  close_fd(fds[1]);
  open_stream(core, &fds[1]); /* memory is back */
  CHECK_EQ(statistics_of(core).handles, FIRST_SLOTS + 1);
  close_core(core);
  close_fd(fds[1]);
  for (int i = 0; i < FIRST_SLOTS; i++)
    close_fd(peers[i]);
}

TEST(a_tcp_stream_sends_without_delay_and_knows_its_name) {
  vl_core *core = open_core();
  struct sockaddr_in name;
  struct sockaddr_in expected;
  socklen_t size = sizeof(expected);
  int fds[2];
  int delay = -1;
  socklen_t delay_size = sizeof(delay);
  int64_t key;

  make_tcp_pair(fds);
  key = vl_stream_open(core, VL_STREAM_TCP, fds[0]);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_handle_fileno(core, key), fds[0]);
  CHECK_EQ(getsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &delay, &delay_size), 0);
  CHECK_EQ(delay, 1);
  CHECK(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
  CHECK_EQ(vl_stream_sockname(core, key, (char *)&name, sizeof(name)), sizeof(name));
  CHECK_EQ(getpeername(fds[1], (struct sockaddr *)&expected, &size), 0);
  CHECK_EQ(name.sin_port, expected.sin_port);
  /* Never more than there is room for. */
  CHECK_EQ(vl_stream_sockname(core, key, (char *)&name, 4), 4);
  close_core(core);
  close_fd(fds[1]);
}

TEST(names_of_errors_and_version) {
  char name[32];

  vl_error_name(UV_ECONNRESET, name, sizeof(name));
  CHECK(strcmp(name, "ECONNRESET") == 0);
  vl_error_name(0, name, sizeof(name));
  CHECK(strcmp(name, "") == 0);
  vl_error_name(VL_ERR_STALE, name, sizeof(name));
  CHECK(strcmp(name, "") == 0);
  name[0] = '!';
  vl_error_name(UV_ECONNRESET, name, 0);
  CHECK_EQ(name[0], '!');
  vl_error_name(UV_ECONNRESET, name, 5);
  CHECK(strcmp(name, "ECON") == 0);
  CHECK(strcmp(vl_libuv_version(), uv_version_string()) == 0);
}

const test_case stream_tests[] = {
    CASE(bytes_then_the_end),
    CASE(a_reset_is_an_error_record),
    CASE(h4_at_most_one_grant_of_64_kib_per_stream_and_poll),
    CASE(much_is_read_by_its_consumer),
    CASE(h4_very_many_senders_get_smaller_grants_and_none_gets_nothing),
    CASE(pausing_loses_and_reorders_nothing),
    CASE(closing_while_records_are_pending),
    CASE(a_stale_key_reaches_nothing),
    CASE(a_key_is_of_its_kind),
    CASE(generations_tell_users_of_a_slot_apart),
    CASE(a_record_of_a_slots_former_user_is_told_by_its_key),
    CASE(what_cannot_be_opened_is_closed),
    CASE(keys_need_memory),
    CASE(a_tcp_stream_sends_without_delay_and_knows_its_name),
    CASE(names_of_errors_and_version),
    END_OF_CASES,
};
