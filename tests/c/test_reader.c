/* test_reader.c: descriptors that stay their owner's, watched, read and written. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

typedef struct {
  int near; /* watched by the core; the test closes it */
  int far;
  int64_t key;
} watched;

static void set_nonblocking(int fd) {
  int flags = fcntl(fd, F_GETFL);

  CHECK(flags >= 0);
  CHECK_EQ(fcntl(fd, F_SETFL, flags | O_NONBLOCK), 0);
}

static watched watch(vl_core *core, int near, int far, int events) {
  watched made = {near, far, vl_poll_open(core, near)};

  CHECK_GT(made.key, 0);
  CHECK_EQ(vl_poll_events(core, made.key, events), 0);
  return made;
}

/* A pipe that the core reads. */
static watched read_pipe(vl_core *core) {
  int fds[2];

  CHECK_EQ(pipe(fds), 0);
  return watch(core, fds[0], fds[1], VL_RECEIVE);
}

/* A pipe whose writing end the core watches. */
static watched write_pipe(vl_core *core, int events) {
  int fds[2];

  CHECK_EQ(pipe(fds), 0);
  return watch(core, fds[1], fds[0], events);
}

/* The descriptor is still the test's: nobody else has closed it. */
static void end(vl_core *core, watched *one) {
  CHECK_EQ(vl_handle_close(core, one->key), 0);
  CHECK(is_open(one->near));
  close_fd(one->near);
  settle(core);
}

static void open_pty(int *master, int *slave) {
  struct termios raw;

  *master = posix_openpt(O_RDWR | O_NOCTTY);
  CHECK(*master >= 0);
  CHECK_EQ(grantpt(*master), 0);
  CHECK_EQ(unlockpt(*master), 0);
  *slave = open(ptsname(*master), O_RDWR | O_NOCTTY);
  CHECK(*slave >= 0);
  CHECK_EQ(tcgetattr(*slave, &raw), 0);
  cfmakeraw(&raw);
  CHECK_EQ(tcsetattr(*slave, TCSANOW, &raw), 0);
}

/* Writes as much as a pipe takes. */
static size_t fill(int fd) {
  static char data[65536];
  size_t total = 0;
  ssize_t size;

  set_nonblocking(fd);
  while ((size = write(fd, data, sizeof(data))) > 0)
    total += (size_t)size;
  CHECK_EQ(errno, EAGAIN);
  return total;
}

/* -- reading ------------------------------------------------------------------------------ */

TEST(bytes_are_read_and_then_the_end_once) {
  vl_core *core = open_core();
  watched one = read_pipe(core);
  vl_record record;

  send_text(one.far, "hello");
  record = wait_for(core, one.key, VL_OP_READ);
  check_read(core, &record, one.key, "hello");
  check_quiet(core); /* EAGAIN is nothing */
  close_fd(one.far);
  record = wait_for(core, one.key, VL_OP_READ);
  CHECK_EQ(record.result, VL_EOF);
  check_quiet(core);
  end(core, &one);
  close_core(core);
}

TEST(all_that_is_in_a_pipe_comes_before_its_end) {
  vl_core *core = open_core();
  watched one = read_pipe(core);
  size_t total = fill(one.far);
  size_t got = 0;
  vl_record record;

  close_fd(one.far); /* POLLIN and POLLHUP */
  for (;;) {
    record = wait_for(core, one.key, VL_OP_READ);
    if (record.result <= 0)
      break;
    got += (size_t)record.result;
  }
  CHECK_EQ(record.result, VL_EOF);
  CHECK_EQ(got, total);
  check_quiet(core);
  end(core, &one);
  close_core(core);
}

TEST(h4_one_grant_a_poll) {
  vl_core *core = open_core();
  enum { PIPES = 8 };
  watched pipes[PIPES];
  vl_record record;

  for (int i = 0; i < PIPES; i++) {
    pipes[i] = read_pipe(core);
    CHECK_GT(fcntl(pipes[i].far, F_SETPIPE_SZ, 4 * 65536), 0);
    fill(pipes[i].far);
  }
  for (int poll = 0; poll < 3; poll++) {
    int seen = 0;

    CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
    while (take(core, &record))
      for (int i = 0; i < PIPES; i++)
        if (record.owner == pipes[i].key) {
          CHECK_EQ(seen & (1 << i), 0);
          seen |= 1 << i;
          CHECK_EQ(record.op, VL_OP_READ);
          CHECK_EQ(record.result, 65536);
        }
    CHECK_EQ(seen, (1 << PIPES) - 1);
  }
  for (int i = 0; i < PIPES; i++)
    CHECK_EQ(vl_poll_events(core, pipes[i].key, 0), 0);
  for (int i = 0; i < PIPES; i++) {
    end(core, &pipes[i]);
    close_fd(pipes[i].far);
  }
  close_core(core);
}

TEST(nothing_is_lost_without_memory) {
  vl_core *core = open_core();
  watched one = read_pipe(core);
  vl_record record = {0, 0, 0, 0, 0};

  /* The ring's first segment is full, and there is none for a second. */
  for (int i = 0; i < VL_RING_SEGMENT_RECORDS; i++) {
    watched other = read_pipe(core);

    close_fd(other.far);
    CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
    set_frames(core, 1); /* nothing is reused */
    CHECK(take(core, &record));
    end(core, &other);
  }
  send_text(one.far, "hello");
  faults.no_memory = true;
  for (int i = 0; i < 3; i++)
    CHECK_EQ(vl_core_poll(core, 0), 0);
  faults.no_memory = false;
  record = wait_for(core, one.key, VL_OP_READ);
  check_read(core, &record, one.key, "hello");
  set_frames(core, 0);
  end(core, &one);
  close_fd(one.far);
  close_core(core);
}

TEST(what_another_has_read_is_nothing) {
  vl_core *core = open_core();
  watched one = read_pipe(core);
  watched other = watch(core, dup(one.near), one.far, VL_RECEIVE);
  vl_record record;

  check_quiet(core);
  send_text(one.far, "hello"); /* both are readable, and one reads */
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK(take(core, &record));
  check_read(core, &record, record.owner, "hello");
  CHECK(!take(core, &record));
  check_quiet(core);
  end(core, &one);
  end(core, &other);
  close_fd(one.far);
  close_core(core);
}

TEST(not_watched_is_not_read) {
  vl_core *core = open_core();
  watched one = read_pipe(core);
  char data[2];
  vl_record record;

  CHECK_EQ(vl_poll_events(core, one.key, 0), 0);
  send_text(one.far, "ab");
  check_quiet(core);
  receive_bytes(one.near, data, 1); /* still there for whoever else reads */
  CHECK_EQ(vl_poll_events(core, one.key, VL_RECEIVE), 0);
  record = wait_for(core, one.key, VL_OP_READ);
  check_read(core, &record, one.key, "b");
  end(core, &one);
  close_fd(one.far);
  close_core(core);
}

TEST(a_reset_socket_gives_its_bytes_and_its_error) {
  vl_core *core = open_core();
  int fds[2];
  watched one;
  vl_record record;

  make_tcp_pair(fds);
  one = watch(core, fds[0], fds[1], VL_RECEIVE);
  check_quiet(core);
  reset_connection(one.far); /* POLLERR: uv_poll stops, the reading goes on */
  record = wait_for(core, one.key, VL_OP_READ);
  CHECK_EQ(record.result, UV_ECONNRESET);
  check_quiet(core);
  end(core, &one);
  close_core(core);
}

TEST(bytes_beside_an_error_are_read_first) {
  vl_core *core = open_core();
  int fds[2];
  watched one;
  vl_record record;

  /* A Unix socket whose peer closes with unread bytes: its own bytes stay readable. */
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  set_nonblocking(fds[0]);
  one = watch(core, fds[0], fds[1], VL_RECEIVE);
  send_text(one.near, "unread");
  send_text(one.far, "last");
  close_fd(one.far);
  record = wait_for(core, one.key, VL_OP_READ);
  check_read(core, &record, one.key, "last");
  record = wait_for(core, one.key, VL_OP_READ);
  CHECK_EQ(record.result, UV_ECONNRESET);
  end(core, &one);
  close_core(core);
}

TEST(a_terminals_hangup_is_an_error) {
  vl_core *core = open_core();
  int master;
  int slave;
  watched one;
  vl_record record;

  open_pty(&master, &slave);
  one = watch(core, master, slave, VL_RECEIVE);
  send_text(slave, "last words");
  record = wait_for(core, one.key, VL_OP_READ);
  check_read(core, &record, one.key, "last words");
  close_fd(slave);
  record = wait_for(core, one.key, VL_OP_READ);
  CHECK_EQ(record.result, UV_EIO);
  check_quiet(core);
  end(core, &one);
  close_core(core);
}

TEST(one_watch_serves_both_directions) {
  vl_core *core = open_core();
  int master;
  int slave;
  watched one;
  vl_record record;

  open_pty(&master, &slave);
  one = watch(core, master, slave, VL_RECEIVE | VL_WRITABLE);
  CHECK_EQ(vl_poll_open(core, master), UV_EEXIST);
  send_text(slave, "in");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK(take(core, &record));
  check_read(core, &record, one.key, "in"); /* asyncio's order: the reader first */
  CHECK(take(core, &record));
  CHECK_EQ(record.op, VL_OP_POLL);
  CHECK_EQ(record.result, VL_WRITABLE);
  CHECK(!take(core, &record));
  end(core, &one);
  close_fd(slave);
  close_core(core);
}

TEST(after_the_end_it_is_still_watched_for_writing) {
  vl_core *core = open_core();
  int fds[2];
  watched one;
  vl_record record;

  make_pair(fds);
  one = watch(core, fds[0], fds[1], VL_RECEIVE | VL_WRITABLE);
  CHECK_EQ(shutdown(one.far, SHUT_WR), 0);
  record = wait_for(core, one.key, VL_OP_READ);
  CHECK_EQ(record.result, VL_EOF);
  for (int i = 0; i < 3; i++) {
    record = wait_for(core, one.key, VL_OP_POLL);
    CHECK_EQ(record.result, VL_WRITABLE);
  }
  end(core, &one);
  close_fd(one.far);
  close_core(core);
}

/* -- writing -------------------------------------------------------------------------------- */

TEST(a_full_pipe_takes_nothing_until_it_is_read) {
  vl_core *core = open_core();
  watched one = write_pipe(core, VL_WRITABLE);
  static char data[65536];
  size_t total;
  vl_record record;

  total = fill(one.near);
  CHECK_EQ(vl_descriptor_write(core, one.near, "x", 1), 0);
  check_quiet(core);
  for (size_t left = total; left > 0; left -= left < sizeof(data) ? left : sizeof(data))
    receive_bytes(one.far, data, left < sizeof(data) ? left : sizeof(data));
  record = wait_for(core, one.key, VL_OP_POLL);
  CHECK_EQ(record.result, VL_WRITABLE);
  CHECK_EQ(vl_descriptor_write(core, one.near, "x", 1), 1);
  end(core, &one);
  close_fd(one.far);
  close_core(core);
}

TEST(a_closed_reader_is_noticed) {
  vl_core *core = open_core();
  watched one = write_pipe(core, VL_READABLE);
  vl_record record;

  check_quiet(core);
  close_fd(one.far);
  record = wait_for(core, one.key, VL_OP_POLL);
  CHECK_EQ(record.result, UV_EBADF); /* POLLERR */
  check_quiet(core);
  CHECK_EQ(vl_descriptor_write(core, one.near, "x", 1), UV_EPIPE);
  CHECK_EQ(vl_poll_events(core, one.key, VL_READABLE), 0); /* the handle lives */
  record = wait_for(core, one.key, VL_OP_POLL);
  CHECK_EQ(record.result, UV_EBADF);
  end(core, &one);
  close_core(core);
}

/* -- descriptors that are none, or no more ---------------------------------------------------- */

TEST(h6_closed_under_the_watch) {
  vl_core *core = open_core();
  watched one = read_pipe(core);
  vl_record record;

  close_fd(one.near); /* before the first turn */
  record = wait_for(core, one.key, VL_OP_POLL);
  CHECK_EQ(record.result, UV_EBADF);
  CHECK_EQ(vl_poll_events(core, one.key, VL_RECEIVE), VL_ERR_STALE);
  check_quiet(core);
  close_fd(one.far);
  settle(core);
  close_core(core);
}

TEST(h6_closed_under_the_watch_and_the_number_used_again) {
  vl_core *core = open_core();
  watched one = read_pipe(core);
  int fds[2];
  vl_record record;

  check_quiet(core); /* registered */
  close_fd(one.near);
  CHECK_EQ(pipe(fds), 0);
  CHECK_EQ(fds[0], one.near);
  CHECK_EQ(vl_poll_open(core, fds[0]), UV_EEXIST);
  send_text(fds[1], "new");
  check_quiet(core); /* epoll has forgotten the old file, and knows nothing of the new one */
  CHECK_EQ(vl_poll_events(core, one.key, VL_RECEIVE), 0); /* the same events, registered anew */
  record = wait_for(core, one.key, VL_OP_READ);
  check_read(core, &record, one.key, "new");
  end(core, &one);
  close_fd(fds[1]);
  close_fd(one.far);
  close_core(core);
}

TEST(what_epoll_does_not_watch_is_refused) {
  vl_core *core = open_core();
  int fd = open("/dev/null", O_RDWR);

  CHECK_EQ(vl_poll_open(core, fd), UV_EPERM);
  CHECK_EQ(vl_descriptor_write(core, fd, "x", 1), 1);
  CHECK_EQ(vl_descriptor_write(core, -1, "x", 1), UV_EBADF);
  CHECK_EQ(vl_poll_open(core, -1), UV_EBADF);
  CHECK_EQ(vl_core_close(core), 0);
  CHECK_EQ(vl_descriptor_write(core, fd, "x", 1), VL_ERR_CLOSED);
  vl_core_free(core);
  close_fd(fd);
}

/* -- fork ---------------------------------------------------------------------------------------- */

typedef struct {
  vl_core *core;
  watched one;
} inherited;

static void drop_inherited(void *argument) {
  inherited *all = argument;

  vl_core_abandon(all->core);
  CHECK_EQ(vl_poll_events(all->core, all->one.key, 0), VL_ERR_FOREIGN);
  CHECK_EQ(vl_handle_close(all->core, all->one.key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_descriptor_write(all->core, all->one.far, "x", 1), VL_ERR_FOREIGN);
  close_fd(all->one.near);
}

static void read_inherited(void *argument) {
  inherited *all = argument;
  vl_record record;

  vl_core_abandon(all->core);
  CHECK_EQ(vl_core_adopt(all->core), 0);
  send_text(all->one.far, "child");
  record = wait_for(all->core, all->one.key, VL_OP_READ);
  check_read(all->core, &record, all->one.key, "child");
  CHECK_EQ(vl_handle_close(all->core, all->one.key), 0);
  close_fd(all->one.near);
}

TEST(h11_a_child_does_not_disturb_its_parents_reader) {
  inherited all = {open_core(), {0, 0, 0}};
  vl_record record;

  all.one = read_pipe(all.core);
  check_quiet(all.core);
  CHECK_EQ(in_child(drop_inherited, &all), 0);
  CHECK_EQ(in_child(read_inherited, &all), 0);
  send_text(all.one.far, "parent");
  record = wait_for(all.core, all.one.key, VL_OP_READ);
  check_read(all.core, &record, all.one.key, "parent");
  end(all.core, &all.one);
  close_fd(all.one.far);
  close_core(all.core);
}

const test_case reader_tests[] = {
    CASE(bytes_are_read_and_then_the_end_once),
    CASE(all_that_is_in_a_pipe_comes_before_its_end),
    CASE(h4_one_grant_a_poll),
    CASE(nothing_is_lost_without_memory),
    CASE(what_another_has_read_is_nothing),
    CASE(not_watched_is_not_read),
    CASE(a_reset_socket_gives_its_bytes_and_its_error),
    CASE(bytes_beside_an_error_are_read_first),
    CASE(a_terminals_hangup_is_an_error),
    CASE(one_watch_serves_both_directions),
    CASE(after_the_end_it_is_still_watched_for_writing),
    CASE(a_full_pipe_takes_nothing_until_it_is_read),
    CASE(a_closed_reader_is_noticed),
    CASE(h6_closed_under_the_watch),
    CASE(h6_closed_under_the_watch_and_the_number_used_again),
    CASE(what_epoll_does_not_watch_is_refused),
    CASE(h11_a_child_does_not_disturb_its_parents_reader),
    END_OF_CASES,
};
