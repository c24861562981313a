/* speedups_accept.c: connections that a listener has accepted: Listener.on_accept() and the making of their transports,
 * whose Python twins and reasons are in transports/listener.py and transports/stream.py.
 *
 * The first transport of a listener is made by Python.  What its slots hold then is what every new one of that listener
 * holds, but for what is its own: its key, descriptor, peer, protocol.  So C makes the others after it, and knows nothing of what
 * the values mean; whatever __init__() of any class between was replaced (H3), Python goes on making them. */
#include "speedups.h"

#define MOST_SLOTS 64

typedef struct {
  Py_ssize_t offset;
  PyObject *value;              /* owned */
} kept_slot;

typedef struct {
  PyObject_HEAD
  speedups_state *state;        /* borrowed: see speedups.h */
  PyObject *connect;            /* Python's: (key, raw_peername, protocol) -> transport */
  PyObject *loop, *server;      /* server: or None */
  scope_object *scope;
  PyObject *owners;             /* Registry.owners: key -> owner */
  PyObject *transports;         /* the loop's own ones: descriptor -> transport */
  int attach_takes_transport;
  unsigned int version;         /* of the class, for which the slots below are good; 0: none are kept */
  int count;
  kept_slot kept[MOST_SLOTS];
} maker_object;

/* -- what is as it was found ------------------------------------------------------------ */

/* Each method that makes a transport, in each class of the type's, or None. */
static PyObject *makers_of(speedups_state *state, PyTypeObject *type) {
  PyObject *const names[] = {state->str___new__,     state->str___init__, state->str___setattr__,
                             state->str_set_protocol, state->str__open,    state->str__make_connection,
                             state->str__begin_reading};
  const size_t count = sizeof(names) / sizeof(*names);
  PyObject *found = PyTuple_New(PyTuple_GET_SIZE(type->tp_mro) * (Py_ssize_t)count);
  Py_ssize_t i, at = 0;
  size_t j;

  for (i = 0; found != NULL && i < PyTuple_GET_SIZE(type->tp_mro); i++) {
    for (j = 0; found != NULL && j < count; j++) {
      PyObject *maker = PyObject_GetAttr(PyTuple_GET_ITEM(type->tp_mro, i), names[j]);

      if (maker == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        maker = Py_NewRef(Py_None);
      }
      if (maker == NULL)
        Py_CLEAR(found);
      else
        PyTuple_SET_ITEM(found, at++, maker);
    }
  }
  return found;
}

int makers_learn(speedups_state *state) {
  Py_XSETREF(state->stream_makers, makers_of(state, state->stream.type));
  return state->stream_makers == NULL ? -1 : 0;
}

/* 1, 0, or -1. */
static int makers_are_plain(speedups_state *state) {
  PyObject *found = makers_of(state, state->stream.type);
  Py_ssize_t i;
  int same;

  if (found == NULL)
    return -1;
  same = PyTuple_GET_SIZE(found) == PyTuple_GET_SIZE(state->stream_makers);
  for (i = 0; same && i < PyTuple_GET_SIZE(found); i++)
    same = PyTuple_GET_ITEM(found, i) == PyTuple_GET_ITEM(state->stream_makers, i);
  Py_DECREF(found);
  return same;
}

/* -- the first one's slots ------------------------------------------------------------------ */

static void forget_slots(maker_object *maker) {
  PyObject *value;

  maker->version = 0;
  while (maker->count > 0) { /* what goes may be the last reference to something that calls */
    value = maker->kept[--maker->count].value;
    Py_DECREF(value);
  }
}

/* Whether each transport has one of its own. */
static bool is_own(const stream_slots *slot, Py_ssize_t offset) {
  return offset == slot->key || offset == slot->sock_fd || offset == slot->raw_peername || offset == slot->protocol ||
         offset == slot->buffered || offset == slot->phase;
}

/* Whether two transports may have the same object there. */
static bool may_be_shared(PyObject *value) {
  return !PyList_Check(value) && !PyDict_Check(value) && !PyAnySet_Check(value) && !PyByteArray_Check(value);
}

/* 1; 0: these cannot be kept; -1 */
static int keep_slots_of(maker_object *maker, PyObject *transport, PyObject *class) {
  PyObject *names = PyObject_GetAttr(class, maker->state->str___dict__);
  PyObject *members = names == NULL ? NULL : PyMapping_Values(names);
  Py_ssize_t i;
  int result = members == NULL ? -1 : 1;

  for (i = 0; result > 0 && i < PyList_GET_SIZE(members); i++) {
    PyObject *member = PyList_GET_ITEM(members, i);
    Py_ssize_t offset;
    PyObject *value;

    if (!Py_IS_TYPE(member, &PyMemberDescr_Type) || ((PyMemberDescrObject *)member)->d_member->type != T_OBJECT_EX)
      continue;
    offset = ((PyMemberDescrObject *)member)->d_member->offset;
    value = SLOT(transport, offset);
    if (value == NULL || is_own(&maker->state->stream_slot, offset))
      continue;
    if (!may_be_shared(value) || maker->count == MOST_SLOTS) {
      result = 0;
    } else {
      maker->kept[maker->count].offset = offset;
      maker->kept[maker->count++].value = Py_NewRef(value);
    }
  }
  Py_XDECREF(members);
  Py_XDECREF(names);
  return result;
}

static int keep_slots(maker_object *maker, PyObject *transport) {
  speedups_state *state = maker->state;
  PyObject *mro = Py_TYPE(transport)->tp_mro;
  unsigned int version = Py_TYPE(transport)->tp_version_tag;
  Py_ssize_t i;
  int result;

  forget_slots(maker);
  if (!Py_IS_TYPE(transport, state->stream.type) || SLOT(transport, state->stream_slot.phase) != state->phase_open)
    return 0;
  result = makers_are_plain(state);
  Py_INCREF(mro);
  for (i = 0; result > 0 && i < PyTuple_GET_SIZE(mro); i++)
    result = keep_slots_of(maker, transport, PyTuple_GET_ITEM(mro, i));
  Py_DECREF(mro);
  if (result <= 0)
    forget_slots(maker);
  else if (version == Py_TYPE(transport)->tp_version_tag)
    maker->version = version;
  return result < 0 ? -1 : 0;
}

/* -- making ------------------------------------------------------------------------- */

static PyObject *make_in_python(maker_object *maker, PyObject *key, PyObject *peer, PyObject *protocol) {
  PyObject *transport = PyObject_CallFunctionObjArgs(maker->connect, key, peer, protocol, NULL);

  if (transport != NULL && keep_slots(maker, transport) < 0)
    Py_CLEAR(transport);
  return transport;
}

/* A transport in no service yet; NULL. */
static PyObject *make_like_first(maker_object *maker, PyObject *key, PyObject *fd, PyObject *peer, PyObject *protocol) {
  speedups_state *state = maker->state;
  stream_slots *slot = &state->stream_slot;
  PyTypeObject *type = state->stream.type;
  int buffered = PyObject_IsInstance(protocol, state->buffered_protocol);
  PyObject *transport = buffered < 0 ? NULL : type->tp_alloc(type, 0);
  int i;

  if (transport == NULL)
    return NULL;
  for (i = 0; i < maker->count; i++)
    SLOT(transport, maker->kept[i].offset) = Py_NewRef(maker->kept[i].value);
  SLOT(transport, slot->phase) = Py_NewRef(state->phase_closed); /* until it is complete: for __del__ */
  SLOT(transport, slot->key) = Py_NewRef(key);
  SLOT(transport, slot->sock_fd) = Py_NewRef(fd);
  SLOT(transport, slot->raw_peername) = Py_NewRef(peer);
  SLOT(transport, slot->protocol) = Py_NewRef(protocol);
  SLOT(transport, slot->buffered) = PyBool_FromLong(buffered);
  return transport;
}

static int attach_to_server(maker_object *maker, PyObject *transport) {
  PyObject *stack[2] = {maker->server, transport};
  size_t count = maker->attach_takes_transport ? 2 : 1;
  PyObject *result;

  if (maker->server == Py_None)
    return 0;
  result = PyObject_VectorcallMethod(maker->state->str__attach, stack, count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

static int call_method_soon(maker_object *maker, PyObject *transport, PyObject *name) {
  PyObject *stack[2] = {maker->loop, PyObject_GetAttr(transport, name)};
  PyObject *result;

  if (stack[1] == NULL)
    return -1;
  result = PyObject_VectorcallMethod(maker->state->str_call_soon, stack, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
  Py_DECREF(stack[1]);
  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* SocketTransport._open() */
static int put_into_service(maker_object *maker, PyObject *key, PyObject *fd, PyObject *transport) {
  speedups_state *state = maker->state;
  PyObject *exception, *result;

  if (attach_to_server(maker, transport) < 0 || PyDict_SetItem(maker->transports, fd, transport) < 0 ||
      PyDict_SetItem(maker->owners, key, transport) < 0)
    return -1;
  Py_SETREF(SLOT(transport, state->stream_slot.phase), Py_NewRef(state->phase_open));
  if (call_method_soon(maker, transport, state->str__make_connection) == 0 &&
      call_method_soon(maker, transport, state->str__begin_reading) == 0)
    return 0;
  exception = speedups_take_exception();
  result = PyObject_CallMethodNoArgs(transport, state->str__not_opened);
  if (result == NULL)
    PyErr_WriteUnraisable(transport);
  Py_XDECREF(result);
  speedups_give_exception(exception);
  return -1;
}

static PyObject *make(maker_object *maker, PyObject *key, PyObject *peer, PyObject *protocol) {
  speedups_state *state = maker->state;
  PyTypeObject *type = state->stream.type;
  PyObject *fd, *transport;
  long long number;
  int found;

  if (maker->version == 0 || type->tp_version_tag != maker->version || maker->scope->core == NULL ||
      !PyLong_CheckExact(key))
    return make_in_python(maker, key, peer, protocol);
  number = PyLong_AsLongLong(key);
  if (number == -1 && PyErr_Occurred())
    return NULL;
  found = state->uv->handle_fileno(maker->scope->core, number);
  if (found < 0)
    return make_in_python(maker, key, peer, protocol); /* it says why */
  fd = PyLong_FromLong(found);
  transport = fd == NULL ? NULL : make_like_first(maker, key, fd, peer, protocol);
  if (transport != NULL && put_into_service(maker, key, fd, transport) < 0)
    Py_CLEAR(transport);
  Py_XDECREF(fd);
  return transport;
}

/* -- the type ------------------------------------------------------------------------- */

/* (connect, loop, scope, server, owners, transports, attach_takes_transport) */
static PyObject *maker_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  speedups_state *state = speedups_state_by_type(type);
  PyObject *connect, *loop, *scope, *server, *owners, *transports;
  int takes;
  maker_object *maker;

  if (state == NULL)
    return NULL;
  if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
    PyErr_SetString(PyExc_TypeError, "StreamMaker takes no keyword arguments");
    return NULL;
  }
  if (!PyArg_ParseTuple(args, "OOO!OO!O!p:StreamMaker", &connect, &loop, (PyTypeObject *)state->scope_type, &scope, &server,
                        &PyDict_Type, &owners, &PyDict_Type, &transports, &takes))
    return NULL;
  if (state->stream_makers == NULL || state->uv == NULL) {
    PyErr_SetString(PyExc_RuntimeError, "no class of stream transports is registered");
    return NULL;
  }
  maker = (maker_object *)type->tp_alloc(type, 0);
  if (maker == NULL)
    return NULL;
  maker->state = state;
  maker->connect = Py_NewRef(connect);
  maker->loop = Py_NewRef(loop);
  maker->scope = (scope_object *)Py_NewRef(scope);
  maker->server = Py_NewRef(server);
  maker->owners = Py_NewRef(owners);
  maker->transports = Py_NewRef(transports);
  maker->attach_takes_transport = takes;
  return (PyObject *)maker;
}

static int maker_traverse(PyObject *self, visitproc visit, void *arg) {
  maker_object *maker = (maker_object *)self;
  int i;

  Py_VISIT(Py_TYPE(self));
  Py_VISIT(maker->connect);
  Py_VISIT(maker->loop);
  Py_VISIT(maker->scope);
  Py_VISIT(maker->server);
  Py_VISIT(maker->owners);
  Py_VISIT(maker->transports);
  for (i = 0; i < maker->count; i++)
    Py_VISIT(maker->kept[i].value);
  return 0;
}

static int maker_clear(PyObject *self) {
  maker_object *maker = (maker_object *)self;

  /* What make() looks at stays: garbage may still be called. */
  forget_slots(maker);
  return 0;
}

static void maker_dealloc(PyObject *self) {
  maker_object *maker = (maker_object *)self;
  PyTypeObject *type = Py_TYPE(self);

  PyObject_GC_UnTrack(self);
  forget_slots(maker);
  Py_CLEAR(maker->connect);
  Py_CLEAR(maker->loop);
  Py_CLEAR(maker->scope);
  Py_CLEAR(maker->server);
  Py_CLEAR(maker->owners);
  Py_CLEAR(maker->transports);
  type->tp_free(self);
  Py_DECREF(type);
}

static PyObject *maker_call(PyObject *self, PyObject *args, PyObject *kwargs) {
  PyObject *key, *peer, *protocol;

  if (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0) {
    PyErr_SetString(PyExc_TypeError, "a StreamMaker takes no keyword arguments");
    return NULL;
  }
  if (!PyArg_ParseTuple(args, "OOO:StreamMaker", &key, &peer, &protocol))
    return NULL;
  return make((maker_object *)self, key, peer, protocol);
}

static PyType_Slot maker_slots[] = {
    {Py_tp_doc, "StreamMaker(connect, loop, scope, server, owners, transports, attach_takes_transport)\n--\n\n"
                "(key, raw_peername, protocol) -> transport, as `connect` makes them, in C from the second on."},
    {Py_tp_new, maker_new},
    {Py_tp_traverse, maker_traverse},
    {Py_tp_clear, maker_clear},
    {Py_tp_dealloc, maker_dealloc},
    {Py_tp_call, maker_call},
    {0, NULL},
};

PyType_Spec speedups_maker_spec = {
    .name = "velociloop._speedups.StreamMaker",
    .basicsize = sizeof(maker_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = maker_slots,
};

/* -- ACCEPT records --------------------------------------------------------------------- */

int listener_learn(PyObject *module, PyObject *type, PyObject *closed) {
  speedups_state *state = PyModule_GetState(module);
  listener_slots *slot = &state->listener_slot;

#define X(name)                                                                             \
  if (speedups_slot_offset((PyTypeObject *)type, "_" #name, &slot->name) < 0)               \
    return -1;
  LISTENER_SLOTS(X)
#undef X
  if (served_learn(&state->listener, type, state->str_on_accept) < 0)
    return -1;
  Py_XSETREF(state->listener_closed, Py_NewRef(closed));
  return 0;
}

/* An exception is set: Listener._accept_failed() closes the connection, and reports what need not rise. */
static int accept_failed(speedups_state *state, PyObject *listener, PyObject *key) {
  bool must_rise = speedups_must_rise();
  PyObject *exception = speedups_take_exception();
  PyObject *before = PyErr_GetHandledException();
  PyObject *result;

  PyErr_SetHandledException(exception);
  result = PyObject_CallMethodObjArgs(listener, state->str__accept_failed, key, exception, NULL);
  PyErr_SetHandledException(before);
  Py_XDECREF(before);
  if (result == NULL || !must_rise) {
    Py_DECREF(exception);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
  }
  Py_DECREF(result);
  speedups_give_exception(exception);
  return -1;
}

/* Within the connection's context: Listener._accepted(). */
static int accepted(speedups_state *state, PyObject *listener, PyObject *key, PyObject *peer) {
  listener_slots *slot = &state->listener_slot;
  PyObject *factory = Py_NewRef(SLOT(listener, slot->protocol_factory));
  PyObject *connect = Py_NewRef(SLOT(listener, slot->connect));
  PyObject *protocol = PyObject_CallNoArgs(factory);
  PyObject *transport = NULL;
  int result = 0;

  if (protocol != NULL && SLOT(listener, slot->state) == state->listener_closed) {
    transport = PyObject_CallMethodObjArgs(listener, state->str__closed_meanwhile, key, NULL);
  } else if (protocol != NULL) {
    transport = make((maker_object *)connect, key, peer, protocol);
  }
  Py_XDECREF(protocol);
  if (transport == NULL)
    result = accept_failed(state, listener, key);
  Py_XDECREF(transport);
  Py_DECREF(connect);
  Py_DECREF(factory);
  return result;
}

int listener_accept(speedups_state *state, vl_core *core, PyObject *listener, const vl_record *record) {
  listener_slots *slot = &state->listener_slot;
  PyObject *loop, *connect, *base, *context, *key, *peer;
  const char *place;
  int64_t length;
  int result = -1;

  if (record->result <= 0 || !served_is_plain(&state->listener, listener))
    return 1;
  loop = SLOT(listener, slot->loop);
  connect = SLOT(listener, slot->connect);
  base = SLOT(listener, slot->context);
  if (loop == NULL || !PyObject_TypeCheck(loop, (PyTypeObject *)state->loop_base) ||
      ((loop_object *)loop)->debug != Py_False || connect == NULL || !Py_IS_TYPE(connect, state->maker_type) ||
      base == NULL || !PyContext_CheckExact(base) || SLOT(listener, slot->protocol_factory) == NULL)
    return 1;
  place = state->uv->slab_segment(core, record->segment) + record->aux;
  memcpy(&length, place, sizeof(length));
  Py_XSETREF(SLOT(listener, slot->starvation_reported), Py_NewRef(Py_False));
  key = PyLong_FromLongLong(record->result);
  peer = PyBytes_FromStringAndSize(place + sizeof(length), (Py_ssize_t)length);
  context = PyContext_Copy(base);
  if (key != NULL && peer != NULL && context != NULL && PyContext_Enter(context) == 0) {
    result = accepted(state, listener, key, peer);
    if (PyContext_Exit(context) < 0)
      result = -1;
  }
  Py_XDECREF(context);
  Py_XDECREF(peer);
  Py_XDECREF(key);
  return result;
}
