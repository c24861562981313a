"""The sending direction of TLS: what was written becomes records, and those go to the transport below.

Fact: each ``SSLObject.write`` makes a record of its own, with 22 bytes and more around it, and a pass through the
cipher.  So the writes of one callback are joined before they are encrypted, under the rules of a stream's cork
(``sending.py``, H5): the first leaves at once.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.log import logger
from collections import deque

from .._compat import LOG_THRESHOLD_FOR_CONNLOST_WRITES, SSL_WRITE_HIGH_WATER_KIB
from .sending import CALM_CALLBACKS
from .states import Cork, TlsState
from .tls_transport import SSLTransport, water_marks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..scheduling.callbacks import CallbackScope

__all__ = ["AGAIN", "TlsSending"]

#: asyncio's list: OpenSSL wants more input.  A write never lacks room, a MemoryBIO grows.
AGAIN = (ssl.SSLWantReadError, ssl.SSLSyscallError)

# Pieces that wait are joined up to this size; a larger one is encrypted from where it is.
JOINED_BYTES = 65536

# Enum members are looked up through their class's metaclass; these are plain globals.
_DO_HANDSHAKE = TlsState.DO_HANDSHAKE
_WRAPPED = TlsState.WRAPPED
_CORK_IN = Cork.IN
_CORK_OUT = Cork.OUT


class TlsSending(asyncio.Protocol):
    """What a TLS connection needs to send.

    The subclass must provide ``_fatal_error(exc, message)``, and set ``_sslobj``, whose output BIO is ``_outgoing``,
    ``_app_protocol`` and ``_app_transport``; it changes ``_state`` and ``_transport``.
    """

    if TYPE_CHECKING:

        def _fatal_error(self, exc: BaseException, message: str = "") -> None: ...

    __slots__ = (
        "__weakref__",
        "_app_protocol",
        "_app_transport",
        "_app_writing_paused",
        "_callback_writes",
        "_calm_callbacks",
        "_conn_lost",
        "_cork",
        "_loop",
        "_outgoing",
        "_outgoing_high_water",
        "_outgoing_low_water",
        "_scope",
        "_ssl_writing_paused",
        "_sslobj",
        "_state",
        "_transport",
        "_write_backlog",
        "_write_buffer_size",
        "_wrote_in",
    )

    def __init__(self, loop: Any, scope: CallbackScope) -> None:
        self._loop = loop
        self._scope = scope
        self._sslobj: Any = None
        self._outgoing = ssl.MemoryBIO()
        self._app_protocol: Any = None
        self._app_transport: SSLTransport | None = None
        self._transport: Any = None
        self._state = TlsState.UNWRAPPED
        self._conn_lost = 0  # writes that came too late, as asyncio counts them
        self._ssl_writing_paused = False  # the transport below has paused us
        self._app_writing_paused = False
        self._set_write_buffer_limits(None, None)
        # Written, but not encrypted: before the end of the handshake or of the callback (the cork), and
        # while OpenSSL wants to read first (a renegotiation).
        self._write_backlog: deque[bytes] = deque()
        self._write_buffer_size = 0
        self._cork = _CORK_OUT
        self._wrote_in = 0  # the callback of the last write that was not corked
        self._callback_writes = 0  # of this callback, while the cork is in
        self._calm_callbacks = 0

    def _write_appdata(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send ``data``, which is not empty and lies in one piece; or put it under the cork."""
        if self._state is not _WRAPPED:
            self._write_unready(data)
            return
        scope = self._scope
        if scope.active:
            if self._cork is _CORK_IN or self._wrote_in == scope.serial:
                self._put_corked(data)
                return
            self._wrote_in = scope.serial
        try:
            if self._write_backlog:
                self._put_in_backlog(data)
                self._do_write()
                return
            try:
                count = self._sslobj.write(data)
            except AGAIN:
                count = 0
            if count != len(data):
                self._put_in_backlog(data[count:])
            elif not (self._ssl_writing_paused or self._app_writing_paused):
                # Nothing is left here then, so there is no mark to pass.
                self._transport.write(self._outgoing.read())
                return
            self._process_outgoing()
        except Exception as exc:
            self._fatal_error(exc, "Fatal error on SSL protocol")

    def _write_unready(self, data: bytes | bytearray | memoryview) -> None:
        if self._state is _DO_HANDSHAKE:
            self._put_in_backlog(data)
            return
        if self._conn_lost >= LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("SSL connection is closed")
        self._conn_lost += 1

    def _put_in_backlog(self, data: bytes | bytearray | memoryview) -> None:
        # A mutable object may change before it is sent; what the user gave is its bytes of now.
        piece = bytes(data)
        self._write_backlog.append(piece)
        self._write_buffer_size += len(piece)

    def _put_corked(self, data: bytes | bytearray | memoryview) -> None:
        if not self._callback_writes:
            self._scope.corked.append(self)
            if self._cork is _CORK_OUT:
                # The second write of this callback: from here on they leave together.
                self._cork = _CORK_IN
                self._calm_callbacks = 0
                self._callback_writes = 1
        self._callback_writes += 1
        self._put_in_backlog(data)
        if self._outgoing.pending + self._write_buffer_size >= self._outgoing_high_water:
            # H5: at once, so that a pause is felt by the one who writes.
            self._flush_corked()

    def _flush_corked(self) -> None:
        """Encrypt and send what waits for the end of the callback."""
        if self._write_backlog and self._state is _WRAPPED:
            try:
                self._do_write()
            except Exception as exc:
                self._fatal_error(exc, "Fatal error on SSL protocol")

    def on_callback_end(self) -> None:
        """See ``Writer``."""
        if self._callback_writes == 1:
            self._calm_callbacks += 1
            if self._calm_callbacks >= CALM_CALLBACKS:
                self._cork = _CORK_OUT
        else:
            self._calm_callbacks = 0
        self._callback_writes = 0
        self._flush_corked()

    def on_abandon(self) -> None:
        """See ``Writer``."""
        self._drop_written()
        self._callback_writes = 0

    def _drop_written(self) -> None:
        self._write_backlog.clear()
        self._write_buffer_size = 0

    def _do_write(self) -> None:
        backlog = self._write_backlog
        try:
            while backlog:
                if len(backlog) > 1:
                    self._join_first_pieces()
                data = backlog[0]
                count = self._sslobj.write(data)
                self._write_buffer_size -= count
                if count < len(data):
                    backlog[0] = data[count:]
                else:
                    backlog.popleft()
        except AGAIN:
            pass  # with its answer to the peer in hand, OpenSSL takes the rest
        self._process_outgoing()

    def _join_first_pieces(self) -> None:
        backlog = self._write_backlog
        pieces = [backlog.popleft()]
        size = len(pieces[0])
        while backlog and size + len(backlog[0]) <= JOINED_BYTES:
            size += len(backlog[0])
            pieces.append(backlog.popleft())
        backlog.appendleft(b"".join(pieces))

    def _process_outgoing(self) -> None:
        if self._outgoing.pending and not self._ssl_writing_paused:
            self._transport.write(self._outgoing.read())
        self._control_app_writing()

    # -- flow control ----------------------------------------------------------------

    def pause_writing(self) -> None:
        """The transport below has enough: what is encrypted waits here, and counts."""
        self._ssl_writing_paused = True

    def resume_writing(self) -> None:
        """The transport below takes more."""
        self._ssl_writing_paused = False
        self._process_outgoing()

    def _control_app_writing(self) -> None:
        size = self._outgoing.pending + self._write_buffer_size
        if self._app_writing_paused:
            if size <= self._outgoing_low_water:
                self._app_writing_paused = False
                self._call_flow_control("resume_writing")
        elif size >= self._outgoing_high_water and size:
            self._app_writing_paused = True
            self._call_flow_control("pause_writing")

    def _call_flow_control(self, name: str) -> None:
        try:
            getattr(self._app_protocol, name)()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            self._loop.call_exception_handler(
                {
                    "message": f"protocol.{name}() failed",
                    "exception": exc,
                    "transport": self._app_transport,
                    "protocol": self,
                }
            )

    def _get_write_buffer_size(self) -> int:
        if self._write_backlog:
            self._flush_corked()
        return self._outgoing.pending + self._write_buffer_size

    def _set_write_buffer_limits(self, high: int | None, low: int | None) -> None:
        self._outgoing_high_water, self._outgoing_low_water = water_marks(high, low, SSL_WRITE_HIGH_WATER_KIB)
