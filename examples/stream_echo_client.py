"""A TCP echo client with asyncio streams: a hundred conversations at once with an echo server.

    python examples/stream_echo_client.py --port 8888

Ends by itself.
"""

import argparse
import asyncio
import contextlib
import sys

import velociloop


async def converse(host: str, port: int, lines: list[bytes]) -> int:
    """Send `lines` one by one, each when the one before has come back; return how many were the same."""
    reader, writer = await asyncio.open_connection(host, port)
    same = 0
    with contextlib.closing(writer):
        for line in lines:
            writer.write(line)
            same += await reader.readline() == line
        writer.write_eof()
        assert await reader.read() == b"", "the server sends back nothing but what it was sent"
    await writer.wait_closed()
    return same


async def main(host: str, port: int, clients: int) -> None:
    lines = [b"line %d\n" % number for number in range(10)]
    # Connections wait in the server's backlog until they are accepted: start them a few at a time.
    few_at_a_time = asyncio.Semaphore(20)

    async def client() -> int:
        async with few_at_a_time:
            return await converse(host, port, lines)

    same = sum(await asyncio.gather(*(client() for _ in range(clients))))
    print(f"{clients} connections, {clients * len(lines)} lines sent, {same} came back as they were")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="TCP echo client with asyncio streams")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--clients", type=int, default=100)
    arguments = parser.parse_args()
    try:
        velociloop.run(main(arguments.host, arguments.port, arguments.clients))
    except OSError as error:
        sys.exit(f"no echo from {arguments.host}:{arguments.port}: {error}")
    except KeyboardInterrupt:
        print("stopped")
