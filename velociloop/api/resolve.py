"""Names and addresses: asyncio's executor, but not for what needs no look-up.

Facts (DESIGN "DNS", H11): a running ``uv_getaddrinfo`` cannot be cancelled, keeps the loop from closing and
needs libuv's thread pool, which a forked child does not survive.  So look-ups stay in asyncio's executor.
getaddrinfo(3) with a numeric host and a numeric port asks nobody: such calls return at once, without a thread.

A replaced ``socket.getaddrinfo`` may do anything, so it always runs in the executor.
"""

import socket
from typing import Any

__all__ = ["needs_no_lookup", "needs_no_reverse_lookup"]

# Another function by now, if somebody replaced it before velociloop was imported.
_GETADDRINFO: Any = socket.getaddrinfo if socket.getaddrinfo.__module__ == "socket" else None
_GETNAMEINFO: Any = socket.getnameinfo if socket.getnameinfo.__module__ == "_socket" else None

_NUMERIC_NAMES = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


def _is_numeric_host(host: object) -> bool:
    if host is None:
        return True  # the wildcard or the loopback address
    if isinstance(host, bytes):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return False
    if not isinstance(host, str):
        return False
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):  # ValueError: a null character
            continue
        return True
    return False


def _is_numeric_port(port: object) -> bool:
    # A service's name is looked up: in a file, or wherever nsswitch.conf(5) says.
    if isinstance(port, (str, bytes)):
        return port.isdigit() and port.isascii()
    return port is None or isinstance(port, int)


def needs_no_lookup(host: object, port: object, flags: int) -> bool:
    """Return whether ``socket.getaddrinfo`` is the standard library's and would answer without asking anybody."""
    if socket.getaddrinfo is not _GETADDRINFO or not _is_numeric_port(port):
        return False
    return bool(flags & socket.AI_NUMERICHOST) or _is_numeric_host(host)


def needs_no_reverse_lookup(flags: Any) -> bool:
    """The same for ``socket.getnameinfo``."""
    return socket.getnameinfo is _GETNAMEINFO and isinstance(flags, int) and flags & _NUMERIC_NAMES == _NUMERIC_NAMES
