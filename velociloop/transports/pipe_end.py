"""What both ends of a pipe do: hold the file object, show themselves, and end."""

from __future__ import annotations

import asyncio
import warnings

from .states import Phase
from .watch import EventHandle, Watch, Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["PipeEnd"]


class PipeEnd(asyncio.BaseTransport):
    """The transport of ``pipe``, a file object that keeps its descriptor and that the transport closes once.

    The subclass calls :meth:`_take` before anything that may fail, and must provide ``_is_polling()``.
    """

    _extra: dict[str, Any]
    _loop: Any
    _protocol: Any
    _pipe: Any = None  # for __del__ of one that was never complete

    def _take(self, watches: Watches, pipe: Any, fd: int, protocol: asyncio.BaseProtocol) -> None:
        self._extra["pipe"] = pipe
        self._watches = watches
        self._watch: Watch | None = None
        self._fileno = fd
        self._protocol = protocol
        self._phase = Phase.OPEN
        self._reader: EventHandle | None = None
        self._pipe = pipe

    def _is_polling(self) -> bool:
        """Return whether the transport waits for its descriptor, for :func:`repr`."""
        raise NotImplementedError

    def _traits(self) -> list[str]:
        """Return what else :func:`repr` is to say of a transport that is not closed."""
        return []

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._phase is not Phase.OPEN:
            info.append("closed" if self._phase is Phase.CLOSED else "closing")
        info.append(f"fd={self._fileno}")
        if self._phase is not Phase.CLOSED:
            polling = "polling" if self._is_polling() else "idle"
            info.append("open" if self._watches.core.closed else polling)
            info += self._traits()
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._pipe is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._pipe.close()

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed, by its user or by the other end."""
        return self._phase is not Phase.OPEN

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set the protocol that the next event goes to."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol; None after ``connection_lost``, as asyncio."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop_reader(self)

    def _report(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    def _call_connection_lost(self, exc: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            # libuv first: it aborts if the descriptor goes away under a registration (H6).
            if self._watch is not None:
                self._watch.leave(self)
            self._phase = Phase.CLOSED
            pipe, self._pipe = self._pipe, None
            self._protocol = self._loop = self._watch = self._reader = None
            pipe.close()
