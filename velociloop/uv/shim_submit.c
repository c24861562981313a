/* shim_submit.c: what libuv will hand to the kernel in the next uv_run().
 *
 * Facts (H6): libuv defers its epoll_ctl() calls.  A watcher that starts or stops is put into
 * loop->watcher_queue, and the next uv_run() aborts if the kernel refuses one of them: "if
 * (epoll_ctl(epollfd, EPOLL_CTL_MOD, fd, &e)) abort();".  A watcher also comes there when nothing
 * changes: after POLLHUP, POLLERR or a finished write uv__drain() calls uv__io_stop(POLLOUT),
 * which queues it if it watches for anything else.  uv__run_pending() does that for
 * loop->pending_queue in the same uv_run(), before the kernel is asked.
 * Choice: who is handed to the kernel is libuv's knowledge, so libuv's two queues are read.  The
 * first is handed over here, where a refusal can be told to the owner; the second is tried.  Both are
 * in uv/unix.h.  Windows has neither: its requests report their own failure. */
#include "shim_internal.h"

#ifdef _WIN32

int submit_check(vl_core *core) {
  (void)core;
  return 0;
}

void submit_forget_refused(vl_core *core) {
  (void)core;
}

#else

/* The watcher of a handle, or NULL if libuv watches it through one of its own. */
static const uv__io_t *watcher_of(const vl_handle *handle) {
  switch (handle->uv.any.type) {
  case UV_TCP:
  case UV_NAMED_PIPE:
  case UV_TTY:
    return &handle->uv.stream.io_watcher;
  case UV_UDP:
    return &handle->uv.udp.io_watcher;
  case UV_POLL:
    return &handle->uv.poll.io_watcher;
  default:
    return NULL;
  }
}

/* Looks at every handle: only for a watcher that the kernel refuses. */
static vl_handle *owner_of(const vl_core *core, const uv__io_t *watcher) {
  uint32_t i;

  for (i = 0; i < core->slot_count; i++)
    if (core->slots[i].handle != NULL && watcher_of(core->slots[i].handle) == watcher)
      return core->slots[i].handle;
  return NULL;
}

static uv__io_t *queued(struct uv__queue *link) {
  return (uv__io_t *)(void *)((char *)link - offsetof(uv__io_t, watcher_queue));
}

static uv__io_t *pending(struct uv__queue *link) {
  return (uv__io_t *)(void *)((char *)link - offsetof(uv__io_t, pending_queue));
}

/* What becomes of a watcher that the kernel refuses: 0, or the error if it is libuv's own, and
 * not a handle's. */
static int refuse(vl_core *core, const uv__io_t *watcher, int err) {
  vl_handle *owner = owner_of(core, watcher);

  if (owner == NULL)
    return err;
  handle_lose(owner, err);
  return 0;
}

/* Does for one watcher what uv__io_poll() does for the queue: "w->events = w->pevents", once the kernel knows it.  Where
 * that is epoll it needs no trial before: the trial's ADD would have libuv's own fail (EEXIST), and a MOD follow. */
static int hand_over(uv_loop_t *loop, uv__io_t *watcher) {
  struct uv__queue *link = &watcher->watcher_queue;
  int err = os_watch(loop, watcher->fd, watcher->pevents, watcher->events == 0);

  if (err == UV_ENOTSUP)
    return 0; /* stays in the queue, for libuv */
  if (err != 0)
    return err;
  watcher->events = watcher->pevents;
  link->prev->next = link->next;
  link->next->prev = link->prev;
  link->next = link;
  link->prev = link;
  return 0;
}

int submit_check(vl_core *core) {
  uv_loop_t *loop = &core->loop;
  struct uv__queue *link;
  struct uv__queue *next;
  int result = 0;
  int err;

  for (link = loop->watcher_queue.next; link != &loop->watcher_queue; link = next) {
    next = link->next; /* this one is taken out, by handle_lose() too */
    err = hand_over(loop, queued(link));
    if (err != 0)
      err = refuse(core, queued(link), err);
    if (err != 0)
      result = err;
  }
  for (link = loop->pending_queue.next; link != &loop->pending_queue; link = next) {
    next = link->next;
    /* One that the kernel does not watch yet is in the other queue, or will not be handed over. */
    if (pending(link)->events == 0)
      continue;
    err = os_check_descriptor(loop, pending(link)->fd);
    if (err != 0)
      err = refuse(core, pending(link), err);
    if (err != 0)
      result = err;
  }
  return result;
}

void submit_forget_refused(vl_core *core) {
  uv_loop_t *loop = &core->loop;
  struct uv__queue *link;
  struct uv__queue *next;

  for (link = loop->watcher_queue.next; link != &loop->watcher_queue; link = next) {
    next = link->next;
    if (os_check_descriptor(loop, queued(link)->fd) == 0)
      continue;
    link->prev->next = link->next; /* as uv__io_stop() does */
    link->next->prev = link->prev;
    link->next = link;
    link->prev = link;
  }
}

#endif
