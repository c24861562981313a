/* test_process.c: children that libuv starts, and looking at children (H9). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "faults.h"
#include "harness.h"
#include "support.h"

static int64_t spawn_with(vl_core *core, const char *command, char **env, const char *cwd, const int stdio[3], int *pid) {
  char shell[] = "sh";
  char flag[] = "-c";
  char text[256];
  char *args[] = {shell, flag, text, NULL};

  CHECK_LT(strlen(command), sizeof(text));
  strcpy(text, command);
  return vl_process_spawn(core, "/bin/sh", args, env, cwd, stdio[0], stdio[1], stdio[2], 0, pid);
}

/* Runs a shell command with this process's own 0-2. */
static int64_t spawn(vl_core *core, const char *command, int *pid) {
  static const int own[3] = {0, 1, 2};
  int64_t key = spawn_with(core, command, NULL, NULL, own, pid);

  CHECK_GT(key, 0);
  CHECK_GT(*pid, 0);
  return key;
}

/* Runs one whose output is read to its end into out. */
static int64_t spawn_reading(vl_core *core, const char *command, char **env, const char *cwd, char *out, size_t room) {
  int ends[2];
  int pid;
  int64_t key;
  ssize_t got;
  size_t size = 0;

  CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
  key = spawn_with(core, command, env, cwd, (int[]){0, ends[1], 2}, &pid);
  CHECK_GT(key, 0);
  close_fd(ends[1]);
  while ((got = read(ends[0], out + size, room - 1 - size)) > 0)
    size += (size_t)got;
  CHECK_EQ(got, 0);
  out[size] = '\0';
  close_fd(ends[0]);
  return key;
}

static void check_exit(vl_core *core, int64_t key, int64_t status, int64_t number) {
  vl_record record = wait_for(core, key, VL_OP_EXIT);

  CHECK_EQ(record.result, status);
  CHECK_EQ(record.aux, number);
  CHECK_EQ(vl_handle_close(core, key), 0);
  settle(core);
}

static void check_no_children(void) {
  CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
  CHECK_EQ(errno, ECHILD);
}

TEST(an_exit_is_one_record) {
  vl_core *core = open_core();
  int pid;
  int64_t key = spawn(core, "exit 7", &pid);

  check_exit(core, key, 7, 0);
  check_no_children();
  key = spawn(core, "kill -TERM $$", &pid);
  check_exit(core, key, 0, SIGTERM);
  check_no_children();
  check_quiet(core);
  close_core(core);
}

TEST(many_children_each_have_their_record) {
  vl_core *core = open_core();
  int64_t keys[20];
  bool seen[20] = {false};
  char command[32];
  vl_record record;
  int pid;

  for (int i = 0; i < 20; i++) {
    snprintf(command, sizeof(command), "exit %d", i);
    keys[i] = spawn(core, command, &pid);
  }
  for (int i = 0; i < 20; i++) {
    while (!take(core, &record))
      CHECK_GE(vl_core_poll(core, WITHOUT_LIMIT), 0);
    CHECK_EQ(record.op, VL_OP_EXIT);
    CHECK_LT(record.result, 20);
    CHECK_EQ(record.owner, keys[record.result]);
    CHECK(!seen[record.result]);
    seen[record.result] = true;
  }
  close_core(core);
  check_no_children();
}

TEST(arguments_environment_folder_and_descriptors_arrive) {
  vl_core *core = open_core();
  char name[] = "NAME=some value";
  char *env[] = {name, NULL};
  char out[64];
  int64_t key = spawn_reading(core, "echo $NAME; pwd", env, "/", out, sizeof(out));

  CHECK(strcmp(out, "some value\n/\n") == 0);
  check_exit(core, key, 0, 0);
  close_core(core);
}

TEST(a_new_session_is_led) {
  vl_core *core = open_core();
  char program[] = "sleep";
  char seconds[] = "60";
  char *args[] = {program, seconds, NULL};
  int pid;
  int64_t key = vl_process_spawn(core, program, args, NULL, NULL, 0, 1, 2, VL_PROCESS_NEW_SESSION, &pid);

  CHECK_GT(key, 0);
  CHECK_EQ(getsid(pid), pid);
  CHECK_EQ(kill(pid, SIGKILL), 0);
  check_exit(core, key, 0, SIGKILL);
  key = vl_process_spawn(core, program, args, NULL, NULL, 0, 1, 2, 0, &pid);
  CHECK_GT(key, 0);
  CHECK_EQ(getsid(pid), getsid(0));
  CHECK_EQ(kill(pid, SIGKILL), 0);
  check_exit(core, key, 0, SIGKILL);
  close_core(core);
}

TEST(h9_no_other_descriptor_is_inherited) {
  vl_core *core = open_core();
  int ends[2];
  char command[64];
  char out[64];
  int64_t key;
  pid_t child;

  CHECK_EQ(pipe(ends), 0); /* inheritable */
  snprintf(command, sizeof(command), "test -e /proc/self/fd/%d || echo closed", ends[0]);
  key = spawn_reading(core, command, NULL, NULL, out, sizeof(out));
  CHECK(strcmp(out, "closed\n") == 0);
  check_exit(core, key, 0, 0);
  /* Neither this process's descriptors have changed, nor its own forks. */
  CHECK_EQ(fcntl(ends[0], F_GETFD) & FD_CLOEXEC, 0);
  child = fork();
  if (child == 0)
    _exit(fcntl(ends[0], F_GETFD) & FD_CLOEXEC);
  CHECK_EQ(end_child(child), 0);
  close_fd(ends[0]);
  close_fd(ends[1]);
  close_core(core);
}

TEST(a_failed_start_leaves_nothing) {
  vl_core *core = open_core();
  char program[] = "/no/such/program";
  char *args[] = {program, NULL};
  struct sigaction action;
  int pid = -1;

  CHECK_EQ(vl_process_spawn(core, program, args, NULL, NULL, 0, 1, 2, 0, &pid), UV_ENOENT);
  CHECK_EQ(vl_process_spawn(core, "/etc/passwd", args, NULL, NULL, 0, 1, 2, 0, &pid), UV_EACCES);
  CHECK_EQ(vl_process_spawn(core, "sh", args, NULL, "/etc/passwd", 0, 1, 2, 0, &pid), UV_ENOTDIR);
  CHECK_EQ(pid, -1);
  CHECK_EQ(statistics_of(core).handles, 0);
  check_no_children();
  CHECK_EQ(sigaction(SIGCHLD, NULL, &action), 0);
  CHECK(action.sa_handler == SIG_DFL);
  check_quiet(core);
  settle(core);
  close_core(core);
}

TEST(no_memory_starts_no_child) {
  vl_core *core = open_core();
  char program[] = "true";
  char *args[] = {program, NULL};
  int pid = -1;

  faults.no_memory = true;
  CHECK_EQ(vl_process_spawn(core, program, args, NULL, NULL, 0, 1, 2, 0, &pid), UV_ENOMEM);
  faults.no_memory = false;
  CHECK_EQ(pid, -1);
  check_no_children();
  close_core(core);
}

TEST(an_exit_without_room_is_late_and_not_lost) {
  vl_core *core = open_core();
  int peer;
  int64_t stream = open_reader(core, &peer);
  vl_record record;
  int pid;
  int64_t key;

  set_frames(core, 1); /* the ring starts anew no more */
  for (int i = 0; i < VL_RING_SEGMENT_RECORDS; i++) {
    send_text(peer, "x");
    record = wait_for(core, stream, VL_OP_READ);
    check_read(core, &record, stream, "x");
  }
  key = spawn(core, "exit 3", &pid);
  faults.no_memory = true;
  while (statistics_of(core).late == 0)
    CHECK_GE(vl_core_poll(core, WITHOUT_LIMIT), 0);
  CHECK_EQ(tail_of(core), head_of(core));
  faults.no_memory = false;
  set_frames(core, 0);
  check_exit(core, key, 3, 0);
  close_core(core);
  close_fd(peer);
}

TEST(h9_sigchld_is_let_go_with_the_last_handle) {
  vl_core *core = open_core();
  struct sigaction action;
  int pid;
  int64_t key = spawn(core, "exit 0", &pid);

  CHECK_EQ(sigaction(SIGCHLD, NULL, &action), 0);
  CHECK(action.sa_handler != SIG_DFL);
  check_exit(core, key, 0, 0);
  CHECK_EQ(sigaction(SIGCHLD, NULL, &action), 0);
  CHECK(action.sa_handler == SIG_DFL);
  close_core(core);
}

TEST(a_child_outlives_its_handle_and_is_no_business_of_ours_then) {
  vl_core *core = open_core();
  int code;
  int pid;
  int64_t key = spawn(core, "exec sleep 60", &pid);

  CHECK_EQ(vl_handle_close(core, key), 0);
  CHECK_EQ(vl_handle_close(core, key), VL_ERR_STALE);
  CHECK_EQ(vl_handle_fileno(core, key), VL_ERR_STALE);
  close_core(core);
  CHECK_EQ(vl_child_look(pid, -1, 0, &code), 0);
  CHECK_EQ(kill(pid, SIGKILL), 0);
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
}

TEST(a_closed_core_starts_nothing) {
  vl_core *core = open_core();
  char program[] = "true";
  char *args[] = {program, NULL};
  int pid = -1;

  CHECK_EQ(vl_core_close(core), 0);
  CHECK_EQ(vl_process_spawn(core, program, args, NULL, NULL, 0, 1, 2, 0, &pid), VL_ERR_CLOSED);
  CHECK_EQ(pid, -1);
  vl_core_free(core);
  check_no_children();
}

/* -- fork ------------------------------------------------------------------------------- */

static void adopt_and_run(void *argument) {
  vl_core *core = *(vl_core **)argument;
  int pid;

  vl_core_abandon(core);
  CHECK_EQ(vl_core_adopt(core), 0);
  check_quiet(core); /* the process handle has no descriptor that could be wrong */
  check_exit(core, spawn(core, "exit 4", &pid), 4, 0);
  close_core(core);
}

TEST(h11_a_forked_child_does_not_reap_its_parents_children) {
  vl_core *core = open_core();
  int pid;
  int code;
  int64_t key = spawn(core, "exec sleep 60", &pid);

  CHECK_EQ(in_child(adopt_and_run, &core), 0);
  CHECK_EQ(vl_child_look(pid, -1, 0, &code), 0);
  CHECK_EQ(kill(pid, SIGTERM), 0);
  check_exit(core, key, 0, SIGTERM);
  close_core(core);
}

/* -- looking ---------------------------------------------------------------------------- */

TEST(h9_looking_does_not_reap) {
  int code = -1;
  pid_t child = fork();
  int pidfd;

  if (child == 0)
    _exit(7);
  pidfd = vl_pidfd_open(child);
  CHECK_GT(pidfd, 2);
  CHECK(fcntl(pidfd, F_GETFD) & FD_CLOEXEC);
  CHECK_EQ(vl_child_look(child, pidfd, 1, &code), 1);
  CHECK_EQ(code, 7);
  CHECK_EQ(vl_child_look(child, -1, 0, &code), 1);
  CHECK_EQ(vl_child_look(child, pidfd, 0, &code), 1);
  CHECK_EQ(waitpid(child, NULL, 0), child);
  CHECK_EQ(vl_child_look(child, pidfd, 0, &code), -ECHILD);
  CHECK_EQ(vl_child_look(child, -1, 1, &code), -ECHILD);
  close_fd(pidfd);
  CHECK_EQ(vl_pidfd_open(child), -ESRCH);
  CHECK_EQ(vl_pidfd_open(-1), -EINVAL);
}

TEST(h9_a_pidfd_stays_readable_after_the_reap) {
  pid_t child = fork();
  struct pollfd watched = {.events = POLLIN};

  if (child == 0)
    _exit(0);
  watched.fd = vl_pidfd_open(child);
  CHECK_EQ(poll(&watched, 1, -1), 1);
  CHECK_EQ(waitpid(child, NULL, 0), child);
  CHECK_EQ(poll(&watched, 1, 0), 1);
  close_fd(watched.fd);
}

TEST(a_stopped_child_runs) {
  int code = -1;
  int status;
  pid_t child = fork();

  if (child == 0)
    for (;;)
      pause();
  CHECK_EQ(vl_child_look(child, -1, 0, &code), 0);
  CHECK_EQ(kill(child, SIGSTOP), 0);
  CHECK_EQ(waitpid(child, &status, WUNTRACED), child);
  CHECK(WIFSTOPPED(status));
  CHECK_EQ(vl_child_look(child, -1, 0, &code), 0);
  CHECK_EQ(kill(child, SIGKILL), 0);
  CHECK_EQ(vl_child_look(child, -1, 1, &code), 1);
  CHECK_EQ(code, -SIGKILL);
  CHECK_EQ(waitpid(child, NULL, 0), child);
}

const test_case process_tests[] = {
    CASE(an_exit_is_one_record),
    CASE(many_children_each_have_their_record),
    CASE(arguments_environment_folder_and_descriptors_arrive),
    CASE(a_new_session_is_led),
    CASE(h9_no_other_descriptor_is_inherited),
    CASE(a_failed_start_leaves_nothing),
    CASE(no_memory_starts_no_child),
    CASE(an_exit_without_room_is_late_and_not_lost),
    CASE(h9_sigchld_is_let_go_with_the_last_handle),
    CASE(a_child_outlives_its_handle_and_is_no_business_of_ours_then),
    CASE(a_closed_core_starts_nothing),
    CASE(h11_a_forked_child_does_not_reap_its_parents_children),
    CASE(h9_looking_does_not_reap),
    CASE(h9_a_pidfd_stays_readable_after_the_reap),
    CASE(a_stopped_child_runs),
    END_OF_CASES,
};
