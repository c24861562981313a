"""Cancellation, at every await of every operation of the loop: no watch, handle, descriptor or process stays behind.

Each operation is started and cancelled after one turn of the loop, after two, and so on, until it is done before it is
cancelled. After each the loop must hold exactly what it held before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import (
    LOCALHOST,
    Recorder,
    closed,
    in_time,
    is_ours,
    open_descriptors,
    tcp_socketpair,
    turns,
    until,
)

#: No operation takes more turns than this that are not spent waiting for a thread or the far end.
MOST_TURNS = 60


class Scene:
    """What an operation needs of its surroundings, and what it must give back."""

    def __init__(self, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
        self.loop: Any = asyncio.get_running_loop()
        self.server_tls = server_tls
        self.client_tls = client_tls
        self.stack = contextlib.AsyncExitStack()
        self.accepted: list[Recorder] = []
        self.executor = ThreadPoolExecutor(2)
        self.loop.set_default_executor(self.executor)

    async def __aenter__(self) -> Scene:
        def accept() -> Recorder:
            self.accepted.append(Recorder())
            return self.accepted[-1]

        self.folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.folder, "socket")
        self.server = await self.loop.create_server(accept, LOCALHOST, 0)
        self.tls_server = await self.loop.create_server(accept, LOCALHOST, 0, ssl=self.server_tls)
        self.unix_server = await self.loop.create_unix_server(accept, self.path)
        self.port = self.server.sockets[0].getsockname()[1]
        self.tls_port = self.tls_server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for server in (self.server, self.tls_server, self.unix_server):
            server.close()
        await self.settle()
        await self.stack.aclose()

    async def settle(self) -> None:
        """End the connections that the servers have, and let threads and far ends come to rest."""
        await turns(10)
        for protocol in self.accepted:
            if protocol.transport is not None:
                await closed(protocol.transport)
        self.accepted.clear()
        # Look-ups that nobody waits for any more.
        self.executor.shutdown()
        self.executor = ThreadPoolExecutor(2)
        self.loop.set_default_executor(self.executor)
        await turns(10)
        gc.collect()

    def transports(self) -> list[int]:
        gc.collect()  # asyncio's registry keeps closed ones until they are collected
        return sorted(self.loop._transports)

    def held(self) -> dict[str, Any]:
        loop = self.loop
        watched = {key.fd for key in loop._selector.get_map().values()} - {loop._ssock.fileno()}
        return {
            "watched": watched,
            "handles": loop.statistics().handles if is_ours() else 0,
            "transports": self.transports(),
            "tasks": len(asyncio.all_tasks()),
        }


async def _ended(transport: Any) -> None:
    if isinstance(transport, asyncio.SubprocessTransport):
        transport.close()
        await until(lambda: transport.get_returncode() is not None)
    elif hasattr(transport, "abort"):
        await closed(transport)
    else:
        transport.close()  # a reading pipe
        await turns()


Operation = Callable[[Scene, contextlib.AsyncExitStack], Awaitable[Any]]
OPERATIONS: dict[str, Operation] = {}


def operation(function: Operation) -> Operation:
    OPERATIONS[function.__name__.strip("_")] = function
    return function


@operation
async def create_connection(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    return (await scene.loop.create_connection(asyncio.Protocol, LOCALHOST, scene.port))[0]


@operation
async def create_connection_by_name(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    connecting = scene.loop.create_connection(
        asyncio.Protocol, "localhost", scene.port, family=socket.AF_INET, happy_eyeballs_delay=0.01
    )
    return (await connecting)[0]


@operation
async def create_connection_with_sock(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    near, far = tcp_socketpair()
    stack.callback(far.close)
    stack.callback(near.close)
    near.setblocking(False)
    return (await scene.loop.create_connection(asyncio.Protocol, sock=near))[0]


@operation
async def create_connection_with_tls(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    connecting = scene.loop.create_connection(asyncio.Protocol, LOCALHOST, scene.tls_port, ssl=scene.client_tls)
    return (await connecting)[0]


@operation
async def start_tls(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    transport, protocol = await scene.loop.create_connection(asyncio.Protocol, LOCALHOST, scene.tls_port)
    try:
        upgraded = await scene.loop.start_tls(transport, protocol, scene.client_tls, server_hostname="localhost")
    except asyncio.CancelledError:
        await closed(transport)
        raise
    return upgraded


@operation
async def create_unix_connection(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    return (await scene.loop.create_unix_connection(asyncio.Protocol, scene.path))[0]


@operation
async def connect_accepted_socket(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    near, far = tcp_socketpair()
    stack.callback(far.close)
    stack.callback(near.close)
    near.setblocking(False)
    return (await scene.loop.connect_accepted_socket(asyncio.Protocol, near))[0]


@operation
async def create_server(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    server = await scene.loop.create_server(asyncio.Protocol, LOCALHOST, 0)
    server.close()


@operation
async def create_unix_server(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    server = await scene.loop.create_unix_server(asyncio.Protocol, os.path.join(scene.folder, "another"))
    server.close()


@operation
async def create_datagram_endpoint(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    making = scene.loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("localhost", 0))
    return (await making)[0]


@operation
async def create_datagram_endpoint_with_sock(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    stack.callback(far.close)
    stack.callback(near.close)
    near.setblocking(False)
    return (await scene.loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=near))[0]


@operation
async def connect_read_pipe(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    read_end, write_end = os.pipe()
    stack.callback(os.close, write_end)
    pipe = stack.enter_context(open(read_end, "rb", 0))  # noqa: SIM115 (so it is)
    return (await scene.loop.connect_read_pipe(asyncio.Protocol, pipe))[0]


@operation
async def connect_write_pipe(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    read_end, write_end = os.pipe()
    stack.callback(os.close, read_end)
    pipe = stack.enter_context(open(write_end, "wb", 0))  # noqa: SIM115 (so it is)
    return (await scene.loop.connect_write_pipe(asyncio.Protocol, pipe))[0]


@operation
async def subprocess_exec(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    starting = scene.loop.subprocess_exec(asyncio.SubprocessProtocol, sys.executable, "-S", "-E", "-c", "input()")
    return (await starting)[0]


@operation
async def subprocess_shell(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    return (await scene.loop.subprocess_shell(asyncio.SubprocessProtocol, "read line", stderr=None))[0]


@operation
async def sendfile(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    near, far = tcp_socketpair()
    stack.callback(far.close)
    stack.callback(near.close)
    near.setblocking(False)
    transport, _ = await scene.loop.create_connection(asyncio.Protocol, sock=near)
    with tempfile.TemporaryFile() as file:
        file.truncate(32 << 20)  # nobody reads it: this never ends
        try:
            await scene.loop.sendfile(transport, file)
        finally:
            await asyncio.shield(closed(transport))


@operation
async def getaddrinfo(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    await scene.loop.getaddrinfo("localhost", 80)


@operation
async def sock_connect(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    sock = stack.enter_context(socket.socket())
    sock.setblocking(False)
    await scene.loop.sock_connect(sock, (LOCALHOST, scene.port))


@operation
async def open_connection(scene: Scene, stack: contextlib.AsyncExitStack) -> Any:
    return (await asyncio.open_connection(LOCALHOST, scene.port))[1].transport


@pytest.fixture
async def scene(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> AsyncIterator[Scene]:
    async with Scene(server_tls, client_tls) as made:
        yield made


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what a cancelled operation has dropped
async def test_cancelled_at_every_await(name: str, scene: Scene) -> None:
    if name in ("create_server", "create_unix_server") and not is_ours():
        pytest.skip("asyncio leaves a server that nobody holds")
    await scene.settle()
    before, descriptors = scene.held(), open_descriptors()
    for count in range(MOST_TURNS):
        async with contextlib.AsyncExitStack() as stack:
            task = asyncio.ensure_future(OPERATIONS[name](scene, stack))
            await turns(count)
            finished = task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await in_time(task)
            result = None if task.cancelled() else task.result()
            if result is not None:
                await in_time(_ended(result))
            del task, result
        await in_time(scene.settle())
        # The far end of a broken handshake hears of it when the kernel says so.
        await until(lambda: scene.transports() == before["transports"])
        assert scene.held() == before, f"after a cancellation in turn {count}"
        left = {fd: what for fd, what in open_descriptors().items() if descriptors.get(fd) != what}
        assert not left, f"after a cancellation in turn {count}"
        if finished:
            break
