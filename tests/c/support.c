/* support.c: see support.h. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "support.h"

/* More turns than any test needs; the clock is alarm()'s. */
#define TURNS 10000

vl_core *open_core(void) {
  int error = 1;
  vl_core *core = vl_core_new(&error);

  CHECK_EQ(error, 0);
  CHECK(core != NULL);
  return core;
}

vl_statistics statistics_of(vl_core *core) {
  vl_statistics statistics;

  vl_core_statistics(core, &statistics);
  return statistics;
}

void close_core(vl_core *core) {
  vl_statistics left;

  CHECK_EQ(vl_core_close(core), 0);
  left = statistics_of(core);
  CHECK_EQ(left.handles, 0);
  CHECK_EQ(left.closing, 0);
  CHECK_EQ(left.writes, 0);
  vl_core_free(core);
}

void set_frames(vl_core *core, int64_t frames) {
  vl_core_words(core)[VL_WORD_FRAMES] = frames;
}

int64_t head_of(vl_core *core) {
  return vl_core_words(core)[VL_WORD_HEAD];
}

int64_t tail_of(vl_core *core) {
  return vl_core_words(core)[VL_WORD_TAIL];
}

bool take(vl_core *core, vl_record *record) {
  int64_t *words = vl_core_words(core);
  int64_t head = words[VL_WORD_HEAD];
  vl_record *segment;

  if (head == words[VL_WORD_TAIL])
    return false;
  segment = vl_ring_segment(core, (int32_t)(head / VL_RING_SEGMENT_RECORDS));
  CHECK(segment != NULL);
  *record = segment[head % VL_RING_SEGMENT_RECORDS];
  words[VL_WORD_HEAD] = head + 1;
  return true;
}

vl_record wait_for(vl_core *core, int64_t owner, int32_t op) {
  vl_record record;

  for (int i = 0; i < TURNS; i++) {
    if (take(core, &record)) {
      CHECK_EQ(record.op, op);
      CHECK_EQ(record.owner, owner);
      return record;
    }
    CHECK_GE(vl_core_poll(core, WITHOUT_LIMIT), 0);
  }
  check_failed(__FILE__, __LINE__, "a record comes");
}

void check_quiet(vl_core *core) {
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(head_of(core), tail_of(core));
    CHECK_EQ(vl_core_poll(core, 0) & VL_POLL_RECORDS, 0);
  }
}

void settle(vl_core *core) {
  for (int i = 0; i < TURNS && statistics_of(core).closing > 0; i++)
    CHECK_GE(vl_core_poll(core, 0), 0);
  CHECK_EQ(statistics_of(core).closing, 0);
}

const char *bytes_of(vl_core *core, const vl_record *record) {
  const char *segment = vl_slab_segment(core, record->segment);

  CHECK(segment != NULL);
  CHECK_LE(record->aux + record->result, VL_SLAB_SEGMENT_BYTES);
  return segment + record->aux;
}

const char *received(vl_core *core, vl_record *record) {
  static char room[65536];

  CHECK_EQ(record->op, VL_OP_READ);
  if (record->result != 0)
    return bytes_of(core, record);
  record->result = vl_stream_receive(core, record->owner, room, sizeof(room));
  CHECK_GT(record->result, 0);
  return room;
}

void check_read(vl_core *core, const vl_record *record, int64_t owner, const char *expected) {
  CHECK_EQ(record->op, VL_OP_READ);
  CHECK_EQ(record->owner, owner);
  CHECK_EQ(record->result, strlen(expected));
  CHECK(memcmp(bytes_of(core, record), expected, strlen(expected)) == 0);
}

/* -- descriptors -------------------------------------------------------------------- */

void make_pair(int fds[2]) {
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
}

int listen_tcp(int *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(address);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  CHECK_GE(fd, 0);
  CHECK_EQ(bind(fd, (struct sockaddr *)&address, size), 0);
  CHECK_EQ(listen(fd, 128), 0);
  CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &size), 0);
  *port = ntohs(address.sin_port);
  return fd;
}

int connect_tcp(int port) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  CHECK_GE(fd, 0);
  CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
  return fd;
}

void make_tcp_pair(int fds[2]) {
  int port;
  int listener = listen_tcp(&port);

  fds[1] = connect_tcp(port);
  fds[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  CHECK_GE(fds[0], 0);
  close_fd(listener);
}

int64_t open_stream(vl_core *core, int *peer) {
  int fds[2];
  int64_t key;

  make_pair(fds);
  *peer = fds[1];
  key = vl_stream_open(core, VL_STREAM_PIPE, fds[0]);
  CHECK_GT(key, 0);
  return key;
}

int64_t open_reader(vl_core *core, int *peer) {
  int64_t key = open_stream(core, peer);

  CHECK_EQ(vl_stream_read_start(core, key), 0);
  return key;
}

void close_fd(int fd) {
  CHECK_EQ(close(fd), 0);
}

bool is_open(int fd) {
  return fcntl(fd, F_GETFD) >= 0;
}

void send_text(int fd, const char *text) {
  send_bytes(fd, text, strlen(text));
}

void send_bytes(int fd, const char *data, size_t size) {
  while (size > 0) {
    ssize_t sent = write(fd, data, size);

    CHECK_GT(sent, 0);
    data += sent;
    size -= (size_t)sent;
  }
}

void receive_bytes(int fd, char *data, size_t size) {
  while (size > 0) {
    ssize_t got = read(fd, data, size);

    CHECK_GT(got, 0);
    data += got;
    size -= (size_t)got;
  }
}

void check_end(int fd) {
  char byte;

  CHECK_EQ(read(fd, &byte, 1), 0);
}

void reset_connection(int fd) {
  struct linger linger = {1, 0};

  CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
  close_fd(fd);
}

void block_writing(vl_core *core, int64_t key, int64_t token) {
  static const char zeros[65536];

  while (vl_stream_try_write(core, key, zeros, sizeof(zeros)) > 0) {
  }
  CHECK_EQ(vl_stream_try_write(core, key, zeros, 1), UV_EAGAIN);
  CHECK_EQ(vl_stream_write(core, key, token, zeros, sizeof(zeros)), 0);
}

void fill_pattern(char *data, size_t size, size_t position, unsigned seed) {
  for (size_t i = 0; i < size; i++) {
    size_t at = position + i;

    data[i] = (char)(unsigned char)((at ^ (at >> 8) ^ (at >> 16) ^ seed) & 0xffu);
  }
}

int64_t now_ns(void) {
  struct timespec now;

  CHECK_EQ(clock_gettime(CLOCK_MONOTONIC, &now), 0);
  return (int64_t)now.tv_sec * 1000 * NS_PER_MS + now.tv_nsec;
}
