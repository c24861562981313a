"""``uv_spawn`` behind the interface of ``subprocess.Popen``.

Facts (H9): libuv reaps its own children inside ``uv_run``, and reports one that somebody else has reaped to
nobody.  While it has a child, SIGCHLD's disposition is libuv's.  What ``uv_spawn`` knows of ``Popen``'s
keywords is stdin, stdout, stderr, executable, shell, cwd, env and start_new_session; besides, it makes
the child's 0, 1 and 2 blocking, which a descriptor shared with this process must not become.

Consequence: a ``Popen`` that exchanges one step, the starting of the child, after ``Popen``'s own code has
understood and checked all keywords; a child that libuv cannot start as told is started by
``Popen``.  Until libuv has reported the exit, ``poll()`` and ``wait()`` only look, and leave the reaping to it.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading

from .._compat import Popen, execute_child_arguments
from ..uv import errors
from ..uv.core import Core, child_returncode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["UvPopen"]

#: Arguments of ``Popen._execute_child`` that libuv cannot act upon, by what they must be.
_NOT_FOR_LIBUV: dict[str, tuple[Any, ...]] = {
    "preexec_fn": (None,),
    "close_fds": (True,),
    "pass_fds": ((),),
    "startupinfo": (None,),
    "creationflags": (0,),
    "restore_signals": (True,),
    "gid": (None,),  # uv_spawn drops all supplementary groups along with it
    "gids": (None,),
    "uid": (None,),
    "umask": (-1,),
    "process_group": (None, -1),
}
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_FOR_LIBUV = frozenset({"args", "executable", "cwd", "env", "shell", "start_new_session", *_PIPES})

# These come before the child exists, or from fork(2): Popen names no file in them.
_NO_FILE = errors.OUT_OF_RESOURCES | {errno.EAGAIN}


class UvPopen(Popen):
    """A ``subprocess.Popen`` whose child is started by libuv, if libuv can.

    ``key`` names libuv's handle while libuv watches the child; it is 0 if ``Popen`` has started it.  The
    handle's owner calls :meth:`reaped` or :meth:`release` and closes it.
    """

    def __init__(self, core: Core, args: Any, **kwargs: Any) -> None:
        self._core = core
        self._parent = os.getpid()
        self._thread = threading.get_ident()
        self.key = 0
        #: Whether libuv has started the child.
        self.by_uv = False
        super().__init__(args, **kwargs)

    def reaped(self, returncode: int) -> None:
        """Take note of what libuv has reported."""
        # In this order: a thread inside wait() asks the kernel itself once there is no key.
        with self._waitpid_lock:
            self.returncode = returncode
        self.key = 0

    def release(self) -> None:
        """Libuv's handle goes before it has reported: from now on ``poll()`` and ``wait()`` reap."""
        # Not under the lock: a thread inside wait() may hold it as long as the child lives.
        self.key = 0
        if self.returncode is not None and self._parent == os.getpid():
            super()._try_wait(0)  # known by looking only: it has ended, and nobody else would reap it

    def _watched(self) -> bool:
        # A forked child is told what Popen tells it: that its parent's child is none of its own.
        return self.key != 0 and self._parent == os.getpid()

    def poll(self) -> int | None:
        """See ``subprocess.Popen.poll``."""
        if not self._watched():
            return super().poll()
        if self.returncode is None:
            code = self._look(wait=False)
            if code is not None:
                self.returncode = code
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        # Popen.wait() lives on it; the result is waitpid(2)'s.
        if not self._watched():
            return super()._try_wait(wait_flags)
        code = self._look(wait=not wait_flags & os.WNOHANG)
        if not self._watched():  # released meanwhile
            return super()._try_wait(wait_flags)
        if code is None:
            return 0, 0
        return self.pid, code << 8 if code >= 0 else -code

    def _look(self, *, wait: bool) -> int | None:
        try:
            return child_returncode(self.pid, wait=wait)
        except ChildProcessError:
            # Reaped by libuv, and the record not dispatched yet.  Only the loop's thread may look for it: in
            # another one uv_run() may be writing records now.  There it is not known yet.
            if threading.get_ident() != self._thread:
                return None
            return self._core.pending_returncode(self.key)

    def _execute_child(self, *arguments: Any) -> None:
        given = execute_child_arguments(arguments)
        stdin, stdout, stderr = given["p2cread"], given["c2pwrite"], given["errwrite"]
        descriptors = (0 if stdin == -1 else stdin, 1 if stdout == -1 else stdout, 2 if stderr == -1 else stderr)
        if not _libuv_can(given, descriptors):
            super()._execute_child(*arguments)
            return
        args, executable, cwd = _command(given)
        # Before the start, as Popen: a hook may refuse it.
        sys.audit("subprocess.Popen", executable, args, cwd, given["env"])
        key, pid = self._core.spawn(
            _c_string(executable),
            [_c_string(arg) for arg in args],
            _environment(given["env"]),
            None if cwd is None else _c_string(cwd),
            descriptors,
            bool(given["start_new_session"]),
        )
        if key == errors.ENOTSUP:
            super()._execute_child(*arguments)  # it cannot keep other descriptors from the child
            return
        if key < 0:
            raise _spawn_error(key, executable, cwd)
        self.key = key
        self.by_uv = True
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in _PIPES))


def _libuv_can(given: dict[str, Any], descriptors: tuple[int, ...]) -> bool:
    for name, value in given.items():
        if name not in _FOR_LIBUV and value not in _NOT_FOR_LIBUV.get(name, ()):
            return False
    # One of 0-2 was closed, and is now our end of a pipe: not to be inherited.
    if any(0 <= given[name] <= 2 for name in ("p2cwrite", "c2pread", "errread")):
        return False
    # A user's handler would be replaced; ignored children leave no status to be had.
    if signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL:
        return False
    try:
        return all(os.get_blocking(fd) for fd in descriptors)
    except OSError:
        return False  # closed: Popen starts a child without it, or says what is wrong


def _command(given: dict[str, Any]) -> tuple[list[Any], Any, Any]:
    """Return arguments, program and folder as ``Popen`` understands its keywords."""
    args = given["args"]
    if isinstance(args, (str, bytes, os.PathLike)):
        if given["shell"] and isinstance(args, os.PathLike):
            raise TypeError("path-like args is not allowed when shell is true")
        args = [args]
    else:
        args = list(args)
    executable = given["executable"]
    if given["shell"]:
        args = [executable or "/bin/sh", "-c", *args]
    return args, args[0] if executable is None else executable, given["cwd"]


def _c_string(text: Any) -> bytes:
    found = os.fsencode(text)
    if b"\0" in found:
        raise ValueError("embedded null byte")
    return found


def _environment(env: Any) -> list[bytes] | None:
    if env is None:
        return None
    found = []
    for name, value in env.items():
        encoded = _c_string(name)
        if b"=" in encoded:
            raise ValueError("illegal environment variable name")
        found.append(encoded + b"=" + _c_string(value))
    return found


def _spawn_error(code: int, executable: Any, cwd: Any) -> OSError | RuntimeError:
    """Return what ``Popen`` raises.  libuv tells the errno only, not which step of the child it is from."""
    error = errors.exception_for(code)
    if not isinstance(error, OSError) or error.errno in _NO_FILE:
        return error
    path = executable
    if cwd is not None and not (os.path.isdir(cwd) and os.access(cwd, os.X_OK)):
        path = cwd
    return OSError(error.errno, error.strerror, path)
