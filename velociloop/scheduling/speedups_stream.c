/* speedups_stream.c: the hot path of the stream transport's sending side: SendingSide.write() and what a corked transport
 * does when a callback ends, whose Python twins and reasons are in transports/sending.py.
 *
 * The transport's state stays in the slots of the Python class, the one home of each fact: C reads and sets them at
 * the offsets that the class's member descriptors tell.  Everything but the plain case goes to the Python code, which
 * finds nothing changed. */
#include "speedups.h"

int stream_learn(PyObject *module, PyObject *type, PyObject *values) {
  speedups_state *state = PyModule_GetState(module);
  stream_slots *slot = &state->stream_slot;
  PyTypeObject *stream = (PyTypeObject *)type;
  PyObject *active, *idle, *sending_open, *cork_in, *cork_out, *open, *closed, *send, *buffered;
  long calm;

  if (!PyArg_ParseTuple(values, "OOOOOOOOOl:register_stream", &active, &idle, &sending_open, &cork_in, &cork_out, &open,
                        &closed, &send, &buffered, &calm))
    return -1;
#define X(name)                                                              \
  if (speedups_slot_offset(stream, "_" #name, &slot->name) < 0)              \
    return -1;
  STREAM_SLOTS(X)
#undef X
  if (served_learn(&state->stream, type, state->str_on_read) < 0)
    return -1;
  Py_XSETREF(state->reading_active, Py_NewRef(active));
  Py_XSETREF(state->sending_open, Py_NewRef(sending_open));
  Py_XSETREF(state->cork_in, Py_NewRef(cork_in));
  Py_XSETREF(state->cork_out, Py_NewRef(cork_out));
  Py_XSETREF(state->send, Py_NewRef(send));
  Py_XSETREF(state->reading_idle, Py_NewRef(idle));
  Py_XSETREF(state->phase_open, Py_NewRef(open));
  Py_XSETREF(state->phase_closed, Py_NewRef(closed));
  Py_XSETREF(state->buffered_protocol, Py_NewRef(buffered));
  state->calm_callbacks = calm;
  return makers_learn(state);
}

/* Whether a slot holds an int of a C long; its value. */
static bool number(PyObject *object, Py_ssize_t offset, long *value) {
  PyObject *found = SLOT(object, offset);
  int overflow = 1;

  if (found == NULL || !PyLong_CheckExact(found))
    return false;
  *value = PyLong_AsLongAndOverflow(found, &overflow);
  return overflow == 0;
}

static int set_number(PyObject *object, Py_ssize_t offset, long long value) {
  PyObject *made = PyLong_FromLongLong(value);

  if (made == NULL)
    return -1;
  Py_XSETREF(SLOT(object, offset), made);
  return 0;
}

/* -- writing ------------------------------------------------------------------------ */

/* Whether nothing stands between a write and the kernel: no end, no sendfile, no error, nothing unsent, and the
 * shim's function where Core.send put it; *scope is the loop's then. */
static bool may_send(speedups_state *state, PyObject *self, scope_object **scope) {
  stream_slots *slot = &state->stream_slot;
  PyObject *found = SLOT(self, slot->scope);
  long lost, unsent;

  if (found == NULL || !Py_IS_TYPE(found, (PyTypeObject *)state->scope_type))
    return false;
  *scope = (scope_object *)found;
  return (*scope)->core != NULL && SLOT(self, slot->pointer) == (*scope)->core_owner &&
         SLOT(self, slot->sending) == state->sending_open && SLOT(self, slot->empty_waiter) == Py_None &&
         SLOT(self, slot->send) == state->send && number(self, slot->conn_lost, &lost) && lost == 0 &&
         number(self, slot->unsent_bytes, &unsent) && unsent == 0;
}

/* Sends exact bytes.  The GIL stays: the call never blocks, and getting it back can take 5 ms (H13). */
static PyObject *send_now(speedups_state *state, PyObject *self, scope_object *scope, PyObject *data) {
  Py_ssize_t size = PyBytes_GET_SIZE(data);
  PyObject *code, *result;
  long long key = PyLong_AsLongLong(SLOT(self, state->stream_slot.key));
  int64_t sent;

  if (key == -1 && PyErr_Occurred())
    return NULL;
  sent = state->uv->stream_try_write(scope->core, key, PyBytes_AS_STRING(data), (size_t)size);
  if (sent == size)
    Py_RETURN_NONE;
  code = PyLong_FromLongLong(sent);
  if (code == NULL)
    return NULL;
  result = PyObject_CallMethodObjArgs(self, state->str__after_try_write, code, data, NULL);
  Py_DECREF(code);
  return result;
}

/* 1: the bytes wait for the callback's end; 0: Python must decide; -1. */
static int put_corked(speedups_state *state, PyObject *self, scope_object *scope, PyObject *data) {
  stream_slots *slot = &state->stream_slot;
  PyObject *corked = SLOT(self, slot->corked);
  long writes, bytes, high;

  if (corked == NULL || (corked != Py_None && !PyList_CheckExact(corked)) ||
      !number(self, slot->callback_writes, &writes) || !number(self, slot->corked_bytes, &bytes) ||
      !number(self, slot->high_water, &high) || high - bytes < PyBytes_GET_SIZE(data))
    return 0;
  if (corked == Py_None) {
    corked = PyList_New(0);
    if (corked == NULL)
      return -1;
    Py_SETREF(SLOT(self, slot->corked), corked);
  }
  if (PyList_Append(corked, data) < 0)
    return -1;
  if (set_number(self, slot->corked_bytes, bytes + (long long)PyBytes_GET_SIZE(data)) < 0 ||
      set_number(self, slot->callback_writes, writes + 1LL) < 0)
    return -1;
  return writes == 0 && PyList_Append(scope->corked, self) < 0 ? -1 : 1;
}

static PyObject *stream_write(PyObject *self, PyTypeObject *defining_class, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames) {
  speedups_state *state = PyType_GetModuleState(defining_class);
  stream_slots *slot;
  scope_object *scope;
  PyObject *method, *result;
  long wrote_in;
  int corked;

  if (state == NULL)
    return NULL;
  slot = &state->stream_slot;
  if (nargs != 1 || kwnames != NULL || !PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) == 0 ||
      state->stream.type == NULL || !PyObject_TypeCheck(self, state->stream.type) || !may_send(state, self, &scope) ||
      !scope->active || !number(self, slot->wrote_in, &wrote_in))
    goto in_python;
  if (SLOT(self, slot->cork) == state->cork_in) {
    corked = put_corked(state, self, scope, args[0]);
    if (corked == 0)
      goto in_python;
    return corked < 0 ? NULL : Py_NewRef(Py_None);
  }
  if (SLOT(self, slot->cork) != state->cork_out || wrote_in == scope->serial)
    goto in_python;
  if (set_number(self, slot->wrote_in, scope->serial) < 0)
    return NULL;
  return send_now(state, self, scope, args[0]);

in_python:
  method = PyObject_GetAttr(self, state->str__write_in_python);
  result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);
  Py_XDECREF(method);
  return result;
}

static PyObject *join(PyObject *list, Py_ssize_t total) {
  PyObject *joined;
  Py_ssize_t i;
  char *out;

  if (PyList_GET_SIZE(list) == 1 && PyBytes_CheckExact(PyList_GET_ITEM(list, 0)))
    return Py_NewRef(PyList_GET_ITEM(list, 0));
  joined = PyBytes_FromStringAndSize(NULL, total);
  if (joined == NULL)
    return NULL;
  out = PyBytes_AS_STRING(joined);
  for (i = 0; i < PyList_GET_SIZE(list); i++) {
    PyObject *piece = PyList_GET_ITEM(list, i);

    if (!PyBytes_CheckExact(piece) || PyBytes_GET_SIZE(piece) > total)
      break;
    memcpy(out, PyBytes_AS_STRING(piece), (size_t)PyBytes_GET_SIZE(piece));
    out += PyBytes_GET_SIZE(piece);
    total -= PyBytes_GET_SIZE(piece);
  }
  if (i < PyList_GET_SIZE(list) || total != 0) {
    PyErr_SetString(PyExc_RuntimeError, "the corked pieces are not what was counted");
    Py_CLEAR(joined);
  }
  return joined;
}

/* on_callback_end(): counts calm callbacks, and sends what waits in one piece. */
static PyObject *stream_on_callback_end(PyObject *self, PyTypeObject *defining_class, PyObject *const *args,
                                        Py_ssize_t nargs, PyObject *kwnames) {
  speedups_state *state = PyType_GetModuleState(defining_class);
  stream_slots *slot;
  scope_object *scope;
  PyObject *corked, *data, *result;
  long writes, calm, bytes, high;

  if (state == NULL)
    return NULL;
  slot = &state->stream_slot;
  if (nargs != 0 || kwnames != NULL || state->stream.type == NULL || !PyObject_TypeCheck(self, state->stream.type) ||
      !may_send(state, self, &scope) || !number(self, slot->callback_writes, &writes) ||
      !number(self, slot->calm_callbacks, &calm) || !number(self, slot->corked_bytes, &bytes) ||
      !number(self, slot->high_water, &high) || (corked = SLOT(self, slot->corked)) == NULL ||
      !PyList_CheckExact(corked) || PyList_GET_SIZE(corked) == 0 || bytes > high) {
    PyObject *method = PyObject_GetAttr(self, state->str__callback_end_in_python);

    result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);
    Py_XDECREF(method);
    return result;
  }
  calm = writes == 1 ? calm + 1 : 0;
  data = join(corked, bytes);
  if (data == NULL || set_number(self, slot->calm_callbacks, calm) < 0 ||
      set_number(self, slot->callback_writes, 0) < 0 || set_number(self, slot->corked_bytes, 0) < 0) {
    Py_XDECREF(data);
    return NULL;
  }
  if (calm >= state->calm_callbacks)
    Py_XSETREF(SLOT(self, slot->cork), Py_NewRef(state->cork_out));
  Py_SETREF(SLOT(self, slot->corked), Py_NewRef(Py_None));
  result = send_now(state, self, scope, data);
  Py_DECREF(data);
  return result;
}

/* _begin_reading(): from its first call until reading is paused nothing of what it asks for is there. */
static PyObject *stream_begin_reading(PyObject *self, PyTypeObject *defining_class, PyObject *const *args,
                                      Py_ssize_t nargs, PyObject *kwnames) {
  speedups_state *state = PyType_GetModuleState(defining_class);
  stream_slots *slot;
  scope_object *scope;
  PyObject *context;
  long long key;

  if (state == NULL)
    return NULL;
  slot = &state->stream_slot;
  if (nargs != 0 || kwnames != NULL || state->stream.type == NULL || !Py_IS_TYPE(self, state->stream.type) ||
      !served_is_plain(&state->stream, self) || speedups_count_own(self) > 0 || !may_send(state, self, &scope) ||
      SLOT(self, slot->phase) != state->phase_open || SLOT(self, slot->reading) != state->reading_idle ||
      SLOT(self, slot->paused) != Py_False || SLOT(self, slot->held) != Py_None)
    goto in_python;
  key = PyLong_AsLongLong(SLOT(self, slot->key));
  if (key == -1 && PyErr_Occurred())
    return NULL;
  if (state->uv->stream_read_start(scope->core, key) != 0)
    goto in_python; /* it fails there, too */
  context = PyContext_CopyCurrent();
  if (context == NULL)
    return NULL;
  Py_XSETREF(SLOT(self, slot->read_context), context);
  Py_SETREF(SLOT(self, slot->reading), Py_NewRef(state->reading_active));
  Py_RETURN_NONE;
in_python: {
  PyObject *method = PyObject_GetAttr(self, state->str__begin_reading_in_python);
  PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);

  Py_XDECREF(method);
  return result;
}
}

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef stream_methods[] = {
    {"_write", METHOD(stream_write), METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Send data; never blocks.  See SendingSide.write in velociloop.transports.sending."},
    {"_begin_reading", METHOD(stream_begin_reading), METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Start reading, if nothing speaks against it.  See SocketTransport in velociloop.transports.endpoint."},
    {"on_callback_end", METHOD(stream_on_callback_end), METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Send what was held back."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_type_slots[] = {
    {Py_tp_doc, "The base of SendingSide: its hot methods, in C."},
    {Py_tp_methods, stream_methods},
    {0, NULL},
};

/* No fields: a C struct beside asyncio's slots would be a conflict of layouts. */
PyType_Spec speedups_stream_spec = {
    .name = "velociloop._speedups.SendingBase",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stream_type_slots,
};
