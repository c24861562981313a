"""`start_tls` from either side of a connection: what it agrees on, and how it fails."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from support import Recorder, in_time, is_ours, pair, raw_connection, turns
from tls_support import SIDES, Contexts, Slow

pytestmark = pytest.mark.debug_variant


def options_of(contexts: Contexts, server_side: bool) -> dict[str, Any]:
    """The arguments of `start_tls` on that side."""
    if server_side:
        return {"sslcontext": contexts[0], "server_side": True}
    return {"sslcontext": contexts[1], "server_hostname": "localhost"}


async def upgrade(contexts: Contexts, client: Any, server: Any, protocols: tuple[Any, Any], **options: Any) -> Any:
    """Start TLS on both transports at once; returns the new ones."""
    loop = asyncio.get_running_loop()
    return await in_time(
        asyncio.gather(
            loop.start_tls(client, protocols[0], **options_of(contexts, False), **options),
            loop.start_tls(server, protocols[1], **options_of(contexts, True), **options),
        )
    )


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("kind", ["protocol", "buffered"])
async def test_both_sides(contexts: Contexts, unix: bool, kind: str) -> None:
    names: list[str | None] = []
    contexts[0].sni_callback = lambda tls, name, context: names.append(name)
    contexts[0].set_alpn_protocols(["h2", "http/1.1"])
    contexts[1].set_alpn_protocols(["http/1.1"])
    async with pair(unix=unix) as ends:
        protocols: Any = (Recorder(), Recorder()) if kind == "protocol" else (Slow(1000), Slow(50_000))
        below = ends.client.transport, ends.server.transport
        transports = await upgrade(contexts, *below, protocols)
        for transport, protocol, context in zip(transports, protocols, reversed(contexts), strict=True):
            assert protocol.events == [], "it counts as connected before"
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("sslcontext") is context
            assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert names == ["localhost"]
        whole = bytes(range(251)) * 800
        for transport in transports:
            transport.write(whole)
        while min(len(protocol.received) for protocol in protocols) < len(whole):
            await in_time(asyncio.sleep(0))
        assert protocols[0].received == protocols[1].received == whole
        transports[0].close()
        while any(protocol.events[-1:] != ["lost"] for protocol in protocols):
            await in_time(asyncio.sleep(0))
        assert [event for event in protocols[1].events if event != "data"] == ["eof", "lost"]
        assert all(transport.is_closing() for transport in below)


@SIDES
async def test_cancelled(contexts: Contexts, server_side: bool) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        task = asyncio.ensure_future(loop.start_tls(transport, Recorder(), **options_of(contexts, server_side)))
        await turns(4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.is_closing()
        hello = await peer.receive_to_eof()
        assert bool(hello) is not server_side
        await turns(4)


@SIDES
async def test_times_out(contexts: Contexts, server_side: bool) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        with pytest.raises(ConnectionAbortedError, match=r"SSL handshake is taking longer than 0\.01 seconds"):
            await loop.start_tls(transport, Recorder(), **options_of(contexts, server_side), ssl_handshake_timeout=0.01)
        assert transport.is_closing()
        await peer.receive_to_eof()
        await turns(4)


@SIDES
@pytest.mark.parametrize("reason", ["garbage", "end", "reset"])
async def test_the_peer_does_not_take_part(contexts: Contexts, server_side: bool, reason: str) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        protocol = Recorder()
        task = asyncio.ensure_future(loop.start_tls(transport, protocol, **options_of(contexts, server_side)))
        await turns(4)
        if reason == "garbage":
            peer.sock.sendall(b"220 no TLS here\r\n")
        elif reason == "end":
            peer.sock.close()
        else:
            peer.reset()
        with pytest.raises(ssl.SSLError if reason == "garbage" else ConnectionError):
            await in_time(task)
        await turns(4)
        # It counts as connected before.
        assert protocol.events in ([], ["lost"]) and transport.is_closing()


@SIDES
async def test_the_transport_is_aborted_meanwhile(contexts: Contexts, server_side: bool) -> None:
    """asyncio returns None, as if the peer had been verified."""
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (transport, _, peer):
        task = asyncio.ensure_future(loop.start_tls(transport, Recorder(), **options_of(contexts, server_side)))
        await turns(4)
        transport.abort()
        if is_ours():
            with pytest.raises(ConnectionAbortedError, match="SSL handshake was not finished"):
                await in_time(task)
        else:
            await in_time(task)
        await peer.receive_to_eof()
        await turns(4)


@SIDES
@pytest.mark.parametrize("method", ["abort", "close"])
async def test_ended_at_once(contexts: Contexts, server_side: bool, method: str) -> None:
    """In the turn in which `start_tls` returns; what was sent in clear text before has come through."""
    loop = asyncio.get_running_loop()
    async with pair() as ends:
        near, far = (ends.server, ends.client) if server_side else (ends.client, ends.server)
        near.transport.write(b"220 ready\r\n")
        await far.bytes_received(11)
        protocol, other = Recorder(), Recorder()
        answering = asyncio.ensure_future(loop.start_tls(far.transport, other, **options_of(contexts, not server_side)))
        transport = await in_time(loop.start_tls(near.transport, protocol, **options_of(contexts, server_side)))
        assert transport is not None
        transport.write(b"last words")
        getattr(transport, method)()
        assert await in_time(protocol.lost) is None
        if method == "close":
            assert await in_time(answering) is not None
            await in_time(other.lost)
            assert other.received == b"last words"
        else:
            # With TLS 1.3 a server may see the end before the handshake's.
            await asyncio.wait([answering])
            if answering.exception() is None:
                await in_time(other.lost)


async def test_a_protocol_that_begins_to_write(contexts: Contexts) -> None:
    """Both write as soon as they can; nothing of it is lost to the layer that comes between."""
    async with pair() as ends:
        protocols = Recorder(), Recorder()
        transports = await upgrade(contexts, ends.client.transport, ends.server.transport, protocols)
        for number, transport in enumerate(transports):
            transport.writelines([b"%d" % number, b"x" * 70_000])
        for number, protocol in enumerate(protocols):
            assert (await protocol.bytes_received(70_001))[:1] == b"%d" % (1 - number)


async def test_a_name_on_the_servers_side(contexts: Contexts) -> None:
    """It is the client's wish; on the server's side it says nothing."""
    loop = asyncio.get_running_loop()
    async with pair() as ends:
        protocols = Recorder(), Recorder()
        transports: Any = await in_time(
            asyncio.gather(
                loop.start_tls(ends.client.transport, protocols[0], **options_of(contexts, False)),
                loop.start_tls(
                    ends.server.transport, protocols[1], contexts[0], server_side=True, server_hostname="elsewhere"
                ),
            )
        )
        assert transports[0].get_extra_info("ssl_object").server_hostname == "localhost"
        assert transports[1].get_extra_info("ssl_object").server_hostname is None
        transports[1].write(b"hello")
        assert await protocols[0].bytes_received(5) == b"hello"
