/* What the load generators share: errors, the time limit, the server's CPU time, latencies.
 *
 * A header of functions, since each generator is one program made by one compiler call.  Exit
 * status of each: 0 success, 1 the server answered wrongly or went away, 2 usage, 3 the time
 * limit passed.
 */
#ifndef LOAD_COMMON_H
#define LOAD_COMMON_H

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
  EXIT_WRONG = 1,
  EXIT_USAGE = 2,
  EXIT_TIMEOUT = 3,
  LATENCY_STEPS = 16, /* histogram steps in each power of two: 6% resolution */
  LATENCY_BUCKETS = 64 * LATENCY_STEPS,
  SETTLE_MICROSECONDS = 2000, /* the server's way back into its poll after its last answer */
};

static uint64_t histogram[LATENCY_BUCKETS];
static uint64_t longest;

__attribute__((noreturn, format(printf, 2, 3))) static void die(int status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("load: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(status);
}

static void on_alarm(int number) {
  static const char text[] = "load: the time limit (--timeout) passed\n";
  (void)number;
  /* Only async-signal-safe calls are allowed here. */
  ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
  (void)written;
  _exit(EXIT_TIMEOUT);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count, size);
  if (memory == NULL) die(EXIT_WRONG, "out of memory");
  return memory;
}

static uint64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* CPU time of all threads of the server in ns, from the scheduler's accounting:
 * the first number in /proc/PID/task/TID/schedstat.  -1 if there is none. */
static int64_t server_cpu_ns(long server) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%ld/task", server);
  DIR *tasks = server > 0 ? opendir(path) : NULL;
  if (tasks == NULL) return -1;
  int64_t sum = 0;
  for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
    if (!isdigit((unsigned char)entry->d_name[0])) continue;
    char file[384];
    snprintf(file, sizeof file, "/proc/%ld/task/%s/schedstat", server, entry->d_name);
    FILE *stat = fopen(file, "re");
    uint64_t running = 0;
    if (stat == NULL || fscanf(stat, "%" SCNu64, &running) != 1) sum = -1;
    if (stat != NULL) fclose(stat);
    if (sum < 0) break;
    sum += (int64_t)running;
  }
  closedir(tasks);
  return sum;
}

static void count_latency(uint64_t ns) {
  if (ns > longest) longest = ns;
  if (ns < LATENCY_STEPS) ns = LATENCY_STEPS;
  unsigned exponent = 63U - (unsigned)__builtin_clzll(ns);
  size_t step = (size_t)((ns >> (exponent - 4U)) & (LATENCY_STEPS - 1));
  histogram[exponent * LATENCY_STEPS + step] += 1;
}

/* Upper end of the bucket that holds the given part of all latencies, in us. */
static double latency_us(double part) {
  uint64_t all = 0;
  for (size_t i = 0; i < LATENCY_BUCKETS; i++) all += histogram[i];
  uint64_t seen = 0;
  for (size_t i = 0; i < LATENCY_BUCKETS; i++) {
    seen += histogram[i];
    if (all > 0 && (double)seen >= part * (double)all) {
      double step = (double)(UINT64_C(1) << (i / LATENCY_STEPS)) / LATENCY_STEPS;
      return step * (double)(LATENCY_STEPS + i % LATENCY_STEPS + 1) / 1000.0;
    }
  }
  return 0.0;
}

static double number(const char *name, const char *text, double least, double most) {
  char *end = NULL;
  errno = 0;
  double value = strtod(text, &end);
  if (errno != 0 || end == text || *end != '\0' || !(value >= least && value <= most)) {
    die(EXIT_USAGE, "%s must be a number from %g to %g, not \"%s\"", name, least, most, text);
  }
  return value;
}

/* As many descriptors as the system grants. */
static void raise_descriptor_limit(void) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) != 0) die(EXIT_WRONG, "setrlimit: %s", strerror(errno));
  }
}

/* The end of the line of JSON: latencies of what was counted, and the server's CPU time. */
static void print_costs(int64_t before, int64_t after) {
  printf("\"burst_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}, ", latency_us(0.5), latency_us(0.99),
         (double)longest / 1000.0);
  if (before < 0 || after < 0) {
    printf("\"server_cpu_ns\": null}\n");
  } else {
    printf("\"server_cpu_ns\": %" PRId64 "}\n", after - before);
  }
}

#endif
