/* test_closed_descriptors.c: descriptors that somebody else closes (H6).
 *
 * "libuv aborts when an epoll_ctl it defers fails."  Each way in which libuv comes to defer one
 * is taken here, the descriptor is closed behind its back, and a turn follows. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "support.h"

/* Its owner learns why, once; the handle has left libuv. */
static void check_lost(vl_core *core, int64_t key, int error) {
  vl_record record = wait_for(core, key, VL_OP_READ);

  CHECK_EQ(record.result, error);
  CHECK_EQ(vl_handle_close(core, key), VL_ERR_STALE);
}

static void check_cancelled(vl_core *core, int64_t key, int64_t token) {
  vl_record record = wait_for(core, key, VL_OP_WRITE_DONE);

  CHECK_EQ(record.aux, token);
  CHECK_EQ(record.result, UV_ECANCELED);
}

static void close_behind(vl_core *core, int64_t key) {
  close_fd(vl_handle_fileno(core, key));
}

TEST(h6_closed_after_read_start) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);

  close_behind(core, key);
  check_lost(core, key, UV_EBADF);
  settle(core);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(h6_closed_after_reading_was_resumed) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);

  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_stream_read_stop(core, key), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  close_behind(core, key);
  check_lost(core, key, UV_EBADF);
  close_core(core);
  close_fd(peer);
}

TEST(h6_closed_after_a_write_was_queued) {
  for (int reading = 0; reading < 2; reading++) {
    vl_core *core = open_core();
    int peer;
    int64_t key = open_stream(core, &peer);

    if (reading)
      CHECK_EQ(vl_stream_read_start(core, key), 0);
    CHECK_EQ(vl_core_poll(core, 0), 0);
    block_writing(core, key, 7);
    close_behind(core, key);
    check_lost(core, key, UV_EBADF);
    check_cancelled(core, key, 7);
    close_core(core);
    close_fd(peer);
  }
}

TEST(h6_closed_after_reading_stopped_beside_a_queued_write) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);

  block_writing(core, key, 7);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_SENDING);
  CHECK_EQ(vl_stream_read_stop(core, key), 0);
  close_behind(core, key);
  check_lost(core, key, UV_EBADF);
  check_cancelled(core, key, 7);
  close_core(core);
  close_fd(peer);
}

TEST(h6_closed_after_a_queued_write_completed_on_a_reading_stream) {
  static char received[4 * 1024 * 1024];
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  block_writing(core, key, 7);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_SENDING);
  do {
    CHECK_GT(read(peer, received, sizeof(received)), 0);
    CHECK_GE(vl_core_poll(core, 0), 0);
  } while (!take(core, &record));
  CHECK_EQ(record.op, VL_OP_WRITE_DONE);
  close_behind(core, key); /* libuv no longer watches for writability, and the kernel must hear it */
  check_lost(core, key, UV_EBADF);
  close_core(core);
  close_fd(peer);
}

TEST(h6_closed_after_the_end_was_read_beside_a_queued_write) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  block_writing(core, key, 7);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_SENDING);
  CHECK_EQ(shutdown(peer, SHUT_WR), 0);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, VL_EOF);
  close_behind(core, key); /* libuv no longer watches for readability */
  check_lost(core, key, UV_EBADF);
  check_cancelled(core, key, 7);
  close_core(core);
  close_fd(peer);
}

TEST(h6_closed_after_a_reset_beside_queued_writes) {
  vl_core *core = open_core();
  int fds[2];
  int64_t key;
  vl_record record;

  make_tcp_pair(fds);
  key = vl_stream_open(core, VL_STREAM_TCP, fds[0]);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  block_writing(core, key, 7);
  CHECK_EQ(vl_stream_write(core, key, 8, "x", 1), 0);
  CHECK_EQ(vl_core_poll(core, 0), VL_POLL_SENDING);
  reset_connection(fds[1]);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, UV_ECONNRESET);
  close_behind(core, key);
  for (int turn = 0; turn < 5; turn++) {
    CHECK_GE(vl_core_poll(core, 0), 0);
    while (take(core, &record))
      CHECK_EQ(record.owner, key);
  }
  close_core(core);
}

TEST(h6_a_plain_file_in_its_place) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);
  int number = vl_handle_fileno(core, key);
  int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

  CHECK_EQ(dup2(file, number), number);
  close_fd(file);
  check_lost(core, key, UV_EPERM);
  close_core(core);
  close_fd(peer);
}

TEST(h6_a_plain_file_as_a_stream) {
  vl_core *core = open_core();
  int64_t key = vl_stream_open(core, VL_STREAM_TCP, open("/proc/self/exe", O_RDONLY | O_CLOEXEC));

  CHECK_GT(key, 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  check_lost(core, key, UV_EPERM);
  close_core(core);
}

TEST(h6_closed_while_idle_and_then_used) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);

  close_behind(core, key);
  CHECK_EQ(vl_stream_try_write(core, key, "x", 1), UV_EBADF);
  CHECK_EQ(vl_stream_shutdown(core, key), UV_EBADF);
  CHECK_EQ(vl_stream_write(core, key, 7, "x", 1), 0);
  CHECK_EQ(wait_for(core, key, VL_OP_WRITE_DONE).result, UV_EBADF);
  check_quiet(core); /* libuv watches for nothing, so nobody asks the kernel */
  close_core(core);
  close_fd(peer);
}

TEST(h6_several_at_once_and_the_others_live) {
  enum { COUNT = 10 };
  vl_core *core = open_core();
  int peers[COUNT];
  int64_t keys[COUNT];
  int errors = 0;
  int reads = 0;
  vl_record record;

  for (int i = 0; i < COUNT; i++)
    keys[i] = open_reader(core, &peers[i]);
  for (int i = 0; i < COUNT; i += 2)
    close_behind(core, keys[i]);
  for (int i = 1; i < COUNT; i += 2)
    send_text(peers[i], "hello");
  while (errors + reads < COUNT) {
    CHECK_GE(vl_core_poll(core, WITHOUT_LIMIT), 0);
    while (take(core, &record))
      for (int i = 0; i < COUNT; i++)
        if (record.owner == keys[i]) {
          CHECK_EQ(record.result, i % 2 == 0 ? UV_EBADF : 5);
          errors += i % 2 == 0;
          reads += i % 2 == 1;
        }
  }
  CHECK_EQ(errors, COUNT / 2);
  close_core(core);
  for (int i = 0; i < COUNT; i++)
    close_fd(peers[i]);
}

TEST(h6_a_listener_closed_before_its_first_turn_or_its_restart) {
  for (int restarted = 0; restarted < 2; restarted++) {
    vl_core *core = open_core();
    int port;
    int fd = listen_tcp(&port);
    int64_t key = vl_listener_open(core, VL_STREAM_TCP, fd, 1);
    vl_record record;

    CHECK_GT(key, 0);
    if (restarted) {
      CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
      CHECK_EQ(wait_for(core, key, VL_OP_ACCEPT).result, UV_EINVAL);
      CHECK_EQ(vl_listener_restart(core, key), 0);
    }
    close_fd(fd);
    record = wait_for(core, key, VL_OP_ACCEPT);
    CHECK_EQ(record.result, UV_EBADF);
    CHECK_EQ(vl_listener_restart(core, key), VL_ERR_STALE);
    close_core(core);
  }
}

TEST(h6_a_selector_closed_before_its_first_turn_is_shown_to_its_user) {
  vl_core *core = open_core();
  int inner = epoll_create1(EPOLL_CLOEXEC);

  CHECK_GT(vl_selector_open(core, inner), 0);
  close_fd(inner);
  /* Who asks it now is told EBADF, as by a selector of the standard library. */
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_SELECTOR);
  close_core(core);
}

TEST(h6_closed_and_then_the_core_is_closed) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);

  block_writing(core, key, 7);
  close_behind(core, key);
  close_core(core);
  close_fd(peer);
}

TEST(h6_closed_and_then_the_handle_is_closed) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);

  close_behind(core, key);
  CHECK_EQ(vl_handle_close(core, key), 0);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

/* -- queued again by libuv itself, though nothing was started or stopped ------------------- */

TEST(h6_closed_after_a_hangup_on_an_idle_stream) {
  enum { GRANT = 65536 };
  static char sent[GRANT + 1];
  vl_core *core = open_core();
  int fds[2];
  int64_t key;
  vl_record record;

  make_tcp_pair(fds);
  key = vl_stream_open(core, VL_STREAM_TCP, fds[0]);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_stream_shutdown(core, key), 0); /* for POLLHUP both directions must have ended */
  send_bytes(fds[1], sent, sizeof(sent));
  close_fd(fds[1]);
  record = wait_for(core, key, VL_OP_READ);
  CHECK_EQ(record.result, GRANT); /* the rest, and the end, are left for the next poll */
  close_behind(core, key);
  check_lost(core, key, UV_EBADF);
  close_core(core);
}

/* POLLERR without POLLHUP: the kernel has something for the socket's error queue. */
TEST(h6_closed_after_an_entry_in_the_error_queue) {
  vl_core *core = open_core();
  struct pollfd ready;
  int fds[2];
  int one = 1;
  int64_t key;
  vl_record record;
  char byte;

  make_tcp_pair(fds);
  CHECK_EQ(setsockopt(fds[0], SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)), 0);
  key = vl_stream_open(core, VL_STREAM_TCP, fds[0]);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  ready.fd = vl_handle_fileno(core, key);
  ready.events = 0;
  CHECK_EQ(send(ready.fd, "x", 1, MSG_ZEROCOPY), 1);
  receive_bytes(fds[1], &byte, 1);
  CHECK_EQ(poll(&ready, 1, -1), 1);
  CHECK_EQ(ready.revents, POLLERR);
  send_text(fds[1], "hello"); /* a partial read beside it */
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "hello");
  close_behind(core, key);
  check_lost(core, key, UV_EBADF);
  close_core(core);
  close_fd(fds[1]);
}

TEST(h6_closed_after_a_queued_write_completed_at_once) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);

  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_stream_write(core, key, 7, "x", 1), 0);
  close_behind(core, key); /* uv__run_pending() queues it in the uv_run() that submits it */
  check_lost(core, key, UV_EBADF);
  CHECK_EQ(wait_for(core, key, VL_OP_WRITE_DONE).result, 0);
  close_core(core);
  close_fd(peer);
}

/* Descriptors that libuv has opened for itself, by what they are: of the fork that follows. */
static int find_eventfd(void) {
  char link[64];
  char target[64];
  ssize_t length;

  for (int fd = 3; fd < 64; fd++) {
    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, target, sizeof(target) - 1);
    if (length < 0)
      continue;
    target[length] = '\0';
    if (strcmp(target, "anon_inode:[eventfd]") == 0)
      return fd;
  }
  return -1;
}

static void lose_wake_of_adopted(void *argument) {
  vl_core *core = argument;
  int fd;

  vl_core_abandon(core);
  CHECK_EQ(vl_core_adopt(core), 0); /* libuv has a new eventfd, and has not registered it yet */
  fd = find_eventfd();
  CHECK_GT(fd, 2);
  close_fd(fd);
  CHECK_EQ(vl_core_poll(core, 0), UV_EBADF);
  CHECK_EQ(vl_core_poll(core, 0), UV_EBADF);
  CHECK_EQ(vl_core_close(core), 0);
  vl_core_free(core);
}

TEST(h6_a_descriptor_of_libuvs_own_closed_is_an_error_of_the_poll) {
  vl_core *core = open_core();

  CHECK_EQ(in_child(lose_wake_of_adopted, core), 0);
  close_core(core);
}

const test_case closed_descriptor_tests[] = {
    CASE(h6_closed_after_read_start),
    CASE(h6_closed_after_reading_was_resumed),
    CASE(h6_closed_after_a_write_was_queued),
    CASE(h6_closed_after_reading_stopped_beside_a_queued_write),
    CASE(h6_closed_after_a_queued_write_completed_on_a_reading_stream),
    CASE(h6_closed_after_the_end_was_read_beside_a_queued_write),
    CASE(h6_closed_after_a_reset_beside_queued_writes),
    CASE(h6_a_plain_file_in_its_place),
    CASE(h6_a_plain_file_as_a_stream),
    CASE(h6_closed_while_idle_and_then_used),
    CASE(h6_several_at_once_and_the_others_live),
    CASE(h6_a_listener_closed_before_its_first_turn_or_its_restart),
    CASE(h6_a_selector_closed_before_its_first_turn_is_shown_to_its_user),
    CASE(h6_closed_and_then_the_core_is_closed),
    CASE(h6_closed_and_then_the_handle_is_closed),
    CASE(h6_closed_after_a_hangup_on_an_idle_stream),
    CASE(h6_closed_after_an_entry_in_the_error_queue),
    CASE(h6_closed_after_a_queued_write_completed_at_once),
    CASE(h6_a_descriptor_of_libuvs_own_closed_is_an_error_of_the_poll),
    END_OF_CASES,
};
