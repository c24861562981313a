/* speedups_module.c: the module velociloop._speedups: its state, its life, and what Python tells it. */
#include "speedups.h"

static struct PyModuleDef speedups_module;

/* -- compatibility ---------------------------------------------------------------- */

PyObject *speedups_take_exception(void) {
#if PY_VERSION_HEX >= 0x030c0000
  return PyErr_GetRaisedException();
#else
  PyObject *type, *value, *traceback;

  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (traceback != NULL)
    (void)PyException_SetTraceback(value, traceback);
  Py_XDECREF(type);
  Py_XDECREF(traceback);
  return value;
#endif
}

void speedups_give_exception(PyObject *exception) {
#if PY_VERSION_HEX >= 0x030c0000
  PyErr_SetRaisedException(exception);
#else
  PyErr_Restore(Py_NewRef(Py_TYPE(exception)), exception, PyException_GetTraceback(exception));
#endif
}

bool speedups_must_rise(void) {
  return PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) || PyErr_ExceptionMatches(PyExc_SystemExit);
}

speedups_state *speedups_state_by_type(PyTypeObject *type) {
  PyObject *module = PyType_GetModuleByDef(type, &speedups_module);

  return module == NULL ? NULL : PyModule_GetState(module);
}

bool speedups_is_original(PyObject *function, const char *class_name, const char *name) {
  PyObject *expected, *found;
  bool same;

  if (!PyFunction_Check(function))
    return false;
  expected = PyUnicode_FromFormat("%s.%s", class_name, name);
  found = PyObject_GetAttrString(PyFunction_GET_CODE(function), "co_qualname"); /* which functools.wraps() leaves */
  same = expected != NULL && found != NULL && PyUnicode_Check(found) && PyUnicode_Compare(expected, found) == 0;
  Py_XDECREF(expected);
  Py_XDECREF(found);
  if (PyErr_Occurred())
    PyErr_Clear();
  return same;
}

bool speedups_has_still(PyTypeObject *type, PyObject *name, PyObject *expected) {
  PyObject *found = PyObject_GetAttr((PyObject *)type, name);

  if (found == NULL)
    PyErr_Clear();
  Py_XDECREF(found);
  return found != NULL && found == expected;
}

int served_learn(served_class *served, PyObject *type, PyObject *method_name) {
  PyObject *method = PyObject_GetAttr(type, method_name);

  if (method == NULL)
    return -1;
  Py_XSETREF(served->method, method);
  served->method_name = method_name;
  served->version = 0;
  Py_XSETREF(served->type, (PyTypeObject *)Py_NewRef(type));
  return 0;
}

bool served_is_plain(served_class *served, PyObject *owner) {
  PyTypeObject *type = Py_TYPE(owner);
  PyObject **names;

  if (type != served->type)
    return false;
  if (type->tp_version_tag == 0 || type->tp_version_tag != served->version) {
    if (!speedups_has_still(type, served->method_name, served->method))
      return false;
    served->version = type->tp_version_tag;
  }
  names = _PyObject_GetDictPtr(owner);
  return names == NULL || *names == NULL || PyDict_GET_SIZE(*names) == 0 ||
         PyDict_Contains(*names, served->method_name) == 0;
}

/* -- what Python tells it ------------------------------------------------------------ */

PyDoc_STRVAR(configure_doc,
             "configure(exports, report)\n\n"
             "Take the shim's functions (the address of a vl_exports) and the function (handle, exception) that\n"
             "tells the loop's exception handler of what a callback has raised.  ImportError if the shim is of\n"
             "another build.");

static PyObject *configure(PyObject *module, PyObject *args) {
  speedups_state *state = PyModule_GetState(module);
  PyObject *address, *report;
  const vl_exports *uv;

  if (!PyArg_ParseTuple(args, "O!O:configure", &PyLong_Type, &address, &report))
    return NULL;
  uv = PyLong_AsVoidPtr(address);
  if (uv == NULL && PyErr_Occurred())
    return NULL;
  if (uv == NULL || uv->magic != VL_EXPORTS_MAGIC || uv->version != VL_EXPORTS_VERSION ||
      uv->size != (int32_t)sizeof(vl_exports) || uv->record_size != (int32_t)sizeof(vl_record)) {
    PyErr_SetString(PyExc_ImportError,
                    "velociloop._speedups and velociloop.uv._ffi are of different builds: install velociloop "
                    "again, or set VELOCILOOP_PURE=1");
    return NULL;
  }
  Py_XSETREF(state->report, Py_NewRef(report));
  state->uv = uv;
  Py_RETURN_NONE;
}

PyObject *speedups_register_loop(PyObject *module, PyObject *type);

static PyObject *register_stream(PyObject *module, PyObject *args) {
  PyObject *type, *values;

  if (!PyArg_ParseTuple(args, "O!O!:register_stream", &PyType_Type, &type, &PyTuple_Type, &values) ||
      stream_learn(module, type, values) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *register_dispatcher(PyObject *module, PyObject *args) {
  PyObject *type, *handle_type;

  if (!PyArg_ParseTuple(args, "O!O!:register_dispatcher", &PyType_Type, &type, &PyType_Type, &handle_type) ||
      dispatcher_learn(module, type, handle_type) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *register_listener(PyObject *module, PyObject *args) {
  PyObject *type, *closed;

  if (!PyArg_ParseTuple(args, "O!O:register_listener", &PyType_Type, &type, &closed) ||
      listener_learn(module, type, closed) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *register_datagram(PyObject *module, PyObject *args) {
  PyObject *type, *values;

  if (!PyArg_ParseTuple(args, "O!O!:register_datagram", &PyType_Type, &type, &PyTuple_Type, &values) ||
      datagram_learn(module, type, values) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *register_waits(PyObject *module, PyObject *args) {
  PyObject *type, *values;

  if (!PyArg_ParseTuple(args, "O!O!:register_waits", &PyType_Type, &type, &PyTuple_Type, &values) ||
      waits_learn(module, type, values) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"configure", configure, METH_VARARGS, configure_doc},
    {"register_loop", speedups_register_loop, METH_O,
     "register_loop(type)\n\nTake the methods of velociloop.Loop as those that a loop must have for C to serve it."},
    {"register_stream", register_stream, METH_VARARGS,
     "register_stream(type, (ACTIVE, IDLE, Sending.OPEN, IN, OUT, Phase.OPEN, Phase.CLOSED, vl_stream_try_write,\n"
     "BufferedProtocol, CALM_CALLBACKS))\n\n"
     "Take the class of stream transports, the states that C must know, and the function that sends."},
    {"register_dispatcher", register_dispatcher, METH_VARARGS,
     "register_dispatcher(type, handle_type)\n\nTake the classes Dispatcher and DrainHandle."},
    {"register_listener", register_listener, METH_VARARGS,
     "register_listener(type, CLOSED)\n\nTake the class of listeners, and the state in which they accept no more."},
    {"register_datagram", register_datagram, METH_VARARGS,
     "register_datagram(type, (OPEN, ACTIVE, vl_udp_try_send, decode, EAGAIN))\n\n"
     "Take the class of datagram transports, the states that C must know, the function that sends, and the one that\n"
     "knows the address in a struct sockaddr."},
    {"register_waits", register_waits, METH_VARARGS,
     "register_waits(type, (Wait, socket, largest, untried))\n\n"
     "Take the class of a loop's waits, that of one wait, and socket.socket; and how much is received at once in C,\n"
     "and how often a socket is not tried that was tried in vain."},
    {NULL, NULL, 0, NULL},
};

/* -- life ------------------------------------------------------------------------------ */

static PyObject *imported(const char *module_name, const char *name) {
  PyObject *module = PyImport_ImportModule(module_name);
  PyObject *found = module == NULL ? NULL : PyObject_GetAttrString(module, name);

  Py_XDECREF(module);
  return found;
}

static PyTypeObject *imported_type(const char *module_name, const char *name) {
  PyObject *found = imported(module_name, name);

  if (found != NULL && !PyType_Check(found)) {
    PyErr_Format(PyExc_ImportError, "%s.%s is no type", module_name, name);
    Py_CLEAR(found);
  }
  return (PyTypeObject *)found;
}

static int imported_number(const char *module_name, const char *name, double *number) {
  PyObject *found = imported(module_name, name);

  if (found == NULL)
    return -1;
  *number = PyFloat_AsDouble(found);
  Py_DECREF(found);
  return *number == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* asyncio.events._ThreadSafeHandle, if this asyncio has it. */
static int find_safe_type(speedups_state *state) {
  PyObject *found = imported("asyncio.events", "_ThreadSafeHandle");

  if (found == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
      return -1;
    PyErr_Clear();
    return 0;
  }
  if (!PyType_Check(found)) {
    Py_DECREF(found);
    PyErr_SetString(PyExc_ImportError, "asyncio.events._ThreadSafeHandle is no type");
    return -1;
  }
  state->safe_type = (PyTypeObject *)found;
  return 0;
}

static int learn(speedups_state *state) {
  double many;

#define X(name)                                                \
  state->str_##name = PyUnicode_InternFromString(#name);       \
  if (state->str_##name == NULL)                               \
    return -1;
  SPEEDUPS_NAMES(X)
#undef X
  if ((state->handle_type = imported_type("asyncio.events", "Handle")) == NULL ||
      (state->timer_type = imported_type("asyncio.events", "TimerHandle")) == NULL ||
      (state->make_lock = imported("_thread", "allocate_lock")) == NULL || find_safe_type(state) < 0 ||
      (state->deque_type = imported_type("collections", "deque")) == NULL ||
      (state->time_names = imported("time", "__dict__")) == NULL ||
      (state->monotonic = imported("time", "monotonic")) == NULL ||
      (state->task_names = imported("asyncio.tasks", "__dict__")) == NULL ||
      (state->loop_keyword = PyTuple_Pack(1, state->str_loop)) == NULL ||
      (state->base_loop = imported("asyncio.base_events", "BaseEventLoop")) == NULL ||
      (state->base_create_task = PyObject_GetAttr(state->base_loop, state->str_create_task)) == NULL ||
      imported_number("asyncio.base_events", "_MIN_SCHEDULED_TIMER_HANDLES", &many) < 0 ||
      imported_number("asyncio.base_events", "_MIN_CANCELLED_TIMER_HANDLES_FRACTION", &state->many_cancelled) < 0 ||
      imported_number("asyncio.base_events", "MAXIMUM_SELECT_TIMEOUT", &state->longest_wait) < 0)
    return -1;
  if (PyCFunction_CheckExact(state->monotonic))
    state->monotonic_function = PyCFunction_GET_FUNCTION(state->monotonic);
  state->many_timers = (Py_ssize_t)many;
  return handles_learn(state) < 0 || loop_learn(state) < 0 ? -1 : 0;
}

static PyObject *add_type(PyObject *module, PyType_Spec *spec, PyObject *base) {
  PyObject *type = PyType_FromModuleAndSpec(module, spec, base);

  if (type != NULL && PyModule_AddType(module, (PyTypeObject *)type) < 0)
    Py_CLEAR(type);
  return type;
}

static int speedups_exec(PyObject *module) {
  PyType_Spec *const bases[] = {&speedups_dispatcher_spec, &speedups_stream_spec, &speedups_datagram_spec,
                               &speedups_waits_spec};
  size_t i;
  speedups_state *state = PyModule_GetState(module);

  if (learn(state) < 0)
    return -1;
  state->queue_type = (PyTypeObject *)add_type(module, &speedups_queue_spec, NULL);
  state->fast_timer_type = (PyTypeObject *)add_type(module, &speedups_timer_spec, (PyObject *)state->timer_type);
  state->maker_type = (PyTypeObject *)add_type(module, &speedups_maker_spec, NULL);
  if (state->queue_type == NULL || state->maker_type == NULL || state->fast_timer_type == NULL)
    return -1;
  if (state->safe_type != NULL && speedups_safe_spec() != NULL) {
    state->fast_safe_type = (PyTypeObject *)add_type(module, speedups_safe_spec(), (PyObject *)state->safe_type);
    if (state->fast_safe_type == NULL)
      return -1;
  }
  state->scope_type = add_type(module, &speedups_scope_spec, NULL);
  state->loop_base = state->scope_type == NULL ? NULL : add_type(module, &speedups_loop_spec, NULL);
  if (state->loop_base == NULL)
    return -1;
  for (i = 0; i < sizeof(bases) / sizeof(*bases); i++) {
    PyObject *type = add_type(module, bases[i], NULL);

    if (type == NULL)
      return -1;
    Py_DECREF(type); /* the module has it */
  }
  return 0;
}

static int speedups_traverse(PyObject *module, visitproc visit, void *arg) {
  speedups_state *state = PyModule_GetState(module);
  int i;

  if (state == NULL)
    return 0;
  Py_VISIT(state->report);
  Py_VISIT(state->loop_base);
  Py_VISIT(state->scope_type);
  Py_VISIT(state->handle_type);
  Py_VISIT(state->timer_type);
  Py_VISIT(state->handle_run);
  Py_VISIT(state->handle_init);
  Py_VISIT(state->handle_new);
  Py_VISIT(state->handle_cancel);
  Py_VISIT(state->fast_timer_type);
  Py_VISIT(state->safe_type);
  Py_VISIT(state->fast_safe_type);
  Py_VISIT(state->safe_run);
  Py_VISIT(state->safe_init);
  Py_VISIT(state->safe_new);
  Py_VISIT(state->make_lock);
  Py_VISIT(state->timer_run);
  Py_VISIT(state->timer_init);
  Py_VISIT(state->timer_new);
  Py_VISIT(state->timer_less);
  Py_VISIT(state->timer_cancel);
  Py_VISIT(state->deque_type);
  Py_VISIT(state->queue_type);
  Py_VISIT(state->time_names);
  Py_VISIT(state->monotonic);
  Py_VISIT(state->task_names);
  Py_VISIT(state->base_create_task);
  Py_VISIT(state->loop_keyword);
  Py_VISIT(state->context_keyword);
  Py_VISIT(state->given_keywords);
  Py_VISIT(state->task_keywords);
  Py_VISIT(state->base_loop);
  Py_VISIT(state->stream.type);
  Py_VISIT(state->stream.method);
  Py_VISIT(state->datagram.type);
  Py_VISIT(state->datagram.method);
  Py_VISIT(state->waits.type);
  Py_VISIT(state->waits.method);
  Py_VISIT(state->wait_type);
  Py_VISIT(state->socket_type);
  Py_VISIT(state->datagram_open);
  Py_VISIT(state->datagram_reading);
  Py_VISIT(state->send_datagram);
  Py_VISIT(state->decode_address);
  Py_VISIT(state->reading_active);
  Py_VISIT(state->sending_open);
  Py_VISIT(state->cork_in);
  Py_VISIT(state->cork_out);
  Py_VISIT(state->reading_idle);
  Py_VISIT(state->phase_open);
  Py_VISIT(state->phase_closed);
  Py_VISIT(state->buffered_protocol);
  Py_VISIT(state->stream_makers);
  Py_VISIT(state->maker_type);
  Py_VISIT(state->listener.type);
  Py_VISIT(state->listener.method);
  Py_VISIT(state->listener_closed);
  Py_VISIT(state->dispatcher.type);
  Py_VISIT(state->dispatcher.method);
  Py_VISIT(state->drain.type);
  Py_VISIT(state->drain.method);
  Py_VISIT(state->send);
  for (i = 0; i < LOOP_METHODS; i++) {
    Py_VISIT(state->base_methods[i]);
    Py_VISIT(state->loop_methods[i]);
  }
  return 0;
}

static int speedups_clear(PyObject *module) {
  speedups_state *state = PyModule_GetState(module);
  int i;

  if (state == NULL)
    return 0;
  Py_CLEAR(state->report);
  Py_CLEAR(state->loop_base);
  Py_CLEAR(state->scope_type);
  Py_CLEAR(state->handle_type);
  Py_CLEAR(state->timer_type);
  Py_CLEAR(state->handle_run);
  Py_CLEAR(state->handle_init);
  Py_CLEAR(state->handle_new);
  Py_CLEAR(state->handle_cancel);
  Py_CLEAR(state->fast_timer_type);
  Py_CLEAR(state->safe_type);
  Py_CLEAR(state->fast_safe_type);
  Py_CLEAR(state->safe_run);
  Py_CLEAR(state->safe_init);
  Py_CLEAR(state->safe_new);
  Py_CLEAR(state->make_lock);
  Py_CLEAR(state->timer_run);
  Py_CLEAR(state->timer_init);
  Py_CLEAR(state->timer_new);
  Py_CLEAR(state->timer_less);
  Py_CLEAR(state->timer_cancel);
  Py_CLEAR(state->deque_type);
  Py_CLEAR(state->queue_type);
  Py_CLEAR(state->time_names);
  Py_CLEAR(state->monotonic);
  Py_CLEAR(state->task_names);
  Py_CLEAR(state->base_create_task);
  Py_CLEAR(state->loop_keyword);
  Py_CLEAR(state->context_keyword);
  Py_CLEAR(state->given_keywords);
  Py_CLEAR(state->task_keywords);
  Py_CLEAR(state->base_loop);
  Py_CLEAR(state->stream.type);
  Py_CLEAR(state->stream.method);
  Py_CLEAR(state->datagram.type);
  Py_CLEAR(state->datagram.method);
  Py_CLEAR(state->waits.type);
  Py_CLEAR(state->waits.method);
  Py_CLEAR(state->wait_type);
  Py_CLEAR(state->socket_type);
  Py_CLEAR(state->datagram_open);
  Py_CLEAR(state->datagram_reading);
  Py_CLEAR(state->send_datagram);
  Py_CLEAR(state->decode_address);
  Py_CLEAR(state->reading_active);
  Py_CLEAR(state->sending_open);
  Py_CLEAR(state->cork_in);
  Py_CLEAR(state->cork_out);
  Py_CLEAR(state->reading_idle);
  Py_CLEAR(state->phase_open);
  Py_CLEAR(state->phase_closed);
  Py_CLEAR(state->buffered_protocol);
  Py_CLEAR(state->stream_makers);
  Py_CLEAR(state->maker_type);
  Py_CLEAR(state->listener.type);
  Py_CLEAR(state->listener.method);
  Py_CLEAR(state->listener_closed);
  Py_CLEAR(state->dispatcher.type);
  Py_CLEAR(state->dispatcher.method);
  Py_CLEAR(state->drain.type);
  Py_CLEAR(state->drain.method);
  Py_CLEAR(state->send);
  for (i = 0; i < LOOP_METHODS; i++) {
    Py_CLEAR(state->base_methods[i]);
    Py_CLEAR(state->loop_methods[i]);
  }
  return 0;
}

/* The names go last: objects of one garbage cycle with the module may still ask for attributes. */
static void speedups_free(void *module) {
  speedups_state *state = PyModule_GetState(module);
  int i;

  (void)speedups_clear(module);
  if (state == NULL)
    return;
#define X(name) Py_CLEAR(state->str_##name);
  SPEEDUPS_NAMES(X)
#undef X
  for (i = 0; i < LOOP_METHODS; i++)
    Py_CLEAR(state->loop_method_names[i]);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, speedups_exec},
    {0, NULL},
};

static struct PyModuleDef speedups_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "velociloop._speedups",
    .m_doc = "The hot objects of velociloop, in C; see docs/architecture.md.",
    .m_size = sizeof(speedups_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = speedups_traverse,
    .m_clear = speedups_clear,
    .m_free = speedups_free,
};

PyMODINIT_FUNC PyInit__speedups(void) {
  return PyModuleDef_Init(&speedups_module);
}
