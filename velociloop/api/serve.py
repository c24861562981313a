"""Listening: what ``create_server`` and ``create_unix_server`` end in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial

from .._accelerator import speedups
from .._compat import ATTACH_TAKES_TRANSPORT, server_holds_plainly
from ..transports.endpoint import SocketInfo
from ..transports.listener import Listener
from ..uv import sockaddr
from .streams import make_accepted_transport, stream_kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["start_serving", "started", "stop_serving"]


async def started(server: asyncio.Server) -> asyncio.Server:
    """Return ``server``, serving.

    asyncio's create_server() lets a turn pass once it serves ("skip one loop iteration"); cancelled there, it
    leaves a server that nobody holds and nobody can close.
    """
    try:
        await server.start_serving()
    except BaseException:
        server.close()
        raise
    return server


def start_serving(
    loop: Any,
    protocol_factory: Callable[[], Any],
    sock: socket.socket,
    sslcontext: ssl.SSLContext | None,
    server: Any,
    backlog: int,
    ssl_handshake_timeout: float | None,
    ssl_shutdown_timeout: float | None,
) -> None:
    """Accept connections on ``sock`` until :func:`stop_serving`."""
    tls = None
    if sslcontext:
        tls = {
            "sslcontext": sslcontext,
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
    for other in list(loop._listeners.values()):
        # The user has closed that one's socket behind its server's back, and its number is this one's now.
        if other.fileno == sock.fileno():
            stop_serving(loop, other.sock)
    server_holds_plainly(server)
    info = SocketInfo(sock)
    connect: Any = partial(make_accepted_transport, loop, info, server, tls)
    if speedups is not None and tls is None and info.family in sockaddr.DECODABLE:
        connect = speedups.StreamMaker(
            connect,
            loop,
            loop._scope,
            server,
            loop._core.registry.owners,
            loop._transports.own,
            ATTACH_TAKES_TRANSPORT,
        )
    # asyncio accepts `backlog` connections an event, and one where it is 0.
    loop._listeners[id(sock)] = Listener(
        loop, loop._core, sock, stream_kind(sock), max(backlog, 1), protocol_factory, connect
    )


def stop_serving(loop: Any, sock: socket.socket) -> None:
    """Stop accepting on ``sock``; asyncio closes it then."""
    listener = loop._listeners.pop(id(sock), None)
    if listener is not None:
        listener.close()
