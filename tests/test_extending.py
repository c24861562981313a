"""What programs build on asyncio's classes: their own futures, tasks, transports, protocols and loops."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Generator
from typing import Any

import pytest
from support import Echo, Recorder, in_time, serving, turns, until

Loop = asyncio.AbstractEventLoop

#: asyncio without types: to typeshed every task is an asyncio.Task.
api: Any = asyncio


class OwnFuture(asyncio.Future[Any]):
    """Counts who asks."""

    asked = 0

    def result(self) -> Any:
        self.asked += 1
        return super().result()


async def test_a_future_subclass() -> None:
    loop = asyncio.get_running_loop()
    future = OwnFuture(loop=loop)
    loop.call_soon(future.set_result, "result")
    assert list(await asyncio.gather(future, asyncio.shield(future))) == ["result", "result"]
    assert future.asked >= 1


async def test_a_future_of_the_loops_making() -> None:
    """`create_future` may be overridden; what the loop and its primitives wait for is then of that class."""
    loop = asyncio.get_running_loop()
    made: list[OwnFuture] = []

    def create_future() -> OwnFuture:
        made.append(OwnFuture(loop=loop))
        return made[-1]

    loop.create_future = create_future  # type: ignore[method-assign]
    try:
        await asyncio.sleep(0.001)
        await in_time(asyncio.to_thread(len, ""))
    finally:
        del loop.create_future
    assert made and all(future.done() for future in made)


async def test_an_awaitable_that_is_no_future() -> None:
    """Anything that speaks the protocol of ``_asyncio_future_blocking`` is waited for."""

    class Ducklike:
        _asyncio_future_blocking = False

        def __init__(self) -> None:
            self.inner = asyncio.get_running_loop().create_future()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __await__(self) -> Generator[Any, None, Any]:
            if not self.inner.done():
                self._asyncio_future_blocking = True
                yield self
            return self.inner.result()

    duck = Ducklike()
    assert asyncio.isfuture(duck)
    asyncio.get_running_loop().call_soon(duck.inner.set_result, 7)
    assert await duck == 7


async def test_a_task_subclass() -> None:
    steps: list[str] = []

    class OwnTask(asyncio.Task[Any]):
        def cancel(self, msg: Any = None) -> bool:
            steps.append("cancel")
            return super().cancel(msg)

    task = OwnTask(asyncio.sleep(3600), loop=asyncio.get_running_loop(), name="own")
    await turns()
    assert task in asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await task
    assert steps == ["cancel"] and task.cancelled()


async def test_a_task_class_of_ones_own_from_scratch() -> None:
    """Registered by hand, it counts as a task: `all_tasks` and `current_task` know it."""
    loop = asyncio.get_running_loop()
    me = asyncio.current_task()
    assert me is not None
    seen: list[Any] = []

    class Stepper:
        """A task-like driver of a coroutine; it awaits nothing but `sleep(0)`."""

        def __init__(self, coro: Any) -> None:
            self.coro = coro
            self.finished = loop.create_future()
            api._register_task(self)
            loop.call_soon(self.step)

        def done(self) -> bool:
            return self.finished.done()

        def get_loop(self) -> Loop:
            return loop

        _loop = loop

        def step(self) -> None:
            api._enter_task(loop, self)
            try:
                self.coro.send(None)
            except StopIteration as stop:
                api._unregister_task(self)
                self.finished.set_result(stop.value)
            else:
                loop.call_soon(self.step)
            finally:
                api._leave_task(loop, self)

    async def work() -> str:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        return "done"

    stepper: Any = Stepper(work())
    assert stepper in asyncio.all_tasks()
    assert await in_time(stepper.finished) == "done"
    assert seen == [stepper] and asyncio.current_task() is me
    assert stepper not in asyncio.all_tasks()


class OwnTransport(asyncio.Transport):
    """A transport without a descriptor: what is written comes back, upper-case."""

    def __init__(self, loop: Loop, protocol: asyncio.Protocol) -> None:
        super().__init__(extra={"own": 7})
        self.loop, self.protocol, self.closing = loop, protocol, False
        loop.call_soon(protocol.connection_made, self)

    def write(self, data: Any) -> None:
        self.loop.call_soon(self.protocol.data_received, bytes(data).upper())

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        self.loop.call_soon(self.protocol.connection_lost, None)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol  # type: ignore[assignment]


async def test_a_transport_of_ones_own() -> None:
    protocol = Recorder()
    transport = OwnTransport(asyncio.get_running_loop(), protocol)
    assert transport.get_extra_info("own") == 7 and transport.get_extra_info("none", "default") == "default"
    await in_time(protocol.made)
    transport.writelines([b"he", b"llo"])
    assert await protocol.bytes_received(5) == b"HELLO"
    transport.close()
    assert await in_time(protocol.lost) is None
    with pytest.raises(NotImplementedError):
        transport.pause_reading()


async def test_streams_over_a_transport_of_ones_own() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = OwnTransport(loop, protocol)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    await turns()
    writer.write(b"line\n")
    await writer.drain()
    assert await in_time(reader.readline()) == b"LINE\n"
    writer.close()
    await in_time(writer.wait_closed())


async def test_an_abstract_transport_does_nothing_by_itself() -> None:
    transport = asyncio.Transport()
    for call in transport.close, transport.abort, transport.is_closing, lambda: transport.write(b""):
        with pytest.raises(NotImplementedError):
            call()
    for cls in asyncio.BaseTransport, asyncio.ReadTransport, asyncio.WriteTransport:
        assert issubclass(asyncio.Transport, cls)
    for cls in asyncio.DatagramTransport, asyncio.SubprocessTransport:
        assert issubclass(cls, asyncio.BaseTransport)


async def test_a_protocol_with_callbacks_of_any_kind() -> None:
    """Protocols are called by name: inherited, on the instance, or by duck typing."""

    class Duck:
        def __init__(self) -> None:
            self.received = bytearray()
            loop = asyncio.get_running_loop()
            self.lost = loop.create_future()
            self.data_received = self.received.extend

        def connection_made(self, transport: Any) -> None:
            transport.write(b"quack")

        def eof_received(self) -> None:
            pass

        def connection_lost(self, exc: BaseException | None) -> None:
            self.lost.set_result(exc)

    async with serving(Echo) as (_, address):
        transport, duck = await asyncio.get_running_loop().create_connection(Duck, *address)  # type: ignore[type-var]
        await until(lambda: duck.received == b"quack")
        transport.close()
        assert await in_time(duck.lost) is None


def test_a_loop_subclass(loop: Loop) -> None:
    """Overridden methods are called, by the loop itself too."""
    calls: list[str] = []
    parent: Any = type(loop)

    class OwnLoop(parent):  # type: ignore[misc]
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            calls.append("call_soon")
            return super().call_soon(callback, *args, context=context)

        def call_exception_handler(self, context: dict[str, Any]) -> None:
            calls.append(type(context["exception"]).__name__)

        def create_task(self, coro: Any, **kwargs: Any) -> Any:
            calls.append("create_task")
            return super().create_task(coro, **kwargs)

        def time(self) -> Any:
            return super().time() + 1000

        async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
            calls.append("getaddrinfo")
            return await super().getaddrinfo("127.0.0.1", port, **kwargs)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert type(loop) is OwnLoop
        loop.call_soon(lambda: 1 / 0)
        await asyncio.create_task(asyncio.sleep(0.001))
        async with serving(Echo) as (_, address):
            reader, writer = await asyncio.open_connection("a.name.of.ours", address[1])
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=OwnLoop) as runner:
        runner.run(main())
    assert {"call_soon", "create_task", "ZeroDivisionError", "getaddrinfo"} <= set(calls)


def test_every_method_of_the_abstract_loop_is_there(loop: Loop) -> None:
    """And takes the arguments that asyncio's own takes."""
    names = [name for name in dir(asyncio.AbstractEventLoop) if not name.startswith("_")]
    missing = [name for name in names if getattr(type(loop), name) is getattr(asyncio.AbstractEventLoop, name)]
    assert missing == []
    for name in names:
        ours, reference = getattr(type(loop), name), getattr(asyncio.SelectorEventLoop, name)
        if ours is reference:
            continue
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(reference), name
        _takes_as_much(name, inspect.signature(ours), inspect.signature(reference))


def test_the_loops_classes(loop: Loop) -> None:
    """What libraries ask with isinstance."""
    assert isinstance(loop, asyncio.SelectorEventLoop) and isinstance(loop, asyncio.BaseEventLoop)
    # From 3.13 on asyncio has a name for the platform's usual loop.
    assert isinstance(loop, getattr(asyncio, "EventLoop", asyncio.SelectorEventLoop))


def _takes_as_much(name: str, ours: inspect.Signature, reference: inspect.Signature) -> None:
    kinds = {parameter.kind for parameter in ours.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return
    for parameter in reference.parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            assert parameter.name in ours.parameters, f"{name}() takes no {parameter.name}"


async def test_the_base_protocols_take_every_call_and_do_nothing() -> None:
    protocol = asyncio.Protocol()
    protocol.connection_made(asyncio.Transport())
    protocol.data_received(b"")
    assert not protocol.eof_received()
    protocol.pause_writing()
    protocol.resume_writing()
    protocol.connection_lost(None)
    assert isinstance(protocol, asyncio.BaseProtocol)
    datagram = asyncio.DatagramProtocol()
    datagram.datagram_received(b"", ("127.0.0.1", 1))
    datagram.error_received(OSError())
    child = asyncio.SubprocessProtocol()
    child.pipe_data_received(1, b"")
    child.pipe_connection_lost(1, None)
    child.process_exited()
