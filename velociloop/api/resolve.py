"""Names and addresses: asyncio's executor, but not for what needs no look-up.

Facts (DESIGN "DNS", H11): a running ``uv_getaddrinfo`` cannot be cancelled, keeps the loop from closing and
needs libuv's thread pool, which a forked child does not survive.  So look-ups stay in asyncio's executor.
getaddrinfo(3) with a numeric host and a numeric port asks nobody: such calls return at once, without a thread.

A replaced ``socket.getaddrinfo`` may do anything, so it always runs in the executor.
"""

from __future__ import annotations

import socket
import sys
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["needs_no_lookup", "needs_no_reverse_lookup", "numeric_answer"]

# Another function by now, if somebody replaced it before velociloop was imported.
_GETADDRINFO: Any = socket.getaddrinfo if socket.getaddrinfo.__module__ == "socket" else None
_GETNAMEINFO: Any = socket.getnameinfo if socket.getnameinfo.__module__ == "_socket" else None

# Of plain calls; an entry takes some 500 bytes.
_REMEMBERED_ANSWERS = 256

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


class _Answer:
    """What ``socket.getaddrinfo`` has said to a call, and whether that call's audit event was this one's."""

    __slots__ = ("addresses", "is_new")

    def __init__(self, addresses: list[Any]) -> None:
        self.addresses = addresses
        self.is_new = True


# typed: 80.0 == 80, and socket.getaddrinfo() takes only the one.
@lru_cache(maxsize=_REMEMBERED_ANSWERS, typed=True)
def _remembered(host: Any, port: Any, family: Any, kind: Any, proto: Any) -> _Answer | None:
    if type(host) is not str or type(port) is not int or not _is_numeric_host(host):
        return None
    return _Answer(socket.getaddrinfo(host, port, family, kind, proto))


def numeric_answer(host: Any, port: Any, family: Any, kind: Any, proto: Any, flags: Any) -> list[Any] | None:
    """Return what ``socket.getaddrinfo`` says to a numeric host and port without flags (0); None: it is to be asked.

    Its answer depends on nothing but the arguments then, and most of what it takes (4 us) is making enum members:
    so it is asked once.  Raises what it raises.
    """
    if type(flags) is not int or socket.getaddrinfo is not _GETADDRINFO:
        return None
    try:
        answer = _remembered(host, port, family, kind, proto)
    except TypeError:
        return None  # not hashable, or not what it takes: it says so itself
    if answer is None:
        return None
    if answer.is_new:
        answer.is_new = False
    else:
        sys.audit("socket.getaddrinfo", host, port, int(family), int(kind), int(proto))
    return answer.addresses.copy()


def needs_no_reverse_lookup(flags: Any) -> bool:
    """The same for ``socket.getnameinfo``."""
    return socket.getnameinfo is _GETNAMEINFO and isinstance(flags, int) and flags & _NUMERIC_NAMES == _NUMERIC_NAMES
