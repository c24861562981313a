"""connect_read_pipe: what arrives, pauses, and the end."""

from __future__ import annotations

import asyncio
import os
import random
import socket

import pytest
from pipe_support import (
    every_kind,
    fill,
    finished,
    pattern,
    reading,
    send_all,
    telling_kind,
    writing,
)
from support import HandlerCalls, Recorder, in_time, turns

pytestmark = pytest.mark.debug_variant



@every_kind
async def test_what_is_written_is_received(kind: str) -> None:
    data = pattern(500_000)
    async with reading(kind) as (_, protocol, far):
        sender = asyncio.to_thread(send_all, far, data)
        _, received = await asyncio.gather(sender, protocol.bytes_received(len(data)))
        assert received == data


@telling_kind
async def test_all_that_was_written_comes_before_the_end(kind: str) -> None:
    async with reading(kind) as (transport, protocol, far):
        count = fill(far)
        far.close()
        assert await finished(protocol) is None
        assert len(protocol.received) == count
        assert protocol.events == ["made", "data", "eof", "lost"]
        assert transport.is_closing() and not transport.is_reading()


async def test_the_end_of_an_empty_pipe() -> None:
    """The transport is closing when eof_received() comes, whatever that returns."""

    class Looking(Recorder):
        def eof_received(self) -> bool:
            assert self.transport.is_closing() and not self.transport.is_reading()
            self.transport.pause_reading()
            self.transport.close()
            super().eof_received()
            return True

    async with reading(protocol_factory=Looking) as (_, protocol, far):
        await turns()
        far.close()
        assert await finished(protocol) is None
        assert protocol.events == ["made", "eof", "lost"]


async def test_the_hangup_of_a_terminal() -> None:
    """Linux: EIO. Not reported, but told."""
    async with reading("pty") as (_, protocol, far):
        os.write(far.fileno(), b"last")
        assert await protocol.bytes_received(4) == b"last"
        far.close()
        exc = await finished(protocol)
        assert isinstance(exc, OSError)
        assert protocol.events == ["made", "data", "lost"]


async def test_a_reset_socket(handler_calls: HandlerCalls) -> None:
    """asyncio reports every error but EIO."""
    near, far = socket.socketpair()
    near.send(b"unread")
    transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, near)
    far.send(b"last")
    far.close()
    exc = await finished(protocol)
    assert isinstance(exc, ConnectionResetError)
    assert bytes(protocol.received) == b"last"
    call = handler_calls.take()
    assert call["message"] == "Fatal read error on pipe transport"
    assert call["exception"] is exc and call["transport"] is transport and call["protocol"] is protocol


@every_kind
async def test_pause_and_resume(kind: str) -> None:
    async with reading(kind) as (transport, protocol, far):
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        os.write(far.fileno(), b"one")
        await turns(10)
        assert not protocol.received
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        assert await protocol.bytes_received(3) == b"one"


@pytest.mark.parametrize("seed", range(4))
async def test_pausing_at_any_moment_loses_nothing(seed: int) -> None:
    chance = random.Random(seed)
    data = pattern(400_000)

    class Nervous(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if chance.random() < 0.5:
                self.transport.pause_reading()
                asyncio.get_running_loop().call_later(chance.random() / 1000, self.transport.resume_reading)

    async with reading(protocol_factory=Nervous) as (transport, protocol, far):

        def send() -> None:
            send_all(far, data)
            far.close()

        sender = asyncio.create_task(asyncio.to_thread(send))
        while not protocol.lost.done():
            transport.pause_reading()
            await turns(chance.randrange(3))
            transport.resume_reading()
            await turns(chance.randrange(3))
        await sender
        assert await finished(protocol) is None
        assert bytes(protocol.received) == data


@pytest.mark.ours("asyncio leaves them in the kernel")
async def test_what_was_read_in_two_turns_that_paused_comes_in_order() -> None:
    """pause_reading() between a poll and its dispatch: the bytes wait, and nothing overtakes them."""
    loop = asyncio.get_running_loop()
    async with reading() as (transport, protocol, far):
        await turns()
        for data in (b"1", b"2"):
            os.write(far.fileno(), data)
            loop.call_soon(transport.pause_reading)  # runs in the turn whose poll reads
            transport.resume_reading()
            await turns()
            assert not transport.is_reading()
        assert not protocol.received
        far.close()
        transport.resume_reading()
        assert await finished(protocol) is None
        assert bytes(protocol.received) == b"12"
        assert protocol.events == ["made", "data", "eof", "lost"]


async def test_paused_in_connection_made() -> None:
    class Paused(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async with reading(protocol_factory=Paused) as (transport, protocol, far):
        os.write(far.fileno(), b"x")
        await turns(10)
        assert not protocol.received
        transport.resume_reading()
        assert await protocol.bytes_received(1) == b"x"


async def test_closed_in_connection_made() -> None:
    class Closing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    # asyncio's debug message asks the file, closed by then, for its number.
    asyncio.get_running_loop().set_debug(False)
    async with reading(protocol_factory=Closing) as (_, protocol, _far):
        assert await finished(protocol) is None
        assert protocol.events == ["made", "lost"]
    async with writing(protocol_factory=Closing) as (_, protocol, _far):
        assert await finished(protocol) is None
        assert protocol.events == ["made", "lost"]


async def test_closed_in_data_received() -> None:
    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()

    async with reading(protocol_factory=Closing) as (_, protocol, far):
        os.write(far.fileno(), b"x")
        assert await finished(protocol) is None
        assert protocol.events == ["made", "data", "lost"]


async def test_another_protocol_from_the_next_bytes_on() -> None:
    async with reading() as (transport, protocol, far):
        os.write(far.fileno(), b"one")
        await protocol.bytes_received(3)
        second = Recorder()
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        os.write(far.fileno(), b"two")
        assert await second.bytes_received(3) == b"two"
        far.close()
        await in_time(second.lost)
        assert bytes(protocol.received) == b"one"


@pytest.mark.ours("asyncio reads 256 KiB at once")
async def test_H4_a_grant_a_poll() -> None:
    sizes: list[int] = []

    class Sizes(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            sizes.append(len(data))

    data = pattern(1 << 20)
    async with reading("socket", Sizes) as (_, protocol, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sender = asyncio.to_thread(send_all, far, data)
        _, received = await asyncio.gather(sender, protocol.bytes_received(len(data)))
        assert received == data
        assert max(sizes) <= 65536
