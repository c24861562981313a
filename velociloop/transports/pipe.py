"""Pipes, FIFOs, terminals, and sockets used as such: ``connect_read_pipe`` and ``connect_write_pipe``.

The contract is asyncio's: "Transports and Protocols" in its documentation, and where that is silent the pipe
transports of the installed interpreter.

Facts: the file object that the user gives owns its descriptor, and is closed with the transport.  ``uv_pipe_t``
would close it too, so it would need a duplicate; and it cannot tell a writer that its reader has closed
(``uv_read_start`` answers UV_ENOTCONN on a write end), for which libuv allows no second watch on the same number
(UV_EEXIST).  Choice: ``uv_poll_t`` on the user's own descriptor.
"""

import asyncio
import contextvars
import errno
import os
import stat
import warnings
from asyncio.log import logger
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._compat import LOG_THRESHOLD_FOR_CONNLOST_WRITES, FlowControlMixin, set_result_unless_cancelled
from ..uv import core as _core, errors
from ..uv.registry import Owner
from .states import Phase, Reading

if TYPE_CHECKING:
    from ..uv.core import Core

__all__ = ["ReadPipeTransport", "WritePipeTransport"]

_READABLE = _core.READABLE
_WRITABLE = _core.WRITABLE
_BUFFER_TYPES = (bytes, bytearray, memoryview)

# Enum members are looked up through their class's metaclass; these are plain globals.
_OPEN = Phase.OPEN
_CLOSING = Phase.CLOSING
_IDLE = Reading.IDLE
_ACTIVE = Reading.ACTIVE


def _mode_of(fd: int, message: str) -> int:
    """Return the file's mode; ValueError with ``message`` for what cannot be waited for."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        raise ValueError(message)
    return mode


class _Pipe(Owner):
    """What both directions have: the pipe, its watch, its end.

    The subclass must provide ``_open_watch(fd)``, which returns a key, and be an asyncio transport; it calls
    :meth:`_open` first.
    """

    _loop: Any
    _protocol: Any
    _extra: dict[str, Any]

    if TYPE_CHECKING:

        def _open_watch(self, fd: int) -> int: ...

    def _open(self, loop: Any, core: "Core", pipe: Any, fd: int, protocol: asyncio.BaseProtocol) -> None:
        self._extra["pipe"] = pipe
        self._loop = loop
        self._core = core
        self._protocol = protocol
        self._key = 0  # of the watch; 0: none yet
        self._second_number = -1  # a duplicate of the descriptor, where libuv watches that already
        self._context: contextvars.Context | None = None  # of the watch's events
        self._pipe = pipe
        self._fileno = fd
        os.set_blocking(fd, False)
        self._phase = _OPEN

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._pipe is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._release()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol that the next event goes to."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol; None after ``connection_lost``, as asyncio."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._phase is not _OPEN

    # -- the watch --------------------------------------------------------------------

    def _watch(self) -> int:
        """Return the key of the watch, which is made when it is first needed.  Raises OSError."""
        if not self._key:
            try:
                key = self._open_watch(self._fileno)
            except FileExistsError:
                # "UV_EEXIST": one watch a number, and the pipe's other direction has it.
                self._second_number = os.dup(self._fileno)
                key = self._open_watch(self._second_number)
            self._key = key
            self._core.registry.owners[key] = self
            # asyncio's reader is a Handle made here: what it runs sees this context's variables.
            self._context = contextvars.copy_context()
        return self._key

    def enter_anew(self) -> None:
        """See ``Owner``."""
        if self._context is not None:
            self._context = self._context.copy()

    def _report(self, callback: Callable[..., None], exc: BaseException) -> None:
        """Report what ``callback`` has raised, as its Handle would; the transport stays open."""
        loop = asyncio.get_running_loop()
        handle = asyncio.Handle(callback, (), loop, self._context)
        message = f"Exception in callback {getattr(callback, '__qualname__', repr(callback))}()"
        loop.call_exception_handler({"message": message, "exception": exc, "handle": handle})

    def _run(self, callback: Callable[..., None], *args: Any) -> None:
        """Run ``callback`` as asyncio runs a reader's or writer's Handle, which reports exceptions."""
        handle = asyncio.Handle(callback, args, self._loop, self._context)
        handle._run()

    # -- the end ----------------------------------------------------------------------

    def _lose_connection_soon(self, exc: BaseException | None) -> None:
        self._phase = Phase.LOST
        self._loop.call_soon(self._lose_connection, exc)

    def _lose_connection(self, exc: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._release()
            self._protocol = None
            self._loop = None
            self._context = None

    def _release(self) -> None:
        """Close the pipe, for good; the watch before it."""
        self._phase = Phase.CLOSED
        self._close_watch()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _close_watch(self) -> None:
        if self._key:
            self._core.close_handle(self._key)
            self._key = 0
        if self._second_number >= 0:
            os.close(self._second_number)
            self._second_number = -1

    def on_loop_close(self) -> None:
        """See ``Owner``.  ``__del__`` warns when the transport is collected, as asyncio's does."""
        self._close_watch()


class ReadPipeTransport(_Pipe, asyncio.ReadTransport):
    """The reading end: libuv watches the descriptor, the shim reads it into the slab."""

    def __init__(
        self,
        loop: Any,
        core: "Core",
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: "asyncio.Future[None] | None" = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self._pipe: Any = None  # until it is certain that it can serve: for __del__
        super().__init__(extra)
        fd = pipe.fileno()
        _mode_of(fd, "Pipe transport is for pipes/sockets only.")
        self._reading = _IDLE
        self._paused = False
        # Received before the pause reached libuv.
        self._held: deque[bytes | int] = deque()
        self._open(loop, core, pipe, fd, protocol)
        # asyncio's order: connection_made, then reading, then whoever waits.
        loop.call_soon(protocol.connection_made, self)
        loop.call_soon(self._begin_reading)
        if waiter is not None:
            loop.call_soon(set_result_unless_cancelled, waiter, None)

    def __repr__(self) -> str:
        reading = "polling" if self._reading is _ACTIVE else "paused" if self._paused else self._reading.value
        return f"<{type(self).__name__} fd={self._fileno} {self._phase.value} read={reading}>"

    def _open_watch(self, fd: int) -> int:
        return self._core.open_reader(fd)

    def is_reading(self) -> bool:
        """Return whether the transport would deliver what arrives."""
        return self._phase is _OPEN and not self._paused

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`; does nothing if paused or closing."""
        if not self.is_reading():
            return
        self._stop_reading()
        self._paused = True
        if self._loop.get_debug():
            logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        """Deliver again, first what had been received before the pause."""
        if self._phase is not _OPEN or not self._paused:
            return
        self._start_reading()
        self._paused = False
        if self._loop.get_debug():
            logger.debug("%r resumes reading", self)

    def _begin_reading(self) -> None:
        if self.is_reading():
            self._start_reading()

    def _start_reading(self) -> None:
        # Raises for what epoll refuses (/dev/null: EPERM), to whoever asks, as asyncio's add_reader.
        status = self._core.start_reader(self._watch())
        self._reading = _ACTIVE
        if self._held:
            # Runs before what the next poll receives, which is dispatched behind it.
            self._loop.call_soon(self._deliver_held, context=self._context)
        elif status < 0:
            self._fatal_error(errors.exception_for(status), "Fatal read error on pipe transport")

    def _stop_reading(self) -> None:
        if self._reading is _ACTIVE:
            self._core.stop_reader(self._key)
        self._reading = _IDLE

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``."""
        if self._reading is _ACTIVE and result > 0 and not self._held:
            data_received = self._protocol.data_received
            try:
                self._context.run(data_received, slab[offset : offset + result])  # type: ignore[union-attr]
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._report(data_received, exc)
            return
        if self._phase is not _OPEN:
            return
        item = slab[offset : offset + result] if result > 0 else result
        if self._reading is not _ACTIVE or self._held:
            self._held.append(item)
            return
        self._run(self._deliver, item)

    def _deliver_held(self) -> None:
        if not self._held or self._reading is not _ACTIVE:
            return
        item = self._held.popleft()
        if self._held:
            # Whatever the protocol does with this one, the rest comes in the next turn.
            self._loop.call_soon(self._deliver_held, context=self._context)
        self._deliver(item)

    def _deliver(self, item: bytes | int) -> None:
        """Hand over what was received: bytes, or the code of an error or of the end."""
        if not isinstance(item, int):
            self._protocol.data_received(item)
        elif item == errors.EOF:
            if self._loop.get_debug():
                logger.info("%r was closed by peer", self)
            self._stop_reading()
            self._loop.call_soon(self._protocol.eof_received)
            self._lose_connection_soon(None)
        else:
            self._fatal_error(errors.exception_for(item), "Fatal read error on pipe transport")

    def close(self) -> None:
        """Stop reading and close the pipe; ``connection_lost(None)`` follows."""
        if self._phase is _OPEN:
            self._end(None)

    def _end(self, exc: BaseException | None) -> None:
        self._stop_reading()
        self._held.clear()
        self._lose_connection_soon(exc)

    def _fatal_error(self, exc: BaseException, message: str) -> None:
        # EIO is a terminal's hang-up.
        if isinstance(exc, OSError) and exc.errno == errno.EIO:
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._loop.call_exception_handler(
                {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
            )
        self.close_because(exc)

    def close_because(self, exc: BaseException) -> None:
        """As :meth:`close`, with an exception for ``connection_lost``."""
        if self._phase is _OPEN:
            self._end(exc)


class WritePipeTransport(_Pipe, FlowControlMixin):
    """The writing end: written at once by write(2); libuv tells when there is room, and when the reader is gone."""

    def __init__(
        self,
        loop: Any,
        core: "Core",
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: "asyncio.Future[None] | None" = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        self._pipe: Any = None  # until it is certain that it can serve: for __del__
        super().__init__(extra, loop)
        fd = pipe.fileno()
        mode = _mode_of(fd, "Pipe transport is only for pipes, sockets and character devices")
        self._buffer = bytearray()
        self._conn_lost = 0  # writes since the end, as asyncio counts them
        # A terminal is readable for reasons of its own.
        self._notices_close = not stat.S_ISCHR(mode)
        self._open(loop, core, pipe, fd, protocol)
        loop.call_soon(protocol.connection_made, self)
        if self._notices_close:
            loop.call_soon(self._begin_watching)
        if waiter is not None:
            loop.call_soon(set_result_unless_cancelled, waiter, None)

    def __repr__(self) -> str:
        info = [type(self).__name__, f"fd={self._fileno}", self._phase.value]
        if self._phase in (_OPEN, _CLOSING):
            info.append(f"write=<{'polling' if self._buffer else 'idle'}, bufsize={len(self._buffer)}>")
        return f"<{' '.join(info)}>"

    def _open_watch(self, fd: int) -> int:
        return self._core.open_poll(fd)

    def _begin_watching(self) -> None:
        if self._phase in (_OPEN, _CLOSING):
            self._set_watch()

    def _set_watch(self) -> None:
        """Watch for what matters now: room, and the reader's end."""
        events = (_READABLE if self._notices_close else 0) | (_WRITABLE if self._buffer else 0)
        if not events and not self._key:
            return
        status = self._core.set_poll(self._watch(), events)
        if status < 0:
            self._fatal_error(errors.exception_for(status), "Fatal write error on pipe transport")

    def on_poll(self, result: int) -> None:
        """See ``Owner``."""
        if self._phase not in (_OPEN, _CLOSING):
            return
        # libuv's word for POLLERR, the reader's end of a pipe, is an error.
        if self._notices_close and (result < 0 or result & _READABLE):
            self._run(self._closed_by_peer)
        elif self._buffer:
            self._run(self._write_ready)
            if result < 0 and self._buffer:
                self._set_watch()  # POLLERR has stopped it, though write(2) had nothing to say

    def _closed_by_peer(self) -> None:
        if self._loop.get_debug():
            logger.info("%r was closed by peer", self)
        self._end(BrokenPipeError() if self._buffer else None)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that the kernel has not taken yet."""
        return len(self._buffer)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; never blocks.

        Raises TypeError for what is not bytes-like.  Errors of the pipe are not raised but end the transport.
        """
        if not isinstance(data, _BUFFER_TYPES):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if not data:
            return
        if self._phase is not _OPEN:
            if self._conn_lost >= LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
            self._conn_lost += 1
            return
        if isinstance(data, memoryview):
            data = data.cast("B") if data.c_contiguous else bytes(data)
        sent = 0
        if not self._buffer:
            try:
                sent = os.write(self._fileno, data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as exc:
                self._conn_lost += 1
                self._fatal_error(exc, "Fatal write error on pipe transport")
                return
            if sent == len(data):
                return
        first = not self._buffer
        with memoryview(data) as view:
            self._buffer += view[sent:]
        if first:
            self._set_watch()
        if self._buffer:
            self._maybe_pause_protocol()

    def _write_ready(self) -> None:
        try:
            sent = os.write(self._fileno, self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._conn_lost += 1
            self._buffer.clear()
            self._fatal_error(exc, "Fatal write error on pipe transport")
            return
        del self._buffer[:sent]
        if self._buffer:
            return
        self._set_watch()
        self._maybe_resume_protocol()  # may write
        if self._phase is _CLOSING and not self._buffer:
            self._phase = Phase.LOST
            self._lose_connection(None)

    def can_write_eof(self) -> bool:
        """Return True: a pipe ends by being closed."""
        return True

    def write_eof(self) -> None:
        """Send what was written, then close the pipe; ``connection_lost(None)`` follows."""
        if self._phase is not _OPEN:
            return
        self._phase = _CLOSING
        if not self._buffer:
            self._end(None)

    def close(self) -> None:
        """As :meth:`write_eof`."""
        self.write_eof()

    def abort(self) -> None:
        """Close at once; what the kernel has not taken is lost.  ``connection_lost(None)`` follows."""
        self._end(None)

    def _end(self, exc: BaseException | None) -> None:
        if self._phase not in (_OPEN, _CLOSING):
            return
        self._buffer.clear()
        self._close_watch()
        self._lose_connection_soon(exc)

    def _fatal_error(self, exc: BaseException, message: str) -> None:
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._loop.call_exception_handler(
                {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
            )
        self._end(exc)
