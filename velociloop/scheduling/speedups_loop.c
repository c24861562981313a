/* speedups_loop.c: LoopBase, the part of the loop that C looks at, and the methods that schedule.
 *
 * asyncio's attributes _ready, _scheduled, ... are members of this type: data descriptors, which asyncio's own
 * code in BaseEventLoop assigns to and reads.  So each fact has this one home, for C and for Python. */
#include "speedups.h"

/* In this order in speedups_state.base_methods and .loop_methods. */
static const char *const loop_method_names[LOOP_METHODS] = {
    "call_soon", "call_later", "call_at", "_call_soon", "time", "get_debug", "_timer_handle_cancelled",
    "_run_once", "_process_events", "run_forever", "_check_closed", "call_soon_threadsafe", "_write_to_self",
};

int loop_learn(speedups_state *state) {
  int i;

  for (i = 0; i < LOOP_METHODS; i++) {
    state->base_methods[i] = PyObject_GetAttrString(state->base_loop, loop_method_names[i]);
    if (state->base_methods[i] == NULL)
      return -1;
    if (!PyFunction_Check(state->base_methods[i])) {
      PyErr_Format(PyExc_ImportError, "BaseEventLoop.%s is not asyncio's own", loop_method_names[i]);
      return -1;
    }
  }
  return 0;
}

PyObject *speedups_register_loop(PyObject *module, PyObject *type) {
  speedups_state *state = PyModule_GetState(module);
  int i;

  for (i = 0; i < LOOP_METHODS; i++) {
    PyObject *found = PyObject_GetAttrString(type, loop_method_names[i]);

    if (found == NULL)
      return NULL;
    Py_XSETREF(state->loop_methods[i], found);
  }
  Py_RETURN_NONE;
}

static bool methods_are(PyObject *type, PyObject *const *expected) {
  int i;

  for (i = 0; i < LOOP_METHODS; i++) {
    PyObject *found = PyObject_GetAttrString(type, loop_method_names[i]);

    if (found == NULL)
      PyErr_Clear();
    Py_XDECREF(found);
    if (found == NULL || found != expected[i])
      return false;
  }
  return true;
}

bool loop_is_plain(loop_object *loop) {
  PyTypeObject *type = Py_TYPE(loop);
  speedups_state *state = loop->state;

  if (loop->debug != Py_False || loop->core == NULL || loop->ready == NULL ||
      !Py_IS_TYPE(loop->ready, state->queue_type) || loop->scheduled == NULL ||
      !PyList_CheckExact(loop->scheduled) || !handles_are_plain(state))
    return false;
  /* A change of a base counts as one of the type. */
  if (type->tp_version_tag != 0 && type->tp_version_tag == loop->version)
    return true;
  if (!methods_are(state->base_loop, state->base_methods) || !methods_are((PyObject *)type, state->loop_methods))
    return false;
  loop->version = type->tp_version_tag;
  return true;
}

/* 1 if the instance itself has an attribute of one of these names, 0, or -1. */
static int has_own_of(loop_object *loop, PyObject *name, PyObject *other) {
  PyObject *names = PyObject_GenericGetDict((PyObject *)loop, NULL);
  int found;

  if (names == NULL)
    return -1;
  found = PyDict_Contains(names, name);
  if (found == 0 && other != NULL)
    found = PyDict_Contains(names, other);
  Py_DECREF(names);
  return found;
}

int loop_has_own(loop_object *loop, PyObject *name) {
  return has_own_of(loop, name, NULL);
}

PyObject *loop_delegate(loop_object *loop, PyObject *name, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *kwnames) {
  PyObject *base = loop->state->loop_base;
  PyObject *heir, *method, *result;

  if (base == NULL) {
    PyErr_SetString(PyExc_RuntimeError, "the interpreter is ending");
    return NULL;
  }
  heir = PyObject_CallFunctionObjArgs((PyObject *)&PySuper_Type, base, loop, NULL);
  method = heir == NULL ? NULL : PyObject_GetAttr(heir, name);
  result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);

  Py_XDECREF(method);
  Py_XDECREF(heir);
  return result;
}

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
static PyObject *clock_now(speedups_state *state) {
  PyObject *monotonic = PyDict_GetItemWithError(state->time_names, state->str_monotonic);
  PyObject *now;

  if (monotonic == NULL) {
    if (!PyErr_Occurred())
      PyErr_SetString(PyExc_AttributeError, "module 'time' has no attribute 'monotonic'");
    return NULL;
  }
  Py_INCREF(monotonic);
  now = PyObject_CallNoArgs(monotonic);
  Py_DECREF(monotonic);
  return now;
}

int loop_clock(loop_object *loop, double *now) {
  PyObject *found = clock_now(loop->state);

  if (found == NULL)
    return -1;
  *now = PyFloat_AsDouble(found);
  Py_DECREF(found);
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
  if (PyTuple_GET_SIZE(kwnames) != 1 ||
      (PyTuple_GET_ITEM(kwnames, 0) != state->str_context &&
       PyUnicode_Compare(PyTuple_GET_ITEM(kwnames, 0), state->str_context) != 0))
    return false;
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

static PyObject *loop_call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  PyObject *context;

  if (nargs < 1 || loop->closed != Py_False || !loop_is_plain(loop) ||
      !takes_context(loop->state, args, nargs, kwnames, &context))
    return loop_delegate(loop, loop->state->str_call_soon, args, nargs, kwnames);
  return soon(loop, args[0], tuple_of(args + 1, nargs - 1), context);
}

/* From any thread, and from signal handlers and finalizers (H11): the GIL guards the queue, and the shim the core.  Many
 * wake-ups before the next poll are one: libuv writes to its descriptor only if it is not pending. */
static PyObject *loop_call_soon_threadsafe(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  PyObject *context, *handle, *arguments;
  int own;

  if (nargs < 1 || loop->closed != Py_False || !loop_is_plain(loop) || !safe_handles_are_plain(loop->state) ||
      !takes_context(loop->state, args, nargs, kwnames, &context))
    return loop_delegate(loop, loop->state->str_call_soon_threadsafe, args, nargs, kwnames);
  own = has_own_of(loop, loop->state->str__write_to_self, loop->state->str__call_soon);
  if (own != 0)
    return own < 0 ? NULL : loop_delegate(loop, loop->state->str_call_soon_threadsafe, args, nargs, kwnames);
  arguments = tuple_of(args + 1, nargs - 1);
  handle = arguments == NULL ? NULL : safe_handle_make(loop, args[0], arguments, context);
  if (handle != NULL && ready_append(loop->state, loop->ready, handle) < 0)
    Py_CLEAR(handle);
  if (handle != NULL)
    (void)loop->state->uv->core_wake(loop->core); /* as Core.wake(): a closed core hears nothing, and raises nothing */
  return handle;
}

/* asyncio's call_soon_threadsafe() makes its Handle with this (before 3.14). */
static PyObject *loop__call_soon(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
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

static PyObject *loop_call_at(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  PyObject *context;

  if (nargs < 2 || !PyFloat_CheckExact(args[0]) || loop->closed != Py_False || !loop_is_plain(loop) ||
      !timers_are_plain(loop->state) || !takes_context(loop->state, args, nargs, kwnames, &context))
    return loop_delegate(loop, loop->state->str_call_at, args, nargs, kwnames);
  return at(loop, args[0], args[1], tuple_of(args + 2, nargs - 2), context);
}

static PyObject *loop_call_later(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
  loop_object *loop = (loop_object *)self;
  speedups_state *state = loop->state;
  PyObject *context, *now, *when, *timer = NULL;
  int own;

  if (nargs < 2 || !(PyFloat_CheckExact(args[0]) || PyLong_CheckExact(args[0])) || loop->closed != Py_False ||
      !loop_is_plain(loop) || !timers_are_plain(state) || !takes_context(state, args, nargs, kwnames, &context))
    return loop_delegate(loop, state->str_call_later, args, nargs, kwnames);
  own = has_own_of(loop, state->str_time, state->str_call_at);
  if (own != 0)
    return own < 0 ? NULL : loop_delegate(loop, state->str_call_later, args, nargs, kwnames);
  now = clock_now(state);
  when = now == NULL ? NULL : PyNumber_Add(now, args[0]);
  Py_XDECREF(now);
  if (when != NULL && PyFloat_CheckExact(when))
    timer = at(loop, when, args[1], tuple_of(args + 2, nargs - 2), context);
  else if (when != NULL) /* the clock is somebody's own */
    timer = loop_delegate(loop, state->str_call_later, args, nargs, kwnames);
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
    return PyList_SetSlice(list, last, last + 1, NULL) < 0 ? -1 : timer_set_scheduled(state, timer, Py_False);
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

static PyObject *loop_timer_handle_cancelled(PyObject *self, PyObject *timer) {
  if (loop_timer_cancelled((loop_object *)self, timer) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *loop_time(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  loop_object *loop = (loop_object *)self;

  if (!loop_is_plain(loop))
    return loop_delegate(loop, loop->state->str_time, NULL, 0, NULL);
  return clock_now(loop->state);
}

static PyObject *loop_get_debug(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  loop_object *loop = (loop_object *)self;

  if (loop->debug == NULL || !loop_is_plain(loop))
    return loop_delegate(loop, loop->state->str_get_debug, NULL, 0, NULL);
  return Py_NewRef(loop->debug);
}

/* -- life --------------------------------------------------------------------------- */

static PyObject *loop_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
  loop_object *loop = (loop_object *)type->tp_alloc(type, 0);

  if (loop == NULL)
    return NULL;
  loop->state = speedups_state_by_type(type);
  if (loop->state == NULL) {
    Py_DECREF(loop);
    return NULL;
  }
  /* asyncio's __del__ asks is_closed(), also of a loop whose __init__ has failed. */
  loop->closed = Py_NewRef(Py_True);
  loop->quiet_polls = -1;
  return (PyObject *)loop;
}

/* attach(pointer, address, scope, selector, no_preparation, drain_handle): what a complete loop has.  _ready, until now
 * the deque that asyncio has made, becomes a ReadyQueue.
 * address is pointer's, a vl_core's; selector is the loop's own, no_preparation its before_wait while there is
 * nothing to do. */
static PyObject *loop_attach(PyObject *self, PyObject *args) {
  loop_object *loop = (loop_object *)self;
  PyObject *owner, *address, *scope, *selector, *no_preparation, *drain, *select, *ready, *moved;
  void *core;

  if (!PyArg_ParseTuple(args, "OO!O!OOO:_attach", &owner, &PyLong_Type, &address, loop->state->scope_type, &scope,
                        &selector, &no_preparation, &drain))
    return NULL;
  core = PyLong_AsVoidPtr(address);
  if (core == NULL) {
    if (!PyErr_Occurred())
      PyErr_SetString(PyExc_ValueError, "no core");
    return NULL;
  }
  select = PyObject_GetAttr((PyObject *)Py_TYPE(selector), loop->state->str_select);
  if (select == NULL)
    return NULL;
  Py_XSETREF(loop->selector_select, select);
  Py_XSETREF(loop->core_owner, Py_NewRef(owner));
  Py_XSETREF(loop->scope, (scope_object *)Py_NewRef(scope));
  Py_XSETREF(loop->uv_selector, Py_NewRef(selector));
  Py_XSETREF(loop->no_preparation, Py_NewRef(no_preparation));
  Py_XSETREF(loop->drain_handle, Py_NewRef(drain));
  ready = PyObject_CallNoArgs((PyObject *)loop->state->queue_type);
  moved = ready == NULL || loop->ready == NULL ? NULL : PyObject_CallMethod(ready, "extend", "O", loop->ready);
  if (moved == NULL) {
    Py_XDECREF(ready);
    if (!PyErr_Occurred())
      PyErr_SetString(PyExc_AttributeError, "_ready");
    return NULL;
  }
  Py_DECREF(moved);
  Py_XSETREF(loop->ready, ready);
  loop->core = core;
  Py_XSETREF(loop->scope->core_owner, Py_NewRef(owner));
  loop->scope->core = core;
  Py_RETURN_NONE;
}

static int loop_traverse(PyObject *self, visitproc visit, void *arg) {
  loop_object *loop = (loop_object *)self;
  int i;

  Py_VISIT(Py_TYPE(self));
  Py_VISIT(loop->ready);
  Py_VISIT(loop->scheduled);
  Py_VISIT(loop->selector);
  Py_VISIT(loop->clock_resolution);
  Py_VISIT(loop->stopping);
  Py_VISIT(loop->debug);
  Py_VISIT(loop->closed);
  Py_VISIT(loop->core_owner);
  Py_VISIT(loop->scope);
  Py_VISIT(loop->uv_selector);
  Py_VISIT(loop->selector_select);
  Py_VISIT(loop->no_preparation);
  Py_VISIT(loop->drain_handle);
  for (i = 0; i < loop->spare_count; i++)
    Py_VISIT(loop->spare[i]);
  for (i = 0; i < loop->spare_timer_count; i++)
    Py_VISIT(loop->spare_timer[i]);
  return 0;
}

static int loop_clear(PyObject *self) {
  loop_object *loop = (loop_object *)self;

  loop->core = NULL; /* no longer plain: what is left is Python's */
  Py_CLEAR(loop->ready);
  Py_CLEAR(loop->scheduled);
  Py_CLEAR(loop->selector);
  Py_CLEAR(loop->clock_resolution);
  Py_CLEAR(loop->stopping);
  Py_CLEAR(loop->debug);
  Py_CLEAR(loop->closed);
  Py_CLEAR(loop->core_owner);
  Py_CLEAR(loop->scope);
  Py_CLEAR(loop->uv_selector);
  Py_CLEAR(loop->selector_select);
  Py_CLEAR(loop->no_preparation);
  Py_CLEAR(loop->drain_handle);
  while (loop->spare_count > 0)
    Py_DECREF(loop->spare[--loop->spare_count]);
  while (loop->spare_timer_count > 0)
    Py_DECREF(loop->spare_timer[--loop->spare_timer_count]);
  return 0;
}

static void loop_dealloc(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);

  PyObject_GC_UnTrack(self);
  (void)loop_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef loop_methods[] = {
    {"call_soon", FAST(loop_call_soon), METH_FASTCALL | METH_KEYWORDS, "call_soon($self, callback, *args, context=None)\n--\n\nSee asyncio.loop.call_soon."},
    {"call_soon_threadsafe", FAST(loop_call_soon_threadsafe), METH_FASTCALL | METH_KEYWORDS, "call_soon_threadsafe($self, callback, *args, context=None)\n--\n\nSee asyncio.loop.call_soon_threadsafe."},
    {"call_later", FAST(loop_call_later), METH_FASTCALL | METH_KEYWORDS, "call_later($self, delay, callback, *args, context=None)\n--\n\nSee asyncio.loop.call_later."},
    {"call_at", FAST(loop_call_at), METH_FASTCALL | METH_KEYWORDS, "call_at($self, when, callback, *args, context=None)\n--\n\nSee asyncio.loop.call_at."},
    {"_call_soon", FAST(loop__call_soon), METH_FASTCALL, "Make a Handle and append it to the ready queue."},
    {"_timer_handle_cancelled", loop_timer_handle_cancelled, METH_O, "Count a timer that was cancelled."},
    {"time", loop_time, METH_NOARGS, "time($self)\n--\n\nSee asyncio.loop.time."},
    {"get_debug", loop_get_debug, METH_NOARGS, "get_debug($self)\n--\n\nSee asyncio.loop.get_debug."},
    {"_run_once", loop_run_once, METH_NOARGS, "Run one turn."},
    {"_attach", loop_attach, METH_VARARGS, "Take what a complete loop has; until then Python does everything."},
    {NULL, NULL, 0, NULL},
};

#define MEMBER(name, field) {name, T_OBJECT_EX, offsetof(loop_object, field), 0, "asyncio's attribute of this name."}

static PyMemberDef loop_members[] = {
    MEMBER("_ready", ready),
    MEMBER("_scheduled", scheduled),
    MEMBER("_selector", selector),
    MEMBER("_clock_resolution", clock_resolution),
    MEMBER("_stopping", stopping),
    MEMBER("_debug", debug),
    MEMBER("_closed", closed),
    {"_timer_cancelled_count", T_PYSSIZET, offsetof(loop_object, timer_cancelled_count), 0,
     "asyncio's attribute of this name."},
    {"_quiet_polls", T_PYSSIZET, offsetof(loop_object, quiet_polls), 0, "-1 outside of run_forever()."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot loop_slots[] = {
    {Py_tp_doc, "The base of velociloop.Loop: asyncio's scheduling methods, in C."},
    {Py_tp_new, loop_new},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_tp_dealloc, loop_dealloc},
    {Py_tp_methods, loop_methods},
    {Py_tp_members, loop_members},
    {0, NULL},
};

PyType_Spec speedups_loop_spec = {
    .name = "velociloop._speedups.LoopBase",
    .basicsize = sizeof(loop_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = loop_slots,
};
