"""TCP and Unix stream transports.

The contract is asyncio's: "Transports and Protocols" in its documentation, and where that is silent
the selector transport of the installed interpreter.
"""

import asyncio
import contextvars
import socket
from asyncio.log import logger
from collections import deque
from typing import TYPE_CHECKING, Any

from .._accelerator import speedups
from .._compat import SENDFILE_TRY_NATIVE, server_attach, server_detach
from ..uv import errors
from ..uv.core import STREAM_TRY_WRITE
from .endpoint import SocketInfo
from .sending import CALM_CALLBACKS, SendingSide
from .states import Cork, Phase, Reading, Sending

if TYPE_CHECKING:
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
        core: "Core",
        scope: "CallbackScope",
        key: int,
        info: SocketInfo,
        protocol: asyncio.BaseProtocol,
        waiter: "asyncio.Future[None] | None" = None,
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
        if self._reading is not _ACTIVE or self._held:
            self._hold(slab[offset : offset + result] if result > 0 else result)
            return
        item = memoryview(slab)[offset : offset + result] if result > 0 else result
        self._read_context.run(self._deliver, item)  # type: ignore[union-attr]

    def _data_received_failed(self, exc: BaseException, context: contextvars.Context) -> None:
        # A nested turn may have closed the transport, and taken its own context: it is the one of the call.
        context.run(self._fatal_error, exc, "Fatal error: protocol.data_received() call failed.")

    def _deliver_item(self, item: bytes | int) -> None:
        view = memoryview(item) if isinstance(item, bytes) else item
        self._read_context.run(self._deliver, view)  # type: ignore[union-attr]  # by _begin_reading()

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
                    self._hold_rest(item[self._filled_bytes :])
                    self._deliver_held_soon()
                    raise
            else:
                size = len(item)
                try:
                    self._protocol.data_received(bytes(item))
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")
            item = item[size:]

    def _hold_rest(self, rest: memoryview) -> None:
        if self._held is None:
            self._held = deque()
        if rest:
            self._held.appendleft(bytes(rest))

    def _fill_buffer(self, data: memoryview) -> int:
        self._filled_bytes = 0
        try:
            buffer = self._protocol.get_buffer(-1)
            room = len(buffer)
            if not room:
                raise RuntimeError("get_buffer() returned an empty buffer")
            with memoryview(buffer) as view, view.cast("B") as target:
                size = min(target.nbytes, data.nbytes)
                target[:size] = data[:size]
            self._filled_bytes = size
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.get_buffer() call failed.")
            return data.nbytes
        try:
            self._protocol.buffer_updated(size)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")
        return size

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

    def _lose_connection(self, exc: BaseException | None) -> None:
        try:
            super()._lose_connection(exc)
        finally:
            self._end_empty_waiter(ConnectionError("Connection is closed by peer"))

    def _release(self) -> None:
        super()._release()
        self._corked = []
        server, self._server = self._server, None
        if server is not None:
            server_detach(server, self)


if speedups is not None:
    speedups.register_stream(
        StreamTransport, (Reading.ACTIVE, Sending.OPEN, Cork.IN, Cork.OUT, STREAM_TRY_WRITE, CALM_CALLBACKS)
    )
