/* speedups_schedule.c: the loop's methods that schedule: call_soon() and its like, create_task(), time(). */
#include "speedups.h"

int ready_append(speedups_state *state, PyObject *ready, PyObject *handle) {
  PyObject *result;

  if (ready == NULL) {
    PyErr_SetString(PyExc_AttributeError, "_ready");
    return -1;
  }
  if (Py_IS_TYPE(ready, state->queue_type))
    return queue_append((queue_object *)ready, handle);
  Py_INCREF(ready);
  result = PyObject_CallMethodOneArg(ready, state->str_append, handle);
  Py_DECREF(ready);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* time.monotonic() is looked up each time: tests put their own clock there. */
#if PY_VERSION_HEX >= 0x030d0000 /* from here on, C may ask for the time that it tells */
static bool is_original(speedups_state *state, PyObject *monotonic) {
  return monotonic == state->monotonic && PyCFunction_CheckExact(monotonic) &&
         PyCFunction_GET_FUNCTION(monotonic) == state->monotonic_function;
}
#endif

/* Its time; or, if it has another result than a float, that (a reference) and 0. */
static int clock_now(speedups_state *state, double *now, PyObject **strange) {
  PyObject *monotonic = PyDict_GetItemWithError(state->time_names, state->str_monotonic);
  PyObject *found;

  *strange = NULL;
  *now = 0.0;
  if (monotonic == NULL) {
    if (!PyErr_Occurred())
      PyErr_SetString(PyExc_AttributeError, "module 'time' has no attribute 'monotonic'");
    return -1;
  }
#if PY_VERSION_HEX >= 0x030d0000
  if (is_original(state, monotonic)) {
    PyTime_t ticks;

    if (PyTime_Monotonic(&ticks) < 0)
      return -1;
    *now = PyTime_AsSecondsDouble(ticks);
    return 0;
  }
#endif
  Py_INCREF(monotonic);
  found = PyObject_CallNoArgs(monotonic);
  Py_DECREF(monotonic);
  if (found == NULL)
    return -1;
  if (PyFloat_CheckExact(found)) {
    *now = PyFloat_AS_DOUBLE(found);
    Py_DECREF(found);
  } else {
    *strange = found;
  }
  return 0;
}

int loop_clock(loop_object *loop, double *now) {
  PyObject *strange;

  if (clock_now(loop->state, now, &strange) < 0)
    return -1;
  if (strange == NULL)
    return 0;
  *now = PyFloat_AsDouble(strange);
  Py_DECREF(strange);
  return *now == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* -- scheduling ------------------------------------------------------------------- */

static PyObject *tuple_of(PyObject *const *items, Py_ssize_t count) {
  PyObject *tuple = PyTuple_New(count);
  Py_ssize_t i;

  for (i = 0; tuple != NULL && i < count; i++)
    PyTuple_SET_ITEM(tuple, i, Py_NewRef(items[i]));
  return tuple;
}

/* context=None, or nothing else, by keyword: what asyncio's signatures allow. */
static bool takes_context(speedups_state *state, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                          PyObject **context) {
  *context = NULL;
  if (kwnames == NULL || PyTuple_GET_SIZE(kwnames) == 0)
    return true;
  if (kwnames != state->context_keyword) {
    if (PyTuple_GET_SIZE(kwnames) != 1 || PyUnicode_Compare(PyTuple_GET_ITEM(kwnames, 0), state->str_context) != 0)
      return false;
    Py_XSETREF(state->context_keyword, Py_NewRef(kwnames));
  }
  if (args[nargs] != Py_None)
    *context = args[nargs];
  return true;
}

static PyObject *soon(loop_object *loop, PyObject *callback, PyObject *args, PyObject *context) {
  PyObject *handle = args == NULL ? NULL : handle_make(loop, callback, args, context);

  if (handle != NULL && ready_append(loop->state, loop->ready, handle) < 0)
    Py_CLEAR(handle);
  return handle;
}

PyObject *loop_call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  PyObject *context;

  if (nargs < 1 || loop->closed != Py_False || !loop_is_plain(loop) ||
      !takes_context(loop->state, args, nargs, kwnames, &context))
    return loop_delegate(loop, loop->state->str_call_soon, args, nargs, kwnames);
  return soon(loop, args[0], tuple_of(args + 1, nargs - 1), context);
}

/* From any thread, and from signal handlers and finalizers (H11): the GIL guards the queue, and the shim the core.  Many
 * wake-ups before the next poll are one: libuv writes to its descriptor only if it is not pending. */
PyObject *loop_call_soon_threadsafe(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  PyObject *context, *handle, *arguments;
  int own;

  if (nargs < 1 || loop->closed != Py_False || !loop_is_plain(loop) || !safe_handles_are_plain(loop->state) ||
      !takes_context(loop->state, args, nargs, kwnames, &context))
    return loop_delegate(loop, loop->state->str_call_soon_threadsafe, args, nargs, kwnames);
  own = speedups_has_own((PyObject *)loop, loop->own_count, loop->state->str__write_to_self, loop->state->str__call_soon);
  if (own != 0)
    return own < 0 ? NULL : loop_delegate(loop, loop->state->str_call_soon_threadsafe, args, nargs, kwnames);
  if (loop->state->safe_type != NULL && loop->state->fast_safe_type == NULL)
    return loop_delegate(loop, loop->state->str_call_soon_threadsafe, args, nargs, kwnames);
  arguments = tuple_of(args + 1, nargs - 1);
  handle = arguments == NULL ? NULL : safe_handle_make(loop, args[0], arguments, context);
  if (handle != NULL && ready_append(loop->state, loop->ready, handle) < 0)
    Py_CLEAR(handle);
  if (handle != NULL)
    (void)loop->state->uv->core_wake(loop->core); /* as Core.wake(): a closed core hears nothing, and raises nothing */
  return handle;
}

/* asyncio's call_soon_threadsafe() makes its Handle with this (before 3.14). */
PyObject *loop__call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
  loop_object *loop = (loop_object *)self;

  if (nargs != 3 || !loop_is_plain(loop) || !PyTuple_CheckExact(args[1]))
    return loop_delegate(loop, loop->state->str__call_soon, args, nargs, NULL);
  return soon(loop, args[0], Py_NewRef(args[1]), args[2] == Py_None ? NULL : args[2]);
}

static PyObject *at(loop_object *loop, PyObject *when, PyObject *callback, PyObject *args, PyObject *context) {
  speedups_state *state = loop->state;
  PyObject *timer = args == NULL ? NULL : timer_make(loop, when, callback, args, context);
  /* Now, since making it may have run finalizers. */
  PyObject *scheduled = Py_XNewRef(loop->scheduled);

  if (timer != NULL && (scheduled == NULL || !PyList_Check(scheduled))) {
    PyErr_SetString(PyExc_TypeError, "the loop's _scheduled must be a list");
    Py_CLEAR(timer);
  }
  if (timer != NULL && (timers_push(state, scheduled, timer) < 0 || timer_set_scheduled(state, timer, Py_True) < 0))
    Py_CLEAR(timer);
  Py_XDECREF(scheduled);
  return timer;
}

PyObject *loop_call_at(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  PyObject *context;

  if (nargs < 2 || !PyFloat_CheckExact(args[0]) || loop->closed != Py_False || !loop_is_plain(loop) ||
      !timers_are_plain(loop->state) || !takes_context(loop->state, args, nargs, kwnames, &context))
    return loop_delegate(loop, loop->state->str_call_at, args, nargs, kwnames);
  return at(loop, args[0], args[1], tuple_of(args + 2, nargs - 2), context);
}

PyObject *loop_call_later(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  speedups_state *state = loop->state;
  PyObject *context, *strange, *when, *timer = NULL;
  double now;
  int own;

  if (nargs < 2 || !(PyFloat_CheckExact(args[0]) || PyLong_CheckExact(args[0])) || loop->closed != Py_False ||
      !loop_is_plain(loop) || !timers_are_plain(state) || !takes_context(state, args, nargs, kwnames, &context))
    return loop_delegate(loop, state->str_call_later, args, nargs, kwnames);
  own = speedups_has_own((PyObject *)loop, loop->own_count, state->str_time, state->str_call_at);
  if (own != 0)
    return own < 0 ? NULL : loop_delegate(loop, state->str_call_later, args, nargs, kwnames);
  if (clock_now(state, &now, &strange) < 0)
    return NULL;
  if (strange != NULL) { /* the clock is somebody's own */
    Py_DECREF(strange);
    return loop_delegate(loop, state->str_call_later, args, nargs, kwnames);
  }
  if (PyFloat_CheckExact(args[0])) {
    when = PyFloat_FromDouble(now + PyFloat_AS_DOUBLE(args[0]));
  } else { /* an int, perhaps one that no float can be */
    PyObject *begin = PyFloat_FromDouble(now);

    when = begin == NULL ? NULL : PyNumber_Add(begin, args[0]);
    Py_XDECREF(begin);
  }
  if (when != NULL)
    timer = at(loop, when, args[1], tuple_of(args + 2, nargs - 2), context);
  Py_XDECREF(when);
  return timer;
}

int loop_timer_cancelled(loop_object *loop, PyObject *timer) {
  speedups_state *state = loop->state;
  PyObject *list = loop->scheduled;
  PyObject *scheduled;
  Py_ssize_t last = list != NULL && PyList_CheckExact(list) ? PyList_GET_SIZE(list) - 1 : -1;
  int result;

  if (last >= 0 && PyList_GET_ITEM(list, last) == timer)
    return timers_drop_last(list) < 0 ? -1 : timer_set_scheduled(state, timer, Py_False);
  if (is_timer(state, timer) && SLOT(timer, state->slot.scheduled) != NULL)
    scheduled = Py_NewRef(SLOT(timer, state->slot.scheduled));
  else
    scheduled = PyObject_GetAttr(timer, state->str__scheduled);
  result = scheduled == NULL ? -1 : PyObject_IsTrue(scheduled);
  Py_XDECREF(scheduled);
  if (result < 0)
    return -1;
  loop->timer_cancelled_count += result;
  return 0;
}

PyObject *loop_timer_handle_cancelled(PyObject *self, PyObject *timer) {
  if (loop_timer_cancelled((loop_object *)self, timer) < 0)
    return NULL;
  Py_RETURN_NONE;
}

PyObject *loop_time(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  loop_object *loop = (loop_object *)self;
  PyObject *strange;
  double now;

  if (!loop_is_plain(loop))
    return loop_delegate(loop, loop->state->str_time, NULL, 0, NULL);
  if (clock_now(loop->state, &now, &strange) < 0)
    return NULL;
  return strange != NULL ? strange : PyFloat_FromDouble(now);
}

PyObject *loop_get_debug(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  loop_object *loop = (loop_object *)self;

  if (loop->debug == NULL || !loop_is_plain(loop))
    return loop_delegate(loop, loop->state->str_get_debug, NULL, 0, NULL);
  return Py_NewRef(loop->debug);
}

/* -- tasks ---------------------------------------------------------------------------- */

/* ("loop", *given): the names in a call of Task().  Calls from one place have one tuple: the last one is remembered. */
static PyObject *task_keywords(speedups_state *state, PyObject *given) {
  Py_ssize_t count = PyTuple_GET_SIZE(given);
  PyObject *names, *name;
  Py_ssize_t i;

  if (given == state->given_keywords)
    return Py_NewRef(state->task_keywords);
  names = PyTuple_New(count + 1);
  if (names == NULL)
    return NULL;
  PyTuple_SET_ITEM(names, 0, Py_NewRef(state->str_loop));
  for (i = 0; i < count; i++) {
    name = PyTuple_GET_ITEM(given, i);
    PyTuple_SET_ITEM(names, i + 1, Py_NewRef(name));
  }
  Py_XSETREF(state->given_keywords, Py_NewRef(given));
  Py_XSETREF(state->task_keywords, Py_NewRef(names));
  return names;
}

/* Whether asyncio's create_task() has these keywords in every version. */
static bool are_for_tasks(speedups_state *state, PyObject *kwnames) {
  Py_ssize_t i;

  if (kwnames == state->given_keywords)
    return true;
  for (i = 0; i < PyTuple_GET_SIZE(kwnames); i++)
    if (PyUnicode_Compare(PyTuple_GET_ITEM(kwnames, i), state->str_name) != 0 &&
        PyUnicode_Compare(PyTuple_GET_ITEM(kwnames, i), state->str_context) != 0)
      return false;
  return true;
}

/* Whether a replacement of asyncio's method is not to be called instead. */
static bool makes_tasks_as_asyncio(speedups_state *state) {
  PyTypeObject *base = (PyTypeObject *)state->base_loop;

  if (base->tp_version_tag != 0 && base->tp_version_tag == state->create_task_version)
    return true;
  if (!speedups_has_still(base, state->str_create_task, state->base_create_task) ||
      !speedups_is_original(state->base_create_task, "BaseEventLoop", "create_task"))
    return false;
  state->create_task_version = base->tp_version_tag;
  return true;
}

#define MOST_TASK_KEYWORDS 2

PyObject *loop_create_task(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  speedups_state *state = loop->state;
  Py_ssize_t given = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
  PyObject *stack[3 + MOST_TASK_KEYWORDS] = {NULL};
  PyObject *type, *names, *task;
  Py_ssize_t i;

  if (nargs != 1 || given > MOST_TASK_KEYWORDS || loop->closed != Py_False || loop->task_factory != Py_None ||
      !loop_is_plain(loop) || !makes_tasks_as_asyncio(state) || (given > 0 && !are_for_tasks(state, kwnames)))
    return loop_delegate(loop, state->str_create_task, args, nargs, kwnames);
  /* Looked up each time, since it is replaced (nest_asyncio). */
  type = PyDict_GetItemWithError(state->task_names, state->str_Task);
  if (type == NULL)
    return PyErr_Occurred() ? NULL : loop_delegate(loop, state->str_create_task, args, nargs, kwnames);
  names = given == 0 ? Py_NewRef(state->loop_keyword) : task_keywords(state, kwnames);
  if (names == NULL)
    return NULL;
  stack[1] = args[0];
  stack[2] = self;
  for (i = 0; i < given; i++)
    stack[3 + i] = args[1 + i];
  Py_INCREF(type);
  task = PyObject_Vectorcall(type, stack + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, names);
  Py_DECREF(type);
  Py_DECREF(names);
  return task;
}
