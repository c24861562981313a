"""The loop's ``sock_recv`` and ``sock_recv_into``, and how the file of a Python socket comes to libuv."""

from __future__ import annotations

import socket

from .._compat import SelectorEventLoop
from .._platform import duplicate_socket
from ..transports.waits import SocketWaits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SocketMethods", "name_or_none", "take_descriptor"]


class SocketMethods(SelectorEventLoop):
    """Those of asyncio's socket methods that wait without a reader; the loop must provide ``_waits``."""

    _waits: SocketWaits

    async def sock_recv(self, sock: Any, n: int) -> bytes:
        """See ``asyncio.loop.sock_recv``."""
        found: Any = None if self._debug else self._waits.receive(sock, n)
        if found is None:
            return await super().sock_recv(sock, n)
        if type(found) is bytes:
            return found
        try:
            return await found.future  # type: ignore[no-any-return]
        except BaseException:
            self._waits.forget(found)
            raise

    async def sock_recv_into(self, sock: Any, buf: Any) -> int:
        """See ``asyncio.loop.sock_recv_into``."""
        found: Any = None if self._debug else self._waits.receive_into(sock, buf)
        if found is None:
            return await super().sock_recv_into(sock, buf)
        if type(found) is int:
            return found
        try:
            return await found.future  # type: ignore[no-any-return]
        except BaseException:
            self._waits.forget(found)
            raise

    async def sock_sendall(self, sock: Any, data: Any) -> None:
        """See ``asyncio.loop.sock_sendall``."""
        if type(sock) is socket.socket and type(data) is bytes and not self._debug:
            try:
                sent = sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        await super().sock_sendall(sock, data)

    def _add_reader(self, fd: Any, callback: Any, *args: Any) -> Any:
        handle = super()._add_reader(fd, callback, *args)
        self._waits.displace(fd)
        return handle

    def _remove_reader(self, fd: Any) -> bool:
        return super()._remove_reader(fd) or self._waits.displace(fd)


def name_or_none(getter: Any) -> Any:
    """Return ``sock.getsockname()`` or ``sock.getpeername()``, given as the method; None if it fails."""
    try:
        return getter()
    except OSError:
        return None


def take_descriptor(loop: Any, sock: socket.socket) -> tuple[int, socket.socket | None]:
    """Return a descriptor of ``sock``'s file for libuv to own, and ``sock`` if its transport must close it too.

    A socket that the loop made itself is emptied (``detach``).  One that the user gave (see
    :meth:`velociloop.Loop.create_connection`) stays usable until the transport closes it; libuv gets a duplicate,
    since the user may close theirs at any time and libuv aborts when a descriptor goes away under it (H6).
    """
    given = loop._is_user_socket(sock)
    fd = sock.fileno() if given else sock.detach()
    if type(fd) is not int:
        # A mock passes for the number 1 in C, and libuv would take over standard output.
        raise TypeError(f"the socket's descriptor is not an integer: {fd!r}")
    return (duplicate_socket(fd), sock) if given else (fd, None)
