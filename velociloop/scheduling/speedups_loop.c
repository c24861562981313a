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
    state->loop_method_names[i] = PyUnicode_InternFromString(loop_method_names[i]);
    if (state->loop_method_names[i] == NULL)
      return -1;
    state->base_methods[i] = PyObject_GetAttr(state->base_loop, state->loop_method_names[i]);
    if (state->base_methods[i] == NULL)
      return -1;
    if (!speedups_is_original(state->base_methods[i], "BaseEventLoop", loop_method_names[i])) {
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
    PyObject *found = PyObject_GetAttr(type, state->loop_method_names[i]);

    if (found == NULL)
      return NULL;
    Py_XSETREF(state->loop_methods[i], found);
  }
  Py_RETURN_NONE;
}

static bool methods_are(speedups_state *state, PyTypeObject *type, PyObject *const *expected) {
  int i;

  for (i = 0; i < LOOP_METHODS; i++)
    if (!speedups_has_still(type, state->loop_method_names[i], expected[i]))
      return false;
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
  if (!methods_are(state, (PyTypeObject *)state->base_loop, state->base_methods) ||
      !methods_are(state, type, state->loop_methods))
    return false;
  loop->version = type->tp_version_tag;
  return true;
}

Py_ssize_t speedups_count_own(PyObject *object) {
  PyObject **names = _PyObject_GetDictPtr(object);

  return names == NULL || *names == NULL ? 0 : PyDict_GET_SIZE(*names);
}

/* A replacement is one attribute more: what has as many as when it was complete has none.  (Who deletes what asyncio has
 * put into its loop has no loop.) */
int speedups_has_own(PyObject *object, Py_ssize_t own_count, PyObject *name, PyObject *other) {
  PyObject *names;
  int found;

  if (speedups_count_own(object) == own_count)
    return 0;
  names = PyObject_GenericGetDict(object, NULL);
  if (names == NULL)
    return -1;
  found = PyDict_Contains(names, name);
  if (found == 0 && other != NULL)
    found = PyDict_Contains(names, other);
  Py_DECREF(names);
  return found;
}

int loop_has_own(loop_object *loop, PyObject *name) {
  return speedups_has_own((PyObject *)loop, loop->own_count, name, NULL);
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
  loop->own_count = -1;
  loop->selector_own_count = -1;
  return (PyObject *)loop;
}

/* How many attributes the complete loop and its selector have; unless somebody has been here already. */
static int remember_own(loop_object *loop) {
  int i, found = 0;

  loop->own_count = loop->selector_own_count = -1;
  for (i = 0; found == 0 && i < LOOP_METHODS; i++)
    found = loop_has_own(loop, loop->state->loop_method_names[i]);
  if (found == 0)
    loop->own_count = speedups_count_own((PyObject *)loop);
  if (found >= 0)
    found = speedups_has_own(loop->uv_selector, -1, loop->state->str_select, NULL);
  if (found == 0)
    loop->selector_own_count = speedups_count_own(loop->uv_selector);
  return found < 0 ? -1 : 0;
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
  moved = ready == NULL || loop->ready == NULL ? NULL : PyObject_CallMethodOneArg(ready, loop->state->str_extend, loop->ready);
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
  return remember_own(loop) < 0 ? NULL : Py_NewRef(Py_None);
}

static int loop_traverse(PyObject *self, visitproc visit, void *arg) {
  loop_object *loop = (loop_object *)self;
  Py_ssize_t i;
  int kind;

  Py_VISIT(Py_TYPE(self));
  Py_VISIT(loop->ready);
  Py_VISIT(loop->scheduled);
  Py_VISIT(loop->selector);
  Py_VISIT(loop->clock_resolution);
  Py_VISIT(loop->stopping);
  Py_VISIT(loop->debug);
  Py_VISIT(loop->closed);
  Py_VISIT(loop->task_factory);
  Py_VISIT(loop->core_owner);
  Py_VISIT(loop->scope);
  Py_VISIT(loop->uv_selector);
  Py_VISIT(loop->selector_select);
  Py_VISIT(loop->no_preparation);
  Py_VISIT(loop->drain_handle);
  for (kind = 0; kind < SPARE_KINDS; kind++)
    for (i = 0; i < loop->spare[kind].count; i++)
      Py_VISIT(loop->spare[kind].items[i]);
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
  Py_CLEAR(loop->task_factory);
  Py_CLEAR(loop->core_owner);
  Py_CLEAR(loop->scope);
  Py_CLEAR(loop->uv_selector);
  Py_CLEAR(loop->selector_select);
  Py_CLEAR(loop->no_preparation);
  Py_CLEAR(loop->drain_handle);
  spares_free(loop);
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
    {"create_task", FAST(loop_create_task), METH_FASTCALL | METH_KEYWORDS, "create_task($self, coro, **kwargs)\n--\n\nSee asyncio.loop.create_task."},
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
    MEMBER("_task_factory", task_factory),
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
