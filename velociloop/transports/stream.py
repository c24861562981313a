"""TCP and Unix stream transports.

The contract is asyncio's: "Transports and Protocols" in its documentation, and where that is silent
the selector transport of the installed interpreter.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from asyncio.log import logger
from collections import deque

from .._accelerator import speedups
from .._compat import SENDFILE_TRY_NATIVE, server_attach, server_detach, server_forget
from ..uv import errors
from ..uv.core import RECEIVE_BYTES, STREAM_TRY_WRITE
from .endpoint import SocketInfo
from .sending import CALM_CALLBACKS, SendingSide
from .states import Cork, Phase, Reading, Sending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..scheduling.callbacks import CallbackScope
    from ..uv.core import Core

__all__ = ["StreamTransport"]

_EOF = errors.EOF

# Enum members are looked up through their class's metaclass; these are plain globals.
_OPEN = Phase.OPEN
_CLOSING = Phase.CLOSING
_CLOSED = Phase.CLOSED
_ACTIVE = Reading.ACTIVE


class StreamTransport(SendingSide):
    """A connected stream socket: libuv reads it into the slab, writes go straight to the kernel.

    Made by the loop; ``key`` names the shim's handle, which this transport owns from then on.
    ``user_sock`` is a socket object that the user gave and whose file the handle shares under
    another descriptor: it is closed with the transport, since the peer sees no end of the
    stream before both are.
    """

    _start_tls_compatible = True
    _sendfile_compatible = SENDFILE_TRY_NATIVE

    __slots__ = ("_buffered", "_filled_bytes", "_server")

    def __init__(
        self,
        loop: Any,
        core: Core,
        scope: CallbackScope,
        key: int,
        info: SocketInfo,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        raw_peername: bytes | None = None,
        user_sock: socket.socket | None = None,
    ) -> None:
        super().__init__(loop, core, scope, key, info, extra, raw_peername, user_sock)
        self._filled_bytes = 0  # of what is being delivered, in the BufferedProtocol's buffer
        self._server = server
        self._buffered = False
        self.set_protocol(protocol)
        if server is not None:
            server_attach(server, self)
        self._open(waiter, self._make_connection)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol that the next event goes to."""
        super().set_protocol(protocol)
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def _make_connection(self) -> None:
        try:
            self._protocol.connection_made(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            # asyncio reports and goes on with a protocol that was never set up.  An OSError too: what
            # failed is the protocol, not the network.
            self._report(exc, "Fatal error: protocol.connection_made() call failed.")
            self._force_close(exc)

    # -- reading -------------------------------------------------------------------

    def _start_receiving(self) -> int:
        return self._core.start_reading(self._key)

    def _stop_receiving(self) -> int:
        return self._core.stop_reading(self._key)

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``."""
        if self._reading is _ACTIVE and result > 0 and not self._buffered and not self._held:
            context: contextvars.Context = self._read_context  # type: ignore[assignment]  # by _begin_reading()
            try:
                context.run(self._protocol.data_received, slab[offset : offset + result])
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._data_received_failed(exc, context)
            return
        if self._phase is not _OPEN:
            return
        if not result:
            self._receive()
            return
        if self._reading is not _ACTIVE or self._held:
            self._hold(slab[offset : offset + result] if result > 0 else result)
            return
        item = memoryview(slab)[offset : offset + result] if result > 0 else result
        self._read_context.run(self._deliver, item)  # type: ignore[union-attr]

    def _receive(self) -> None:
        """Read what libuv has announced, now that it is to be delivered."""
        if self._reading is not _ACTIVE or self._held:
            return  # it stays where it is, and is announced again
        context: contextvars.Context = self._read_context  # type: ignore[assignment]  # by _begin_reading()
        if self._buffered:
            context.run(self._fill_buffers)
            return
        data = self._core.receive(self._key)
        if isinstance(data, int):
            context.run(self._receive_failed, data)
        else:
            context.run(self._deliver_bytes, data)

    def _receive_failed(self, code: int) -> None:
        if code in (errors.EAGAIN, errors.STALE):
            return  # somebody else has read it; or the handle is lost (H6), which another record says
        self._deliver(errors.raise_if_refused(code))

    def _data_received_failed(self, exc: BaseException, context: contextvars.Context) -> None:
        # A nested turn may have closed the transport, and taken its own context: it is the one of the call.
        context.run(self._fatal_error, exc, "Fatal error: protocol.data_received() call failed.")

    def _deliver_item(self, item: bytes | int) -> None:
        view = memoryview(item) if isinstance(item, bytes) else item
        self._read_context.run(self._deliver, view)  # type: ignore[union-attr]  # by _begin_reading()

    def _deliver_rest(self, rest: bytes) -> None:
        """Go on where the accelerator has filled a buffer that had no room for more."""
        if self._phase is _OPEN:
            self._deliver_item(rest)

    def _deliver(self, item: memoryview | int) -> None:
        """Hand over what was received: bytes, or the code of an error or of the end."""
        if isinstance(item, int):
            if item == _EOF:
                self._deliver_eof()
            else:
                self._fatal_error(errors.exception_for(item), "Fatal read error on socket transport")
            return
        while item:
            # Each call may close, pause, or put another protocol in place (STARTTLS).
            if self._phase is not _OPEN:
                return
            if self._reading is not _ACTIVE:
                self._hold_rest(item)
                return
            if self._buffered:
                try:
                    size = self._fill_buffer(item)
                except BaseException:
                    # KeyboardInterrupt, SystemExit.  How much of it was taken nobody can say but
                    # the buffer's size; what did not fit into it is certainly unread.
                    self._interrupted(item[self._filled_bytes :])
                    raise
            else:
                size = len(item)
                self._deliver_bytes(bytes(item))
            item = item[size:]

    def _deliver_bytes(self, data: bytes) -> None:
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")

    def _interrupted(self, rest: memoryview | bytes) -> None:
        self._hold_rest(rest)
        self._deliver_held_soon()

    def _hold_rest(self, rest: memoryview | bytes) -> None:
        if self._held is None:
            self._held = deque()
        if rest:
            self._held.appendleft(bytes(rest))

    def _fill_buffers(self) -> None:
        """Receive what there is to receive, in as many of the protocol's buffers as it needs.

        libuv's own reading does so too.  What the protocol answers to one message leaves together then, in whatever
        pieces its buffer has cut that message.
        """
        left = RECEIVE_BYTES
        while left > 0 and (size := self._fill_buffer(None, left)):
            if self._reading is not _ACTIVE or self._held or not self._buffered:
                return
            left -= size

    def _fill_buffer(self, data: memoryview | None, most: int = 0) -> int:
        """Give the protocol ``data``, and return how much of it is done with.

        Without ``data`` it gets at most ``most`` bytes of what there is to receive; returns how many if its buffer is
        full, and 0 else.
        """
        self._filled_bytes = 0
        try:
            buffer = self._protocol.get_buffer(-1)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._buffer_failed(exc)
            return 0 if data is None else data.nbytes
        return self._fill(buffer, data, most)

    def _buffer_failed(self, exc: BaseException) -> None:
        self._fatal_error(exc, "Fatal error: protocol.get_buffer() call failed.")

    def _fill(self, buffer: Any, data: memoryview | None, most: int) -> int:
        self._filled_bytes = 0
        try:
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
            with memoryview(buffer) as view, view.cast("B") as target:
                if target.readonly:
                    raise TypeError("get_buffer() returned read-only memory")
                full = False
                if data is None:
                    with target[:most] as room:
                        size = self._core.receive_into(self._key, room)
                    full = size == target.nbytes
                else:
                    size = min(target.nbytes, data.nbytes)
                    target[:size] = data[:size]
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._buffer_failed(exc)
            return 0 if data is None else data.nbytes
        if size < 0:
            self._receive_failed(size)
            return 0
        self._filled_bytes = size
        self._tell_buffer_updated(size)
        return size if full or data is not None else 0

    def _fill_in_python(self, buffer: Any, data: bytes | None) -> None:
        """Go on where the accelerator has found that what ``get_buffer()`` returned is no plain buffer."""
        if data is None:
            self._fill(buffer, None, RECEIVE_BYTES)
            return
        rest = memoryview(data)
        try:
            size = self._fill(buffer, rest, 0)
        except BaseException:
            self._interrupted(rest[self._filled_bytes :])  # as in _deliver()
            raise
        self._deliver(rest[size:])

    def _tell_buffer_updated(self, size: int) -> None:
        try:
            self._protocol.buffer_updated(size)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._buffer_updated_failed(exc)

    def _buffer_updated_failed(self, exc: BaseException) -> None:
        self._fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")

    def _deliver_eof(self) -> None:
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        self._reading = Reading.ENDED
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            # Nobody has said whether to close: asked again in the next run, as by asyncio.
            if self._phase is _OPEN:
                self._held = deque([_EOF])
                self._reading = Reading.IDLE if self._paused else _ACTIVE
                self._deliver_held_soon()
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    # -- the end ---------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading, send what was written, then call ``connection_lost(None)``."""
        if self._phase is not _OPEN:
            return
        if self._corked:
            self._flush()
            if self._phase is not _OPEN:
                return  # the flush has failed, and ended it
        self._stop_reading()
        self._phase = _CLOSING
        if not self._unsent_bytes:
            self._lose_connection_soon(None)

    def _first_error(self, status: int) -> int:
        # A handle that the shim had to close (H6) ends its writes with ECANCELED.  The reason waits
        # among what was received, if nobody is reading.
        if status == errors.ECANCELED and self._held:
            last = self._held[-1]
            if isinstance(last, int) and last != _EOF:
                return last
        return status

    def _force_close(self, exc: BaseException | None) -> None:
        if self._conn_lost or self._phase is _CLOSED:
            return
        self._flush()
        if self._conn_lost:
            return  # the flush has failed: that error came first
        self._stop_reading()
        self._lose_connection_soon(exc)

    def _not_opened(self) -> None:
        super()._not_opened()
        self._leave_server()

    def _leave_server(self) -> None:
        server = self._server
        if server is not None:
            self._server = None
            server_detach(server, self)

    def _release(self) -> None:
        super()._release()
        self._corked = None
        if self._server is not None:
            self._leave_server()
        if self._empty_waiter is not None and not self._loop.is_closed():
            self._end_empty_waiter(ConnectionError("Connection is closed by peer"))

    def on_loop_close(self) -> None:
        """See ``Owner``."""
        super().on_loop_close()
        if self._server is not None:
            server_forget(self._server, self)


if speedups is not None:
    speedups.register_stream(
        StreamTransport,
        (
            Reading.ACTIVE,
            Reading.IDLE,
            Sending.OPEN,
            Cork.IN,
            Cork.OUT,
            Phase.OPEN,
            Phase.CLOSED,
            STREAM_TRY_WRITE,
            asyncio.BufferedProtocol,
            CALM_CALLBACKS,
        ),
    )
