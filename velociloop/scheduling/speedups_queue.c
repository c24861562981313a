/* speedups_queue.c: ReadyQueue, what _ready is with the accelerator: a ring of strong references.
 *
 * "_ready may be ours: bool, len, iter, in, append, appendleft, popleft, clear, ==; assignable" (H3).  A deque's
 * insides are not to be had, and its methods cost two calls a callback.  Other threads append to it
 * (call_soon_threadsafe): nothing here runs Python code while the ring is not in order. */
#include "speedups.h"

#define LEAST_ROOM 64

static PyObject **place(const queue_object *queue, Py_ssize_t index) {
  return &queue->items[(queue->head + index) & (queue->room - 1)];
}

/* Twice the room; -1 with MemoryError.  PyMem runs no Python code. */
static int grow(queue_object *queue) {
  Py_ssize_t room = queue->room == 0 ? LEAST_ROOM : 2 * queue->room;
  PyObject **items;
  Py_ssize_t i;

  if (room > PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(PyObject *) || (items = PyMem_New(PyObject *, (size_t)room)) == NULL) {
    PyErr_NoMemory();
    return -1;
  }
  for (i = 0; i < queue->count; i++)
    items[i] = *place(queue, i);
  PyMem_Free(queue->items);
  queue->items = items;
  queue->room = room;
  queue->head = 0;
  return 0;
}

int queue_append(queue_object *queue, PyObject *item) {
  if (queue->count == queue->room && grow(queue) < 0)
    return -1;
  *place(queue, queue->count) = Py_NewRef(item);
  queue->count++;
  return 0;
}

PyObject *queue_popleft(queue_object *queue) {
  PyObject *item;

  if (queue->count == 0) {
    PyErr_SetString(PyExc_IndexError, "pop from an empty ReadyQueue");
    return NULL;
  }
  item = *place(queue, 0);
  queue->head = (queue->head + 1) & (queue->room - 1);
  queue->count--;
  return item;
}

static PyObject *method_append(PyObject *self, PyObject *item) {
  if (queue_append((queue_object *)self, item) < 0)
    return NULL;
  Py_RETURN_NONE;
}

static PyObject *method_appendleft(PyObject *self, PyObject *item) {
  queue_object *queue = (queue_object *)self;

  if (queue->count == queue->room && grow(queue) < 0)
    return NULL;
  queue->head = (queue->head - 1) & (queue->room - 1);
  queue->count++;
  *place(queue, 0) = Py_NewRef(item);
  Py_RETURN_NONE;
}

static PyObject *method_extend(PyObject *self, PyObject *iterable) {
  PyObject *items = PySequence_List(iterable); /* first: it may be this queue */
  Py_ssize_t i;

  if (items == NULL)
    return NULL;
  for (i = 0; i < PyList_GET_SIZE(items); i++) {
    if (queue_append((queue_object *)self, PyList_GET_ITEM(items, i)) < 0) {
      Py_DECREF(items);
      return NULL;
    }
  }
  Py_DECREF(items);
  Py_RETURN_NONE;
}

static PyObject *method_popleft(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  return queue_popleft((queue_object *)self);
}

static PyObject *method_pop(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  queue_object *queue = (queue_object *)self;

  if (queue->count == 0) {
    PyErr_SetString(PyExc_IndexError, "pop from an empty ReadyQueue");
    return NULL;
  }
  queue->count--;
  return *place(queue, queue->count);
}

static int queue_clear(PyObject *self) {
  queue_object *queue = (queue_object *)self;
  PyObject **items = queue->items;
  Py_ssize_t room = queue->room, head = queue->head, count = queue->count;
  Py_ssize_t i;

  /* Empty before anything is released, which may run Python code that appends. */
  queue->items = NULL;
  queue->room = queue->head = queue->count = 0;
  for (i = 0; i < count; i++)
    Py_DECREF(items[(head + i) & (room - 1)]);
  PyMem_Free(items);
  return 0;
}

static PyObject *method_clear(PyObject *self, PyObject *Py_UNUSED(ignored)) {
  (void)queue_clear(self);
  Py_RETURN_NONE;
}

static PyObject *as_list(queue_object *queue) {
  PyObject *list = PyList_New(queue->count);
  Py_ssize_t i;

  for (i = 0; list != NULL && i < PyList_GET_SIZE(list); i++)
    PyList_SET_ITEM(list, i, Py_NewRef(*place(queue, i)));
  return list;
}

/* Takes out the first item that is this object; false if there is none. */
static bool take_out(queue_object *queue, PyObject *item) {
  Py_ssize_t i = 0;

  while (i < queue->count && *place(queue, i) != item)
    i++;
  if (i == queue->count)
    return false;
  for (queue->count--; i < queue->count; i++)
    *place(queue, i) = *place(queue, i + 1);
  Py_DECREF(item);
  return true;
}

/* A TimerHandle's == is Python code, during which other threads may append and callbacks may be taken: so it is asked on
 * a copy, and the queue loses that one object and nothing else. */
static PyObject *method_remove(PyObject *self, PyObject *item) {
  PyObject *items = as_list((queue_object *)self);
  Py_ssize_t i, count = items == NULL ? 0 : PyList_GET_SIZE(items);
  int equal = items == NULL ? -1 : 0;

  for (i = 0; equal == 0 && i < count; i++) {
    equal = PyObject_RichCompareBool(PyList_GET_ITEM(items, i), item, Py_EQ);
    if (equal > 0 && !take_out((queue_object *)self, PyList_GET_ITEM(items, i))) {
      PyErr_SetString(PyExc_IndexError, "ReadyQueue mutated during remove()");
      equal = -1;
    }
  }
  if (equal == 0)
    PyErr_SetString(PyExc_ValueError, "ReadyQueue.remove(x): x not in ReadyQueue");
  Py_XDECREF(items);
  return equal > 0 ? Py_NewRef(Py_None) : NULL;
}

static Py_ssize_t queue_length(PyObject *self) {
  return ((queue_object *)self)->count;
}

static PyObject *queue_item(PyObject *self, Py_ssize_t index) {
  queue_object *queue = (queue_object *)self;

  if (index < 0 || index >= queue->count) {
    PyErr_SetString(PyExc_IndexError, "ReadyQueue index out of range");
    return NULL;
  }
  return Py_NewRef(*place(queue, index));
}

/* What Python code asks of each item runs on a copy. */
static int queue_contains(PyObject *self, PyObject *item) {
  PyObject *items = as_list((queue_object *)self);
  int result = items == NULL ? -1 : PySequence_Contains(items, item);

  Py_XDECREF(items);
  return result;
}

static PyObject *queue_iter(PyObject *self) {
  PyObject *items = as_list((queue_object *)self);
  PyObject *iterator = items == NULL ? NULL : PyObject_GetIter(items);

  Py_XDECREF(items);
  return iterator;
}

/* As of two deques, and of a ReadyQueue and a deque: other loops' is one. */
static PyObject *queue_compare(PyObject *self, PyObject *other, int op) {
  speedups_state *state = speedups_state_by_type(Py_TYPE(self));
  PyObject *items, *others, *result = NULL;

  if (state == NULL)
    return NULL;
  if ((op != Py_EQ && op != Py_NE) || !(Py_IS_TYPE(other, Py_TYPE(self)) || PyObject_TypeCheck(other, state->deque_type)))
    Py_RETURN_NOTIMPLEMENTED;
  items = as_list((queue_object *)self);
  others = items == NULL ? NULL : PySequence_List(other);
  if (others != NULL)
    result = PyObject_RichCompare(items, others, op);
  Py_XDECREF(others);
  Py_XDECREF(items);
  return result;
}

static PyObject *queue_repr(PyObject *self) {
  PyObject *items, *result;
  int within = Py_ReprEnter(self);

  if (within != 0)
    return within < 0 ? NULL : PyUnicode_FromString("[...]");
  items = as_list((queue_object *)self);
  result = items == NULL ? NULL : PyUnicode_FromFormat("ReadyQueue(%R)", items);
  Py_XDECREF(items);
  Py_ReprLeave(self);
  return result;
}

static int queue_traverse(PyObject *self, visitproc visit, void *arg) {
  queue_object *queue = (queue_object *)self;
  Py_ssize_t i;

  Py_VISIT(Py_TYPE(self));
  for (i = 0; i < queue->count; i++)
    Py_VISIT(*place(queue, i));
  return 0;
}

static void queue_dealloc(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);

  PyObject_GC_UnTrack(self);
  (void)queue_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

static PyMethodDef queue_methods[] = {
    {"append", method_append, METH_O, "Add an item at the end."},
    {"appendleft", method_appendleft, METH_O, "Add an item in front."},
    {"extend", method_extend, METH_O, "Add the items of an iterable at the end."},
    {"popleft", method_popleft, METH_NOARGS, "Remove and return the first item; IndexError if there is none."},
    {"pop", method_pop, METH_NOARGS, "Remove and return the last item; IndexError if there is none."},
    {"remove", method_remove, METH_O, "Remove the first item that is equal; ValueError if there is none."},
    {"clear", method_clear, METH_NOARGS, "Remove all items."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, "ReadyQueue()\n--\n\nThe callbacks that are ready, in order: as much of a collections.deque as _ready needs."},
    {Py_tp_traverse, queue_traverse},
    {Py_tp_clear, queue_clear},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_repr, queue_repr},
    {Py_tp_iter, queue_iter},
    {Py_tp_richcompare, queue_compare},
    {Py_tp_hash, PyObject_HashNotImplemented},
    {Py_tp_methods, queue_methods},
    {Py_sq_length, queue_length},
    {Py_sq_item, queue_item},
    {Py_sq_contains, queue_contains},
    {0, NULL},
};

PyType_Spec speedups_queue_spec = {
    .name = "velociloop._speedups.ReadyQueue",
    .basicsize = sizeof(queue_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = queue_slots,
};
