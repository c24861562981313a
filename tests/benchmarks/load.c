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
 *   --unix PATH   the same over a Unix socket; --udp 1: each message is a datagram
 *   -DLOAD_TLS    (another build, with OpenSSL) the same through TLS
 *   --active N    opens all --connections, but only the first N of them send
 *
 * A run is: connect, warm up for --warmup seconds, wait for the last answer, read
 * the server's CPU time, measure for --seconds (or --messages), wait for the last
 * answer, read the CPU time again.  One line of JSON on stdout tells the result.
 * The whole run is bounded by --timeout seconds, whatever the server does.
 *
 * Exit status: load_common.h.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#ifdef LOAD_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#include "load_common.h"

enum {
  RECEIVE_BYTES = 256 * 1024,
  HEAD_BYTES = 16 * 1024,
  EVENTS = 1024,
  SEQUENCE_BYTES = 8, /* a message starts with its number if it is at least this long */
};

typedef struct {
  int port;
  size_t connections;
  size_t active; /* connections that send; 0: all */
  size_t size;
  size_t pipeline;
  double warmup;
  double seconds;
  uint64_t messages; /* 0: until the seconds have passed */
  unsigned timeout;
  const char *path; /* NULL: echo */
  const char *unix_path; /* NULL: port of 127.0.0.1 */
  bool udp;
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
#ifdef LOAD_TLS
  SSL *tls;
#endif
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
    .active = 0,
    .size = 1024,
    .pipeline = 1,
    .warmup = 0.5,
    .seconds = 1.0,
    .messages = 0,
    .timeout = 60,
    .path = NULL,
    .unix_path = NULL,
    .udp = false,
    .body = NULL,
    .server = 0,
};
static int poller = -1;
#ifdef LOAD_TLS
static SSL_CTX *tls_context;
#endif
static connection *connections;
static char request[2048];
static size_t burst_bytes;
static char *body; /* HTTP: the body that every answer must have */
static size_t body_bytes;
static unsigned char *received;

/* State of the phase that runs. */
static totals now_counted;
static uint64_t issue_until; /* ns; no burst is started after this time */
static uint64_t issue_limit; /* no burst is started once so many messages were sent */
static uint64_t issued;
static size_t idle;

#ifdef LOAD_TLS
/* The result of an SSL call as send() and recv() give it. */
static ssize_t tls_result(connection *c, int n) {
  if (n > 0) return n;
  int error = SSL_get_error(c->tls, n);
  if (error == SSL_ERROR_ZERO_RETURN) return 0;
  /* Level-triggered epoll is enough: without read-ahead OpenSSL leaves further records in the socket. */
  errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
  return -1;
}

static ssize_t channel_send(connection *c, const void *data, size_t size) {
  ERR_clear_error();
  return tls_result(c, SSL_write(c->tls, data, (int)size));
}

static ssize_t channel_receive(connection *c, void *data, size_t size) {
  ERR_clear_error();
  return tls_result(c, SSL_read(c->tls, data, (int)size));
}

static void channel_open(connection *c) {
  if (tls_context == NULL) {
    tls_context = SSL_CTX_new(TLS_client_method());
    if (tls_context == NULL) die(EXIT_WRONG, "SSL_CTX_new failed");
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  }
  c->tls = SSL_new(tls_context);
  if (c->tls == NULL || SSL_set_fd(c->tls, c->fd) != 1) die(EXIT_WRONG, "SSL_new failed");
  if (SSL_connect(c->tls) != 1) die(EXIT_WRONG, "connection %zu: the TLS handshake failed", c->index);
}
#else
static ssize_t channel_send(connection *c, const void *data, size_t size) {
  return send(c->fd, data, size, MSG_NOSIGNAL);
}

static ssize_t channel_receive(connection *c, void *data, size_t size) { return recv(c->fd, data, size, 0); }

static void channel_open(connection *c) { (void)c; }
#endif

static void watch(connection *c, int operation, bool output) {
  struct epoll_event event = {.events = EPOLLIN | (output ? (uint32_t)EPOLLOUT : 0U), .data = {.ptr = c}};
  if (epoll_ctl(poller, operation, c->fd, &event) != 0) die(EXIT_WRONG, "epoll_ctl: %s", strerror(errno));
  c->watches_output = output;
}

static void send_burst(connection *c) {
  while (c->sent < burst_bytes) {
    ssize_t n = channel_send(c, c->burst + c->sent, burst_bytes - c->sent);
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
  ssize_t n = channel_receive(c, received, RECEIVE_BYTES);
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
  struct sockaddr_in internet = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
  internet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  struct sockaddr_un local = {.sun_family = AF_UNIX};
  const struct sockaddr *address = (const struct sockaddr *)&internet;
  socklen_t length = sizeof internet;
  if (opt.unix_path != NULL) {
    if (strlen(opt.unix_path) >= sizeof local.sun_path) die(EXIT_USAGE, "--unix: the path is too long");
    strcpy(local.sun_path, opt.unix_path);
    address = (const struct sockaddr *)&local;
    length = sizeof local;
  }
  c->index = index;
  c->fd = socket(address->sa_family, (opt.udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
  if (c->fd < 0) die(EXIT_WRONG, "socket: %s", strerror(errno));
  if (connect(c->fd, address, length) != 0) die(EXIT_WRONG, "connection %zu: connect: %s", index, strerror(errno));
  int on = 1;
  if (opt.unix_path == NULL && !opt.udp && setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) {
    die(EXIT_WRONG, "TCP_NODELAY: %s", strerror(errno));
  }
  channel_open(c);
  /* Non-blocking from here on; connect() blocked, so that a full backlog only waits. */
  if (fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0) die(EXIT_WRONG, "fcntl: %s", strerror(errno));
  watch(c, EPOLL_CTL_ADD, false);

  c->burst = allocate(burst_bytes, 1);
  if (opt.path == NULL) {
    c->answer = allocate(opt.size, 1);
    for (size_t i = 0; i < opt.size; i++) c->answer[i] = (unsigned char)((i * 31U + i / 251U + index * 7U) & 0xffU);
    for (size_t i = 0; i < opt.pipeline; i++) memcpy(c->burst + i * opt.size, c->answer, opt.size);
  } else {
    size_t request_bytes = strlen(request);
    for (size_t i = 0; i < opt.pipeline; i++) memcpy(c->burst + i * request_bytes, request, request_bytes);
    c->head = allocate(HEAD_BYTES, 1);
  }
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
    } else if (strcmp(name, "--active") == 0) {
      opt.active = (size_t)number(name, value, 1, 100000);
    } else if (strcmp(name, "--unix") == 0) {
      opt.unix_path = value;
    } else if (strcmp(name, "--udp") == 0) {
      opt.udp = number(name, value, 0, 1) > 0;
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
  if (opt.port == 0 && opt.unix_path == NULL) die(EXIT_USAGE, "--port is missing");
  if (opt.active == 0) opt.active = opt.connections;
  if (opt.active > opt.connections) die(EXIT_USAGE, "--active is more than --connections");
  if (opt.udp && (opt.pipeline > 1 || opt.size > 60000)) die(EXIT_USAGE, "--udp: one datagram of at most 60000 bytes at once");
}

int main(int argc, char **argv) {
  parse(argc, argv);
  struct sigaction action = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &action, NULL);
  alarm(opt.timeout);

  raise_descriptor_limit();
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
  run_phase(opt.active, opt.warmup, 0);
  usleep(SETTLE_MICROSECONDS);
  int64_t before = server_cpu_ns(opt.server);
  totals result = run_phase(opt.active, opt.seconds, opt.messages);
  usleep(SETTLE_MICROSECONDS);
  int64_t after = server_cpu_ns(opt.server);

  if (opt.path == NULL && (result.bytes_received != result.bytes_sent || result.bytes_sent != result.messages * opt.size)) {
    die(EXIT_WRONG, "%" PRIu64 " bytes sent, %" PRIu64 " received for %" PRIu64 " messages", result.bytes_sent,
        result.bytes_received, result.messages);
  }
  printf("{\"connections\": %zu, \"pipeline\": %zu, \"messages\": %" PRIu64 ", \"bytes_sent\": %" PRIu64
         ", \"bytes_received\": %" PRIu64 ", \"seconds\": %.6f, ",
         opt.connections, opt.pipeline, result.messages, result.bytes_sent, result.bytes_received,
         (double)result.nanoseconds / 1e9);
  print_costs(before, after);
  return 0;
}
