"""TLS: which engine serves a connection, and ``start_tls``.

``VELOCILOOP_TLS`` in the environment says which, at each connection: ``velociloop`` (the default) or
``asyncio``, whose ``sslproto.SSLProtocol`` is also taken wherever somebody has replaced that class.
"""

from __future__ import annotations

import asyncio
import os
import ssl

from .. import _compat
from ..transports.tls import TlsProtocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ENGINE_VARIABLE", "make_tls_protocol", "start_tls"]

ENGINE_VARIABLE = "VELOCILOOP_TLS"


def _uses_asyncios() -> bool:
    engine = os.environ.get(ENGINE_VARIABLE) or "velociloop"
    if engine not in ("velociloop", "asyncio"):
        raise ValueError(f"{ENGINE_VARIABLE} must be one of velociloop, asyncio, not {engine!r}")
    return engine == "asyncio" or _compat.ssl_protocol() is not _compat.SSLProtocol


def make_tls_protocol(
    loop: Any,
    protocol: asyncio.BaseProtocol,
    sslcontext: ssl.SSLContext | None,
    waiter: asyncio.Future[None] | None,
    **options: Any,
) -> Any:
    """Return the TLS layer between a transport and ``protocol``; its ``_app_transport`` is for the latter.

    ``options``: ``server_side``, ``server_hostname``, ``call_connection_made``, ``ssl_handshake_timeout``,
    ``ssl_shutdown_timeout`` (seconds), as ``sslproto.SSLProtocol`` takes them.
    """
    if _uses_asyncios():
        return _compat.ssl_protocol()(loop, protocol, sslcontext, waiter, **options)
    return TlsProtocol(loop, loop._scope, protocol, sslcontext, waiter, **options)


async def start_tls(
    loop: Any,
    transport: Any,
    protocol: asyncio.BaseProtocol,
    sslcontext: ssl.SSLContext,
    **options: Any,
) -> Any:
    """Put TLS between ``transport`` and ``protocol``; return the transport for the latter.

    Errors as ``asyncio.loop.start_tls``; ``options`` as :func:`make_tls_protocol`.
    """
    if not isinstance(sslcontext, ssl.SSLContext):
        raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
    if not getattr(transport, "_start_tls_compatible", False):
        raise TypeError(f"transport {transport!r} is not supported by start_tls()")
    waiter = loop.create_future()
    tls = make_tls_protocol(loop, protocol, sslcontext, waiter, call_connection_made=False, **options)
    # Else something may come for the layer before it is told of its transport.
    transport.pause_reading()
    if options.get("server_side"):
        _move_what_a_stream_has(protocol, tls)
    app_transport = tls._app_transport
    transport.set_protocol(tls)
    connecting = loop.call_soon(tls.connection_made, transport)
    resuming = loop.call_soon(transport.resume_reading)
    try:
        await waiter
    except BaseException:
        transport.close()
        connecting.cancel()
        resuming.cancel()
        del waiter  # it has the exception, whose traceback has this frame
        raise
    return app_transport


def _move_what_a_stream_has(protocol: asyncio.BaseProtocol, tls: Any) -> None:
    """What a client sent right behind its STARTTLS is the beginning of its handshake (gh-142352)."""
    if isinstance(protocol, asyncio.StreamReaderProtocol):
        buffer = _compat.stream_buffer(protocol)
        if buffer:
            tls._incoming.write(buffer)
            buffer.clear()
