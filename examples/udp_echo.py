"""A UDP echo server and its client, as asyncio datagram protocols.

    python examples/udp_echo.py --port 9999                    the server; Ctrl-C stops it
    python examples/udp_echo.py --port 9999 --send "hello"     the client (in another terminal)

A datagram may be lost on its way, and nobody says so: the client asks up to three times.
"""

import argparse
import asyncio
import sys
from typing import Any

import velociloop

ATTEMPTS = 3
ANSWER_WITHIN_S = 1.0


class Echo(asyncio.DatagramProtocol):
    """Sends each datagram back to where it came from; one object serves everybody."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        print(f"{len(data)} bytes from {addr[0]}:{addr[1]}", flush=True)
        self.transport.sendto(data, addr)


class Question(asyncio.DatagramProtocol):
    """Waits for one answer, or for the word that nobody is there."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(host, port))
    host, port = transport.get_extra_info("sockname")
    print(f"UDP echo server on {type(loop).__module__}, listening on {host}:{port}", flush=True)
    try:
        await loop.create_future()  # for ever: Ctrl-C cancels serve()
    finally:
        transport.close()


async def ask(host: str, port: int, message: str) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Question, remote_addr=(host, port))
    try:
        for _ in range(ATTEMPTS):
            transport.sendto(message.encode())
            done, _ = await asyncio.wait([protocol.answer], timeout=ANSWER_WITHIN_S)
            if done:
                print("received", protocol.answer.result())
                return
        sys.exit(f"no echo from {host}:{port}: nobody answered {ATTEMPTS} datagrams")
    except OSError as exc:
        sys.exit(f"no echo from {host}:{port}: {exc}")
    finally:
        transport.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="UDP echo server and client")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9999, help="0: any free one (server)")
    parser.add_argument("--send", metavar="TEXT", help="be the client, and send this")
    options = parser.parse_args()
    try:
        if options.send is None:
            velociloop.run(serve(options.host, options.port))
        else:
            velociloop.run(ask(options.host, options.port, options.send))
    except KeyboardInterrupt:
        print("stopped")
