/* speedups_safe.c: what call_soon_threadsafe() returns from Python 3.14 on: asyncio's _ThreadSafeHandle, without its lock.
 *
 * asyncio runs the callback, and cancels, under an RLock of each handle, so that cancel() in another thread waits for a
 * callback that has begun.  Making and taking one costs more than all the rest of a call.  Here the GIL guards who is
 * inside: the handle is its own _lock, and only who must wait makes another one to wait at. */
#include "speedups.h"

#if PY_VERSION_HEX >= 0x030c0000 /* PyObject_GetTypeData() */

typedef struct {
  unsigned long owner;          /* the thread that is inside, while depth is not 0 */
  int depth;
  PyObject *gate;               /* while somebody waits: a lock, locked until the owner leaves */
} safe_data;

static safe_data *data_of(speedups_state *state, PyObject *handle) {
  return PyObject_GetTypeData(handle, state->fast_safe_type);
}

static int tell(PyObject *lock, PyObject *name) {
  PyObject *result = PyObject_CallMethodNoArgs(lock, name);

  Py_XDECREF(result);
  return result == NULL ? -1 : 0;
}

/* -1 with what a signal's handler has raised meanwhile. */
static int wait_for_owner(speedups_state *state, safe_data *data) {
  PyObject *gate;
  int result;

  if (data->gate == NULL) {
    gate = PyObject_CallNoArgs(state->make_lock);
    if (gate == NULL || tell(gate, state->str_acquire) < 0) {
      Py_XDECREF(gate);
      return -1;
    }
    if (data->depth == 0 || data->gate != NULL) { /* a collection meanwhile has let others in: look again */
      Py_DECREF(gate);
      return 0;
    }
    data->gate = gate;
  }
  gate = Py_NewRef(data->gate);
  result = tell(gate, state->str_acquire);
  if (result == 0)
    result = tell(gate, state->str_release); /* for the next who waits */
  Py_DECREF(gate);
  return result;
}

/* The handle must live until leave(). */
static int enter(speedups_state *state, safe_data *data) {
  unsigned long me = PyThread_get_thread_ident();

  while (data->depth > 0 && data->owner != me)
    if (wait_for_owner(state, data) < 0)
      return -1;
  data->owner = me;
  data->depth++;
  return 0;
}

/* Passes the result on; what is raised already stays so. */
static PyObject *leave(speedups_state *state, safe_data *data, PyObject *result) {
  PyObject *gate, *exception;

  if (--data->depth > 0 || data->gate == NULL)
    return result;
  gate = data->gate;
  data->gate = NULL;
  exception = result == NULL ? speedups_take_exception() : NULL;
  if (tell(gate, state->str_release) < 0)
    PyErr_WriteUnraisable(gate);
  Py_DECREF(gate);
  if (exception != NULL)
    speedups_give_exception(exception);
  return result;
}

int safe_handle_run(speedups_state *state, PyObject *handle) {
  safe_data *data = data_of(state, handle);
  PyObject *result = NULL;

  if (enter(state, data) < 0)
    return -1;
  if (SLOT(handle, state->slot.cancelled) == Py_True || handle_run_plain(state, handle) == 0)
    result = Py_None; /* borrowed: it says only that nothing is raised */
  return leave(state, data, result) == NULL ? -1 : 0;
}

bool safe_handle_is_idle(speedups_state *state, PyObject *handle) {
  safe_data *data = data_of(state, handle);

  return data->depth == 0 && data->gate == NULL;
}

/* asyncio's own methods of its class say "with self._lock". */
static PyObject *safe_get_lock(PyObject *self, void *Py_UNUSED(closure)) {
  return Py_NewRef(self);
}

static PyObject *safe_enter(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  speedups_state *state = speedups_state_by_type(Py_TYPE(self));

  if (enter(state, data_of(state, self)) < 0)
    return NULL;
  Py_RETURN_TRUE;
}

static PyObject *safe_exit(PyObject *self, PyObject *Py_UNUSED(args)) {
  speedups_state *state = speedups_state_by_type(Py_TYPE(self));
  safe_data *data = data_of(state, self);

  if (data->depth == 0 || data->owner != PyThread_get_thread_ident()) {
    PyErr_SetString(PyExc_RuntimeError, "this thread has not entered");
    return NULL;
  }
  (void)leave(state, data, Py_None);
  Py_RETURN_NONE;
}

static PyMethodDef safe_methods[] = {
    {"__enter__", safe_enter, METH_NOARGS, "Wait until no other thread is inside."},
    {"__exit__", safe_exit, METH_VARARGS, "Leave it to the next."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef safe_attributes[] = {
    {"_lock", safe_get_lock, NULL, "What keeps other threads out: the handle itself.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot safe_slots[] = {
    {Py_tp_doc, "asyncio's _ThreadSafeHandle, as call_soon_threadsafe() makes it."},
    {Py_tp_methods, safe_methods},
    {Py_tp_getset, safe_attributes},
    {0, NULL},
};

/* gate is there only while somebody waits, who has a reference to the handle: nothing to traverse, nothing to clear. */
static PyType_Spec safe_spec = {
    .name = "velociloop._speedups._ThreadSafeHandle",
    .basicsize = -(int)sizeof(safe_data),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = safe_slots,
};

PyType_Spec *speedups_safe_spec(void) {
  return &safe_spec;
}

#else

PyType_Spec *speedups_safe_spec(void) {
  return NULL;
}

int safe_handle_run(speedups_state *Py_UNUSED(state), PyObject *Py_UNUSED(handle)) {
  return -1;
}

bool safe_handle_is_idle(speedups_state *Py_UNUSED(state), PyObject *Py_UNUSED(handle)) {
  return false;
}

#endif
