"""An echo server in one process, on the loop that is asked for.

    python echo_server.py --loop velociloop --kind protocol

prints its port on stdout, and ends on SIGTERM or when its stdin is closed, so that it never outlives
whoever started it.  It imports nothing of the benchmarks: any interpreter can run it by its path.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import cast

#: Connections that may wait for accept(); a load generator opens all of its connections at once.
BACKLOG = 1024
STREAM_READ_BYTES = 65536


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


async def serve(kind: str) -> None:
    """Serve on a free port of 127.0.0.1 until told to end."""
    loop = asyncio.get_running_loop()
    if kind == "streams":
        server = await asyncio.start_server(echo_stream, "127.0.0.1", 0, backlog=BACKLOG)
    else:
        protocol = EchoProtocol if kind == "protocol" else EchoBufferedProtocol
        server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=BACKLOG)
    print(server.sockets[0].getsockname()[1], flush=True)

    ended = asyncio.Event()

    def on_input() -> None:
        if not os.read(0, 65536):
            loop.remove_reader(0)
            ended.set()

    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_reader(0, on_input)
    await ended.wait()
    loop.remove_reader(0)
    server.close()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", default="velociloop", help="package with a new_event_loop(), asyncio included")
    parser.add_argument("--kind", choices=["protocol", "buffered", "streams"], default="protocol")
    parser.add_argument("--pure", action="store_true", help="without velociloop's C accelerator (VELOCILOOP_PURE=1)")
    arguments = parser.parse_args()
    if arguments.pure:
        os.environ["VELOCILOOP_PURE"] = "1"
    try:
        factory = loop_factory(arguments.loop)
    except ImportError as error:
        sys.exit(f"echo_server: {arguments.loop} is not installed for {sys.executable}: {error}")
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(arguments.kind))


if __name__ == "__main__":
    main()
