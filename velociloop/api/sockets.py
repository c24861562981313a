"""How the file of a Python socket comes to libuv."""

import socket
from typing import Any

from .._platform import duplicate_socket

__all__ = ["name_or_none", "take_descriptor"]


def name_or_none(getter: Any) -> Any:
    """Return ``sock.getsockname()`` or ``sock.getpeername()``, given as the method; None if it fails."""
    try:
        return getter()
    except OSError:
        return None


def take_descriptor(loop: Any, sock: socket.socket) -> tuple[int, "socket.socket | None"]:
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
