/* speedups_dispatch.c: from records to their owners: Dispatcher.drain(), whose Python twin and reasons (H1) are in
 * dispatch.py.  The cursor moves before each dispatch, and every record is looked at anew through it. */
#include "speedups.h"

typedef struct {
  PyObject_HEAD
  speedups_state *state;        /* borrowed: see speedups.h */
  /* From attach() on. */
  PyObject *core_owner;         /* the cdata that keeps core */
  vl_core *core;
  PyObject *owners;             /* Registry.owners: key -> owner */
  scope_object *scope;
  PyObject *report;             /* (exception, owner): a defect of ours */
  PyObject *waits;              /* Registry.waits */
} dispatcher_object;

static PyObject *dispatcher_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs)) {
  dispatcher_object *dispatcher = (dispatcher_object *)type->tp_alloc(type, 0);

  if (dispatcher == NULL)
    return NULL;
  dispatcher->state = speedups_state_by_type(type);
  if (dispatcher->state == NULL)
    Py_CLEAR(dispatcher);
  return (PyObject *)dispatcher;
}

/* _attach(pointer, address, owners, scope, report, waits) */
static PyObject *dispatcher_attach(PyObject *self, PyObject *args) {
  dispatcher_object *dispatcher = (dispatcher_object *)self;
  PyObject *owner, *address, *owners, *scope, *report, *waits;
  void *core;

  if (!PyArg_ParseTuple(args, "OO!O!O!OO:_attach", &owner, &PyLong_Type, &address, &PyDict_Type, &owners,
                        dispatcher->state->scope_type, &scope, &report, &waits))
    return NULL;
  core = PyLong_AsVoidPtr(address);
  if (core == NULL) {
    if (!PyErr_Occurred())
      PyErr_SetString(PyExc_ValueError, "no core");
    return NULL;
  }
  Py_XSETREF(dispatcher->core_owner, Py_NewRef(owner));
  Py_XSETREF(dispatcher->owners, Py_NewRef(owners));
  Py_XSETREF(dispatcher->scope, (scope_object *)Py_NewRef(scope));
  Py_XSETREF(dispatcher->report, Py_NewRef(report));
  Py_XSETREF(dispatcher->waits, Py_NewRef(waits));
  dispatcher->core = core;
  Py_RETURN_NONE;
}

static int dispatcher_traverse(PyObject *self, visitproc visit, void *arg) {
  dispatcher_object *dispatcher = (dispatcher_object *)self;

  Py_VISIT(Py_TYPE(self));
  Py_VISIT(dispatcher->core_owner);
  Py_VISIT(dispatcher->owners);
  Py_VISIT(dispatcher->scope);
  Py_VISIT(dispatcher->report);
  Py_VISIT(dispatcher->waits);
  return 0;
}

static int dispatcher_clear(PyObject *self) {
  dispatcher_object *dispatcher = (dispatcher_object *)self;

  dispatcher->core = NULL;
  Py_CLEAR(dispatcher->core_owner);
  Py_CLEAR(dispatcher->owners);
  Py_CLEAR(dispatcher->scope);
  Py_CLEAR(dispatcher->report);
  Py_CLEAR(dispatcher->waits);
  return 0;
}

static void dispatcher_dealloc(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);

  PyObject_GC_UnTrack(self);
  (void)dispatcher_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

/* -- records ------------------------------------------------------------------------- */

/* self.name(arguments), all but the first of them integers. */
static int tell(PyObject *self, PyObject *name, PyObject *first, int count, const int64_t *numbers) {
  PyObject *stack[7] = {self, first};
  PyObject *result = NULL;
  int i, made = 0;

  for (i = 0; i < count; i++, made++) {
    stack[2 + i] = PyLong_FromLongLong(numbers[i]);
    if (stack[2 + i] == NULL)
      break;
  }
  if (made == count)
    result = PyObject_VectorcallMethod(name, stack, (size_t)(2 + count) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
  for (i = 0; i < made; i++)
    Py_DECREF(stack[2 + i]);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* "except Exception": a defect of ours in an owner is reported; what is none rises. */
static int report_defect(dispatcher_object *dispatcher, PyObject *owner) {
  PyObject *exception, *result;

  if (!PyErr_ExceptionMatches(PyExc_Exception))
    return -1;
  exception = speedups_take_exception();
  result = PyObject_CallFunctionObjArgs(dispatcher->report, exception, owner, NULL);
  Py_DECREF(exception);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

static int enter_anew(speedups_state *state, PyObject *owner) {
  PyObject *result = PyObject_CallMethodNoArgs(owner, state->str_enter_anew);

  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* Whose record it is: borrowed, or NULL if it was closed after the poll; -1: an exception. */
static int find_owner(dispatcher_object *dispatcher, const vl_record *record, PyObject **owner) {
  PyObject *key = PyLong_FromLongLong(record->owner);

  if (key == NULL)
    return -1;
  *owner = PyDict_GetItemWithError(dispatcher->owners, key);
  Py_DECREF(key);
  return *owner == NULL && PyErr_Occurred() ? -1 : 0;
}

/* A READ or DATAGRAM record: what was received, for its owner. */
static int dispatch_received(dispatcher_object *dispatcher, const vl_record *record, int64_t head, int64_t outer) {
  speedups_state *state = dispatcher->state;
  int64_t *words = state->uv->core_words(dispatcher->core);
  PyObject *owner;
  int64_t numbers[3] = {record->segment, record->result, record->aux};
  int result;

  if (find_owner(dispatcher, record, &owner) < 0)
    return -1;
  words[VL_WORD_HEAD] = head + 1;
  if (owner == NULL)
    return 0; /* closed after the poll: nobody wants these bytes */
  Py_INCREF(owner);
  result = outer != 0 ? enter_anew(state, owner) : 0;
  if (result == 0) {
    bool read = record->op == VL_OP_READ;

    result = read ? stream_read(state, dispatcher->core, owner, record)
                  : datagram_receive(state, dispatcher->core, owner, record);
    if (result > 0) /* not for us */
      result = tell((PyObject *)dispatcher, read ? state->str__read_in_python : state->str__datagram_in_python, owner, 3,
                    numbers);
    if (result < 0)
      result = report_defect(dispatcher, owner);
  }
  Py_DECREF(owner);
  return result;
}

static int dispatch_other(dispatcher_object *dispatcher, const vl_record *record, int64_t head, int64_t outer) {
  speedups_state *state = dispatcher->state;
  int64_t numbers[5] = {record->op, record->segment, record->result, record->aux, outer};
  PyObject *key = PyLong_FromLongLong(record->owner);
  int result;

  if (key == NULL)
    return -1;
  state->uv->core_words(dispatcher->core)[VL_WORD_HEAD] = head + 1;
  result = tell((PyObject *)dispatcher, state->str__dispatch_other, key, 5, numbers);
  Py_DECREF(key);
  return result;
}

/* An ACCEPT record.  In a nested turn, or without an owner, Python does what there is to do. */
static int dispatch_accepted(dispatcher_object *dispatcher, const vl_record *record, int64_t head, int64_t outer) {
  speedups_state *state = dispatcher->state;
  int64_t *words = state->uv->core_words(dispatcher->core);
  PyObject *owner;
  int result = 1;

  if (find_owner(dispatcher, record, &owner) < 0)
    return -1;
  if (owner != NULL && outer == 0) {
    Py_INCREF(owner);
    words[VL_WORD_HEAD] = head + 1;
    result = listener_accept(state, dispatcher->core, owner, record);
    if (result < 0)
      result = report_defect(dispatcher, owner);
    Py_DECREF(owner);
  }
  return result > 0 ? dispatch_other(dispatcher, record, head, outer) : result;
}

static int dispatch_wait(dispatcher_object *dispatcher, const vl_record *record, int64_t head, int64_t outer) {
  PyObject *waits;
  int result;

  if (!served_is_plain(&dispatcher->state->waits, dispatcher->waits))
    return dispatch_other(dispatcher, record, head, outer);
  waits = Py_NewRef(dispatcher->waits);
  dispatcher->state->uv->core_words(dispatcher->core)[VL_WORD_HEAD] = head + 1;
  result = waits_over(dispatcher->state, waits, record->aux);
  if (result < 0)
    result = report_defect(dispatcher, waits);
  Py_DECREF(waits);
  return result;
}

static int drain(dispatcher_object *dispatcher) {
  const vl_exports *uv = dispatcher->state->uv;
  scope_object *scope = dispatcher->scope;
  vl_core *core = dispatcher->core;
  int64_t *words = uv->core_words(core);
  int64_t outer = words[VL_WORD_FRAMES];
  int64_t head;
  int result = 0;

  words[VL_WORD_FRAMES] = outer + 1;
  while (result == 0 && (head = words[VL_WORD_HEAD]) != words[VL_WORD_TAIL]) {
    vl_record record = uv->ring_segment(core, (int32_t)(head / VL_RING_SEGMENT_RECORDS))[head % VL_RING_SEGMENT_RECORDS];

    scope->serial++;
    if (record.op == VL_OP_READ || record.op == VL_OP_DATAGRAM)
      result = dispatch_received(dispatcher, &record, head, outer);
    else if (record.op == VL_OP_ACCEPT)
      result = dispatch_accepted(dispatcher, &record, head, outer);
    else if (record.op == VL_OP_WAIT)
      result = dispatch_wait(dispatcher, &record, head, outer);
    else
      result = dispatch_other(dispatcher, &record, head, outer);
    if (result == 0 && PyList_GET_SIZE(scope->corked) > 0)
      result = scope_end(scope);
  }
  words[VL_WORD_FRAMES] = outer;
  return scope_end_finally(scope, result);
}

static PyObject *dispatcher_drain(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  dispatcher_object *dispatcher = (dispatcher_object *)self;
  PyObject *core_owner, *scope;
  int result;

  if (dispatcher->core == NULL) {
    PyErr_SetString(PyExc_RuntimeError, "the dispatcher has no core");
    return NULL;
  }
  /* What is called may end the loop, and its last reference to them. */
  core_owner = Py_NewRef(dispatcher->core_owner);
  scope = Py_NewRef(dispatcher->scope);
  result = drain(dispatcher);
  Py_DECREF(scope);
  Py_DECREF(core_owner);
  return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* -- DrainHandle -------------------------------------------------------------------- */

int dispatcher_learn(PyObject *module, PyObject *type, PyObject *handle_type) {
  speedups_state *state = PyModule_GetState(module);

  if (speedups_slot_offset((PyTypeObject *)handle_type, "_dispatcher", &state->drain_dispatcher) < 0 ||
      served_learn(&state->dispatcher, type, state->str_drain) < 0 ||
      served_learn(&state->drain, handle_type, state->str__run) < 0)
    return -1;
  return 0;
}

bool drain_is_plain(speedups_state *state, PyObject *handle) {
  PyObject *dispatcher;

  if (!served_is_plain(&state->drain, handle) || SLOT(handle, state->slot.cancelled) != Py_False)
    return false;
  dispatcher = SLOT(handle, state->drain_dispatcher);
  return dispatcher != NULL && served_is_plain(&state->dispatcher, dispatcher);
}

int drain_run(speedups_state *state, PyObject *handle) {
  PyObject *result = dispatcher_drain(SLOT(handle, state->drain_dispatcher), NULL);
  PyObject *exception;

  if (result == NULL) {
    exception = speedups_take_exception();
    result = PyObject_CallMethodNoArgs(handle, state->str__requeue_rest);
    if (result == NULL)
      PyErr_WriteUnraisable(handle);
    speedups_give_exception(exception);
    Py_XDECREF(result);
    return -1;
  }
  Py_DECREF(result);
  return 0;
}

static PyMethodDef dispatcher_methods[] = {
    {"drain", dispatcher_drain, METH_NOARGS, "Dispatch records until the ring is empty."},
    {"_attach", dispatcher_attach, METH_VARARGS, "Take what drain() works on."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot dispatcher_slots[] = {
    {Py_tp_doc, "The base of Dispatcher: its hot method, in C."},
    {Py_tp_new, dispatcher_new},
    {Py_tp_traverse, dispatcher_traverse},
    {Py_tp_clear, dispatcher_clear},
    {Py_tp_dealloc, dispatcher_dealloc},
    {Py_tp_methods, dispatcher_methods},
    {0, NULL},
};

PyType_Spec speedups_dispatcher_spec = {
    .name = "velociloop._speedups.DispatcherBase",
    .basicsize = sizeof(dispatcher_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = dispatcher_slots,
};
