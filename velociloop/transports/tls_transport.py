"""The transport that a protocol above TLS is given."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterable

from .._compat import SENDFILE_FALLBACK, FlowControlMixin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .tls import TlsProtocol

__all__ = ["SSLTransport", "water_marks"]


def water_marks(high: int | None, low: int | None, default_kib: int) -> tuple[int, int]:
    """Return (high, low) in bytes, each by asyncio's rule where it is None; ValueError if they do not fit."""
    if high is None:
        high = default_kib * 1024 if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return high, low


class SSLTransport(FlowControlMixin):
    """What was agreed on is decrypted for, and encrypted from, the protocol; ``ssl_protocol`` does both.  Programs tell
    a transport of asyncio's with TLS by "ssl" in its class's name, in either case.

    Like asyncio's, it cannot close its sending direction alone.
    """

    _start_tls_compatible = True
    _sendfile_compatible = SENDFILE_FALLBACK

    def __init__(self, loop: Any, ssl_protocol: TlsProtocol) -> None:
        # The mixin's own limits are not used: what waits is the engine's.
        self._closed = False
        self._loop = loop
        self._ssl_protocol = ssl_protocol

    def __repr__(self) -> str:
        tls = self._ssl_protocol
        state = "closing" if self.is_closing() else tls._state.value
        return f"<{type(self).__name__} {state} over {tls._transport!r}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if not self._closed:
            self._closed = True
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``'sslcontext'``, ``'ssl_object'``, ``'peercert'``, ``'cipher'``, ``'compression'``, or what is below.

        Follows "Transport information" in asyncio's documentation.
        """
        return self._ssl_protocol._get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol that the next event goes to."""
        self._ssl_protocol._set_app_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol; None after ``connection_lost``, as asyncio."""
        protocol: asyncio.BaseProtocol = self._ssl_protocol._app_protocol
        return protocol

    def is_closing(self) -> bool:
        """Return whether the transport, or the one below, is closing or closed."""
        below = self._ssl_protocol._transport
        return self._closed or (below is not None and below.is_closing())

    def close(self) -> None:
        """Send what was written, tell the peer (close_notify), and close when it has answered.

        ``connection_lost(None)`` follows, or ``connection_lost(TimeoutError)`` after ``ssl_shutdown_timeout``.
        """
        if not self._closed:
            self._ssl_protocol._start_shutdown()
            self._closed = True
        else:
            self._ssl_protocol._let_go()

    def abort(self) -> None:
        """Close at once, without a word to the peer.  ``connection_lost(None)`` follows."""
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        self._closed = True
        self._ssl_protocol._abort(exc)

    # -- reading -------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Return whether the transport would deliver what arrives."""
        return not self._ssl_protocol._app_reading_paused

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`."""
        self._ssl_protocol._pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, in the next turn."""
        self._ssl_protocol._resume_reading()

    def set_read_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how many encrypted bytes may wait, while reading is paused, before the transport below is paused."""
        self._ssl_protocol._set_read_buffer_limits(high, low)
        self._ssl_protocol._control_ssl_reading()

    def get_read_buffer_limits(self) -> tuple[int, int]:
        """Return (low, high) in bytes."""
        return self._ssl_protocol._incoming_low_water, self._ssl_protocol._incoming_high_water

    def get_read_buffer_size(self) -> int:
        """Return how many encrypted bytes wait."""
        return self._ssl_protocol._incoming.pending

    # -- writing -------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send ``data``; never blocks.  Raises TypeError for what is not bytes-like."""
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"data: expecting a bytes-like instance, got {type(data).__name__}")
            if type(data) is memoryview and (data.ndim != 1 or data.itemsize != 1 or not data.c_contiguous):
                data = bytes(data)
        if data:
            self._ssl_protocol._write_appdata(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send all of ``list_of_data`` as one write would; TypeError if a piece is not bytes-like."""
        self.write(b"".join([bytes(piece) if type(piece) is memoryview else piece for piece in list_of_data]))

    def write_eof(self) -> None:
        """Not possible: raises NotImplementedError."""
        raise NotImplementedError

    def can_write_eof(self) -> bool:
        """Return False."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks, in bytes, of ``pause_writing()`` and ``resume_writing()``.

        What the transport below has taken does not count.
        """
        self._ssl_protocol._set_write_buffer_limits(high, low)
        self._ssl_protocol._control_app_writing()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return (low, high) in bytes."""
        return self._ssl_protocol._outgoing_low_water, self._ssl_protocol._outgoing_high_water

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the transport below has not taken yet."""
        return self._ssl_protocol._get_write_buffer_size()

    @property
    def _protocol_paused(self) -> bool:  # type: ignore[override]  # the mixin's attribute is not used
        # asyncio's sendfile() looks at it before it begins.
        return self._ssl_protocol._app_writing_paused

    def _test__append_write_backlog(self, data: bytes) -> None:
        # CPython's test_ssl fills the backlog by this name.
        self._ssl_protocol._put_in_backlog(data)
