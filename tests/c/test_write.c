/* test_write.c: sending at once, queued sending, and requests that outlive their stream. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

TEST(what_the_kernel_takes_is_sent_at_once) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);
  char received[5];

  CHECK_EQ(vl_stream_try_write(core, key, "hello", 5), 5);
  receive_bytes(peer, received, 5); /* without a turn of the loop */
  CHECK(memcmp(received, "hello", 5) == 0);
  CHECK_EQ(statistics_of(core).writes, 0);
  close_fd(peer);
  CHECK_EQ(vl_stream_try_write(core, key, "hello", 5), UV_EPIPE);
  check_quiet(core);
  close_core(core);
}

TEST(two_buffers_leave_in_one_system_call) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);
  char received[11];

  CHECK_EQ(vl_stream_try_write2(core, key, "header", 6, " body", 5), 11);
  CHECK_EQ(faults.writevs, 1);
  receive_bytes(peer, received, 11);
  CHECK(memcmp(received, "header body", 11) == 0);
  CHECK_EQ(vl_stream_try_write2(core, key, "", 0, "body", 4), 4);
  CHECK_EQ(vl_stream_try_write2(core, key, "head", 4, "", 0), 4);
  receive_bytes(peer, received, 8);
  CHECK(memcmp(received, "bodyhead", 8) == 0);
  block_writing(core, key, 1);
  CHECK_EQ(vl_stream_try_write2(core, key, "a", 1, "b", 1), UV_EAGAIN);
  close_core(core);
  close_fd(peer);
}

TEST(a_part_of_two_buffers) {
  enum { FIRST = 4 * 1024 * 1024 };
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);
  char *first = malloc(FIRST);
  char *received = malloc(FIRST);
  int64_t sent;

  CHECK(first != NULL && received != NULL);
  fill_pattern(first, FIRST, 0, 1);
  sent = vl_stream_try_write2(core, key, first, FIRST, "never sent", 10);
  CHECK_GT(sent, 0);
  CHECK_LT(sent, FIRST);
  receive_bytes(peer, received, (size_t)sent);
  CHECK(memcmp(first, received, (size_t)sent) == 0);
  free(first);
  free(received);
  close_core(core);
  close_fd(peer);
}

TEST(nothing_overtakes_a_queued_write) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);

  block_writing(core, key, 7);
  CHECK_EQ(statistics_of(core).writes, 1);
  CHECK_EQ(vl_stream_try_write(core, key, "x", 1), UV_EAGAIN);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(partial_writes_keep_their_order) {
  enum { REQUESTS = 40, EACH = 100000 };
  vl_core *core = open_core();
  int fds[2];
  char *data = malloc(REQUESTS * EACH);
  char *received = malloc(REQUESTS * EACH);
  size_t got = 0;
  int64_t done = 0;
  int64_t key;
  vl_record record;

  CHECK(data != NULL && received != NULL);
  make_tcp_pair(fds);
  key = vl_stream_open(core, VL_STREAM_TCP, fds[0]);
  CHECK_GT(key, 0);
  fill_pattern(data, REQUESTS * EACH, 0, 3);
  for (int i = 0; i < REQUESTS; i++)
    CHECK_EQ(vl_stream_write(core, key, i, data + (size_t)i * EACH, EACH), 0);
  CHECK_EQ(statistics_of(core).writes, REQUESTS);
  while (got < REQUESTS * EACH || done < REQUESTS) {
    struct pollfd ready = {fds[1], POLLIN, 0};

    CHECK_GE(vl_core_poll(core, 0), 0);
    while (take(core, &record)) {
      CHECK_EQ(record.op, VL_OP_WRITE_DONE);
      CHECK_EQ(record.result, 0);
      CHECK_EQ(record.aux, done);
      done++;
    }
    if (poll(&ready, 1, got < REQUESTS * EACH ? 100 : 0) > 0) {
      size_t rest = REQUESTS * EACH - got;
      ssize_t size = read(fds[1], received + got, rest < 7001 ? rest : 7001);

      CHECK_GT(size, 0);
      got += (size_t)size;
    }
  }
  CHECK(memcmp(data, received, REQUESTS * EACH) == 0);
  CHECK_EQ(statistics_of(core).writes, 0);
  CHECK_EQ(vl_stream_try_write(core, key, "x", 1), 1); /* the queue is empty again */
  free(data);
  free(received);
  close_core(core);
  close_fd(fds[1]);
}

TEST(h8_requests_cancelled_by_close_are_reported_each) {
  enum { REQUESTS = 5 };
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);

  block_writing(core, key, 0);
  for (int token = 1; token < REQUESTS; token++)
    CHECK_EQ(vl_stream_write(core, key, token, "x", 1), 0);
  CHECK_EQ(vl_handle_close(core, key), 0);
  CHECK_EQ(statistics_of(core).writes, REQUESTS);
  for (int token = 0; token < REQUESTS; token++) {
    vl_record record = wait_for(core, key, VL_OP_WRITE_DONE);

    CHECK_EQ(record.aux, token);
    CHECK_EQ(record.result, UV_ECANCELED);
    /* "Request callbacks always precede CLOSED": after the last one the handle may go. */
    CHECK_EQ(statistics_of(core).writes, 0);
  }
  settle(core);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(h8_requests_cancelled_by_the_cores_end_are_reported_each) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);
  vl_record record;

  block_writing(core, key, 11);
  CHECK_EQ(vl_stream_write(core, key, 12, "x", 1), 0);
  CHECK_EQ(vl_core_close(core), 0);
  CHECK_EQ(statistics_of(core).writes, 0);
  for (int token = 11; token < 13; token++) {
    CHECK(take(core, &record));
    CHECK_EQ(record.op, VL_OP_WRITE_DONE);
    CHECK_EQ(record.owner, key);
    CHECK_EQ(record.aux, token);
    CHECK_EQ(record.result, UV_ECANCELED);
  }
  CHECK(!take(core, &record));
  CHECK_EQ(vl_core_poll(core, 0), VL_ERR_CLOSED);
  vl_core_free(core);
  close_fd(peer);
}

TEST(requests_on_a_lost_connection_fail_each) {
  vl_core *core = open_core();
  int fds[2];
  int64_t key;
  vl_record record;

  make_tcp_pair(fds);
  key = vl_stream_open(core, VL_STREAM_TCP, fds[0]);
  CHECK_GT(key, 0);
  block_writing(core, key, 0);
  CHECK_EQ(vl_stream_write(core, key, 1, "x", 1), 0);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_SENDING);
  reset_connection(fds[1]);
  record = wait_for(core, key, VL_OP_WRITE_DONE);
  CHECK_EQ(record.aux, 0);
  CHECK_EQ(record.result, UV_ECONNRESET);
  /* libuv fails the first one and leaves the rest to the close. */
  CHECK_EQ(vl_handle_close(core, key), 0);
  record = wait_for(core, key, VL_OP_WRITE_DONE);
  CHECK_EQ(record.aux, 1);
  CHECK_LT(record.result, 0);
  CHECK_EQ(statistics_of(core).writes, 0);
  close_core(core);
}

TEST(a_refused_request_has_no_record) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);

  faults.no_memory = true;
  CHECK_EQ(vl_stream_write(core, key, 1, "x", 1), UV_ENOMEM);
  faults.no_memory = false;
  CHECK_EQ(vl_stream_write(core, key, 1, "x", (size_t)0x80000000u), UV_EINVAL);
  CHECK_EQ(statistics_of(core).writes, 0);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(an_empty_request_completes) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);
  vl_record record;

  CHECK_EQ(vl_stream_write(core, key, 5, "", 0), 0);
  record = wait_for(core, key, VL_OP_WRITE_DONE);
  CHECK_EQ(record.aux, 5);
  CHECK_EQ(record.result, 0);
  close_core(core);
  close_fd(peer);
}

TEST(half_close) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  char received[4];
  vl_record record;

  CHECK_EQ(vl_stream_try_write(core, key, "last", 4), 4);
  CHECK_EQ(vl_stream_shutdown(core, key), 0);
  receive_bytes(peer, received, 4);
  check_end(peer);
  send_text(peer, "answer"); /* the other direction stays open */
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "answer");
  CHECK_EQ(vl_stream_try_write(core, key, "x", 1), UV_EPIPE);
  close_core(core);
  close_fd(peer);
}

TEST(shutdown_says_why_not) {
  vl_core *core = open_core();
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int64_t key = vl_stream_open(core, VL_STREAM_TCP, fd);

  CHECK_GT(key, 0);
  CHECK_EQ(vl_stream_shutdown(core, key), UV_ENOTCONN);
  close_core(core);
}

const test_case write_tests[] = {
    CASE(what_the_kernel_takes_is_sent_at_once),
    CASE(two_buffers_leave_in_one_system_call),
    CASE(a_part_of_two_buffers),
    CASE(nothing_overtakes_a_queued_write),
    CASE(partial_writes_keep_their_order),
    CASE(h8_requests_cancelled_by_close_are_reported_each),
    CASE(h8_requests_cancelled_by_the_cores_end_are_reported_each),
    CASE(requests_on_a_lost_connection_fail_each),
    CASE(a_refused_request_has_no_record),
    CASE(an_empty_request_completes),
    CASE(half_close),
    CASE(shutdown_says_why_not),
    END_OF_CASES,
};
