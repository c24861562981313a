"""TCP and Unix stream transports.

The contract is asyncio's: "Transports and Protocols" in its documentation, and where that is silent
the selector transport of the installed interpreter.
"""

import asyncio
import contextvars
import socket
import warnings
from asyncio.log import logger
from collections import deque
from typing import TYPE_CHECKING, Any

from .._compat import (
    SENDFILE_TRY_NATIVE,
    TransportSocket,
    server_attach,
    server_detach,
    set_result_unless_cancelled,
)
from ..uv import errors, sockaddr
from ..uv.registry import Owner
from .sending import SendingSide
from .states import Cork, Phase, Reading

if TYPE_CHECKING:
    from ..scheduling.callbacks import CallbackScope
    from ..uv.core import Core

__all__ = ["SocketInfo", "StreamTransport"]

_EOF = errors.EOF

# Enum members are looked up through their class's metaclass; these are plain globals.
_OPEN = Phase.OPEN
_CLOSING = Phase.CLOSING
_LOST = Phase.LOST
_CLOSED = Phase.CLOSED
_IDLE = Reading.IDLE
_ACTIVE = Reading.ACTIVE
_CORK_IN = Cork.IN


class SocketInfo:
    """What a transport must know to make a ``socket.socket`` object of its descriptor.

    Without ``family``, ``type`` and ``proto`` in hand, ``socket.socket(fileno=...)`` asks the kernel
    for each.
    """

    __slots__ = ("family", "proto", "type")

    def __init__(self, sock: socket.socket) -> None:
        self.family = int(sock.family)
        self.type = int(sock.type)
        self.proto = sock.proto


class StreamTransport(SendingSide, Owner):
    """A connected stream socket: libuv reads it into the slab, writes go straight to the kernel.

    Made by the loop; ``key`` names the shim's handle, which this transport owns from then on.
    ``user_sock`` is a socket object that the user gave and whose file the handle shares under
    another descriptor: it is closed with the transport, since the peer sees no end of the
    stream before both are.
    """

    _start_tls_compatible = True
    _sendfile_compatible = SENDFILE_TRY_NATIVE

    __slots__ = (
        "__dict__",  # tests patch methods of instances
        "__weakref__",
        "_buffered",
        "_filled_bytes",
        "_held",
        "_info",
        "_made_sock",
        "_paused",
        "_protocol_connected",
        "_raw_peername",
        "_raw_sockname",
        "_read_context",
        "_reading",
        "_server",
        "_sock_fd",
        "_user_sock",
    )

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
        super().__init__(loop, core, scope, key, extra)
        self._info = info
        self._user_sock = user_sock
        self._made_sock: socket.socket | None = None
        self._raw_peername = raw_peername
        self._raw_sockname: bytes | None = None
        self._sock_fd = core.fileno(key) if user_sock is None else user_sock.fileno()
        self._reading = _IDLE
        self._paused = False  # by pause_reading(), whatever there is to read
        # What was received but not taken, since reading was paused meanwhile; made when needed.
        self._held: deque[bytes | int] | None = None
        self._filled_bytes = 0  # of what is being delivered, in the BufferedProtocol's buffer
        self._read_context: contextvars.Context | None = None
        self._server = server
        self._protocol_connected = False
        self._buffered = False
        self.set_protocol(protocol)
        if server is not None:
            server_attach(server, self)
        loop._transports[self._sock_fd] = self
        core.registry.owners[key] = self
        self._phase = _OPEN

        # asyncio's order: connection_made, then reading, then whoever waits for the connection.
        # Each has a context of its own, copied from the one that made the transport.
        loop.call_soon(self._make_connection)
        loop.call_soon(self._begin_reading)
        if waiter is not None:
            loop.call_soon(set_result_unless_cancelled, waiter, None)

    def __repr__(self) -> str:
        info = [type(self).__name__, f"fd={self._sock_fd}", self._phase.value]
        if self._phase in (_OPEN, _CLOSING):
            reading = "polling" if self._reading is _ACTIVE else self._reading.value
            info.append(f"read={'paused' if self._paused else reading}")
            writing = "polling" if self._unsent_bytes else "idle"
            info.append(f"write=<{writing}, bufsize={self._unsent_bytes + self._corked_bytes}>")
            if self._cork is _CORK_IN:
                info.append("corked")
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._phase is not _CLOSED:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._release()

    # -- information ---------------------------------------------------------------

    @property
    def _sock(self) -> socket.socket | None:
        # asyncio's sendfile works on this.  None once closed, as there.
        if self._user_sock is not None:
            return self._user_sock if self._phase is not _CLOSED else None
        if self._phase is _CLOSED or self._core.closed:
            return None  # the number may be another file's by now
        if self._made_sock is None:
            info = self._info
            # It shares its descriptor with libuv, which closes it: _release() detaches it first.
            self._made_sock = socket.socket(info.family, info.type, info.proto, fileno=self._sock_fd)
            self._made_sock.setblocking(False)
        return self._made_sock

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``'socket'``, ``'sockname'``, ``'peername'``, or what the creator has put there.

        Follows "Transport information" in asyncio's documentation.  The ``'socket'`` is an
        ``asyncio.TransportSocket``; what is corked leaves before it is handed out.
        """
        extra = self._extra
        if name not in extra:
            if name == "sockname":
                self._learn_sockname()
                extra[name] = sockaddr.decode(self._raw_sockname or b"")
            elif name == "peername":
                extra[name] = sockaddr.decode(self._raw_peername or b"")
            elif name == "socket":
                extra[name] = TransportSocket(self._sock or self._closed_socket())
        if name == "socket" and self._corked:
            self._flush()
        return extra.get(name, default)

    def _learn_sockname(self) -> None:
        if self._raw_sockname is None:
            self._raw_sockname = self._core.sockname(self._key)

    def _closed_socket(self) -> socket.socket:
        info = self._info
        sock = socket.socket(info.family, info.type, info.proto)
        sock.close()
        return sock

    @property
    def _closing(self) -> bool:
        # Not ours, but asyncio's transports have it, and programs look at it.
        return self._phase is not _OPEN

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._phase is not _OPEN

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol that the next event goes to."""
        self._protocol = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)
        self._protocol_connected = True

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol; None after ``connection_lost``, as asyncio."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

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

    def is_reading(self) -> bool:
        """Return whether the transport would deliver what arrives."""
        return self._phase is _OPEN and not self._paused

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`; does nothing if paused or closing."""
        if self._phase is not _OPEN or self._paused:
            return
        if self._reading is _ACTIVE:
            self._core.stop_reading(self._key)  # raises in the wrong thread: nothing has changed then
            self._reading = _IDLE
        self._paused = True
        if self._loop.get_debug():
            logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        """Deliver again, first what had been received before the pause."""
        if self._phase is not _OPEN or not self._paused:
            return
        self._paused = False
        try:
            self._begin_reading()
        except RuntimeError:
            self._paused = True
            raise
        if self._loop.get_debug():
            logger.debug("%r resumes reading", self)

    def _begin_reading(self) -> None:
        if self._phase is not _OPEN or self._reading is not _IDLE or self._paused:
            return
        # asyncio's reader is a Handle made here: what it runs sees this context's variables.
        status = self._core.start_reading(self._key)  # raises in the wrong thread: nothing has changed then
        self._read_context = contextvars.copy_context()
        self._reading = _ACTIVE
        if self._held:
            # Runs before what the next poll receives, which is dispatched behind it.
            self._deliver_held_soon()
        if status < 0 and not self._held:
            self._fatal_error(errors.exception_for(status), "Fatal read error on socket transport")

    def enter_anew(self) -> None:
        """See ``Owner``: a nested turn comes while a callback of this transport may be running."""
        if self._read_context is not None:
            self._read_context = self._read_context.copy()
        if self._write_context is not None:
            self._write_context = self._write_context.copy()

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``."""
        if self._reading is _ACTIVE and result > 0 and not self._buffered and not self._held:
            context: contextvars.Context = self._read_context  # type: ignore[assignment]  # by _begin_reading()
            try:
                context.run(self._protocol.data_received, slab[offset : offset + result])
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                context.run(
                    self._fatal_error, exc, "Fatal error: protocol.data_received() call failed."
                )
            return
        if self._phase is not _OPEN:
            return
        if self._reading is not _ACTIVE or self._held:
            # Received by libuv before the pause reached it.
            if self._held is None:
                self._held = deque()
            self._held.append(slab[offset : offset + result] if result > 0 else result)
            return
        item = memoryview(slab)[offset : offset + result] if result > 0 else result
        self._read_context.run(self._deliver, item)  # type: ignore[union-attr]

    def _deliver_held_soon(self) -> None:
        self._loop.call_soon(self._deliver_held_in_context)

    def _deliver_held_in_context(self) -> None:
        # The readers' own, looked up late: enter_anew() may have put another in its place.
        if self._read_context is not None:
            self._read_context.run(self._deliver_held)

    def _deliver_held(self) -> None:
        while self._held and self._phase is _OPEN and self._reading is _ACTIVE:
            item = self._held.popleft()
            try:
                self._deliver(memoryview(item) if isinstance(item, bytes) else item)
            except BaseException:
                # KeyboardInterrupt, SystemExit: the rest comes in the next run.
                if self._held:
                    self._deliver_held_soon()
                raise

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
                self._reading = _IDLE if self._paused else _ACTIVE
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

    def abort(self) -> None:
        """Close at once; what the kernel has not taken is lost.  ``connection_lost(None)`` follows."""
        self._force_close(None)

    def _stop_reading(self) -> None:
        if self._reading is _ACTIVE:
            self._core.stop_reading(self._key)
        self._reading = _IDLE
        self._held = None

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        if not isinstance(exc, OSError):
            self._report(exc, message)
        elif self._phase is not _CLOSED and self._loop.get_debug():
            # The network's, not the program's: connection_lost() is told.
            logger.debug("%r: %s", self, message, exc_info=True)
        self._force_close(exc)

    def _report(self, exc: BaseException, message: str) -> None:
        # A nested turn in the callback that failed may have closed the transport meanwhile.
        loop = self._loop if self._loop is not None else asyncio.get_running_loop()
        loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

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

    def _lose_connection_soon(self, exc: BaseException | None) -> None:
        self._conn_lost += 1
        self._phase = _LOST
        self._loop.call_soon(self._lose_connection, exc)

    def _lose_connection(self, exc: BaseException | None) -> None:
        try:
            if self._protocol_connected:
                self._protocol.connection_lost(exc)
        finally:
            loop_transports, fd = self._loop._transports, self._sock_fd
            self._release()
            if loop_transports.get(fd) is self:
                del loop_transports[fd]
            self._protocol = None
            self._loop = None
            self._read_context = self._write_context = None
            self._end_empty_waiter(ConnectionError("Connection is closed by peer"))

    def _release(self) -> None:
        """Close the descriptor, and with it everything that shares it; for good."""
        self._close_handle()
        self._phase = _CLOSED
        self._corked = []
        self._held = None
        if self._user_sock is not None:
            self._user_sock.close()
        server, self._server = self._server, None
        if server is not None:
            server_detach(server, self)

    def _close_handle(self) -> None:
        if "sockname" not in self._extra:
            self._learn_sockname()
        if self._made_sock is not None:
            self._made_sock.detach()
            self._made_sock = None
        self._core.close_handle(self._key)

    def on_loop_close(self) -> None:
        """See ``Owner``.

        asyncio's loop.close() calls nobody and warns of nothing; ``__del__`` does, when the
        transport is collected, which the registry has prevented until now.
        """
        self._close_handle()
