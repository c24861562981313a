/* speedups_receive.c: what a stream transport receives: StreamTransport.on_read(), whose Python twin and reasons are in
 * transports/stream.py.  Everything but the plain case goes to the Python code, which finds nothing changed. */
#include "speedups.h"

/* Room for a read of a stream that sends much: twice what it has sent last, within these bounds.  The upper one is below
 * the size from which malloc() asks the kernel for memory of its own, page by page. */
#define LEAST_ROOM_BYTES 122880
#define MOST_ROOM_BYTES 122880

/* owner.name(argument) in this context: a new reference, or NULL. */
static PyObject *tell_in(PyObject *context, PyObject *owner, PyObject *name, PyObject *argument) {
  PyObject *stack[2] = {owner, argument};
  PyObject *result = NULL;

  if (PyContext_Enter(context) < 0)
    return NULL;
  result = PyObject_VectorcallMethod(name, stack, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
  if (PyContext_Exit(context) < 0)
    Py_CLEAR(result);
  return result;
}

/* owner.name() in this context. */
static PyObject *tell_no_more_in(PyObject *context, PyObject *owner, PyObject *name) {
  PyObject *result = NULL;

  if (PyContext_Enter(context) < 0)
    return NULL;
  result = PyObject_CallMethodNoArgs(owner, name);
  if (PyContext_Exit(context) < 0)
    Py_CLEAR(result);
  return result;
}

static int done(PyObject *result) {
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* What data_received() has raised, to the exception handler, as in an except block. */
static int receiver_failed(speedups_state *state, PyObject *owner, PyObject *context) {
  PyObject *exception, *before, *result;

  if (speedups_must_rise())
    return -1;
  exception = speedups_take_exception();
  before = PyErr_GetHandledException();
  PyErr_SetHandledException(exception);
  result = PyObject_CallMethodObjArgs(owner, state->str__data_received_failed, exception, context, NULL);
  PyErr_SetHandledException(before);
  Py_XDECREF(before);
  Py_DECREF(exception);
  return done(result);
}

/* The same of a BufferedProtocol's method, by the transport's method of this name. */
static int buffer_failed(PyObject *owner, PyObject *context, PyObject *name) {
  PyObject *exception = speedups_take_exception();
  PyObject *before = PyErr_GetHandledException();
  PyObject *result;

  PyErr_SetHandledException(exception);
  result = tell_in(context, owner, name, exception);
  PyErr_SetHandledException(before);
  Py_XDECREF(before);
  Py_DECREF(exception);
  return done(result);
}

/* Code of the shim's, instead of bytes. */
static int receive_failed(speedups_state *state, PyObject *owner, PyObject *context, int64_t code) {
  PyObject *number = PyLong_FromLongLong(code);
  PyObject *result = number == NULL ? NULL : tell_in(context, owner, state->str__receive_failed, number);

  Py_XDECREF(number);
  return done(result);
}

/* The owner's key, or -1. */
static int64_t key_of(speedups_state *state, PyObject *owner) {
  PyObject *key = SLOT(owner, state->stream_slot.key);

  if (key == NULL || !PyLong_CheckExact(key)) {
    PyErr_SetString(PyExc_RuntimeError, "the transport has no key");
    return -1;
  }
  return PyLong_AsLongLong(key);
}

/* -- a BufferedProtocol -------------------------------------------------------------- */

/* What is being delivered to one: bytes of the slab; or at NULL what the kernel has. */
typedef struct {
  const char *bytes;
  Py_ssize_t size;
} received;

/* The first `taken` bytes have been: the rest, to the transport's method of this name, which delivers it now or later. */
static int pass_rest(PyObject *owner, PyObject *name, const received *what, Py_ssize_t taken) {
  PyObject *rest = PyBytes_FromStringAndSize(what->bytes + taken, what->size - taken);
  PyObject *result = rest == NULL ? NULL : PyObject_CallMethodOneArg(owner, name, rest);

  Py_XDECREF(rest);
  return done(result);
}

/* KeyboardInterrupt or SystemExit is set: what was not taken comes first in the next run. */
static int interrupted(speedups_state *state, PyObject *owner, const received *what, Py_ssize_t taken) {
  PyObject *exception;

  if (what->bytes != NULL) {
    exception = speedups_take_exception();
    if (pass_rest(owner, state->str__interrupted, what, taken) < 0)
      PyErr_WriteUnraisable(owner);
    speedups_give_exception(exception);
  }
  return -1;
}

static int fill_in_python(speedups_state *state, PyObject *owner, PyObject *context, PyObject *buffer,
                          const received *what) {
  PyObject *data = what->bytes == NULL ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(what->bytes, what->size);
  PyObject *method = data == NULL ? NULL : PyObject_GetAttr(owner, state->str__fill_in_python);
  PyObject *result = NULL;

  if (method != NULL && PyContext_Enter(context) == 0) {
    result = PyObject_CallFunctionObjArgs(method, buffer, data, NULL);
    if (PyContext_Exit(context) < 0)
      Py_CLEAR(result);
  }
  Py_XDECREF(method);
  Py_XDECREF(data);
  return done(result);
}

/* buffer_updated(size), of the protocol that is in place now. */
static int buffer_updated(speedups_state *state, PyObject *owner, PyObject *context, const received *what,
                          Py_ssize_t size) {
  PyObject *number = PyLong_FromSsize_t(size);
  PyObject *protocol = Py_XNewRef(SLOT(owner, state->stream_slot.protocol));
  PyObject *result = NULL;

  if (number != NULL && protocol != NULL)
    result = tell_in(context, protocol, state->str_buffer_updated, number);
  else if (number != NULL)
    PyErr_SetString(PyExc_AttributeError, "_protocol");
  Py_XDECREF(protocol);
  Py_XDECREF(number);
  if (result == NULL && speedups_must_rise())
    return interrupted(state, owner, what, size);
  if (result == NULL)
    return buffer_failed(owner, context, state->str__buffer_updated_failed);
  Py_DECREF(result);
  return 0;
}

/* StreamTransport._fill_buffer().  Of what the kernel has at most *room bytes are taken; *room is what is left of that
 * if the protocol's buffer is full, and 0 else. */
static int fill_buffer(speedups_state *state, vl_core *core, PyObject *owner, PyObject *context, PyObject *protocol,
                       const received *what, Py_ssize_t *room) {
  Py_ssize_t most = *room;
  PyObject *any_size = PyLong_FromLong(-1);
  PyObject *buffer = any_size == NULL ? NULL : tell_in(context, protocol, state->str_get_buffer, any_size);
  int64_t key = key_of(state, owner);
  int64_t size;
  Py_buffer view;
  int result;

  *room = 0;
  Py_XDECREF(any_size);
  if (buffer == NULL && speedups_must_rise())
    return interrupted(state, owner, what, 0);
  if (buffer == NULL)
    return buffer_failed(owner, context, state->str__buffer_failed);
  if (key < 0) {
    Py_DECREF(buffer);
    return -1;
  }
  if (PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE) < 0) {
    PyErr_Clear();
    view.len = 0;
    view.obj = NULL;
  }
  if (view.len == 0) {
    PyBuffer_Release(&view);
    result = fill_in_python(state, owner, context, buffer, what);
    Py_DECREF(buffer);
    return result;
  }
  if (what->bytes == NULL) {
    size = state->uv->stream_receive(core, key, view.buf, (size_t)(view.len < most ? view.len : most));
    if (size == view.len)
      *room = most - view.len;
  } else {
    size = view.len < what->size ? view.len : what->size;
    memcpy(view.buf, what->bytes, (size_t)size);
  }
  PyBuffer_Release(&view);
  Py_DECREF(buffer);
  if (size < 0)
    return receive_failed(state, owner, context, size);
  result = buffer_updated(state, owner, context, what, (Py_ssize_t)size);
  if (result == 0 && size < what->size)
    result = pass_rest(owner, state->str__deliver_rest, what, (Py_ssize_t)size);
  return result;
}

/* Whether the owner still wants what comes, as a BufferedProtocol does. */
static bool wants_more(speedups_state *state, PyObject *owner) {
  stream_slots *slot = &state->stream_slot;

  return SLOT(owner, slot->reading) == state->reading_active && SLOT(owner, slot->held) == Py_None &&
         SLOT(owner, slot->buffered) == Py_True && SLOT(owner, slot->protocol) != NULL &&
         PyContext_CheckExact(SLOT(owner, slot->read_context));
}

/* StreamTransport._fill_buffers(): what the kernel has, in as many buffers as it needs. */
static int fill_buffers(speedups_state *state, vl_core *core, PyObject *owner, const received *what) {
  Py_ssize_t room = MOST_ROOM_BYTES;
  int result;

  do {
    PyObject *context = Py_NewRef(SLOT(owner, state->stream_slot.read_context));
    PyObject *protocol = Py_NewRef(SLOT(owner, state->stream_slot.protocol));

    result = fill_buffer(state, core, owner, context, protocol, what, &room);
    Py_DECREF(protocol);
    Py_DECREF(context);
  } while (result == 0 && what->bytes == NULL && room > 0 && wants_more(state, owner));
  return result;
}

/* -- a Protocol ------------------------------------------------------------------------ */

/* Reads what the shim has announced: exact bytes, or NULL and a code of the shim's, or NULL and 0. */
static PyObject *receive(speedups_state *state, vl_core *core, PyObject *owner, int64_t last, int64_t *code) {
  Py_ssize_t room = last > MOST_ROOM_BYTES / 2 ? MOST_ROOM_BYTES : (Py_ssize_t)last * 2;
  int64_t key = key_of(state, owner);
  PyObject *data;

  *code = 0;
  if (room < LEAST_ROOM_BYTES)
    room = LEAST_ROOM_BYTES;
  data = key < 0 ? NULL : PyBytes_FromStringAndSize(NULL, room);
  if (data == NULL)
    return NULL;
  *code = state->uv->stream_receive(core, key, PyBytes_AS_STRING(data), (size_t)room);
  if (*code < 0)
    Py_CLEAR(data);
  else if (*code < room)
    (void)_PyBytes_Resize(&data, (Py_ssize_t)*code); /* clears it on failure */
  return data;
}

static int deliver(speedups_state *state, PyObject *owner, PyObject *context, PyObject *protocol, PyObject *data) {
  PyObject *result = tell_in(context, protocol, state->str_data_received, data);

  if (result == NULL)
    return receiver_failed(state, owner, context);
  Py_DECREF(result);
  return 0;
}

int stream_read(speedups_state *state, vl_core *core, PyObject *owner, const vl_record *record) {
  stream_slots *slot = &state->stream_slot;
  received what = {NULL, 0};
  PyObject *context, *protocol, *data;
  int64_t code = 0;
  int result;

  if ((record->result < 0 && record->result != VL_EOF) || !served_is_plain(&state->stream, owner) ||
      SLOT(owner, slot->reading) != state->reading_active || SLOT(owner, slot->held) != Py_None)
    return 1;
  context = SLOT(owner, slot->read_context);
  protocol = SLOT(owner, slot->protocol);
  if (context == NULL || !PyContext_CheckExact(context) || protocol == NULL)
    return 1;
  if (record->result == VL_EOF) {
    if (SLOT(owner, slot->phase) != state->phase_open)
      return 1;
    Py_INCREF(context);
    data = tell_no_more_in(context, owner, state->str__deliver_eof);
    Py_DECREF(context);
    return done(data);
  }
  if (record->result > 0) {
    what.bytes = state->uv->slab_segment(core, record->segment) + record->aux;
    what.size = (Py_ssize_t)record->result;
  }
  Py_INCREF(context);
  Py_INCREF(protocol);
  if (SLOT(owner, slot->buffered) == Py_True) {
    result = fill_buffers(state, core, owner, &what);
  } else {
    data = what.bytes == NULL ? receive(state, core, owner, record->aux, &code)
                              : PyBytes_FromStringAndSize(what.bytes, what.size);
    if (data != NULL)
      result = deliver(state, owner, context, protocol, data);
    else
      result = code < 0 ? receive_failed(state, owner, context, code) : -1;
    Py_XDECREF(data);
  }
  Py_DECREF(protocol);
  Py_DECREF(context);
  return result;
}
