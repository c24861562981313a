"""A server of one kind in one process, on the loop that is asked for.

    python echo_server.py --loop velociloop --kind protocol

prints its port on stdout (1 for a Unix socket), and ends on SIGTERM or when its stdin is closed, so that it never
outlives whoever started it.  Of the benchmarks it imports only http_server.py beside it, when that is asked for:
any interpreter can run it by its path.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

#: Connections that may wait for accept(); a load generator opens all of its connections at once.
BACKLOG = 1024
STREAM_READ_BYTES = 65536
KINDS = ["protocol", "buffered", "streams", "sock", "unix", "udp", "tls-streams", "tls-protocol", "aiohttp", "uvicorn"]


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Give the function that makes a loop of the package `name`, which may be asyncio itself."""
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(name).new_event_loop
    return factory


class EchoProtocol(asyncio.Protocol):
    """Sends back what comes, one write for each read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class EchoBufferedProtocol(asyncio.BufferedProtocol):
    """The same with a buffer of its own that the loop reads into."""

    def __init__(self) -> None:
        self._buffer = bytearray(STREAM_READ_BYTES)
        self._view = memoryview(self._buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._transport.write(bytes(self._view[:nbytes]))


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, through asyncio's streams."""
    try:
        while data := await reader.read(STREAM_READ_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the load generator is through
    finally:
        writer.close()


class EchoDatagrams(asyncio.DatagramProtocol):
    """Sends each datagram back to where it came from."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(data, addr)


async def echo_socket(connection: socket.socket) -> None:
    """Send back what comes, through the loop's socket methods."""
    loop = asyncio.get_running_loop()
    with connection:
        try:
            while data := await loop.sock_recv(connection, STREAM_READ_BYTES):
                await loop.sock_sendall(connection, data)
        except ConnectionError:
            pass  # the load generator is through


async def accept_sockets(listener: socket.socket) -> None:
    """Serve each connection by a task of its own, through the loop's socket methods."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        while True:
            connection, _ = await loop.sock_accept(listener)
            group.create_task(echo_socket(connection))


def listen() -> socket.socket:
    """Give a listening socket on a free port of 127.0.0.1."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def tls_context(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """Give the context for the kinds that serve TLS, None for the others."""
    if not arguments.kind.startswith("tls-"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.certificate, arguments.key)
    return context


async def start(arguments: argparse.Namespace) -> tuple[int, Awaitable[None] | None]:
    """Start the server that is asked for; returns its port, and what it runs in if not in the loop alone."""
    loop = asyncio.get_running_loop()
    kind = arguments.kind.removeprefix("tls-")
    context = tls_context(arguments)
    if kind == "unix":
        await loop.create_unix_server(EchoProtocol, arguments.path, backlog=BACKLOG)
        return 1, None
    if kind == "udp":
        transport, _ = await loop.create_datagram_endpoint(EchoDatagrams, local_addr=("127.0.0.1", 0))
        return transport.get_extra_info("sockname")[1], None
    listener = listen()
    port: int = listener.getsockname()[1]
    if kind == "sock":
        return port, accept_sockets(listener)
    if kind in ("aiohttp", "uvicorn"):
        import http_server

        return port, await http_server.start(kind, listener)
    if kind == "streams":
        await asyncio.start_server(echo_stream, sock=listener, ssl=context, backlog=BACKLOG)
    else:
        protocol = EchoProtocol if kind == "protocol" else EchoBufferedProtocol
        await loop.create_server(protocol, sock=listener, ssl=context, backlog=BACKLOG)
    return port, None


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until told to end."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def on_input() -> None:
        if not os.read(0, 65536):
            loop.remove_reader(0)
            ended.set()

    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_reader(0, on_input)
    port, running = await start(arguments)
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(ended.wait())]
    if running is not None:
        tasks.append(asyncio.ensure_future(running))
    print(port, flush=True)
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", default="velociloop", help="package with a new_event_loop(), asyncio included")
    parser.add_argument("--kind", choices=KINDS, default="protocol")
    parser.add_argument("--path", help="of the Unix socket")
    parser.add_argument("--certificate", help="file with the chain, for TLS")
    parser.add_argument("--key", help="file with its key")
    parser.add_argument("--pure", action="store_true", help="without velociloop's C accelerator (VELOCILOOP_PURE=1)")
    arguments = parser.parse_args()
    if arguments.pure:
        os.environ["VELOCILOOP_PURE"] = "1"
    try:
        factory = loop_factory(arguments.loop)
    except ImportError as error:
        sys.exit(f"echo_server: {arguments.loop} is not installed for {sys.executable}: {error}")
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments))


if __name__ == "__main__":
    main()
