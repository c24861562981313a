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
static PyObject *original(PyTypeObject *type, const char *class_name, const char *name) {
  PyObject *found = PyObject_GetAttrString((PyObject *)type, name);

  if (found != NULL && !speedups_is_original(found, class_name, name)) {
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
  if ((state->handle_run = original(handle, "Handle", "_run")) == NULL ||
      (state->handle_init = original(handle, "Handle", "__init__")) == NULL ||
      (state->handle_new = PyObject_GetAttrString((PyObject *)handle, "__new__")) == NULL ||
      (state->handle_cancel = original(handle, "Handle", "cancel")) == NULL ||
      (state->timer_run = original(timer, "Handle", "_run")) == NULL ||
      (state->timer_init = original(timer, "TimerHandle", "__init__")) == NULL ||
      (state->timer_new = PyObject_GetAttrString((PyObject *)timer, "__new__")) == NULL ||
      (state->timer_less = original(timer, "TimerHandle", "__lt__")) == NULL ||
      (state->timer_cancel = original(timer, "TimerHandle", "cancel")) == NULL)
    return -1;
  if (state->safe_type == NULL)
    return 0;
  if ((state->safe_run = original(state->safe_type, "_ThreadSafeHandle", "_run")) == NULL ||
      (state->safe_init = original(state->safe_type, "_ThreadSafeHandle", "__init__")) == NULL ||
      (state->safe_new = PyObject_GetAttrString((PyObject *)state->safe_type, "__new__")) == NULL)
    return -1;
  return 0;
}

/* A finalizer would be told of each object once, and ours come again. */
static bool has_finalizer(PyTypeObject *type) {
  return type->tp_finalize != NULL || type->tp_del != NULL;
}

bool handles_are_plain(speedups_state *state) {
  PyTypeObject *type = state->handle_type;

  if (type == NULL) /* the module was cleared, and this is a finalizer */
    return false;
  if (type->tp_version_tag != 0 && type->tp_version_tag == state->handle_version)
    return true;
  if (has_finalizer(type) || !speedups_has_still(type, state->str__run, state->handle_run) ||
      !speedups_has_still(type, state->str___init__, state->handle_init) || !speedups_has_still(type, state->str___new__, state->handle_new))
    return false;
  state->handle_version = type->tp_version_tag;
  return true;
}

bool timers_are_plain(speedups_state *state) {
  PyTypeObject *type = state->timer_type;

  if (type == NULL || state->handle_type == NULL)
    return false;
  if (type->tp_version_tag != 0 && type->tp_version_tag == state->timer_version)
    return true;
  if (!speedups_has_still(type, state->str__run, state->timer_run) || !speedups_has_still(type, state->str___init__, state->timer_init) ||
      !speedups_has_still(type, state->str___new__, state->timer_new) || !speedups_has_still(type, state->str___lt__, state->timer_less) ||
      !speedups_has_still(type, state->str_cancel, state->timer_cancel) ||
      !speedups_has_still(state->handle_type, state->str_cancel, state->handle_cancel))
    return false;
  state->timer_version = type->tp_version_tag;
  return true;
}

bool safe_handles_are_plain(speedups_state *state) {
  PyTypeObject *type = state->safe_type;

  if (type == NULL)
    return true;
  if (type->tp_version_tag != 0 && type->tp_version_tag == state->safe_version)
    return true;
  if (!speedups_has_still(type, state->str__run, state->safe_run) || !speedups_has_still(type, state->str___init__, state->safe_init) ||
      !speedups_has_still(type, state->str___new__, state->safe_new))
    return false;
  state->safe_version = type->tp_version_tag;
  return true;
}

/* -- making them ------------------------------------------------------------------ */

/* What is the same in each Handle that has not been touched: a spare one keeps it. */
static void fill(speedups_state *state, loop_object *loop, PyObject *handle) {
  handle_slots *slot = &state->slot;

  SLOT(handle, slot->loop) = Py_NewRef(loop);
  SLOT(handle, slot->cancelled) = Py_NewRef(Py_False);
  SLOT(handle, slot->repr) = Py_NewRef(Py_None);
  SLOT(handle, slot->source_traceback) = Py_NewRef(Py_None);
}

static bool is_untouched(speedups_state *state, loop_object *loop, PyObject *handle, bool timer) {
  handle_slots *slot = &state->slot;

  return SLOT(handle, slot->loop) == (PyObject *)loop && SLOT(handle, slot->cancelled) == Py_False &&
         SLOT(handle, slot->repr) == Py_None && SLOT(handle, slot->source_traceback) == Py_None &&
         (!timer || SLOT(handle, slot->scheduled) == Py_False);
}

/* Where handles of this type wait for the next use; NULL: they do not. */
static spare_handles *spare_of(loop_object *loop, PyTypeObject *type) {
  speedups_state *state = loop->state;

  if (type == state->handle_type)
    return &loop->spare[SPARE_HANDLE];
  if (type == state->fast_timer_type)
    return &loop->spare[SPARE_TIMER];
  return state->fast_safe_type != NULL && type == state->fast_safe_type ? &loop->spare[SPARE_SAFE] : NULL;
}

/* Of one of the three types. */
static PyObject *make(loop_object *loop, PyTypeObject *type, PyObject *callback, PyObject *args,
                      PyObject *context) {
  handle_slots *slot = &loop->state->slot;
  spare_handles *spare;
  PyObject *handle;

  context = context == NULL ? PyContext_CopyCurrent() : Py_NewRef(context);
  if (context == NULL) {
    Py_DECREF(args);
    return NULL;
  }
  spare = spare_of(loop, type);
  if (spare->count > 0)
    handle = spare->items[--spare->count];
  else if ((handle = type->tp_alloc(type, 0)) != NULL)
    fill(loop->state, loop, handle);
  if (handle == NULL) {
    Py_DECREF(args);
    Py_DECREF(context);
    return NULL;
  }
  SLOT(handle, slot->context) = context;
  SLOT(handle, slot->callback) = Py_NewRef(callback);
  SLOT(handle, slot->args) = args;
  return handle;
}

PyObject *handle_make(loop_object *loop, PyObject *callback, PyObject *args, PyObject *context) {
  return make(loop, loop->state->handle_type, callback, args, context);
}

PyObject *timer_make(loop_object *loop, PyObject *when, PyObject *callback, PyObject *args, PyObject *context) {
  speedups_state *state = loop->state;
  PyObject *timer = make(loop, state->fast_timer_type, callback, args, context);

  if (timer == NULL)
    return NULL;
  SLOT(timer, state->slot.when) = Py_NewRef(when);
  if (SLOT(timer, state->slot.scheduled) == NULL) /* not a spare one */
    SLOT(timer, state->slot.scheduled) = Py_NewRef(Py_False);
  return timer;
}

PyObject *safe_handle_make(loop_object *loop, PyObject *callback, PyObject *args, PyObject *context) {
  speedups_state *state = loop->state;

  return make(loop, state->safe_type == NULL ? state->handle_type : state->fast_safe_type, callback, args, context);
}

static bool may_be_spare(speedups_state *state, loop_object *loop, PyObject *handle, const spare_handles *spare) {
  return Py_REFCNT(handle) == 1 && spare->count < MOST_SPARES && *PyObject_GET_WEAKREFS_LISTPTR(handle) == NULL &&
         is_untouched(state, loop, handle, spare == &loop->spare[SPARE_TIMER]) &&
         (spare != &loop->spare[SPARE_SAFE] || safe_handle_is_idle(state, handle));
}

static bool spare_has_room(spare_handles *spare) {
  Py_ssize_t room = spare->room == 0 ? 64 : spare->room * 2;
  PyObject **items;

  if (spare->count < spare->room)
    return true;
  items = PyMem_Realloc(spare->items, (size_t)room * sizeof(*items));
  if (items == NULL)
    return false;
  spare->items = items;
  spare->room = room;
  return true;
}

void handle_done(loop_object *loop, PyObject *handle) {
  speedups_state *state = loop->state;
  handle_slots *slot = &state->slot;
  spare_handles *spare = spare_of(loop, Py_TYPE(handle));

  if (spare == NULL || !handles_are_plain(state) || !may_be_spare(state, loop, handle, spare)) {
    Py_DECREF(handle);
    return;
  }
  if (spare == &loop->spare[SPARE_TIMER])
    Py_CLEAR(SLOT(handle, slot->when));
  Py_CLEAR(SLOT(handle, slot->context));
  Py_CLEAR(SLOT(handle, slot->callback));
  Py_CLEAR(SLOT(handle, slot->args));
  /* What was just released may have run Python code, which may have asked gc for all objects, or scheduled. */
  if (!may_be_spare(state, loop, handle, spare) || !spare_has_room(spare)) {
    Py_DECREF(handle);
    return;
  }
  spare->items[spare->count++] = handle;
}

/* A spare handle has nothing that could run code but its loop, which lives. */
static void drop_spare(spare_handles *spare) {
  PyObject *handle = spare->items[--spare->count];

  Py_DECREF(handle);
}

void spares_dwindle(loop_object *loop) {
  int kind;

  for (kind = 0; kind < SPARE_KINDS; kind++) {
    spare_handles *spare = &loop->spare[kind];
    Py_ssize_t many = spare->count - SPARES_KEPT;

    for (many = (many + SPARES_DROPPED_AT_ONCE - 1) / SPARES_DROPPED_AT_ONCE; many > 0; many--)
      drop_spare(spare);
  }
}

void spares_free(loop_object *loop) {
  int kind;

  for (kind = 0; kind < SPARE_KINDS; kind++) {
    spare_handles *spare = &loop->spare[kind];

    while (spare->count > 0)
      drop_spare(spare);
    PyMem_Free(spare->items);
    spare->items = NULL;
    spare->room = 0;
  }
}

/* -- our TimerHandle -------------------------------------------------------------------- */

static PyObject *cancel_by_asyncio(speedups_state *state, PyObject *timer) {
  PyObject *method = PyObject_GetAttr((PyObject *)state->timer_type, state->str_cancel);
  PyObject *result = method == NULL ? NULL : PyObject_CallOneArg(method, timer);

  Py_XDECREF(method);
  return result;
}

/* TimerHandle.cancel(), and with it Handle.cancel() and the loop's _timer_handle_cancelled(). */
static PyObject *timer_cancel(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  speedups_state *state = speedups_state_by_type(Py_TYPE(self));
  handle_slots *slot = &state->slot;
  PyObject *owner = SLOT(self, slot->loop);
  PyObject *cancelled = SLOT(self, slot->cancelled);
  PyObject *scheduled = SLOT(self, slot->scheduled);
  PyObject *callback, *args;
  int own;

  if (owner == NULL || state->loop_base == NULL || !PyObject_TypeCheck(owner, (PyTypeObject *)state->loop_base) ||
      (cancelled != Py_False && cancelled != Py_True) || (scheduled != Py_False && scheduled != Py_True) ||
      !loop_is_plain((loop_object *)owner) || !timers_are_plain(state))
    return cancel_by_asyncio(state, self);
  if (cancelled == Py_True)
    Py_RETURN_NONE;
  own = loop_has_own((loop_object *)owner, state->str__timer_handle_cancelled);
  if (own != 0)
    return own < 0 ? NULL : cancel_by_asyncio(state, self);
  if (loop_timer_cancelled((loop_object *)owner, self) < 0)
    return NULL;
  callback = SLOT(self, slot->callback);
  args = SLOT(self, slot->args);
  SLOT(self, slot->cancelled) = Py_NewRef(Py_True);
  SLOT(self, slot->callback) = Py_NewRef(Py_None);
  SLOT(self, slot->args) = Py_NewRef(Py_None);
  Py_DECREF(cancelled);
  Py_XDECREF(callback);
  Py_XDECREF(args);
  Py_RETURN_NONE;
}

static PyMethodDef timer_methods[] = {
    {"cancel", timer_cancel, METH_NOARGS, "cancel($self)\n--\n\nSee asyncio.Handle.cancel."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot timer_slots[] = {
    {Py_tp_doc, "asyncio.TimerHandle, as call_later() and call_at() make it."},
    {Py_tp_methods, timer_methods},
    {0, NULL},
};

/* Of its base it has everything: size, slots, life. */
PyType_Spec speedups_timer_spec = {
    .name = "velociloop._speedups.TimerHandle",
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = timer_slots,
};

/* -- running them ------------------------------------------------------------------- */

int handle_is_cancelled(speedups_state *state, PyObject *handle) {
  PyObject *cancelled;
  int result;

  if (Py_IS_TYPE(handle, state->handle_type) || is_timer(state, handle)) {
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

static int run_by_python(speedups_state *state, PyObject *handle) {
  PyObject *result = PyObject_CallMethodNoArgs(handle, state->str__run);

  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

int handle_run_plain(speedups_state *state, PyObject *handle) {
  handle_slots *slot = &state->slot;
  PyObject *context = SLOT(handle, slot->context);
  PyObject *callback = SLOT(handle, slot->callback);
  PyObject *args = SLOT(handle, slot->args);
  PyObject *result;

  if (context == NULL || !PyContext_CheckExact(context) || callback == NULL || args == NULL ||
      !PyTuple_CheckExact(args))
    return run_by_python(state, handle);
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

int handle_run(speedups_state *state, PyObject *handle) {
  if ((Py_IS_TYPE(handle, state->handle_type) && handles_are_plain(state)) ||
      (is_timer(state, handle) && timers_are_plain(state)))
    return handle_run_plain(state, handle);
  if (state->fast_safe_type != NULL && Py_IS_TYPE(handle, state->fast_safe_type) && safe_handles_are_plain(state))
    return safe_handle_run(state, handle);
  return run_by_python(state, handle);
}
