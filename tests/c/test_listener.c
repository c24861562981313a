/* test_listener.c: accepting (H8), and the selector's descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

static int64_t open_listener(vl_core *core, int *fd, int *port, int batch) {
  int64_t key;

  *fd = listen_tcp(port);
  key = vl_listener_open(core, VL_STREAM_TCP, *fd, batch);
  CHECK_GT(key, 0);
  return key;
}

TEST(an_accepted_connection_is_a_stream_with_an_address) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  int client = connect_tcp(port);
  struct sockaddr_in address;
  struct sockaddr_in expected;
  socklen_t size = sizeof(expected);
  const char *place;
  int64_t length;
  vl_record record = wait_for(core, listener, VL_OP_ACCEPT);
  int64_t stream = record.result;
  int accepted = vl_handle_fileno(core, stream);

  CHECK_GT(stream, 0);
  CHECK_EQ(record.aux % 8, 0);
  place = vl_slab_segment(core, record.segment) + record.aux;
  memcpy(&length, place, sizeof(length));
  CHECK_EQ(length, sizeof(address));
  memcpy(&address, place + sizeof(length), sizeof(address));
  CHECK_EQ(getsockname(client, (struct sockaddr *)&expected, &size), 0);
  CHECK_EQ(address.sin_family, AF_INET);
  CHECK_EQ(address.sin_port, expected.sin_port);
  CHECK_EQ(address.sin_addr.s_addr, expected.sin_addr.s_addr);
  CHECK(fcntl(accepted, F_GETFL) & O_NONBLOCK);
  CHECK(fcntl(accepted, F_GETFD) & FD_CLOEXEC);
  CHECK_EQ(vl_stream_read_start(core, stream), 0);
  send_text(client, "hello");
  record = wait_for(core, stream, VL_OP_READ);
  check_read(core, &record, stream, "hello");
  close_core(core);
  check_end(client);
  close_fd(client);
  close_fd(fd);
}

TEST(h8_at_most_a_batch_per_poll) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 3);
  static const int EXPECTED[] = {3, 3, 1};
  int clients[7];
  vl_record record;

  for (int i = 0; i < 7; i++)
    clients[i] = connect_tcp(port);
  for (int turn = 0; turn < 3; turn++) {
    CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
    CHECK_EQ(tail_of(core) - head_of(core), EXPECTED[turn]);
    while (take(core, &record)) {
      CHECK_EQ(record.owner, listener);
      CHECK_GT(record.result, 0);
    }
  }
  check_quiet(core);
  CHECK_EQ(statistics_of(core).handles, 8);
  close_core(core);
  for (int i = 0; i < 7; i++)
    close_fd(clients[i]);
  close_fd(fd);
}

static void set_descriptor_limit(rlim_t limit) {
  struct rlimit limits;

  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  limits.rlim_cur = limit;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limits), 0);
}

TEST(h8_out_of_descriptors_is_reported_once_and_the_clients_wait) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  int clients[2] = {connect_tcp(port), connect_tcp(port)};
  struct rlimit limits;
  vl_record record;
  int lowest;
  int waits;

  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  lowest = dup(fd);
  close_fd(lowest);
  set_descriptor_limit((rlim_t)lowest);
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_EQ(record.result, UV_EMFILE);
  waits = faults.kernel_waits;
  CHECK_EQ(vl_core_poll(core, 20 * NS_PER_MS), 0); /* stopped: no busy loop, no second record */
  CHECK_LE(faults.kernel_waits - waits, 2);
  check_quiet(core);
  CHECK_EQ(faults.accepts, 1);
  CHECK_EQ(vl_listener_restart(core, listener), 0); /* still none */
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_EQ(record.result, UV_EMFILE);
  check_quiet(core);
  set_descriptor_limit(limits.rlim_cur);
  check_quiet(core); /* only vl_listener_restart() ends the pause */
  CHECK_EQ(vl_listener_restart(core, listener), 0);
  for (int i = 0; i < 2; i++) {
    record = wait_for(core, listener, VL_OP_ACCEPT);
    CHECK_GT(record.result, 0);
    CHECK_EQ(vl_stream_try_write(core, record.result, "hello", 5), 5);
  }
  close_core(core);
  for (int i = 0; i < 2; i++) {
    char received[5];

    receive_bytes(clients[i], received, 5); /* nobody was sent away */
    close_fd(clients[i]);
  }
  close_fd(fd);
}

TEST(h8_what_continues_and_what_stops) {
  static const int CONTINUE[] = {EINTR, ECONNABORTED, EPROTO, EINTR};
  static const int STOP[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM, EINVAL};
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  int client = connect_tcp(port);
  vl_record record;

  for (int i = 0; i < 4; i++)
    faults.accept_errors[i] = CONTINUE[i];
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_GT(record.result, 0);
  CHECK_EQ(faults.accept_error_next, 4);
  for (size_t i = 0; i < sizeof(STOP) / sizeof(STOP[0]); i++) {
    int next = connect_tcp(port);

    faults.accept_error_next = 0;
    memset(faults.accept_errors, 0, sizeof(faults.accept_errors));
    faults.accept_errors[0] = STOP[i];
    record = wait_for(core, listener, VL_OP_ACCEPT);
    CHECK_EQ(record.result, -STOP[i]);
    check_quiet(core);
    CHECK_EQ(vl_listener_restart(core, listener), 0);
    record = wait_for(core, listener, VL_OP_ACCEPT);
    CHECK_GT(record.result, 0);
    close_fd(next);
  }
  close_core(core);
  close_fd(client);
  close_fd(fd);
}

TEST(h8_a_listener_that_was_shut_down) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  vl_record record;
  int waits;

  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_EQ(record.result, UV_EINVAL);
  waits = faults.kernel_waits;
  CHECK_EQ(vl_core_poll(core, 20 * NS_PER_MS), 0);
  CHECK_LE(faults.kernel_waits - waits, 2);
  check_quiet(core);
  CHECK_EQ(vl_handle_close(core, listener), 0);
  close_core(core);
  close_fd(fd);
}

TEST(h8_a_connection_whose_server_has_closed_is_disposed_of) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  int client = connect_tcp(port);
  vl_record record;

  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(vl_handle_close(core, listener), 0);
  close_fd(fd);
  CHECK(take(core, &record));
  CHECK_EQ(record.owner, listener);
  /* The record holds a descriptor and a handle; its key is all that a disposer needs. */
  CHECK_EQ(vl_handle_fileno(core, listener), VL_ERR_STALE);
  CHECK_EQ(vl_handle_close(core, record.result), 0);
  check_end(client);
  settle(core);
  CHECK_EQ(statistics_of(core).handles, 0);
  close_core(core);
  close_fd(client);
}

TEST(h8_a_connection_that_cannot_be_opened_is_closed) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  int client = connect_tcp(port);
  int before = open_descriptors();
  vl_record record;

  faults.ioctl_error = EIO; /* uv_tcp_open() makes it non-blocking */
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_EQ(record.result, UV_EIO);
  CHECK_EQ(open_descriptors(), before);
  check_end(client);
  settle(core);
  close_fd(client);
  CHECK_EQ(vl_listener_restart(core, listener), 0);
  client = connect_tcp(port);
  faults.no_memory = true;
  record = wait_for(core, listener, VL_OP_ACCEPT);
  faults.no_memory = false;
  CHECK_EQ(record.result, UV_ENOMEM);
  CHECK_EQ(open_descriptors(), before);
  check_end(client);
  close_core(core);
  close_fd(client);
  close_fd(fd);
}

TEST(without_room_for_its_record_a_connection_stays_in_the_backlog) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  int peer;
  int64_t stream = open_stream(core, &peer);
  vl_record record;
  int client;

  set_frames(core, 1); /* the ring starts again at 0 only without frames: it fills up */
  for (int i = 0; i < VL_RING_SEGMENT_RECORDS; i++)
    CHECK_EQ(vl_stream_write(core, stream, i, "", 0), 0);
  for (int i = 0; i < VL_RING_SEGMENT_RECORDS; i++)
    CHECK_EQ(wait_for(core, stream, VL_OP_WRITE_DONE).aux, i);
  client = connect_tcp(port);
  faults.no_memory = true;
  CHECK_EQ(vl_core_poll(core, 0), 0);
  faults.no_memory = false;
  CHECK_EQ(faults.accepts, 0);
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_EQ(record.result, UV_ENOMEM);
  set_frames(core, 0);
  CHECK_EQ(vl_listener_restart(core, listener), 0);
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_GT(record.result, 0);
  close_core(core);
  close_fd(client);
  close_fd(peer);
  close_fd(fd);
}

TEST(what_a_listener_refuses) {
  vl_core *core = open_core();
  int fd;
  int port;
  int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

  CHECK_GE(file, 0);
  open_listener(core, &fd, &port, 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_listener_open(core, VL_STREAM_TCP, fd, 1), UV_EEXIST);
  CHECK_EQ(vl_listener_open(core, VL_STREAM_TCP, file, 1), UV_EPERM);
  CHECK_EQ(vl_listener_open(core, VL_STREAM_TCP, -1, 1), UV_EBADF);
  CHECK(is_open(file));
  faults.no_memory = true;
  CHECK_EQ(vl_listener_open(core, VL_STREAM_TCP, file, 1), UV_ENOMEM);
  faults.no_memory = false;
  CHECK_EQ(statistics_of(core).handles, 1);
  close_core(core);
  close_fd(file);
  close_fd(fd);
}

TEST(a_unix_listener) {
  vl_core *core = open_core();
  /* Abstract, numbered by the kernel: no file, and no name that two tests could share. */
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  socklen_t size = sizeof(address);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int clients[3];
  int64_t listener;
  int64_t length;
  vl_record record;

  CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof(address.sun_family)), 0);
  CHECK_EQ(listen(fd, 8), 0);
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &size), 0);
  listener = vl_listener_open(core, VL_STREAM_PIPE, fd, 8);
  CHECK_GT(listener, 0);
  for (int i = 0; i < 3; i++) {
    clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(clients[i], (struct sockaddr *)&address, size), 0);
  }
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  for (int i = 0; i < 3; i++) {
    CHECK(take(core, &record));
    CHECK_GT(record.result, 0);
    CHECK_EQ(record.aux % 8, 0); /* it is an int64_t that stands there */
    memcpy(&length, vl_slab_segment(core, record.segment) + record.aux, sizeof(length));
    CHECK_EQ(length, sizeof(address.sun_family)); /* a client without a name */
    CHECK_EQ(vl_stream_try_write(core, record.result, "x", 1), 1);
  }
  close_core(core);
  for (int i = 0; i < 3; i++)
    close_fd(clients[i]);
  close_fd(fd);
}

TEST(closing_a_listener_leaves_its_descriptor_listening) {
  vl_core *core = open_core();
  int fd;
  int port;
  int64_t listener = open_listener(core, &fd, &port, 8);
  int client;
  vl_record record;

  CHECK_EQ(vl_handle_close(core, listener), 0);
  client = connect_tcp(port);
  check_quiet(core);
  listener = vl_listener_open(core, VL_STREAM_TCP, fd, 8);
  record = wait_for(core, listener, VL_OP_ACCEPT);
  CHECK_GT(record.result, 0);
  close_core(core);
  close_fd(client);
  close_fd(fd);
}

TEST(the_selector_reports_while_its_descriptor_is_readable) {
  vl_core *core = open_core();
  struct epoll_event event = {.events = EPOLLIN};
  int inner = epoll_create1(EPOLL_CLOEXEC);
  int fds[2];
  char byte;
  int64_t key = vl_selector_open(core, inner);

  CHECK_GT(key, 0);
  CHECK_EQ(vl_selector_open(core, inner), UV_EEXIST);
  make_pair(fds);
  CHECK_EQ(epoll_ctl(inner, EPOLL_CTL_ADD, fds[0], &event), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  send_text(fds[1], "x");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_SELECTOR);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_SELECTOR); /* until it is read */
  receive_bytes(fds[0], &byte, 1);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  /* Its user may close what is watched: nothing but silence follows. */
  close_fd(fds[0]);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_handle_close(core, key), 0);
  close_core(core);
  CHECK(is_open(inner));
  close_fd(inner);
  close_fd(fds[1]);
}

const test_case listener_tests[] = {
    CASE(an_accepted_connection_is_a_stream_with_an_address),
    CASE(h8_at_most_a_batch_per_poll),
    CASE(h8_out_of_descriptors_is_reported_once_and_the_clients_wait),
    CASE(h8_what_continues_and_what_stops),
    CASE(h8_a_listener_that_was_shut_down),
    CASE(h8_a_connection_whose_server_has_closed_is_disposed_of),
    CASE(h8_a_connection_that_cannot_be_opened_is_closed),
    CASE(without_room_for_its_record_a_connection_stays_in_the_backlog),
    CASE(what_a_listener_refuses),
    CASE(a_unix_listener),
    CASE(closing_a_listener_leaves_its_descriptor_listening),
    CASE(the_selector_reports_while_its_descriptor_is_readable),
    END_OF_CASES,
};
