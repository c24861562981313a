"""``struct sockaddr`` bytes as the addresses that ``socket`` returns, and back.

Follows the ``socket`` module's "Socket families": ``(host, port)`` for AF_INET, ``(host, port,
flowinfo, scope_id)`` for AF_INET6 (since 3.7 the host carries no ``%scope``), a ``str`` path or
abstract ``bytes`` name for AF_UNIX.
"""

from __future__ import annotations

import os
import socket
import struct
from functools import lru_cache
from operator import index

from .._platform import AF_UNIX, SOCKADDR_HAS_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["DECODABLE", "NUMERIC_FAMILIES", "decode", "decode_cached", "encode", "receivers", "remember", "resolve"]

_FAMILY = struct.Struct("xB" if SOCKADDR_HAS_LENGTH else "=H")
_INET = struct.Struct("!2xH4s")
_INET6 = struct.Struct("!2xHI16s")
_SCOPE_OFFSET = 24
_SCOPE = struct.Struct("=I")
_PATH_OFFSET = 2
_INET_BYTES = 16
_INET6_BYTES = 28
_HIGHEST_PORT = 0xFFFF
_HIGHEST_FLOWINFO = 0xFFFFF
_HIGHEST_SCOPE = 0xFFFFFFFF

#: The families that :func:`decode` knows; others are asked of a socket object.
DECODABLE = frozenset({int(socket.AF_INET), int(socket.AF_INET6), int(AF_UNIX)})

#: The families that :func:`encode` knows.
NUMERIC_FAMILIES = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})

# Peers of a busy server; an entry takes some 400 bytes.
_CACHED_ADDRESSES = 4096


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
        (scope_id,) = _SCOPE.unpack_from(raw, _SCOPE_OFFSET)
        return socket.inet_ntop(socket.AF_INET6, host), port, flowinfo, scope_id
    if family == AF_UNIX:
        path = raw[_PATH_OFFSET:]
        # unix(7): an abstract name starts with a zero byte and is as long as the address says;
        # elsewhere than on Linux no name does.
        if path[:1] == b"\0" and len(path) > 1 and not SOCKADDR_HAS_LENGTH:
            return path
        return os.fsdecode(path.split(b"\0", 1)[0])
    return None


#: :func:`decode` for packets: the same peers come again and again.
decode_cached = lru_cache(maxsize=_CACHED_ADDRESSES)(decode)


# typed: 80.0 == 80, and socket.sendto() takes only the one.
@lru_cache(maxsize=_CACHED_ADDRESSES, typed=True)
def encode(family: int, host: Any, port: Any, *rest: Any) -> bytes | None:
    """Return the ``struct sockaddr`` of an address that is plainly numeric and in range.

    None for every other: only ``socket`` itself knows what it makes of names, ``""`` and ``"<broadcast>"``,
    and which exception it has for what is no address.
    """
    if type(host) is not str or type(port) is not int or not 0 <= port <= _HIGHEST_PORT:
        return None
    try:
        packed = socket.inet_pton(family, host)
    except (OSError, ValueError):  # ValueError: a null character
        return None
    if family == socket.AF_INET:
        if rest:
            return None
        return _family_bytes(family, _INET_BYTES) + _INET.pack(port, packed)[_PATH_OFFSET:] + bytes(8)
    if len(rest) > 2 or any(type(part) is not int for part in rest):
        return None
    flowinfo, scope_id = (*rest, 0, 0)[:2]
    if not 0 <= flowinfo <= _HIGHEST_FLOWINFO or not 0 <= scope_id <= _HIGHEST_SCOPE:
        return None
    start = _family_bytes(family, _INET6_BYTES)
    return start + _INET6.pack(port, flowinfo, packed)[_PATH_OFFSET:] + _SCOPE.pack(scope_id)


# family -> (host, port) -> struct sockaddr.  Only plain tuples of a str and an int come in here, and are
# looked for: the types need not be compared, which makes it faster than encode()'s cache.
_receivers: dict[int, dict[tuple[str, int], bytes]] = {family: {} for family in NUMERIC_FAMILIES}


def receivers(family: int) -> dict[tuple[str, int], bytes]:
    """Return the table of what :func:`encode` has made of plain addresses of ``family``; see :func:`remember`."""
    return _receivers[family]


def remember(table: dict[tuple[str, int], bytes], address: tuple[str, int], raw: bytes) -> None:
    """Enter an address, a plain tuple of ``str`` and ``int``, into a table of :func:`receivers`."""
    if len(table) >= _CACHED_ADDRESSES:
        table.clear()
    table[address] = raw


def _family_bytes(family: int, size: int) -> bytes:
    return bytes((size, family)) if SOCKADDR_HAS_LENGTH else _FAMILY.pack(family)


def resolve(family: int, address: Any) -> bytes:
    """Return the ``struct sockaddr`` of any address, names looked up here and now, as ``socket.sendto`` does.

    Raises OSError (``gaierror``) for an unknown name, TypeError or OverflowError for what is no address.
    """
    if not isinstance(address, tuple) or not 2 <= len(address) <= (2 if family == socket.AF_INET else 4):
        raise TypeError(f"the address must be a tuple (host, port[, flowinfo, scope_id]), not {address!r}")
    host, port, *rest = address
    if not isinstance(host, (str, bytes, bytearray)):
        raise TypeError(f"the host must be str, bytes or bytearray, not {type(host).__name__}")
    numbers = [index(number) for number in (port, *rest)]
    if host == "<broadcast>" and family == socket.AF_INET:
        host = "255.255.255.255"
    name = host if isinstance(host, str) else bytes(host)
    flags = 0 if name else socket.AI_PASSIVE
    found = socket.getaddrinfo(name or None, 0, family, socket.SOCK_DGRAM, 0, flags)[0][4][0]
    # Of a zone in the name "sendto" makes nothing: scope_id says it, or it is 0.
    raw = encode(family, str(found).partition("%")[0], *numbers)
    if raw is None:
        raise OverflowError(f"port, flowinfo or scope_id is out of range: {address!r}")
    return raw
