"""The sending direction of a stream: corking, what the kernel does not take at once, and its end."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from asyncio.log import logger
from collections.abc import Iterable

from .._accelerator import speedups
from ..uv import errors
from .endpoint import SocketInfo, SocketTransport
from .states import Cork, Phase, Sending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..scheduling.callbacks import CallbackScope
    from ..uv.core import Core

__all__ = ["CALM_CALLBACKS", "SendingSide"]

# So many callbacks with a single write each, one after another, take the cork out again.
CALM_CALLBACKS = 8

_BUFFER_TYPES = (bytes, bytearray, memoryview)
_EAGAIN = errors.EAGAIN

# Enum members are looked up through their class's metaclass; these are plain globals.
_OPEN = Phase.OPEN
_CLOSING = Phase.CLOSING
_CLOSED = Phase.CLOSED
_SENDING_OPEN = Sending.OPEN
_CORK_IN = Cork.IN
_CORK_OUT = Cork.OUT


def _in_one_piece(data: Any) -> bytes | bytearray | memoryview:
    """Return ``data``, or its bytes if they do not lie side by side (``memoryview(...)[::2]``).

    Raises TypeError for what is not bytes-like.
    """
    if not isinstance(data, _BUFFER_TYPES):
        raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
    return bytes(data) if isinstance(data, memoryview) and not data.c_contiguous else data


class PySendingBase:
    """What the accelerator's ``SendingBase`` does in C.

    The subclass must provide ``_write_in_python()`` and ``_callback_end_in_python()``.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def _write_in_python(self, data: bytes | bytearray | memoryview) -> None: ...
        def _callback_end_in_python(self) -> None: ...

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        """Do what ``write`` does."""
        self._write_in_python(data)

    def on_callback_end(self) -> None:
        """See ``Writer``."""
        self._callback_end_in_python()


SendingBase = PySendingBase
if speedups is not None and not TYPE_CHECKING:
    SendingBase = speedups.SendingBase


class SendingSide(SendingBase, SocketTransport):
    """What a transport needs to send on one stream handle.

    The subclass must provide what :class:`SocketTransport` demands, and ``_first_error(status)``, which returns the
    error that made a write fail with ``status``; it sends nothing itself.
    """

    if TYPE_CHECKING:

        def _first_error(self, status: int) -> int: ...

    __slots__ = (
        "_callback_writes",
        "_calm_callbacks",
        "_cork",
        "_corked",
        "_corked_bytes",
        "_empty_waiter",
        "_scope",
        "_send",
        "_sending",
        "_unsent_bytes",
        "_wrote_in",
    )

    def __init__(
        self,
        loop: Any,
        core: Core,
        scope: CallbackScope,
        key: int,
        info: SocketInfo,
        extra: dict[str, Any] | None = None,
        raw_peername: bytes | None = None,
        user_sock: socket.socket | None = None,
    ) -> None:
        super().__init__(loop, core, key, info, extra, raw_peername, user_sock)
        self._scope = scope
        self._send = core.send
        self._sending = _SENDING_OPEN
        self._unsent_bytes = 0  # given to libuv, not sent yet
        # Written in this callback, not given to anybody yet; made when needed.
        self._corked: list[bytes] | None = None
        self._corked_bytes = 0
        self._cork = _CORK_OUT
        self._wrote_in = 0  # the callback of the last write that was not corked
        self._callback_writes = 0  # of this callback, while the cork is in
        self._calm_callbacks = 0
        self._empty_waiter: asyncio.Future[None] | None = None

    def _write_state(self) -> tuple[bool, int]:
        return bool(self._unsent_bytes), self._unsent_bytes + self._corked_bytes

    def _traits(self) -> list[str]:
        return ["corked"] if self._cork is _CORK_IN else []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See :meth:`SocketTransport.get_extra_info`; what is corked leaves before the ``'socket'`` is handed out."""
        found = super().get_extra_info(name, default)
        if name == "socket" and self._corked:
            self._flush()
        return found

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; never blocks.

        The first write of a callback goes to the kernel at once.  Raises TypeError for what is not
        bytes-like, and RuntimeError after :meth:`write_eof` and while ``sendfile`` is running.
        Errors of the connection are not raised but end it.
        """
        # A Python function, since mock.patch's autospec binds no other (need 27).
        self._write(data)

    def _write_in_python(self, data: bytes | bytearray | memoryview) -> None:
        """See :meth:`write`."""
        if type(data) is not bytes:
            data = _in_one_piece(data)
        if self._sending is not _SENDING_OPEN:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        if not data:
            return
        if self._conn_lost:
            self._count_lost_write()
            return
        scope = self._scope
        if scope.active:
            if self._cork is _CORK_IN or self._wrote_in == scope.serial:
                self._put_corked(data)
                return
            self._wrote_in = scope.serial
        elif self._corked:
            self._put_corked(data)
            self._flush()
            return
        if self._unsent_bytes:
            self._queue(data, 0)
            return
        size = len(data)
        if type(data) is bytes:
            sent = self._send(self._pointer, self._key, data, size)
        else:
            size = data.nbytes if isinstance(data, memoryview) else len(data)
            sent = self._core.try_write(self._key, data)
        if sent != size:
            self._after_try_write(sent, data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send all of ``list_of_data`` as one write would; errors as :meth:`write`."""
        if self._sending is not _SENDING_OPEN:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to writelines; sendfile is in progress")
        pieces = [_in_one_piece(piece) if type(piece) is memoryview else piece for piece in list_of_data]
        self.write(b"".join(pieces))

    def _put_corked(self, data: bytes | bytearray | memoryview) -> None:
        if self._scope.active:
            if not self._callback_writes:
                self._scope.corked.append(self)
                if self._cork is _CORK_OUT:
                    # The second write of this callback: from here on they leave together.
                    self._cork = _CORK_IN
                    self._calm_callbacks = 0
                    self._callback_writes = 1
            self._callback_writes += 1
        # A mutable object may change before it is sent; what the user gave is its bytes of now.
        if type(data) is not bytes:
            data = bytes(data)
        if self._corked is None:
            self._corked = []
        self._corked.append(data)
        self._corked_bytes += len(data)
        if self._unsent_bytes + self._corked_bytes > self._high_water:
            # H5: past the mark at once, so that the pause is felt by the one who writes.
            self._flush()

    def _callback_end_in_python(self) -> None:
        """See ``Writer``."""
        if self._callback_writes == 1:
            self._calm_callbacks += 1
            if self._calm_callbacks >= CALM_CALLBACKS:
                self._cork = _CORK_OUT
        else:
            self._calm_callbacks = 0
        self._callback_writes = 0
        if self._corked:
            self._flush()

    def on_abandon(self) -> None:
        """See ``Writer``."""
        self._corked = None
        self._corked_bytes = 0
        self._callback_writes = 0

    def _flush(self) -> None:
        """Hand what is corked to the kernel, in one system call; the rest to libuv."""
        corked = self._corked
        if not corked:
            return
        self._corked = None
        self._corked_bytes = 0
        if self._conn_lost:
            return
        last = corked.pop()
        first = b"".join(corked) if len(corked) != 1 else corked[0]
        if self._unsent_bytes:
            self._queue(first + last, 0)
            return
        if first and len(first) + len(last) > self._high_water:
            # Large: sent from where they are, in one vectored call.
            sent = self._core.try_write2(self._key, first, last)
            if sent >= len(first):
                sent -= len(first)
                first = b""
        else:
            last = first + last
            first = b""
            sent = self._core.try_write(self._key, last)
        if first:
            self._after_try_write(sent, first + last)
        elif sent != len(last):
            self._after_try_write(sent, last)

    def _after_try_write(self, sent: int, data: bytes | bytearray | memoryview) -> None:
        if sent >= 0:
            self._queue(data, sent)
        elif sent == _EAGAIN:
            self._queue(data, 0)
        else:
            errors.raise_if_refused(sent)
            self._fatal_error(errors.exception_for(sent), "Fatal write error on socket transport")

    def _queue(self, data: bytes | bytearray | memoryview, start: int) -> None:
        """Leave ``data[start:]`` to libuv, which sends it as the peer takes it."""
        if type(data) is not bytes:
            data = bytes(data)  # the caller may change its buffer when this returns
        if not self._unsent_bytes:
            # asyncio's writer is a Handle made here.
            self._write_context = contextvars.copy_context()
        taken, status = self._core.queue_write(self._key, data, start, self._low_water)
        self._unsent_bytes += taken
        if status < 0:
            errors.raise_if_refused(status)
            self._fatal_error(errors.exception_for(status), "Fatal write error on socket transport")
        elif self._unsent_bytes > self._high_water:
            self._maybe_pause_protocol()

    def on_written(self, status: int, size: int) -> None:
        """See ``Owner``."""
        self._unsent_bytes -= size
        if self._conn_lost or self._phase is _CLOSED:
            return  # aborted meanwhile: what is left ends with ECANCELED
        self._write_context.run(self._after_written, status)  # type: ignore[union-attr]  # made by _queue()

    def _after_written(self, status: int) -> None:
        if status < 0:
            exc = errors.exception_for(self._first_error(status))
            self._fatal_error(exc, "Fatal write error on socket transport")
            self._end_empty_waiter(exc)
            return
        self._maybe_resume_protocol()  # may write
        if self._corked and self._phase is _CLOSING:
            self._flush()  # if the kernel takes it all, nothing else will notice that it was the last
        if self._unsent_bytes or self._corked:
            return
        self._end_empty_waiter(None)
        if self._phase is _CLOSING:
            self._lose_connection_soon(None)
        elif self._sending is Sending.ENDING:
            try:
                self._shutdown()
            except OSError as exc:
                # The connection was reset meanwhile.  Reading has said so, or will.
                logger.debug("%r: shutdown() after the last write failed: %s", self, exc)

    @property
    def _eof(self) -> bool:
        # Not ours, but asyncio's transports have it, and programs look at it.
        return self._sending is not _SENDING_OPEN

    def can_write_eof(self) -> bool:
        """Return True: every stream socket has a sending end that closes alone."""
        return True

    def write_eof(self) -> None:
        """Send what was written, then end the sending direction; reading goes on."""
        if self._phase is not _OPEN or self._sending is not _SENDING_OPEN:
            return
        self._flush()
        if self._phase is not _OPEN or self._sending is not _SENDING_OPEN:
            return  # the flush has failed, or pause_writing() has ended it
        self._sending = Sending.ENDING
        if not self._unsent_bytes and not self._conn_lost:
            self._shutdown()

    def _shutdown(self) -> None:
        self._sending = Sending.ENDED
        self._core.shutdown(self._key)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that the kernel has not taken yet."""
        if self._corked:
            self._flush()
        # Once the end is scheduled nothing more is sent, whatever libuv still holds.
        if self._conn_lost or not self._unsent_bytes:
            return 0
        unsent = self._core.unsent(self._key)
        return unsent if unsent >= 0 else self._unsent_bytes

    # -- sendfile (asyncio's _sendfile_native works with these) ----------------------

    def _make_empty_waiter(self) -> asyncio.Future[None]:
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._flush()
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._empty_waiter = waiter
        waiter.add_done_callback(self._forget_cancelled_waiter)
        if not self._unsent_bytes:
            waiter.set_result(None)
        return waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None

    def _end_empty_waiter(self, exc: BaseException | None) -> None:
        waiter = self._empty_waiter
        if waiter is None or waiter.done():
            return
        if exc is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(exc)

    def _forget_cancelled_waiter(self, waiter: asyncio.Future[None]) -> None:
        # asyncio's sendfile waits outside of its try: nobody else would.
        if waiter.cancelled() and self._empty_waiter is waiter:
            self._empty_waiter = None


if speedups is None:
    # Without a frame between.
    SendingSide.write = SendingSide._write_in_python  # type: ignore[method-assign]
    SendingSide.on_callback_end = SendingSide._callback_end_in_python  # type: ignore[method-assign, assignment]
