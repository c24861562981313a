"""UDP transports.

The contract is asyncio's: "Datagram Transports" in its documentation, and where that is silent the selector
transport of the installed interpreter.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections import deque

from .._accelerator import speedups
from .._compat import DATAGRAM_HEADER_BYTES, SENDS_EMPTY_DATAGRAMS
from ..uv import errors, ring, sockaddr
from ..uv.core import SEND_DATAGRAM
from .endpoint import SocketInfo, SocketTransport
from .states import Phase, Reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..scheduling.callbacks import CallbackScope
    from ..uv.core import Core

__all__ = ["DatagramTransport"]

_BUFFER_TYPES = (bytes, bytearray, memoryview)
_EAGAIN = errors.EAGAIN
_HEADER = ring.DATAGRAM_HEADER_BYTES

# Enum members are looked up through their class's metaclass; these are plain globals.
_OPEN = Phase.OPEN
_CLOSING = Phase.CLOSING
_LOST = Phase.LOST
_CLOSED = Phase.CLOSED
_ACTIVE = Reading.ACTIVE


class PyDatagramBase:
    """What the accelerator's ``DatagramBase`` does in C.

    The subclass must provide ``_sendto_in_python()``.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def _sendto_in_python(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None: ...

    def _sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Do what ``sendto`` does."""
        self._sendto_in_python(data, addr)


DatagramBase = PyDatagramBase
if speedups is not None and not TYPE_CHECKING:
    DatagramBase = speedups.DatagramBase


class DatagramTransport(DatagramBase, SocketTransport, asyncio.DatagramTransport):
    """An IPv4 or IPv6 datagram socket: libuv receives into the slab, datagrams go straight to the kernel.

    Made by the loop; see :class:`SocketTransport` for ``key`` and ``user_sock``.  ``address`` is the
    ``remote_addr`` that every datagram goes to, or None; ``extra`` has ``'sockname'`` and ``'peername'``.

    Sending: what the kernel has no room for waits in ``_buffer``, in order.  While that is not empty, either its
    first datagram is with libuv (``_queued``), whose completion sends on, or :meth:`_continue` is scheduled.
    """

    _read_error = "Fatal read error on datagram transport"

    __slots__ = (
        "_address",
        "_buffer",
        "_buffer_size",
        "_connected",
        "_family",
        "_queued",
        "_receivers",
        "_scope",
        "_send",
    )

    def __init__(
        self,
        loop: Any,
        core: Core,
        scope: CallbackScope,
        key: int,
        info: SocketInfo,
        protocol: asyncio.BaseProtocol,
        address: Any,
        waiter: asyncio.Future[None] | None,
        extra: dict[str, Any],
        user_sock: socket.socket | None = None,
    ) -> None:
        super().__init__(loop, core, key, info, extra, None, user_sock)
        self._scope = scope  # the accelerator knows the core by it
        self._send = core.send_datagram
        self._address = address
        self._connected = bool(extra["peername"])
        self._family = info.family
        self._receivers = sockaddr.receivers(info.family)
        self._buffer: deque[tuple[bytes, bytes]] = deque()  # datagram, raw receiver
        self._buffer_size = 0
        self._queued = False
        self.set_protocol(protocol)
        self._open(waiter, protocol.connection_made, self)

    def _write_state(self) -> tuple[bool, int]:
        return bool(self._buffer), self._buffer_size

    # -- receiving -----------------------------------------------------------------

    def _start_receiving(self) -> int:
        return self._core.start_receiving(self._key)

    def _stop_receiving(self) -> int:
        return self._core.stop_receiving(self._key)

    def on_datagram(self, result: int, slab: Any, offset: int) -> None:
        """See ``Owner``."""
        if self._phase is not _OPEN:
            return
        item: tuple[bytes, Any] | OSError | RuntimeError
        if result < 0:
            item = errors.exception_for(result)
        else:
            begin = offset + _HEADER
            item = slab[begin : begin + result], sockaddr.decode_cached(ring.raw_address(slab, offset))
        if self._reading is not _ACTIVE or self._held:
            self._hold(item)
            return
        self._deliver_item(item)

    def _deliver_item(self, item: tuple[bytes, Any] | OSError | RuntimeError) -> None:
        """Hand over a datagram and its sender, or what the network had to say about an earlier one."""
        protocol = self._protocol
        context: contextvars.Context = self._read_context  # type: ignore[assignment]  # by _begin_reading()
        callback: Any = None
        try:
            if type(item) is tuple:
                callback = protocol.datagram_received
                context.run(callback, *item)
            else:
                callback = protocol.error_received
                context.run(callback, item)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report_callback(callback, exc)

    def _report_callback(self, callback: Any, exc: BaseException) -> None:
        # asyncio calls the protocol from a reader's Handle, which reports so; the transport stays open.
        # A nested turn in the callback may have closed it meanwhile.
        loop = self._loop if self._loop is not None else asyncio.get_running_loop()
        name = getattr(callback, "__qualname__", repr(callback))
        loop.call_exception_handler(
            {
                "message": f"Exception in callback {name}()",
                "exception": exc,
                "handle": asyncio.Handle(callback, (), loop, self._read_context),
                "transport": self,
            }
        )

    # -- sending -------------------------------------------------------------------

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send ``data`` to ``addr``, or where the transport's own ``remote_addr`` is; never blocks.

        Raises TypeError for what is not bytes-like, and ValueError for an ``addr`` other than ``remote_addr``.
        Errors of the socket go to ``protocol.error_received``; any other, such as that of an ``addr`` that is no
        address, goes to the exception handler and closes the transport, as in asyncio.
        """
        # A Python function, as StreamTransport.write().
        self._sendto(data, addr)

    def _sendto_in_python(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """See :meth:`sendto`."""
        if type(data) is not bytes and not isinstance(data, _BUFFER_TYPES):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if not data and not SENDS_EMPTY_DATAGRAMS:
            return
        if self._address:
            if addr not in (None, self._address):
                raise ValueError(f"Invalid address: must be None or {self._address}")
            addr = self._address
            if self._conn_lost:
                self._count_lost_write()
                return
        if self._phase is _CLOSED:
            return  # asyncio fails with an AttributeError here
        try:
            if not self._buffer and self._send_now(data, addr) != _EAGAIN:
                return
            if self._phase is _LOST:
                return  # the socket closes before there is room again
            receiver = self._receiver(addr)
            if receiver is None:
                receiver = sockaddr.resolve(self._family, addr)
        except OSError as exc:
            self._protocol.error_received(exc)
            return
        except (SystemExit, KeyboardInterrupt, RuntimeError):
            raise  # RuntimeError is the shim's refusal, the caller's mistake: another thread, a forked child
        except BaseException as exc:
            self._fatal_error(exc, "Fatal write error on datagram transport")
            return
        self._put(bytes(data), receiver)

    def _receiver(self, addr: Any) -> bytes | None:
        """Return ``addr`` as the kernel takes it; None if only the socket module knows how."""
        if self._connected:
            return b""
        if not isinstance(addr, tuple):
            return None
        # An equal key may be of other types: 80.0 == 80.
        plain = type(addr) is tuple and len(addr) == 2 and type(addr[0]) is str and type(addr[1]) is int
        if plain and (known := self._receivers.get(addr)) is not None:
            return known
        try:
            receiver = sockaddr.encode(self._family, *addr)
        except TypeError:  # not of this length, or with something unhashable in it
            return None
        if plain and receiver is not None:
            sockaddr.remember(self._receivers, addr, receiver)
        return receiver

    def _send_now(self, data: bytes | bytearray | memoryview, addr: Any) -> int:
        """Send one datagram: EAGAIN if there is no room; raises what ``socket.sendto`` would."""
        # After abort() libuv may still hold what was dropped, and takes no other before that.
        receiver = self._receiver(addr) if self._phase is not _LOST else None
        if type(data) is not bytes:
            if isinstance(data, memoryview) and not data.c_contiguous:
                receiver = None
            else:
                data = bytes(data)
        if receiver is None:
            return self._send_by_socket(data, addr)
        status = self._send(self._pointer, self._key, data, len(data), receiver, len(receiver))  # type: ignore[arg-type]
        if status < 0 and status != _EAGAIN:
            raise errors.exception_for(status)
        return status

    def _send_failed(self, status: int) -> None:
        """Tell of what the accelerator's sending has ended with."""
        exc = errors.exception_for(status)
        if not isinstance(exc, OSError):
            raise exc  # as in _sendto_in_python()
        self._protocol.error_received(exc)

    def _send_by_socket(self, data: bytes | bytearray | memoryview, addr: Any) -> int:
        self._core.fileno(self._key)  # raises where the shim would refuse the call
        sock: Any = self._sock
        try:
            return int(sock.send(data) if self._connected else sock.sendto(data, addr))
        except (BlockingIOError, InterruptedError):
            return _EAGAIN

    def _put(self, data: bytes, receiver: bytes) -> None:
        """Keep one datagram until the kernel has room for it."""
        self._buffer.append((data, receiver))
        self._buffer_size += len(data) + DATAGRAM_HEADER_BYTES
        if len(self._buffer) == 1:
            # asyncio's writer is a Handle made here.
            self._write_context = contextvars.copy_context()
            self._await_room()
        if self._buffer:
            self._maybe_pause_protocol()

    def _await_room(self) -> None:
        """Leave the first datagram to libuv, which sends it when the kernel has room."""
        status = self._core.queue_datagram(self._key, *self._buffer[0])
        self._queued = status >= 0
        if status < 0:
            self._first_failed(errors.exception_for(status))

    def on_written(self, status: int, size: int) -> None:
        """See ``Owner``."""
        self._queued = False
        if self._buffer:  # else aborted meanwhile
            # A Handle, for the words in which it reports an exception.
            asyncio.Handle(self._first_ended, (status,), self._loop, self._write_context)._run()

    def _first_ended(self, status: int) -> None:
        if status < 0:
            self._first_failed(errors.exception_for(status))
        else:
            self._pop_first()
            self._continue()

    def _pop_first(self) -> None:
        data, _ = self._buffer.popleft()
        self._buffer_size -= len(data) + DATAGRAM_HEADER_BYTES

    def _first_failed(self, exc: OSError | RuntimeError) -> None:
        self._pop_first()
        # In the next turn, as asyncio's writer, whatever error_received() does.
        self._continue_soon()
        self._protocol.error_received(exc)

    def _continue_soon(self) -> None:
        if self._loop is not None:  # else a nested turn has ended the transport
            self._loop.call_soon(self._continue, context=self._write_context)

    def _continue(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        if self._queued or self._phase not in (_OPEN, _CLOSING):
            return  # sent to meanwhile, or aborted
        while self._buffer:
            data, receiver = self._buffer[0]
            status = self._send(self._pointer, self._key, data, len(data), receiver, len(receiver))
            if status == _EAGAIN:
                self._await_room()
                break
            if status < 0:
                self._first_failed(errors.exception_for(status))
                return
            self._pop_first()
        try:
            self._maybe_resume_protocol()  # may send
        except BaseException:
            # KeyboardInterrupt, SystemExit: the end of a close() still comes.
            self._continue_soon()
            raise
        if not self._buffer and self._phase is _CLOSING:
            self._lose_connection_soon(None)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that wait, with 8 for each datagram from Python 3.13 on."""
        return self._buffer_size

    # -- the end ---------------------------------------------------------------------

    def close(self) -> None:
        """Stop receiving, send what waits, then call ``connection_lost(None)``."""
        if self._phase is not _OPEN:
            return
        self._stop_reading()
        self._phase = _CLOSING
        if not self._buffer:
            self._lose_connection_soon(None)

    def _force_close(self, exc: BaseException | None) -> None:
        if self._conn_lost or self._phase is _CLOSED:
            return
        self._buffer.clear()
        self._buffer_size = 0
        self._stop_reading()
        self._lose_connection_soon(exc)


if speedups is None:
    # Without a frame between.
    DatagramTransport.sendto = DatagramTransport._sendto_in_python  # type: ignore[method-assign]
else:
    speedups.register_datagram(
        DatagramTransport, (Phase.OPEN, Reading.ACTIVE, SEND_DATAGRAM, sockaddr.decode_cached, _EAGAIN)
    )
