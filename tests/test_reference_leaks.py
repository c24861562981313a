"""What is done again and again leaves nothing behind: no block of memory, and no reference to what all share.

A reference that C forgets to release keeps its object: each round then ends with more blocks than the one before.
One to an object that lives anyway, a class or the loop, shows in that object's count.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import LOCALHOST, in_time, turns

import velociloop
from velociloop._accelerator import speedups
from velociloop.transports.datagram import DatagramTransport
from velociloop.transports.states import Cork, Phase, Reading, Sending
from velociloop.transports.stream import StreamTransport

pytestmark = [
    pytest.mark.skipif(not hasattr(sys, "getallocatedblocks") or not hasattr(gc, "freeze"), reason="counts references"),
    pytest.mark.ours("the loop is made here"),
]

#: Times in a round that a body runs; what is left behind each time is as much a round.
TIMES = 40
#: Rounds before the first that counts: caches, free lists, specialised bytecode.
WARM_UP = 3
ROUNDS = 6

Body = Callable[[], Awaitable[None]]
SCENES: dict[str, Any] = {}


def scene(function: Any) -> Any:
    """An async generator that sets the scene and yields what is to be repeated."""
    SCENES[function.__name__] = asynccontextmanager(function)
    return function


def simple(function: Any) -> Any:
    """A body that needs no scene."""

    @asynccontextmanager
    async def without_scene() -> AsyncIterator[Body]:
        yield function

    SCENES[function.__name__] = without_scene
    return function


def nothing(*args: object) -> None:
    pass


def fail(*args: object) -> None:
    raise ZeroDivisionError


# -- scheduling -----------------------------------------------------------------------


@simple
async def call_soon() -> None:
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    loop.call_soon(nothing)
    loop.call_soon(nothing, 1, 2, 3, 4, 5, 6, 7, context=context)
    loop.call_soon(nothing, object()).cancel()
    await asyncio.sleep(0)


@simple
async def call_soon_threadsafe() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon_threadsafe(nothing, object())
    loop.call_soon_threadsafe(nothing, object()).cancel()
    await asyncio.to_thread(loop.call_soon_threadsafe, nothing, object())


@simple
async def timers() -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(0, nothing, object())
    loop.call_at(loop.time(), nothing)
    loop.call_later(100.0, nothing, object()).cancel()
    many = [loop.call_later(100 + number, nothing, number) for number in range(150)]
    for timer in many:
        timer.cancel()
    await turns(3)


@simple
async def tasks() -> None:
    loop = asyncio.get_running_loop()
    await loop.create_task(asyncio.sleep(0))
    await asyncio.create_task(asyncio.sleep(0), name="named")
    await loop.create_task(asyncio.sleep(0), context=contextvars.copy_context())
    cancelled = asyncio.create_task(asyncio.sleep(100))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, asyncio.sleep(0), return_exceptions=True)
    with pytest.raises(TypeError):
        await loop.create_task(1)  # type: ignore[arg-type]


@simple
async def exceptions() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(fail, object())
    loop.call_soon_threadsafe(fail, object())
    loop.call_later(0, fail, object())
    with pytest.raises(TypeError):
        loop.call_later(None, nothing)  # type: ignore[arg-type]
    await turns(3)


# -- streams ----------------------------------------------------------------------------


class Waiting(asyncio.Protocol):
    """Has so many bytes come?"""

    def __init__(self) -> None:
        self.missing = 0
        self.enough: asyncio.Future[None] | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.came(len(data))

    def came(self, size: int) -> None:
        self.missing -= size
        if self.missing <= 0 and self.enough is not None:
            self.enough.set_result(None)
            self.enough = None

    async def receive(self, size: int) -> None:
        self.missing = size
        self.enough = asyncio.get_running_loop().create_future()
        await in_time(self.enough)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class Buffered(Waiting, asyncio.BufferedProtocol):
    """The same, into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(8192)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.came(nbytes)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data[:1])
        self.transport.write(data[1:])


@asynccontextmanager
async def connected(
    client: Any, server_tls: Any = None, client_tls: Any = None, server: Any = Echo
) -> AsyncIterator[Any]:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server, LOCALHOST, 0, ssl=server_tls)
    address = listening.sockets[0].getsockname()
    name = None if client_tls is None else "localhost"
    transport, protocol = await loop.create_connection(client, *address, ssl=client_tls, server_hostname=name)
    yield protocol
    transport.close()
    await in_time(protocol.lost)
    listening.close()
    await listening.wait_closed()


@scene
async def protocol() -> AsyncIterator[Body]:
    async with connected(Waiting) as near:

        async def body() -> None:
            near.transport.write(b"x" * 1000)
            await near.receive(1000)
            near.transport.write(bytes(300_000))
            await near.receive(300_000)
            near.transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
            await near.receive(3)

        yield body


@scene
async def buffered_protocol() -> AsyncIterator[Body]:
    async with connected(Buffered) as near:

        async def body() -> None:
            for size in (1, 1000, 100_000):
                near.transport.write(bytes(size))
                await near.receive(size)

        yield body


@scene
async def paused_reading() -> AsyncIterator[Body]:
    async with connected(Waiting) as near:

        async def body() -> None:
            near.transport.pause_reading()
            near.transport.write(b"x" * 1000)
            await turns(3)
            near.transport.resume_reading()
            await near.receive(1000)

        yield body


@scene
async def failing_protocol() -> AsyncIterator[Body]:
    class Failing(Waiting):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise ZeroDivisionError

    async def body() -> None:
        async with connected(Failing) as near:
            near.transport.write(b"x")
            await in_time(near.lost)

    yield body


@simple
async def connections() -> None:
    async with connected(Waiting) as near:
        near.transport.write(b"x")
        await near.receive(1)
        near.transport.get_extra_info("peername")
        near.transport.get_extra_info("socket")


@simple
async def streams() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, LOCALHOST, 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"line\n")
        assert await in_time(reader.read()) == b"line\n"
        writer.close()
        await writer.wait_closed()


# -- sockets, datagrams ------------------------------------------------------------------


@scene
async def sockets() -> AsyncIterator[Body]:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)

    async def body() -> None:
        await loop.sock_sendall(near, b"x" * 1000)
        assert len(await loop.sock_recv(far, 2000)) == 1000
        waiting = asyncio.ensure_future(loop.sock_recv(far, 2000))
        await asyncio.sleep(0)
        await loop.sock_sendall(near, b"y")
        assert await in_time(waiting) == b"y"
        cancelled = asyncio.ensure_future(loop.sock_recv(far, 2000))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)

    with near, far:
        yield body


@scene
async def datagrams() -> AsyncIterator[Body]:
    class Datagrams(asyncio.DatagramProtocol):
        came: asyncio.Future[bytes] | None = None
        left = 0

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.left -= 1
            if not self.left and self.came is not None:
                self.came.set_result(data)
                self.came = None
                raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    far, protocol = await loop.create_datagram_endpoint(Datagrams, local_addr=(LOCALHOST, 0))
    address = far.get_extra_info("sockname")
    near, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=address)
    other, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOCALHOST, 0))

    async def body() -> None:
        protocol.left = 5
        came = protocol.came = loop.create_future()
        near.sendto(b"x")
        near.sendto(bytearray(b"y"))
        for _ in range(3):
            other.sendto(b"z" * 100, address)
        await in_time(came)

    yield body
    for transport in (near, far, other):
        transport.close()
    await asyncio.sleep(0)


# -- what is measured --------------------------------------------------------------------


def shared_objects(loop: Any) -> dict[str, Any]:
    """What lives all the time, and what C has in its hands again and again."""
    classes: list[type] = [asyncio.Handle, asyncio.TimerHandle, asyncio.Task, asyncio.Future]
    classes += [StreamTransport, DatagramTransport]
    if speedups is not None:
        classes += [value for value in vars(speedups).values() if isinstance(value, type)]
    found: dict[str, Any] = {f"{each.__module__}.{each.__name__}": each for each in classes}
    for enum in (Reading, Sending, Phase, Cork):
        found.update({str(member): member for member in enum})
    found.update({name: getattr(loop, name) for name in ("_core", "_scope", "_drain_handle", "_ready", "_scheduled")})
    found.update(loop=loop, nothing=nothing, fail=fail)
    return found


def measure(loop: Any, body: Body) -> tuple[list[int], list[dict[str, int]]]:
    """Blocks of memory and references to shared objects after each round."""
    shared = shared_objects(loop)

    async def go_round() -> None:
        for _ in range(TIMES):
            await body()

    blocks, counts = [], []
    for _ in range(WARM_UP + ROUNDS):
        loop.run_until_complete(go_round())
        loop.run_until_complete(asyncio.sleep(0))
        gc.collect()
        blocks.append(sys.getallocatedblocks())
        counts.append({name: sys.getrefcount(found) for name, found in shared.items()})
    return blocks[WARM_UP:], counts[WARM_UP:]


def least_growth(values: list[int]) -> int:
    """What every round has added; a leak adds TIMES in each, all else comes and goes."""
    return min(after - before for before, after in itertools.pairwise(values))


def check(loop: Any, body: Body) -> None:
    blocks, counts = measure(loop, body)
    assert least_growth(blocks) < TIMES // 2, f"blocks of memory: {blocks}"
    for name in counts[0]:
        values = [each[name] for each in counts]
        assert least_growth(values) < TIMES // 2, f"references to {name}: {values}"


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("name", sorted(SCENES))
def test_leaves_nothing_behind(name: str, debug: bool) -> None:
    loop = velociloop.new_event_loop()
    loop.set_debug(debug)
    loop.slow_callback_duration = 100
    loop.set_exception_handler(nothing)
    stage = SCENES[name]()
    try:
        check(loop, loop.run_until_complete(stage.__aenter__()))
    finally:
        loop.run_until_complete(stage.__aexit__(None, None, None))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_tls_leaves_nothing_behind(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    loop = velociloop.new_event_loop()

    async def body() -> None:
        async with connected(Waiting, server_tls, client_tls) as near:
            for size in (10, 50_000):
                near.transport.write(bytes(size))
                await near.receive(size)

    check(loop, body)
    loop.close()


def test_loops_leave_nothing_behind() -> None:
    blocks = []
    for _ in range(WARM_UP + ROUNDS):
        for _ in range(TIMES):
            loop = velociloop.new_event_loop()
            loop.call_later(100, nothing, object())
            loop.call_soon(nothing, object())
            loop.run_until_complete(asyncio.sleep(0))
            loop.call_soon(nothing, loop)
            loop.close()
            del loop
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert least_growth(blocks[WARM_UP:]) < TIMES // 2, blocks


def test_a_leak_is_seen() -> None:
    """The measuring itself: an object kept each time, and a reference to a class kept each time."""
    loop = velociloop.new_event_loop()
    kept: list[Any] = []

    async def keep_an_object() -> None:
        kept.append(object())

    async def keep_a_reference() -> None:
        kept.append(asyncio.TimerHandle)

    try:
        with pytest.raises(AssertionError, match="blocks of memory"):
            check(loop, keep_an_object)
        with pytest.raises(AssertionError, match=r"references to asyncio\.events\.TimerHandle"):
            check(loop, keep_a_reference)
    finally:
        loop.close()
