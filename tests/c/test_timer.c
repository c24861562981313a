/* test_timer.c: how long a turn waits (H7).  Turns and system calls are counted; a clock is
 * read only to see that a wait was not cut short. */
#include <stdint.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

#define DAY_MS (24 * 3600 * 1000)

/* Turns that a wait of so many nanoseconds takes, the way asyncio waits for a timer. */
static int turns_of_wait(vl_core *core, int64_t wait) {
  int64_t end = now_ns() + wait;
  int turns = 0;

  for (int64_t left = wait; left > 0; left = end - now_ns()) {
    CHECK_EQ(vl_core_poll(core, left), 0);
    turns++;
  }
  return turns;
}

TEST(h7_short_waits_take_one_turn_or_two) {
  vl_core *core = open_core();
  static const int64_t WAITS[] = {20000, 200000, 900000, 1000000, 2500000, 3999999};

  for (int round = 0; round < 5; round++)
    for (size_t i = 0; i < sizeof(WAITS) / sizeof(WAITS[0]); i++) {
      int waits = faults.kernel_waits;

      CHECK_LE(turns_of_wait(core, WAITS[i]), 2);
      CHECK_LE(faults.kernel_waits - waits, 2);
    }
  close_core(core);
}

TEST(h7_long_waits_take_three_turns_at_most) {
  vl_core *core = open_core();
  static const int64_t WAITS[] = {4000000, 4999999, 7300000, 12000001, 31500000};

  for (size_t i = 0; i < sizeof(WAITS) / sizeof(WAITS[0]); i++) {
    int waits = faults.kernel_waits;

    /* libuv's timer to the last millisecond but one, then the fine one. */
    CHECK_LE(turns_of_wait(core, WAITS[i]), 3);
    CHECK_LE(faults.kernel_waits - waits, 4);
  }
  close_core(core);
}

TEST(h7_a_fired_timer_does_not_end_what_follows) {
  vl_core *core = open_core();
  int64_t begin;

  for (int round = 0; round < 3; round++) {
    CHECK_EQ(turns_of_wait(core, NS_PER_MS) <= 2, true); /* fired, and never read */
    begin = now_ns();
    CHECK_EQ(vl_core_poll(core, 25 * NS_PER_MS), 0);
    CHECK_GE(now_ns() - begin, 23 * NS_PER_MS);
    CHECK_EQ(turns_of_wait(core, NS_PER_MS) <= 2, true);
    begin = now_ns();
    CHECK_EQ(vl_core_poll(core, 2 * NS_PER_MS), 0);
    CHECK_GE(now_ns() - begin, 2 * NS_PER_MS - 100000);
  }
  close_core(core);
}

TEST(h7_a_timer_that_is_set_does_not_end_a_longer_wait) {
  vl_core *core = open_core();
  int64_t begin;

  CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_poll(core, 3 * NS_PER_MS), 0); /* ends by the wake */
  begin = now_ns();
  CHECK_EQ(vl_core_poll(core, 25 * NS_PER_MS), 0);
  CHECK_GE(now_ns() - begin, 23 * NS_PER_MS);
  CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_poll(core, 3 * NS_PER_MS), 0);
  begin = now_ns();
  CHECK_LE(turns_of_wait(core, 9 * NS_PER_MS), 3);
  CHECK_GE(now_ns() - begin, 9 * NS_PER_MS);
  close_core(core);
}

TEST(h7_a_wait_counts_from_its_beginning) {
  vl_core *core = open_core();
  int64_t begin = now_ns();

  /* Time that passes between two turns is not part of the second. */
  while (now_ns() - begin < 30 * NS_PER_MS) {
  }
  faults.interrupt_wait = true; /* after which libuv counts from its last look at the clock */
  begin = now_ns();
  CHECK_EQ(vl_core_poll(core, 25 * NS_PER_MS), 0);
  CHECK_GE(now_ns() - begin, 23 * NS_PER_MS);
  CHECK(!faults.interrupt_wait);
  close_core(core);
}

/* A turn that ends at once, whatever it was to wait for. */
static void wake_and_poll(vl_core *core, int64_t timeout) {
  CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_poll(core, timeout), 0);
}

TEST(h7_the_timer_is_set_as_rarely_as_possible) {
  vl_core *core = open_core();
  int settings;

  /* Turns that do not wait do not touch it. */
  settings = faults.timer_settings;
  for (int turn = 0; turn < 100; turn++)
    CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(faults.timer_settings, settings);
  /* Deadlines within 20 us are one. */
  faults.clock_stands = true;
  faults.timer_stands = true;
  settings = faults.timer_settings;
  wake_and_poll(core, 3 * NS_PER_MS);
  CHECK_EQ(faults.timer_settings, settings + 1);
  wake_and_poll(core, 3 * NS_PER_MS - 15000);
  wake_and_poll(core, 3 * NS_PER_MS + 15000);
  CHECK_EQ(faults.timer_settings, settings + 1);
  wake_and_poll(core, 3 * NS_PER_MS - 30000);
  CHECK_EQ(faults.timer_settings, settings + 2);
  wake_and_poll(core, 3 * NS_PER_MS + 30000);
  CHECK_EQ(faults.timer_settings, settings + 3);
  /* One that has passed is set again, as near as the next may be. */
  faults.timer_stands = false;
  CHECK_EQ(vl_core_poll(core, NS_PER_MS), 0);
  CHECK_EQ(faults.timer_settings, settings + 4);
  CHECK_EQ(vl_core_poll(core, NS_PER_MS), 0);
  CHECK_EQ(faults.timer_settings, settings + 5);
  /* A longer wait ends it, once. */
  wake_and_poll(core, 10 * NS_PER_MS);
  wake_and_poll(core, 10 * NS_PER_MS);
  wake_and_poll(core, WITHOUT_LIMIT);
  CHECK_EQ(faults.timer_settings, settings + 6);
  close_core(core);
}

TEST(h7_waits_are_clamped_to_a_day) {
  vl_core *core = open_core();

  faults.longest_wait = 0;
  CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_poll(core, INT64_MAX), 0);
  CHECK_GT(faults.longest_wait, DAY_MS - 10);
  CHECK_LE(faults.longest_wait, DAY_MS);
  CHECK(!faults.endless_wait);
  CHECK_EQ(vl_core_wake(core), 0);
  CHECK_EQ(vl_core_poll(core, INT64_MIN), 0); /* no limit: not a day either */
  CHECK(faults.endless_wait);
  close_core(core);
}

TEST(h7_records_that_wait_end_a_wait) {
  vl_core *core = open_core();
  int peer;
  int64_t key = open_stream(core, &peer);

  /* The completion is found before the kernel is asked: the turn must not sleep after it. */
  CHECK_EQ(vl_stream_write(core, key, 1, "x", 1), 0);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  close_core(core);
  close_fd(peer);
}

const test_case timer_tests[] = {
    CASE(h7_short_waits_take_one_turn_or_two),
    CASE(h7_long_waits_take_three_turns_at_most),
    CASE(h7_a_fired_timer_does_not_end_what_follows),
    CASE(h7_a_timer_that_is_set_does_not_end_a_longer_wait),
    CASE(h7_a_wait_counts_from_its_beginning),
    CASE(h7_the_timer_is_set_as_rarely_as_possible),
    CASE(h7_waits_are_clamped_to_a_day),
    CASE(h7_records_that_wait_end_a_wait),
    END_OF_CASES,
};
