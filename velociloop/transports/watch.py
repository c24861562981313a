"""What libuv watches of descriptors that stay their owner's.

Facts: libuv allows one watcher a descriptor (UV_EEXIST), where asyncio's selector keeps a reader and a writer
for each: a terminal is connected for reading and for writing by one file object.  Consequence: the two ends
of a descriptor share a :class:`Watch`, and the loop has one table of them.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from ..uv import core as _core, errors
from ..uv.core import Core
from ..uv.registry import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol
else:
    Protocol = object

__all__ = ["READABLE", "RECEIVE", "End", "EventHandle", "Watch", "Watches"]

READABLE = _core.READABLE
RECEIVE = _core.RECEIVE
_WRITABLE = _core.WRITABLE


class End(Protocol):
    """A transport that reads from, or writes to, a watched descriptor."""

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``; for who watches for RECEIVE."""

    def on_readable(self) -> None:
        """For who watches for READABLE."""

    def on_writable(self) -> None:
        """For who was given to :meth:`Watch.start_writer`."""

    def on_descriptor_lost(self, exc: BaseException) -> None:
        """The kernel refuses to watch: somebody has closed the descriptor.  Nothing more comes."""


class EventHandle:
    """What asyncio keeps for a reader or a writer of a descriptor: a ``Handle``, which is run again and again.

    It runs in a copy of the context in which it was made, exceptions go to the loop's exception handler, and
    KeyboardInterrupt and SystemExit are raised.  A nested turn may run it while it is running.
    """

    __slots__ = ("_context", "_function", "_handle", "_loop", "_running")

    def __init__(self, function: Callable[[], None], loop: Any) -> None:
        self._context = contextvars.copy_context()
        self._function = function
        self._loop = loop
        self._handle = asyncio.Handle(function, (), loop, self._context)
        self._running = False

    def run(self) -> None:
        """Call the function."""
        if self._running:
            # A context cannot be entered twice.
            asyncio.Handle(self._function, (), self._loop, self._context.copy())._run()
            return
        self._running = True
        try:
            self._handle._run()
        finally:
            self._running = False


class Watches:
    """A loop's watches, by descriptor."""

    __slots__ = ("by_fd", "core")

    def __init__(self, core: Core) -> None:
        self.core = core
        self.by_fd: dict[int, Watch] = {}

    def of(self, fd: int) -> Watch:
        """Return the watch of ``fd``, a new one if there is none.

        Raises OSError: PermissionError for what epoll does not watch (``/dev/null``), FileExistsError for what is
        another libuv handle's.
        """
        found = self.by_fd.get(fd)
        return Watch(self, fd) if found is None else found


class Watch(Owner):
    """One watched descriptor: its reader, its writer, and what each of them wants to hear of."""

    __slots__ = ("_core", "_fd", "_key", "_reader", "_reading", "_watches", "_writer", "_writing")

    def __init__(self, watches: Watches, fd: int) -> None:
        self._watches = watches
        self._core = core = watches.core
        self._fd = fd
        self._reader: End | None = None
        self._reading = 0  # READABLE, RECEIVE, or 0: not now
        self._writer: End | None = None
        self._writing = 0  # WRITABLE, or 0: not now
        self._key = core.open_poll(fd)
        watches.by_fd[fd] = self
        core.registry.owners[self._key] = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self._fd} reader={self._reader!r} writer={self._writer!r}>"

    def start_reader(self, end: End, events: int) -> None:
        """Tell ``end`` of ``events``, READABLE or RECEIVE; who was told before is forgotten, as by ``add_reader``."""
        # Even if nothing changes: libuv registers anew what it is told to watch, and a
        # forgotten transport's number may be another file's by now.
        self._set(events | self._writing)
        self._reader = end
        self._reading = events

    def start_writer(self, end: End) -> None:
        """Tell ``end`` when ``write`` would take something."""
        self._set(self._reading | _WRITABLE)
        self._writer = end
        self._writing = _WRITABLE

    def _set(self, events: int) -> None:
        try:
            errors.check(self._core.set_poll(self._key, events))
        except BaseException:
            if self._reader is None and self._writer is None:
                self._end()  # new: nobody will ever leave it
            raise

    def stop_reader(self, end: object) -> None:
        """Tell ``end`` of nothing that happens from now on; what was read already still comes."""
        if self._reader is end and self._reading:
            self._core.reduce_poll(self._key, self._writing)
            self._reading = 0

    def stop_writer(self, end: object) -> None:
        """Tell ``end`` nothing more of room for its bytes."""
        if self._writer is end and self._writing:
            self._core.reduce_poll(self._key, self._reading)
            self._writing = 0

    def leave(self, end: object) -> None:
        """Forget ``end``, which closes its file now; with the last of the two the watch ends."""
        if self._reader is not end and self._writer is not end:
            return
        if self._reader is end:
            self.stop_reader(end)
            self._reader = None
        if self._writer is end:
            self.stop_writer(end)
            self._writer = None
        if self._reader is None and self._writer is None:
            self._end()

    def _end(self) -> None:
        self._reader = self._writer = None
        self._reading = self._writing = 0
        if self._watches.by_fd.get(self._fd) is self:
            del self._watches.by_fd[self._fd]
        self._core.close_handle(self._key)

    # -- events ------------------------------------------------------------------------

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``."""
        if result <= 0 and self._reading == RECEIVE:
            self._reading = 0  # the shim has stopped
        if self._reader is not None:
            self._reader.on_read(result, slab, offset)

    def on_poll(self, result: int) -> None:
        """See ``Owner``."""
        if result < 0:
            # "uv_poll has stopped itself after POLLERR": as epoll has it, that is ready for everything.
            status = self._core.set_poll(self._key, self._reading | self._writing)
            if status < 0:
                self._lose(errors.exception_for(result))
                return
            result = READABLE | _WRITABLE
        # Each may end the other, or the watch.
        if result & READABLE and self._reading == READABLE and self._reader is not None:
            self._reader.on_readable()
        if result & _WRITABLE and self._writing and self._writer is not None:
            self._writer.on_writable()

    def _lose(self, exc: BaseException) -> None:
        reader, writer = self._reader, self._writer
        self._end()
        if reader is not None:
            reader.on_descriptor_lost(exc)
        if writer is not None and writer is not reader:
            writer.on_descriptor_lost(exc)

    def enter_anew(self) -> None:
        """See ``Owner``; an :class:`EventHandle` sees to it itself."""

    def on_loop_close(self) -> None:
        """See ``Owner``.  The transports warn when they are collected, and close their files."""
        self._end()
