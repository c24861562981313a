"""Where velociloop differs from asyncio on purpose (docs/differences.md), for what test_differential.py leaves out."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from support import HandlerCalls, Recorder, in_time, pair, raw_connection, turns

PURPOSE = "asyncio differs, see docs/differences.md"


@pytest.mark.ours(PURPOSE)
async def test_connection_made_that_raises_closes_the_connection(handler_calls: HandlerCalls) -> None:
    class Raising(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise LookupError("made")

    async with raw_connection(Raising) as (transport, protocol, peer):
        error = await in_time(protocol.lost)
        assert isinstance(error, LookupError)
        assert transport.is_closing()
        assert await peer.receive_to_eof() == b""
        context = handler_calls.take()
        assert context["exception"] is error
        assert context["protocol"] is protocol


@pytest.mark.ours(PURPOSE)
async def test_the_end_of_the_stream_comes_once_whatever_is_paused() -> None:
    def keeping() -> Recorder:
        return Recorder(keep_open=True)

    async with raw_connection(keeping) as (transport, protocol, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        await in_time(protocol.eof)
        transport.pause_reading()
        transport.resume_reading()
        await turns(5)
        assert protocol.events == ["made", "eof"]
        transport.write(b"still open")
        assert await peer.receive_all(10) == b"still open"


async def fill(transport: Any) -> int:
    """Write until bytes wait for the peer; return how many were written."""
    size = 0
    while not transport.get_write_buffer_size():
        transport.write(bytes(1 << 16))
        size += 1 << 16
    return size


@pytest.mark.ours(PURPOSE)
@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_resume_writing_may_end_the_connection(ending: str) -> None:
    class Ending(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            getattr(self.transport, ending)()

    async with raw_connection(Ending, "unix") as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=0)
        await fill(transport)
        received = asyncio.create_task(peer.receive_to_eof())
        assert await in_time(protocol.lost) is None
        await received
        await turns(5)
        assert protocol.events == ["made", "pause", "resume", "lost"]


@pytest.mark.ours(PURPOSE)
async def test_calls_after_a_close_that_had_to_wait_do_nothing() -> None:
    async with raw_connection(Recorder, "unix") as (transport, protocol, peer):
        await fill(transport)
        transport.close()
        received = asyncio.create_task(peer.receive_to_eof())
        assert await in_time(protocol.lost) is None
        await received
        transport.write(b"x")
        transport.writelines([b"x", b""])
        transport.abort()
        transport.close()
        await turns(5)
        assert protocol.events[-1] == "lost" and protocol.events.count("lost") == 1


@pytest.mark.ours(PURPOSE)
@pytest.mark.parametrize("pieces", [[b""], [b"", b"a", b""], []])
async def test_writelines_with_empty_pieces_ends(pieces: list[bytes]) -> None:
    async with raw_connection(Recorder, "unix") as (transport, protocol, peer):
        transport.writelines(pieces)
        assert transport.get_write_buffer_size() == 0
        transport.close()
        assert await in_time(protocol.lost) is None
        assert await peer.receive_to_eof() == b"".join(pieces)


@pytest.mark.ours(PURPOSE)
async def test_writelines_beyond_the_high_water_mark_pauses() -> None:
    async with raw_connection(Recorder, "unix") as (transport, protocol, peer):
        transport.pause_reading()
        transport.writelines([bytes(1 << 20)] * 4)
        assert protocol.events == ["made", "pause"]
        assert await peer.receive_all(4 << 20) == bytes(4 << 20)
        await in_time(protocol.resumed.wait())


@pytest.mark.ours(PURPOSE)
async def test_of_several_writes_to_an_end_that_has_gone_a_later_one_fails() -> None:
    async with pair(server_factory=lambda: Recorder(keep_open=True)) as ends:
        ends.client.transport.close()
        await in_time(ends.server.eof)
        await in_time(ends.client.lost)
        transport = ends.server.transport
        while not ends.server.lost.done():  # the first is answered by a reset, which fails the next
            transport.write(b"a")
            transport.write(b"b")
            await turns(2)
        error = await in_time(ends.server.lost)
        assert type(error) is BrokenPipeError


@pytest.mark.ours(PURPOSE)
async def test_a_bytearray_may_change_after_write() -> None:
    async with raw_connection(Recorder, "unix") as (transport, _protocol, peer):
        size = await fill(transport)
        data = bytearray(b"a" * 100)
        transport.write(data)
        data[:] = b""
        data.extend(b"b" * 200)
        assert await peer.receive_all(size + 100) == bytes(size) + b"a" * 100
