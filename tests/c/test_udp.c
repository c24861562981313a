/* test_udp.c: datagrams (H14): what is received, how much of it in a poll, and what is sent. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

#define LARGEST 65507 /* what IPv4 leaves of 65,535 bytes */
#define IN_SIZE sizeof(struct sockaddr_in)

static struct sockaddr_in name_of(int fd) {
  struct sockaddr_in name;
  socklen_t size = sizeof(name);

  CHECK_EQ(getsockname(fd, (struct sockaddr *)&name, &size), 0);
  return name;
}

/* A blocking UDP socket on a free loopback port. */
static int make_udp(struct sockaddr_in *name) {
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

  CHECK_GE(fd, 0);
  CHECK_EQ(bind(fd, (struct sockaddr *)&any, sizeof(any)), 0);
  *name = name_of(fd);
  return fd;
}

static int64_t open_udp(vl_core *core, struct sockaddr_in *name) {
  int64_t key = vl_udp_open(core, make_udp(name));

  CHECK_GT(key, 0);
  return key;
}

static int64_t open_receiver(vl_core *core, struct sockaddr_in *name) {
  int64_t key = open_udp(core, name);

  CHECK_EQ(vl_udp_recv_start(core, key), 0);
  return key;
}

static void send_datagram(int fd, const void *data, size_t size, const struct sockaddr_in *to) {
  CHECK_EQ(sendto(fd, data, size, 0, (const struct sockaddr *)to, sizeof(*to)), size);
}

static void check_datagram(vl_core *core, const vl_record *record, const void *data, size_t size,
                           const struct sockaddr_in *from) {
  const char *place = vl_slab_segment(core, record->segment) + record->aux;
  int64_t length;
  struct sockaddr_in sender;

  CHECK_EQ(record->op, VL_OP_DATAGRAM);
  CHECK_EQ(record->result, size);
  CHECK_LE(record->aux + VL_DATAGRAM_HEADER + record->result, VL_SLAB_SEGMENT_BYTES);
  memcpy(&length, place, sizeof(length));
  CHECK_EQ(length, sizeof(sender));
  memcpy(&sender, place + sizeof(length), sizeof(sender));
  CHECK_EQ(sender.sin_family, AF_INET);
  CHECK_EQ(sender.sin_port, from->sin_port);
  CHECK_EQ(sender.sin_addr.s_addr, from->sin_addr.s_addr);
  CHECK(memcmp(place + VL_DATAGRAM_HEADER, data, size) == 0);
}

static void receive_text(int fd, const char *expected) {
  char received[64];

  CHECK_EQ(recv(fd, received, sizeof(received), 0), strlen(expected));
  CHECK(memcmp(received, expected, strlen(expected)) == 0);
}

static int64_t try_send(vl_core *core, int64_t key, const char *text, const struct sockaddr_in *to) {
  return vl_udp_try_send(core, key, text, strlen(text), (const char *)to, to == NULL ? 0 : sizeof(*to));
}

static int queue(vl_core *core, int64_t key, int64_t token, const char *text, const struct sockaddr_in *to) {
  return vl_udp_send(core, key, token, text, strlen(text), (const char *)to, to == NULL ? 0 : sizeof(*to));
}

/* -- receiving -------------------------------------------------------------------- */

TEST(h14_a_datagram_keeps_its_bounds_and_its_sender) {
  static char large[LARGEST];
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  vl_record record;

  fill_pattern(large, sizeof(large), 0, 9);
  send_datagram(peer, "one", 3, &here);
  send_datagram(peer, "two", 3, &here);
  send_datagram(peer, large, sizeof(large), &here);
  record = wait_for(core, key, VL_OP_DATAGRAM);
  check_datagram(core, &record, "one", 3, &there);
  record = wait_for(core, key, VL_OP_DATAGRAM);
  check_datagram(core, &record, "two", 3, &there);
  record = wait_for(core, key, VL_OP_DATAGRAM);
  check_datagram(core, &record, large, sizeof(large), &there);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(h14_an_empty_datagram_is_delivered_and_nothing_is_not) {
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  vl_record record;

  send_datagram(peer, "", 0, &here);
  send_datagram(peer, "x", 1, &here);
  send_datagram(peer, "", 0, &here);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK_EQ(tail_of(core), 3); /* libuv's call after the last one is not a datagram */
  for (size_t i = 0; i < 3; i++) {
    CHECK(take(core, &record));
    CHECK_EQ(record.owner, key);
    check_datagram(core, &record, "x", i & 1, &there);
  }
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(h14_an_ipv6_sender_has_its_whole_address) {
  vl_core *core = open_core();
  struct sockaddr_in6 name = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  struct sockaddr_in6 sender;
  socklen_t size = sizeof(name);
  int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  int64_t length;
  int64_t key;
  vl_record record;
  const char *place;

  CHECK_EQ(bind(fd, (struct sockaddr *)&name, size), 0);
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&name, &size), 0);
  key = vl_udp_open(core, fd);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_udp_recv_start(core, key), 0);
  CHECK_EQ(vl_udp_try_send(core, key, "self", 4, (const char *)&name, sizeof(name)), 4);
  record = wait_for(core, key, VL_OP_DATAGRAM);
  CHECK_EQ(record.result, 4);
  place = vl_slab_segment(core, record.segment) + record.aux;
  memcpy(&length, place, sizeof(length));
  CHECK_EQ(length, sizeof(sender));
  memcpy(&sender, place + sizeof(length), sizeof(sender));
  CHECK(memcmp(&sender, &name, sizeof(sender)) == 0);
  CHECK(memcmp(place + VL_DATAGRAM_HEADER, "self", 4) == 0);
  close_core(core);
}

TEST(h4_a_handle_takes_64_kib_and_one_datagram_more_in_a_poll) {
  enum { COUNT = 10, EACH = 10000, A_POLL = 7 /* 6 have less than 64 KiB */ };
  static char data[EACH];
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  vl_record record;
  int got = 0;

  for (int i = 0; i < COUNT; i++)
    send_datagram(peer, data, sizeof(data), &here);
  /* on_alloc()'s refusal (UV_ENOBUFS) is no record and ends nothing: the watcher stays armed. */
  for (int polls = 1; got < COUNT; polls++) {
    CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
    while (take(core, &record)) {
      check_datagram(core, &record, data, sizeof(data), &there);
      CHECK_EQ(record.owner, key);
      got++;
    }
    CHECK_EQ(got, polls * A_POLL < COUNT ? polls * A_POLL : COUNT);
  }
  CHECK_EQ(statistics_of(core).slab_segments, 1);
  close_core(core);
  close_fd(peer);
}

TEST(h4_a_flood_of_datagrams_does_not_keep_a_stream_waiting) {
  enum { COUNT = 100, MOST = 41 /* 1, 20 and 20: libuv's "count" is 32, and the last batch may go beyond */ };
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  int far;
  int64_t stream = open_reader(core, &far);
  int datagrams = 0;
  int bytes = 0;
  vl_record record;

  CHECK_EQ(vl_core_poll(core, 0), 0);
  for (int i = 0; i < COUNT; i++)
    send_datagram(peer, "flood", 5, &here);
  send_text(far, "me too");
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  while (take(core, &record)) {
    if (record.owner == key)
      datagrams++;
    else if (record.owner == stream)
      bytes += (int)record.result;
  }
  CHECK_EQ(datagrams, MOST);
  CHECK_EQ(bytes, 6);
  close_core(core);
  close_fd(peer);
  close_fd(far);
}

/* A batch that was not full leaves nothing to ask for; larger ones make the next batch smaller (H4). */
TEST(h14_batches_follow_the_size_of_the_last_datagram) {
  enum { LARGE = 30000, COUNT = 6 };
  static char large[LARGE];
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  vl_record record;

  for (int i = 0; i < COUNT; i++)
    send_datagram(peer, large, sizeof(large), &here);
  for (int got = 0; got < COUNT;) {
    int before = got;

    CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
    while (take(core, &record)) {
      check_datagram(core, &record, large, sizeof(large), &there);
      CHECK_EQ(record.owner, key);
      got++;
    }
    CHECK_EQ(got - before, 3); /* 64 KiB, and one datagram more */
  }
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

/* Each is copied to a place that has room for it, in the next segment if it must. */
TEST(h14_batches_of_many_sockets_fill_more_than_a_segment) {
  enum { MANY = 24, LARGE = 60000 };
  static char large[LARGE];
  vl_core *core = open_core();
  struct sockaddr_in here[MANY], there;
  int64_t keys[MANY];
  int peer = make_udp(&there);
  int got = 0;
  vl_record record;

  for (int i = 0; i < MANY; i++) {
    keys[i] = open_receiver(core, &here[i]);
    fill_pattern(large, sizeof(large), 0, (unsigned)i);
    send_datagram(peer, large, sizeof(large), &here[i]);
  }
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  while (take(core, &record))
    for (int i = 0; i < MANY; i++)
      if (record.owner == keys[i]) {
        fill_pattern(large, sizeof(large), 0, (unsigned)i);
        check_datagram(core, &record, large, sizeof(large), &there);
        got++;
      }
  CHECK_EQ(got, MANY);
  CHECK_EQ(statistics_of(core).slab_segments, 2);
  close_core(core);
  close_fd(peer);
}

TEST(h14_5000_datagrams_all_arrive_in_constant_memory) {
  enum { TOTAL = 5000, BURST = 50 /* acknowledged, so that no socket buffer overflows */ };
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  vl_statistics statistics;

  for (int sent = 0; sent < TOTAL; sent += BURST) {
    for (int i = sent; i < sent + BURST; i++)
      send_datagram(peer, &i, sizeof(i), &here);
    for (int i = sent; i < sent + BURST; i++) {
      vl_record record = wait_for(core, key, VL_OP_DATAGRAM);

      check_datagram(core, &record, &i, sizeof(i), &there);
    }
    CHECK_EQ(try_send(core, key, "ack", &there), 3);
    receive_text(peer, "ack");
  }
  check_quiet(core);
  statistics = statistics_of(core);
  CHECK_EQ(statistics.records, TOTAL);
  CHECK_EQ(statistics.ring_segments, 1);
  CHECK_EQ(statistics.slab_segments, 1);
  CHECK_EQ(statistics.handles, 1);
  close_core(core);
  close_fd(peer);
}

TEST(stopping_loses_and_reorders_nothing) {
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  vl_record record;

  CHECK_EQ(vl_udp_recv_start(core, key), 0); /* twice is once */
  send_datagram(peer, "one", 3, &here);
  record = wait_for(core, key, VL_OP_DATAGRAM);
  CHECK_EQ(vl_udp_recv_stop(core, key), 0);
  CHECK_EQ(vl_udp_recv_stop(core, key), 0);
  send_datagram(peer, "two", 3, &here);
  check_quiet(core);
  CHECK_EQ(vl_udp_recv_start(core, key), 0);
  record = wait_for(core, key, VL_OP_DATAGRAM);
  check_datagram(core, &record, "two", 3, &there);
  close_core(core);
  close_fd(peer);
}

/* A handle connected to a port that nobody has. */
static int64_t open_refused(vl_core *core, bool error_queue) {
  struct sockaddr_in here, there;
  int closed = make_udp(&there);
  int fd = make_udp(&here);
  int on = 1;
  int64_t key;

  CHECK_EQ(connect(fd, (struct sockaddr *)&there, sizeof(there)), 0);
  if (error_queue)
    CHECK_EQ(setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof(on)), 0);
  close_fd(closed);
  key = vl_udp_open(core, fd);
  CHECK_GT(key, 0);
  CHECK_EQ(vl_udp_recv_start(core, key), 0);
  return key;
}

TEST(an_error_is_a_record_and_receiving_goes_on) {
  for (int error_queue = 0; error_queue < 2; error_queue++) {
    vl_core *core = open_core();
    int64_t key = open_refused(core, error_queue);
    struct sockaddr_in here = name_of(vl_handle_fileno(core, key));
    struct sockaddr_in remote;
    socklen_t size = sizeof(remote);
    vl_record record;
    int peer;

    CHECK_EQ(getpeername(vl_handle_fileno(core, key), (struct sockaddr *)&remote, &size), 0);
    for (int i = 0; i < 2; i++) {
      CHECK_EQ(try_send(core, key, "anybody?", NULL), 8);
      record = wait_for(core, key, VL_OP_DATAGRAM);
      CHECK_EQ(record.result, UV_ECONNREFUSED);
      check_quiet(core); /* once, with IP_RECVERR's queue too */
    }
    peer = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(bind(peer, (struct sockaddr *)&remote, sizeof(remote)), 0);
    send_datagram(peer, "late", 4, &here);
    record = wait_for(core, key, VL_OP_DATAGRAM);
    check_datagram(core, &record, "late", 4, &remote);
    close_core(core);
    close_fd(peer);
  }
}

/* -- sending ---------------------------------------------------------------------- */

TEST(what_the_kernel_takes_is_sent_at_once_datagrams) {
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_udp(core, &here);
  int peer = make_udp(&there);
  static char large[LARGEST + 1];

  CHECK_EQ(try_send(core, key, "hello", &there), 5);
  CHECK_EQ(try_send(core, key, "", &there), 0);
  receive_text(peer, "hello");
  receive_text(peer, "");
  CHECK_EQ(vl_udp_try_send(core, key, large, sizeof(large), (const char *)&there, IN_SIZE), UV_EMSGSIZE);
  CHECK_EQ(statistics_of(core).writes, 0);
  close_core(core);
  close_fd(peer);
}

TEST(an_address_must_be_one_and_fit_the_socket) {
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  struct sockaddr_storage wrong;
  int64_t key = open_udp(core, &here);
  int peer = make_udp(&there);
  int fd = make_udp(&here);
  int64_t connected;

  memset(&wrong, 0, sizeof(wrong));
  memcpy(&wrong, &there, sizeof(there));
  CHECK_EQ(vl_udp_try_send(core, key, "x", 1, (char *)&wrong, IN_SIZE - 1), UV_EINVAL);
  CHECK_EQ(vl_udp_try_send(core, key, "x", 1, (char *)&wrong, IN_SIZE + 1), UV_EINVAL);
  CHECK_EQ(vl_udp_try_send(core, key, "x", 1, (char *)&wrong, sizeof(wrong) + 1), UV_EINVAL);
  wrong.ss_family = AF_UNIX;
  CHECK_EQ(vl_udp_try_send(core, key, "x", 1, (char *)&wrong, IN_SIZE), UV_EINVAL);
  CHECK_EQ(vl_udp_send(core, key, 1, "x", 1, (char *)&wrong, IN_SIZE), UV_EINVAL);
  CHECK_EQ(try_send(core, key, "x", NULL), UV_EDESTADDRREQ);
  CHECK_EQ(queue(core, key, 1, "x", NULL), UV_EDESTADDRREQ);
  CHECK_EQ(connect(fd, (struct sockaddr *)&there, sizeof(there)), 0);
  connected = vl_udp_open(core, fd);
  CHECK_EQ(try_send(core, connected, "there", &there), 5); /* the kernel's answer, on Linux */
  receive_text(peer, "there");
  CHECK_EQ(try_send(core, connected, "mine", NULL), 4);
  receive_text(peer, "mine");
  CHECK_EQ(statistics_of(core).writes, 0);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(what_the_kernel_has_no_room_for_is_sent_later_in_order) {
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_receiver(core, &here);
  int peer = make_udp(&there);
  vl_record record;

  CHECK_EQ(vl_core_poll(core, 0), 0);
  faults.sendmsg_errors[0] = EAGAIN;
  faults.sendmsg_errors[1] = EAGAIN;
  CHECK_EQ(try_send(core, key, "one", &there), UV_EAGAIN);
  CHECK_EQ(queue(core, key, 1, "one", &there), 0);
  CHECK_EQ(statistics_of(core).writes, 1);
  CHECK_EQ(try_send(core, key, "two", &there), UV_EAGAIN); /* nothing overtakes it */
  CHECK_EQ(queue(core, key, 2, "two", &there), 0);
  for (int token = 1; token <= 2; token++) {
    record = wait_for(core, key, VL_OP_WRITE_DONE);
    CHECK_EQ(record.aux, token);
    CHECK_EQ(record.result, 0);
  }
  receive_text(peer, "one");
  receive_text(peer, "two");
  CHECK_EQ(try_send(core, key, "three", &there), 5);
  receive_text(peer, "three");
  CHECK_EQ(statistics_of(core).writes, 0);
  send_datagram(peer, "still here", 10, &here); /* it receives as before */
  record = wait_for(core, key, VL_OP_DATAGRAM);
  check_datagram(core, &record, "still here", 10, &there);
  check_quiet(core);
  close_core(core);
  close_fd(peer);
}

TEST(h8_queued_datagrams_end_each_with_their_own_status) {
  vl_core *core = open_core();
  struct sockaddr_in here, there;
  int64_t key = open_udp(core, &here);
  int peer = make_udp(&there);
  vl_record record;

  faults.sendmsg_errors[0] = EPERM;
  CHECK_EQ(queue(core, key, 1, "one", &there), 0);
  record = wait_for(core, key, VL_OP_WRITE_DONE);
  CHECK_EQ(record.aux, 1);
  CHECK_EQ(record.result, UV_EPERM);
  faults.sendmsg_errors[1] = EAGAIN;
  CHECK_EQ(queue(core, key, 2, "two", &there), 0);
  CHECK_EQ(queue(core, key, 3, "three", &there), 0);
  CHECK_EQ(vl_handle_close(core, key), 0);
  for (int token = 2; token <= 3; token++) {
    record = wait_for(core, key, VL_OP_WRITE_DONE);
    CHECK_EQ(record.aux, token);
    CHECK_EQ(record.result, UV_ECANCELED);
  }
  key = open_udp(core, &here);
  faults.no_memory = true;
  CHECK_EQ(queue(core, key, 4, "four", &there), UV_ENOMEM);
  faults.no_memory = false;
  CHECK_EQ(statistics_of(core).writes, 0);
  close_core(core);
  close_fd(peer);
}

/* -- opening, closing, keys ---------------------------------------------------------- */

TEST(a_udp_handle_leaves_the_sockets_options_alone) {
  vl_core *core = open_core();
  struct sockaddr_in here;
  int fd = make_udp(&here);
  int64_t key = vl_udp_open(core, fd);
  int reuse = -1;
  socklen_t size = sizeof(reuse);

  CHECK_EQ(vl_handle_fileno(core, key), fd);
  CHECK_EQ(getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, &size), 0);
  CHECK_EQ(reuse, 0);
  CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK);
  close_core(core);
  CHECK(!is_open(fd));
}

TEST(what_cannot_be_opened_as_udp_is_closed) {
  vl_core *core = open_core();
  struct sockaddr_in here;
  int fd = make_udp(&here);

  faults.ioctl_error = EIO;
  CHECK_EQ(vl_udp_open(core, fd), UV_EIO);
  CHECK(!is_open(fd));
  CHECK_EQ(vl_udp_open(core, fd), UV_EBADF);
  fd = make_udp(&here);
  faults.no_memory = true;
  CHECK_EQ(vl_udp_open(core, fd), UV_ENOMEM);
  faults.no_memory = false;
  CHECK(!is_open(fd));
  CHECK_EQ(statistics_of(core).handles, 0);
  settle(core);
  close_core(core);
  core = open_core();
  fd = make_udp(&here);
  CHECK_EQ(vl_core_close(core), 0);
  CHECK_EQ(vl_udp_open(core, fd), VL_ERR_CLOSED);
  CHECK(!is_open(fd));
  vl_core_free(core);
}

TEST(h6_a_udp_descriptor_is_moved_above_2) {
  vl_core *core = open_core();
  struct sockaddr_in here;
  int kept = dup(STDIN_FILENO);
  int fd;
  int64_t key;

  close_fd(STDIN_FILENO);
  fd = make_udp(&here);
  CHECK_EQ(fd, STDIN_FILENO);
  key = vl_udp_open(core, fd);
  CHECK_GT(vl_handle_fileno(core, key), STDERR_FILENO);
  CHECK_EQ(vl_handle_close(core, key), 0);
  settle(core);
  CHECK_EQ(dup2(kept, STDIN_FILENO), STDIN_FILENO);
  close_fd(kept);
  close_core(core);
}

TEST(a_udp_key_is_of_its_kind) {
  vl_core *core = open_core();
  struct sockaddr_in here;
  int64_t key = open_udp(core, &here);
  int far;
  int64_t stream = open_stream(core, &far);

  CHECK_EQ(vl_stream_read_start(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_stream_try_write(core, key, "x", 1), VL_ERR_STALE);
  CHECK_EQ(vl_udp_recv_start(core, stream), VL_ERR_STALE);
  CHECK_EQ(try_send(core, stream, "x", &here), VL_ERR_STALE);
  CHECK_EQ(vl_handle_close(core, key), 0);
  CHECK_EQ(vl_udp_recv_start(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_udp_recv_stop(core, key), VL_ERR_STALE);
  CHECK_EQ(try_send(core, key, "x", &here), VL_ERR_STALE);
  CHECK_EQ(queue(core, key, 1, "x", &here), VL_ERR_STALE);
  close_core(core);
  close_fd(far);
}

TEST(h6_a_udp_descriptor_closed_behind_the_loops_back) {
  for (int scene = 0; scene < 4; scene++) {
    vl_core *core = open_core();
    struct sockaddr_in here, there;
    int64_t key = open_udp(core, &here);
    int peer = make_udp(&there);
    vl_record record;

    if (scene > 0)
      CHECK_EQ(vl_udp_recv_start(core, key), 0);
    if (scene > 1) {
      CHECK_EQ(vl_core_poll(core, 0), 0);
      faults.sendmsg_errors[scene - 2] = EAGAIN;
      CHECK_EQ(queue(core, key, 7, "queued", &there), 0);
    }
    if (scene > 2)
      CHECK_EQ(vl_udp_recv_stop(core, key), 0);
    close_fd(vl_handle_fileno(core, key));
    if (scene == 0)
      CHECK_EQ(vl_udp_recv_start(core, key), 0);
    record = wait_for(core, key, VL_OP_DATAGRAM);
    CHECK_EQ(record.result, UV_EBADF);
    CHECK_EQ(vl_handle_close(core, key), VL_ERR_STALE);
    if (scene > 1) {
      record = wait_for(core, key, VL_OP_WRITE_DONE);
      CHECK_EQ(record.result, UV_ECANCELED);
    }
    settle(core);
    check_quiet(core);
    close_core(core);
    close_fd(peer);
  }
}

/* -- fork --------------------------------------------------------------------------- */

static struct forked {
  vl_core *core;
  int64_t key;
  struct sockaddr_in here, there;
} forked;

static void use_and_leave(void *argument) {
  struct forked *given = argument;

  vl_core_abandon(given->core);
  CHECK_EQ(try_send(given->core, given->key, "x", &given->there), VL_ERR_FOREIGN);
  CHECK_EQ(vl_udp_recv_stop(given->core, given->key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_handle_close(given->core, given->key), VL_ERR_FOREIGN);
}

static void adopt_and_close(void *argument) {
  struct forked *given = argument;
  vl_record record;

  vl_core_abandon(given->core);
  CHECK_EQ(vl_core_adopt(given->core), 0);
  CHECK_EQ(try_send(given->core, given->key, "child", &given->here), 5);
  record = wait_for(given->core, given->key, VL_OP_DATAGRAM);
  check_datagram(given->core, &record, "child", 5, &given->here);
  close_core(given->core);
}

TEST(h11_a_forked_child_leaves_the_parents_datagrams_alone) {
  int peer = make_udp(&forked.there);
  vl_record record;

  forked.core = open_core();
  forked.key = open_receiver(forked.core, &forked.here);
  CHECK_EQ(vl_core_poll(forked.core, 0), 0);
  CHECK_EQ(in_child(use_and_leave, &forked), 0);
  CHECK_EQ(in_child(adopt_and_close, &forked), 0);
  send_datagram(peer, "parent", 6, &forked.here);
  record = wait_for(forked.core, forked.key, VL_OP_DATAGRAM);
  check_datagram(forked.core, &record, "parent", 6, &forked.there);
  close_core(forked.core);
  close_fd(peer);
}

const test_case udp_tests[] = {
    CASE(h14_a_datagram_keeps_its_bounds_and_its_sender),
    CASE(h14_an_empty_datagram_is_delivered_and_nothing_is_not),
    CASE(h14_an_ipv6_sender_has_its_whole_address),
    CASE(h4_a_handle_takes_64_kib_and_one_datagram_more_in_a_poll),
    CASE(h4_a_flood_of_datagrams_does_not_keep_a_stream_waiting),
    CASE(h14_batches_follow_the_size_of_the_last_datagram),
    CASE(h14_batches_of_many_sockets_fill_more_than_a_segment),
    CASE(h14_5000_datagrams_all_arrive_in_constant_memory),
    CASE(stopping_loses_and_reorders_nothing),
    CASE(an_error_is_a_record_and_receiving_goes_on),
    CASE(what_the_kernel_takes_is_sent_at_once_datagrams),
    CASE(an_address_must_be_one_and_fit_the_socket),
    CASE(what_the_kernel_has_no_room_for_is_sent_later_in_order),
    CASE(h8_queued_datagrams_end_each_with_their_own_status),
    CASE(a_udp_handle_leaves_the_sockets_options_alone),
    CASE(what_cannot_be_opened_as_udp_is_closed),
    CASE(h6_a_udp_descriptor_is_moved_above_2),
    CASE(a_udp_key_is_of_its_kind),
    CASE(h6_a_udp_descriptor_closed_behind_the_loops_back),
    CASE(h11_a_forked_child_leaves_the_parents_datagrams_alone),
    END_OF_CASES,
};
