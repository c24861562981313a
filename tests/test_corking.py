"""Adaptive corking (needs 24 and 33, rule H5): few packets, yet nothing waits longer than its callback.

The peer is a SOCK_SEQPACKET socket, so each system call that sends arrives as a packet of its own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from support import HandlerCalls, RawPeer, Recorder, in_time, is_ours, raw_connection, turns

ours = pytest.mark.ours("asyncio sends each write by itself")

#: After so many callbacks, an uncorked transport that wrote once in each is certainly uncorked again.
MANY_CALLBACKS = 100


async def in_callback(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`'s result, run as a callback of its own; returns in a later turn."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    loop.call_soon(lambda: done.set_result(function(*args)))
    return await in_time(done)


def write_each(transport: Any, *parts: bytes) -> None:
    for part in parts:
        transport.write(part)


async def cork(transport: Any, peer: RawPeer) -> None:
    """Make `transport` one that writes several times a callback."""
    await in_callback(write_each, transport, b"1", b"2")
    await turns(1)
    assert b"".join(peer.available_packets()) == b"12"


async def test_need_33_a_single_write_leaves_within_write() -> None:
    """A program that writes and then blocks is heard (uvloop#631)."""
    async with raw_connection(Recorder, "packets") as (transport, _, peer):

        def write_and_look() -> list[bytes]:
            transport.write(b"before the blocking call")
            return peer.available_packets()

        for _ in range(3):
            assert await in_callback(write_and_look) == [b"before the blocking call"]


@ours
async def test_need_24_several_writes_leave_as_one_packet() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await in_callback(write_each, transport, b"first,", b"second,", b"third")
        assert peer.available_packets() == [b"first,", b"second,third"]
        # From then on it is known as one that writes in pieces.
        for _ in range(3):
            await in_callback(write_each, transport, b"head,", b"body,", b"tail")
            assert peer.available_packets() == [b"head,body,tail"]


@ours
async def test_need_24_on_tcp() -> None:
    """The kernel's own count of segments that carried data (struct tcp_info, tcpi_data_segs_in)."""
    if not hasattr(socket, "TCP_INFO"):
        pytest.skip("this platform has no TCP_INFO")
    async with raw_connection(Recorder, "tcp") as (transport, _, peer):

        def segments() -> int:
            info = peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            count: int = struct.unpack_from("I", info, 152)[0]
            return count

        await in_callback(write_each, transport, b"x", b"y")
        await peer.receive_all(2)
        before = segments()
        for _ in range(10):
            await in_callback(write_each, transport, b"header", b"body", b"end")
            await peer.receive_all(13)
        assert segments() - before == 10


@ours
async def test_a_run_of_single_writes_takes_the_cork_out() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)
        for _ in range(MANY_CALLBACKS):
            await in_callback(transport.write, b"x")
        peer.available_packets()

        def write_and_look() -> list[bytes]:
            transport.write(b"at once")
            return peer.available_packets()

        assert await in_callback(write_and_look) == [b"at once"]


async def test_H5_nothing_outlives_the_callback_that_wrote_it() -> None:
    """What a callback wrote is with the peer when the next callback of the same turn runs."""
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)
        seen: list[bytes] = []
        loop.call_soon(write_each, transport, b"a", b"b", b"c")
        loop.call_soon(lambda: seen.append(b"".join(peer.available_packets())))
        await turns(2)
        assert seen == [b"abc"]


async def test_H5_a_task_step_is_a_callback() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)

        async def step() -> None:
            write_each(transport, b"a", b"b")
            await asyncio.sleep(0)
            assert b"".join(peer.available_packets()) == b"ab"

        for _ in range(3):
            await asyncio.create_task(step())


async def test_H5_protocol_callbacks_flush_too() -> None:
    class Answering(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            write_each(self.transport, b"HTTP/1.1 200 OK\r\n", b"\r\n", b"body")

    async with raw_connection(Answering, "packets") as (_, protocol, peer):
        for count in range(1, 4):
            peer.sock.send(b"x")
            await protocol.bytes_received(count)
            await turns(1)
            assert b"".join(peer.available_packets()) == b"HTTP/1.1 200 OK\r\n\r\nbody"


async def test_H5_one_protocols_bytes_leave_before_the_next_protocols_callback() -> None:
    """Both callbacks dispatch records of one poll; each is a callback of its own."""
    seen: list[bytes] = []
    others: list[tuple[Recorder, RawPeer]] = []

    class Answering(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for protocol, peer in others:
                if protocol is not self:
                    seen.append(b"".join(peer.available_packets()))
            write_each(self.transport, b"one,", b"two")

    async with (
        raw_connection(Answering, "packets") as (transport1, one, peer1),
        raw_connection(Answering, "packets") as (transport2, two, peer2),
    ):
        for transport, peer in (transport1, peer1), (transport2, peer2):
            await cork(transport, peer)
            transport.pause_reading()
            peer.sock.send(b"x")
        others += [(one, peer1), (two, peer2)]
        transport1.resume_reading()
        transport2.resume_reading()
        await one.bytes_received(1)
        await two.bytes_received(1)
        await turns(1)
        assert seen == [b"", b"one,two"]


async def test_H5_an_exception_in_the_callback_flushes(handler_calls: HandlerCalls) -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)

        def fail() -> None:
            write_each(transport, b"a", b"b")
            raise LookupError("on purpose")

        loop.call_soon(fail)
        await turns(2)
        assert b"".join(peer.available_packets()) == b"ab"
        assert isinstance(handler_calls.take()["exception"], LookupError)


def test_H5_an_interrupt_in_the_callback_flushes(loop: asyncio.AbstractEventLoop) -> None:
    async def set_up() -> Any:
        connection = raw_connection(Recorder, "packets")
        transport, _, peer = await connection.__aenter__()
        await cork(transport, peer)
        return connection, transport, peer

    connection, transport, peer = loop.run_until_complete(set_up())

    def interrupt() -> None:
        write_each(transport, b"a", b"b")
        raise KeyboardInterrupt

    loop.call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert b"".join(peer.available_packets()) == b"ab"
    loop.run_until_complete(connection.__aexit__(None, None, None))


def test_writes_between_two_runs_leave_at_once(loop: asyncio.AbstractEventLoop) -> None:
    async def set_up() -> Any:
        connection = raw_connection(Recorder, "packets")
        transport, _, peer = await connection.__aenter__()
        await cork(transport, peer)
        return connection, transport, peer

    connection, transport, peer = loop.run_until_complete(set_up())
    write_each(transport, b"a", b"b")
    assert b"".join(peer.available_packets()) == b"ab"
    loop.run_until_complete(connection.__aexit__(None, None, None))


@pytest.mark.parametrize(
    "look",
    [
        lambda transport: transport.get_write_buffer_size(),
        lambda transport: transport.get_extra_info("socket"),
        lambda transport: transport.write_eof(),
        lambda transport: transport.close(),
        lambda transport: transport.abort(),
        lambda transport: transport._force_close(None),
    ],
    ids=["get_write_buffer_size", "get_extra_info", "write_eof", "close", "abort", "_force_close"],
)
async def test_H5_what_looks_at_the_socket_flushes_first(look: Callable[[Any], object]) -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)

        def write_and_look() -> bytes:
            write_each(transport, b"a", b"b")
            look(transport)
            return b"".join(peer.available_packets())

        assert await in_callback(write_and_look) == b"ab"


async def test_H5_get_write_buffer_size_is_what_the_kernel_did_not_take() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)

        def write_and_look() -> int:
            write_each(transport, b"a", b"b")
            size: int = transport.get_write_buffer_size()
            return size

        assert await in_callback(write_and_look) == 0
        peer.available_packets()


@ours
async def test_H5_past_the_high_water_mark_it_leaves_within_write() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)
        transport.set_write_buffer_limits(high=1000)

        def write_and_look() -> list[list[bytes]]:
            seen = []
            for part in b"a" * 600, b"b" * 400, b"c":
                transport.write(part)
                seen.append(peer.available_packets())
            return seen

        assert await in_callback(write_and_look) == [[], [], [b"a" * 600 + b"b" * 400 + b"c"]]


async def test_H5_a_high_water_mark_of_zero_disables_it() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)
        transport.set_write_buffer_limits(high=0)

        def write_and_look() -> list[list[bytes]]:
            seen = []
            for part in b"a", b"b", b"c":
                transport.write(part)
                seen.append(peer.available_packets())
            return seen

        assert await in_callback(write_and_look) == [[b"a"], [b"b"], [b"c"]]


async def test_H5_pause_writing_comes_within_write() -> None:
    """Past the high-water mark with a kernel that takes nothing, the protocol is paused before write() returns."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):

        def write_and_look() -> list[str]:
            write_each(transport, b"a", bytes(1_000_000))
            return list(protocol.events)

        assert (await in_callback(write_and_look))[-1] == "pause"
        await peer.receive_all(1_000_001)
        await in_time(protocol.resumed.wait())


async def test_H5_a_write_within_pause_writing_keeps_its_place() -> None:
    """Flushing tolerates a re-entrant write()."""

    class Reentrant(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.write(b"last")

    async with raw_connection(Reentrant, "unix", small_buffers=True) as (transport, _, peer):
        await in_callback(write_each, transport, b"a" * 10, b"b" * 1_000_000)
        received = await peer.receive_all(1_000_014)
        assert received == b"a" * 10 + b"b" * 1_000_000 + b"last"


async def test_H5_a_failing_flush_ends_the_connection_with_its_error() -> None:
    """The first failed write shows at once; a second one at its callback's end (docs/differences.md)."""
    async with raw_connection(Recorder, "packets") as (transport, protocol, peer):
        await cork(transport, peer)
        transport.pause_reading()
        peer.sock.close()
        await in_callback(write_each, transport, b"a", b"b")
        assert transport.is_closing()
        assert isinstance(await in_time(protocol.lost), BrokenPipeError)


async def test_H5_the_failed_write_outranks_the_eof_behind_it() -> None:
    """A failed write swallows the reset that read() would have told: the first error is what is told."""
    async with raw_connection(Recorder, "tcp") as (transport, protocol, peer):
        peer.reset()
        await in_callback(write_each, transport, b"a", b"b")
        assert isinstance(await in_time(protocol.lost), (BrokenPipeError, ConnectionResetError))


async def test_corked_and_direct_writes_keep_their_order() -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, _, peer):
        expected = bytearray()
        for number in range(200):
            parts = [b"%d;" % i * (number * i % 90) for i in range(number % 5)]
            expected += b"".join(parts)
            loop.call_soon(write_each, transport, *parts)
        assert await peer.receive_all(len(expected)) == expected


async def test_writes_to_many_transports_in_one_callback() -> None:
    async with (
        raw_connection(Recorder, "packets") as (one, _, peer1),
        raw_connection(Recorder, "packets") as (
            two,
            _,
            peer2,
        ),
    ):

        def write() -> None:
            for number in range(4):
                one.write(b"one%d" % number)
                two.write(b"two%d" % number)

        for _ in range(2):
            await in_callback(write)
            assert b"".join(peer1.available_packets()) == b"one0one1one2one3"
            assert b"".join(peer2.available_packets()) == b"two0two1two2two3"


@pytest.mark.debug_variant
async def test_a_mutable_buffer_may_be_reused_within_the_callback() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        await cork(transport, peer)

        def write() -> None:
            buffer = bytearray(b"1234")
            transport.write(buffer)
            transport.write(memoryview(buffer))
            buffer[:] = b"5678"
            transport.write(buffer)

        await in_callback(write)
        assert b"".join(peer.available_packets()) == b"123412345678"


@pytest.mark.debug_variant
async def test_write_and_write_eof_in_one_callback() -> None:
    async with raw_connection(Recorder) as (transport, _, peer):

        def write() -> None:
            write_each(transport, b"a", b"b", b"c")
            transport.write_eof()

        await in_callback(write)
        assert await peer.receive_to_eof() == b"abc"


@ours
async def test_streams_headers_and_body_leave_together() -> None:
    """What HTTP libraries do through StreamWriter."""
    loop = asyncio.get_running_loop()
    async with raw_connection(lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), "packets") as (
        transport,
        protocol,
        peer,
    ):
        assert is_ours(loop)
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        for _ in range(3):
            writer.write(b"header")
            writer.write(b"body")
            await writer.drain()
            await asyncio.sleep(0)
        assert b"".join(peer.available_packets()[-1:]) == b"headerbody"
