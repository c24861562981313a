/* TCP echo server in C on libuv: the floor under every loop in the echo benchmark.
 *
 * It does what a server on any of the loops cannot avoid: one read and one write a
 * message, through uv_read_start() and uv_try_write(), with the rest of a partial
 * write queued by uv_write().  Takes the same road as the servers of
 * echo_server.py: prints its port on stdout and ends when stdin is closed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum { RECEIVE_BYTES = 64 * 1024, BACKLOG = 1024 };

typedef struct {
  uv_write_t request;
  char data[];
} queued_write;

/* One buffer serves all connections: it is used up before the next read. */
static char received[RECEIVE_BYTES];

static void check(int code, const char *what) {
  if (code >= 0) return;
  fprintf(stderr, "floor: %s: %s\n", what, uv_strerror(code));
  exit(1);
}

static void *allocate(size_t size) {
  void *memory = malloc(size);
  if (memory == NULL) {
    fputs("floor: out of memory\n", stderr);
    exit(1);
  }
  return memory;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
  (void)handle;
  (void)suggested;
  *buffer = uv_buf_init(received, RECEIVE_BYTES);
}

static void on_close(uv_handle_t *handle) { free(handle); }

static void on_written(uv_write_t *request, int status) {
  (void)status; /* a failure shows in the reads of the same connection */
  free(request->data);
}

static void on_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer) {
  if (size < 0) {
    uv_close((uv_handle_t *)stream, on_close);
    return;
  }
  if (size == 0) return;
  uv_buf_t rest = uv_buf_init(buffer->base, (unsigned int)size);
  int written = uv_try_write(stream, &rest, 1);
  if (written == size) return;
  if (written < 0 && written != UV_EAGAIN) {
    uv_close((uv_handle_t *)stream, on_close);
    return;
  }
  size_t left = (size_t)(size - (written > 0 ? written : 0));
  queued_write *queued = allocate(sizeof *queued + left);
  queued->request.data = queued;
  memcpy(queued->data, buffer->base + ((size_t)size - left), left);
  rest = uv_buf_init(queued->data, (unsigned int)left);
  if (uv_write(&queued->request, stream, &rest, 1, on_written) != 0) {
    free(queued);
    uv_close((uv_handle_t *)stream, on_close);
  }
}

static void on_connection(uv_stream_t *listener, int status) {
  check(status, "listen");
  uv_tcp_t *client = allocate(sizeof *client);
  check(uv_tcp_init(listener->loop, client), "uv_tcp_init");
  check(uv_accept(listener, (uv_stream_t *)client), "uv_accept");
  check(uv_tcp_nodelay(client, 1), "uv_tcp_nodelay");
  check(uv_read_start((uv_stream_t *)client, on_alloc, on_read), "uv_read_start");
}

static void on_stdin(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer) {
  (void)buffer;
  if (size < 0) uv_stop(stream->loop);
}

int main(void) {
  uv_loop_t *loop = uv_default_loop();
  uv_tcp_t listener;
  uv_pipe_t input;
  struct sockaddr_in address;
  int length = sizeof address;
  check(uv_ip4_addr("127.0.0.1", 0, &address), "uv_ip4_addr");
  check(uv_tcp_init(loop, &listener), "uv_tcp_init");
  check(uv_tcp_bind(&listener, (const struct sockaddr *)&address, 0), "bind");
  check(uv_listen((uv_stream_t *)&listener, BACKLOG, on_connection), "listen");
  check(uv_tcp_getsockname(&listener, (struct sockaddr *)&address, &length), "getsockname");
  check(uv_pipe_init(loop, &input, 0), "uv_pipe_init");
  check(uv_pipe_open(&input, 0), "stdin is not a pipe");
  check(uv_read_start((uv_stream_t *)&input, on_alloc, on_stdin), "stdin");
  printf("%d\n", (int)ntohs(address.sin_port));
  fflush(stdout);
  check(uv_run(loop, UV_RUN_DEFAULT) >= 0 ? 0 : -1, "uv_run");
  return 0;
}
