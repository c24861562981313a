"""The accelerator's dispatch and stream path beside their Python twins, and that they step aside (H3)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from support import HandlerCalls, Recorder, raw_connection, turns

from velociloop._accelerator import accelerated
from velociloop.scheduling.dispatch import Dispatcher
from velociloop.transports.sending import CALM_CALLBACKS, SendingSide
from velociloop.transports.states import Cork

pytestmark = pytest.mark.ours("the twins are its own")

#: C where it is there, and always Python: what the loop calls, replaced by the reference.
TWINS = ["c", "python"] if accelerated() else ["python"]


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if accelerated() and request.param == "python":
            for target, name, reference in [
                (Dispatcher, "drain", Dispatcher._drain_in_python),
                (SendingSide, "_write", SendingSide._write_in_python),
                (SendingSide, "on_callback_end", SendingSide._callback_end_in_python),
            ]:
                stack.enter_context(mock.patch.object(target, name, reference, create=True))
        yield request.param


class Echo(Recorder):
    """Sends each message back, in as many writes as its first byte says."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        for _ in range(data[0] - ord("0")):
            self.transport.write(data)


async def test_one_write_and_many(twin: str) -> None:
    async with raw_connection(Echo) as (transport, _, peer):
        for message, cork in [(b"1", Cork.OUT), (b"3", Cork.IN), (b"1", Cork.IN), (b"0", Cork.IN), (b"2", Cork.IN)]:
            peer.sock.sendall(message)
            count = int(message)
            if count:
                assert await peer.receive_all(count) == message * count
            else:
                await turns(6)
            assert transport._cork is cork
        for _ in range(CALM_CALLBACKS):
            peer.sock.sendall(b"1")
            assert await peer.receive_all(1) == b"1"
        assert transport._cork is Cork.OUT
        assert (transport._corked, transport._corked_bytes, transport._callback_writes) == (None, 0, 0)


@pytest.mark.parametrize("size", [1, 1000, 70_000])
async def test_corked_past_the_mark(twin: str, size: int) -> None:
    """H5: what goes past the high-water mark leaves inside `write()`."""

    class Writer(Recorder):
        def data_received(self, data: bytes) -> None:
            for number in range(5):
                self.transport.write(bytes([number]) * size)
                assert self.transport._corked_bytes <= 1500

    async with raw_connection(Writer) as (transport, _, peer):
        transport.set_write_buffer_limits(high=1500)
        peer.sock.sendall(b"go")
        expected = b"".join(bytes([number]) * size for number in range(5))
        assert await peer.receive_all(len(expected)) == expected


@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"aXbXcX")[::2], b""])
async def test_other_bytes(twin: str, data: Any) -> None:
    async with raw_connection(Recorder) as (transport, _, peer):
        for _ in range(3):
            transport.write(data)
        transport.write(b"end")
        expected = bytes(data) * 3 + b"end"
        assert await peer.receive_all(len(expected)) == expected
        with pytest.raises(TypeError, match="bytes-like"):
            transport.write("text")
        with pytest.raises(TypeError):
            transport.write()
        transport.write(data=b"keyword")
        assert await peer.receive_all(7) == b"keyword"


async def test_states_that_python_decides(twin: str) -> None:
    """write() after write_eof(), during sendfile, after the connection was lost, and with something unsent."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, _, peer):
        transport.write(b"x" * (1 << 20))
        assert transport._unsent_bytes
        transport.write(b"y")
        transport._make_empty_waiter()
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            transport.write(b"z")
        transport._reset_empty_waiter()
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.write(b"z")
        assert await peer.receive_to_eof() == b"x" * (1 << 20) + b"y"
    async with raw_connection(Recorder) as (transport, _, peer):
        transport.abort()
        transport.write(b"lost")
        assert transport._conn_lost == 2


async def test_a_failed_write_ends_the_connection(twin: str) -> None:
    async with raw_connection(Recorder, "unix") as (transport, protocol, peer):
        peer.sock.close()
        transport.write(b"to nobody")
        assert transport.is_closing()
        assert isinstance(await protocol.lost, BrokenPipeError)


async def test_context_of_data_received(twin: str) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    class Counting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            variable.set(variable.get() + 1)
            seen.append(variable.get())

    seen: list[int] = []
    async with raw_connection(Counting) as (_, protocol, peer):
        for number in range(1, 4):
            peer.sock.sendall(b"x")
            await protocol.bytes_received(number)
        assert seen == [1, 2, 3]
        assert variable.get() == 0


async def test_H1_a_nested_turn_delivers_to_the_same_protocol(twin: str) -> None:
    """Its context cannot be entered twice, so a copy takes over."""
    loop: Any = asyncio.get_running_loop()

    class Nesting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if data == b"outer":
                peer.sock.sendall(b"inner")
                while len(self.received) < 10:
                    loop.call_soon(int)
                    loop._run_once()

    async with raw_connection(Nesting) as (_, protocol, peer):
        peer.sock.sendall(b"outer")
        assert await protocol.bytes_received(10) == b"outerinner"


async def test_an_exception_of_the_protocol(twin: str, handler_calls: HandlerCalls) -> None:
    handled: list[BaseException | None] = []

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    async with raw_connection(Failing) as (transport, protocol, peer):
        loop = asyncio.get_running_loop()

        def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            handled.append(sys.exc_info()[1])
            handler_calls.record(loop, context)

        loop.set_exception_handler(handler)
        peer.sock.sendall(b"x")
        exception = await protocol.lost
        context = handler_calls.take()
        assert context["message"] == "Fatal error: protocol.data_received() call failed."
        assert context["transport"] is transport and context["protocol"] is protocol
        assert context["exception"] is exception is handled[0]


async def test_cancelled_error_is_no_defect(twin: str, handler_calls: HandlerCalls) -> None:
    """A BaseException that is neither SystemExit nor KeyboardInterrupt goes to the handler, as in asyncio."""

    class Cancelling(Recorder):
        def data_received(self, data: bytes) -> None:
            raise asyncio.CancelledError

    async with raw_connection(Cancelling) as (_, protocol, peer):
        peer.sock.sendall(b"x")
        assert isinstance(await protocol.lost, asyncio.CancelledError)
        assert isinstance(handler_calls.take()["exception"], asyncio.CancelledError)


async def test_pause_in_data_received_and_another_protocol(twin: str) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            self.transport.set_protocol(second)

    second = Recorder()
    async with raw_connection(Pausing) as (transport, protocol, peer):
        peer.sock.sendall(b"first")
        await protocol.bytes_received(5)
        peer.sock.sendall(b"second")
        await turns(6)
        assert not second.received
        transport.resume_reading()
        assert await second.bytes_received(6) == b"second"
        transport.set_protocol(protocol)


async def test_H3_a_replaced_on_read_is_obeyed() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        calls: list[int] = []
        original = transport.on_read

        def counting(result: int, slab: Any, offset: int) -> None:
            calls.append(result)
            original(result, slab, offset)

        for target, new in [
            (transport, counting),
            (type(transport), lambda self, result, slab, offset: counting(result, slab, offset)),
        ]:
            with mock.patch.object(target, "on_read", new):
                before = len(protocol.received)
                peer.sock.sendall(b"patched")
                await protocol.bytes_received(before + 7)
        peer.sock.sendall(b"not")
        await protocol.bytes_received(17)
        assert calls == [7, 7]


async def test_a_defect_in_an_owner_is_reported(twin: str, handler_calls: HandlerCalls) -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        with mock.patch.object(transport, "on_read", mock.Mock(side_effect=ZeroDivisionError)):
            peer.sock.sendall(b"x")
            while not len(handler_calls):
                await asyncio.sleep(0)
        assert "Defect in velociloop while dispatching to " in handler_calls.take()["message"]
        peer.sock.sendall(b"goes on")
        await protocol.bytes_received(7)


REPETITIONS = 300


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
async def test_no_reference_is_leaked(twin: str) -> None:
    async with raw_connection(Echo) as (transport, protocol, peer):
        loop: Any = asyncio.get_running_loop()
        message = b"2" + b"x" * 999
        shared = [transport, protocol, transport._read_context, transport._scope, loop, message, Cork.IN, Cork.OUT]

        async def receive(count: int) -> None:
            # Not in a thread, whose future may still hold the loop.
            while count > 0:
                with contextlib.suppress(BlockingIOError):
                    count -= len(peer.sock.recv(count))
                await asyncio.sleep(0)

        async def repeat() -> None:
            for _ in range(REPETITIONS):
                peer.sock.sendall(message)
                await receive(2000)
                protocol.received.clear()
            for _ in range(REPETITIONS):
                transport.write(message)
                await receive(1000)

        def counts() -> tuple[list[int], int]:
            gc.collect()
            return [sys.getrefcount(item) for item in shared], sys.getallocatedblocks()

        peer.sock.setblocking(False)
        await repeat()
        references, blocks = counts()
        await repeat()
        references_after, blocks_after = counts()
        assert references_after == references
        assert blocks_after - blocks < REPETITIONS // 2
