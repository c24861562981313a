/* support.h: what most tests begin with. */
#ifndef VELOCILOOP_CTEST_SUPPORT_H
#define VELOCILOOP_CTEST_SUPPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* For libuv's error codes; its functions are the shim's business. */
#include <uv.h>

#include "shim.h"

#define NS_PER_MS INT64_C(1000000)
#define WITHOUT_LIMIT INT64_C(-1)
#define MEBIBYTE ((size_t)1 << 20)
#define KIBIBYTE ((size_t)1 << 10)

/* -- cores ------------------------------------------------------------------------ */

vl_core *open_core(void);
/* Closes and frees it; nothing of it may be left over. */
void close_core(vl_core *core);
vl_statistics statistics_of(vl_core *core);

/* Consumes the next record, as Python does: the cursor moves before the dispatch. */
bool take(vl_core *core, vl_record *record);
/* Polls until there is a record and consumes it; it must be of this handle and operation. */
vl_record wait_for(vl_core *core, int64_t owner, int32_t op);
/* A few turns without waiting: nobody may have got a record. */
void check_quiet(vl_core *core);
/* Turns without waiting, until the closing handles are gone. */
void settle(vl_core *core);
/* Has a dispatch frame on the stack, or not. */
void set_frames(vl_core *core, int64_t frames);
int64_t head_of(vl_core *core);
int64_t tail_of(vl_core *core);
const char *bytes_of(vl_core *core, const vl_record *record);
/* The same of a READ record that may be announced only: received then, and record->result set. */
const char *received(vl_core *core, vl_record *record);
void check_read(vl_core *core, const vl_record *record, int64_t owner, const char *expected);

/* -- descriptors -------------------------------------------------------------------- */

/* Two connected Unix sockets; [1] is the test's end, blocking. */
void make_pair(int fds[2]);
/* Two connected TCP sockets. */
void make_tcp_pair(int fds[2]);
int listen_tcp(int *port);
int connect_tcp(int port);
/* Opens a stream on one end of a new pair; the other end goes to *peer. */
int64_t open_stream(vl_core *core, int *peer);
/* The same, and reading. */
int64_t open_reader(vl_core *core, int *peer);
void close_fd(int fd);
bool is_open(int fd);
void send_text(int fd, const char *text);
void send_bytes(int fd, const char *data, size_t size);
void receive_bytes(int fd, char *data, size_t size);
/* The peer has closed: nothing is left to read. */
void check_end(int fd);
/* Closes so that the peer gets ECONNRESET. */
void reset_connection(int fd);
/* Fills what the kernel holds for a stream and queues one request more, which blocks. */
void block_writing(vl_core *core, int64_t key, int64_t token);
/* Bytes that depend on their position and on seed. */
void fill_pattern(char *data, size_t size, size_t position, unsigned seed);

int64_t now_ns(void);

#endif
