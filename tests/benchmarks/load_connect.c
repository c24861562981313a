/* Load generator for short connections (Linux): connect, a byte each way, close.
 *
 * A closed loop of --connections slots.  Each opens a connection, sends one byte, waits
 * until the same byte is back, closes, and begins again.  Warm-up, measuring, the line of
 * JSON and the exit status are those of load.c.
 *
 * The client closes first, so its ports stay in TIME_WAIT: MOST_CONNECTIONS of them, in all,
 * are fewer than the system has for one server's port.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "load_common.h"

enum { MOST_CONNECTIONS = 20000, EVENTS = 256 };

typedef struct {
  int fd;
  uint64_t started; /* ns */
  unsigned char byte;
} slot;

typedef struct {
  int port;
  size_t connections;
  double warmup;
  double seconds;
  unsigned timeout;
  long server;
} options;

static options opt = {.port = 0, .connections = 10, .warmup = 0.5, .seconds = 1.0, .timeout = 60, .server = 0};
static int poller = -1;
static uint64_t opened;

static void open_connection(slot *s, unsigned char byte) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  s->started = clock_ns();
  s->byte = byte;
  s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (s->fd < 0) die(EXIT_WRONG, "socket: %s", strerror(errno));
  if (connect(s->fd, (const struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) {
    die(EXIT_WRONG, "connect: %s", strerror(errno));
  }
  struct epoll_event event = {.events = EPOLLOUT, .data = {.ptr = s}};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &event) != 0) die(EXIT_WRONG, "epoll_ctl: %s", strerror(errno));
  opened += 1;
}

static void send_byte(slot *s) {
  if (send(s->fd, &s->byte, 1, MSG_NOSIGNAL) != 1) die(EXIT_WRONG, "send: %s", strerror(errno));
  struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = s}};
  if (epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &event) != 0) die(EXIT_WRONG, "epoll_ctl: %s", strerror(errno));
}

/* Whether the byte is back; the connection is closed then. */
static bool take_byte(slot *s) {
  unsigned char got[2];
  ssize_t n = recv(s->fd, got, sizeof got, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (n < 0) die(EXIT_WRONG, "recv: %s", strerror(errno));
  if (n == 0) die(EXIT_WRONG, "the server closed a connection before it answered");
  if (n != 1 || got[0] != s->byte) die(EXIT_WRONG, "the byte came back changed");
  if (close(s->fd) != 0) die(EXIT_WRONG, "close: %s", strerror(errno));
  count_latency(clock_ns() - s->started);
  return true;
}

/* Runs for the given time; returns how many connections were made and closed. */
static uint64_t run_phase(slot *slots, double seconds) {
  struct epoll_event events[EVENTS];
  memset(histogram, 0, sizeof histogram);
  longest = 0;
  uint64_t until = clock_ns() + (uint64_t)(seconds * 1e9);
  uint64_t done = 0;
  size_t busy = opt.connections;
  for (size_t i = 0; i < opt.connections; i++) open_connection(&slots[i], (unsigned char)i);
  while (busy > 0) {
    int ready = epoll_wait(poller, events, EVENTS, -1);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) die(EXIT_WRONG, "epoll_wait: %s", strerror(errno));
    for (int i = 0; i < ready; i++) {
      slot *s = events[i].data.ptr;
      if (events[i].events == EPOLLOUT) {
        send_byte(s);
      } else if (take_byte(s)) {
        done += 1;
        if (clock_ns() < until && opened < MOST_CONNECTIONS) {
          open_connection(s, (unsigned char)(s->byte + 1));
        } else {
          busy -= 1;
        }
      }
    }
  }
  return done;
}

static void parse(int argc, char **argv) {
  for (int i = 1; i < argc; i += 2) {
    const char *name = argv[i];
    if (i + 1 >= argc) die(EXIT_USAGE, "%s needs a value", name);
    const char *value = argv[i + 1];
    if (strcmp(name, "--port") == 0) {
      opt.port = (int)number(name, value, 1, 65535);
    } else if (strcmp(name, "--connections") == 0) {
      opt.connections = (size_t)number(name, value, 1, 1000);
    } else if (strcmp(name, "--warmup") == 0) {
      opt.warmup = number(name, value, 0, 60);
    } else if (strcmp(name, "--seconds") == 0) {
      opt.seconds = number(name, value, 0.001, 60);
    } else if (strcmp(name, "--timeout") == 0) {
      opt.timeout = (unsigned)number(name, value, 1, 7200);
    } else if (strcmp(name, "--server") == 0) {
      opt.server = (long)number(name, value, 1, 1 << 30);
    } else {
      die(EXIT_USAGE, "unknown option %s", name);
    }
  }
  if (opt.port == 0) die(EXIT_USAGE, "--port is missing");
}

int main(int argc, char **argv) {
  parse(argc, argv);
  struct sigaction action = {.sa_handler = on_alarm};
  if (sigaction(SIGALRM, &action, NULL) != 0) die(EXIT_WRONG, "sigaction: %s", strerror(errno));
  alarm(opt.timeout);
  raise_descriptor_limit();
  slot *slots = allocate(opt.connections, sizeof *slots);
  poller = epoll_create1(EPOLL_CLOEXEC);
  if (poller < 0) die(EXIT_WRONG, "epoll_create1: %s", strerror(errno));
  run_phase(slots, opt.warmup);
  usleep(SETTLE_MICROSECONDS);
  int64_t before = server_cpu_ns(opt.server);
  uint64_t start = clock_ns();
  uint64_t done = run_phase(slots, opt.seconds);
  double seconds = (double)(clock_ns() - start) / 1e9;
  usleep(SETTLE_MICROSECONDS);
  int64_t after = server_cpu_ns(opt.server);
  free(slots);
  printf("{\"connections\": %zu, \"pipeline\": 1, \"messages\": %" PRIu64 ", \"seconds\": %.6f, ", opt.connections, done,
         seconds);
  print_costs(before, after);
  return 0;
}
