"""``struct sockaddr`` bytes as the addresses that ``socket`` returns.

Follows the ``socket`` module's "Socket families": ``(host, port)`` for AF_INET, ``(host, port,
flowinfo, scope_id)`` for AF_INET6 (since 3.7 the host carries no ``%scope``), a ``str`` path or
abstract ``bytes`` name for AF_UNIX.
"""

import os
import socket
import struct
from typing import Any

from .._platform import AF_UNIX, SOCKADDR_HAS_LENGTH

__all__ = ["DECODABLE", "decode"]

_FAMILY = struct.Struct("xB" if SOCKADDR_HAS_LENGTH else "=H")
_INET = struct.Struct("!2xH4s")
_INET6 = struct.Struct("!2xHI16s")
_SCOPE_OFFSET = 24
_PATH_OFFSET = 2

#: The families that :func:`decode` knows; others are asked of a socket object.
DECODABLE = frozenset({int(socket.AF_INET), int(socket.AF_INET6), int(AF_UNIX)})


def decode(raw: bytes) -> Any:
    """Return the address in ``raw``; None where there is none (an unnamed peer of a family
    that is not in :data:`DECODABLE`)."""
    if len(raw) < _PATH_OFFSET:
        return None
    (family,) = _FAMILY.unpack_from(raw)
    if family == socket.AF_INET:
        port, host = _INET.unpack_from(raw)
        return socket.inet_ntop(socket.AF_INET, host), port
    if family == socket.AF_INET6:
        port, flowinfo, host = _INET6.unpack_from(raw)
        (scope_id,) = struct.unpack_from("=I", raw, _SCOPE_OFFSET)
        return socket.inet_ntop(socket.AF_INET6, host), port, flowinfo, scope_id
    if family == AF_UNIX:
        path = raw[_PATH_OFFSET:]
        # unix(7): an abstract name starts with a zero byte and is as long as the address says;
        # elsewhere than on Linux no name does.
        if path[:1] == b"\0" and len(path) > 1 and not SOCKADDR_HAS_LENGTH:
            return path
        return os.fsdecode(path.split(b"\0", 1)[0])
    return None
