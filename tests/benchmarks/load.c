/* Load generator for the benchmarks and the demo (Linux: epoll, /proc).
 *
 * A Python client would be the bottleneck of every measurement here, so the
 * client is a C program that needs about a third of the CPU time of the fastest
 * server.  It is a closed loop: each connection sends a burst, waits until the
 * whole answer is there and has been checked, and sends the next one.
 *
 *   echo   a burst is --pipeline messages of --size bytes in one send().  Every
 *          message carries the connection's pattern and a running number, so a
 *          byte that is lost, doubled, reordered or sent to the wrong connection
 *          ends the run with an error.
 *   HTTP   (--http PATH) a burst is --pipeline keep-alive GET requests.  Each
 *          answer must have status 200, a Content-Length, and the same body.
 *
 * A run is: connect, warm up for --warmup seconds, wait for the last answer, read
 * the server's CPU time, measure for --seconds (or --messages), wait for the last
 * answer, read the CPU time again.  One line of JSON on stdout tells the result.
 * The whole run is bounded by --timeout seconds, whatever the server does.
 *
 * Exit status: 0 success, 1 the server answered wrongly or went away, 2 usage,
 * 3 the time limit passed.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  EXIT_WRONG = 1,
  EXIT_USAGE = 2,
  EXIT_TIMEOUT = 3,
  RECEIVE_BYTES = 256 * 1024,
  HEAD_BYTES = 16 * 1024,
  EVENTS = 1024,
  SEQUENCE_BYTES = 8, /* a message starts with its number if it is at least this long */
  LATENCY_STEPS = 16, /* histogram steps in each power of two: 6% resolution */
  LATENCY_BUCKETS = 64 * LATENCY_STEPS,
  SETTLE_MICROSECONDS = 2000, /* the server's way back into its poll after its last answer */
};

typedef struct {
  int port;
  size_t connections;
  size_t size;
  size_t pipeline;
  double warmup;
  double seconds;
  uint64_t messages; /* 0: until the seconds have passed */
  unsigned timeout;
  const char *path; /* NULL: echo */
  const char *body; /* expected body, NULL: that of the first answer */
  long server;      /* process whose CPU time is read, 0: none */
} options;

typedef struct {
  int fd;
  bool watches_output;
  size_t index;
  size_t sent;        /* bytes of the burst that the kernel has taken */
  size_t answers;     /* answers of the burst that are still missing */
  uint64_t sequence;  /* number of the next message to send */
  uint64_t expected;  /* number of the next message to come back */
  size_t position;    /* bytes of that message (or of that body) that have come */
  uint64_t started;   /* ns, start of the burst */
  unsigned char *burst;
  unsigned char *answer; /* echo: the message that should come back */
  char *head;            /* HTTP: start line and fields as far as they have come */
  size_t head_length;
  size_t body_length;
  bool in_body;
} connection;

typedef struct {
  uint64_t messages;
  uint64_t bytes_sent;
  uint64_t bytes_received;
  uint64_t nanoseconds;
} totals;

static options opt = {
    .port = 0,
    .connections = 10,
    .size = 1024,
    .pipeline = 1,
    .warmup = 0.5,
    .seconds = 1.0,
    .messages = 0,
    .timeout = 60,
    .path = NULL,
    .body = NULL,
    .server = 0,
};
static int poller = -1;
static connection *connections;
static char request[2048];
static size_t burst_bytes;
static char *body; /* HTTP: the body that every answer must have */
static size_t body_bytes;
static unsigned char *received;
static uint64_t histogram[LATENCY_BUCKETS];
static uint64_t longest;

/* State of the phase that runs. */
static totals now_counted;
static uint64_t issue_until; /* ns; no burst is started after this time */
static uint64_t issue_limit; /* no burst is started once so many messages were sent */
static uint64_t issued;
static size_t idle;

__attribute__((noreturn, format(printf, 2, 3))) static void die(int status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("load: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(status);
}

static void on_alarm(int number) {
  static const char text[] = "load: the time limit (--timeout) passed\n";
  (void)number;
  /* Only async-signal-safe calls are allowed here. */
  ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
  (void)written;
  _exit(EXIT_TIMEOUT);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count, size);
  if (memory == NULL) die(EXIT_WRONG, "out of memory");
  return memory;
}

static uint64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* CPU time of all threads of the server in ns, from the scheduler's accounting:
 * the first number in /proc/PID/task/TID/schedstat.  -1 if there is none. */
static int64_t server_cpu_ns(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%ld/task", opt.server);
  DIR *tasks = opt.server > 0 ? opendir(path) : NULL;
  if (tasks == NULL) return -1;
  int64_t sum = 0;
  for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
    if (!isdigit((unsigned char)entry->d_name[0])) continue;
    char file[384];
    snprintf(file, sizeof file, "/proc/%ld/task/%s/schedstat", opt.server, entry->d_name);
    FILE *stat = fopen(file, "re");
    uint64_t running = 0;
    if (stat == NULL || fscanf(stat, "%" SCNu64, &running) != 1) sum = -1;
    if (stat != NULL) fclose(stat);
    if (sum < 0) break;
    sum += (int64_t)running;
  }
  closedir(tasks);
  return sum;
}

static void count_latency(uint64_t ns) {
  if (ns > longest) longest = ns;
  if (ns < LATENCY_STEPS) ns = LATENCY_STEPS;
  unsigned exponent = 63U - (unsigned)__builtin_clzll(ns);
  size_t step = (size_t)((ns >> (exponent - 4U)) & (LATENCY_STEPS - 1));
  histogram[exponent * LATENCY_STEPS + step] += 1;
}

/* Upper end of the bucket that holds the given part of all latencies, in us. */
static double latency_us(double part) {
  uint64_t all = 0;
  for (size_t i = 0; i < LATENCY_BUCKETS; i++) all += histogram[i];
  uint64_t seen = 0;
  for (size_t i = 0; i < LATENCY_BUCKETS; i++) {
    seen += histogram[i];
    if (all > 0 && (double)seen >= part * (double)all) {
      double step = (double)(UINT64_C(1) << (i / LATENCY_STEPS)) / LATENCY_STEPS;
      return step * (double)(LATENCY_STEPS + i % LATENCY_STEPS + 1) / 1000.0;
    }
  }
  return 0.0;
}

static void watch(connection *c, int operation, bool output) {
  struct epoll_event event = {.events = EPOLLIN | (output ? (uint32_t)EPOLLOUT : 0U), .data = {.ptr = c}};
  if (epoll_ctl(poller, operation, c->fd, &event) != 0) die(EXIT_WRONG, "epoll_ctl: %s", strerror(errno));
  c->watches_output = output;
}

static void send_burst(connection *c) {
  while (c->sent < burst_bytes) {
    ssize_t n = send(c->fd, c->burst + c->sent, burst_bytes - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      if (!c->watches_output) watch(c, EPOLL_CTL_MOD, true);
      return;
    }
    if (n < 0) die(EXIT_WRONG, "connection %zu: send: %s", c->index, strerror(errno));
    c->sent += (size_t)n;
    now_counted.bytes_sent += (uint64_t)n;
  }
  if (c->watches_output) watch(c, EPOLL_CTL_MOD, false);
}

static void number_message(unsigned char *message, uint64_t number) {
  if (opt.size >= SEQUENCE_BYTES) memcpy(message, &number, SEQUENCE_BYTES);
}

static void start_burst(connection *c, uint64_t now) {
  if (opt.path == NULL) {
    for (size_t i = 0; i < opt.pipeline; i++) number_message(c->burst + i * opt.size, c->sequence++);
    number_message(c->answer, c->expected);
  }
  c->sent = 0;
  c->answers = opt.pipeline;
  c->started = now;
  issued += opt.pipeline;
  send_burst(c);
}

static void answer_is_complete(connection *c) {
  now_counted.messages += 1;
  c->position = 0;
  c->answers -= 1;
  if (c->answers > 0) return;
  uint64_t now = clock_ns();
  count_latency(now - c->started);
  if (c->sent < burst_bytes) die(EXIT_WRONG, "connection %zu: answered before it was asked", c->index);
  if (now < issue_until && issued < issue_limit) {
    start_burst(c, now);
  } else {
    idle += 1;
  }
}

static void take_echo(connection *c, const unsigned char *data, size_t size) {
  while (size > 0) {
    if (c->answers == 0) die(EXIT_WRONG, "connection %zu: %zu bytes too many came back", c->index, size);
    size_t part = opt.size - c->position;
    if (part > size) part = size;
    if (memcmp(data, c->answer + c->position, part) != 0) {
      die(EXIT_WRONG, "connection %zu: message %" PRIu64 " came back changed", c->index, c->expected);
    }
    data += part;
    size -= part;
    c->position += part;
    if (c->position == opt.size) {
      c->expected += 1;
      number_message(c->answer, c->expected);
      answer_is_complete(c);
    }
  }
}

static void read_head(connection *c, size_t head_length) {
  c->head[head_length] = '\0';
  if (strncmp(c->head, "HTTP/1.1 200", 12) != 0) {
    c->head[strcspn(c->head, "\r\n")] = '\0';
    die(EXIT_WRONG, "connection %zu: the answer is \"%s\", not 200", c->index, c->head);
  }
  const char *field = strcasestr(c->head, "\r\ncontent-length:");
  if (field == NULL) die(EXIT_WRONG, "connection %zu: the answer has no Content-Length", c->index);
  c->body_length = (size_t)strtoull(field + strlen("\r\ncontent-length:"), NULL, 10);
  if (body == NULL) {
    body = allocate(c->body_length + 1, 1);
    body_bytes = SIZE_MAX; /* being learned, see take_body() */
  } else if (body_bytes != SIZE_MAX && c->body_length != body_bytes) {
    die(EXIT_WRONG, "connection %zu: a body of %zu bytes, not %zu", c->index, c->body_length, body_bytes);
  }
  c->in_body = true;
}

static size_t take_head(connection *c, const unsigned char *data, size_t size) {
  size_t part = HEAD_BYTES - 1 - c->head_length;
  if (part > size) part = size;
  memcpy(c->head + c->head_length, data, part);
  size_t before = c->head_length;
  c->head_length += part;
  char *end = memmem(c->head, c->head_length, "\r\n\r\n", 4);
  if (end == NULL) {
    if (c->head_length == HEAD_BYTES - 1) die(EXIT_WRONG, "connection %zu: a head without end", c->index);
    return part;
  }
  size_t head_length = (size_t)(end - c->head) + 4;
  read_head(c, head_length);
  c->head_length = 0;
  return head_length - before;
}

static size_t take_body(connection *c, const unsigned char *data, size_t size) {
  size_t part = c->body_length - c->position;
  if (part > size) part = size;
  /* The first exchange is made on connection 0 alone, so it alone teaches the body. */
  if (body_bytes == SIZE_MAX) {
    memcpy(body + c->position, data, part);
  } else if (memcmp(body + c->position, data, part) != 0) {
    die(EXIT_WRONG, "connection %zu: a body with other content", c->index);
  }
  c->position += part;
  return part;
}

static void take_http(connection *c, const unsigned char *data, size_t size) {
  for (;;) {
    if (c->in_body) {
      size_t part = take_body(c, data, size);
      data += part;
      size -= part;
      if (c->position == c->body_length) {
        if (body_bytes == SIZE_MAX) body_bytes = c->body_length;
        c->in_body = false;
        answer_is_complete(c);
      }
    }
    if (size == 0) return;
    if (c->answers == 0) die(EXIT_WRONG, "connection %zu: %zu bytes nobody asked for", c->index, size);
    if (!c->in_body) {
      size_t part = take_head(c, data, size);
      data += part;
      size -= part;
      if (size == 0 && !(c->in_body && c->body_length == 0)) return;
    }
  }
}

static void receive(connection *c) {
  /* One recv() a readiness event: a full buffer makes epoll report it again. */
  ssize_t n = recv(c->fd, received, RECEIVE_BYTES, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n < 0) die(EXIT_WRONG, "connection %zu: recv: %s", c->index, strerror(errno));
  if (n == 0) die(EXIT_WRONG, "connection %zu: the server closed it", c->index);
  now_counted.bytes_received += (uint64_t)n;
  if (opt.path == NULL) {
    take_echo(c, received, (size_t)n);
  } else {
    take_http(c, received, (size_t)n);
  }
}

/* Runs bursts on the first count connections for the given time or until so many
 * messages were sent (0: no limit), and returns when every answer is there. */
static totals run_phase(size_t count, double seconds, uint64_t messages) {
  struct epoll_event events[EVENTS];
  uint64_t start = clock_ns();
  memset(&now_counted, 0, sizeof now_counted);
  memset(histogram, 0, sizeof histogram);
  longest = 0;
  issued = 0;
  idle = 0;
  issue_until = messages > 0 ? UINT64_MAX : start + (uint64_t)(seconds * 1e9);
  issue_limit = messages > 0 ? messages : UINT64_MAX;
  for (size_t i = 0; i < count; i++) start_burst(&connections[i], clock_ns());
  while (idle < count) {
    /* Without a time limit of its own: the alarm bounds the whole run. */
    int ready = epoll_wait(poller, events, EVENTS, -1);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) die(EXIT_WRONG, "epoll_wait: %s", strerror(errno));
    for (int i = 0; i < ready; i++) {
      connection *c = events[i].data.ptr;
      if (events[i].events & EPOLLOUT) send_burst(c);
      if (events[i].events & ~(uint32_t)EPOLLOUT) receive(c);
    }
  }
  now_counted.nanoseconds = clock_ns() - start;
  return now_counted;
}

static void open_connection(connection *c, size_t index) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->index = index;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->fd < 0) die(EXIT_WRONG, "socket: %s", strerror(errno));
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0) {
    die(EXIT_WRONG, "connection %zu: connect: %s", index, strerror(errno));
  }
  int on = 1;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  /* Non-blocking from here on; connect() blocked, so that a full backlog only waits. */
  if (fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0) die(EXIT_WRONG, "fcntl: %s", strerror(errno));
  watch(c, EPOLL_CTL_ADD, false);

  c->burst = allocate(burst_bytes, 1);
  if (opt.path == NULL) {
    c->answer = allocate(opt.size, 1);
    for (size_t i = 0; i < opt.size; i++) c->answer[i] = (unsigned char)((i * 31U + i / 251U + index * 7U) & 0xffU);
    for (size_t i = 0; i < opt.pipeline; i++) memcpy(c->burst + i * opt.size, c->answer, opt.size);
  } else {
    size_t length = strlen(request);
    for (size_t i = 0; i < opt.pipeline; i++) memcpy(c->burst + i * length, request, length);
    c->head = allocate(HEAD_BYTES, 1);
  }
}

static double number(const char *name, const char *text, double least, double most) {
  char *end = NULL;
  errno = 0;
  double value = strtod(text, &end);
  if (errno != 0 || end == text || *end != '\0' || !(value >= least && value <= most)) {
    die(EXIT_USAGE, "%s must be a number from %g to %g, not \"%s\"", name, least, most, text);
  }
  return value;
}

static void parse(int argc, char **argv) {
  for (int i = 1; i < argc; i += 2) {
    const char *name = argv[i];
    if (i + 1 >= argc) die(EXIT_USAGE, "%s needs a value", name);
    const char *value = argv[i + 1];
    if (strcmp(name, "--port") == 0) {
      opt.port = (int)number(name, value, 1, 65535);
    } else if (strcmp(name, "--connections") == 0) {
      opt.connections = (size_t)number(name, value, 1, 100000);
    } else if (strcmp(name, "--size") == 0) {
      opt.size = (size_t)number(name, value, 1, 64 << 20);
    } else if (strcmp(name, "--pipeline") == 0) {
      opt.pipeline = (size_t)number(name, value, 1, 10000);
    } else if (strcmp(name, "--warmup") == 0) {
      opt.warmup = number(name, value, 0, 3600);
    } else if (strcmp(name, "--seconds") == 0) {
      opt.seconds = number(name, value, 0.001, 3600);
    } else if (strcmp(name, "--messages") == 0) {
      opt.messages = (uint64_t)number(name, value, 1, 1e15);
    } else if (strcmp(name, "--timeout") == 0) {
      opt.timeout = (unsigned)number(name, value, 1, 7200);
    } else if (strcmp(name, "--http") == 0) {
      opt.path = value;
    } else if (strcmp(name, "--body") == 0) {
      opt.body = value;
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
  sigaction(SIGALRM, &action, NULL);
  alarm(opt.timeout);

  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  if (opt.path != NULL) {
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: keep-alive\r\n\r\n",
                          opt.path, opt.port);
    if (length < 0 || (size_t)length >= sizeof request) die(EXIT_USAGE, "--http: the path is too long");
    burst_bytes = (size_t)length * opt.pipeline;
    if (opt.body != NULL) {
      body = allocate(strlen(opt.body) + 1, 1);
      body_bytes = strlen(opt.body);
      memcpy(body, opt.body, body_bytes);
    }
  } else {
    burst_bytes = opt.size * opt.pipeline;
  }
  received = allocate(RECEIVE_BYTES, 1);
  connections = allocate(opt.connections, sizeof *connections);
  poller = epoll_create1(EPOLL_CLOEXEC);
  if (poller < 0) die(EXIT_WRONG, "epoll_create1: %s", strerror(errno));
  for (size_t i = 0; i < opt.connections; i++) open_connection(&connections[i], i);

  run_phase(1, 0.0, opt.pipeline);
  run_phase(opt.connections, opt.warmup, 0);
  usleep(SETTLE_MICROSECONDS);
  int64_t before = server_cpu_ns();
  totals result = run_phase(opt.connections, opt.seconds, opt.messages);
  usleep(SETTLE_MICROSECONDS);
  int64_t after = server_cpu_ns();

  if (opt.path == NULL && (result.bytes_received != result.bytes_sent || result.bytes_sent != result.messages * opt.size)) {
    die(EXIT_WRONG, "%" PRIu64 " bytes sent, %" PRIu64 " received for %" PRIu64 " messages", result.bytes_sent,
        result.bytes_received, result.messages);
  }
  printf("{\"connections\": %zu, \"pipeline\": %zu, \"messages\": %" PRIu64 ", \"bytes_sent\": %" PRIu64
         ", \"bytes_received\": %" PRIu64 ", \"seconds\": %.6f, ",
         opt.connections, opt.pipeline, result.messages, result.bytes_sent, result.bytes_received,
         (double)result.nanoseconds / 1e9);
  printf("\"burst_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}, ", latency_us(0.5), latency_us(0.99),
         (double)longest / 1000.0);
  if (before < 0 || after < 0) {
    printf("\"server_cpu_ns\": null}\n");
  } else {
    printf("\"server_cpu_ns\": %" PRId64 "}\n", after - before);
  }
  return 0;
}
