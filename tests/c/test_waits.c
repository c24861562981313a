/* test_waits.c: single waits for sockets that stay their owner's. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "support.h"

static vl_record wait_over(vl_core *core) {
  vl_record record;

  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  CHECK(take(core, &record));
  CHECK_EQ(record.op, VL_OP_WAIT);
  return record;
}

TEST(a_wait_ends_once) {
  vl_core *core = open_core();
  int pair[2];

  make_pair(pair);
  CHECK_EQ(vl_wait_arm(core, pair[0], 7), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  send_text(pair[1], "x");
  CHECK_EQ(wait_over(core).aux, 7);
  CHECK_EQ(vl_core_poll(core, 0), 0); /* still readable: nobody waits */
  CHECK_EQ(vl_wait_arm(core, pair[0], 8), 0);
  CHECK_EQ(wait_over(core).aux, 8);
  CHECK_EQ(statistics_of(core).handles, 0);
  close_core(core);
  close_fd(pair[0]);
  close_fd(pair[1]);
}

TEST(a_wait_takes_the_place_of_another_and_is_forgotten) {
  vl_core *core = open_core();
  int pair[2];

  make_pair(pair);
  CHECK_EQ(vl_wait_forget(core, pair[0]), 0); /* there is no instance yet */
  CHECK_EQ(vl_wait_arm(core, pair[0], 1), 0);
  CHECK_EQ(vl_wait_arm(core, pair[0], 2), 0);
  send_text(pair[1], "x");
  CHECK_EQ(wait_over(core).aux, 2);
  CHECK_EQ(vl_wait_arm(core, pair[0], 3), 0);
  CHECK_EQ(vl_wait_forget(core, pair[0]), 0);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  CHECK_EQ(vl_wait_forget(core, pair[0]), UV_ENOENT);
  close_core(core);
  close_fd(pair[0]);
  close_fd(pair[1]);
}

TEST(h6_a_descriptor_is_closed_while_it_is_waited_for) {
  vl_core *core = open_core();
  int pair[2], other[2];
  int number;

  make_pair(pair);
  number = pair[0];
  CHECK_EQ(vl_wait_arm(core, number, 1), 0);
  close_fd(pair[0]);
  CHECK_EQ(vl_core_poll(core, 0), 0);
  make_pair(other); /* another file takes the number */
  if (other[0] != number) {
    CHECK_EQ(dup3(other[0], number, O_CLOEXEC), number);
    close_fd(other[0]);
  }
  CHECK_EQ(vl_wait_arm(core, number, 2), 0);
  send_text(other[1], "x");
  CHECK_EQ(wait_over(core).aux, 2);
  close_fd(number);
  CHECK_EQ(vl_wait_arm(core, number, 3), UV_EBADF);
  close_core(core);
  close_fd(other[1]);
  close_fd(pair[1]);
}

TEST(the_end_and_very_many_waits) {
  enum { MANY = 200 };
  vl_core *core = open_core();
  static int pairs[MANY][2];
  int seen = 0;
  vl_record record;

  for (int i = 0; i < MANY; i++) {
    make_pair(pairs[i]);
    CHECK_EQ(vl_wait_arm(core, pairs[i][0], i), 0);
    close_fd(pairs[i][1]);
  }
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_POLL_RECORDS);
  while (take(core, &record)) {
    CHECK_EQ(record.op, VL_OP_WAIT);
    seen++;
  }
  CHECK_EQ(seen, MANY); /* in batches of 64, and in one poll */
  CHECK_EQ(vl_core_poll(core, 0), 0);
  close_core(core);
  for (int i = 0; i < MANY; i++)
    close_fd(pairs[i][0]);
}

TEST(a_closed_core_waits_for_nothing) {
  vl_core *core = open_core();
  int pair[2];

  make_pair(pair);
  CHECK_EQ(vl_wait_arm(core, pair[0], 1), 0);
  CHECK_EQ(vl_core_close(core), 0);
  CHECK_EQ(vl_wait_arm(core, pair[0], 2), VL_ERR_CLOSED);
  CHECK_EQ(vl_wait_forget(core, pair[0]), VL_ERR_CLOSED);
  vl_core_free(core);
  close_fd(pair[0]);
  close_fd(pair[1]);
}

const test_case wait_tests[] = {
    CASE(a_wait_ends_once),
    CASE(a_wait_takes_the_place_of_another_and_is_forgotten),
    CASE(h6_a_descriptor_is_closed_while_it_is_waited_for),
    CASE(the_end_and_very_many_waits),
    CASE(a_closed_core_waits_for_nothing),
    END_OF_CASES,
};
