"""pause_reading and resume_reading: no byte lost, doubled or moved, whatever the moment."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from typing import Any

import pytest
from support import RawPeer, Recorder, in_time, raw_connection, turns, until

pytestmark = pytest.mark.debug_variant


def pattern(count: int) -> bytes:
    return random.Random(count).randbytes(count)


async def test_nothing_is_delivered_while_paused() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        assert transport.is_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        peer.sock.sendall(b"wait")
        await turns(10)
        assert not protocol.received
        transport.resume_reading()
        assert transport.is_reading()
        assert await protocol.bytes_received(4) == b"wait"


async def test_pausing_and_resuming_twice_is_once() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        for _ in range(3):
            transport.pause_reading()
        transport.resume_reading()
        for _ in range(3):
            transport.resume_reading()
        peer.sock.sendall(b"x")
        assert await protocol.bytes_received(1) == b"x"


async def test_paused_in_connection_made() -> None:
    class Paused(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async with raw_connection(Paused) as (transport, protocol, peer):
        peer.sock.sendall(b"x")
        await turns(10)
        assert not protocol.received
        transport.resume_reading()
        assert await protocol.bytes_received(1) == b"x"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("seed", range(4))
async def test_random_pausing_loses_nothing(kind: str, seed: int) -> None:
    """Pauses from within data_received, from other callbacks, for one turn and for many."""
    rng = random.Random(seed)
    whole = pattern(2_000_000)
    loop = asyncio.get_running_loop()

    class Fickle(Recorder):
        def data_received(self, data: bytes) -> None:
            assert self.transport.is_reading()
            super().data_received(data)
            if rng.random() < 0.5:
                self.transport.pause_reading()
                if rng.random() < 0.2:
                    self.transport.resume_reading()
                    self.transport.pause_reading()
                loop.call_soon(self.later, rng.randrange(4))

        def later(self, turns_to_go: int) -> None:
            if turns_to_go:
                loop.call_soon(self.later, turns_to_go - 1)
            else:
                self.transport.resume_reading()

    async with raw_connection(Fickle, kind) as (_, protocol, peer):

        def send() -> None:
            position = 0
            sizes = random.Random(seed + 100)
            while position < len(whole):
                size = sizes.choice([1, 100, 5000, 65536, 200_000])
                peer.sock.sendall(whole[position : position + size])
                position += size
            peer.sock.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        await in_time(protocol.eof)
        await asyncio.to_thread(thread.join)
        assert protocol.received == whole


async def test_eof_while_paused_waits() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        transport.pause_reading()
        peer.sock.sendall(b"last words")
        peer.sock.close()
        await turns(10)
        assert protocol.events == ["made"]
        transport.resume_reading()
        assert await in_time(protocol.lost) is None
        assert protocol.events == ["made", "data", "eof", "lost"]
        assert protocol.received == b"last words"


async def test_pausing_in_the_last_data_holds_the_eof_back() -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async with raw_connection(Pausing) as (transport, protocol, peer):
        peer.sock.sendall(b"x")
        peer.sock.close()
        await protocol.bytes_received(1)
        await turns(10)
        assert protocol.events == ["made", "data"]
        transport.resume_reading()
        assert await in_time(protocol.lost) is None
        assert protocol.events == ["made", "data", "eof", "lost"]


async def test_pause_by_another_callback_of_the_same_turn() -> None:
    """What libuv had read for B when A's data_received paused B is kept for later."""
    others: list[Any] = []

    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for other in others:
                if other is not self:
                    other.transport.pause_reading()

    async with (
        raw_connection(Pausing) as (_, one, peer1),
        raw_connection(Pausing) as (_, two, peer2),
        raw_connection(Pausing) as (_, three, peer3),
    ):
        others += [one, two, three]
        for protocol in others:
            protocol.transport.pause_reading()
        for peer in peer1, peer2, peer3:
            peer.sock.sendall(b"at the same time")
            peer.sock.shutdown(socket.SHUT_WR)
        for protocol in others:
            protocol.transport.resume_reading()
        await until(lambda: any(p.received for p in others))
        await turns(10)
        assert sum(bool(p.received) for p in others) == 1
        for protocol in others:
            protocol.transport.resume_reading()
            await in_time(protocol.eof)
        assert [bytes(p.received) for p in others] == [b"at the same time"] * 3


async def test_closing_while_paused() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        peer.sock.sendall(b"never delivered")
        transport.pause_reading()
        transport.close()
        assert await in_time(protocol.lost) is None
        assert protocol.events == ["made", "lost"]


async def test_resuming_a_closing_transport_reads_nothing() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.pause_reading()
        peer.sock.sendall(b"never delivered")
        transport.write(bytes(1_000_000))
        transport.close()
        transport.resume_reading()
        transport.pause_reading()
        await turns(5)
        assert not protocol.received
        assert len(await peer.receive_all(1_000_000)) == 1_000_000
        await in_time(protocol.lost)
        assert not protocol.received


async def test_the_peers_reset_is_told_after_resuming() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        transport.pause_reading()
        await turns()
        peer.reset()
        await turns(5)
        transport.resume_reading()
        assert isinstance(await in_time(protocol.lost), ConnectionResetError)


async def test_protocol_switched_mid_stream() -> None:
    """Nothing that was on its way gets lost between two protocols, nor reaches the wrong one."""
    whole = pattern(400_000)

    class Chain(Recorder):
        def __init__(self) -> None:
            super().__init__()
            chain.append(self)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            following = Chain()
            following.transport = self.transport
            self.transport.set_protocol(following)

    chain: list[Chain] = []
    async with raw_connection(Chain) as (_, _, peer):
        await asyncio.to_thread(peer.sock.sendall, whole)
        peer.sock.close()
        await until(lambda: chain[-1].eof.done())
        assert b"".join(bytes(p.received) for p in chain) == whole
        assert await in_time(chain[-1].lost) is None


async def test_stream_reader_pauses_itself() -> None:
    """StreamReader pauses the transport past twice its limit; the buffer stays within reason."""
    reader = asyncio.StreamReader(limit=4096)
    async with raw_connection(lambda: asyncio.StreamReaderProtocol(reader), "unix") as (transport, _, peer):
        whole = pattern(1_000_000)
        thread = threading.Thread(target=send_all, args=(peer, whole))
        thread.start()
        await until(lambda: not transport.is_reading())
        assert len(reader._buffer) <= 2 * 4096 + 262144  # type: ignore[attr-defined]
        received = bytearray()
        while len(received) < len(whole):
            received += await in_time(reader.read(3000))
        assert received == whole
        await asyncio.to_thread(thread.join)


def send_all(peer: RawPeer, data: bytes) -> None:
    peer.sock.sendall(data)
