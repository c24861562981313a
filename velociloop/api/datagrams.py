"""Transports for datagram sockets: what ``create_datagram_endpoint`` ends in.

asyncio's own code makes the socket, binds and connects it.  Facts: libuv drops the length of a sender's address
(``uv__udp_recvmsg``), without which the names of Unix sockets cannot be told: an abstract one may end in zero
bytes, and a path has no end.  It sends to Unix addresses at their full length (``uv__udp_prep_pkt``), so that
an abstract name becomes another one.  Choice: IPv4 and IPv6 go to libuv, other families keep asyncio's transport.
"""

from __future__ import annotations

import asyncio
import socket

from ..transports.datagram import DatagramTransport
from ..transports.endpoint import SocketInfo
from ..uv import sockaddr
from .sockets import name_or_none, take_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["is_for_libuv", "make_datagram_transport"]


def is_for_libuv(sock: socket.socket) -> bool:
    """Return whether a ``uv_udp_t`` does justice to ``sock``."""
    return sock.family in sockaddr.NUMERIC_FAMILIES and sock.type == socket.SOCK_DGRAM


def make_datagram_transport(
    loop: Any,
    sock: socket.socket,
    protocol: asyncio.BaseProtocol,
    address: Any,
    waiter: asyncio.Future[None] | None,
    extra: dict[str, Any] | None,
) -> DatagramTransport:
    """Return a transport on ``sock``, for which :func:`is_for_libuv` holds; see ``take_descriptor()``."""
    loop._ensure_fd_no_transport(sock)
    extra = dict(extra or {})
    extra["sockname"] = name_or_none(sock.getsockname)
    if "peername" not in extra:
        extra["peername"] = name_or_none(sock.getpeername)
    info = SocketInfo(sock)
    fd, user_sock = take_descriptor(loop, sock)
    key = loop._core.open_udp(fd)
    try:
        return DatagramTransport(loop, loop._core, loop._scope, key, info, protocol, address, waiter, extra, user_sock)
    except BaseException:
        loop._core.close_handle(key)
        raise
