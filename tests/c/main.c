/* main.c: runs the tests, each in a forked process. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "support.h"

static const struct {
  const char *name;
  const test_case *cases;
} SUITES[] = {
    {"ring", ring_tests},
    {"stream", stream_tests},
    {"write", write_tests},
    {"udp", udp_tests},
    {"listener", listener_tests},
    {"threads", thread_tests},
    {"timer", timer_tests},
    {"descriptors", descriptor_tests},
    {"closed descriptors", closed_descriptor_tests},
    {"fork", fork_tests},
    {"signal", signal_tests},
    {"process", process_tests},
    {"reader", reader_tests},
    {"waits", wait_tests},
};

void check_failed(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
  _exit(1);
}

static void describe(int64_t value) {
  char name[64];

  fprintf(stderr, " %" PRId64, value);
  if (value >= 0 || value < -5000)
    return;
  vl_error_name((int)value, name, sizeof(name));
  fprintf(stderr, " (%s)", name);
}

void check_compared(const char *file, int line, const char *what, int64_t left, int64_t right) {
  fprintf(stderr, "%s:%d: does not hold: %s:", file, line, what);
  describe(left);
  describe(right);
  fprintf(stderr, "\n");
  _exit(1);
}

int open_descriptors(void) {
  DIR *folder = opendir("/proc/self/fd");
  int count = -1; /* the folder's own */

  CHECK(folder != NULL);
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
    count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

pid_t start_child(void (*function)(void *), void *argument) {
  pid_t child;

  fflush(NULL);
  child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(TEST_SECONDS);
    function(argument);
    /* Not exit(): what it holds of its parent is no leak. */
    _exit(0);
  }
  return child;
}

int end_child(pid_t child) {
  int status = -1;

  while (waitpid(child, &status, 0) < 0)
    CHECK(errno == EINTR);
  return status;
}

int in_child(void (*function)(void *), void *argument) {
  return end_child(start_child(function, argument));
}

static _Noreturn void run_case(const test_case *test) {
  int before;

  alarm(TEST_SECONDS);
  if (!test->first_core)
    /* The first uv_loop_t of a process opens two descriptors that stay open. */
    close_core(open_core());
  before = open_descriptors();
  test->run();
  if (!test->first_core)
    CHECK_EQ(open_descriptors(), before);
  exit(0); /* LeakSanitizer looks now */
}

static bool passes(const char *suite, const test_case *test) {
  pid_t child;
  int status;

  fflush(NULL);
  child = fork();
  CHECK(child >= 0);
  if (child == 0)
    run_case(test);
  status = end_child(child);
  if (status == 0)
    return true;
  if (WIFSIGNALED(status))
    printf("FAILED %s: %s (%s)\n", suite, test->name,
           WTERMSIG(status) == SIGALRM ? "hangs" : strsignal(WTERMSIG(status)));
  else
    printf("FAILED %s: %s (exit status %d)\n", suite, test->name, WEXITSTATUS(status));
  return false;
}

int main(int argc, char **argv) {
  const char *only = argc > 1 ? argv[1] : "";
  int passed = 0;
  int failed = 0;

  /* As in Python: write(2) on a connection that the peer has closed returns EPIPE. */
  signal(SIGPIPE, SIG_IGN);
  for (size_t i = 0; i < sizeof(SUITES) / sizeof(SUITES[0]); i++)
    for (const test_case *test = SUITES[i].cases; test->name != NULL; test++) {
      if (strstr(test->name, only) == NULL && strstr(SUITES[i].name, only) == NULL)
        continue;
      if (passes(SUITES[i].name, test))
        passed++;
      else
        failed++;
    }
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
