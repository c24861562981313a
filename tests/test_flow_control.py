"""Write buffers, their marks, and the peer that reads slowly."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from support import RawPeer, Recorder, in_time, raw_connection, tcp_socketpair, turns, until

pytestmark = pytest.mark.debug_variant

KIB = 1024


async def test_default_limits() -> None:
    async with raw_connection(Recorder) as (transport, _, _peer):
        assert transport.get_write_buffer_limits() == (16 * KIB, 64 * KIB)


@pytest.mark.parametrize(
    ("arguments", "limits"),
    [
        ({"high": 1000}, (250, 1000)),
        ({"low": 1000}, (1000, 4000)),
        ({"high": 1000, "low": 10}, (10, 1000)),
        ({"high": 0}, (0, 0)),
        ({}, (16 * KIB, 64 * KIB)),
    ],
)
async def test_limits(arguments: dict[str, int], limits: tuple[int, int]) -> None:
    async with raw_connection(Recorder) as (transport, _, _peer):
        transport.set_write_buffer_limits(**arguments)
        assert transport.get_write_buffer_limits() == limits


@pytest.mark.parametrize("arguments", [{"high": 10, "low": 11}, {"high": 10, "low": -1}])
async def test_senseless_limits(arguments: dict[str, int]) -> None:
    async with raw_connection(Recorder) as (transport, _, _peer):
        with pytest.raises(ValueError, match=r"must be >= "):
            transport.set_write_buffer_limits(**arguments)


async def test_pause_and_resume_once_each() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=100_000, low=50_000)
        for _ in range(10):
            transport.write(bytes(50_000))
        await turns()
        assert protocol.events == ["made", "pause"]
        size = transport.get_write_buffer_size()
        assert 100_000 < size <= 500_000
        await peer.receive_all(500_000)
        await in_time(protocol.resumed.wait())
        assert protocol.events == ["made", "pause", "resume"]
        assert transport.get_write_buffer_size() <= 50_000


async def test_no_pause_below_the_mark() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=1_000_000)
        transport.write(bytes(900_000))
        await turns()
        assert protocol.events == ["made"]
        await peer.receive_all(900_000)


async def test_exactly_at_the_mark_is_not_past_it() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        while not transport.get_write_buffer_size():
            transport.write(bytes(1000))
        size = transport.get_write_buffer_size()
        transport.set_write_buffer_limits(high=size + 5000, low=0)
        transport.write(bytes(5000))
        assert transport.get_write_buffer_size() == size + 5000
        assert protocol.events == ["made"]
        transport.write(b"x")
        assert transport.get_write_buffer_size() == size + 5001
        assert protocol.events == ["made", "pause"]
        peer.sock.close()


async def test_set_limits_alone_pauses_nothing() -> None:
    """asyncio looks at the marks when something is written, and when they are set."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(60_000))
        assert protocol.events == ["made"]
        before = transport.get_write_buffer_size()
        transport.set_write_buffer_limits(high=1000)
        assert protocol.events == ["made", "pause"]
        assert transport.get_write_buffer_size() == before
        await peer.receive_all(60_000)
        await in_time(protocol.resumed.wait())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_64_mib_to_a_slow_reader(kind: str) -> None:
    """The writer's memory stays at its mark, and the bytes arrive in order."""
    whole = 64 * KIB * KIB
    block = bytes(range(256)) * 1024
    async with raw_connection(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), kind) as (
        transport,
        protocol,
        peer,
    ):
        writer = asyncio.StreamWriter(transport, protocol, None, asyncio.get_running_loop())
        good: list[bool] = []

        def read() -> None:
            received, position = 0, 0
            buffer = bytearray(100_003)
            doubled = block + block[: len(buffer)]
            while received < whole:
                count = peer.sock.recv_into(buffer)
                assert count
                good.append(doubled[position : position + count] == buffer[:count])
                received += count
                position = (position + count) % len(block)

        thread = threading.Thread(target=read)
        thread.start()
        largest = 0
        for _ in range(whole // len(block)):
            writer.write(block)
            largest = max(largest, transport.get_write_buffer_size())
            await writer.drain()
        await asyncio.to_thread(thread.join)
        assert all(good)
        assert largest <= 64 * KIB + len(block)


async def test_H13_a_queued_write_holds_its_object() -> None:
    """libuv sends from the object's own memory: nobody else may get it before the last byte has left."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, _, peer):
        expected = bytearray()
        for number in range(30):
            data: Any = bytes([number]) * 200_000
            expected += data
            transport.write(bytearray(data) if number % 3 == 1 else memoryview(data) if number % 3 == 2 else data)
            del data
        gc.collect()
        garbage = [bytes([255]) * 200_000 for _ in range(30)]
        assert await peer.receive_all(len(expected)) == expected
        assert len(garbage) == 30


@pytest.mark.ours("asyncio leaves its views to the collector, which shows on PyPy")
async def test_H13_a_sent_write_lets_its_object_go() -> None:
    """No pin outlives its request: a bytearray can be resized once all is sent."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        buffer = bytearray(1_000_000)
        view = memoryview(buffer)
        transport.write(view)
        await peer.receive_all(1_000_000)
        await until(lambda: not transport.get_write_buffer_size())
        assert protocol.events == ["made", "pause", "resume"]
        view.release()
        buffer.clear()


async def test_writes_past_the_mark_are_kept_all_the_same() -> None:
    """pause_writing() asks; a program that writes on loses nothing."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        for i in range(100):
            transport.write(bytes([i]) * 10_000)
        assert protocol.events == ["made", "pause"]
        received = await peer.receive_all(1_000_000)
        assert received == b"".join(bytes([i]) * 10_000 for i in range(100))


async def test_drain_waits_for_the_reader() -> None:
    near, far = tcp_socketpair()
    near.setblocking(False)
    _, writer = await asyncio.open_connection(sock=near)
    with far:
        writer.write(bytes(20_000_000))
        drain = asyncio.create_task(writer.drain())
        await turns()
        assert not drain.done()

        def read() -> None:
            left = 20_000_000
            while left:
                left -= len(far.recv(1 << 16))

        await asyncio.to_thread(read)
        await in_time(drain)
        writer.close()
        await writer.wait_closed()


async def test_two_drains_at_once() -> None:
    """Both waiters of one transport are woken."""
    near, far = tcp_socketpair()
    near.setblocking(False)
    _, writer = await asyncio.open_connection(sock=near)
    with far:
        writer.write(bytes(20_000_000))
        drains = [asyncio.create_task(writer.drain()) for _ in range(3)]
        await turns()

        def read() -> None:
            left = 20_000_000
            while left:
                left -= len(far.recv(1 << 16))

        await asyncio.to_thread(read)
        await in_time(asyncio.gather(*drains))
        writer.close()
        await writer.wait_closed()


async def test_drain_raises_when_the_connection_is_lost() -> None:
    near, far = tcp_socketpair()
    near.setblocking(False)
    _, writer = await asyncio.open_connection(sock=near)
    writer.write(bytes(20_000_000))
    drain = asyncio.create_task(writer.drain())
    await turns()
    RawPeer(far).reset()
    with pytest.raises(ConnectionError):
        await in_time(drain)
    with pytest.raises(ConnectionError):
        await writer.drain()
    writer.close()
    await turns()


async def test_closing_a_paused_transport() -> None:
    """close() while paused sends what is left; resume_writing() may come on the way, as in asyncio."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(1_000_000))
        assert protocol.events == ["made", "pause"]
        transport.close()
        assert len(await peer.receive_to_eof()) == 1_000_000
        assert await in_time(protocol.lost) is None
        assert protocol.events == ["made", "pause", "resume", "lost"]


async def test_switching_the_protocol_while_paused() -> None:
    """The resume goes to the protocol that is set when it happens."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, first, peer):
        transport.write(bytes(1_000_000))
        second: Any = Recorder()
        transport.set_protocol(second)
        await peer.receive_all(1_000_000)
        await in_time(second.resumed.wait())
        assert first.events == ["made", "pause"] and second.events == ["resume"]
