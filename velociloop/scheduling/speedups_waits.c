/* speedups_waits.c: the hot path of sock_recv(): SocketWaits.receive() and on_wait(), whose Python twins and reasons are in
 * transports/waits.py.  Everything but the plain case goes to the Python code, which finds nothing changed. */
#include "speedups.h"

#define NUMBER_BITS 32
#define SERIAL_MASK 0x7fffffffLL

int waits_learn(PyObject *module, PyObject *type, PyObject *values) {
  speedups_state *state = PyModule_GetState(module);
  waits_slots *slot = &state->waits_slot;
  wait_slots *one = &state->wait_slot;
  PyObject *wait, *socket;
  long largest, untried;

  if (!PyArg_ParseTuple(values, "O!O!ll:register_waits", &PyType_Type, &wait, &PyType_Type, &socket, &largest, &untried))
    return -1;
#define X(name)                                                                         \
  if (speedups_slot_offset((PyTypeObject *)type, "_" #name, &slot->name) < 0)           \
    return -1;
  WAITS_SLOTS(X)
#undef X
  if (speedups_slot_offset((PyTypeObject *)wait, "fd", &one->fd) < 0 ||
      speedups_slot_offset((PyTypeObject *)wait, "token", &one->token) < 0 ||
      speedups_slot_offset((PyTypeObject *)wait, "future", &one->future) < 0 ||
      speedups_slot_offset((PyTypeObject *)wait, "operation", &one->operation) < 0 ||
      speedups_slot_offset((PyTypeObject *)wait, "argument", &one->argument) < 0)
    return -1;
  Py_XSETREF(state->wait_type, (PyTypeObject *)Py_NewRef(wait));
  Py_XSETREF(state->socket_type, (PyTypeObject *)Py_NewRef(socket));
  state->largest_direct = largest;
  state->untried = untried;
  return served_learn(&state->waits, type, state->str_on_wait);
}

/* -- beginning ------------------------------------------------------------------------ */

static int set_untried(PyObject *table, PyObject *fd, long count) {
  PyObject *number = PyLong_FromLong(count);
  int result = number == NULL ? -1 : PyDict_SetItem(table, fd, number);

  Py_XDECREF(number);
  return result;
}

/* Whether the socket need not be tried: 1, 0, or -1; one time less from now on. */
static int is_untried(PyObject *table, PyObject *fd) {
  PyObject *found = PyDict_GetItemWithError(table, fd);
  long count;

  if (found == NULL)
    return PyErr_Occurred() ? -1 : 0;
  count = PyLong_AsLong(found);
  if (count <= 0)
    return PyErr_Occurred() ? -1 : 0;
  return set_untried(table, fd, count - 1) < 0 ? -1 : 1;
}

/* Whether asyncio's own code has to wait for it: 1, 0, or -1. */
static int is_others(speedups_state *state, PyObject *self, PyObject *fd, long number) {
  waits_slots *slot = &state->waits_slot;
  int found;

  if (number < 0 || SLOT(self, slot->unsupported) != Py_False)
    return 1;
  found = PySet_Contains(SLOT(self, slot->watched), fd);
  if (found == 0)
    found = PyDict_Contains(SLOT(self, slot->transports), fd);
  return found != 0 ? found : PyDict_Contains(SLOT(self, slot->others), fd);
}

/* Another token: the serial in front of the descriptor. */
static PyObject *next_token(speedups_state *state, PyObject *self, long fd, int64_t *value) {
  Py_ssize_t offset = state->waits_slot.serial;
  long long serial = PyLong_AsLongLong(SLOT(self, offset));
  PyObject *number;

  if (serial == -1 && PyErr_Occurred())
    return NULL;
  serial = (serial + 1) & SERIAL_MASK;
  number = PyLong_FromLongLong(serial);
  if (number == NULL)
    return NULL;
  Py_XSETREF(SLOT(self, offset), number);
  *value = (int64_t)(serial << NUMBER_BITS | (long long)fd);
  return PyLong_FromLongLong(*value);
}

static PyObject *wait_for(speedups_state *state, PyObject *self, scope_object *scope, PyObject *sock, PyObject *fd,
                          long number, PyObject *size) {
  wait_slots *one = &state->wait_slot;
  PyObject *wait = state->wait_type->tp_alloc(state->wait_type, 0);
  PyObject *code, *result;
  int64_t token = 0;
  int status;

  if (wait == NULL)
    return NULL;
  SLOT(wait, one->fd) = Py_NewRef(fd);
  SLOT(wait, one->argument) = Py_NewRef(size);
  if ((SLOT(wait, one->token) = next_token(state, self, number, &token)) == NULL ||
      (SLOT(wait, one->operation) = PyObject_GetAttr(sock, state->str_recv)) == NULL ||
      (SLOT(wait, one->future) = PyObject_CallMethodNoArgs(SLOT(self, state->waits_slot.loop), state->str_create_future)) ==
          NULL) {
    Py_DECREF(wait);
    return NULL;
  }
  status = state->uv->wait_arm(scope->core, (int)number, token);
  if (status >= 0) {
    if (PyDict_SetItem(SLOT(self, state->waits_slot.pending), fd, wait) < 0)
      Py_CLEAR(wait);
    return wait;
  }
  Py_DECREF(wait);
  code = PyLong_FromLong(status);
  result = code == NULL ? NULL : PyObject_CallMethodOneArg(self, state->str__not_armed, code);
  Py_XDECREF(code);
  return result;
}

/* What is to be done in C: a socket.socket, and few bytes; *scope is the loop's then. */
static bool is_plain(speedups_state *state, PyObject *self, PyObject *sock, PyObject *size, scope_object **scope) {
  waits_slots *slot = &state->waits_slot;
  PyObject *found;
  int overflow;
  long bytes;

  if (state->waits.type == NULL || !PyObject_TypeCheck(self, state->waits.type) || !Py_IS_TYPE(sock, state->socket_type) ||
      !PyLong_CheckExact(size))
    return false;
  bytes = PyLong_AsLongAndOverflow(size, &overflow);
  found = SLOT(self, slot->scope);
  if (overflow != 0 || bytes <= 0 || bytes > state->largest_direct || found == NULL ||
      !Py_IS_TYPE(found, (PyTypeObject *)state->scope_type) || SLOT(self, slot->untried) == NULL ||
      !PyDict_CheckExact(SLOT(self, slot->untried)) || SLOT(self, slot->pending) == NULL ||
      !PyDict_CheckExact(SLOT(self, slot->pending)) || SLOT(self, slot->watched) == NULL ||
      !PySet_CheckExact(SLOT(self, slot->watched)) || SLOT(self, slot->transports) == NULL ||
      !PyDict_CheckExact(SLOT(self, slot->transports)) || SLOT(self, slot->others) == NULL ||
      !PyDict_CheckExact(SLOT(self, slot->others)) || SLOT(self, slot->serial) == NULL ||
      SLOT(self, slot->loop) == NULL)
    return false;
  *scope = (scope_object *)found;
  return (*scope)->core != NULL;
}

/* receive(sock, size) */
static PyObject *waits_receive(PyObject *self, PyTypeObject *defining_class, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames) {
  speedups_state *state = PyType_GetModuleState(defining_class);
  PyObject *fd, *method, *untried, *result = NULL;
  scope_object *scope;
  long number;
  int answer;

  if (state == NULL)
    return NULL;
  if (nargs != 2 || kwnames != NULL || !is_plain(state, self, args[0], args[1], &scope)) {
    method = PyObject_GetAttr(self, state->str__receive_in_python);
    result = method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);
    Py_XDECREF(method);
    return result;
  }
  fd = PyObject_CallMethodNoArgs(args[0], state->str_fileno);
  number = fd == NULL ? -1 : PyLong_AsLong(fd);
  if (number == -1 && PyErr_Occurred()) {
    Py_XDECREF(fd);
    return NULL;
  }
  untried = Py_NewRef(SLOT(self, state->waits_slot.untried));
  answer = is_untried(untried, fd);
  if (answer == 0) {
    result = PyObject_CallMethodOneArg(args[0], state->str_recv, args[1]);
    if (result == NULL &&
        (PyErr_ExceptionMatches(PyExc_BlockingIOError) || PyErr_ExceptionMatches(PyExc_InterruptedError))) {
      PyErr_Clear();
      answer = set_untried(untried, fd, state->untried) < 0 ? -1 : 1;
    }
  }
  Py_DECREF(untried);
  if (answer == 1) {
    answer = is_others(state, self, fd, number);
    if (answer == 0)
      result = wait_for(state, self, scope, args[0], fd, number, args[1]);
    else if (answer == 1)
      result = Py_NewRef(Py_None);
  }
  Py_DECREF(fd);
  return result;
}

/* -- the end ---------------------------------------------------------------------------- */

static int failed(speedups_state *state, PyObject *waits, PyObject *wait) {
  PyObject *exception = speedups_take_exception();
  PyObject *result = PyObject_CallMethodObjArgs(waits, state->str__operation_failed, wait, exception, NULL);

  Py_DECREF(exception);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* The wait is the pending one: does what it was for. */
static int finish(speedups_state *state, PyObject *waits, PyObject *wait, PyObject *fd) {
  wait_slots *one = &state->wait_slot;
  PyObject *pending = SLOT(waits, state->waits_slot.pending);
  PyObject *future = SLOT(wait, one->future);
  PyObject *found = PyObject_CallMethodNoArgs(future, state->str_done);
  int done = found == NULL ? -1 : PyObject_IsTrue(found);
  PyObject *told;

  Py_XDECREF(found);
  if (done != 0)
    return done < 0 ? -1 : PyDict_DelItem(pending, fd);
  found = PyObject_CallOneArg(SLOT(wait, one->operation), SLOT(wait, one->argument));
  if (found == NULL)
    return failed(state, waits, wait);
  told = PyDict_DelItem(pending, fd) < 0 ? NULL : PyObject_CallMethodOneArg(future, state->str_set_result, found);
  Py_DECREF(found);
  Py_XDECREF(told);
  return told == NULL ? -1 : 0;
}

int waits_over(speedups_state *state, PyObject *waits, int64_t token) {
  wait_slots *one = &state->wait_slot;
  PyObject *pending = SLOT(waits, state->waits_slot.pending);
  PyObject *fd = PyLong_FromLongLong(token & 0xffffffffLL);
  PyObject *wait;
  int result = 0;

  if (fd == NULL)
    return -1;
  wait = pending == NULL || !PyDict_CheckExact(pending) ? NULL : PyDict_GetItemWithError(pending, fd);
  if (wait == NULL) {
    result = PyErr_Occurred() ? -1 : 0;
  } else if (Py_IS_TYPE(wait, state->wait_type) && PyLong_AsLongLong(SLOT(wait, one->token)) == token) {
    Py_INCREF(wait);
    result = finish(state, waits, wait, fd);
    Py_DECREF(wait);
  }
  Py_DECREF(fd);
  return result;
}

static PyMethodDef waits_methods[] = {
    {"receive", (PyCFunction)(void (*)(void))waits_receive, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "Receive, or wait.  See SocketWaits in velociloop.transports.waits."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot waits_type_slots[] = {
    {Py_tp_doc, "The base of SocketWaits: its hot method, in C."},
    {Py_tp_methods, waits_methods},
    {0, NULL},
};

/* No fields, as speedups_stream_spec. */
PyType_Spec speedups_waits_spec = {
    .name = "velociloop._speedups.WaitsBase",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = waits_type_slots,
};
