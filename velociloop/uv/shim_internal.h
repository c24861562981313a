/* shim_internal.h: what the shim's files share.
 *
 * Ownership
 *   vl_core      owned by the caller of vl_core_new(); outlives its uv_loop_t, so
 *                that a late vl_core_wake() finds its lock (H11).
 *   vl_handle    owned by the core from handle_new() on; freed only in libuv's
 *                close callback (H8), or after it, by the core's late list, if its
 *                end or error still waits there.  A key names it until handle_close().
 *   vl_write     owned by libuv from uv_write() or uv_udp_send() to its callback, then by the core's
 *                late list if the ring had no room, then freed.
 *   written data owned by the caller, who keeps it until VL_OP_WRITE_DONE.
 */
#ifndef VELOCILOOP_SHIM_INTERNAL_H
#define VELOCILOOP_SHIM_INTERNAL_H

/* -std=c11 hides what is not ISO C: uv.h needs POSIX's part, shim_os.c accept4 and dup3. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <uv.h>

#include "shim.h"

/* H4: at most this much is read from one stream in one poll; a UDP handle that has received as much is
 * given no room for another datagram. */
#define VL_GRANT_BYTES 65536u

typedef struct vl_handle vl_handle;
typedef struct vl_write vl_write;

/* A completion that must not be lost though the ring had no room (no memory). */
typedef struct vl_late {
  struct vl_late *next;
  vl_record record;
  void *memory;             /* freed once the record is in the ring; or NULL */
  bool *used;               /* true while this is in the list; or NULL */
} vl_late;

typedef enum {
  VL_KIND_STREAM,
  VL_KIND_LISTENER,
  VL_KIND_SELECTOR,
  VL_KIND_POLL,
  VL_KIND_SIGNAL,
  VL_KIND_UDP,
  VL_KIND_PROCESS
} vl_kind;

struct vl_handle {
  vl_core *core;
  int64_t key;
  uint64_t granted_in;      /* the poll that gave this stream or UDP handle its grant (H4) */
  size_t received;          /* UDP: bytes of slab that it has taken in that poll */
  uint32_t asked;           /* UDP: datagrams that the last recvmmsg() had room for */
  uint32_t came;            /* UDP: and those that it has brought */
  bool drained;             /* UDP: were those all that there were? */
  vl_late late;             /* for an end of stream or error found without room */
  vl_kind kind;
  int stream_kind;          /* VL_STREAM_...: its own, or that of accepted ones */
  int batch;                /* listener: accepts a poll */
  int events;               /* poll: VL_READABLE, ..., that are watched */
  uint32_t last_read;       /* bytes of the last read of a stream (see shim_stream.c), or of the last datagram */
  bool late_used;
  union {
    uv_handle_t any;
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
    uv_udp_t udp;
    uv_poll_t poll;
    uv_signal_t signal;
    uv_process_t process;
  } uv;                     /* last: only the part of its type is allocated */
};

struct vl_write {
  union {
    uv_req_t any;
    uv_write_t stream;
    uv_udp_send_t udp;
  } req;
  vl_handle *handle;
  int64_t key;
  int64_t token;
  vl_late late;
};

typedef struct {
  vl_handle *handle;        /* NULL: free */
  uint32_t generation;
  uint32_t next_free;       /* index + 1 of the next free slot; 0: none */
} vl_slot;

typedef struct {
  vl_record **segments;
  int32_t count;
  int64_t words[VL_WORDS];
} vl_ring;

typedef struct {
  char **segments;
  int32_t count;
  int32_t segment;          /* where the next bytes go */
  uint32_t offset;
  uint64_t used;            /* bytes handed out since the last reset */
  int32_t peak;             /* highest segment touched since the last trim */
  uint32_t resets;          /* since the last trim */
} vl_slab;

/* The fine timer (H7): a timerfd on Linux, absent elsewhere. */
typedef struct {
  int fd;                   /* -1: none */
  bool fired;               /* since it was last set */
  uint64_t deadline;        /* by uv_hrtime(), in nanoseconds; 0: not set */
  uv_poll_t poll;           /* initialised if fd >= 0 */
} vl_fine_timer;

/* Where single waits are registered (shim_waits.c). */
typedef struct {
  bool open;                /* made with the first wait */
  int fd;
  uv_poll_t poll;           /* both from then on */
} vl_waits;

struct vl_core {
  uv_loop_t loop;
  uv_async_t wake;
  uv_timer_t timeout;
  vl_fine_timer fine;
  vl_waits waits;
  uv_mutex_t entry_lock;    /* one entry at a time (H11) */
  uv_mutex_t wake_lock;     /* wake against close */
  vl_ring ring;
  vl_slab slab;
  char *datagrams;          /* where recvmmsg() puts them (shim_udp.c); NULL at first */
  vl_slot *slots;
  uint32_t slot_count;
  uint32_t free_slot;       /* index + 1; 0: none */
  vl_late *late_first;
  vl_late *late_last;
  vl_statistics statistics;
  uint64_t serial;          /* number of the current poll */
  bool polling;             /* under entry_lock */
  bool closed;              /* under both locks */
  bool foreign;             /* set by vl_core_abandon() while the process has one thread */
  bool selector_ready;
};

/* -- entering (shim_entry.c) -------------------------------------------------- */

/* Takes entry_lock, or returns why not. */
int core_enter(vl_core *core);
void core_leave(vl_core *core);

/* -- ring and slab (shim_ring.c) ---------------------------------------------- */

void ring_free(vl_core *core);
/* Reuses ring and slab from the start.  Only when nothing refers to them (H1). */
void ring_reset(vl_core *core);
/* 0 if the next ring_push() cannot fail; UV_ENOMEM. */
int ring_reserve(vl_core *core);
int ring_push(vl_core *core, const vl_record *record);
/* Pushes, or keeps the record in the late list; never fails. */
void ring_push_or_keep(vl_core *core, vl_late *late, const vl_record *record);
/* Moves late records into the ring as far as there is room. */
void ring_take_late(vl_core *core);

/* size bytes of slab, at least min; NULL if there is no memory.  Nothing is taken
 * until slab_commit(). */
char *slab_offer(vl_core *core, size_t min, size_t *size);
void slab_commit(vl_core *core, size_t size, int32_t *segment, int64_t *offset);
/* How much one stream may read now (H4). */
size_t slab_grant(const vl_core *core);

/* -- handles (shim_handle.c) --------------------------------------------------- */

/* Allocates a handle with room for the libuv type; NULL: no memory. */
vl_handle *handle_new(vl_core *core, vl_kind kind, uv_handle_type type);
/* Gives an initialised handle its key. */
int64_t handle_register(vl_handle *handle);
vl_handle *handle_find(const vl_core *core, int64_t key, vl_kind kind);
vl_handle *handle_find_any(const vl_core *core, int64_t key);
/* Ends the key and calls uv_close(). */
void handle_close(vl_handle *handle);
/* Closes a handle that was initialised but has no key. */
void handle_discard(vl_handle *handle);
/* Tells the owner of the end or failure of a handle; never fails. */
void handle_report(vl_handle *handle, int32_t op, int64_t result);
/* Closes a handle whose descriptor the kernel refuses, and tells its owner why. */
void handle_lose(vl_handle *handle, int err);
void handle_table_free(vl_core *core);

/* -- before the kernel (shim_submit.c) -------------------------------------------- */

/* H6: "libuv aborts when an epoll_ctl it defers fails".  Right before uv_run(): handles that
 * would have it abort are lost.  An error if a watcher of libuv's own would: then uv_run() must
 * not be called. */
int submit_check(vl_core *core);
/* Before the last turns, when only libuv's own watchers are left. */
void submit_forget_refused(vl_core *core);

/* -- giving descriptors to libuv (shim_adopt.c) ------------------------------------ */

/* Opens a handle of this kind and libuv type on fd, which is its own from then on, and closed on failure.
 * Returns its key. */
int64_t adopt(vl_core *core, vl_kind kind, uv_handle_type type, int fd, vl_handle **out);

/* -- requests (shim_request.c) ------------------------------------------------------ */

/* A request of this handle's; NULL: no memory. */
vl_write *request_new(vl_handle *handle, int64_t token);
/* What libuv said when it was given the request: an error ends it without a record. */
int request_given(vl_write *write, int err);
/* Reports it and frees it. */
void request_done(vl_write *write, int status);
/* A uv_buf_t's length is an unsigned int on Windows: what is beyond is not in it. */
uv_buf_t request_buffer(const char *data, size_t size);

/* -- streams (shim_stream.c) ---------------------------------------------------- */

/* Opens a stream on fd, which is closed on failure.  Returns its key. */
int64_t stream_adopt(vl_core *core, int kind, int fd);

/* -- datagrams (shim_udp.c) -------------------------------------------------------- */

int udp_init(vl_handle *handle);
void udp_free(vl_core *core);

/* -- watching a descriptor (shim_poll.c) ------------------------------------------ */

/* Makes a handle of this kind on a uv_poll_t, not started and without a key.  The descriptor
 * stays the caller's.  An error, or 0 and *out. */
int poll_new(vl_core *core, vl_kind kind, int fd, vl_handle **out);
/* Starts it and gives it its key; on failure it is discarded. */
int64_t poll_register(vl_handle *handle, int events, uv_poll_cb callback);

/* -- single waits (shim_waits.c) ------------------------------------------------------ */

/* Around libuv's last turn. */
void waits_close(vl_core *core);
void waits_closed(vl_core *core);
/* In a forked child, before uv_loop_fork(): an instance of its own, in which nothing waits. */
int waits_renew(vl_core *core);

/* -- reading from it (shim_reader.c) ------------------------------------------------ */

/* Reads once from a readable descriptor, into a VL_OP_READ record.  False: no more is to be
 * read, the end or an error was reported. */
bool reader_receive(vl_handle *handle, int fd);

/* -- signals (shim_signal.c) ---------------------------------------------------- */

/* In a forked child: stops a signal handle.  The core need not be entered. */
void signal_abandon(vl_handle *handle);

/* -- the operating system (shim_os.c) ------------------------------------------- */

/* The same file as a descriptor above 2, or an error; the given one is closed
 * if it was not.  H6: libuv never closes 0-2, and asserts. */
int os_move_above_stdio(int fd);
/* A higher number for the same file; the given one is closed, on failure too. */
int os_renumber(int fd);
int os_close(int fd);
/* A connection, non-blocking and close-on-exec, or an error. */
int os_accept(int listener, void *address, size_t room, size_t *size);
int os_shutdown_write(int fd);
/* read(2): bytes, 0: the end, UV_EAGAIN: nothing now, or an error.  Of a socket only where os_reads_sockets(). */
int64_t os_read(int fd, char *out, size_t room);
bool os_reads_sockets(void);
/* send(2), or sendto(2) with an address: bytes, UV_EAGAIN: none now, or an error; what uv_try_write() and
 * uv_udp_try_send() make of it.  Only where os_reads_sockets(). */
int64_t os_send(int fd, const char *data, size_t size, const void *address, size_t address_size);
/* write(2): bytes, 0: none now, or an error. */
int64_t os_write(int fd, const char *data, size_t size);
/* getsockname(2); returns the length. */
int os_sockname(int fd, char *out, int room);
/* What a signal does: read into, and set from, an object of VL_ACTION_BYTES. */
int os_signal_action(int signum, void *out);
int os_signal_set_action(int signum, const void *action);
/* Whether it is neither SIG_DFL nor SIG_IGN. */
bool os_signal_is_caught(const void *action);
/* Whether both call the same function. */
bool os_signal_is_same(const void *action, const void *other);
/* Blocks all signals in this thread, and puts back what it did before. */
int os_signals_block(void *before);
int os_signals_restore(const void *before);
/* SO_REUSEADDR. */
int os_get_reuse_address(int fd, int *value);
int os_set_reuse_address(int fd, int value);
/* Occupies descriptors 0-2 as far as they are free. */
int os_hold_stdio(int held[3]);
void os_release_stdio(int held[3]);
/* Both once a process, around its first uv_loop_init(): see shim_os.c.  An error, if not. */
int os_guard_fork_before(void);
int os_guard_fork_after(void);
/* 0 if so many descriptors more can be opened. */
int os_check_room(int count);
/* 0 if the kernel would accept a registration of fd with libuv's backend. */
int os_check_descriptor(const uv_loop_t *loop, int fd);
/* Has libuv's backend watch fd for these events (of poll(2)); is_new: it did not before.  UV_ENOTSUP, if the
 * kernel would, but only libuv knows how. */
int os_watch(const uv_loop_t *loop, int fd, unsigned int events, bool is_new);
/* 0 if libuv's backend descriptor is still the event queue that libuv watches fd with
 * (for readability). */
int os_check_backend(const uv_loop_t *loop, int fd);
/* Gives libuv another backend, with a number above this one, which watches nothing.  The
 * old descriptor is not touched: by now it may be somebody else's. */
int os_replace_backend(uv_loop_t *loop, int above);
/* Single waits (shim_os_waits.c): an instance, or UV_ENOTSUP where there is none. */
int os_waits_open(void);
int os_waits_arm(int waits, int fd, int64_t token);
int os_waits_forget(int waits, int fd);
/* The tokens of what is ready, at most 64: their number, or an error. */
int os_waits_take(int waits, int64_t tokens[], int room);
/* Puts a new one in the place of one that is shared with the parent process. */
int os_waits_replace(int fd);
/* A fine timer's descriptor, or UV_ENOTSUP where there is none. */
int os_fine_timer_open(void);
/* Fires once after so many nanoseconds; 0: never. */
int os_fine_timer_set(int fd, int64_t nanoseconds);
/* Puts a new timer in the place of one that is shared with the parent process. */
int os_fine_timer_replace(int fd);
/* Between true and false, children that this thread forks inherit descriptors 0-2 only.  An
 * error (UV_ENOTSUP) if that cannot be had. */
int os_seal_children(bool on);
char *os_pages_new(size_t size);
void os_pages_free(char *pages, size_t size);
/* Gives the memory back; the addresses stay valid and read as anything. */
void os_pages_release(char *pages, size_t size);

#endif
