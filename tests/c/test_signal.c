/* test_signal.c: signals, and what libuv does to those of others (H10). */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

#define MANY 1000

static volatile sig_atomic_t caught_by_us;

/* Stands for Python's C handler. */
static void our_handler(int signum) {
  (void)signum;
  caught_by_us++;
}

/* Gives the signal to us, as Python takes one, and returns what it did before. */
static void take_as_python(int signum, char previous[VL_ACTION_BYTES]) {
  CHECK_EQ(vl_signal_action(signum, previous), 0);
  CHECK(signal(signum, our_handler) != SIG_ERR);
}

static int64_t open_signal(vl_core *core, int signum) {
  char previous[VL_ACTION_BYTES];
  int64_t key;

  take_as_python(signum, previous);
  key = vl_signal_open(core, signum, previous);
  CHECK_GT(key, 0);
  return key;
}

static void *handler_of(int signum) {
  struct sigaction action;
  void *handler;

  CHECK_EQ(sigaction(signum, NULL, &action), 0);
  memcpy(&handler, &action.sa_handler, sizeof(handler));
  return handler;
}

static bool is_ours(int signum) {
  void (*function)(int) = our_handler;
  void *expected;

  memcpy(&expected, &function, sizeof(expected));
  return handler_of(signum) == expected;
}

static void check_caught(vl_core *core, int64_t key, int signum) {
  vl_record record = wait_for(core, key, VL_OP_SIGNAL);

  CHECK_EQ(record.result, signum);
}

TEST(h10_a_signal_is_a_record) {
  vl_core *core = open_core();
  int64_t key = open_signal(core, SIGUSR1);

  CHECK_EQ(raise(SIGUSR1), 0);
  CHECK_EQ(caught_by_us, 0);
  check_caught(core, key, SIGUSR1);
  check_quiet(core);
  CHECK_EQ(vl_signal_close(core, key), 0);
  CHECK_EQ(vl_signal_close(core, key), VL_ERR_STALE);
  close_core(core);
}

TEST(h10_each_of_many_is_a_record) {
  vl_core *core = open_core();
  int64_t key = open_signal(core, SIGUSR1);

  for (int i = 0; i < MANY; i++)
    CHECK_EQ(raise(SIGUSR1), 0);
  for (int i = 0; i < MANY; i++)
    check_caught(core, key, SIGUSR1);
  check_quiet(core);
  close_core(core);
}

TEST(h10_a_signal_without_memory_waits) {
  vl_core *core = open_core();
  int64_t key = open_signal(core, SIGUSR1);

  /* The ring's first segment is there from the beginning: fill it. */
  for (int i = 0; i < VL_RING_SEGMENT_RECORDS + 3; i++) {
    CHECK_EQ(raise(SIGUSR1), 0);
    if (i == VL_RING_SEGMENT_RECORDS - 1) {
      CHECK_EQ(vl_core_poll(core, 0), VL_POLL_RECORDS);
      faults.no_memory = true;
    }
  }
  for (int i = 0; i < VL_RING_SEGMENT_RECORDS; i++)
    check_caught(core, key, SIGUSR1);
  faults.no_memory = false;
  check_caught(core, key, SIGUSR1);
  close_core(core);
}

TEST(h10_closing_leaves_what_the_signal_does) {
  vl_core *core = open_core();
  int64_t key = open_signal(core, SIGINT);

  CHECK(!is_ours(SIGINT));
  CHECK(signal(SIGINT, our_handler) != SIG_ERR); /* as Python's remove_signal_handler() */
  CHECK_EQ(vl_signal_close(core, key), 0);
  CHECK(is_ours(SIGINT)); /* libuv had left SIG_DFL */
  CHECK_EQ(raise(SIGINT), 0);
  CHECK_EQ(caught_by_us, 1);
  check_quiet(core);
  close_core(core);
}

TEST(h10_a_signal_taken_by_python_is_taken_back) {
  vl_core *core = open_core();
  int64_t key = open_signal(core, SIGUSR1);
  char previous[VL_ACTION_BYTES];

  take_as_python(SIGUSR1, previous);
  CHECK_EQ(raise(SIGUSR1), 0);
  CHECK_EQ(caught_by_us, 1);
  CHECK_EQ(vl_signal_retake(core, key, previous), 0);
  CHECK(!is_ours(SIGUSR1));
  CHECK_EQ(raise(SIGUSR1), 0);
  CHECK_EQ(caught_by_us, 1);
  check_caught(core, key, SIGUSR1);

  /* What was ignored or left to the system before is not taken up again. */
  CHECK(signal(SIGUSR1, SIG_IGN) != SIG_ERR);
  take_as_python(SIGUSR1, previous);
  CHECK_EQ(vl_signal_retake(core, key, previous), 0);
  CHECK(is_ours(SIGUSR1));
  check_quiet(core);
  close_core(core);
}

TEST(h10_two_loops_with_one_signal) {
  vl_core *one = open_core();
  vl_core *two = open_core();
  int64_t key_one = open_signal(one, SIGUSR1);
  int64_t key_two = open_signal(two, SIGUSR1); /* libuv thinks that it has the signal already */

  CHECK(!is_ours(SIGUSR1));
  CHECK_EQ(raise(SIGUSR1), 0);
  check_caught(one, key_one, SIGUSR1);
  check_caught(two, key_two, SIGUSR1);
  CHECK_EQ(vl_signal_close(one, key_one), 0);
  CHECK_EQ(raise(SIGUSR1), 0);
  check_caught(two, key_two, SIGUSR1);
  check_quiet(one);
  close_core(one);
  close_core(two);
}

TEST(h10_signals_that_nobody_can_catch) {
  vl_core *core = open_core();
  char previous[VL_ACTION_BYTES] = {0};

  CHECK_EQ(vl_signal_open(core, SIGKILL, previous), UV_EINVAL);
  CHECK_EQ(vl_signal_open(core, 0, previous), UV_EINVAL);
  CHECK_EQ(vl_signal_open(core, -1, previous), UV_EINVAL);
  CHECK_EQ(vl_signal_open(core, 4711, previous), UV_EINVAL);
  CHECK_EQ(vl_signal_action(4711, previous), UV_EINVAL);
  CHECK_EQ(vl_signal_retake(core, 4711, previous), VL_ERR_STALE);
  settle(core);
  close_core(core);
}

TEST(h10_no_memory_for_a_handle_leaves_the_signal_alone) {
  char previous[VL_ACTION_BYTES];

  for (int nth = 1; nth <= 2; nth++) {
    vl_core *core = open_core();
    int64_t key;

    take_as_python(SIGUSR1, previous);
    faults.fail_allocation = nth;
    key = vl_signal_open(core, SIGUSR1, previous);
    faults.fail_allocation = 0;
    if (key < 0) {
      CHECK_EQ(key, UV_ENOMEM);
      CHECK(is_ours(SIGUSR1));
    }
    close_core(core);
  }
}

typedef struct {
  vl_core *core;
  int64_t key;
} inheritance;

static void raise_in_child(void *argument) {
  inheritance *of = argument;
  vl_core *mine;
  int64_t key;

  vl_core_abandon(of->core);
  CHECK(handler_of(SIGUSR1) == NULL); /* SIG_DFL */
  CHECK_EQ(vl_signal_close(of->core, of->key), VL_ERR_FOREIGN);
  /* A loop of the child's own has the signal alone. */
  mine = open_core();
  key = open_signal(mine, SIGUSR1);
  CHECK(!is_ours(SIGUSR1));
  CHECK_EQ(raise(SIGUSR1), 0);
  check_caught(mine, key, SIGUSR1);
  close_core(mine);
}

TEST(h10_a_forked_child_does_not_tell_its_parent) {
  inheritance of = {open_core(), 0};

  of.key = open_signal(of.core, SIGUSR1);
  CHECK_EQ(in_child(raise_in_child, &of), 0);
  check_quiet(of.core);
  CHECK_EQ(raise(SIGUSR1), 0);
  check_caught(of.core, of.key, SIGUSR1);
  close_core(of.core);
}

static void adopt_in_child(void *argument) {
  inheritance *of = argument;

  vl_core_abandon(of->core);
  CHECK_EQ(vl_core_adopt(of->core), 0);
  CHECK_EQ(vl_signal_close(of->core, of->key), 0);
  of->key = open_signal(of->core, SIGUSR1);
  CHECK_EQ(raise(SIGUSR1), 0);
  check_caught(of->core, of->key, SIGUSR1);
  close_core(of->core);
}

TEST(h10_an_adopted_core_catches_anew) {
  inheritance of = {open_core(), 0};

  of.key = open_signal(of.core, SIGUSR1);
  CHECK_EQ(in_child(adopt_in_child, &of), 0);
  check_quiet(of.core);
  CHECK_EQ(raise(SIGUSR1), 0);
  check_caught(of.core, of.key, SIGUSR1);
  close_core(of.core);
}

TEST(h6_a_signals_pipe_stays_off_standard_streams) {
  vl_core *core = open_core();
  int64_t key;
  int held = dup(0);

  CHECK_GT(held, 2);
  CHECK_EQ(close(0), 0);
  key = open_signal(core, SIGUSR1);
  CHECK(!is_open(0));
  CHECK_EQ(raise(SIGUSR1), 0);
  check_caught(core, key, SIGUSR1);
  close_core(core);
  CHECK_EQ(dup2(held, 0), 0);
  close_fd(held);
}

const test_case signal_tests[] = {
    CASE(h10_a_signal_is_a_record),
    CASE(h10_each_of_many_is_a_record),
    CASE(h10_a_signal_without_memory_waits),
    CASE(h10_closing_leaves_what_the_signal_does),
    CASE(h10_a_signal_taken_by_python_is_taken_back),
    CASE(h10_two_loops_with_one_signal),
    CASE(h10_signals_that_nobody_can_catch),
    CASE(h10_no_memory_for_a_handle_leaves_the_signal_alone),
    CASE(h10_a_forked_child_does_not_tell_its_parent),
    CASE(h10_an_adopted_core_catches_anew),
    CASE(h6_a_signals_pipe_stays_off_standard_streams),
    END_OF_CASES,
};
