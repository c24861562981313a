"""What every transport on one socket does, whatever it carries: information, pausing, errors, its end."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import warnings
from asyncio.log import logger
from collections import deque
from collections.abc import Callable

from .._compat import (
    LOG_THRESHOLD_FOR_CONNLOST_WRITES,
    FlowControlMixin,
    TransportSocket,
    set_result_unless_cancelled,
)
from ..uv import errors, sockaddr
from ..uv.registry import Owner
from .states import Phase, Reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..uv.core import Core

__all__ = ["SocketInfo", "SocketTransport"]

# Enum members are looked up through their class's metaclass; these are plain globals.
_OPEN = Phase.OPEN
_CLOSING = Phase.CLOSING
_LOST = Phase.LOST
_CLOSED = Phase.CLOSED
_IDLE = Reading.IDLE
_ACTIVE = Reading.ACTIVE


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


class SocketTransport(FlowControlMixin, Owner):
    """The transport of one handle on a socket.

    ``key`` names the shim's handle, which this transport owns from then on.  ``user_sock`` is a socket object
    that the user gave and whose file the handle shares under another descriptor: it is closed with the
    transport.

    The subclass must provide ``_start_receiving()`` and ``_stop_receiving()``, which tell the shim,
    ``_deliver_item(item)``, which delivers what :attr:`_held` kept in the readers' context, ``_force_close(exc)``
    and ``_write_state()``; it ends its own ``__init__`` with :meth:`_open`.
    """

    _read_error = "Fatal read error on socket transport"

    _loop: Any
    _protocol: Any
    _own_extra: dict[str, Any] | None

    if TYPE_CHECKING:

        def _start_receiving(self) -> int:
            """Returns 0 or an error code of the socket; raises RuntimeError where the shim refuses."""

        def _stop_receiving(self) -> int: ...
        def _deliver_item(self, item: Any) -> None: ...
        def _force_close(self, exc: BaseException | None) -> None: ...
        def _write_state(self) -> tuple[bool, int]:
            """Whether libuv has something to send, and the number of bytes not sent yet."""

    # More than 30 attributes: beyond that number instances of a class no longer share their
    # dict's keys, and each look-up costs more.
    __slots__ = (
        "__dict__",  # tests patch methods of instances
        "__weakref__",
        "_conn_lost",
        "_core",
        "_held",
        "_info",
        "_key",
        "_made_sock",
        "_own_extra",
        "_paused",
        "_phase",
        "_pointer",
        "_protocol",
        "_protocol_connected",
        "_raw_peername",
        "_raw_sockname",
        "_read_context",
        "_reading",
        "_sock_fd",
        "_user_sock",
        "_write_context",
    )

    def __init__(
        self,
        loop: Any,
        core: Core,
        key: int,
        info: SocketInfo,
        extra: dict[str, Any] | None = None,
        raw_peername: bytes | None = None,
        user_sock: socket.socket | None = None,
    ) -> None:
        self._phase = _CLOSED  # until the subclass is complete: for __del__ after a failure
        super().__init__(extra, loop)
        self._core = core
        self._key = key
        self._pointer = core.pointer
        self._info = info
        self._user_sock = user_sock
        self._made_sock: socket.socket | None = None
        self._raw_peername = raw_peername
        self._raw_sockname: bytes | None = None
        self._sock_fd = core.fileno(key) if user_sock is None else user_sock.fileno()
        self._conn_lost = 0  # writes since connection_lost was scheduled, as asyncio counts them
        self._reading = _IDLE
        self._paused = False  # by pause_reading(), whatever there is to read
        # What was received but not taken, since reading was paused meanwhile; made when needed.
        self._held: deque[Any] | None = None
        self._read_context: contextvars.Context | None = None
        self._write_context: contextvars.Context | None = None
        self._protocol_connected = False

    def _open(
        self, waiter: asyncio.Future[None] | None, connection_made: Callable[..., None], *args: Any
    ) -> None:
        """Go into service; ``connection_made(*args)`` is to tell the protocol."""
        loop = self._loop
        loop._transports.own[self._sock_fd] = self
        self._core.registry.owners[self._key] = self
        self._phase = _OPEN
        # asyncio's order: connection_made, then reading, then whoever waits for the connection.
        # Each has a context of its own, copied from the one that made the transport.
        try:
            loop.call_soon(connection_made, *args)
            loop.call_soon(self._begin_reading)
            if waiter is not None:
                loop.call_soon(set_result_unless_cancelled, waiter, None)
        except BaseException:
            self._not_opened()
            raise

    def _not_opened(self) -> None:
        # Whoever has replaced call_soon() refuses.  The caller closes the handle; nobody shall find, or wait for, this.
        self._loop._transports.own.pop(self._sock_fd, None)

    def __repr__(self) -> str:
        info = [type(self).__name__, f"fd={self._sock_fd}", self._phase.value]
        if self._phase in (_OPEN, _CLOSING):
            reading = "polling" if self._reading is _ACTIVE else self._reading.value
            info.append(f"read={'paused' if self._paused else reading}")
            polling, size = self._write_state()
            info.append(f"write=<{'polling' if polling else 'idle'}, bufsize={size}>")
            info += self._traits()
        return f"<{' '.join(info)}>"

    def _traits(self) -> list[str]:
        """Return what else :func:`repr` is to say of an open transport."""
        return []

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._phase is not _CLOSED:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._release()

    # -- information ---------------------------------------------------------------

    @property
    def _extra(self) -> dict[str, Any]:
        # asyncio's transports have it, and programs look at it.  Made when needed: it is 80 bytes.
        if self._own_extra is None:
            self._own_extra = {}
        return self._own_extra

    @_extra.setter
    def _extra(self, extra: dict[str, Any] | None) -> None:
        self._own_extra = extra or None

    @property
    def _sock(self) -> socket.socket | None:
        # asyncio's sendfile works on this.  None once closed, as there.
        if self._user_sock is not None:
            return self._user_sock if self._phase is not _CLOSED else None
        if self._phase is _CLOSED or self._core.closed:
            return None  # the number may be another file's by now
        if self._made_sock is None:
            info = self._info
            # It shares its descriptor with libuv, which closes it: _close_handle() detaches it first.
            self._made_sock = socket.socket(info.family, info.type, info.proto, fileno=self._sock_fd)
            self._made_sock.setblocking(False)
        return self._made_sock

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``'socket'``, ``'sockname'``, ``'peername'``, or what the creator has put there.

        Follows "Transport information" in asyncio's documentation.  The ``'socket'`` is an
        ``asyncio.TransportSocket``.
        """
        extra = self._extra
        if name not in extra:
            if name == "sockname":
                if self._raw_sockname is None:
                    self._raw_sockname = self._core.sockname(self._key)
                extra[name] = sockaddr.decode(self._raw_sockname)
            elif name == "peername":
                extra[name] = sockaddr.decode(self._raw_peername or b"")
            elif name == "socket":
                extra[name] = TransportSocket(self._sock or self._closed_socket())
        return extra.get(name, default)

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
        self._protocol_connected = True

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol; None after ``connection_lost``, as asyncio."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    # -- reading -------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Return whether the transport would deliver what arrives."""
        return self._phase is _OPEN and not self._paused

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`; does nothing if paused or closing."""
        if self._phase is not _OPEN or self._paused:
            return
        if self._reading is _ACTIVE:
            self._stop_receiving()  # raises in the wrong thread: nothing has changed then
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
        self._begin_reading_in_python()

    def _begin_reading_in_python(self) -> None:
        if self._phase is not _OPEN or self._reading is not _IDLE or self._paused:
            return
        # asyncio's reader is a Handle made here: what it runs sees this context's variables.
        status = self._start_receiving()  # raises in the wrong thread: nothing has changed then
        self._read_context = contextvars.copy_context()
        self._reading = _ACTIVE
        if self._held:
            # Runs before what the next poll receives, which is dispatched behind it.
            self._deliver_held_soon()
        if status < 0 and not self._held:
            self._fatal_error(errors.exception_for(status), self._read_error)

    def _stop_reading(self) -> None:
        if self._reading is _ACTIVE:
            self._stop_receiving()
        self._reading = _IDLE
        self._held = None

    def enter_anew(self) -> None:
        """See ``Owner``: a nested turn comes while a callback of this transport may be running."""
        if self._read_context is not None:
            self._read_context = self._read_context.copy()
        if self._write_context is not None:
            self._write_context = self._write_context.copy()

    def _hold(self, item: Any) -> None:
        """Keep what libuv received before a pause reached it."""
        if self._held is None:
            self._held = deque()
        self._held.append(item)

    def _deliver_held_soon(self) -> None:
        self._loop.call_soon(self._deliver_held)

    def _deliver_held(self) -> None:
        while self._held and self._phase is _OPEN and self._reading is _ACTIVE:
            item = self._held.popleft()
            try:
                self._deliver_item(item)
            except BaseException:
                # KeyboardInterrupt, SystemExit: the rest comes in the next run.
                if self._held:
                    self._deliver_held_soon()
                raise

    # -- the end ---------------------------------------------------------------------

    def abort(self) -> None:
        """Close at once; what the kernel has not taken is lost.  ``connection_lost(None)`` follows."""
        self._force_close(None)

    def _count_lost_write(self) -> None:
        if self._conn_lost >= LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("socket.send() raised exception.")
        self._conn_lost += 1

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

    def _lose_connection_soon(self, exc: BaseException | None) -> None:
        self._conn_lost += 1
        self._phase = _LOST
        self._loop.call_soon(self._lose_connection, exc)

    def _lose_connection(self, exc: BaseException | None) -> None:
        try:
            if self._protocol_connected:
                self._protocol.connection_lost(exc)
        finally:
            of_loop, fd = self._loop._transports.own, self._sock_fd
            self._release()
            if of_loop.get(fd) is self:
                del of_loop[fd]
            self._protocol = None
            self._loop = None
            self._read_context = self._write_context = None

    def _release(self) -> None:
        """Close the descriptor, and with it everything that shares it; for good."""
        self._close_handle()
        self._phase = _CLOSED
        self._held = None
        if self._user_sock is not None:
            self._user_sock.close()

    def _close_handle(self) -> None:
        if self._made_sock is not None:
            self._made_sock.detach()
            self._made_sock = None
        if self._raw_sockname is None and "sockname" not in (self._own_extra or ()):
            self._raw_sockname = self._core.close_stream(self._key)  # whoever asks later is told
        else:
            self._core.close_handle(self._key)

    def on_loop_close(self) -> None:
        """See ``Owner``.

        asyncio's loop.close() calls nobody and warns of nothing; ``__del__`` does, when the
        transport is collected, which the registry has prevented until now.
        """
        self._close_handle()
