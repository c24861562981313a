/* speedups_datagram.c: the hot path of the datagram transport: DatagramTransport.on_datagram() and sendto(), whose Python
 * twins and reasons are in transports/datagram.py.  Everything but the plain case goes to the Python code, which finds
 * nothing changed. */
#include "speedups.h"

int datagram_learn(PyObject *module, PyObject *type, PyObject *values) {
  speedups_state *state = PyModule_GetState(module);
  datagram_slots *slot = &state->datagram_slot;
  PyTypeObject *datagram = (PyTypeObject *)type;
  PyObject *phase, *active, *send, *decode;
  long again;

  if (!PyArg_ParseTuple(values, "OOOOl:register_datagram", &phase, &active, &send, &decode, &again))
    return -1;
#define X(name)                                                              \
  if (speedups_slot_offset(datagram, "_" #name, &slot->name) < 0)            \
    return -1;
  DATAGRAM_SLOTS(X)
#undef X
  Py_XSETREF(state->datagram_open, Py_NewRef(phase));
  Py_XSETREF(state->datagram_reading, Py_NewRef(active));
  Py_XSETREF(state->send_datagram, Py_NewRef(send));
  Py_XSETREF(state->decode_address, Py_NewRef(decode));
  state->again = again;
  return served_learn(&state->datagram, type, state->str_on_datagram);
}

/* -- receiving ---------------------------------------------------------------------- */

/* What the protocol has raised, to the exception handler, as in an except block. */
static int receiver_failed(speedups_state *state, PyObject *owner, PyObject *protocol) {
  PyObject *exception, *before, *callback, *result;

  if (speedups_must_rise())
    return -1;
  exception = speedups_take_exception();
  callback = PyObject_GetAttr(protocol, state->str_datagram_received);
  if (callback == NULL) {
    PyErr_Clear();
    callback = Py_NewRef(Py_None);
  }
  before = PyErr_GetHandledException();
  PyErr_SetHandledException(exception);
  result = PyObject_CallMethodObjArgs(owner, state->str__report_callback, callback, exception, NULL);
  PyErr_SetHandledException(before);
  Py_XDECREF(before);
  Py_DECREF(callback);
  Py_DECREF(exception);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* The sender of the datagram at this place of the slab. */
static PyObject *sender_of(speedups_state *state, const char *place) {
  PyObject *raw, *address;
  int64_t length;

  memcpy(&length, place, sizeof(length));
  raw = PyBytes_FromStringAndSize(place + sizeof(length), (Py_ssize_t)length);
  address = raw == NULL ? NULL : PyObject_CallOneArg(state->decode_address, raw);
  Py_XDECREF(raw);
  return address;
}

static PyObject *deliver(speedups_state *state, PyObject *context, PyObject *protocol, PyObject *data,
                         PyObject *address) {
  PyObject *stack[3] = {protocol, data, address};
  PyObject *result;

  if (PyContext_Enter(context) < 0)
    return NULL;
  result = PyObject_VectorcallMethod(state->str_datagram_received, stack, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
  if (PyContext_Exit(context) < 0)
    Py_CLEAR(result);
  return result;
}

int datagram_receive(speedups_state *state, vl_core *core, PyObject *owner, const vl_record *record) {
  datagram_slots *slot = &state->datagram_slot;
  PyObject *context, *protocol, *data, *address, *result;
  const char *place;
  int failed;

  if (record->result < 0 || !served_is_plain(&state->datagram, owner) ||
      SLOT(owner, slot->phase) != state->datagram_open || SLOT(owner, slot->reading) != state->datagram_reading ||
      SLOT(owner, slot->held) != Py_None)
    return 1;
  context = SLOT(owner, slot->read_context);
  protocol = SLOT(owner, slot->protocol);
  if (context == NULL || !PyContext_CheckExact(context) || protocol == NULL)
    return 1;
  place = state->uv->slab_segment(core, record->segment) + record->aux;
  address = sender_of(state, place);
  if (address == NULL)
    return -1;
  data = PyBytes_FromStringAndSize(place + VL_DATAGRAM_HEADER, (Py_ssize_t)record->result);
  if (data == NULL) {
    Py_DECREF(address);
    return -1;
  }
  Py_INCREF(context);
  Py_INCREF(protocol);
  result = deliver(state, context, protocol, data, address);
  Py_DECREF(data);
  Py_DECREF(address);
  failed = result == NULL ? receiver_failed(state, owner, protocol) : 0;
  Py_XDECREF(result);
  Py_DECREF(protocol);
  Py_DECREF(context);
  return failed;
}

/* -- sending ------------------------------------------------------------------------ */

/* The receiver's struct sockaddr, borrowed; NULL where Python must find it, or an exception is set. */
static PyObject *known_receiver(PyObject *table, PyObject *address) {
  if (table == NULL || !PyDict_CheckExact(table) || !PyTuple_CheckExact(address) || PyTuple_GET_SIZE(address) != 2 ||
      !PyUnicode_CheckExact(PyTuple_GET_ITEM(address, 0)) || !PyLong_CheckExact(PyTuple_GET_ITEM(address, 1)))
    return NULL;
  return PyDict_GetItemWithError(table, address);
}

/* What stands between a datagram and the kernel: an end, a fixed receiver, something unsent, a replaced Core.send_datagram. */
static bool may_send(speedups_state *state, PyObject *self, scope_object **scope) {
  datagram_slots *slot = &state->datagram_slot;
  PyObject *found = SLOT(self, slot->scope);
  PyObject *buffer = SLOT(self, slot->buffer);

  if (found == NULL || !Py_IS_TYPE(found, (PyTypeObject *)state->scope_type) || buffer == NULL ||
      !Py_IS_TYPE(buffer, state->deque_type))
    return false;
  *scope = (scope_object *)found;
  return (*scope)->core != NULL && SLOT(self, slot->pointer) == (*scope)->core_owner &&
         SLOT(self, slot->phase) == state->datagram_open && SLOT(self, slot->address) == Py_None &&
         SLOT(self, slot->connected) == Py_False && SLOT(self, slot->send) == state->send_datagram &&
         PyObject_Size(buffer) == 0;
}

static PyObject *send_failed(speedups_state *state, PyObject *self, int64_t code) {
  PyObject *number = PyLong_FromLongLong(code);
  PyObject *result = number == NULL ? NULL : PyObject_CallMethodOneArg(self, state->str__send_failed, number);

  Py_XDECREF(number);
  return result;
}

/* _sendto(data, addr) */
static PyObject *datagram_sendto(PyObject *self, PyTypeObject *defining_class, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *kwnames) {
  speedups_state *state = PyType_GetModuleState(defining_class);
  PyObject *method, *receiver, *result;
  scope_object *scope;
  long long key;
  int64_t sent;

  if (state == NULL)
    return NULL;
  if (nargs != 2 || kwnames != NULL || !PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) == 0 ||
      state->datagram.type == NULL || !PyObject_TypeCheck(self, state->datagram.type) || !may_send(state, self, &scope))
    goto in_python;
  receiver = known_receiver(SLOT(self, state->datagram_slot.receivers), args[1]);
  if (receiver == NULL || !PyBytes_CheckExact(receiver))
    goto in_python;
  key = PyLong_AsLongLong(SLOT(self, state->datagram_slot.key));
  if (key == -1 && PyErr_Occurred())
    return NULL;
  /* The GIL stays, as with streams. */
  sent = state->uv->udp_try_send(scope->core, key, PyBytes_AS_STRING(args[0]), (size_t)PyBytes_GET_SIZE(args[0]),
                                 PyBytes_AS_STRING(receiver), (size_t)PyBytes_GET_SIZE(receiver));
  if (sent >= 0)
    Py_RETURN_NONE;
  if (sent != state->again)
    return send_failed(state, self, sent);

in_python:
  if (PyErr_Occurred())
    return NULL;
  method = PyObject_GetAttr(self, state->str__sendto_in_python);
  result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);
  Py_XDECREF(method);
  return result;
}

static PyMethodDef datagram_methods[] = {
    {"_sendto", (PyCFunction)(void (*)(void))datagram_sendto, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Send a datagram; never blocks.  See DatagramTransport.sendto in velociloop.transports.datagram."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot datagram_type_slots[] = {
    {Py_tp_doc, "The base of DatagramTransport: its hot method, in C."},
    {Py_tp_methods, datagram_methods},
    {0, NULL},
};

/* No fields, as speedups_stream_spec. */
PyType_Spec speedups_datagram_spec = {
    .name = "velociloop._speedups.DatagramBase",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = datagram_type_slots,
};
