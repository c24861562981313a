"""A TCP echo client, as an asyncio protocol: sends some lines to echo_server.py and checks what comes back.

    python examples/echo_client.py --port 8888

Ends by itself.
"""

import argparse
import asyncio
import sys
import time
from functools import partial

import velociloop


class Client(asyncio.Protocol):
    """Sends `message`, and closes the connection when all of it has come back; then `closed` is done."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.received = b""
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= len(self.message):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():  # Ctrl-C has cancelled it
            self.closed.set_result(exc)


async def main(host: str, port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    for number in range(1, count + 1):
        message = f"hello number {number}\n".encode()
        start = time.perf_counter()
        transport, client = await loop.create_connection(partial(Client, message), host, port)
        try:
            error = await client.closed
        finally:
            transport.close()  # Ctrl-C comes while it is open
        if len(client.received) < len(message):
            raise error or ConnectionError("the server hung up before it had sent all")
        print(f"sent {message!r}, received {client.received!r} after {(time.perf_counter() - start) * 1e3:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="TCP echo client")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--count", type=int, default=3, help="how many messages, each on a connection of its own")
    arguments = parser.parse_args()
    try:
        velociloop.run(main(arguments.host, arguments.port, arguments.count))
    except OSError as error:
        sys.exit(f"no echo from {arguments.host}:{arguments.port}: {error}")
    except KeyboardInterrupt:
        print("stopped")
