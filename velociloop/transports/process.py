"""A child process: asyncio's own transport, and who tells it of the exit.

asyncio's ``BaseSubprocessTransport`` does the protocol, its pipes, ``wait()``, signals and ``close()`` in the
way of the user's Python version.  It leaves two things open: how the child starts (:meth:`ProcessTransport._start`)
and who calls ``_process_exited``.  asyncio's answer to the second, the policy's child watcher or the loop's, is
not used.

Facts (H9): ``Popen`` keeps the exit status for whoever asks, so nobody may reap but ``Popen.poll()``: a
``waitpid`` beside it takes the status away.  A pidfd stays readable after the child was reaped, so the watch
ends with the first look.  Other code of the process may reap every child there is: then the status is lost,
and asyncio says 255 with a warning.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import threading
from asyncio.log import logger
from collections.abc import Callable

from .._compat import BaseSubprocessTransport, Popen, popen_waitpid_lock
from ..uv import core as _core, errors
from ..uv.core import Core, child_returncode, pidfd_open
from ..uv.registry import Owner
from .spawn import UvPopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ProcessTransport", "UvProcessTransport"]

#: What asyncio reports for a child that somebody else has reaped.
LOST_STATUS = 255

#: Called once, in the loop's thread, with what ``Popen.returncode`` is then.
OnExit = Callable[[int], None]


def _reap(popen: subprocess.Popen[bytes], pidfd: int) -> int | None:
    """Have ``popen`` reap a child that seems to have ended; returns its code, or None if it has not.

    ``pidfd`` may be -1.  It tells this child from a later one with the same number.
    """
    if popen.returncode is not None:
        return popen.returncode  # the user has asked it before us
    lost = False
    try:
        if child_returncode(popen.pid, pidfd) is None:
            return None
    except ChildProcessError:
        lost = True
    except OSError:
        return popen.poll()  # no such waitid(2): Linux 5.3 knows pidfds but not P_PIDFD, a sandbox may know neither
    returncode = popen.returncode if lost else popen.poll()
    while returncode is None:
        # Another thread is inside Popen.wait(), which has the lock while it waits: as the child has ended, it is about
        # to reap it and to say so, or has just done it.  Or somebody has reaped it behind Popen's back.
        with popen_waitpid_lock(popen):
            returncode = popen.returncode
        if returncode is None:
            if lost:
                break
            returncode = popen.poll()
    if returncode is None:
        logger.warning(
            "the exit status of child process %d was read by somebody else: reporting %d", popen.pid, LOST_STATUS
        )
        returncode = LOST_STATUS
    return returncode


class _Watch(Owner):
    """Waits for one child.  Ends with the exit, with the loop, or in a forked child that adopts the loop."""

    __slots__ = ("_context", "_core", "_key", "_loop", "_on_exit", "_popen")

    def __init__(self, loop: Any, core: Core, popen: subprocess.Popen[bytes], on_exit: OnExit) -> None:
        self._loop = loop
        self._core = core
        self._popen = popen
        self._on_exit = on_exit
        self._key = 0
        self._context = contextvars.copy_context()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pid={self._popen.pid}>"

    def _stop(self) -> None:
        """Let go of libuv's handle."""
        key, self._key = self._key, 0
        if key:
            self._core.close_handle(key)

    def _tell(self, returncode: int) -> None:
        self._context.run(self._on_exit, returncode)

    def enter_anew(self) -> None:
        """See ``Owner``."""
        self._context = self._context.copy()

    def on_loop_close(self) -> None:
        """See ``Owner``.  The child goes on; from now on ``Popen`` alone knows it."""
        self._stop()

    def on_adopt(self) -> None:
        """See ``Owner``.  A sibling can be neither waited for nor reaped."""
        self._stop()


class _PidfdWatch(_Watch):
    """Has libuv watch the child's pidfd; ``Popen`` reaps."""

    __slots__ = ("_pidfd",)

    def __init__(self, loop: Any, core: Core, popen: subprocess.Popen[bytes], on_exit: OnExit) -> None:
        super().__init__(loop, core, popen, on_exit)
        self._pidfd = pidfd_open(popen.pid)
        try:
            self._key = core.open_poll(self._pidfd)
            errors.check(core.set_poll(self._key, _core.READABLE))
        except BaseException:
            self._stop()
            raise
        core.registry.owners[self._key] = self

    def _stop(self) -> None:
        super()._stop()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def on_poll(self, result: int) -> None:
        """See ``Owner``."""
        if result < 0:
            self._pidfd = -1  # closed by somebody: the number may be another file's by now
        try:
            returncode = _reap(self._popen, self._pidfd)
        finally:
            self._stop()
        if returncode is None:
            # A debugger is told of the end first.
            self._context.run(_ThreadWatch, self._loop, self._core, self._popen, self._on_exit)
        else:
            self._tell(returncode)


class _UvWatch(_Watch):
    """For a child that libuv has started and reaps."""

    __slots__ = ()

    _popen: UvPopen

    def __init__(self, loop: Any, core: Core, popen: UvPopen, on_exit: OnExit) -> None:
        super().__init__(loop, core, popen, on_exit)
        self._key = popen.key
        core.registry.owners[self._key] = self

    def on_exit(self, returncode: int) -> None:
        """See ``Owner``."""
        self._popen.reaped(returncode)
        self._stop()
        self._tell(returncode)

    def on_loop_close(self) -> None:
        """See ``Owner``."""
        self._stop()
        self._popen.release()

    def on_adopt(self) -> None:
        """See ``Owner``."""
        self._stop()
        self._popen.release()


class _ThreadWatch:
    """Has a thread wait where there is no pidfd (the system has none, no descriptor is left, no such process).

    The thread leaves the child to be reaped in the loop's thread, so that no signal is sent to a process id
    that has become another's.
    """

    def __init__(self, loop: Any, core: Core, popen: subprocess.Popen[bytes], on_exit: OnExit) -> None:
        self._loop = loop
        self._popen = popen
        self._on_exit = on_exit
        self._context = contextvars.copy_context()
        threading.Thread(target=self._wait, name=f"velociloop-wait-{popen.pid}", daemon=True).start()

    def _wait(self) -> None:
        try:
            child_returncode(self._popen.pid, wait=True)
        except ChildProcessError:
            pass  # _reap() finds out
        except OSError:
            self._popen.wait()  # no waitid(2), in a sandbox
        try:
            self._loop.call_soon_threadsafe(self._ended, context=self._context)
        except RuntimeError:  # "Event loop is closed"
            self._popen.poll()
            logger.warning("Loop %r that handles pid %r is closed", self._loop, self._popen.pid)

    def _ended(self) -> None:
        returncode = _reap(self._popen, -1)
        if returncode is not None:
            self._on_exit(returncode)


def _watch(loop: Any, core: Core, popen: subprocess.Popen[bytes], on_exit: OnExit) -> None:
    if isinstance(popen, UvPopen) and popen.key:
        _UvWatch(loop, core, popen, on_exit)
        return
    try:
        _PidfdWatch(loop, core, popen, on_exit)
    except OSError:
        # ENOSYS and EPERM (an old kernel, a sandbox), EMFILE, ESRCH (reaped already), ...
        _ThreadWatch(loop, core, popen, on_exit)


class ProcessTransport(BaseSubprocessTransport):
    """asyncio's subprocess transport, on a child that ``Popen`` starts."""

    def __init__(
        self,
        loop: Any,
        protocol: Any,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        self._connected = asyncio.Event()
        self._reaped = asyncio.Event()
        try:
            super().__init__(
                loop, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
            )
        except BaseException:
            # No thread for the exit, say, or a task factory that raises: nobody gets this transport.
            self.close()
            self._close_pipes()
            raise

    def _start(self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, bufsize: int, **kwargs: Any) -> None:
        streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        kwargs = {**kwargs, **streams, "shell": shell, "bufsize": bufsize, "universal_newlines": False}
        self._proc = self._popen = popen = self._spawn(args, **kwargs)
        try:
            _watch(self._loop, self._loop._core, popen, self._ended)
        except BaseException:
            popen.kill()
            popen.wait()
            raise

    def _spawn(self, args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(args, **kwargs)

    def close(self) -> None:
        """See ``asyncio.SubprocessTransport.close``."""
        pipes = self._pipes
        if self._loop is not None and self._loop.is_closed():
            # They ended with the loop.  Before 3.14 asyncio closes them all the same, which raises
            # "Event loop is closed" before the child is killed.
            self._pipes = {}
        try:
            super().close()
        finally:
            self._pipes = pipes

    def _ended(self, returncode: int) -> None:
        self._reaped.set()
        self._process_exited(returncode)

    async def _connect_pipes(self, waiter: asyncio.Future[None] | None) -> None:
        try:
            await super()._connect_pipes(waiter)
        finally:
            self._connected.set()
            if self._closed:
                # Closed (create_subprocess_exec() was cancelled) while pipes were being connected, of which
                # close() could not know.
                self._close_pipes()

    def _close_pipes(self) -> None:
        for protocol in self._pipes.values():
            if protocol is not None:
                protocol.pipe.close()
        popen = self._popen
        if popen is not None:
            for fd, pipe in enumerate((popen.stdin, popen.stdout, popen.stderr)):
                if pipe is not None and self._pipes.get(fd) is None:
                    pipe.close()

    async def give_up(self) -> None:
        """Close, kill the child and wait until nothing of it is left."""
        self.close()
        await self._connected.wait()
        self._close_pipes()
        await self._reaped.wait()


class UvProcessTransport(ProcessTransport):
    """The same, on a child that libuv starts, where it can."""

    def _spawn(self, args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        if subprocess.Popen is not Popen:
            return super()._spawn(args, **kwargs)  # replaced, by a test or a tracer: it is obeyed
        return UvPopen(self._loop._core, args, **kwargs)
