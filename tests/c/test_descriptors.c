/* test_descriptors.c: numbers of descriptors (H6): none below 3, none twice, none leaked; and
 * libuv's own, when it is gone. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

/* -- standard input, output and error ------------------------------------------------ */

/* Closes those of 0-2 that the mask names.  With 2 closed, only the exit status tells of a check. */
static void close_stdio(unsigned mask) {
  for (int fd = 0; fd < 3; fd++)
    if (mask & (1u << fd))
      close_fd(fd);
}

static void check_stdio_is_closed(unsigned mask) {
  for (int fd = 0; fd < 3; fd++)
    if (mask & (1u << fd))
      CHECK(!is_open(fd));
}

static void exercise(vl_core *core) {
  int peer;
  int64_t key = open_reader(core, &peer);
  vl_record record;

  CHECK_GT(vl_handle_fileno(core, key), 2);
  send_text(peer, "hello");
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "hello");
  CHECK_EQ(vl_core_poll(core, NS_PER_MS), 0);
  close_fd(peer);
}

static void make_core_without_stdio(void *argument) {
  unsigned mask = *(unsigned *)argument;
  vl_core *core;

  close_stdio(mask);
  core = open_core();
  check_stdio_is_closed(mask);
  exercise(core);
  close_core(core); /* "assert(fd > STDERR_FILENO)" */
  check_stdio_is_closed(mask);
}

TEST(h6_a_core_made_without_stdio_takes_none_of_its_numbers) {
  for (unsigned mask = 1; mask < 8; mask++)
    CHECK_EQ(in_child(make_core_without_stdio, &mask), 0);
}

static void open_streams_without_stdio(void *argument) {
  unsigned mask = *(unsigned *)argument;
  vl_core *core = open_core();
  int port;
  int listener_fd = listen_tcp(&port);
  int64_t listener = vl_listener_open(core, VL_STREAM_TCP, listener_fd, 8);
  int clients[4];
  vl_record record;

  for (int i = 0; i < 4; i++)
    clients[i] = connect_tcp(port);
  close_stdio(mask);
  for (int i = 0; i < 4; i++) {
    record = wait_for(core, listener, VL_OP_ACCEPT);
    CHECK_GT(vl_handle_fileno(core, record.result), 2);
    CHECK(fcntl(vl_handle_fileno(core, record.result), F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(vl_stream_try_write(core, record.result, "x", 1), 1);
  }
  check_stdio_is_closed(mask);
  exercise(core); /* a socketpair() with numbers among 0-2, given by the caller */
  close_core(core);
  check_stdio_is_closed(mask);
  for (int i = 0; i < 4; i++)
    close_fd(clients[i]);
}

TEST(h6_streams_opened_without_stdio_take_none_of_its_numbers) {
  for (unsigned mask = 1; mask < 8; mask++)
    CHECK_EQ(in_child(open_streams_without_stdio, &mask), 0);
}

/* -- limits ---------------------------------------------------------------------------- */

static void set_limit(rlim_t limit) {
  struct rlimit limits;

  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  limits.rlim_cur = limit;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limits), 0);
}

/* A core under every limit from "no descriptor left" up to "enough". */
static void make_cores_under_limits(void) {
  int before = open_descriptors();
  struct rlimit limits;
  int lowest = dup(1);
  vl_core *core = NULL;
  int error;

  close_fd(lowest);
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  for (rlim_t limit = (rlim_t)lowest; core == NULL; limit++) {
    set_limit(limit);
    error = 0;
    core = vl_core_new(&error);
    set_limit(limits.rlim_cur);
    if (core == NULL) {
      CHECK_EQ(error, UV_EMFILE);
      CHECK_EQ(open_descriptors(), before);
    }
    CHECK_LT(limit, lowest + 30);
  }
  CHECK_EQ(error, 0);
  exercise(core);
  close_core(core);
}

TEST(a_core_needs_descriptors) {
  make_cores_under_limits();
}

TEST(the_first_core_needs_descriptors) {
  /* libuv's first loop of a process opens a pipe besides, and aborts if it cannot. */
  make_cores_under_limits();
}

TEST(moving_above_stdio_needs_descriptors) {
  vl_core *core = open_core();
  struct rlimit limits;
  int saved = dup(0);
  int fds[2];
  int lowest;

  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  close_fd(0);
  make_pair(fds);
  CHECK_EQ(fds[0], 0);
  lowest = dup(fds[1]);
  close_fd(lowest);
  set_limit((rlim_t)lowest);
  CHECK_EQ(vl_stream_open(core, VL_STREAM_PIPE, 0), UV_EMFILE);
  CHECK(!is_open(0));
  set_limit(limits.rlim_cur);
  check_end(fds[1]);
  close_fd(fds[1]);
  CHECK_EQ(dup2(saved, 0), 0);
  close_fd(saved);
  close_core(core);
}

/* -- numbers that libuv watches already ------------------------------------------------ */

TEST(h6_a_number_that_is_watched_already_is_changed) {
  vl_core *core = open_core();
  int peers[3];
  int64_t stale[3];
  int numbers[3];
  int64_t key;
  int peer;
  int port;
  int listener_fd = listen_tcp(&port);
  int64_t listener = vl_listener_open(core, VL_STREAM_TCP, listener_fd, 8);
  int client;
  int number;
  vl_record record;

  CHECK_GT(listener, 0);
  for (int i = 0; i < 3; i++) {
    stale[i] = open_reader(core, &peers[i]);
    numbers[i] = vl_handle_fileno(core, stale[i]);
  }
  CHECK_EQ(vl_core_poll(core, 0), 0);
  client = connect_tcp(port);
  /* Somebody closes them behind libuv's back: the next ones get their numbers. */
  for (int i = 0; i < 3; i++)
    close_fd(numbers[i]);
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_GT(record.result, 0);
  number = vl_handle_fileno(core, record.result);
  for (int i = 0; i < 3; i++)
    CHECK_NE(number, numbers[i]);
  CHECK(fcntl(number, F_GETFD) & FD_CLOEXEC);
  send_text(client, "hello");
  CHECK_EQ(vl_stream_read_start(core, record.result), 0);
  key = record.result;
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "hello");
  /* And one that a caller brings. */
  key = open_reader(core, &peer);
  for (int i = 0; i < 3; i++)
    CHECK_NE(vl_handle_fileno(core, key), numbers[i]);
  send_text(peer, "there");
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "there");
  close_fd(peer);
  close_fd(client);
  for (int i = 0; i < 3; i++)
    CHECK_EQ(vl_handle_close(core, stale[i]), 0);
  for (int i = 0; i < 3; i++)
    close(peers[i]); /* may have been among the numbers */
  close_core(core);
  close_fd(listener_fd);
}

/* -- libuv's own descriptor ---------------------------------------------------------------- */

/* The only epoll instance of the process. */
static int find_backend(void) {
  char path[32];
  char target[32];

  for (int fd = 3; fd < 1000; fd++) {
    ssize_t size;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    size = readlink(path, target, sizeof(target) - 1);
    if (size < 0)
      continue;
    target[size] = '\0';
    if (strcmp(target, "anon_inode:[eventpoll]") == 0)
      return fd;
  }
  check_failed(__FILE__, __LINE__, "there is an epoll instance");
}

TEST(h6_a_closed_or_replaced_backend_is_noticed) {
  for (int kind = 0; kind < 3; kind++) {
    vl_core *core = open_core();
    int backend = find_backend();
    int peer;
    int64_t key = open_reader(core, &peer);
    int fd = kind == 0   ? -1
             : kind == 1 ? open("/dev/null", O_RDONLY | O_CLOEXEC)
                         : epoll_create1(EPOLL_CLOEXEC);

    CHECK_EQ(vl_core_check(core), 0);
    CHECK_EQ(vl_core_poll(core, 0), 0);
    CHECK_EQ(vl_core_check(core), 0);
    if (fd < 0) {
      close_fd(backend);
      CHECK_EQ(vl_core_check(core), UV_EBADF);
    } else {
      CHECK_EQ(dup2(fd, backend), backend);
      close_fd(fd);
      CHECK_LT(vl_core_check(core), 0);
    }
    /* What is left of it can still be closed, and the streams' peers learn of it. */
    CHECK_GT(key, 0);
    close_core(core);
    check_end(peer);
    close_fd(peer);
    if (fd >= 0)
      CHECK(is_open(backend)); /* somebody else's by now */
    if (fd >= 0)
      close_fd(backend);
  }
}

TEST(h6_every_descriptor_is_closed_behind_the_core) {
  /* As programs do that make themselves daemons.  The lowest numbers, which anything opened
   * now would get, are those of streams. */
  int held = dup(1);
  int held_too = dup(1);
  vl_core *core = open_core();
  int fds[2];

  close_fd(held);
  close_fd(held_too);
  for (int i = 0; i < 4; i++) {
    make_pair(fds);
    CHECK_GT(vl_stream_open(core, VL_STREAM_PIPE, fds[0]), 0);
    CHECK_GT(vl_stream_open(core, VL_STREAM_PIPE, fds[1]), 0);
  }
  CHECK_EQ(vl_core_poll(core, 0), 0);
  for (int fd = 3; fd < 100; fd++)
    close(fd);
  CHECK_EQ(vl_core_check(core), UV_EBADF);
  close_core(core);
}

TEST(h6_closing_without_backend_can_be_tried_again) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_reader(core, &peer);

  close_fd(find_backend());
  faults.epoll_error = EMFILE;
  CHECK_EQ(vl_core_close(core), UV_EMFILE);
  CHECK_EQ(vl_stream_try_write(core, key, "x", 1), 1); /* nothing has happened yet */
  close_core(core);
  close_fd(peer);
}

TEST(h6_checking_the_backend_disturbs_nobody) {
  /* Every small number is watched by the core while it checks. */
  vl_core *core = open_core();
  int peers[8];
  int64_t keys[8];
  vl_record record;

  for (int i = 0; i < 8; i++)
    keys[i] = open_reader(core, &peers[i]);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_core_check(core), 0);
  for (int i = 0; i < 8; i++) {
    send_text(peers[i], "hello");
    record = wait_for(core, keys[i], VL_OP_READ);
    check_read(core, &record, keys[i], "hello");
  }
  CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), 0);
  CHECK_EQ(vl_core_poll(core, NS_PER_MS), 0);
  close_core(core);
  for (int i = 0; i < 8; i++)
    close_fd(peers[i]);
}

TEST(h6_checking_the_backend_disturbs_no_stream_with_the_lowest_number) {
  int held = dup(1); /* the lowest number, free again after the core has its own */
  vl_core *core = open_core();
  int fds[2];
  int64_t key;
  vl_record record;

  make_pair(fds);
  CHECK_EQ(dup2(fds[0], held), held);
  close_fd(fds[0]);
  key = vl_stream_open(core, VL_STREAM_PIPE, held);
  CHECK_EQ(vl_handle_fileno(core, key), held);
  CHECK_EQ(vl_stream_read_start(core, key), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_core_check(core), 0);
  send_text(fds[1], "hello");
  record = wait_for(core, key, VL_OP_READ);
  check_read(core, &record, key, "hello");
  close_core(core);
  close_fd(fds[1]);
}

/* -- the end ------------------------------------------------------------------------------- */

TEST(a_core_with_everything_open_closes) {
  vl_core *core = open_core();
  int port;
  int listener_fd = listen_tcp(&port);
  int64_t listener = vl_listener_open(core, VL_STREAM_TCP, listener_fd, 8);
  int inner = epoll_create1(EPOLL_CLOEXEC);
  int client = connect_tcp(port);
  int peers[4];
  int64_t keys[4];

  CHECK_GT(vl_selector_open(core, inner), 0);
  (void)wait_for(core, listener, VL_OP_ACCEPT); /* a connection that nobody looks at */
  for (int i = 0; i < 4; i++)
    keys[i] = open_stream(core, &peers[i]);
  CHECK_EQ(vl_stream_read_start(core, keys[0]), 0);
  block_writing(core, keys[1], 1);
  send_text(peers[0], "pending");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS | VL_POLL_SENDING);
  CHECK_EQ(vl_handle_close(core, keys[2]), 0);          /* closing */
  CHECK_EQ(vl_stream_read_start(core, keys[3]), 0);     /* to be armed */
  CHECK_EQ(vl_stream_write(core, keys[3], 2, "x", 1), 0); /* to be reported */
  CHECK_EQ(statistics_of(core).handles, 6);
  close_core(core);
  check_end(client);
  for (int i = 0; i < 4; i++)
    close_fd(peers[i]);
  close_fd(inner);
  close_fd(client);
  close_fd(listener_fd);
}

TEST(after_close_every_entry_says_so) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);

  CHECK_EQ(vl_core_close(core), 0);
  check_end(peer);
  CHECK_EQ(vl_core_poll(core, 0), VL_ERR_CLOSED);
  CHECK_EQ(vl_core_check(core), VL_ERR_CLOSED);
  CHECK_EQ(vl_handle_close(core, key), VL_ERR_CLOSED);
  CHECK_EQ(vl_stream_write(core, key, 1, "x", 1), VL_ERR_CLOSED);
  CHECK_EQ(vl_listener_open(core, VL_STREAM_TCP, peer, 1), VL_ERR_CLOSED);
  CHECK_EQ(vl_selector_open(core, peer), VL_ERR_CLOSED);
  vl_core_free(core);
  close_fd(peer);
}

const test_case descriptor_tests[] = {
    CASE(h6_a_core_made_without_stdio_takes_none_of_its_numbers),
    CASE(h6_streams_opened_without_stdio_take_none_of_its_numbers),
    CASE(a_core_needs_descriptors),
    CASE_FIRST_CORE(the_first_core_needs_descriptors),
    CASE(moving_above_stdio_needs_descriptors),
    CASE(h6_a_number_that_is_watched_already_is_changed),
    CASE(h6_a_closed_or_replaced_backend_is_noticed),
    CASE_FIRST_CORE(h6_every_descriptor_is_closed_behind_the_core),
    CASE(h6_closing_without_backend_can_be_tried_again),
    CASE(h6_checking_the_backend_disturbs_nobody),
    CASE(h6_checking_the_backend_disturbs_no_stream_with_the_lowest_number),
    CASE(a_core_with_everything_open_closes),
    CASE(after_close_every_entry_says_so),
    END_OF_CASES,
};
