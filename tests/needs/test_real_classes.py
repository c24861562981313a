"""Needs 15, 19, 27, 34: asyncio's own classes, whose attributes are plain."""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import trsock
from collections.abc import Iterable
from typing import Any
from unittest import mock

import pytest
from support import Recorder, in_time, pair, raw_connection, turns


async def test_need_19_transports_are_asyncios() -> None:
    async with pair() as ends:
        for transport in ends.client.transport, ends.server.transport:
            assert isinstance(transport, asyncio.Transport)
            assert isinstance(transport, asyncio.ReadTransport)
            assert isinstance(transport, asyncio.WriteTransport)
            assert not isinstance(transport, asyncio.DatagramTransport)


async def test_need_15_get_extra_info_socket() -> None:
    """A `TransportSocket`: all that asks, none of what would take the socket out of the transport's hands."""
    async with pair() as ends:
        sock = ends.client.transport.get_extra_info("socket")
        assert type(sock) is trsock.TransportSocket
        assert sock is ends.client.transport.get_extra_info("socket")
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert sock.fileno() > 2
        assert sock.getpeername() == ends.client.transport.get_extra_info("peername")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for name in "send", "recv", "close", "connect", "accept", "sendall":
            assert not hasattr(sock, name)
        with pytest.raises(ValueError, match=r"settimeout\(\): only 0 timeout is allowed"):
            sock.settimeout(1)


async def test_need_19_34_handles_are_asyncios() -> None:
    loop = asyncio.get_running_loop()
    handle = loop.call_soon(int)
    timer = loop.call_later(0, int)
    assert isinstance(handle, asyncio.Handle) and isinstance(timer, asyncio.TimerHandle)
    assert handle.get_context() is not None if hasattr(handle, "get_context") else True
    assert "int" in repr(handle)
    assert timer < loop.call_later(10, int)
    await turns()


@pytest.mark.parametrize("method", ["write", "close", "is_closing", "get_extra_info", "pause_reading"])
async def test_need_27_methods_can_be_patched(method: str) -> None:
    """`mock.patch.object`, as the suites of aiohttp and uvicorn do it."""
    async with raw_connection(Recorder) as (transport, protocol, peer):
        with mock.patch.object(transport, method) as patched:
            getattr(protocol.transport, method)("argument")
            patched.assert_called_once_with("argument")
        transport.anything = 7
        assert transport.anything == 7
        transport.write(b"as before")
        assert await peer.receive_all(9) == b"as before"


async def test_need_27_methods_can_be_patched_on_the_class() -> None:
    async with raw_connection(Recorder) as (transport, _, peer):
        with mock.patch.object(type(transport), "write", autospec=True) as patched:
            transport.write(b"caught")
            patched.assert_called_once_with(transport, b"caught")
        transport.write(b"sent")
        assert await peer.receive_all(4) == b"sent"


async def test_need_27_patched_writes_see_streams_and_tls(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Whoever writes through the transport goes through the patched method: StreamWriter and TLS too."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with far:
        _, writer = await asyncio.open_unix_connection(sock=near)
        with mock.patch.object(writer.transport, "write") as patched:
            writer.write(b"x")
            patched.assert_called_once_with(b"x")
        writer.close()
        await writer.wait_closed()
    async with pair(server_tls=server_tls, client_tls=client_tls) as ends:
        lower: Any = ends.client.transport._ssl_protocol._transport
        calls: list[int] = []
        original = lower.write

        def counting(data: bytes) -> None:
            calls.append(len(data))
            original(data)

        def counting_lines(parts: Iterable[bytes]) -> None:
            for part in parts:
                counting(part)

        with mock.patch.object(lower, "write", counting), mock.patch.object(lower, "writelines", counting_lines):
            ends.client.transport.write(b"secret")
            assert await ends.server.bytes_received(6) == b"secret"
        assert calls
        ends.client.transport.close()
        await in_time(ends.client.lost)


def test_need_34_a_subclass_and_a_patched_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Patching the loop's methods is seen by whoever calls them."""
    calls: list[Any] = []
    original = loop.call_soon

    def spying(callback: Any, *args: Any, **options: Any) -> asyncio.Handle:
        calls.append(callback)
        return original(callback, *args, **options)

    with mock.patch.object(loop, "call_soon", spying):
        future = loop.create_future()
        future.add_done_callback(lambda future: None)
        future.set_result(None)
    assert len(calls) == 1
    loop.run_until_complete(asyncio.sleep(0))
