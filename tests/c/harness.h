/* harness.h: named tests, each in a process of its own.
 *
 * A test is a function without arguments that returns if it has passed.  A check that does
 * not hold prints where it stands and ends the process, from any thread and any child.
 * After a test the harness checks that no descriptor is left open; the sanitizers check
 * memory when its process exits. */
#ifndef VELOCILOOP_CTEST_HARNESS_H
#define VELOCILOOP_CTEST_HARNESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
  const char *name; /* NULL: end of a table */
  void (*run)(void);
  bool first_core; /* no core was made in this process yet; descriptors are not counted */
} test_case;

#define TEST(name) static void name(void)
#define CASE(name) {#name, name, false}
#define CASE_FIRST_CORE(name) {#name, name, true}
#define END_OF_CASES {0, 0, false}

extern const test_case ring_tests[];
extern const test_case stream_tests[];
extern const test_case write_tests[];
extern const test_case udp_tests[];
extern const test_case listener_tests[];
extern const test_case thread_tests[];
extern const test_case timer_tests[];
extern const test_case descriptor_tests[];
extern const test_case closed_descriptor_tests[];
extern const test_case fork_tests[];
extern const test_case signal_tests[];
extern const test_case process_tests[];
extern const test_case reader_tests[];
extern const test_case wait_tests[];

/* Longest life of a test's process and of each child that it forks. */
#define TEST_SECONDS 10

_Noreturn void check_failed(const char *file, int line, const char *what);
_Noreturn void check_compared(const char *file, int line, const char *what, int64_t left, int64_t right);

#define CHECK(condition) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition))

#define CHECK_COMPARE(left, operator, right)                                                    \
  do {                                                                                          \
    int64_t left_ = (int64_t)(left);                                                            \
    int64_t right_ = (int64_t)(right);                                                          \
    if (!(left_ operator right_))                                                               \
      check_compared(__FILE__, __LINE__, #left " " #operator " " #right, left_, right_);        \
  } while (0)

#define CHECK_EQ(left, right) CHECK_COMPARE(left, ==, right)
#define CHECK_NE(left, right) CHECK_COMPARE(left, !=, right)
#define CHECK_LT(left, right) CHECK_COMPARE(left, <, right)
#define CHECK_LE(left, right) CHECK_COMPARE(left, <=, right)
#define CHECK_GT(left, right) CHECK_COMPARE(left, >, right)
#define CHECK_GE(left, right) CHECK_COMPARE(left, >=, right)

/* Open descriptors of this process. */
int open_descriptors(void);

/* Runs a function in a forked child, which has TEST_SECONDS for it; then exits with 0. */
pid_t start_child(void (*function)(void *), void *argument);
/* Waits for it and returns waitpid()'s status. */
int end_child(pid_t child);
/* Both. */
int in_child(void (*function)(void *), void *argument);

#endif
