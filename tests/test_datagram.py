"""Datagram endpoints: making them, receiving, errors, information, and their end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    LOCALHOST,
    DatagramEcho,
    DatagramRecorder,
    HandlerCalls,
    endpoint,
    in_time,
    is_ours,
    open_descriptors,
    resident_bytes,
    turns,
    udp_socket,
    until,
)

Loop = asyncio.AbstractEventLoop

pytestmark = pytest.mark.debug_variant

LARGEST = 65507  # what IPv4 leaves of 65,535 bytes


async def make(**options: Any) -> tuple[Any, Any]:
    return await asyncio.get_running_loop().create_datagram_endpoint(DatagramRecorder, **options)


# Making


@pytest.mark.parametrize("host", [LOCALHOST, "::1"])
async def test_an_exchange(host: str) -> None:
    async with endpoint(DatagramEcho, local_addr=(host, 0)) as (server, serving):
        name = server.get_extra_info("sockname")
        async with endpoint(local_addr=(host, 0)) as (near, client), endpoint(remote_addr=name[:2]) as (fixed, other):
            near.sendto(b"one", name)
            assert await client.count(1) == [b"one"]
            assert client.received[0][1] == name
            assert serving.received[0][1] == near.get_extra_info("sockname")
            assert other.transport is fixed
            fixed.sendto(b"two")
            fixed.sendto(b"three", None)
            assert await other.count(2) == [b"two", b"three"]
            assert fixed.get_extra_info("peername") == name
            assert near.get_extra_info("peername") is None


async def test_local_and_remote_address() -> None:
    with udp_socket() as peer:
        async with endpoint(local_addr=(LOCALHOST, 0), remote_addr=peer.getsockname()) as (transport, protocol):
            transport.sendto(b"x")
            data, sender = await asyncio.to_thread(peer.recvfrom, 10)
            assert (data, sender) == (b"x", transport.get_extra_info("sockname"))
            peer.sendto(b"y", sender)
            await protocol.count(1)
            assert protocol.received == [(b"y", peer.getsockname())]


async def test_arguments() -> None:
    with udp_socket() as sock, socket.socket() as stream:
        for wrong, error in (
            ({}, ValueError),
            ({"sock": stream}, ValueError),
            ({"sock": sock, "local_addr": (LOCALHOST, 0)}, ValueError),
            ({"sock": sock, "reuse_port": True}, ValueError),
            ({"local_addr": LOCALHOST}, TypeError),
            ({"local_addr": (LOCALHOST, 0), "remote_addr": ("::1", 9)}, ValueError),
            ({"local_addr": sock.getsockname()}, OSError),  # in use
        ):
            with pytest.raises(error):
                await make(**wrong)
    await turns()


async def test_options() -> None:
    option = "SO_REUSEPORT"
    async with endpoint() as (transport, _):
        sock = transport.get_extra_info("socket")
        for name in "SO_REUSEADDR", option, "SO_BROADCAST":
            assert not sock.getsockopt(socket.SOL_SOCKET, getattr(socket, name)), name
    async with endpoint(local_addr=(LOCALHOST, 0), reuse_port=True, allow_broadcast=True) as (transport, _):
        sock = transport.get_extra_info("socket")
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert sock.getsockopt(socket.SOL_SOCKET, getattr(socket, option))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
        async with endpoint(local_addr=sock.getsockname(), reuse_port=True) as (second, _):
            assert second.get_extra_info("sockname") == sock.getsockname()


async def test_family_alone() -> None:
    async with endpoint(DatagramEcho) as (server, _), endpoint(family=socket.AF_INET) as (transport, protocol):
        assert transport.get_extra_info("sockname") == ("0.0.0.0", 0)
        transport.sendto(b"x", server.get_extra_info("sockname"))
        assert await protocol.count(1) == [b"x"]


@pytest.mark.parametrize("connected", [False, True])
async def test_the_users_socket(connected: bool) -> None:
    with udp_socket() as peer, udp_socket() as sock:
        if connected:
            sock.connect(peer.getsockname())
        fd = sock.fileno()
        async with endpoint(sock=sock) as (transport, protocol):
            assert transport.get_extra_info("socket").fileno() == fd == sock.fileno()
            transport.sendto(b"x", peer.getsockname())
            sock.sendto(b"y", *([] if connected else [peer.getsockname()])) if not connected else sock.send(b"y")
            assert [await asyncio.to_thread(peer.recv, 10) for _ in "xy"] == [b"x", b"y"]
            peer.sendto(b"back", sock.getsockname())
            assert await protocol.count(1) == [b"back"]
            with pytest.raises(RuntimeError, match="is used by transport"):
                asyncio.get_running_loop().add_reader(sock, print)
        assert sock.fileno() == -1


async def test_closing_the_users_socket_under_the_transport() -> None:
    """asyncio goes deaf; velociloop has a descriptor of its own.  Neither fails, nor harms who gets the number."""
    with udp_socket() as sock:
        async with endpoint(sock=sock):
            await turns()
            sock.close()
            with udp_socket():
                await turns()


# Receiving


async def test_H14_empty_and_largest_datagrams_of_one_poll() -> None:
    """Each keeps its bounds, an empty one is delivered, and what libuv says at the end of a poll is not one."""
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            sent = [b"", b"x", bytes(range(256)) * 255 + bytes(LARGEST - 65280), b"", b"y"]
            for data in sent:
                peer.sendto(data, transport.get_extra_info("sockname"))
            await protocol.count(len(sent))
            await turns()
            assert protocol.received == [(data, peer.getsockname()) for data in sent]


async def test_H14_many_datagrams_a_poll_and_no_starved_stream() -> None:
    """libuv takes up to 32 a poll; what arrives on a stream in that poll does not wait for the rest."""
    near, far = socket.socketpair()
    order: list[str] = []

    class Noting(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            order.append("datagram")

    with far, near, udp_socket() as peer:
        near.setblocking(False)
        async with endpoint(Noting) as (transport, protocol):
            asyncio.get_running_loop().add_reader(near, lambda: order.append("stream" if near.recv(10) else ""))
            for _ in range(100):
                peer.sendto(b"x", transport.get_extra_info("sockname"))
            far.send(b"me too")
            await protocol.count(100)
            await turns()
            assert order.index("stream") <= 32
            asyncio.get_running_loop().remove_reader(near)


async def test_5000_datagrams_leave_nothing_behind() -> None:
    """In acknowledged bursts, so that no socket buffer overflows."""
    total, burst = 5000, 50

    async def exchange() -> None:
        async with endpoint(DatagramEcho) as (server, serving):
            async with endpoint(remote_addr=server.get_extra_info("sockname")) as (client, echoed):
                for start in range(0, total, burst):
                    for number in range(start, start + burst):
                        client.sendto(number.to_bytes(4, "big") * 100)
                    await echoed.count(start + burst)
                numbers = [int.from_bytes(data[:4], "big") for data in echoed.payloads]
                assert numbers == list(range(total))
                assert len(serving.received) == total
                assert not echoed.errors and not serving.errors

    await exchange()
    gc.collect()
    descriptors, memory = open_descriptors(), resident_bytes()
    await exchange()
    assert open_descriptors() == descriptors
    gc.collect()
    assert resident_bytes() - memory < 8 * 2**20  # 5,000 grants would be 312 MiB
    statistics = getattr(asyncio.get_running_loop(), "statistics", None)
    if statistics is not None:
        assert statistics().slab_segments == statistics().ring_segments == 1


async def test_pause_and_resume_reading() -> None:
    """asyncio's datagram transport has them, undocumented; programs ask with hasattr()."""
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            name = transport.get_extra_info("sockname")
            assert transport.is_reading()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            for data in b"one", b"two":
                peer.sendto(data, name)
            await turns(5)
            assert protocol.received == []
            transport.resume_reading()
            transport.resume_reading()
            peer.sendto(b"three", name)
            assert await protocol.count(3) == [b"one", b"two", b"three"]


async def test_pausing_in_datagram_received() -> None:
    class Pausing(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.pause_reading()

    with udp_socket() as peer:
        async with endpoint(Pausing) as (transport, protocol):
            for number in range(5):
                peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
            for number in range(5):
                await protocol.count(number + 1)
                await turns()
                assert len(protocol.received) == number + 1
                transport.resume_reading()
            assert protocol.payloads == [b"0", b"1", b"2", b"3", b"4"]


async def test_closing_in_datagram_received() -> None:
    class Closing(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    with udp_socket() as peer:
        async with endpoint(Closing) as (transport, protocol):
            for _ in range(5):
                peer.sendto(b"x", transport.get_extra_info("sockname"))
            assert await in_time(protocol.lost) is None
            assert protocol.payloads == [b"x"]


# Errors


async def test_connection_refused_goes_to_error_received() -> None:
    with udp_socket() as peer:
        name = peer.getsockname()
    async with endpoint(remote_addr=name) as (transport, protocol):
        for number in 1, 2:
            transport.sendto(b"anybody?")
            assert isinstance(await protocol.error(number), ConnectionRefusedError)
            assert not transport.is_closing()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(name)
            peer.sendto(b"now", transport.get_extra_info("sockname"))
            assert await protocol.count(1) == [b"now"]
        assert len(protocol.errors) == 2


@pytest.mark.parametrize("method", ["connection_made", "datagram_received", "error_received", "connection_lost"])
async def test_exceptions_of_a_protocol(method: str, handler_calls: HandlerCalls) -> None:
    """Reported, and the transport goes on: it has no connection that could be in an unknown state."""

    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    failing = type("Failing", (DatagramRecorder,), {method: fail})
    with udp_socket() as peer:
        name = peer.getsockname()
    async with endpoint(failing, remote_addr=name) as (transport, protocol):
        transport.sendto(b"x")  # refused
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            await turns(5)
            peer.bind(name)
            peer.sendto(b"y", transport.get_extra_info("sockname"))
            if method == "connection_lost":
                await protocol.count(1)
                transport.abort()
            await until(lambda: handler_calls)
            call = handler_calls.take()
            assert isinstance(call["exception"], ZeroDivisionError)
            assert call["message"].startswith("Exception in callback ")
            if method != "connection_lost":
                assert not transport.is_closing()
                await until(lambda: method == "datagram_received" or protocol.received)


@pytest.mark.parametrize("method", ["datagram_received", "error_received"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_loses_nothing(loop: Loop, method: str, error: type[BaseException]) -> None:
    class Interrupting(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if method == "datagram_received":
                raise error

        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            if method == "error_received":
                raise error

    async def start() -> Any:
        return await loop.create_datagram_endpoint(Interrupting, remote_addr=name)

    with udp_socket() as peer:
        name = peer.getsockname()
    transport, protocol = loop.run_until_complete(start())
    transport.sendto(b"refused")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(name)
        for number in range(4):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        caught = 0
        for _ in range(20):
            loop.call_soon(loop.stop)
            try:
                loop.run_forever()
            except error:
                caught += 1
    assert protocol.payloads == [b"0", b"1", b"2", b"3"]
    assert len(protocol.errors) == 1
    assert caught == (4 if method == "datagram_received" else 1)
    transport.abort()
    loop.run_until_complete(turns())


async def test_contexts() -> None:
    """connection_made and receiving have a copy each of the maker's context; datagrams share theirs."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    class Looking(DatagramRecorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            seen.append(variable.get())
            variable.set("made")

        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            seen.append(variable.get())
            variable.set("received")

    variable.set("maker")
    with udp_socket() as peer:
        async with endpoint(Looking) as (transport, protocol):
            variable.set("changed")
            for count in 1, 2:
                peer.sendto(b"x", transport.get_extra_info("sockname"))
                await protocol.count(count)
    assert seen == ["maker", "maker", "received"]


# Information and the end


async def test_need_19_real_classes() -> None:
    async with endpoint() as (transport, protocol):
        if is_ours() or issubclass(asyncio.selector_events._SelectorDatagramTransport, asyncio.DatagramTransport):  # type: ignore[attr-defined]
            assert isinstance(transport, asyncio.DatagramTransport)
        assert isinstance(transport, asyncio.Transport)  # as asyncio's is
        assert type(transport.get_extra_info("socket")).__name__ == "TransportSocket"
        assert transport.get_protocol() is protocol
        other = DatagramRecorder()
        transport.set_protocol(other)
        assert transport.get_protocol() is other
        with udp_socket() as peer:
            peer.sendto(b"x", transport.get_extra_info("sockname"))
            assert await other.count(1) == [b"x"]
        with pytest.raises(NotImplementedError):
            transport.write(b"x")
        other.lost.add_done_callback(lambda _: protocol.lost.set_result(None))  # type: ignore[attr-defined]


async def test_information_after_the_end() -> None:
    async with endpoint() as (transport, protocol):
        name = transport.get_extra_info("sockname")
        sock = transport.get_extra_info("socket")
        fd = sock.fileno()
        assert f"fd={fd}" in repr(transport)
        transport.close()
        transport.close()
        assert transport.is_closing()
        assert await in_time(protocol.lost) is None
        await turns()
        assert transport.get_extra_info("sockname") == name
        assert transport.get_extra_info("nothing", 7) == 7
        assert sock.fileno() == -1
        assert "closed" in repr(transport)
        asyncio.get_running_loop().remove_reader(fd)  # no transport has it any more


def collect(holder: list[Any]) -> None:
    holder.clear()
    gc.collect()


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy collects when it sees fit")
def test_a_transport_left_open_warns_once_its_loop_is_closed(loop_factory: Callable[[], Loop]) -> None:
    loop = loop_factory()
    transport = loop.run_until_complete(make(local_addr=(LOCALHOST, 0)))[0]
    loop.run_until_complete(turns())
    fd = transport.get_extra_info("socket").fileno()
    assert fd in open_descriptors()
    loop.close()
    holder = [transport]
    del transport
    with pytest.warns(ResourceWarning, match="unclosed"):
        collect(holder)
    assert fd not in open_descriptors()


async def test_cancelled_while_it_is_made() -> None:
    before = open_descriptors()
    for _ in range(3):
        task = asyncio.ensure_future(make(local_addr=(LOCALHOST, 0)))
        for _ in range(2):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await turns(5)
    assert open_descriptors() == before


# Unix


async def test_unix_datagrams() -> None:
    """Inherited from asyncio; the names of senders are whole, abstract ones with zero bytes too (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        async with endpoint(DatagramEcho, local_addr=path, family=socket.AF_UNIX) as (server, serving):
            assert server.get_extra_info("sockname") == path
            abstract = f"\0velociloop-{os.getpid()}\0\0"
            async with endpoint(local_addr=abstract, remote_addr=path, family=socket.AF_UNIX) as (client, echoed):
                client.sendto(b"one")
                client.sendto(b"")
                assert (await echoed.count(1))[0] == b"one"
                assert serving.received[0] == (b"one", abstract.encode())
                assert echoed.received[0][1] == path
        async with endpoint(local_addr=path, family=socket.AF_UNIX) as (_, named):  # the stale name is replaced
            async with endpoint(family=socket.AF_UNIX) as (unnamed, _):
                unnamed.sendto(b"two", path)
                await named.count(1)
                assert named.received == [(b"two", None)]
