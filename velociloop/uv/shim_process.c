/* shim_process.c: children that libuv starts and reaps.
 *
 * Facts (H9): uv_spawn() takes over SIGCHLD's disposition until the last process handle is closed,
 * and libuv reaps each of its children by waitpid(2) in uv_run().  It reports a child that somebody else
 * has reaped to nobody.  Consequence: while the handle is open, others only look (vl_child_look()). */
#include "shim_internal.h"

static void on_exit_of(uv_process_t *process, int64_t status, int signal) {
  vl_handle *handle = process->data;
  vl_record record = {handle->key, VL_OP_EXIT, 0, status, signal};

  /* The only record that a process makes, so its place in the late list is free. */
  ring_push_or_keep(handle->core, &handle->late, &record);
}

int64_t vl_process_spawn(vl_core *core, const char *file, char **args, char **env, const char *cwd, int in, int out,
                         int err, int flags, int *pid) {
  uv_stdio_container_t stdio[3];
  uv_process_options_t options;
  vl_handle *handle;
  int64_t key = os_seal_children(false);
  int status;

  if (key != 0)
    return key; /* before anything is made that uv_close() would have to end */
  key = core_enter(core);
  if (key != 0)
    return key;
  memset(&options, 0, sizeof(options));
  memset(stdio, 0, sizeof(stdio));
  stdio[0].flags = stdio[1].flags = stdio[2].flags = UV_INHERIT_FD;
  stdio[0].data.fd = in;
  stdio[1].data.fd = out;
  stdio[2].data.fd = err;
  options.exit_cb = on_exit_of;
  options.file = file;
  options.args = args;
  options.env = env;
  options.cwd = cwd;
  options.flags = flags & VL_PROCESS_NEW_SESSION ? UV_PROCESS_DETACHED : 0;
  options.stdio_count = 3;
  options.stdio = stdio;
  handle = handle_new(core, VL_KIND_PROCESS, UV_PROCESS);
  /* The key first: a child that has started must not fail to get one. */
  key = handle == NULL ? UV_ENOMEM : handle_register(handle);
  if (key < 0) {
    free(handle); /* libuv has not seen it */
    core_leave(core);
    return key;
  }
  handle->uv.any.data = handle;
  (void)os_seal_children(true); /* was possible above */
  status = uv_spawn(&core->loop, &handle->uv.process, &options);
  (void)os_seal_children(false);
  if (status == 0) {
    *pid = uv_process_get_pid(&handle->uv.process);
  } else {
    /* "they expect initialized streams, even if the exec failed": so is the handle. */
    handle_close(handle);
    key = status;
  }
  core_leave(core);
  return key;
}
