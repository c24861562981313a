"""A TCP echo server, as an asyncio protocol.

    python examples/echo_server.py --port 8888
    python examples/echo_client.py --port 8888      (in another terminal; or: nc 127.0.0.1 8888)

Ctrl-C stops it.
"""

import argparse
import asyncio

import velociloop


class Echo(asyncio.Protocol):
    """Sends back what it receives; one object for each connection."""

    def __init__(self, transports: set[asyncio.Transport]) -> None:
        self.transports = transports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.transports.add(transport)
        print("connected:   ", transport.get_extra_info("peername"), flush=True)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # A client that sends faster than it reads is read no further until it has caught up.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transports.discard(self.transport)
        print("disconnected:", self.transport.get_extra_info("peername"), flush=True)


async def main(port: int) -> None:
    transports: set[asyncio.Transport] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Echo(transports), "127.0.0.1", port)
    host, port = server.sockets[0].getsockname()
    print(f"echo server on {type(loop).__module__}, listening on {host}:{port}", flush=True)
    try:
        await loop.create_future()  # for ever: Ctrl-C cancels main()
    finally:
        server.close()
        for transport in transports:
            transport.abort()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="TCP echo server")
    parser.add_argument("--port", type=int, default=8888, help="0: any free one")
    try:
        velociloop.run(main(parser.parse_args().port))
    except KeyboardInterrupt:
        print("stopped")
