/* test_threads.c: waking, and what other threads may do meanwhile (H11). */
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

static void start(pthread_t *thread, void *(*function)(void *), void *argument) {
  CHECK_EQ(pthread_create(thread, NULL, function, argument), 0);
}

static void join(pthread_t thread) {
  CHECK_EQ(pthread_join(thread, NULL), 0);
}

static void *poll_without_limit(void *argument) {
  CHECK_EQ(vl_core_poll(argument, WITHOUT_LIMIT), 0);
  return NULL;
}

/* Starts a thread and returns when it is inside vl_core_poll(). */
static void start_polling(vl_core *core, pthread_t *thread) {
  start(thread, poll_without_limit, core);
  while (vl_core_check(core) != VL_ERR_BUSY)
    sched_yield();
}

TEST(wake_ends_a_poll) {
  vl_core *core = open_core();
  vl_statistics before = statistics_of(core);
  pthread_t thread;

  for (int i = 0; i < 20; i++) {
    start_polling(core, &thread);
    CHECK_EQ(vl_core_wake(core), 0);
    join(thread);
  }
  CHECK_EQ(statistics_of(core).polls, before.polls + 20);
  close_core(core);
}

TEST(wake_before_a_poll_ends_that_one_and_no_other) {
  vl_core *core = open_core();
  int waits;

  for (int i = 0; i < 3; i++)
    CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), 0);
  waits = faults.kernel_waits;
  CHECK_EQ(vl_core_poll(core, 10 * NS_PER_MS), 0);
  CHECK_LE(faults.kernel_waits - waits, 2);
  close_core(core);
}

TEST(an_idle_poll_costs_nothing) {
  vl_core *core = open_core();
  pthread_t thread;
  int waits = faults.kernel_waits;

  faults.endless_wait = false;
  start_polling(core, &thread);
  CHECK_EQ(vl_core_wake(core), 0);
  join(thread);
  CHECK_EQ(faults.kernel_waits - waits, 1); /* one call, which slept until the wake */
  CHECK(faults.endless_wait);
  close_core(core);
}

TEST(wake_after_close_does_nothing) {
  vl_core *core = open_core();

  CHECK_EQ(vl_core_close(core), 0);
  CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_close(core), 0); /* twice is once */
  vl_core_free(core);
}

static void *wake_until_told(void *argument) {
  vl_core **shared = argument;
  vl_core *core;

  while ((core = __atomic_load_n(shared, __ATOMIC_ACQUIRE)) != NULL) {
    CHECK_EQ(vl_core_wake(core), 0);
    sched_yield(); /* or the others may wait for the lock for seconds */
  }
  return NULL;
}

TEST(wakes_beside_turns_and_beside_close) {
  for (int round = 0; round < 10; round++) {
    vl_core *core = open_core();
    vl_core *shared = core;
    pthread_t threads[3];

    for (int i = 0; i < 3; i++)
      start(&threads[i], wake_until_told, &core);
    for (int turn = 0; turn < 50; turn++)
      CHECK_EQ(vl_core_poll(shared, WITHOUT_LIMIT), 0);
    CHECK_EQ(vl_core_close(shared), 0);
    for (int i = 0; i < 200; i++)
      sched_yield(); /* they go on waking a closed core */
    __atomic_store_n(&core, NULL, __ATOMIC_RELEASE);
    for (int i = 0; i < 3; i++)
      join(threads[i]);
    vl_core_free(shared); /* "its memory outlives the loop" */
  }
}

TEST(h11_every_entry_but_wake_is_refused_while_a_thread_polls) {
  vl_core *core = open_core();
  int port;
  int fd = listen_tcp(&port);
  int peer;
  int fds[2];
  int64_t stream = open_stream(core, &peer);
  int64_t listener = vl_listener_open(core, VL_STREAM_TCP, fd, 1);
  vl_statistics before = statistics_of(core);
  char name[128];
  pthread_t thread;

  CHECK_GT(listener, 0);
  make_pair(fds);
  start_polling(core, &thread);
  CHECK_EQ(vl_core_poll(core, 0), VL_ERR_BUSY);
  CHECK_EQ(vl_core_close(core), VL_ERR_BUSY);
  CHECK_EQ(vl_core_check(core), VL_ERR_BUSY);
  CHECK_EQ(vl_handle_close(core, stream), VL_ERR_BUSY);
  CHECK_EQ(vl_handle_fileno(core, stream), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_open(core, VL_STREAM_PIPE, fds[0]), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_sockname(core, stream, name, sizeof(name)), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_read_start(core, stream), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_read_stop(core, stream), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_try_write(core, stream, "x", 1), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_try_write2(core, stream, "x", 1, "y", 1), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_write(core, stream, 1, "x", 1), VL_ERR_BUSY);
  CHECK_EQ(vl_stream_shutdown(core, stream), VL_ERR_BUSY);
  CHECK_EQ(vl_listener_open(core, VL_STREAM_TCP, peer, 1), VL_ERR_BUSY);
  CHECK_EQ(vl_listener_restart(core, listener), VL_ERR_BUSY);
  CHECK_EQ(vl_selector_open(core, peer), VL_ERR_BUSY);
  check_end(fds[1]); /* a stream's descriptor is its own on failure too */
  close_fd(fds[1]);
  CHECK_EQ(vl_core_wake(core), 0);
  join(thread);
  CHECK_EQ(statistics_of(core).handles, before.handles);
  CHECK_EQ(vl_stream_try_write(core, stream, "x", 1), 1);
  close_core(core);
  close_fd(peer);
  close_fd(fd);
}

typedef struct {
  vl_core *core;
  int stop;
} hammering;

/* Opens and closes streams as fast as it can: what is not refused must be whole. */
static void *open_and_close(void *argument) {
  hammering *what = argument;

  while (!__atomic_load_n(&what->stop, __ATOMIC_ACQUIRE)) {
    int fds[2];
    int64_t key;

    make_pair(fds);
    key = vl_stream_open(what->core, VL_STREAM_PIPE, fds[0]);
    if (key > 0)
      while (vl_handle_close(what->core, key) == VL_ERR_BUSY)
        sched_yield();
    else
      CHECK_EQ(key, VL_ERR_BUSY);
    close_fd(fds[1]);
  }
  return NULL;
}

TEST(h11_opening_and_closing_beside_turns) {
  vl_core *core = open_core();
  hammering what = {core, 0};
  int peer;
  int64_t key = open_reader(core, &peer);
  pthread_t thread;
  vl_record record;

  start(&thread, open_and_close, &what);
  for (int turn = 0; turn < 1000; turn++) {
    send_text(peer, "x");
    CHECK_GE(vl_core_poll(core, NS_PER_MS / 10), 0);
    while (take(core, &record))
      CHECK_EQ(record.owner, key);
  }
  __atomic_store_n(&what.stop, 1, __ATOMIC_RELEASE);
  join(thread);
  settle(core);
  CHECK_EQ(statistics_of(core).handles, 1);
  close_core(core);
  close_fd(peer);
}

const test_case thread_tests[] = {
    CASE(wake_ends_a_poll),
    CASE(wake_before_a_poll_ends_that_one_and_no_other),
    CASE(an_idle_poll_costs_nothing),
    CASE(wake_after_close_does_nothing),
    CASE(wakes_beside_turns_and_beside_close),
    CASE(h11_every_entry_but_wake_is_refused_while_a_thread_polls),
    CASE(h11_opening_and_closing_beside_turns),
    END_OF_CASES,
};
