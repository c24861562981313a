"""The sending end of a pipe, FIFO, socket or character device.

The contract is asyncio's ``WriteTransport``, and where its documentation is silent the Unix pipe transport of the
installed interpreter.  Nothing is corked: asyncio sends at once, and so does this.
"""

from __future__ import annotations

import asyncio
from asyncio.log import logger

from .._compat import LOG_THRESHOLD_FOR_CONNLOST_WRITES, FlowControlMixin, set_result_unless_cancelled
from ..uv import errors
from .pipe_end import PipeEnd
from .states import Phase
from .watch import READABLE, EventHandle, Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["WritePipeTransport"]


class WritePipeTransport(PipeEnd, FlowControlMixin, asyncio.WriteTransport):
    """Writes to ``pipe``, a file object that keeps its descriptor ``fd``.

    Made by the loop.  The transport closes ``pipe`` in the end, once, and nobody else does.
    ``notices_end`` says whether the descriptor polls as readable once the reading end is closed.
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
        *,
        notices_end: bool,
    ) -> None:
        super().__init__(extra, loop)
        self._take(watches, pipe, fd, protocol)  # the reader hears that the reading end was closed
        #: What the kernel has not taken.  Its front is cut off as it goes, which moves nothing.
        self._buffer = bytearray()
        self._conn_lost = 0  # writes since the end, as asyncio counts them
        self._writer: EventHandle | None = None  # while the buffer is not empty

        loop.call_soon(protocol.connection_made, self)
        if notices_end:
            loop.call_soon(self._begin_watching)
        if waiter is not None:
            loop.call_soon(set_result_unless_cancelled, waiter, None)

    def _is_polling(self) -> bool:
        return bool(self._buffer)

    def _traits(self) -> list[str]:
        return [f"bufsize={len(self._buffer)}"]

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that the kernel has not taken yet."""
        return len(self._buffer)

    # -- writing -----------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; never blocks.  What the kernel does not take now follows as it does.

        Raises AssertionError, as asyncio, for what is not bytes-like.  Errors of the pipe are not raised but
        end the transport.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise AssertionError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if isinstance(data, memoryview) and (data.itemsize != 1 or not data.c_contiguous):
            data = bytes(data)
        if not data:
            return
        if self._conn_lost or self._phase is not Phase.OPEN:
            if self._conn_lost >= LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
            self._conn_lost += 1
            return
        sent = 0
        if not self._buffer:
            sent = self._watches.core.write_descriptor(self._fileno, data)
            if sent == len(data):
                return
            if sent < 0:
                self._fail_writing(sent)
                return
            # asyncio's writer is a Handle made here: what it runs sees this context's variables.
            self._writer = EventHandle(self._write_ready, self._loop)
            self._watch = self._watches.of(self._fileno)
            self._watch.start_writer(self)
        # Released at once, on PyPy too: the caller may resize its buffer when this returns.
        with memoryview(data) as view, view[sent:] as rest:
            self._buffer += rest
        self._maybe_pause_protocol()

    def _write_ready(self) -> None:
        sent = self._watches.core.write_descriptor(self._fileno, self._buffer)
        if sent < 0:
            self._fail_writing(sent)
            return
        del self._buffer[:sent]
        if self._buffer:
            return
        self._stop_writer()
        self._maybe_resume_protocol()  # may write
        if self._phase is Phase.CLOSING and not self._buffer:
            self._stop_watching()
            self._phase = Phase.LOST
            self._call_connection_lost(None)

    def _fail_writing(self, code: int) -> None:
        errors.raise_if_refused(code)
        self._conn_lost += 1
        self._fatal_error(errors.exception_for(code), "Fatal write error on pipe transport")

    # -- what the watch tells ------------------------------------------------------------

    def _begin_watching(self) -> None:
        if self._phase is not Phase.OPEN:
            return
        self._reader = EventHandle(self._read_ready, self._loop)
        self._watch = self._watches.of(self._fileno)
        self._watch.start_reader(self, READABLE)

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """See ``End``: was read for a transport on this descriptor that this one has replaced."""
        self.on_readable()

    def on_readable(self) -> None:
        """See ``End``."""
        if self._reader is not None and self._phase in (Phase.OPEN, Phase.CLOSING):
            self._reader.run()

    def on_writable(self) -> None:
        """See ``End``."""
        if self._writer is not None and self._buffer:
            self._writer.run()

    def on_descriptor_lost(self, exc: BaseException) -> None:
        """See ``End``."""
        if self._phase in (Phase.OPEN, Phase.CLOSING):
            self._fatal_error(exc, "Fatal error on pipe transport")

    def _read_ready(self) -> None:
        # The reading end was closed; nobody sends to a writing end.
        if self._loop.get_debug():
            logger.info("%r was closed by peer", self)
        self._close(BrokenPipeError() if self._buffer else None)

    # -- the end -------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        """Return True: the end of the stream is the pipe's close."""
        return True

    def write_eof(self) -> None:
        """Close the transport; for a pipe the two are one."""
        self.close()

    def close(self) -> None:
        """Send what was written, then call ``connection_lost(None)``."""
        if self._phase is not Phase.OPEN:
            return
        if self._buffer:
            self._phase = Phase.CLOSING
        else:
            self._close(None)

    def abort(self) -> None:
        """Close at once; what the kernel has not taken is lost.  ``connection_lost(None)`` follows."""
        self._close(None)

    def _fatal_error(self, exc: BaseException, message: str) -> None:
        if isinstance(exc, OSError):
            # The reader's doing, not the program's: connection_lost() is told.
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            self._report(exc, message)
        self._close(exc)

    def _close(self, exc: BaseException | None) -> None:
        if self._phase not in (Phase.OPEN, Phase.CLOSING):
            return
        self._stop_writer()
        self._stop_watching()
        self._buffer.clear()
        self._phase = Phase.LOST
        self._loop.call_soon(self._call_connection_lost, exc)

    def _stop_writer(self) -> None:
        if self._watch is not None:
            self._watch.stop_writer(self)
        self._writer = None
