/* speedups.h: what the files of velociloop._speedups share.
 *
 * The accelerator repeats, in C, what stands in Python beside it: scheduling/{callbacks,turn,dispatch}.py
 * and asyncio's own call_soon() and friends.  It has no behaviour of its own: wherever something was
 * replaced, is in debug mode, or is not exactly of the type that it knows (H3), it calls the Python code.
 *
 * Ownership
 *   speedups_state   the module's.  A type holds its module, an object its type: so a state pointer in an
 *                    object is good as long as the object.
 *   vl_core          owned by the cdata that the object holds beside the pointer (Core.pointer).
 *   vl_exports       static in velociloop.uv._ffi, which is never unloaded.
 *   PyObject *       in a struct or array: strong, unless the comment there says "borrowed".  A parameter is
 *                    borrowed, a result is new, unless the comment there says otherwise.
 */
#ifndef VELOCILOOP_SPEEDUPS_H
#define VELOCILOOP_SPEEDUPS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <structmember.h>

#include "../uv/shim.h"

#ifdef Py_GIL_DISABLED
#error "The accelerator relies on the GIL: setup.py leaves it out of free-threaded builds."
#endif

/* Method and attribute names, interned once: one field of speedups_state each. */
#define SPEEDUPS_NAMES(X)                                                                             \
  X(_cancelled) X(_run) X(_scheduled) X(_when) X(_process_events) X(_turn_in_python) X(append)        \
  X(before_wait) X(call_at) X(call_later) X(call_soon) X(context) X(monotonic) X(on_abandon)          \
  X(on_callback_end) X(on_polled) X(run_forever) X(select) X(time) X(_call_soon) X(get_debug)         \
  X(_timer_handle_cancelled) X(_run_once) X(_check_closed) X(enter_anew) X(on_read) X(data_received)    \
  X(call_soon_threadsafe) X(_write_to_self) X(acquire) X(release) X(cancel) X(_read_in_python)        \
  X(_dispatch_other) X(_data_received_failed) X(_after_try_write) X(_write_in_python)                 \
  X(_callback_end_in_python) X(get_buffer) X(buffer_updated) X(_receive_failed) X(_fill_in_python)    \
  X(_buffer_failed) X(_buffer_updated_failed) X(_interrupted) X(_deliver_rest) X(on_datagram)         \
  X(datagram_received) X(_datagram_in_python) X(_report_callback) X(_sendto_in_python)                \
  X(_send_failed) X(on_wait) X(fileno) X(recv) X(done) X(set_result) X(create_future)                 \
  X(_receive_in_python) X(_operation_failed) X(_not_armed) X(create_task) X(loop) X(name) X(Task) \
  X(__init__) X(__new__) X(__lt__) X(extend) X(_attach) X(_make_connection) X(_begin_reading)          \
  X(_begin_reading_in_python) X(on_accept) X(_accept_failed) X(_closed_meanwhile) X(_deliver_eof) \
  X(drain) X(_requeue_rest) X(__setattr__) X(__dict__) X(set_protocol) X(_open) X(_not_opened)

/* Slots of StreamTransport, without the leading underscore. */
#define STREAM_SLOTS(X)                                                                               \
  X(reading) X(buffered) X(held) X(read_context) X(protocol) X(scope) X(pointer) X(key) X(sending)    \
  X(empty_waiter) X(send) X(conn_lost) X(unsent_bytes) X(corked) X(corked_bytes) X(callback_writes)   \
  X(calm_callbacks) X(cork) X(wrote_in) X(high_water) X(phase) X(paused) X(sock_fd) X(raw_peername)

/* Slots of DatagramTransport, likewise. */
#define DATAGRAM_SLOTS(X)                                                                             \
  X(phase) X(reading) X(held) X(read_context) X(protocol) X(scope) X(pointer) X(key) X(send)          \
  X(address) X(connected) X(buffer) X(receivers)

/* And of SocketWaits. */
#define WAITS_SLOTS(X)                                                                                \
  X(pending) X(untried) X(watched) X(transports) X(others) X(loop) X(serial) X(unsupported) X(scope)

/* And of Listener. */
#define LISTENER_SLOTS(X) X(loop) X(protocol_factory) X(connect) X(context) X(state) X(starvation_reported)

/* What must be as it was found for the loop's C methods to serve a loop: looked up on its type, and on
 * asyncio's BaseEventLoop, which a patch may have been applied to. */
#define LOOP_METHODS 13

/* Offsets of slots in asyncio's objects. */
typedef struct {
  Py_ssize_t callback, args, cancelled, loop, source_traceback, repr, context;
  Py_ssize_t scheduled, when;   /* of TimerHandle */
} handle_slots;

typedef struct {
#define X(name) Py_ssize_t name;
  STREAM_SLOTS(X)
#undef X
} stream_slots;

typedef struct {
#define X(name) Py_ssize_t name;
  DATAGRAM_SLOTS(X)
#undef X
} datagram_slots;

typedef struct {
#define X(name) Py_ssize_t name;
  WAITS_SLOTS(X)
#undef X
} waits_slots;

typedef struct {
#define X(name) Py_ssize_t name;
  LISTENER_SLOTS(X)
#undef X
} listener_slots;

/* Of Wait, without underscores. */
typedef struct {
  Py_ssize_t fd, token, future, operation, argument;
} wait_slots;

/* A class of owners that C serves (speedups_module.c). */
typedef struct {
  PyTypeObject *type;           /* NULL until it is registered */
  PyObject *method_name;        /* borrowed: a name of the state's */
  PyObject *method;             /* what the dispatcher would call, as it was found */
  unsigned int version;         /* of the type, when that was last seen to be so */
} served_class;

typedef struct {
  const vl_exports *uv;         /* NULL until configure() */
  PyObject *report;             /* (handle, exception): words it as Handle._run() does */
  PyObject *loop_base;          /* the type LoopBase */
  PyObject *scope_type;         /* the type CallbackScope */

  PyTypeObject *handle_type;    /* asyncio.Handle */
  PyTypeObject *timer_type;     /* asyncio.TimerHandle */
  handle_slots slot;
  /* What these types had when this module was made, and the type versions for which that was seen to be so still. */
  PyObject *handle_run, *handle_init, *handle_new, *handle_cancel;
  PyObject *timer_run, *timer_init, *timer_new, *timer_less, *timer_cancel;
  unsigned int handle_version, timer_version;
  PyTypeObject *fast_timer_type; /* our TimerHandle: asyncio's with a cancel() in C */

  /* From 3.14 on call_soon_threadsafe() returns this; NULL before. */
  PyTypeObject *safe_type;      /* asyncio's _ThreadSafeHandle */
  PyObject *safe_run, *safe_init, *safe_new;
  unsigned int safe_version;
  PyTypeObject *fast_safe_type; /* ours, which is its own lock */
  PyObject *make_lock;          /* _thread.allocate_lock */

  PyTypeObject *deque_type;
  PyTypeObject *queue_type;     /* ReadyQueue */
  PyObject *time_names;         /* time.__dict__ */
  PyObject *monotonic;          /* time.monotonic, as it was found, */
  PyCFunction monotonic_function; /* and what it then called; NULL if it was no C function */
  PyObject *task_names;         /* asyncio.tasks.__dict__ */
  PyObject *base_create_task;   /* BaseEventLoop's, as it was found; the type's version, when that was last seen to be so */
  unsigned int create_task_version;
  PyObject *context_keyword;    /* the last ("context",) that came: tasks in C have one of their own, not interned; or NULL */
  /* Task()'s keywords for create_task()'s: for none, and for the last other ones. */
  PyObject *loop_keyword, *given_keywords, *task_keywords;
  PyObject *base_loop;          /* asyncio.BaseEventLoop */
  PyObject *loop_method_names[LOOP_METHODS]; /* interned: what is looked up by another string each time fills the types' cache */
  PyObject *base_methods[LOOP_METHODS];
  PyObject *loop_methods[LOOP_METHODS];  /* velociloop.Loop's; NULL until register_loop() */
  Py_ssize_t many_timers;       /* asyncio's _MIN_SCHEDULED_TIMER_HANDLES */
  double many_cancelled;        /* and _MIN_CANCELLED_TIMER_HANDLES_FRACTION */
  double longest_wait;          /* and MAXIMUM_SELECT_TIMEOUT, in seconds */

  /* From register_stream() on; NULL before. */
  served_class stream;          /* velociloop.transports.stream.StreamTransport */
  stream_slots stream_slot;
  /* Members of the enums in transports/states.py. */
  PyObject *reading_active, *reading_idle, *sending_open, *cork_in, *cork_out, *phase_open, *phase_closed;
  PyObject *buffered_protocol;  /* asyncio.BufferedProtocol */
  PyObject *stream_makers;      /* what makes a transport, as it was found: see speedups_accept.c */
  PyTypeObject *maker_type;     /* StreamMaker */
  PyObject *send;               /* cffi's vl_stream_try_write */
  long calm_callbacks;

  /* From register_datagram() on. */
  served_class datagram;        /* velociloop.transports.datagram.DatagramTransport */
  datagram_slots datagram_slot;
  PyObject *datagram_open, *datagram_reading; /* Phase.OPEN, Reading.ACTIVE */
  PyObject *send_datagram;      /* cffi's vl_udp_try_send */
  PyObject *decode_address;     /* sockaddr.decode_cached */
  int64_t again;                /* the code for "no room now" */

  /* From register_dispatcher() on. */
  served_class dispatcher, drain; /* Dispatcher and DrainHandle, of velociloop.scheduling.dispatch */
  Py_ssize_t drain_dispatcher;  /* the offset of DrainHandle._dispatcher */

  /* From register_listener() on. */
  served_class listener;        /* velociloop.transports.listener.Listener */
  listener_slots listener_slot;
  PyObject *listener_closed;    /* ListenerState.CLOSED */

  /* From register_waits() on. */
  served_class waits;           /* velociloop.transports.waits.SocketWaits */
  waits_slots waits_slot;
  PyTypeObject *wait_type;      /* and Wait */
  wait_slots wait_slot;
  PyTypeObject *socket_type;    /* socket.socket */
  long largest_direct, untried;

#define X(name) PyObject *str_##name;
  SPEEDUPS_NAMES(X)
#undef X
} speedups_state;

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

/* ReadyQueue: count items from head on, in a ring whose room is a power of two, or 0. */
typedef struct {
  PyObject_HEAD
  PyObject **items;             /* owned */
  Py_ssize_t room, head, count;
} queue_object;

/* CallbackScope: see scheduling/callbacks.py. */
typedef struct {
  PyObject_HEAD
  char active;
  long long serial;
  PyObject *corked;             /* a list */
  PyObject *core_owner;         /* the cdata that keeps core, which transports have as _pointer; NULL at first */
  vl_core *core;
} scope_object;

/* Handles of a type whose callbacks have run wait for the next call_soon() or its like: as many as a burst needs, which
 * a thread makes while it has the GIL (5 ms), of which a few are let go each time the loop waits, until SPARES_KEPT are left.
 * They stay tracked, for it is the making of tracked objects that has the collector run: untracked while they are spare, a
 * call_soon_threadsafe() took 350 ns for 310. */
#define SPARES_KEPT 1024
#define MOST_SPARES 32768
#define SPARES_DROPPED_AT_ONCE 8 /* an eighth of those too many */
enum { SPARE_HANDLE, SPARE_TIMER, SPARE_SAFE, SPARE_KINDS };
typedef struct {
  Py_ssize_t count, room;
  PyObject **items;             /* owned, as are the first `count` in it */
} spare_handles;

/* LoopBase: the part of velociloop.Loop that C looks at. */
typedef struct {
  PyObject_HEAD
  /* asyncio's attributes of these names, whose home this is; NULL: not set. */
  PyObject *ready, *scheduled, *selector, *clock_resolution, *stopping, *debug, *closed, *task_factory;
  Py_ssize_t timer_cancelled_count;
  speedups_state *state;        /* borrowed: see above */
  unsigned int version;         /* of the type, when its methods were last seen to be the ones we know; 0: never */
  /* From attach() on. */
  PyObject *core_owner;         /* the cdata that keeps core */
  vl_core *core;
  scope_object *scope;
  PyObject *uv_selector;        /* velociloop's own, which _selector is unless somebody put another there */
  unsigned int selector_version;
  PyObject *selector_select;    /* what its type had at attach() */
  Py_ssize_t own_count, selector_own_count; /* attributes of the instances at attach(), none of which C looks for; -1: not known */
  PyObject *no_preparation;     /* its before_wait while there is nothing to do */
  PyObject *drain_handle;
  /* H2: when the kernel may be left unpolled. */
  Py_ssize_t quiet_polls;       /* in a row, of this run, that found nothing; -1: outside of run_forever() */
  char only_records;            /* whether that is all that the last poll has found */
  int depth;                    /* turns on the stack */
  uint64_t polled_at;           /* by vl_exports.now(), in nanoseconds */
  spare_handles spare[SPARE_KINDS];
} loop_object;

/* -- compatibility (speedups_module.c) ---------------------------------------------------- */

/* Takes the exception that is set, normalized and with its traceback. */
PyObject *speedups_take_exception(void);
/* Sets an exception again; takes the reference. */
void speedups_give_exception(PyObject *exception);
/* Whether the exception that is set is KeyboardInterrupt or SystemExit. */
bool speedups_must_rise(void);

/* The state, by an object whose type is one of ours or derives from it. */
speedups_state *speedups_state_by_type(PyTypeObject *type);

/* Takes a class of transports; -1 with an exception. */
int served_learn(served_class *served, PyObject *type, PyObject *method_name);
/* Whether the object is one of this class whose method is the one that we know (H3). */
bool served_is_plain(served_class *served, PyObject *owner);

/* Whether it is the function of this class and name in its source, not one that somebody has put in its place. */
bool speedups_is_original(PyObject *function, const char *class_name, const char *name);

/* Whether a look-up on the type finds this.  Asked again when the type's version changes, which it does with every change
 * of what can be looked up in it; 0 is "none given yet". */
bool speedups_has_still(PyTypeObject *type, PyObject *name, PyObject *expected);

/* The offset of a type's slot; -1 with ImportError. */
int speedups_slot_offset(PyTypeObject *type, const char *name, Py_ssize_t *offset);

/* -- handles (speedups_handle.c) -------------------------------------------------------- */

/* Finds the slots and what is original; -1 with ImportError if they are not as we know them. */
int handles_learn(speedups_state *state);
/* Whether asyncio's Handle and TimerHandle are as they were (H3). */
bool handles_are_plain(speedups_state *state);
bool timers_are_plain(speedups_state *state);
bool safe_handles_are_plain(speedups_state *state);
/* Whether it is exactly asyncio's TimerHandle, or ours. */
static inline bool is_timer(const speedups_state *state, PyObject *handle) {
  return Py_IS_TYPE(handle, state->fast_timer_type) || Py_IS_TYPE(handle, state->timer_type);
}
/* A Handle of this callback; args (a tuple) is taken, context may be NULL. */
PyObject *handle_make(loop_object *loop, PyObject *callback, PyObject *args, PyObject *context);
/* As handle_make(), of what call_soon_threadsafe() returns. */
PyObject *safe_handle_make(loop_object *loop, PyObject *callback, PyObject *args, PyObject *context);
PyObject *timer_make(loop_object *loop, PyObject *when, PyObject *callback, PyObject *args, PyObject *context);
/* As handle._run().  -1: an exception that must rise. */
int handle_run(speedups_state *state, PyObject *handle);
/* The same, of one whose class has the Handle._run() that we know. */
int handle_run_plain(speedups_state *state, PyObject *handle);
/* 1 if it was cancelled, 0, or -1. */
int handle_is_cancelled(speedups_state *state, PyObject *handle);
/* Takes the reference of a handle that has run, for the next handle_make() if nobody else has one. */
void handle_done(loop_object *loop, PyObject *handle);
/* The loop is going to wait: see spare_handles. */
void spares_dwindle(loop_object *loop);
/* Frees them all. */
void spares_free(loop_object *loop);

/* -- thread-safe handles (speedups_safe.c) ---------------------------------------------- */

/* NULL where Python has no room for our fields in an object of asyncio's. */
PyType_Spec *speedups_safe_spec(void);
int safe_handle_run(speedups_state *state, PyObject *handle);
/* Whether no thread is inside. */
bool safe_handle_is_idle(speedups_state *state, PyObject *handle);

/* -- the ready queue (speedups_queue.c) ------------------------------------------------- */

int queue_append(queue_object *queue, PyObject *item);
PyObject *queue_popleft(queue_object *queue);

/* -- timers (speedups_timers.c): asyncio's _scheduled, a list in heapq's order ---------- */

int timers_push(speedups_state *state, PyObject *list, PyObject *timer);
PyObject *timers_pop(speedups_state *state, PyObject *list);
/* Takes the last item away. */
int timers_drop_last(PyObject *list);
/* Drops cancelled ones, as asyncio's turn does. */
int timers_drop_cancelled(loop_object *loop, PyObject *list);
/* When it is due, by the loop's clock. */
int timer_when(speedups_state *state, PyObject *timer, double *when);
int timer_set_scheduled(speedups_state *state, PyObject *timer, PyObject *value);

/* -- the loop (speedups_loop.c, speedups_turn.c) ------------------------------------------ */

extern PyType_Spec speedups_loop_spec;
extern PyType_Spec speedups_queue_spec;
extern PyType_Spec speedups_timer_spec;
extern PyType_Spec speedups_scope_spec;
extern PyType_Spec speedups_dispatcher_spec;
extern PyType_Spec speedups_stream_spec;
extern PyType_Spec speedups_datagram_spec;
extern PyType_Spec speedups_waits_spec;
extern PyType_Spec speedups_maker_spec;

int loop_learn(speedups_state *state);
/* Whether the methods of its type are ours or asyncio's, and it is not in debug mode (H3). */
bool loop_is_plain(loop_object *loop);
/* 1 if the instance itself has an attribute of this name, 0, or -1. */
int loop_has_own(loop_object *loop, PyObject *name);
/* The same, of an object that had own_count attributes and none of these names; other may be NULL. */
int speedups_has_own(PyObject *object, Py_ssize_t own_count, PyObject *name, PyObject *other);
/* The number of an instance's own attributes. */
Py_ssize_t speedups_count_own(PyObject *object);
/* What super().name(...) would return. */
PyObject *loop_delegate(loop_object *loop, PyObject *name, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *kwnames);
/* loop.time(), unpatched. */
int loop_clock(loop_object *loop, double *now);
/* PyLoopBase._timer_handle_cancelled(). */
int loop_timer_cancelled(loop_object *loop, PyObject *timer);
/* Appends to a ready queue. */
int ready_append(speedups_state *state, PyObject *ready, PyObject *handle);
PyObject *loop_run_once(PyObject *self, PyObject *ignored);

/* The methods that schedule (speedups_schedule.c). */
PyObject *loop_call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *loop_call_soon_threadsafe(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *loop__call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *loop_call_at(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *loop_call_later(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *loop_create_task(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *loop_timer_handle_cancelled(PyObject *self, PyObject *timer);
PyObject *loop_time(PyObject *self, PyObject *ignored);
PyObject *loop_get_debug(PyObject *self, PyObject *ignored);

int scope_end(scope_object *scope);
int scope_suspend(scope_object *scope);
/* Ends it in a finally, so to speak, after what has returned this result: a failure there has raised already. */
int scope_end_finally(scope_object *scope, int result);

/* -- streams (speedups_stream.c, speedups_receive.c) ------------------------------------------------------------- */

/* register_stream(type, ...): takes the class of stream transports. */
int stream_learn(PyObject *module, PyObject *type, PyObject *values);
/* Delivers a READ record: 0; 1 if its owner's Python code must; or -1. */
int stream_read(speedups_state *state, vl_core *core, PyObject *owner, const vl_record *record);

/* -- records (speedups_dispatch.c) ------------------------------------------------------------------ */

/* register_dispatcher(type, handle_type): takes Dispatcher and DrainHandle. */
int dispatcher_learn(PyObject *module, PyObject *type, PyObject *handle_type);
/* Whether DrainHandle._run() is what it was, as is all that it calls, and it is not cancelled. */
bool drain_is_plain(speedups_state *state, PyObject *handle);
/* As handle._run(). */
int drain_run(speedups_state *state, PyObject *handle);

/* -- accepted connections (speedups_accept.c) ------------------------------------------------------------- */

/* At the end of stream_learn(): what makes a transport. */
int makers_learn(speedups_state *state);
/* register_listener(type, CLOSED): takes the class of listeners. */
int listener_learn(PyObject *module, PyObject *type, PyObject *closed);
/* An ACCEPT record: 0; 1 if its owner's Python code must; or -1. */
int listener_accept(speedups_state *state, vl_core *core, PyObject *listener, const vl_record *record);

/* -- single waits (speedups_waits.c) ---------------------------------------------------------- */

/* register_waits(type, ...): takes the class of a loop's waits. */
int waits_learn(PyObject *module, PyObject *type, PyObject *values);
/* The wait of this token is over: 0 or -1. */
int waits_over(speedups_state *state, PyObject *waits, int64_t token);

/* -- datagrams (speedups_datagram.c) --------------------------------------------------------- */

/* register_datagram(type, ...): takes the class of datagram transports. */
int datagram_learn(PyObject *module, PyObject *type, PyObject *values);
/* The same of a DATAGRAM record. */
int datagram_receive(speedups_state *state, vl_core *core, PyObject *owner, const vl_record *record);

#endif
