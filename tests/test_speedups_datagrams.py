"""The accelerator's path of datagrams beside its Python twin, and that it steps aside (H3)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import gc
import socket
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from support import LOCALHOST, DatagramRecorder, HandlerCalls, endpoint, in_time, turns, udp_socket

from velociloop._accelerator import accelerated
from velociloop.scheduling.dispatch import Dispatcher
from velociloop.transports.datagram import DatagramTransport
from velociloop.uv import sockaddr

pytestmark = pytest.mark.ours("the twins are its own")

TWINS = ["c", "python"] if accelerated() else ["python"]


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if accelerated() and request.param == "python":
            for target, name, reference in [
                (Dispatcher, "drain", Dispatcher._drain_in_python),
                (DatagramTransport, "_sendto", DatagramTransport._sendto_in_python),
            ]:
                stack.enter_context(mock.patch.object(target, name, reference, create=True))
        yield request.param


async def came(protocol: Any, count: int) -> None:
    while len(protocol.received) < count:
        await asyncio.sleep(0)


async def test_back_and_forth(twin: str) -> None:
    class Echo(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data:  # 3.11 and 3.12 send no empty ones
                self.transport.sendto(data, addr)

    with udp_socket() as first, udp_socket() as second:
        async with endpoint(Echo) as (transport, protocol):
            here = transport.get_extra_info("sockname")
            count = 0
            for size in [0, 1, 1000, 9000, 65507, 3] * 2:
                for peer in first, second:
                    peer.sendto(bytes(size), here)
                    count += 1
                    await in_time(came(protocol, count))
                    assert protocol.received[-1] == (bytes(size), peer.getsockname())
                    if size:
                        assert peer.recvfrom(1 << 16) == (bytes(size), here)


async def test_a_batch_keeps_its_order_and_its_senders(twin: str) -> None:
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(udp_socket()) for _ in range(4)]
        async with endpoint() as (transport, protocol):
            here = transport.get_extra_info("sockname")
            expected = []
            for number in range(90):
                peer = peers[number % 4]
                data = b"%d" % number * (1 + number % 7)
                peer.sendto(data, here)
                expected.append((data, peer.getsockname()))
            await in_time(came(protocol, 90))
            assert protocol.received == expected


async def test_addresses_that_are_equal_and_not_the_same(twin: str, handler_calls: HandlerCalls) -> None:
    """80.0 == 80, but socket.sendto() takes only the one."""

    class Name(str):
        __slots__ = ()

    with udp_socket() as peer:
        host, port = peer.getsockname()
        async with endpoint() as (transport, protocol):
            for _ in range(2):
                for address in [(host, port), (Name(host), port)]:
                    transport.sendto(b"x", address)
                    assert peer.recv(10) == b"x"
            transport.sendto(b"x", (host, float(port)))
            assert isinstance(handler_calls.take()["exception"], TypeError)
            assert isinstance(await in_time(protocol.lost), TypeError)


async def test_what_python_decides(twin: str) -> None:
    with udp_socket() as peer:
        name = peer.getsockname()
        async with endpoint() as (transport, _):
            for data in b"known", bytearray(b"array"), memoryview(b"view"), b"known":
                transport.sendto(data, name)
                assert peer.recv(10) == bytes(data)
            transport.sendto(data=b"keyword", addr=name)
            assert peer.recv(10) == b"keyword"
            with pytest.raises(TypeError, match="bytes-like"):
                transport.sendto("text", name)
            with pytest.raises(TypeError):
                transport.sendto()
            transport.close()
            transport.sendto(b"after close", name)
            assert peer.recv(20) == b"after close"
            await turns(3)
            transport.sendto(b"lost", name)
        async with endpoint(remote_addr=name) as (transport, _):
            transport.sendto(b"connected")
            transport.sendto(b"named", name)
            with pytest.raises(ValueError, match="Invalid address"):
                transport.sendto(b"x", (LOCALHOST, 1))
            assert [peer.recv(20), peer.recv(20)] == [b"connected", b"named"]


async def test_an_error_of_the_network(twin: str) -> None:
    with udp_socket() as peer:
        name = peer.getsockname()
        async with endpoint() as (transport, protocol):
            transport.sendto(b"known", name)
            transport.sendto(bytes(65508), name)
            assert [error.errno for error in protocol.errors] == [errno.EMSGSIZE]
            transport.sendto(b"goes on", name)
            assert [peer.recv(10), peer.recv(10)] == [b"known", b"goes on"]


async def test_an_exception_of_the_protocol(twin: str, handler_calls: HandlerCalls) -> None:
    class Failing(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"fail":
                raise ZeroDivisionError
            if data == b"cancel":
                raise asyncio.CancelledError

    with udp_socket() as peer:
        async with endpoint(Failing) as (transport, protocol):
            for data in b"fail", b"cancel", b"x":
                peer.sendto(data, transport.get_extra_info("sockname"))
            await in_time(came(protocol, 3))
            for expected in ZeroDivisionError, asyncio.CancelledError:
                context = handler_calls.take()
                assert isinstance(context["exception"], expected)
                assert context["message"].startswith("Exception in callback ")
                assert "datagram_received" in context["message"]
                assert context["transport"] is transport
            assert not transport.is_closing()


async def test_a_protocol_without_the_method(twin: str, handler_calls: HandlerCalls) -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            transport.set_protocol(object())
            peer.sendto(b"x", transport.get_extra_info("sockname"))
            while not len(handler_calls):
                await asyncio.sleep(0)
            assert isinstance(handler_calls.take()["exception"], AttributeError)
            transport.set_protocol(protocol)


async def test_pause_and_another_protocol(twin: str) -> None:
    class Pausing(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.pause_reading()
            self.transport.set_protocol(second)

    with udp_socket() as peer:
        async with endpoint(Pausing) as (transport, protocol):
            second = DatagramRecorder()
            for data in b"1", b"2", b"3":
                peer.sendto(data, transport.get_extra_info("sockname"))
            await in_time(came(protocol, 1))
            await turns(4)
            assert not second.received
            transport.resume_reading()
            await in_time(came(second, 2))
            assert [data for data, _ in second.received] == [b"2", b"3"]
            transport.set_protocol(protocol)


async def test_close_in_between(twin: str) -> None:
    class Closing(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.abort()

    with udp_socket() as peer:
        async with endpoint(Closing) as (transport, protocol):
            for _ in range(3):
                peer.sendto(b"x", transport.get_extra_info("sockname"))
            assert await in_time(protocol.lost) is None
            assert len(protocol.received) == 1


@pytest.mark.parametrize("debug", [False, True])
def test_H1_interrupted(twin: str, debug: bool) -> None:
    class Interrupted(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"1":
                raise KeyboardInterrupt

    async def begin() -> None:
        transport, protocol = await stack.enter_async_context(endpoint(Interrupted))
        made.append((transport, protocol))
        for data in b"0", b"1", b"2", b"3":
            peer.sendto(data, transport.get_extra_info("sockname"))
        await in_time(came(protocol, 4))

    async def end() -> None:
        assert [data for data, _ in made[0][1].received] == [b"0", b"1", b"2", b"3"]
        await stack.aclose()

    import velociloop

    made: list[Any] = []
    stack = contextlib.AsyncExitStack()
    loop = velociloop.new_event_loop()
    loop.set_debug(debug)
    try:
        with udp_socket() as peer:
            task = loop.create_task(begin())
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(task)
            loop.run_until_complete(task)
            loop.run_until_complete(end())
    finally:
        loop.close()


async def test_H1_a_nested_turn(twin: str) -> None:
    loop: Any = asyncio.get_running_loop()

    class Nesting(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if data == b"outer":
                while len(self.received) < 3:
                    loop.call_soon(int)
                    loop._run_once()

    with udp_socket() as peer:
        async with endpoint(Nesting) as (transport, protocol):
            for data in b"outer", b"inner", b"last":
                peer.sendto(data, transport.get_extra_info("sockname"))
            await in_time(came(protocol, 3))
            assert [data for data, _ in protocol.received] == [b"outer", b"inner", b"last"]


async def test_context(twin: str) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    class Counting(DatagramRecorder):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            variable.set(variable.get() + 1)
            seen.append(variable.get())

    seen: list[int] = []
    with udp_socket() as peer:
        async with endpoint(Counting) as (transport, protocol):
            for _ in range(3):
                peer.sendto(b"x", transport.get_extra_info("sockname"))
            await in_time(came(protocol, 3))
    assert seen == [1, 2, 3]
    assert variable.get() == 0


async def test_H3_a_replaced_on_datagram_is_obeyed() -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            original = transport.on_datagram
            sizes: list[int] = []

            def counting(result: int, slab: Any, offset: int) -> None:
                sizes.append(result)
                original(result, slab, offset)

            for target, new in [
                (transport, counting),
                (type(transport), lambda self, result, slab, offset: counting(result, slab, offset)),
            ]:
                with mock.patch.object(target, "on_datagram", new):
                    before = len(protocol.received)
                    peer.sendto(b"patched", transport.get_extra_info("sockname"))
                    await in_time(came(protocol, before + 1))
            peer.sendto(b"not", transport.get_extra_info("sockname"))
            await in_time(came(protocol, 3))
            assert sizes == [7, 7]


def test_the_table_of_receivers_is_bounded() -> None:
    table: dict[tuple[str, int], bytes] = {}
    for port in range(10_000):
        sockaddr.remember(table, (LOCALHOST, port), b"")
    assert 0 < len(table) <= 4096
    assert sockaddr.receivers(int(socket.AF_INET)) is not sockaddr.receivers(int(socket.AF_INET6))


REPETITIONS = 300


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
async def test_no_reference_is_leaked(twin: str) -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            loop: Any = asyncio.get_running_loop()
            here, there = transport.get_extra_info("sockname"), peer.getsockname()
            message = bytes(600)
            peer.sendto(message, here)
            await came(protocol, 1)
            _, address = protocol.received.pop()
            shared = [transport, protocol, transport._read_context, transport._scope, loop, message, there, address]

            async def repeat() -> None:
                for _ in range(REPETITIONS):
                    peer.sendto(message, here)
                    await came(protocol, 1)
                    protocol.received.clear()
                    transport.sendto(message, there)
                    peer.recv(1000)

            def counts() -> tuple[list[int], int]:
                gc.collect()
                return [sys.getrefcount(item) for item in shared], sys.getallocatedblocks()

            await repeat()
            references, blocks = counts()
            await repeat()
            references_after, blocks_after = counts()
            assert references_after == references
            assert blocks_after - blocks < REPETITIONS // 2
