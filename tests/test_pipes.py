"""connect_read_pipe and connect_write_pipe: what both promise, and misuse."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
from pipe_support import (
    every_kind,
    finished,
    make_pipe,
    reading,
    receive_all,
    writing,
)
from support import HandlerCalls, Recorder, in_time, turns

pytestmark = pytest.mark.debug_variant

Loop = asyncio.AbstractEventLoop
var = contextvars.ContextVar("var", default="default")


@pytest.mark.parametrize("direction", ["read", "write"])
@every_kind
async def test_need_15_get_extra_info_gives_the_users_object(kind: str, direction: str) -> None:
    near: Any
    async with (reading if direction == "read" else writing)(kind) as (transport, protocol, _):
        near = transport.get_extra_info("pipe")
        assert near is not None and near.fileno() >= 0
        assert transport.get_extra_info("socket") is None
        assert transport.get_extra_info("nothing", 5) == 5
        assert not os.get_blocking(near.fileno())
        assert isinstance(transport, asyncio.ReadTransport if direction == "read" else asyncio.WriteTransport)
        assert transport.get_protocol() is protocol
        assert f"fd={near.fileno()}" in repr(transport)


async def test_streams() -> None:
    loop = asyncio.get_running_loop()
    near, far = make_pipe()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), near)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, far)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)

    async def send() -> None:
        for _ in range(50):
            writer.write(bytes(10_000))
            await writer.drain()
        writer.write(b"\nend\n")
        writer.close()

    _, (data, line, rest) = await in_time(
        asyncio.gather(send(), _three(reader)),
    )
    assert (len(data), line, rest) == (500_001, b"end\n", b"")
    await turns()


async def _three(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bytes]:
    return await reader.readexactly(500_001), await reader.readline(), await reader.read()


async def test_callbacks_run_in_the_context_of_who_connected() -> None:
    seen: dict[str, str] = {}

    class Looking(Recorder):
        def data_received(self, data: bytes) -> None:
            seen["data"] = var.get()
            var.set("changed")
            super().data_received(data)

        def eof_received(self) -> bool:
            seen["eof"] = var.get()
            return super().eof_received()

        def resume_writing(self) -> None:
            seen["resume"] = var.get()
            super().resume_writing()

    async def run() -> None:
        var.set("connect")
        async with reading(protocol_factory=Looking) as (_, protocol, far):
            var.set("later")
            os.write(far.fileno(), b"x")
            await protocol.bytes_received(1)
            far.close()
            await finished(protocol)
        async with writing(protocol_factory=Looking) as (transport, protocol, far):
            var.set("write")
            transport.write(bytes(200_000))
            var.set("still later")
            await asyncio.to_thread(receive_all, far, 200_000)
            await in_time(protocol.resumed.wait())

    await asyncio.create_task(run())
    assert seen == {"data": "connect", "eof": "changed", "resume": "write"}


@pytest.mark.parametrize("method", ["connection_made", "data_received", "eof_received", "connection_lost"])
async def test_need_23_exceptions_of_a_reading_protocol(method: str, handler_calls: HandlerCalls) -> None:
    """Reported; the transport goes on, as asyncio's."""

    class Failing(Recorder):
        pass

    def fail(self: Any, *args: Any) -> Any:
        getattr(Recorder, method)(self, *args)
        raise ValueError(method)

    setattr(Failing, method, fail)
    async with reading(protocol_factory=Failing) as (transport, protocol, far):
        os.write(far.fileno(), b"one")
        await protocol.bytes_received(3)
        await turns()
        assert not transport.is_closing()
        os.write(far.fileno(), b"two")
        assert await protocol.bytes_received(6) == b"onetwo"
        far.close()
        await finished(protocol)
        calls = handler_calls.take_all()
        assert len(calls) == (2 if method == "data_received" else 1)
        for call in calls:
            assert str(call["exception"]) == method
            assert call["message"].startswith("Exception in callback ")
            assert isinstance(call["handle"], asyncio.Handle)


@pytest.mark.parametrize("method", ["connection_made", "pause_writing", "resume_writing", "connection_lost"])
async def test_need_23_exceptions_of_a_writing_protocol(method: str, handler_calls: HandlerCalls) -> None:
    class Failing(Recorder):
        pass

    def fail(self: Any, *args: Any) -> Any:
        getattr(Recorder, method)(self, *args)
        raise ValueError(method)

    setattr(Failing, method, fail)
    async with writing(protocol_factory=Failing) as (transport, protocol, far):
        transport.write(bytes(200_000))
        await asyncio.to_thread(receive_all, far, 200_000)
        await in_time(protocol.resumed.wait())
        assert not transport.is_closing()
        transport.close()
        await finished(protocol)
        assert str(handler_calls.take()["exception"]) == method


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_cancelled_while_it_connects(direction: str) -> None:
    loop = asyncio.get_running_loop()
    near, far = make_pipe()
    if direction == "write":
        near, far = far, near
    connect = loop.connect_read_pipe if direction == "read" else loop.connect_write_pipe
    task = asyncio.ensure_future(connect(Recorder, near))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert near.closed
    far.close()


async def test_debug_messages(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.get_running_loop().set_debug(True)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        async with reading() as (transport, protocol, far):
            transport.pause_reading()
            transport.resume_reading()
            far.close()
            await finished(protocol)
    asyncio.get_running_loop().set_debug(False)
    said = [record.getMessage().rpartition("> ")[2] for record in caplog.records]
    assert [text for text in said if "read" in text or "peer" in text] == [
        "pauses reading",
        "resumes reading",
        "was closed by peer",
    ]


async def test_the_repr_shows_the_state() -> None:
    async with reading() as (transport, _, _far):
        await turns()
        assert repr(transport).endswith(" polling>")
        transport.pause_reading()
        assert repr(transport).endswith(" idle>")
        transport.close()
        assert " closing fd=" in repr(transport)
        await turns()
        assert " closed fd=" in repr(transport)
    async with writing() as (transport, _, _far):
        assert repr(transport).endswith(" idle bufsize=0>")
        transport.write(bytes(200_000))
        assert f" polling bufsize={transport.get_write_buffer_size()}>" in repr(transport)
        transport.abort()
        await turns()
        assert " closed fd=" in repr(transport)


def run_turns(loop: Loop, count: int) -> None:
    for _ in range(count):
        loop.call_soon(loop.stop)
        loop.run_forever()


async def connect_three(factory: Callable[[], Any]) -> list[tuple[Any, Any, Any]]:
    made = []
    for _ in range(3):
        near, far = make_pipe()
        transport, protocol = await asyncio.get_running_loop().connect_read_pipe(factory, near)
        transport.pause_reading()
        os.write(far.fileno(), b"12")
        made.append((transport, protocol, far))
    return made


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_H1_need_22_an_interrupt_loses_nothing(loop: Loop, error: type[BaseException]) -> None:
    class Interrupting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise error

    made = loop.run_until_complete(connect_three(Interrupting))
    for transport, _, _ in made:
        transport.resume_reading()
    caught = 0
    for _ in range(8):
        try:
            run_turns(loop, 1)
        except error:
            caught += 1
    assert caught == 3
    for transport, protocol, far in made:
        assert bytes(protocol.received) == b"12"
        far.close()
        transport.close()
    run_turns(loop, 3)
