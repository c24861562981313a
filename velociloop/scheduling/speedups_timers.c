/* speedups_timers.c: the heap of timers.
 *
 * _scheduled stays a list in the order that heapq gives it: others push to it, pop from it, and look at it
 * (nest_asyncio).  The steps are heapq's, so timers of the same time come in the order in which they come in asyncio; what
 * is saved is the call of TimerHandle.__lt__ for each comparison. */
#include "speedups.h"

static inline bool is_known(speedups_state *state, PyObject *timer) {
  return is_timer(state, timer) && SLOT(timer, state->slot.when) != NULL &&
         PyFloat_CheckExact(SLOT(timer, state->slot.when));
}

/* Of one that is known. */
static inline double known_when(speedups_state *state, PyObject *timer) {
  return PyFloat_AS_DOUBLE(SLOT(timer, state->slot.when));
}

int timer_when(speedups_state *state, PyObject *timer, double *when) {
  PyObject *found;

  if (is_known(state, timer)) {
    *when = known_when(state, timer);
    return 0;
  }
  Py_INCREF(timer); /* his attribute may do anything to the list that has it */
  found = PyObject_GetAttr(timer, state->str__when);
  Py_DECREF(timer);
  if (found == NULL)
    return -1;
  *when = PyFloat_AsDouble(found);
  Py_DECREF(found);
  return *when == -1.0 && PyErr_Occurred() ? -1 : 0;
}

int timer_set_scheduled(speedups_state *state, PyObject *timer, PyObject *value) {
  if (!is_timer(state, timer))
    return PyObject_SetAttr(timer, state->str__scheduled, value);
  Py_INCREF(value);
  Py_XSETREF(SLOT(timer, state->slot.scheduled), value);
  return 0;
}

/* list[a] < list[b]: 1, 0, or -1 with an exception set. */
static int is_less(speedups_state *state, PyObject *list, Py_ssize_t a, Py_ssize_t b) {
  PyObject *left = PyList_GET_ITEM(list, a);
  PyObject *right = PyList_GET_ITEM(list, b);
  Py_ssize_t size = PyList_GET_SIZE(list);
  int result;

  if (is_known(state, left) && is_known(state, right))
    return PyFloat_AS_DOUBLE(SLOT(left, state->slot.when)) < PyFloat_AS_DOUBLE(SLOT(right, state->slot.when));
  /* Somebody's own kind of timer: his comparison may do anything to the list. */
  Py_INCREF(left);
  Py_INCREF(right);
  result = PyObject_RichCompareBool(left, right, Py_LT);
  Py_DECREF(left);
  Py_DECREF(right);
  if (result >= 0 && PyList_GET_SIZE(list) != size) {
    PyErr_SetString(PyExc_RuntimeError, "list changed size during iteration");
    return -1;
  }
  return result;
}

static void swap(PyObject *list, Py_ssize_t a, Py_ssize_t b) {
  PyObject *item = PyList_GET_ITEM(list, a);

  PyList_SET_ITEM(list, a, PyList_GET_ITEM(list, b));
  PyList_SET_ITEM(list, b, item);
}

/* Moves an item towards the root, at most to the place top. */
static int rise_slowly(speedups_state *state, PyObject *list, Py_ssize_t top, Py_ssize_t place) {
  while (place > top) {
    Py_ssize_t parent = (place - 1) / 2;
    int less = is_less(state, list, place, parent);

    if (less <= 0)
      return less;
    swap(list, place, parent);
    place = parent;
  }
  return 0;
}

/* The same.  Among timers that are known nothing runs, and nothing must be swapped before its place is found. */
static int rise(speedups_state *state, PyObject *list, Py_ssize_t top, Py_ssize_t place) {
  PyObject **items = ((PyListObject *)list)->ob_item;
  PyObject *item = items[place];
  double when;

  if (!is_known(state, item))
    return rise_slowly(state, list, top, place);
  when = known_when(state, item);
  while (place > top) {
    Py_ssize_t parent = (place - 1) / 2;

    if (!is_known(state, items[parent])) {
      items[place] = item;
      return rise_slowly(state, list, top, place);
    }
    if (!(when < known_when(state, items[parent])))
      break;
    items[place] = items[parent];
    place = parent;
  }
  items[place] = item;
  return 0;
}

/* Moves an item to a leaf along the smaller children, and from there up to where it belongs. */
static int sink_slowly(speedups_state *state, PyObject *list, Py_ssize_t top, Py_ssize_t place) {
  Py_ssize_t size = PyList_GET_SIZE(list);
  Py_ssize_t child;

  while ((child = 2 * place + 1) < size) {
    if (child + 1 < size) {
      int less = is_less(state, list, child, child + 1);

      if (less < 0)
        return -1;
      if (!less)
        child++;
    }
    swap(list, place, child);
    place = child;
  }
  return rise(state, list, top, place);
}

static int sink(speedups_state *state, PyObject *list, Py_ssize_t top) {
  PyObject **items = ((PyListObject *)list)->ob_item;
  Py_ssize_t size = PyList_GET_SIZE(list);
  PyObject *item = items[top];
  Py_ssize_t place = top;
  Py_ssize_t child;

  while ((child = 2 * place + 1) < size) {
    if (child + 1 < size) {
      if (!is_known(state, items[child]) || !is_known(state, items[child + 1])) {
        items[place] = item;
        return sink_slowly(state, list, top, place);
      }
      if (!(known_when(state, items[child]) < known_when(state, items[child + 1])))
        child++;
    }
    items[place] = items[child];
    place = child;
  }
  items[place] = item;
  return rise(state, list, top, place);
}

/* Below this a list keeps the memory of what it had. */
#define SMALL_LIST 64

int timers_drop_last(PyObject *list) {
  Py_ssize_t last = PyList_GET_SIZE(list) - 1;
  PyObject *item;

  if (((PyListObject *)list)->allocated > SMALL_LIST && last < ((PyListObject *)list)->allocated / 2)
    return PyList_SetSlice(list, last, last + 1, NULL); /* which gives memory back */
  item = PyList_GET_ITEM(list, last);
  Py_SET_SIZE(list, last);
  Py_DECREF(item);
  return 0;
}

int timers_push(speedups_state *state, PyObject *list, PyObject *timer) {
  if (PyList_Append(list, timer) < 0)
    return -1;
  return rise(state, list, 0, PyList_GET_SIZE(list) - 1);
}

PyObject *timers_pop(speedups_state *state, PyObject *list) {
  Py_ssize_t last = PyList_GET_SIZE(list) - 1;
  PyObject *first;

  if (last < 0) {
    PyErr_SetString(PyExc_IndexError, "index out of range");
    return NULL;
  }
  swap(list, 0, last);
  first = Py_NewRef(PyList_GET_ITEM(list, last));
  if (timers_drop_last(list) < 0 || (last > 0 && sink(state, list, 0) < 0))
    Py_CLEAR(first);
  return first;
}

static int drop_first(speedups_state *state, loop_object *loop, PyObject *list) {
  PyObject *timer = timers_pop(state, list);
  int result;

  if (timer == NULL)
    return -1;
  loop->timer_cancelled_count--;
  result = timer_set_scheduled(state, timer, Py_False);
  Py_DECREF(timer);
  return result;
}

static int drop_all(speedups_state *state, loop_object *loop, PyObject *list) {
  PyObject *kept = PyList_New(0);
  Py_ssize_t i;
  int result = -1;

  if (kept == NULL)
    return -1;
  for (i = 0; i < PyList_GET_SIZE(list); i++) {
    PyObject *timer = Py_NewRef(PyList_GET_ITEM(list, i));
    int cancelled = handle_is_cancelled(state, timer);

    if (cancelled > 0)
      cancelled = timer_set_scheduled(state, timer, Py_False);
    else if (cancelled == 0)
      cancelled = PyList_Append(kept, timer);
    Py_DECREF(timer);
    if (cancelled < 0)
      goto done;
  }
  for (i = PyList_GET_SIZE(kept) / 2; i-- > 0;)
    if (sink(state, kept, i) < 0)
      goto done;
  /* In place: _scheduled stays the list that others may hold (nest_asyncio). */
  result = PyList_SetSlice(list, 0, PyList_GET_SIZE(list), kept);
  loop->timer_cancelled_count = 0;
done:
  Py_DECREF(kept);
  return result;
}

int timers_drop_cancelled(loop_object *loop, PyObject *list) {
  speedups_state *state = loop->state;
  Py_ssize_t size = PyList_GET_SIZE(list);
  int result = 0;

  if (size > state->many_timers && (double)loop->timer_cancelled_count / (double)size > state->many_cancelled) {
    result = drop_all(state, loop, list);
  } else {
    while (result == 0 && PyList_GET_SIZE(list) > 0) {
      PyObject *first = Py_NewRef(PyList_GET_ITEM(list, 0));

      result = handle_is_cancelled(state, first);
      Py_DECREF(first);
      if (result <= 0)
        break;
      result = drop_first(state, loop, list);
    }
  }
  return result < 0 ? -1 : 0;
}
