"""TCP connections as protocols and as streams: what every program uses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import Any

import pytest
from support import (
    LOCALHOST,
    Echo,
    Recorder,
    in_time,
    is_ours,
    pair,
    raw_connection,
    serving,
    tcp_socketpair,
    turns,
)

pytestmark = pytest.mark.debug_variant


def pattern(count: int) -> bytes:
    """`count` bytes in which a lost, doubled or moved block shows."""
    block = b"".join(i.to_bytes(4, "big") for i in range((count + 3) // 4))
    return block[:count]


async def test_events_of_a_connection_in_order() -> None:
    async with pair(Recorder, Echo) as ends:
        ends.client.transport.write(b"hello")
        assert await ends.client.bytes_received(5) == b"hello"
        ends.client.transport.close()
        assert await in_time(ends.client.lost) is None
        assert await in_time(ends.server.lost) is None
    assert ends.client.events == ["made", "data", "lost"]
    assert ends.server.events == ["made", "data", "eof", "lost"]


@pytest.mark.parametrize("size", [1, 1000, 65535, 65536, 65537, 262144, 3_000_000])
async def test_echo_of_any_size(size: int) -> None:
    sent = pattern(size)
    async with pair(Recorder, Echo) as ends:
        ends.client.transport.write(sent)
        assert await ends.client.bytes_received(size) == sent


async def test_connection_made_comes_before_create_connection_returns() -> None:
    """asyncio resumes the caller by a waiter that is set after `connection_made`."""
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):
        transport, protocol = await loop.create_connection(Recorder, *address)
        assert protocol.events == ["made"] and protocol.transport is transport
        transport.close()
        await in_time(protocol.lost)


async def test_data_is_not_delivered_before_create_connection_returns() -> None:
    """Data that waits in the socket comes with the first poll after `connection_made`."""
    loop = asyncio.get_running_loop()
    near, far = tcp_socketpair()
    with far:
        far.sendall(b"early")
        near.setblocking(False)
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        assert protocol.events == ["made"]
        assert await protocol.bytes_received(5) == b"early"
        transport.close()
        await in_time(protocol.lost)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_write_takes_any_buffer(kind: type) -> None:
    async with raw_connection(Recorder) as (transport, _, peer):
        transport.write(kind(b"some bytes"))
        assert await peer.receive_all(10) == b"some bytes"


async def test_a_bytearray_may_change_after_write() -> None:
    """asyncio copies what it cannot send at once (`bytearray(data)`), so callers reuse their buffers."""
    async with raw_connection(Recorder, small_buffers=True) as (transport, _, peer):
        buffer = bytearray(b"a" * 1_000_000)
        transport.write(buffer)
        if is_ours():  # 3.12+ asyncio keeps a memoryview of the caller's buffer: no oracle for this guarantee
            buffer[:] = b"b" * len(buffer)
        assert await peer.receive_all(len(buffer)) == b"a" * 1_000_000
        del buffer[:]  # no exported buffer may remain once all is sent


async def test_write_of_a_wide_memoryview_counts_bytes() -> None:
    """A memoryview of a wider item type is sent by its bytes."""
    import array

    async with raw_connection(Recorder) as (transport, _, peer):
        numbers = array.array("I", range(50))
        transport.write(memoryview(numbers).cast("B"))
        assert await peer.receive_all(200) == numbers.tobytes()


@pytest.mark.parametrize("wrong", ["text", 7, None, [b"x"]])
async def test_write_of_something_else_is_a_type_error(wrong: object) -> None:
    async with raw_connection(Recorder) as (transport, _, _peer):
        with pytest.raises(TypeError, match="data argument must be a bytes"):
            transport.write(wrong)


async def test_write_of_nothing_sends_nothing() -> None:
    async with raw_connection(Recorder, "packets") as (transport, _, peer):
        transport.write(b"")
        await turns()
        assert peer.available_packets() == []


async def test_writelines_sends_in_order() -> None:
    parts: list[bytes | bytearray | memoryview] = [b"one", bytearray(b"two"), memoryview(b"three"), b"", b"four"] * 1000
    async with raw_connection(Recorder) as (transport, _, peer):
        transport.writelines(parts)
        whole = b"".join(parts)
        assert await peer.receive_all(len(whole)) == whole


async def test_writelines_of_more_parts_than_iov_max() -> None:
    """One vectored write takes at most IOV_MAX (1024) buffers."""
    parts = [b"%05d" % i for i in range(5000)]
    async with raw_connection(Recorder, small_buffers=True) as (transport, _, peer):
        transport.writelines(parts)
        assert await peer.receive_all(25000) == b"".join(parts)


async def test_writelines_takes_a_generator() -> None:
    async with raw_connection(Recorder) as (transport, _, peer):
        transport.writelines(b"%d;" % i for i in range(10))
        assert await peer.receive_all(20) == b"0;1;2;3;4;5;6;7;8;9;"


async def test_interleaved_large_and_small_writes_keep_their_order() -> None:
    parts = [pattern(300_000), b"small", pattern(70_000), b"", b"x", pattern(1_000_000)] * 3
    async with raw_connection(Recorder, small_buffers=True) as (transport, _, peer):
        for part in parts:
            transport.write(part)
        whole = b"".join(parts)
        assert await peer.receive_all(len(whole)) == whole


async def test_extra_info_names() -> None:
    async with pair() as ends:
        for near, far in (ends.client.transport, ends.server.transport), (ends.server.transport, ends.client.transport):
            sock = near.get_extra_info("socket")
            assert sock.getsockname() == near.get_extra_info("sockname") == far.get_extra_info("peername")
            assert sock.getpeername() == near.get_extra_info("peername")
            assert near.get_extra_info("peercert") is None
            assert near.get_extra_info("nothing of this name") is None
            assert near.get_extra_info("nothing of this name", "default") == "default"


async def test_extra_info_stays_after_the_connection_is_lost() -> None:
    async with pair() as ends:
        transport = ends.client.transport
        before = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        transport.close()
        await in_time(ends.client.lost)
        await turns()
        assert (transport.get_extra_info("peername"), transport.get_extra_info("sockname")) == before
        assert transport.get_extra_info("socket").fileno() == -1


async def test_nodelay_is_set() -> None:
    async with pair() as ends:
        for transport in ends.client.transport, ends.server.transport:
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_descriptors_are_not_inheritable_and_not_blocking() -> None:
    async with pair() as ends:
        for transport in ends.client.transport, ends.server.transport:
            sock = transport.get_extra_info("socket")
            assert not sock.get_inheritable()
            assert sock.gettimeout() == 0


async def test_set_protocol_and_get_protocol() -> None:
    async with raw_connection(Recorder) as (transport, first, peer):
        second = Recorder()
        assert transport.get_protocol() is first
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        peer.sock.sendall(b"for the second")
        assert await second.bytes_received(14) == b"for the second"
        assert not first.received
        transport.close()
        assert await in_time(second.lost) is None
        assert "lost" not in first.events


async def test_create_connection_local_address() -> None:
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):
        transport, protocol = await loop.create_connection(Recorder, *address, local_addr=(LOCALHOST, 0))
        assert transport.get_extra_info("sockname")[0] == LOCALHOST
        transport.close()
        await in_time(protocol.lost)


async def test_create_connection_by_name() -> None:
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):
        transport, protocol = await loop.create_connection(Recorder, "localhost", address[1], family=socket.AF_INET)
        transport.close()
        await in_time(protocol.lost)


@pytest.mark.skipif(not socket.has_ipv6, reason="Python was built without IPv6")
async def test_ipv6() -> None:
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(Echo, "::1", 0)
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback address: {error}")
    async with server:
        address = server.sockets[0].getsockname()
        transport, protocol = await loop.create_connection(Recorder, *address[:2])
        assert len(transport.get_extra_info("peername")) == 4
        assert ipaddress.ip_address(transport.get_extra_info("peername")[0]).is_loopback
        transport.write(b"six")
        assert await protocol.bytes_received(3) == b"six"
        transport.close()
        await in_time(protocol.lost)
        await turns()


async def test_connect_accepted_socket() -> None:
    loop = asyncio.get_running_loop()
    near, far = tcp_socketpair()
    with far:
        near.setblocking(False)
        transport, protocol = await loop.connect_accepted_socket(Echo, near)
        far.sendall(b"accepted")
        assert await asyncio.to_thread(far.recv, 100) == b"accepted"
        transport.close()
        assert await in_time(protocol.lost) is None


async def test_closing_the_transport_closes_the_users_socket() -> None:
    """The peer must see EOF although the program still holds the socket object that it gave."""
    loop = asyncio.get_running_loop()
    near, far = tcp_socketpair()
    with far:
        near.setblocking(False)
        transport, protocol = await loop.create_connection(Recorder, sock=near)
        transport.close()
        await in_time(protocol.lost)
        await turns()
        assert near.fileno() == -1
        assert await asyncio.to_thread(far.recv, 1) == b""


async def test_create_connection_argument_errors() -> None:
    loop: Any = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="host and port was not specified and no sock specified"):
        await loop.create_connection(Recorder)
    with socket.socket() as sock:
        with pytest.raises(ValueError, match="host/port and sock can not be specified at the same time"):
            await loop.create_connection(Recorder, LOCALHOST, 1, sock=sock)
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="A Stream Socket was expected"):
        await loop.create_connection(Recorder, sock=sock)
    with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
        await loop.create_connection(Recorder, LOCALHOST, 1, server_hostname="name")


async def test_streams_echo() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for i in range(50):
            writer.write(b"line %d\n" % i)
            await writer.drain()
            assert await in_time(reader.readline()) == b"LINE %d\n" % i
        writer.write_eof()
        assert await in_time(reader.read()) == b""
        writer.close()
        await writer.wait_closed()


async def test_streams_read_methods() -> None:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"0123456789|rest of the data, and then the end")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(handle, LOCALHOST, 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await in_time(reader.readexactly(5)) == b"01234"
        assert await in_time(reader.readuntil(b"|")) == b"56789|"
        assert await in_time(reader.read(4)) == b"rest"
        assert (await in_time(reader.read(-1))).endswith(b"the end")
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(1)
        assert reader.at_eof()
        writer.close()
        await writer.wait_closed()


async def test_stream_limit_pauses_reading_without_loss() -> None:
    sent = pattern(2_000_000)

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(handle, LOCALHOST, 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)
        received = bytearray()
        while data := await in_time(reader.read(700)):
            received += data
            await asyncio.sleep(0)
        assert received == sent
        writer.close()
        await writer.wait_closed()


async def test_many_connections_at_once() -> None:
    loop = asyncio.get_running_loop()
    async with serving(Echo) as (_, address):
        connections = await asyncio.gather(*(loop.create_connection(Recorder, *address) for _ in range(100)))
        for number, (transport, _) in enumerate(connections):
            transport.write(b"%08d" % number)
        for number, (_, protocol) in enumerate(connections):
            assert await protocol.bytes_received(8) == b"%08d" % number
        for transport, _ in connections:
            transport.close()
        for _, protocol in connections:
            assert await in_time(protocol.lost) is None
        await turns(6)


async def test_H4_every_ready_stream_is_served_in_each_turn() -> None:
    """Senders that never let their streams run dry must not starve one another."""
    streams = 16
    stop = threading.Event()
    pairs = [tcp_socketpair() for _ in range(streams)]
    loop = asyncio.get_running_loop()
    progress = [0] * streams
    enough = loop.create_future()

    class Counter(asyncio.Protocol):
        def __init__(self, number: int) -> None:
            self.number = number

        def data_received(self, data: bytes) -> None:
            progress[self.number] += len(data)
            if sum(progress) > 64 << 20 and not enough.done():
                enough.set_result(None)

    def send(sock: socket.socket) -> None:
        block = bytes(1 << 18)
        sock.settimeout(0.2)
        while not stop.is_set():
            try:
                sock.send(block)
            except TimeoutError:
                continue
            except OSError:
                return

    transports = []
    for number, (near, _) in enumerate(pairs):
        near.setblocking(False)
        transport, _ = await loop.create_connection(lambda n=number: Counter(n), sock=near)  # type: ignore[misc]
        transports.append(transport)
    threads = [threading.Thread(target=send, args=(far,)) for _, far in pairs]
    for thread in threads:
        thread.start()
    try:
        await in_time(enough)
    finally:
        stop.set()
        for transport in transports:
            transport.abort()
        await turns(6)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        for _, far in pairs:
            far.close()
    # A fair loop gives each sender what its own thread manages to send; a starving one gives some nothing at all.
    assert min(progress) > max(progress) / 50, progress


async def test_H4_one_grant_a_stream_and_turn() -> None:
    """All streams that are ready are read in the same turn, and no stream twice in one."""
    loop = asyncio.get_running_loop()
    deliveries: list[tuple[int, int, int]] = []
    turn = 0

    class Counter(asyncio.Protocol):
        def __init__(self, number: int) -> None:
            self.number = number

        def data_received(self, data: bytes) -> None:
            deliveries.append((turn, self.number, len(data)))

    streams = 40
    pairs = [socket.socketpair() for _ in range(streams)]
    transports = []
    for number, (near, far) in enumerate(pairs):
        near.setblocking(False)
        transport, _ = await loop.create_connection(lambda n=number: Counter(n), sock=near)  # type: ignore[misc]
        transport.pause_reading()
        transports.append(transport)
        far.setblocking(False)
        assert far.send(bytes(150_000)) == 150_000
    for transport in transports:
        transport.resume_reading()
    while sum(size for _, _, size in deliveries) < streams * 150_000:
        assert turn < 1000
        turn += 1
        await asyncio.sleep(0)
    per_turn = [(turn, number) for turn, number, _ in deliveries]
    assert len(per_turn) == len(set(per_turn))
    first = deliveries[0][0]
    assert {number for turn, number, _ in deliveries if turn == first} == set(range(streams))
    if is_ours():
        # The first read of a stream is one of 64 KiB, later ones have the room that asyncio gives at most.
        assert max(size for turn, _, size in deliveries if turn == first) <= 65536
        assert max(size for _, _, size in deliveries) <= 256 * 1024
    for transport in transports:
        transport.abort()
    await turns(6)
    for _, far in pairs:
        far.close()


class NamedSocket(socket.socket):
    """A subclass whose constructor is its own."""

    def __init__(self, name: str, family: int, sock: socket.socket) -> None:
        super().__init__(family, sock.type, sock.proto, fileno=sock.detach())
        self.name = name


async def test_a_socket_of_a_subclass_with_another_constructor() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    named = NamedSocket("a name", near.family, near)
    named.setblocking(False)
    with far:
        transport, protocol = await loop.create_connection(Recorder, sock=named)
        far.sendall(b"hello")
        assert await protocol.bytes_received(5) == b"hello"
        transport.close()
        await protocol.lost
        assert named.fileno() == -1
