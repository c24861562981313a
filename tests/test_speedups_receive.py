"""What a stream that sends much is read by, and BufferedProtocol: the accelerator's path beside its Python twin.

A read of 8 KiB or more has the next one only announced; it happens when the announcement is dispatched.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import contextvars
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import pytest
from support import HandlerCalls, Recorder, in_time, raw_connection, turns

from velociloop._accelerator import accelerated
from velociloop.scheduling.dispatch import Dispatcher

pytestmark = pytest.mark.ours("the twins are its own")

TWINS = ["c", "python"] if accelerated() else ["python"]
MUCH = 20_000


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if accelerated() and request.param == "python":
            stack.enter_context(mock.patch.object(Dispatcher, "drain", Dispatcher._drain_in_python))
        yield request.param


class Buffered(asyncio.BufferedProtocol):
    """Collects what comes through a buffer of ``room`` bytes; subclasses misbehave."""

    room = 1 << 16

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.received = bytearray()
        self.sizes: list[int] = []
        self.transport: Any = None
        self.eof = False
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()
        self.buffer: Any = bytearray(self.room)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> Any:
        assert sizehint == -1
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.sizes.append(nbytes)
        self.received += memoryview(self.buffer).cast("B")[:nbytes]

    def eof_received(self) -> bool:
        self.eof = True
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


async def arrived(protocol: Any, count: int) -> None:
    while len(protocol.received) < count:
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def sender_of_much(factory: Any) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A connection whose next read is announced only, with nothing to read."""
    async with raw_connection(factory) as (transport, protocol, peer):
        peer.sock.sendall(bytes(MUCH))
        await in_time(arrived(protocol, MUCH))
        protocol.received.clear()
        peer.sock.setblocking(True)
        with mock.patch.object(type(transport), "_hold", side_effect=AssertionError("nothing was read yet")):
            yield transport, protocol, peer


@pytest.mark.parametrize("factory", [Recorder, Buffered])
@pytest.mark.parametrize("size", [1, 8191, 8192, 70_000, 150_000, 400_000])
async def test_sizes(twin: str, factory: Any, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with raw_connection(factory, "unix") as (_, protocol, peer):
        for number in range(1, 4):
            await in_time(asyncio.gather(asyncio.to_thread(peer.sock.sendall, data), arrived(protocol, number * size)))
        assert protocol.received == data * 3


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_pausing_leaves_it_in_the_kernel(twin: str, factory: Any) -> None:
    async with sender_of_much(factory) as (transport, protocol, peer):
        loop = asyncio.get_running_loop()

        async def announced() -> None:
            peer.sock.sendall(b"x" * MUCH)
            loop.call_soon(transport.pause_reading)  # after the poll of the next turn, before what it dispatches

        await announced()
        await turns(6)
        assert not protocol.received
        assert transport._held is None
        transport.resume_reading()
        await in_time(arrived(protocol, MUCH))


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_end_and_error(twin: str, factory: Any) -> None:
    async with sender_of_much(factory) as (_, protocol, peer):
        peer.sock.close()
        assert await in_time(protocol.lost) is None
        assert protocol.eof if isinstance(protocol, Buffered) else "eof" in protocol.events
    async with sender_of_much(factory) as (transport, protocol, peer):
        with mock.patch.object(transport, "_read_context", transport._read_context):
            peer.reset()
            assert isinstance(await in_time(protocol.lost), ConnectionResetError)


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_somebody_else_has_read_it(twin: str, factory: Any) -> None:
    async with sender_of_much(factory) as (transport, protocol, peer):
        loop: Any = asyncio.get_running_loop()
        peer.sock.sendall(b"x" * MUCH)
        stolen: list[bytes] = []
        process = loop._process_events

        def steal(events: Any) -> None:
            if not stolen and loop._uv_selector.has_records:
                stolen.append(transport._sock.recv(MUCH))
            process(events)

        with mock.patch.object(loop, "_process_events", steal):
            while not stolen:
                await asyncio.sleep(0)
        await turns(3)
        assert not protocol.received and not transport.is_closing()
        peer.sock.sendall(b"goes on")
        await in_time(arrived(protocol, 7))


async def test_an_announcement_of_a_closed_transport(twin: str) -> None:
    async with sender_of_much(Recorder) as (transport, protocol, peer):
        loop: Any = asyncio.get_running_loop()
        peer.sock.sendall(b"x" * MUCH)
        process = loop._process_events

        def close(events: Any) -> None:
            process(events)
            if loop._uv_selector.has_records:
                transport.abort()

        with mock.patch.object(loop, "_process_events", close):
            assert await in_time(protocol.lost) is None
        assert not protocol.received


class Answering(Buffered):
    """Answers each piece, at most one mark of it; does what `then` says after each."""

    then: Any = None

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        self.polls.add(asyncio.get_running_loop().statistics().polls)  # type: ignore[attr-defined]
        if self.then is not None:
            self.then()

    def __init__(self) -> None:
        super().__init__()
        self.polls: set[int] = set()


async def test_a_message_larger_than_the_buffer(twin: str) -> None:
    """All of it is received behind one poll, within one callback: what is answered leaves together."""
    async with sender_of_much(Answering) as (transport, protocol, peer):
        protocol.buffer = bytearray(8192)
        protocol.sizes.clear()
        protocol.polls.clear()
        transport.pause_reading()
        before = len(protocol.received)
        peer.sock.sendall(b"m" * 30_000)
        await turns()
        transport.resume_reading()
        await arrived(protocol, before + 30_000)
        assert protocol.sizes == [8192, 8192, 8192, 30_000 - 3 * 8192]
        assert len(protocol.polls) == 1


@pytest.mark.parametrize("what", ["pause", "close", "protocol"])
async def test_between_two_buffers(twin: str, what: str) -> None:
    """After each piece the protocol may stop, or leave its place to another one."""
    async with sender_of_much(Answering) as (transport, protocol, peer):
        second = Recorder()
        protocol.buffer = bytearray(8192)
        transport.pause_reading()
        protocol.sizes.clear()
        before = len(protocol.received)
        peer.sock.sendall(b"m" * 30_000)
        await turns()
        protocol.then = {
            "pause": transport.pause_reading,
            "close": transport.close,
            "protocol": lambda: transport.set_protocol(second),
        }[what]
        transport.resume_reading()
        await arrived(protocol, before + 8192)
        await turns(5)
        assert protocol.sizes == [8192]
        if what == "pause":
            protocol.then = None
            transport.resume_reading()
            await arrived(protocol, before + 30_000)
        elif what == "protocol":
            assert await second.bytes_received(30_000 - 8192) == b"m" * (30_000 - 8192)


@pytest.mark.parametrize("much", [False, True])
async def test_another_protocol_in_between(twin: str, much: bool) -> None:
    class Switching(Buffered):
        room = 5

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.set_protocol(second)

    second = Recorder()
    async with raw_connection(Switching) as (transport, protocol, peer):
        if much:
            transport.set_protocol(second)
            peer.sock.sendall(bytes(MUCH))
            await second.bytes_received(MUCH)
            second.received.clear()
            transport.set_protocol(protocol)
        peer.sock.sendall(b"firstsecond")
        assert await second.bytes_received(6) == b"second"
        assert protocol.received == b"first"
        transport.set_protocol(protocol)


async def test_a_protocol_put_in_place_by_get_buffer(twin: str) -> None:
    class Switching(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            self.transport.set_protocol(second)
            return second.buffer

    async with raw_connection(Switching) as (transport, _, peer):
        second = Buffered()
        second.transport = transport
        peer.sock.sendall(b"for the second")
        await in_time(arrived(second, 14))


@pytest.mark.parametrize("much", [False, True])
@pytest.mark.parametrize("where", ["get_buffer", "buffer_updated"])
async def test_pause_in_a_buffered_protocol(twin: str, where: str, much: bool) -> None:
    class Pausing(Buffered):
        room = 4

    def pausing(self: Any, number: int) -> Any:
        result = original(self, number)
        self.transport.pause_reading()
        return result

    original = getattr(Buffered, where)
    async with raw_connection(Pausing) as (transport, protocol, peer):
        if much:
            protocol.buffer = bytearray(1 << 16)
            peer.sock.sendall(bytes(MUCH))
            await in_time(arrived(protocol, MUCH))
            protocol.buffer = bytearray(4)
        with mock.patch.object(Buffered, where, pausing):
            peer.sock.sendall(b"0123456789")
            for count in 4, 8, 10:
                transport.resume_reading()
                await in_time(arrived(protocol, count + much * MUCH))
                await turns(4)
                assert len(protocol.received) == count + much * MUCH
        assert protocol.received[much * MUCH :] == b"0123456789"


class Unusable:
    """Neither bytes-like nor without a length."""

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("much", [False, True])
@pytest.mark.parametrize(
    ("buffer", "expected"),
    [
        (bytearray(), RuntimeError),
        (b"read-only", TypeError),
        (memoryview(bytearray(10))[::2], TypeError),
        (None, TypeError),
        (Unusable(), TypeError),
        (ZeroDivisionError(), ZeroDivisionError),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ],
    ids=["empty", "readonly", "strided", "none", "unusable", "raises", "cancelled"],
)
async def test_get_buffer_that_fails(
    twin: str, buffer: Any, expected: type[BaseException], much: bool, handler_calls: HandlerCalls
) -> None:
    class Failing(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            if isinstance(self.buffer, BaseException):
                raise self.buffer
            return self.buffer

    async with raw_connection(Failing) as (_, protocol, peer):
        if much:
            peer.sock.sendall(bytes(MUCH))
            await in_time(arrived(protocol, MUCH))
        protocol.buffer = buffer
        peer.sock.sendall(b"x")
        assert isinstance(await in_time(protocol.lost), expected)
        context = handler_calls.take()
        assert context["message"] == "Fatal error: protocol.get_buffer() call failed."
        assert isinstance(context["exception"], expected)
        assert protocol.sizes == ([MUCH] if much else [])


async def test_other_buffers(twin: str) -> None:
    async with raw_connection(Buffered) as (_, protocol, peer):
        for buffer in array.array("i", range(4)), memoryview(bytearray(16)).cast("B", (4, 4)), bytearray(3):
            protocol.buffer = buffer
            protocol.received.clear()
            peer.sock.sendall(b"16 bytes of data")
            await in_time(arrived(protocol, 16))
            assert protocol.received == b"16 bytes of data"


@pytest.mark.parametrize("much", [False, True])
async def test_buffer_updated_that_fails(twin: str, much: bool, handler_calls: HandlerCalls) -> None:
    handled: list[BaseException | None] = []

    class Failing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            if nbytes < MUCH:
                raise ZeroDivisionError

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        handled.append(sys.exc_info()[1])
        handler_calls.record(loop, context)

    async with raw_connection(Failing) as (_, protocol, peer):
        if much:
            peer.sock.sendall(bytes(MUCH))
            await in_time(arrived(protocol, MUCH))
        asyncio.get_running_loop().set_exception_handler(handler)
        peer.sock.sendall(b"x")
        exception = await in_time(protocol.lost)
        context = handler_calls.take()
        assert context["message"] == "Fatal error: protocol.buffer_updated() call failed."
        assert context["exception"] is exception is handled[0]


@pytest.mark.parametrize("where", ["get_buffer", "buffer_updated"])
@pytest.mark.parametrize("much", [False, True])
@pytest.mark.parametrize("debug", [False, True])
def test_H1_interrupted(twin: str, where: str, much: bool, debug: bool) -> None:
    """KeyboardInterrupt out of a buffered protocol: what was not taken comes in the next run."""

    class Interrupted(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            if where == "get_buffer" and self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return super().get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            if where == "buffer_updated" and self.armed:
                self.armed = False
                raise KeyboardInterrupt

        armed = False

    async def begin() -> None:
        connection.append(await stack.enter_async_context(raw_connection(Interrupted)))
        _, protocol, peer = connection[0]
        if much:
            peer.sock.sendall(bytes(MUCH))
            await in_time(arrived(protocol, MUCH))
            protocol.received.clear()
        protocol.buffer = bytearray(4)
        protocol.armed = True
        peer.sock.sendall(b"0123456789")
        await in_time(arrived(protocol, 10))

    async def end() -> None:
        await in_time(arrived(connection[0][1], 10))
        assert connection[0][1].received == b"0123456789"
        await stack.aclose()

    import velociloop

    connection: list[Any] = []
    stack = contextlib.AsyncExitStack()
    loop = velociloop.new_event_loop()
    loop.set_debug(debug)
    try:
        task = loop.create_task(begin())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        loop.run_until_complete(task)
        loop.run_until_complete(end())
    finally:
        loop.close()


@pytest.mark.parametrize("much", [False, True])
async def test_H1_a_nested_turn(twin: str, much: bool) -> None:
    loop: Any = asyncio.get_running_loop()

    class Nesting(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            if self.received.endswith(b"outer"):
                peer.sock.sendall(b"inner")
                while not self.received.endswith(b"inner"):
                    loop.call_soon(int)
                    loop._run_once()

    async with raw_connection(Nesting) as (_, protocol, peer):
        if much:
            peer.sock.sendall(bytes(MUCH))
            await in_time(arrived(protocol, MUCH))
        peer.sock.sendall(b"outer")
        await in_time(arrived(protocol, 10 + much * MUCH))


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_context(twin: str, factory: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []
    name = "buffer_updated" if factory is Buffered else "data_received"
    original = getattr(factory, name)

    def counting(self: Any, argument: Any) -> None:
        variable.set(variable.get() + 1)
        seen.append(variable.get())
        original(self, argument)

    with mock.patch.object(factory, name, counting):
        async with sender_of_much(factory) as (_, protocol, peer):
            peer.sock.sendall(b"x")
            await in_time(arrived(protocol, 1))
            peer.sock.sendall(b"x")
            await in_time(arrived(protocol, 2))
    assert seen == list(range(1, len(seen) + 1)) and len(seen) >= 3
    assert variable.get() == 0


REPETITIONS = 300


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
@pytest.mark.parametrize("factory", [Recorder, Buffered])
@pytest.mark.parametrize("size", [100, MUCH])
async def test_no_reference_is_leaked(twin: str, factory: Any, size: int) -> None:
    async with raw_connection(factory, "unix") as (transport, protocol, peer):
        loop: Any = asyncio.get_running_loop()
        message = bytes(size)
        shared = [transport, protocol, transport._read_context, transport._core, loop]
        shared += [protocol.buffer] if factory is Buffered else []

        async def repeat() -> None:
            for _ in range(REPETITIONS):
                peer.sock.sendall(message)
                await arrived(protocol, size)
                protocol.received.clear()
                getattr(protocol, "sizes", []).clear()

        def counts() -> tuple[list[int], int]:
            gc.collect()
            return [sys.getrefcount(item) for item in shared], sys.getallocatedblocks()

        await repeat()
        references, blocks = counts()
        await repeat()
        references_after, blocks_after = counts()
        assert references_after == references
        assert blocks_after - blocks < REPETITIONS // 2
