/* test_fork.c: a forked child and its parent's core (H11). */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

/* What a child is given: a core with a reading stream, and the other end of that. */
typedef struct {
  vl_core *core;
  int64_t key;
  int peer;
} inheritance;

static inheritance make_inheritance(void) {
  inheritance made;

  made.core = open_core();
  made.key = open_reader(made.core, &made.peer);
  CHECK_EQ(vl_core_poll(made.core, 0), 0);
  return made;
}

/* The parent still reads, waits and wakes. */
static void check_undisturbed(inheritance *of) {
  vl_record record;

  send_text(of->peer, "hello");
  record = wait_for(of->core, of->key, VL_OP_READ);
  check_read(of->core, &record, of->key, "hello");
  CHECK_EQ(vl_core_wake(of->core), 0);
  CHECK_EQ(vl_core_poll(of->core, WITHOUT_LIMIT), 0);
  CHECK_EQ(vl_core_poll(of->core, NS_PER_MS), 0);
  CHECK_EQ(vl_core_check(of->core), 0);
}

static void end_inheritance(inheritance *of) {
  close_core(of->core);
  check_end(of->peer);
  close_fd(of->peer);
}

/* -- left alone ------------------------------------------------------------------------ */

static void use_abandoned(void *argument) {
  inheritance *of = argument;
  vl_core *core = of->core;
  char name[128];
  int fds[2];

  make_pair(fds);
  vl_core_abandon(core);
  CHECK_EQ(vl_core_poll(core, WITHOUT_LIMIT), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_wake(core), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_check(core), VL_ERR_FOREIGN);
  CHECK_EQ(vl_handle_close(core, of->key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_handle_fileno(core, of->key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_stream_open(core, VL_STREAM_PIPE, fds[0]), VL_ERR_FOREIGN);
  CHECK_EQ(vl_stream_sockname(core, of->key, name, sizeof(name)), VL_ERR_FOREIGN);
  CHECK_EQ(vl_stream_read_start(core, of->key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_stream_read_stop(core, of->key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_stream_try_write(core, of->key, "x", 1), VL_ERR_FOREIGN);
  CHECK_EQ(vl_stream_write(core, of->key, 1, "x", 1), VL_ERR_FOREIGN);
  CHECK_EQ(vl_stream_shutdown(core, of->key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_listener_open(core, VL_STREAM_TCP, of->peer, 1), VL_ERR_FOREIGN);
  CHECK_EQ(vl_listener_restart(core, of->key), VL_ERR_FOREIGN);
  CHECK_EQ(vl_selector_open(core, of->peer), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_close(core), VL_ERR_FOREIGN);
  vl_core_free(core); /* nothing happens: __del__ may come here */
  CHECK_EQ(statistics_of(core).handles, 1);
}

TEST(h11_an_abandoned_core_touches_nothing_of_the_parents) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(use_abandoned, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void exit_normally(void *argument) {
  inheritance *of = argument;

  vl_core_abandon(of->core);
  exit(0); /* with libuv's destructor */
}

TEST(h11_a_child_exits_normally) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(exit_normally, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

/* -- taken into use ----------------------------------------------------------------------- */

static void adopt(inheritance *of) {
  vl_core_abandon(of->core);
  CHECK_EQ(vl_core_check(of->core), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_adopt(of->core), 0);
  CHECK_EQ(vl_core_check(of->core), 0);
}

static void use_adopted(void *argument) {
  inheritance *of = argument;
  int peer;
  int64_t key;
  int port;
  int fd = listen_tcp(&port);
  int client = connect_tcp(port);
  vl_record record;

  adopt(of);
  key = open_reader(of->core, &peer);
  send_text(peer, "child");
  record = wait_for(of->core, key, VL_OP_READ);
  check_read(of->core, &record, key, "child");
  CHECK_EQ(vl_core_check(of->core), 0);
  key = vl_listener_open(of->core, VL_STREAM_TCP, fd, 1);
  record = wait_for(of->core, key, VL_OP_ACCEPT);
  CHECK_GT(record.result, 0);
  CHECK_EQ(vl_core_wake(of->core), 0);
  CHECK_EQ(vl_core_poll(of->core, WITHOUT_LIMIT), 0);
  CHECK_EQ(vl_core_poll(of->core, NS_PER_MS), 0);
  CHECK_EQ(vl_core_poll(of->core, 12 * NS_PER_MS), 0);
  /* Closing what it shares with its parent takes nothing from the parent's epoll. */
  CHECK_EQ(vl_handle_close(of->core, of->key), 0);
  settle(of->core);
  close_core(of->core);
  close_fd(client);
  close_fd(peer);
}

TEST(h11_an_adopted_core_works_and_the_parents_too) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(use_adopted, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void read_inherited(void *argument) {
  inheritance *of = argument;
  vl_record record;

  adopt(of);
  record = wait_for(of->core, of->key, VL_OP_READ);
  check_read(of->core, &record, of->key, "for the child");
  close_core(of->core);
}

TEST(h11_a_child_reads_what_it_has_inherited) {
  inheritance of = make_inheritance();

  send_text(of.peer, "for the child");
  CHECK_EQ(in_child(read_inherited, &of), 0);
  check_quiet(of.core);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void set_timer_and_wake(void *argument) {
  inheritance *of = argument;

  adopt(of);
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(vl_core_wake(of->core), 0);
    CHECK_EQ(vl_core_poll(of->core, NS_PER_MS / 2), 0);
    CHECK_EQ(vl_core_poll(of->core, NS_PER_MS / 2), 0);
  }
  close_core(of->core);
}

TEST(h11_timer_and_wake_are_the_childs_own) {
  inheritance of = make_inheritance();
  int64_t begin;

  CHECK_EQ(vl_core_wake(of.core), 0);
  CHECK_EQ(vl_core_poll(of.core, 3 * NS_PER_MS), 0); /* the timer is set, not fired */
  CHECK_EQ(in_child(set_timer_and_wake, &of), 0);
  begin = now_ns();
  CHECK_EQ(vl_core_poll(of.core, 25 * NS_PER_MS), 0); /* no event of the child ends it */
  CHECK_GE(now_ns() - begin, 23 * NS_PER_MS);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void end_timer(void *argument) {
  inheritance *of = argument;

  adopt(of);
  CHECK_EQ(vl_core_wake(of->core), 0);
  CHECK_EQ(vl_core_poll(of->core, 2 * NS_PER_MS), 0);
  CHECK_EQ(vl_core_wake(of->core), 0);
  CHECK_EQ(vl_core_poll(of->core, WITHOUT_LIMIT), 0);
  close_core(of->core);
}

TEST(h11_a_child_does_not_end_its_parents_timer) {
  inheritance of = make_inheritance();

  faults.clock_stands = true;
  CHECK_EQ(vl_core_wake(of.core), 0);
  CHECK_EQ(vl_core_poll(of.core, 3 * NS_PER_MS), 0); /* the timer is set, not fired */
  CHECK_EQ(in_child(end_timer, &of), 0);
  CHECK_EQ(vl_core_poll(of.core, 3 * NS_PER_MS), 0); /* the same deadline: it is not set again */
  faults.clock_stands = false;
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void poll_after_adopting(void *argument) {
  inheritance *of = argument;
  vl_record record;

  adopt(of);
  for (int turn = 0; turn < 3; turn++) {
    CHECK_GE(vl_core_poll(of->core, 0), 0);
    while (take(of->core, &record)) {
    }
  }
  close_core(of->core);
}

TEST(h11_forked_between_a_change_of_interest_and_its_turn) {
  /* "MOD" is what libuv has queued, and the child's new epoll knows no such descriptor. */
  inheritance of = make_inheritance();

  block_writing(of.core, of.key, 7);
  CHECK_EQ(in_child(poll_after_adopting, &of), 0);
  CHECK_EQ(vl_core_poll(of.core, 0), VL_POLL_SENDING);
  CHECK_EQ(vl_stream_read_stop(of.core, of.key), 0);
  CHECK_EQ(in_child(poll_after_adopting, &of), 0);
  CHECK_EQ(vl_core_poll(of.core, 0), VL_POLL_SENDING);
  close_core(of.core);
  close_fd(of.peer);
}

static void adopt_with_a_closed_descriptor(void *argument) {
  inheritance *of = argument;
  vl_record record;

  close_fd(vl_handle_fileno(of->core, of->key));
  adopt(of);
  record = wait_for(of->core, of->key, VL_OP_READ);
  CHECK_EQ(record.result, UV_EBADF);
  CHECK_EQ(vl_handle_close(of->core, of->key), VL_ERR_STALE);
  close_core(of->core);
}

TEST(h6_a_child_that_has_closed_an_inherited_descriptor) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(adopt_with_a_closed_descriptor, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void adopt_without_stdio(void *argument) {
  inheritance *of = argument;

  for (int fd = 0; fd < 3; fd++)
    close_fd(fd);
  adopt(of);
  for (int fd = 0; fd < 3; fd++)
    CHECK(!is_open(fd));
  CHECK_EQ(vl_core_poll(of->core, NS_PER_MS), 0);
  close_core(of->core);
}

TEST(h6_a_core_adopted_without_stdio_takes_none_of_its_numbers) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(adopt_without_stdio, &of), 0);
  end_inheritance(&of);
}

static void adopt_without_descriptors(void *argument) {
  inheritance *of = argument;
  struct rlimit limits;
  int lowest = dup(1);
  rlim_t enough;

  close_fd(lowest);
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  enough = limits.rlim_cur;
  vl_core_abandon(of->core);
  for (int room = 0; room < 5; room++) {
    limits.rlim_cur = (rlim_t)(lowest + room);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limits), 0);
    if (vl_core_adopt(of->core) == 0)
      break;
    CHECK_EQ(vl_core_adopt(of->core), UV_EMFILE); /* and once more */
    CHECK_EQ(vl_core_poll(of->core, 0), VL_ERR_FOREIGN);
  }
  limits.rlim_cur = enough;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limits), 0);
  CHECK_EQ(vl_core_adopt(of->core), 0);
  CHECK_EQ(vl_core_poll(of->core, NS_PER_MS), 0);
  close_core(of->core);
}

TEST(h11_adopting_without_descriptors_can_be_tried_again) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(adopt_without_descriptors, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void adopt_by_halves(void *argument) {
  inheritance *of = argument;

  vl_core_abandon(of->core);
  faults.epoll_error = ENFILE;
  CHECK_EQ(vl_core_adopt(of->core), UV_ENFILE);
  /* uv_loop_fork() has given the old epoll up already, and aborts when called again. */
  CHECK_EQ(vl_core_adopt(of->core), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_poll(of->core, 0), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_close(of->core), VL_ERR_FOREIGN);
  vl_core_free(of->core);
}

TEST(h11_what_was_adopted_by_halves_stays_foreign) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(adopt_by_halves, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void set_limit(rlim_t limit) {
  struct rlimit limits;

  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  limits.rlim_cur = limit;
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limits), 0);
}

static void check_limit(void *argument) {
  struct rlimit limits;

  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  CHECK_EQ(limits.rlim_cur, *(rlim_t *)argument);
}

TEST(h11_forked_under_a_lowered_limit_of_descriptors) {
  /* "if (uv__make_pipe(uv__signal_lock_pipefd, 0)) abort();" in each forked child. */
  inheritance of = make_inheritance();
  struct rlimit limits;

  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limits), 0);
  for (rlim_t limit = 0; limit < 20; limit++) {
    set_limit(limit);
    CHECK_EQ(in_child(check_limit, &limit), 0); /* it is still in force there */
  }
  set_limit(limits.rlim_cur);
  CHECK_EQ(in_child(use_adopted, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void fork_again(void *argument) {
  inheritance *of = argument;

  adopt(of);
  CHECK_EQ(in_child(use_adopted, of), 0);
  CHECK_EQ(vl_core_poll(of->core, NS_PER_MS), 0);
  close_core(of->core);
}

TEST(h11_grandchildren) {
  inheritance of = make_inheritance();

  CHECK_EQ(in_child(fork_again, &of), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

static void adopt_closed(void *argument) {
  inheritance *of = argument;

  vl_core_abandon(of->core);
  CHECK_EQ(vl_core_close(of->core), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_adopt(of->core), 0);
  CHECK_EQ(vl_core_poll(of->core, 0), VL_ERR_CLOSED);
  CHECK_EQ(vl_core_wake(of->core), 0);
  vl_core_free(of->core);
}

TEST(h11_a_core_that_was_closed_before_the_fork) {
  inheritance of = make_inheritance();

  CHECK_EQ(vl_core_close(of.core), 0);
  CHECK_EQ(in_child(adopt_closed, &of), 0);
  vl_core_free(of.core);
  close_fd(of.peer);
}

/* -- forked beside other threads ------------------------------------------------------------ */

static void *poll_without_limit(void *argument) {
  CHECK_EQ(vl_core_poll(argument, WITHOUT_LIMIT), 0);
  return NULL;
}

static void adopt_while_polled(void *argument) {
  inheritance *of = argument;

  vl_core_abandon(of->core);
  CHECK_EQ(vl_core_adopt(of->core), VL_ERR_FOREIGN);
  CHECK_EQ(vl_core_poll(of->core, 0), VL_ERR_FOREIGN);
  vl_core_free(of->core);
}

TEST(h11_forked_while_another_thread_polls) {
  inheritance of = make_inheritance();
  pthread_t thread;

  CHECK_EQ(pthread_create(&thread, NULL, poll_without_limit, of.core), 0);
  while (vl_core_check(of.core) != VL_ERR_BUSY)
    sched_yield();
  CHECK_EQ(in_child(adopt_while_polled, &of), 0);
  CHECK_EQ(vl_core_wake(of.core), 0);
  CHECK_EQ(pthread_join(thread, NULL), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

typedef struct {
  vl_core *core;
  int stop;
} waking;

static void *wake_until_told(void *argument) {
  waking *what = argument;

  while (!__atomic_load_n(&what->stop, __ATOMIC_ACQUIRE)) {
    CHECK_EQ(vl_core_wake(what->core), 0);
    sched_yield();
  }
  return NULL;
}

TEST(h11_forked_while_other_threads_hold_the_locks) {
  inheritance of = make_inheritance();
  waking what = {of.core, 0};
  pthread_t threads[2];

  for (int i = 0; i < 2; i++)
    CHECK_EQ(pthread_create(&threads[i], NULL, wake_until_told, &what), 0);
  for (int i = 0; i < 30; i++)
    CHECK_EQ(in_child(set_timer_and_wake, &of), 0);
  __atomic_store_n(&what.stop, 1, __ATOMIC_RELEASE);
  for (int i = 0; i < 2; i++)
    CHECK_EQ(pthread_join(threads[i], NULL), 0);
  check_undisturbed(&of);
  end_inheritance(&of);
}

const test_case fork_tests[] = {
    CASE(h11_an_abandoned_core_touches_nothing_of_the_parents),
    CASE(h11_a_child_exits_normally),
    CASE(h11_an_adopted_core_works_and_the_parents_too),
    CASE(h11_a_child_reads_what_it_has_inherited),
    CASE(h11_timer_and_wake_are_the_childs_own),
    CASE(h11_a_child_does_not_end_its_parents_timer),
    CASE(h11_forked_between_a_change_of_interest_and_its_turn),
    CASE(h6_a_child_that_has_closed_an_inherited_descriptor),
    CASE(h6_a_core_adopted_without_stdio_takes_none_of_its_numbers),
    CASE(h11_adopting_without_descriptors_can_be_tried_again),
    CASE(h11_what_was_adopted_by_halves_stays_foreign),
    CASE(h11_forked_under_a_lowered_limit_of_descriptors),
    CASE(h11_grandchildren),
    CASE(h11_a_core_that_was_closed_before_the_fork),
    CASE(h11_forked_while_another_thread_polls),
    CASE(h11_forked_while_other_threads_hold_the_locks),
    END_OF_CASES,
};
