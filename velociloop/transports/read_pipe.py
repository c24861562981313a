"""The receiving end of a pipe, FIFO, socket or character device.

The contract is asyncio's ``ReadTransport``, and where its documentation is silent the Unix pipe transport of the
installed interpreter.
"""

from __future__ import annotations

import asyncio
import errno
from asyncio.log import logger
from collections import deque

from .._compat import set_result_unless_cancelled
from ..uv import errors
from .pipe_end import PipeEnd
from .states import Phase, Reading
from .watch import RECEIVE, EventHandle, Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ReadPipeTransport"]

_EOF = errors.EOF


class ReadPipeTransport(PipeEnd, asyncio.ReadTransport):
    """Delivers what the shim reads from ``pipe``, a file object that keeps its descriptor ``fd``.

    Made by the loop.  The transport closes ``pipe`` in the end, once, and nobody else does.
    """

    def __init__(
        self,
        loop: Any,
        watches: Watches,
        pipe: Any,
        fd: int,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(extra)
        self._loop = loop
        self._take(watches, pipe, fd, protocol)
        self._reading = Reading.IDLE
        self._paused = False
        #: What was read but not delivered yet: bytes, or the code of the end or of an error.
        self._received: deque[bytes | int] = deque()

        # asyncio's order: connection_made, then reading, then whoever waits for the connection.
        loop.call_soon(protocol.connection_made, self)
        loop.call_soon(self._begin_reading)
        if waiter is not None:
            loop.call_soon(set_result_unless_cancelled, waiter, None)

    def _is_polling(self) -> bool:
        return self._reading is Reading.ACTIVE

    # -- reading ---------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Return whether the transport would deliver what arrives."""
        return self._phase is Phase.OPEN and not self._paused

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`; does nothing if paused or closing."""
        if not self.is_reading():
            return
        self._stop_watching()
        self._reading = Reading.IDLE
        self._paused = True
        if self._loop.get_debug():
            logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        """Deliver again, first what had been read before the pause."""
        if self._phase is not Phase.OPEN or not self._paused:
            return
        self._paused = False
        try:
            self._begin_reading()
        except RuntimeError:
            self._paused = True  # in the wrong thread: nothing has changed
            raise
        if self._loop.get_debug():
            logger.debug("%r resumes reading", self)

    def _begin_reading(self) -> None:
        if self._phase is not Phase.OPEN or self._reading is not Reading.IDLE or self._paused:
            return
        ended = bool(self._received) and type(self._received[-1]) is int
        if not ended:
            # Raises what asyncio's add_reader does, with the same effect: PermissionError for /dev/null.
            self._watch = self._watches.of(self._fileno)
            self._watch.start_reader(self, RECEIVE)
        # asyncio's reader is a Handle made here: what it runs sees this context's variables.
        self._reader = EventHandle(self._read_ready, self._loop)
        self._reading = Reading.ACTIVE
        if self._received:
            self._loop.call_soon(self._reader.run)

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``."""
        if self._phase is not Phase.OPEN:
            return
        self._received.append(slab[offset : offset + result] if result > 0 else result)
        if self._reading is Reading.ACTIVE:
            self._reader.run()  # type: ignore[union-attr]  # by _begin_reading()

    def on_readable(self) -> None:
        """See ``End``: what was meant for a writer of this descriptor, which this one has replaced."""

    def on_writable(self) -> None:
        """See ``End``; never asked for."""

    def on_descriptor_lost(self, exc: BaseException) -> None:
        """See ``End``."""
        if self._phase is Phase.OPEN:
            self._fatal_error(exc, "Fatal read error on pipe transport")

    def _read_ready(self) -> None:
        if not self._received or self._phase is not Phase.OPEN or self._reading is not Reading.ACTIVE:
            return
        item = self._received.popleft()
        try:
            if isinstance(item, bytes):
                self._protocol.data_received(item)
            elif item == _EOF:
                self._receive_eof()
            else:
                self._fatal_error(errors.exception_for(item), "Fatal read error on pipe transport")
        finally:
            if self._received and self._reading is Reading.ACTIVE:
                self._loop.call_soon(self._reader.run)  # type: ignore[union-attr]  # by _begin_reading()

    def _receive_eof(self) -> None:
        if self._loop.get_debug():
            logger.info("%r was closed by peer", self)
        self._end_reading()
        self._loop.call_soon(self._protocol.eof_received)
        self._loop.call_soon(self._call_connection_lost, None)

    # -- the end -----------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading and close the pipe; ``connection_lost(None)`` follows."""
        self._close(None)

    def _close(self, exc: BaseException | None) -> None:
        if self._phase is not Phase.OPEN:
            return
        self._end_reading()
        self._loop.call_soon(self._call_connection_lost, exc)

    def _end_reading(self) -> None:
        self._stop_watching()
        self._phase = Phase.LOST
        self._reading = Reading.ENDED
        self._received.clear()

    def _fatal_error(self, exc: BaseException, message: str) -> None:
        # A terminal's hang-up is EIO: nothing that the program could be blamed for.
        if isinstance(exc, OSError) and exc.errno == errno.EIO:
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            self._report(exc, message)
        self._close(exc)
