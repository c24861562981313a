"""write_eof and eof_received: one direction ends, the other goes on."""

from __future__ import annotations

import asyncio
import functools
import socket
import time

import pytest
from support import Recorder, in_time, pair, raw_connection, turns

pytestmark = pytest.mark.debug_variant

keeping_open = functools.partial(Recorder, keep_open=True)


async def test_write_eof_sends_the_buffer_then_eof() -> None:
    whole = bytes(3_000_000)
    async with raw_connection(keeping_open, small_buffers=True) as (transport, protocol, peer):
        assert transport.can_write_eof()
        transport.write(whole)
        transport.write_eof()
        assert not transport.is_closing()
        assert await peer.receive_to_eof() == whole
        peer.sock.sendall(b"answer after the end")
        assert await protocol.bytes_received(20) == b"answer after the end"
        peer.sock.close()
        await in_time(protocol.eof)
        assert not protocol.lost.done()
        transport.close()
        assert await in_time(protocol.lost) is None


async def test_write_eof_twice_is_once() -> None:
    async with raw_connection(Recorder) as (transport, _, peer):
        transport.write_eof()
        transport.write_eof()
        assert await peer.receive_to_eof() == b""


@pytest.mark.parametrize("method", ["write", "writelines"])
async def test_writing_after_write_eof_is_refused(method: str) -> None:
    async with raw_connection(Recorder) as (transport, _, _peer):
        transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call \w+\(\) after write_eof\(\)"):
            getattr(transport, method)(b"x" if method == "write" else [b"x"])


async def test_eof_received_false_closes() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        assert await in_time(protocol.lost) is None
        assert transport.is_closing()
        assert await peer.receive_to_eof() == b""


async def test_eof_received_none_closes() -> None:
    class Plain(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.get_running_loop().create_future()

        def connection_lost(self, exc: BaseException | None) -> None:
            self.lost.set_result(exc)

    async with raw_connection(Plain) as (_, protocol, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        assert await in_time(protocol.lost) is None


async def test_eof_received_true_keeps_the_sending_direction() -> None:
    async with raw_connection(keeping_open) as (transport, protocol, peer):
        peer.sock.sendall(b"question")
        peer.sock.shutdown(socket.SHUT_WR)
        await in_time(protocol.eof)
        await turns()
        assert not transport.is_closing() and protocol.received == b"question"
        for _ in range(3):
            transport.write(b"answer")
            await turns()
        transport.close()
        assert await peer.receive_to_eof() == b"answer" * 3
        assert await in_time(protocol.lost) is None
        assert protocol.events == ["made", "data", "eof", "lost"]


@pytest.mark.ours("asyncio tells the EOF once more after pause_reading() and resume_reading()")
async def test_eof_is_told_once() -> None:
    async with raw_connection(keeping_open) as (transport, protocol, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        await in_time(protocol.eof)
        assert transport.is_reading()
        transport.pause_reading()
        transport.resume_reading()
        await turns(5)
        assert protocol.events.count("eof") == 1


async def test_after_eof_the_loop_sleeps() -> None:
    """A descriptor at EOF stays readable; nobody may poll for it any more."""
    async with raw_connection(keeping_open) as (_, protocol, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        await in_time(protocol.eof)
        before = time.thread_time()
        await asyncio.sleep(0.2)
        assert time.thread_time() - before < 0.1


async def test_both_ends_half_close() -> None:
    async with pair(keeping_open, keeping_open) as ends:
        ends.client.transport.write(b"request")
        ends.client.transport.write_eof()
        await in_time(ends.server.eof)
        ends.server.transport.write(b"response")
        ends.server.transport.write_eof()
        await in_time(ends.client.eof)
        assert bytes(ends.client.received) == b"response" and bytes(ends.server.received) == b"request"
        await turns()
        assert not ends.client.lost.done() and not ends.server.lost.done()
        ends.client.transport.close()
        ends.server.transport.close()
        assert await in_time(ends.client.lost) is None
        assert await in_time(ends.server.lost) is None


async def test_eof_with_bytes_still_to_send() -> None:
    """The answer is larger than the kernel takes when the question's end arrives."""
    async with raw_connection(Recorder, small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(3_000_000))
        peer.sock.shutdown(socket.SHUT_WR)
        await in_time(protocol.eof)
        assert len(await peer.receive_to_eof()) == 3_000_000
        assert await in_time(protocol.lost) is None


async def test_abort_after_write_eof() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, _):
        transport.write(bytes(1_000_000))
        transport.write_eof()
        transport.abort()
        assert await in_time(protocol.lost) is None


async def test_write_eof_after_close_is_nothing() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(1_000_000))
        transport.close()
        transport.write_eof()
        assert len(await peer.receive_to_eof()) == 1_000_000
        assert await in_time(protocol.lost) is None


async def test_streams_write_eof() -> None:
    async with pair() as ends:
        ends.client.transport.write(b"all of it")
        ends.client.transport.write_eof()
        assert await ends.server.bytes_received(9) == b"all of it"
        await in_time(ends.server.eof)
        assert await in_time(ends.client.lost) is None
