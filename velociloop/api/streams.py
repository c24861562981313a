"""Transports for sockets: ``create_connection`` and its relatives end here.

asyncio's own code resolves, connects (Happy Eyeballs, ``all_errors``) and hands over a connected
socket; these functions give its file to libuv.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial

from .._platform import AF_UNIX
from ..transports.endpoint import SocketInfo
from ..transports.stream import StreamTransport
from ..uv import core as _core, sockaddr
from .sockets import name_or_none, take_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["make_accepted_transport", "make_socket_transport", "stream_kind"]


def stream_kind(sock: socket.socket) -> int:
    """Return which libuv handle type serves this socket's family."""
    return _core.STREAM_PIPE if sock.family == AF_UNIX else _core.STREAM_TCP


def make_socket_transport(
    loop: Any,
    sock: socket.socket,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: dict[str, Any] | None = None,
    server: Any = None,
) -> StreamTransport:
    """Return a transport on the connected socket ``sock``; see ``take_descriptor()`` for what becomes of it."""
    loop._ensure_fd_no_transport(sock)
    extra = dict(extra or {})
    extra["sockname"] = name_or_none(sock.getsockname)
    if "peername" not in extra:
        extra["peername"] = name_or_none(sock.getpeername)
    info = SocketInfo(sock)
    kind = stream_kind(sock)
    fd, user_sock = take_descriptor(loop, sock)
    key = loop._core.open_stream(kind, fd)
    try:
        return StreamTransport(
            loop, loop._core, loop._scope, key, info, protocol, waiter, extra, server, user_sock=user_sock
        )
    except BaseException:
        loop._core.close_handle(key)
        raise


def make_accepted_transport(
    loop: Any,
    info: SocketInfo,
    server: Any,
    tls: dict[str, Any] | None,
    key: int,
    raw_peername: bytes,
    protocol: asyncio.BaseProtocol,
) -> StreamTransport:
    """Return a transport on a connection that the shim has accepted."""
    extra: dict[str, Any] = {}
    if info.family not in sockaddr.DECODABLE:
        fd = loop._core.fileno(key)
        asking = socket.socket(info.family, info.type, info.proto, fileno=fd)
        extra = {"sockname": name_or_none(asking.getsockname), "peername": name_or_none(asking.getpeername)}
        asking.detach()
    if tls is not None:
        waiter = loop.create_future()
        from .tls import make_tls_protocol

        protocol = make_tls_protocol(loop, protocol, waiter=waiter, server_side=True, **tls)
    transport = StreamTransport(
        loop, loop._core, loop._scope, key, info, protocol, None, extra, server, raw_peername=raw_peername
    )
    if tls is not None:
        waiter.add_done_callback(partial(_handshake_ended, loop, transport, protocol))
    return transport


def _handshake_ended(
    loop: Any, transport: StreamTransport, protocol: Any, waiter: asyncio.Future[None]
) -> None:
    exc = None if waiter.cancelled() else waiter.exception()
    if exc is None and not waiter.cancelled():
        return
    transport.close()
    if exc is not None and loop.get_debug():
        loop.call_exception_handler(
            {
                "message": "Error on transport creation for incoming connection",
                "exception": exc,
                "protocol": protocol,
                "transport": transport,
            }
        )
