"""TLS above any transport: an ``ssl.SSLObject`` between two ``ssl.MemoryBIO``.

Facts, and what follows from them:

- ``SSLObject.read(n)`` allocates ``n`` bytes first, and OpenSSL gives at most one record, 16 KiB, a call.  So
  we never ask for more than that, or than has just come in: asking for 256 KiB costs more than the cipher.
- A read that finds nothing raises SSLWantReadError, which costs more than decrypting 1 kB.  OpenSSL takes one
  record at a time from its BIO, so when the BIO is empty and the last read was given less than it asked for, or
  asked for a whole record's, there is nothing more, and we do not ask.

The contract is that of ``asyncio.sslproto.SSLProtocol`` in its latest form; docs/differences.md names the rest.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.log import logger

from .._compat import (
    SSL_HANDSHAKE_TIMEOUT,
    SSL_READ_HIGH_WATER_KIB,
    SSL_SHUTDOWN_TIMEOUT,
    openssl_error_queue_cleaner,
)
from .states import TlsState, Told
from .tls_sending import AGAIN, TlsSending
from .tls_transport import SSLTransport, water_marks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..scheduling.callbacks import CallbackScope

forget_openssl_errors = openssl_error_queue_cleaner()

__all__ = ["TlsProtocol"]

# A TLS record holds no more ("The length MUST NOT exceed 2^14 bytes", RFC 8446, 5.1).
RECORD_BYTES = 16384

# Enum members are looked up through their class's metaclass; these are plain globals.
_UNWRAPPED = TlsState.UNWRAPPED
_DO_HANDSHAKE = TlsState.DO_HANDSHAKE
_WRAPPED = TlsState.WRAPPED
_FLUSHING = TlsState.FLUSHING
_SHUTDOWN = TlsState.SHUTDOWN


def _seconds(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if value <= 0:
        raise ValueError(f"{name} should be a positive number, got {value}")
    return value


def _context_or_default(
    sslcontext: ssl.SSLContext | None, server_side: bool, server_hostname: str | None
) -> ssl.SSLContext:
    """Return ``sslcontext``, or for a client without one the default, which verifies the server."""
    if sslcontext:
        return sslcontext
    if server_side:
        raise ValueError("Server side SSL needs a valid SSLContext")
    sslcontext = ssl.create_default_context()
    if not server_hostname:
        # create_connection() lets only server_hostname="" come here: the user wants no name checked.
        sslcontext.check_hostname = False
    return sslcontext


class TlsProtocol(TlsSending):
    """The protocol of the transport below, and what :class:`SSLTransport` above works with.

    ``waiter`` is told when the handshake has ended.  Timeouts are in seconds, None for asyncio's defaults;
    ValueError if not positive.  Without ``call_connection_made`` the protocol has been connected already
    (``start_tls``).  Names that asyncio's users or tests reach for are those of ``SSLProtocol``.
    """

    __slots__ = (
        "_app_reading_paused",
        "_buffered",
        "_eof_received",
        "_extra",
        "_handshake_start_time",
        "_handshake_timeout",
        "_handshake_timer",
        "_incoming",
        "_incoming_high_water",
        "_incoming_low_water",
        "_shutdown_timeout",
        "_shutdown_timer",
        "_ssl_reading_paused",
        "_told",
        "_unwanted",
        "_waiter",
    )

    def __init__(
        self,
        loop: Any,
        scope: CallbackScope,
        app_protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | None,
        waiter: asyncio.Future[None] | None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        call_connection_made: bool = True,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        self._handshake_timeout = _seconds("ssl_handshake_timeout", ssl_handshake_timeout, SSL_HANDSHAKE_TIMEOUT)
        self._shutdown_timeout = _seconds("ssl_shutdown_timeout", ssl_shutdown_timeout, SSL_SHUTDOWN_TIMEOUT)
        context = _context_or_default(sslcontext, server_side, server_hostname)
        # Given to a server, the name would be taken for the client's wish (SNI); asyncio drops it.
        name = None if server_side else server_hostname or None
        super().__init__(loop, scope)
        self._incoming = ssl.MemoryBIO()
        self._sslobj = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=name
        )
        self._extra: dict[str, Any] = {"sslcontext": context}
        self._waiter = waiter
        self._told = Told.NOTHING if call_connection_made else Told.MADE
        self._eof_received = False
        self._unwanted = False
        self._handshake_start_time: float | None = None
        self._handshake_timer: Any = None
        self._shutdown_timer: Any = None
        self._ssl_reading_paused = False  # we have paused the transport below
        self._app_reading_paused = False
        self._set_read_buffer_limits(None, None)
        self._set_app_protocol(app_protocol)
        self._app_transport = SSLTransport(loop, self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.value} over {self._transport!r}>"

    def _set_app_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._app_protocol = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def _get_extra_info(self, name: str, default: Any = None) -> Any:
        if self._write_backlog:
            self._flush_corked()  # before somebody sends by other means
        if name in self._extra:
            return self._extra[name]
        if self._transport is not None:
            return self._transport.get_extra_info(name, default)
        return default

    def _wakeup_waiter(self, exc: BaseException | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if exc is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(exc)

    # -- the transport below: its beginning and its end ------------------------------

    def connection_made(self, transport: Any) -> None:
        """Begin the handshake."""
        self._transport = transport
        if self._loop.get_debug():
            logger.debug("%r starts SSL handshake", self)
            self._handshake_start_time = self._loop.time()
        self._state = _DO_HANDSHAKE
        self._handshake_timer = self._loop.call_later(self._handshake_timeout, self._check_handshake_timeout)
        self._do_handshake()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell the protocol above, or whoever waits for the handshake."""
        self._drop_written()
        self._outgoing.read()
        self._conn_lost += 1
        if self._app_transport is not None:
            self._app_transport._closed = True
        in_handshake = self._state is _DO_HANDSHAKE
        if not in_handshake and self._told in (Told.MADE, Told.EOF):
            self._told = Told.LOST
            self._loop.call_soon(self._app_protocol.connection_lost, exc)
        if exc is None and "ssl_object" not in self._extra:
            # asyncio wakes the waiter as if the peer had been verified; start_tls() then returns None.
            exc = ConnectionAbortedError("SSL handshake was not finished: the connection was closed")
        self._state = _UNWRAPPED
        self._transport = None
        self._app_transport = None
        self._app_protocol = None
        self._wakeup_waiter(exc)
        self._cancel_timers()
        if self._unwanted:
            self._let_go()

    def _let_go(self) -> None:
        """Keep nothing once the connection is lost: a second close() says that nobody will ask any more.

        A protocol that keeps its transport would else keep the context until the collector comes.
        """
        self._unwanted = True
        if self._transport is None and self._conn_lost:
            self._extra = {}
            self._sslobj = None

    def _cancel_timers(self) -> None:
        for timer in (self._handshake_timer, self._shutdown_timer):
            if timer is not None:
                timer.cancel()
        self._handshake_timer = self._shutdown_timer = None

    def data_received(self, data: bytes) -> None:
        """Decrypt ``data`` as far as it makes whole records, and go on from there."""
        self._incoming.write(data)
        if self._state is _WRAPPED:
            self._do_read(len(data))
        else:
            self._go_on()

    def _go_on(self) -> None:
        state = self._state
        if state is _WRAPPED:
            self._do_read()
        elif state is _DO_HANDSHAKE:
            self._do_handshake()
        elif state is _FLUSHING:
            self._do_flush()
        elif state is _SHUTDOWN:
            self._do_shutdown()

    def eof_received(self) -> bool | None:
        """Deliver what is left, and close; true if that must wait for resume_reading()."""
        self._eof_received = True
        if self._loop.get_debug():
            logger.debug("%r received EOF", self)
        try:
            if self._state is _DO_HANDSHAKE:
                self._on_handshake_complete(ConnectionResetError())
            elif self._state is _WRAPPED:
                self._flush_corked()
                if self._state is not _WRAPPED:
                    return None
                self._state = _FLUSHING
                if self._app_reading_paused:
                    return True
                self._do_flush()
            elif self._state is _FLUSHING:
                self._do_write()
                self._state = _SHUTDOWN
                self._do_shutdown()
            elif self._state is _SHUTDOWN:
                self._do_shutdown()
        except Exception:
            self._transport.close()
            raise
        return None

    # -- handshake -------------------------------------------------------------------

    def _check_handshake_timeout(self) -> None:
        if self._state is _DO_HANDSHAKE:
            self._fatal_error(
                ConnectionAbortedError(f"SSL handshake is taking longer than {self._handshake_timeout} seconds: "
                                       "aborting the connection")
            )

    def _do_handshake(self) -> None:
        try:
            self._sslobj.do_handshake()
        except AGAIN:
            self._process_outgoing()
        except ssl.SSLError as exc:
            self._on_handshake_complete(exc)
        else:
            self._on_handshake_complete(None)

    def _on_handshake_complete(self, failure: Exception | None) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        sslobj = self._sslobj
        try:
            if failure is not None:
                raise failure
            peercert = sslobj.getpeercert()
        except Exception as exc:
            failure = None
            self._state = _UNWRAPPED
            on_verifying = " on verifying the certificate" if isinstance(exc, ssl.CertificateError) else ""
            self._fatal_error(exc, f"SSL handshake failed{on_verifying}")
            self._wakeup_waiter(exc)
            return
        self._state = _WRAPPED
        if self._handshake_start_time is not None:
            took = self._loop.time() - self._handshake_start_time
            logger.debug("%r: SSL handshake took %.1f ms", self, took * 1e3)
        self._extra.update(
            peercert=peercert, cipher=sslobj.cipher(), compression=sslobj.compression(), ssl_object=sslobj
        )
        if self._told is Told.NOTHING:
            self._told = Told.MADE
            self._app_protocol.connection_made(self._app_transport)
        self._wakeup_waiter(None)
        if self._state is _WRAPPED or self._state is _FLUSHING:
            # The handshake's last bytes leave even if the protocol has paused reading.
            self._process_outgoing()
            self._do_read()

    # -- the end ---------------------------------------------------------------------

    def _start_shutdown(self) -> None:
        if self._state is _DO_HANDSHAKE:
            self._abort(None)
            return
        self._flush_corked()
        if self._state is _FLUSHING and self._app_reading_paused:
            # The stream has ended, and what had come waits for a resume_reading() that is not to be expected now.
            self._start_shutdown_timer()
            self._do_flush()
            return
        if self._state is not _WRAPPED:
            return
        if self._app_transport is not None:
            self._app_transport._closed = True
        self._state = _FLUSHING
        self._start_shutdown_timer()
        self._do_flush()

    def _start_shutdown_timer(self) -> None:
        self._shutdown_timer = self._loop.call_later(self._shutdown_timeout, self._check_shutdown_timeout)

    def _check_shutdown_timeout(self) -> None:
        if self._state is _FLUSHING or self._state is _SHUTDOWN:
            self._transport._force_close(TimeoutError("SSL shutdown timed out"))

    def _do_flush(self) -> None:
        self._do_read()
        if self._state is _FLUSHING:  # not aborted by whoever got that data
            self._state = _SHUTDOWN
            self._do_shutdown()

    def _do_shutdown(self) -> None:
        try:
            if not self._eof_received:
                self._sslobj.unwrap()
        except AGAIN:
            self._process_outgoing()
        except ssl.SSLError as exc:
            if self._shutdown_timer is not None:
                self._shutdown_timer.cancel()
                self._shutdown_timer = None
            self._fatal_error(exc)
        else:
            self._process_outgoing()
            self._call_eof_received()
            self._on_shutdown_complete()

    def _on_shutdown_complete(self) -> None:
        if self._transport is None or self._state is not _SHUTDOWN:
            return  # eof_received() has aborted it
        # The transport sends what it has before it closes, which a peer that does not read can delay for ever:
        # the timer runs on until connection_lost().
        if self._shutdown_timer is None:
            self._start_shutdown_timer()
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())  # paused or not: there is no later
        self._loop.call_soon(self._transport.close)

    def _abort(self, exc: BaseException | None) -> None:
        self._flush_corked()
        self._state = _UNWRAPPED
        if self._transport is not None:
            self._transport._force_close(exc)

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        forget_openssl_errors()
        if self._transport is not None:
            self._transport._force_close(exc)
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        elif not isinstance(exc, asyncio.CancelledError):
            self._loop.call_exception_handler(
                {"message": message, "exception": exc, "transport": self._transport, "protocol": self}
            )

    # -- reading ---------------------------------------------------------------------

    def _do_read(self, size: int = RECORD_BYTES) -> None:
        """Deliver what can be decrypted; ``size`` is the most that a first read can yield, as far as known."""
        try:
            if not self._app_reading_paused:
                if self._buffered:
                    self._read_into_buffer()
                else:
                    self._read_bytes(size)
                if self._state is _UNWRAPPED:
                    return
                if self._write_backlog and not self._callback_writes:
                    self._do_write()
                elif self._outgoing.pending:
                    self._process_outgoing()
            if self._ssl_reading_paused or self._incoming.pending:
                self._control_ssl_reading()
        except Exception as exc:
            self._fatal_error(exc, "Fatal error on SSL protocol")

    def _read_bytes(self, size: int) -> None:
        if not 0 < size < RECORD_BYTES:
            size = RECORD_BYTES
        read = self._sslobj.read
        try:
            data = read(size)
        except AGAIN:
            return
        at_end = not data
        if data and (len(data) == size < RECORD_BYTES or self._incoming.pending):
            data, at_end = self._read_more(data)
        if data:
            self._app_protocol.data_received(data)
        if at_end:  # the peer's close_notify
            self._call_eof_received()
            self._start_shutdown()

    def _read_more(self, first: bytes) -> tuple[bytes, bool]:
        """Return ``first`` with all that can be read behind it, and whether close_notify was there."""
        read, incoming = self._sslobj.read, self._incoming
        pieces = [first]
        try:
            while piece := read(RECORD_BYTES):
                pieces.append(piece)
                if not incoming.pending:
                    return b"".join(pieces), False
        except AGAIN:
            return b"".join(pieces) if len(pieces) > 1 else first, False
        return b"".join(pieces), True

    def _read_into_buffer(self) -> None:
        read, incoming = self._sslobj.read, self._incoming
        filled = 0
        count = 1
        buffer = self._app_protocol.get_buffer(incoming.pending)
        with memoryview(buffer) as view, view.cast("B") as target:
            room = target.nbytes
            if not room:
                raise RuntimeError("get_buffer() returned an empty buffer")
            try:
                while filled < room:
                    with target[filled:] as rest:
                        count = read(room - filled, rest)
                    filled += count
                    if not count or (filled < room and not incoming.pending):
                        break
                else:
                    # Perhaps there is more, for which the protocol must make room first.
                    self._loop.call_soon(self._read_again)
            except AGAIN:
                pass
        if filled:
            self._app_protocol.buffer_updated(filled)
        if not count:  # the peer's close_notify
            self._call_eof_received()
            self._start_shutdown()

    def _read_again(self) -> None:
        if self._state is _WRAPPED or self._state is _FLUSHING:
            self._do_read()

    def _call_eof_received(self) -> None:
        if self._told is not Told.MADE:
            return
        self._told = Told.EOF
        try:
            keep_open = self._app_protocol.eof_received()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Error calling eof_received()")
            return
        if keep_open:
            logger.warning("returning true from eof_received() has no effect when using ssl")

    # -- flow control ----------------------------------------------------------------

    def _pause_reading(self) -> None:
        self._app_reading_paused = True

    def _resume_reading(self) -> None:
        if self._app_reading_paused:
            self._app_reading_paused = False
            # What is left of the handshake needs no permission of the protocol.
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._state is not _DO_HANDSHAKE:
            self._go_on()

    def _control_ssl_reading(self) -> None:
        size = self._incoming.pending
        if self._ssl_reading_paused:
            if size <= self._incoming_low_water:
                self._ssl_reading_paused = False
                self._transport.resume_reading()
        elif size >= self._incoming_high_water and size:
            self._ssl_reading_paused = True
            self._transport.pause_reading()

    def _set_read_buffer_limits(self, high: int | None, low: int | None) -> None:
        self._incoming_high_water, self._incoming_low_water = water_marks(high, low, SSL_READ_HIGH_WATER_KIB)
