/* speedups_scope.c: CallbackScope, whose Python twin and reasons are in callbacks.py. */
#include "speedups.h"

static PyObject *scope_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  scope_object *scope;

  if (PyTuple_GET_SIZE(args) != 0 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0)) {
    PyErr_SetString(PyExc_TypeError, "CallbackScope() takes no arguments");
    return NULL;
  }
  scope = (scope_object *)type->tp_alloc(type, 0);
  if (scope == NULL)
    return NULL;
  scope->active = 0;
  scope->serial = 0;
  scope->corked = PyList_New(0);
  if (scope->corked == NULL)
    Py_CLEAR(scope);
  return (PyObject *)scope;
}

static int scope_traverse(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(((scope_object *)self)->corked);
  Py_VISIT(((scope_object *)self)->core_owner);
  return 0;
}

static int scope_clear(PyObject *self) {
  scope_object *scope = (scope_object *)self;

  scope->core = NULL;
  Py_CLEAR(scope->core_owner);
  return 0; /* corked, which the methods rely on, is a list: the collector empties it */
}

static void scope_dealloc(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);

  PyObject_GC_UnTrack(self);
  (void)scope_clear(self);
  Py_CLEAR(((scope_object *)self)->corked);
  type->tp_free(self);
  Py_DECREF(type);
}

static PyObject *scope_repr(PyObject *self) {
  scope_object *scope = (scope_object *)self;

  return PyUnicode_FromFormat("<CallbackScope %s serial=%lld corked=%zd>", scope->active ? "active" : "idle",
                              scope->serial, scope->corked == NULL ? 0 : PyList_GET_SIZE(scope->corked));
}

int scope_end(scope_object *scope) {
  speedups_state *state = speedups_state_by_type(Py_TYPE(scope));
  PyObject *corked = Py_NewRef(scope->corked);
  int result = 0;

  while (result == 0 && PyList_GET_SIZE(corked) > 0) {
    /* Out of the list first: a nested turn in there comes by and empties it. */
    PyObject *writer = Py_NewRef(PyList_GET_ITEM(corked, 0));
    PyObject *told;

    result = PyList_SetSlice(corked, 0, 1, NULL);
    told = result < 0 ? NULL : PyObject_CallMethodNoArgs(writer, state->str_on_callback_end);
    if (told == NULL) {
      result = -1;
      if (speedups_must_rise()) {
        PyObject *exception = speedups_take_exception();

        (void)PyList_Insert(corked, 0, writer); /* what it still holds back leaves at the next end */
        speedups_give_exception(exception);
      }
    }
    Py_XDECREF(told);
    Py_DECREF(writer);
  }
  Py_DECREF(corked);
  return result;
}

int scope_end_finally(scope_object *scope, int result) {
  PyObject *exception;

  if (PyList_GET_SIZE(scope->corked) == 0)
    return result;
  exception = result < 0 ? speedups_take_exception() : NULL;
  if (scope_end(scope) < 0) {
    result = -1;
    if (exception != NULL) {
      PyObject *later = speedups_take_exception();

      PyException_SetContext(later, exception); /* takes the reference */
      speedups_give_exception(later);
    }
  } else if (exception != NULL) {
    speedups_give_exception(exception);
  }
  return result;
}

int scope_suspend(scope_object *scope) {
  scope->active = 0;
  return PyList_GET_SIZE(scope->corked) > 0 ? scope_end(scope) : 0;
}

static PyObject *scope_end_method(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  if (scope_end((scope_object *)self) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *scope_suspend_method(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  if (scope_suspend((scope_object *)self) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *scope_abandon(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  scope_object *scope = (scope_object *)self;
  speedups_state *state = speedups_state_by_type(Py_TYPE(scope));
  Py_ssize_t i;

  scope->active = 0;
  for (i = 0; i < PyList_GET_SIZE(scope->corked); i++) {
    PyObject *writer = Py_NewRef(PyList_GET_ITEM(scope->corked, i));
    PyObject *told = PyObject_CallMethodNoArgs(writer, state->str_on_abandon);

    Py_DECREF(writer);
    if (told == NULL)
      return NULL;
    Py_DECREF(told);
  }
  if (PyList_SetSlice(scope->corked, 0, PyList_GET_SIZE(scope->corked), NULL) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyMethodDef scope_methods[] = {
    {"end", scope_end_method, METH_NOARGS, "Tell each; those that are written to meanwhile are told as well."},
    {"suspend", scope_suspend_method, METH_NOARGS, "A turn waits now, perhaps one inside a callback (H5)."},
    {"abandon", scope_abandon, METH_NOARGS, "In a forked child, perhaps within a callback, which goes on here."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef scope_members[] = {
    {"active", T_BOOL, offsetof(scope_object, active), 0, "Whether somebody will look for the callback's end."},
    {"serial", T_LONGLONG, offsetof(scope_object, serial), 0, "Another number in every callback."},
    {"corked", T_OBJECT_EX, offsetof(scope_object, corked), READONLY, "Which transports hold something back."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot scope_slots[] = {
    {Py_tp_doc, "Which callback is running now, and which transports hold something back in it."},
    {Py_tp_new, scope_new},
    {Py_tp_traverse, scope_traverse},
    {Py_tp_clear, scope_clear},
    {Py_tp_dealloc, scope_dealloc},
    {Py_tp_repr, scope_repr},
    {Py_tp_methods, scope_methods},
    {Py_tp_members, scope_members},
    {0, NULL},
};

PyType_Spec speedups_scope_spec = {
    .name = "velociloop._speedups.CallbackScope",
    .basicsize = sizeof(scope_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = scope_slots,
};
