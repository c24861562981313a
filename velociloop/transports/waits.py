"""Sockets that ``sock_recv`` and ``sock_recv_into`` wait for.

asyncio tries first, then adds a reader to its selector and removes it afterwards: two system calls, a Handle and a
``SelectorKey`` a wait.  Here the registration of a socket stays and is armed for one event at a time
(``vl_wait_arm``), and the event itself receives.  What else may use the descriptor meanwhile keeps its
meaning: a reader that is added takes the place of the wait, which never ends then, as in asyncio; so does
another ``sock_recv``; and a removed reader is the removed wait.

Where asyncio's own code has to do it (another kind of socket object, a descriptor that is registered with the
selector, a system without such waits, debug mode) the caller is told so.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Container
from functools import partial

from .._accelerator import speedups
from ..uv import errors
from ..uv.core import RECEIVE_BYTES, Core
from ..uv.registry import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..scheduling.callbacks import CallbackScope

__all__ = ["SocketWaits", "Wait"]

# A larger object is not made for what may be a few bytes: malloc() would ask the kernel for its pages.
_LARGEST_DIRECT_BYTES = 64 * 1024
# A socket that was tried in vain is not tried, but waited for, so many times: who answers requests has read
# all there was.  The wait ends at once if there is something.
_UNTRIED = 15
_NUMBER_BITS = 32
_NUMBER_MASK = (1 << _NUMBER_BITS) - 1
_SERIAL_MASK = (1 << 31) - 1


class Wait:
    """One wait: who waits for it, and what is to be done when it is over."""

    __slots__ = ("argument", "fd", "future", "operation", "token")

    def __init__(
        self, fd: int, token: int, future: Any, operation: Callable[[Any], Any], argument: Any
    ) -> None:
        self.fd = fd
        #: Another one for each wait of a descriptor.
        self.token = token
        self.future = future
        self.operation = operation
        self.argument = argument


class PyWaitsBase:
    """What the accelerator's ``WaitsBase`` does in C.

    The subclass must provide ``_receive_in_python()``.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def _receive_in_python(self, sock: Any, size: Any) -> bytes | Wait | None: ...

    def receive(self, sock: Any, size: Any) -> bytes | Wait | None:
        """Return what ``sock.recv(size)`` does; where that would block, a wait for it; None: asyncio is to do it."""
        return self._receive_in_python(sock, size)


WaitsBase = PyWaitsBase
if speedups is not None and not TYPE_CHECKING:
    WaitsBase = speedups.WaitsBase


class SocketWaits(WaitsBase, Owner):
    """The waits of one loop: at most one a descriptor."""

    __slots__ = (
        "_core",
        "_kept",
        "_loop",
        "_others",
        "_pending",
        "_scope",
        "_serial",
        "_transports",
        "_unsupported",
        "_untried",
        "_watched",
    )

    def __init__(self, loop: Any, core: Core, scope: CallbackScope) -> None:
        self._loop = loop
        self._core = core
        self._scope = scope  # the accelerator knows the core by it
        self._pending: dict[int, Wait] = {}  # by descriptor
        self._serial = 0
        self._unsupported = False
        self._watched: Container[int] = ()
        self._transports: Container[int] = ()
        self._others: Container[int] = ()
        self._untried: dict[int, int] = {}  # descriptor -> how often it need not be tried
        self._kept: bytearray | None = None  # where large reads go, made when needed
        core.registry.waits = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pending={len(self._pending)}>"

    def attach(self, watched: set[int], transports: Container[int], others: Container[int]) -> None:
        """Take the descriptors registered with the loop's selector, and those that have a transport, ours or others'.

        The first are served by the selector, the second refused by asyncio's own code.
        """
        self._others = others
        self._watched = watched
        self._transports = transports

    def _receive_in_python(self, sock: Any, size: Any) -> bytes | Wait | None:
        if type(sock) is not socket.socket:
            return None
        if type(size) is not int or size <= 0:
            return None
        fd = sock.fileno()
        operation: Callable[[Any], Any] = sock.recv
        if size > _LARGEST_DIRECT_BYTES and sock.type == socket.SOCK_STREAM:
            operation = partial(self._receive_large, sock)
        untried = self._untried.get(fd, 0)
        if untried:
            self._untried[fd] = untried - 1
        else:
            try:
                data: bytes = operation(size)
                return data
            except (BlockingIOError, InterruptedError):
                self._untried[fd] = _UNTRIED
        return self._wait(fd, operation, size)

    def receive_into(self, sock: Any, buffer: Any) -> int | Wait | None:
        """The same of ``sock.recv_into(buffer)``."""
        if type(sock) is not socket.socket:
            return None
        try:
            return sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return self._wait(sock.fileno(), sock.recv_into, buffer)

    def _receive_large(self, sock: socket.socket, size: int) -> bytes:
        if self._kept is None:
            self._kept = bytearray(RECEIVE_BYTES)
        received = sock.recv_into(self._kept, min(size, RECEIVE_BYTES))
        with memoryview(self._kept) as view:
            return bytes(view[:received])

    def _wait(self, fd: int, operation: Callable[[Any], Any], argument: Any) -> Wait | None:
        if (
            fd < 0
            or self._unsupported
            or fd in self._watched
            or fd in self._transports
            or fd in self._others
        ):
            return None
        self._serial = serial = (self._serial + 1) & _SERIAL_MASK
        wait = Wait(fd, serial << _NUMBER_BITS | fd, self._loop.create_future(), operation, argument)
        status = self._core.arm_wait(fd, wait.token)
        if status < 0:
            self._not_armed(status)
            return None
        self._pending[fd] = wait
        return wait

    def _not_armed(self, status: int) -> None:
        # asyncio says what is wrong with the descriptor.
        errors.raise_if_refused(status)
        self._unsupported = status == errors.ENOTSUP

    def forget(self, wait: Wait) -> None:
        """Nobody waits any more: leave no watch behind."""
        if self._pending.get(wait.fd) is wait:
            self.displace(wait.fd)

    def displace(self, fileobj: Any) -> bool:
        """End the wait for a descriptor, whose future never ends then; returns whether there was one."""
        if not self._pending:
            return False
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if self._pending.pop(fd, None) is None:
            return False
        self._core.forget_wait(fd)
        return True

    def on_wait(self, token: int) -> None:
        """See ``Owner``."""
        wait = self._pending.get(token & _NUMBER_MASK)
        if wait is None or wait.token != token:
            return  # displaced after the poll
        future = wait.future
        if future.done():
            del self._pending[wait.fd]  # cancelled: forget() comes in this turn or the next
            return
        try:
            result = wait.operation(wait.argument)
        except BaseException as exc:
            self._operation_failed(wait, exc)
        else:
            del self._pending[wait.fd]
            future.set_result(result)

    def _operation_failed(self, wait: Wait, exc: BaseException) -> None:
        if isinstance(exc, (BlockingIOError, InterruptedError)):
            self._wait_again(wait)  # somebody else was faster
        elif isinstance(exc, (SystemExit, KeyboardInterrupt)):
            self._wait_again(wait)
            raise exc
        else:
            del self._pending[wait.fd]
            wait.future.set_exception(exc)

    def _wait_again(self, wait: Wait) -> None:
        status = self._core.arm_wait(wait.fd, wait.token)
        if status < 0:
            del self._pending[wait.fd]
            wait.future.set_exception(errors.exception_for(status))

    # -- what an Owner needs besides ----------------------------------------------------

    def enter_anew(self) -> None:
        """See ``Owner``: it runs in no context of its own."""

    def on_loop_close(self) -> None:
        """Forget all: their futures never end, as in asyncio."""
        self._pending.clear()
        self._untried.clear()

    def on_adopt(self) -> None:
        """See ``Owner``: wait anew, where the parent does not."""
        for wait in list(self._pending.values()):
            if not wait.future.done():
                self._wait_again(wait)


if speedups is None:
    # Without a frame between.
    SocketWaits.receive = SocketWaits._receive_in_python  # type: ignore[method-assign, assignment]
else:
    speedups.register_waits(SocketWaits, (Wait, socket.socket, _LARGEST_DIRECT_BYTES, _UNTRIED))
