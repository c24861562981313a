/* speedups_turn.c: one turn of the loop: turn.py's run_once() and Selector.select(), in their order.
 *
 * It runs only while everything that it stands for is what it was (H3); else Loop._turn_in_python() does. */
#include "speedups.h"

#include <math.h>

#define NS_PER_S 1e9
/* A program that yields a few times to let input come in, as tests do, finds it as soon as with asyncio: what has
 * just waited, or has something to send, is polled in every turn.  But the turn right behind completions belongs to whom
 * they have woken: a server polls once for a batch of requests, not a second time before their tasks have answered. */
#define QUIET_POLLS 16
#define SKIPPED_POLLS_AFTER_RECORDS 1
#define MOST_SKIPPED_POLLS 15 /* "fewer than 16 skips in a row" */
#define LONGEST_UNPOLLED_NS 100000u /* "under 100 us since the last poll" */

/* Whether the selector is velociloop's own, and its select() what it was. */
static int selector_is_plain(loop_object *loop) {
  speedups_state *state = loop->state;
  PyObject *selector = loop->uv_selector;
  PyTypeObject *type = Py_TYPE(selector);
  PyObject *found;
  int own;

  if (loop->selector != selector)
    return 0;
  if (type->tp_version_tag == 0 || type->tp_version_tag != loop->selector_version) {
    found = PyObject_GetAttr((PyObject *)type, state->str_select);
    if (found == NULL)
      return -1;
    Py_DECREF(found);
    if (found != loop->selector_select)
      return 0;
    loop->selector_version = type->tp_version_tag;
  }
  own = speedups_has_own(selector, loop->selector_own_count, state->str_select, NULL);
  return own < 0 ? -1 : !own;
}

/* 1, 0, or -1. */
static int turn_is_plain(loop_object *loop) {
  speedups_state *state = loop->state;
  int own;

  if (!loop_is_plain(loop) || loop->stopping == NULL || loop->clock_resolution == NULL ||
      !PyFloat_CheckExact(loop->clock_resolution))
    return 0;
  own = speedups_has_own((PyObject *)loop, loop->own_count, state->str__process_events, state->str_time);
  return own != 0 ? (own < 0 ? -1 : 0) : selector_is_plain(loop);
}

/* -- waiting ---------------------------------------------------------------------- */

/* loop.time() + loop._clock_resolution: what is due before this is due now.  Callbacks and patched clocks may have put
 * anything there since the turn was found plain. */
static int find_end_time(loop_object *loop, double *end) {
  PyObject *resolution;
  double now, step;

  if (loop_clock(loop, &now) < 0)
    return -1;
  resolution = Py_XNewRef(loop->clock_resolution);
  if (resolution == NULL) {
    PyErr_SetString(PyExc_AttributeError, "_clock_resolution");
    return -1;
  }
  step = PyFloat_AsDouble(resolution);
  Py_DECREF(resolution);
  *end = now + step;
  return step == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* Whether the loop is to stop: 1, 0, or -1. */
static int is_stopping(loop_object *loop) {
  PyObject *stopping = Py_XNewRef(loop->stopping);
  int result;

  if (stopping == NULL) {
    PyErr_SetString(PyExc_AttributeError, "_stopping");
    return -1;
  }
  result = PyObject_IsTrue(stopping);
  Py_DECREF(stopping);
  return result;
}

/* The timeout in nanoseconds as vl_core_poll() takes it: -1 without limit.  *seconds says the same as a float. */
static int find_timeout(loop_object *loop, queue_object *ready, PyObject *scheduled, int64_t *timeout_ns,
                        double *seconds) {
  speedups_state *state = loop->state;
  double when, now;
  int stopping = is_stopping(loop);

  *timeout_ns = 0;
  *seconds = 0.0;
  if (stopping < 0)
    return -1;
  if (stopping || ready->count > 0)
    return 0;
  if (PyList_GET_SIZE(scheduled) == 0) {
    *timeout_ns = -1;
    return 0;
  }
  if (timer_when(state, PyList_GET_ITEM(scheduled, 0), &when) < 0 || loop_clock(loop, &now) < 0)
    return -1;
  *seconds = when - now;
  if (!(*seconds > 0.0))
    *seconds = 0.0;
  else if (*seconds > state->longest_wait)
    *seconds = state->longest_wait;
  /* Rounded up: a wait that ends early costs a turn. */
  *timeout_ns = (int64_t)ceil(*seconds * NS_PER_S);
  return 0;
}

/* "It may replace itself", and raise. */
static int before_wait(loop_object *loop) {
  PyObject *prepare = PyObject_GetAttr(loop->uv_selector, loop->state->str_before_wait);
  PyObject *result;

  if (prepare == NULL)
    return -1;
  result = prepare == loop->no_preparation ? Py_NewRef(Py_None) : PyObject_CallNoArgs(prepare);
  Py_DECREF(prepare);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* What a poll has found that is not only records: Python's part of select(), and _process_events(). */
static int take_events(loop_object *loop, int found, int64_t timeout_ns, double seconds) {
  PyObject *timeout = timeout_ns < 0 ? Py_NewRef(Py_None) : PyFloat_FromDouble(seconds);
  PyObject *code = PyLong_FromLong(found);
  PyObject *events = NULL, *result = NULL;

  if (timeout != NULL && code != NULL)
    events = PyObject_CallMethodObjArgs(loop->uv_selector, loop->state->str_on_polled, code, timeout, NULL);
  Py_XDECREF(code);
  Py_XDECREF(timeout);
  if (events != NULL)
    result = PyObject_CallMethodOneArg((PyObject *)loop, loop->state->str__process_events, events);
  Py_XDECREF(events);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

static int poll(loop_object *loop, queue_object *ready, PyObject *scheduled) {
  vl_core *core = loop->core;
  int64_t timeout_ns;
  double seconds;
  int found;

  if (find_timeout(loop, ready, scheduled, &timeout_ns, &seconds) < 0 || scope_suspend(loop->scope) < 0)
    return -1;
  if (timeout_ns != 0 && before_wait(loop) < 0)
    return -1;
  if (timeout_ns != 0)
    spares_dwindle(loop);
  Py_BEGIN_ALLOW_THREADS
  found = loop->state->uv->core_poll(core, timeout_ns);
  Py_END_ALLOW_THREADS
  loop->polled_at = loop->state->uv->now();
  loop->only_records = found == VL_POLL_RECORDS;
  if (loop->quiet_polls >= 0)
    loop->quiet_polls = found == 0 && timeout_ns == 0 ? loop->quiet_polls + 1 : 0;
  /* H10: signals that came meanwhile are heard before anything is dispatched. */
  if (PyErr_CheckSignals() < 0)
    return -1;
  if (found < 0 || (found & VL_POLL_SELECTOR) != 0)
    return take_events(loop, found, timeout_ns, seconds);
  if ((found & VL_POLL_RECORDS) != 0)
    return ready_append(loop->state, loop->ready, loop->drain_handle);
  return 0;
}

static int take_due_timers(loop_object *loop, queue_object *ready, PyObject *scheduled) {
  speedups_state *state = loop->state;
  double end, when;
  int result = find_end_time(loop, &end);

  while (result == 0 && PyList_GET_SIZE(scheduled) > 0) {
    PyObject *timer;

    result = timer_when(state, PyList_GET_ITEM(scheduled, 0), &when);
    if (result < 0 || when >= end) /* as asyncio asks: what is no number is due */
      break;
    timer = timers_pop(state, scheduled);
    if (timer == NULL) {
      result = -1;
    } else {
      result = timer_set_scheduled(state, timer, Py_False);
      if (result == 0)
        result = queue_append(ready, timer);
      Py_DECREF(timer);
    }
  }
  return result;
}

/* -- running ------------------------------------------------------------------------- */

static int run_next(loop_object *loop, queue_object *ready) {
  speedups_state *state = loop->state;
  scope_object *scope = loop->scope;
  PyObject *handle = queue_popleft(ready);
  int result;

  if (handle == NULL)
    return -1;
  if (handle == loop->drain_handle && drain_is_plain(state, handle)) {
    scope->serial++;
    result = drain_run(state, handle);
    Py_DECREF(handle);
    return result < 0 ? -1 : PyList_GET_SIZE(scope->corked) > 0 ? scope_end(scope) : 0;
  }
  result = handle_is_cancelled(state, handle);
  if (result == 0) {
    scope->serial++;
    result = handle_run(state, handle);
    if (result == 0 && PyList_GET_SIZE(scope->corked) > 0)
      result = scope_end(scope);
  }
  if (result < 0) { /* handle_done() may ask types, with no exception set */
    Py_DECREF(handle);
    return -1;
  }
  handle_done(loop, handle);
  return 0;
}

static int run_ready(loop_object *loop, queue_object *ready) {
  scope_object *scope = (scope_object *)Py_NewRef(loop->scope);
  Py_ssize_t count = ready->count;
  int result = 0;

  scope->active = 1;
  while (result == 0 && count-- > 0) {
    if (ready->count == 0)
      break; /* a nested turn inside a callback ran the rest */
    result = run_next(loop, ready);
  }
  scope->active = 0;
  result = scope_end_finally(scope, result);
  Py_DECREF(scope);
  return result;
}

/* Somebody may assign other queues to the loop meanwhile: this turn goes on with those that it has begun with. */
static int run_turn(loop_object *loop, queue_object *ready, PyObject *scheduled) {
  if (PyList_GET_SIZE(scheduled) > 0 && timers_drop_cancelled(loop, scheduled) < 0)
    return -1;
  if (poll(loop, ready, scheduled) < 0)
    return -1;
  if (PyList_GET_SIZE(scheduled) > 0 && take_due_timers(loop, ready, scheduled) < 0)
    return -1;
  return run_ready(loop, ready);
}

/* -- turns without a poll (H2) ---------------------------------------------------------- */

/* Whether a timer is due: 1, 0, or -1. */
static int is_timer_due(loop_object *loop, PyObject *scheduled) {
  double when, end;

  if (PyList_GET_SIZE(scheduled) == 0)
    return 0;
  if (timer_when(loop->state, PyList_GET_ITEM(scheduled, 0), &when) < 0 || find_end_time(loop, &end) < 0)
    return -1;
  return !(when >= end); /* NaN is due, as asyncio asks */
}

/* Leaving the kernel unpolled is "allowed only if all hold: callbacks are ready; not the first turn of this run; not
 * stopping; no timer due; under 100 us since the last poll; fewer than 16 skips in a row; nothing patched".  So a turn,
 * which has polled, may have such turns behind it, as run_forever() would ask for them one by one.  own is how many
 * attributes the loop had when nothing was patched. */
static int run_unpolled_turns(loop_object *loop, queue_object *ready, PyObject *scheduled, Py_ssize_t own, int most) {
  const vl_exports *uv = loop->state->uv;
  int count, due;

  for (count = 0; count < most; count++) {
    if (loop->stopping != Py_False || ready->count == 0 ||
        (most > SKIPPED_POLLS_AFTER_RECORDS && uv->now() - loop->polled_at >= LONGEST_UNPOLLED_NS) ||
        loop->ready != (PyObject *)ready || loop->scheduled != scheduled || !loop_is_plain(loop) ||
        speedups_count_own((PyObject *)loop) != own || loop->selector != loop->uv_selector)
      return 0;
    due = is_timer_due(loop, scheduled);
    if (due != 0)
      return due < 0 ? -1 : 0;
    if (run_ready(loop, ready) < 0)
      return -1;
  }
  return 0;
}

/* How many turns may go unpolled: none unless run_forever() has called, and nobody stands between.  -1: an exception. */
static int turns_to_go_on(loop_object *loop) {
  int most = loop->quiet_polls >= QUIET_POLLS ? MOST_SKIPPED_POLLS
             : loop->quiet_polls >= 0 && loop->only_records ? SKIPPED_POLLS_AFTER_RECORDS : 0;
  int own;

  if (most == 0 || loop->depth > 1)
    return 0;
  own = speedups_has_own((PyObject *)loop, loop->own_count, loop->state->str__run_once, loop->state->str_run_forever);
  return own < 0 ? -1 : own ? 0 : most;
}

PyObject *loop_run_once(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  loop_object *loop = (loop_object *)self;
  queue_object *ready;
  PyObject *scheduled;
  int plain = turn_is_plain(loop);
  Py_ssize_t own = speedups_count_own(self);
  int result, most;

  if (plain <= 0)
    return plain < 0 ? NULL : PyObject_CallMethodNoArgs(self, loop->state->str__turn_in_python);
  ready = (queue_object *)Py_NewRef(loop->ready);
  scheduled = Py_NewRef(loop->scheduled);
  loop->depth++;
  result = run_turn(loop, ready, scheduled);
  if (result == 0 && loop->stopping == Py_False && ready->count > 0) {
    most = turns_to_go_on(loop);
    result = most > 0 ? run_unpolled_turns(loop, ready, scheduled, own, most) : most;
  }
  loop->depth--;
  Py_DECREF(scheduled);
  Py_DECREF(ready);
  return result < 0 ? NULL : Py_NewRef(Py_None);
}
