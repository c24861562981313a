/* speedups_handle.c: asyncio's Handle and TimerHandle, made and run without their Python code.
 *
 * Facts (H3): a Handle is an object with slots, whose offsets its member descriptors tell; its size differs
 * between versions, so the type's own tp_alloc makes it.  Whoever replaces Handle._run or puts an object of his own
 * into the ready queue is obeyed: only exact types are inlined, and only while the type has what it had. */
#include "speedups.h"

int speedups_slot_offset(PyTypeObject *type, const char *name, Py_ssize_t *offset) {
  PyObject *found = PyObject_GetAttrString((PyObject *)type, name);
  int result = -1;

  if (found == NULL)
    return -1;
  if (Py_IS_TYPE(found, &PyMemberDescr_Type) && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX) {
    *offset = ((PyMemberDescrObject *)found)->d_member->offset;
    result = 0;
  } else {
    PyErr_Format(PyExc_ImportError, "%s.%s is no slot", type->tp_name, name);
  }
  Py_DECREF(found);
  return result;
}

/* A method of asyncio's own, not somebody's replacement from before we came. */
static PyObject *original(PyTypeObject *type, const char *name) {
  PyObject *found = PyObject_GetAttrString((PyObject *)type, name);

  if (found != NULL && !PyFunction_Check(found)) {
    PyErr_Format(PyExc_ImportError, "%s.%s is not asyncio's own", type->tp_name, name);
    Py_CLEAR(found);
  }
  return found;
}

int handles_learn(speedups_state *state) {
  PyTypeObject *handle = state->handle_type;
  PyTypeObject *timer = state->timer_type;
  handle_slots *slot = &state->slot;

  if (speedups_slot_offset(handle, "_callback", &slot->callback) < 0 || speedups_slot_offset(handle, "_args", &slot->args) < 0 ||
      speedups_slot_offset(handle, "_cancelled", &slot->cancelled) < 0 || speedups_slot_offset(handle, "_loop", &slot->loop) < 0 ||
      speedups_slot_offset(handle, "_source_traceback", &slot->source_traceback) < 0 ||
      speedups_slot_offset(handle, "_repr", &slot->repr) < 0 || speedups_slot_offset(handle, "_context", &slot->context) < 0 ||
      speedups_slot_offset(timer, "_scheduled", &slot->scheduled) < 0 || speedups_slot_offset(timer, "_when", &slot->when) < 0)
    return -1;
  if ((state->handle_run = original(handle, "_run")) == NULL ||
      (state->handle_init = original(handle, "__init__")) == NULL ||
      (state->handle_new = PyObject_GetAttrString((PyObject *)handle, "__new__")) == NULL ||
      (state->timer_run = original(timer, "_run")) == NULL ||
      (state->timer_init = original(timer, "__init__")) == NULL ||
      (state->timer_new = PyObject_GetAttrString((PyObject *)timer, "__new__")) == NULL ||
      (state->timer_less = original(timer, "__lt__")) == NULL ||
      (state->timer_cancel = original(timer, "cancel")) == NULL)
    return -1;
  return 0;
}

/* A type's version changes with every change of what can be looked up in it; 0 is "none given yet". */
static bool has_still(PyTypeObject *type, const char *name, PyObject *expected) {
  PyObject *found = PyObject_GetAttrString((PyObject *)type, name);
  bool same = found == expected;

  if (found == NULL)
    PyErr_Clear();
  Py_XDECREF(found);
  return same;
}

/* A finalizer would be told of each object once, and ours come again. */
static bool has_finalizer(PyTypeObject *type) {
  return type->tp_finalize != NULL || type->tp_del != NULL;
}

bool handles_are_plain(speedups_state *state) {
  PyTypeObject *type = state->handle_type;

  if (type->tp_version_tag != 0 && type->tp_version_tag == state->handle_version)
    return true;
  if (has_finalizer(type) || !has_still(type, "_run", state->handle_run) ||
      !has_still(type, "__init__", state->handle_init) || !has_still(type, "__new__", state->handle_new))
    return false;
  state->handle_version = type->tp_version_tag;
  return true;
}

bool timers_are_plain(speedups_state *state) {
  PyTypeObject *type = state->timer_type;

  if (type->tp_version_tag != 0 && type->tp_version_tag == state->timer_version)
    return true;
  if (!has_still(type, "_run", state->timer_run) || !has_still(type, "__init__", state->timer_init) ||
      !has_still(type, "__new__", state->timer_new) || !has_still(type, "__lt__", state->timer_less) ||
      !has_still(type, "cancel", state->timer_cancel))
    return false;
  state->timer_version = type->tp_version_tag;
  return true;
}

/* -- making them ------------------------------------------------------------------ */

static void fill(speedups_state *state, loop_object *loop, PyObject *handle, PyObject *callback, PyObject *args,
                 PyObject *context) {
  handle_slots *slot = &state->slot;

  SLOT(handle, slot->context) = context;
  SLOT(handle, slot->loop) = Py_NewRef(loop);
  SLOT(handle, slot->callback) = Py_NewRef(callback);
  SLOT(handle, slot->args) = args;
  SLOT(handle, slot->cancelled) = Py_NewRef(Py_False);
  SLOT(handle, slot->repr) = Py_NewRef(Py_None);
  SLOT(handle, slot->source_traceback) = Py_NewRef(Py_None);
}

static PyObject *make(loop_object *loop, PyTypeObject *type, PyObject *callback, PyObject *args,
                      PyObject *context) {
  PyObject *handle;

  context = context == NULL ? PyContext_CopyCurrent() : Py_NewRef(context);
  if (context == NULL) {
    Py_DECREF(args);
    return NULL;
  }
  if (loop->spare_count > 0 && type == loop->state->handle_type)
    handle = loop->spare[--loop->spare_count];
  else
    handle = type->tp_alloc(type, 0);
  if (handle == NULL) {
    Py_DECREF(args);
    Py_DECREF(context);
    return NULL;
  }
  fill(loop->state, loop, handle, callback, args, context);
  return handle;
}

PyObject *handle_make(loop_object *loop, PyObject *callback, PyObject *args, PyObject *context) {
  return make(loop, loop->state->handle_type, callback, args, context);
}

PyObject *timer_make(loop_object *loop, PyObject *when, PyObject *callback, PyObject *args, PyObject *context) {
  speedups_state *state = loop->state;
  PyObject *timer = make(loop, state->timer_type, callback, args, context);

  if (timer == NULL)
    return NULL;
  SLOT(timer, state->slot.when) = Py_NewRef(when);
  SLOT(timer, state->slot.scheduled) = Py_NewRef(Py_False);
  return timer;
}

void handle_done(loop_object *loop, PyObject *handle) {
  speedups_state *state = loop->state;
  handle_slots *slot = &state->slot;

  if (Py_REFCNT(handle) != 1 || loop->spare_count == SPARE_HANDLES || !Py_IS_TYPE(handle, state->handle_type) ||
      !handles_are_plain(state) || *PyObject_GET_WEAKREFS_LISTPTR(handle) != NULL) {
    Py_DECREF(handle);
    return;
  }
  Py_CLEAR(SLOT(handle, slot->context));
  Py_CLEAR(SLOT(handle, slot->callback));
  Py_CLEAR(SLOT(handle, slot->args));
  Py_CLEAR(SLOT(handle, slot->loop));
  Py_CLEAR(SLOT(handle, slot->cancelled));
  Py_CLEAR(SLOT(handle, slot->repr));
  Py_CLEAR(SLOT(handle, slot->source_traceback));
  /* What was just released may have run Python code, which may have asked gc for all objects, or scheduled. */
  if (Py_REFCNT(handle) != 1 || loop->spare_count == SPARE_HANDLES) {
    Py_DECREF(handle);
    return;
  }
  loop->spare[loop->spare_count++] = handle;
}

/* -- running them ------------------------------------------------------------------- */

int handle_is_cancelled(speedups_state *state, PyObject *handle) {
  PyObject *cancelled;
  int result;

  if (Py_IS_TYPE(handle, state->handle_type) || Py_IS_TYPE(handle, state->timer_type)) {
    cancelled = SLOT(handle, state->slot.cancelled);
    if (cancelled == Py_False)
      return 0;
    if (cancelled == Py_True)
      return 1;
  }
  cancelled = PyObject_GetAttr(handle, state->str__cancelled);
  if (cancelled == NULL)
    return -1;
  result = PyObject_IsTrue(cancelled);
  Py_DECREF(cancelled);
  return result;
}

static int report(speedups_state *state, PyObject *handle) {
  PyObject *before, *exception, *result;

  if (speedups_must_rise())
    return -1;
  exception = speedups_take_exception();
  /* The handler may ask for the exception that is being handled, as it can in an except block. */
  before = PyErr_GetHandledException();
  PyErr_SetHandledException(exception);
  result = PyObject_CallFunctionObjArgs(state->report, handle, exception, NULL);
  PyErr_SetHandledException(before);
  Py_XDECREF(before);
  Py_DECREF(exception);
  if (result == NULL)
    return -1;
  Py_DECREF(result);
  return 0;
}

#define FEW_ARGS 6

static PyObject *call(PyObject *callback, PyObject *args) {
  Py_ssize_t count = PyTuple_GET_SIZE(args);
  PyObject *stack[1 + FEW_ARGS];
  Py_ssize_t i;

  if (count > FEW_ARGS)
    return PyObject_Call(callback, args, NULL);
  /* The free place in front lets a bound method put its self there. */
  stack[0] = NULL;
  for (i = 0; i < count; i++)
    stack[1 + i] = PyTuple_GET_ITEM(args, i);
  return PyObject_Vectorcall(callback, stack + 1, (size_t)count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

int handle_run(speedups_state *state, PyObject *handle) {
  handle_slots *slot = &state->slot;
  PyObject *context, *callback, *args, *result;
  bool known = (Py_IS_TYPE(handle, state->handle_type) && handles_are_plain(state)) ||
               (Py_IS_TYPE(handle, state->timer_type) && timers_are_plain(state));

  context = known ? SLOT(handle, slot->context) : NULL;
  callback = known ? SLOT(handle, slot->callback) : NULL;
  args = known ? SLOT(handle, slot->args) : NULL;
  if (context == NULL || !PyContext_CheckExact(context) || callback == NULL || args == NULL ||
      !PyTuple_CheckExact(args)) {
    result = PyObject_CallMethodNoArgs(handle, state->str__run);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
  }
  /* The callback may cancel its handle, which drops them. */
  Py_INCREF(context);
  Py_INCREF(callback);
  Py_INCREF(args);
  if (PyContext_Enter(context) < 0) {
    result = NULL;
  } else {
    result = call(callback, args);
    if (PyContext_Exit(context) < 0)
      Py_CLEAR(result);
  }
  Py_DECREF(args);
  Py_DECREF(callback);
  Py_DECREF(context);
  if (result == NULL)
    return report(state, handle);
  Py_DECREF(result);
  return 0;
}
