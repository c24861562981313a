"""HTTP load generator in Python, for where load.c cannot be compiled (no C compiler, not Linux).

It takes the options of load.c that the demo uses, checks the same things (status 200, Content-Length, the same
body each time) and prints the same line of JSON.  It needs more CPU time than the server that it asks, so
requests a second tell about this client; the server's CPU time a request, where /proc tells it, still stands.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

#: The server's way back into its poll after its last answer, as in load.c.
SETTLE_S = 0.002


class WrongAnswerError(Exception):
    """The server answered something else than what was expected."""


def server_cpu_ns(pid: int) -> int | None:
    """Give the CPU time of all threads of a process in ns, None where the system does not tell."""
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) if files else None
    except OSError:
        return None


class Client:
    """Keep-alive connections that each ask again once they are answered."""

    def __init__(self, port: int, path: str, body: bytes | None) -> None:
        self._port = port
        self._body = body
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: keep-alive\r\n\r\n".encode()
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.latencies_us: list[float] = []
        self.sent = 0
        self.received = 0

    async def connect(self, count: int) -> None:
        """Open the connections; the first one learns the body unless it is known."""
        for _ in range(count):
            self._connections.append(await asyncio.open_connection("127.0.0.1", self._port))
        await self._ask(*self._connections[0])

    async def run(self, seconds: float) -> float:
        """Ask on all connections for so many seconds; return how long it took until the last answer."""
        self.latencies_us, self.sent, self.received = [], 0, 0
        start = time.perf_counter()
        await asyncio.gather(*(self._repeat(*pair, start + seconds) for pair in self._connections))
        return time.perf_counter() - start

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._connections:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in self._connections), return_exceptions=True)

    async def _repeat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: float) -> None:
        now = time.perf_counter()
        while now < until:
            began = now
            await self._ask(reader, writer)
            now = time.perf_counter()
            self.latencies_us.append((now - began) * 1e6)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        if not status.startswith("HTTP/1.1 200"):
            raise WrongAnswerError(f'the answer is "{status}", not 200')
        lengths = [
            value for name, _, value in (line.partition(":") for line in fields) if name.lower() == "content-length"
        ]
        if not lengths:
            raise WrongAnswerError("the answer has no Content-Length")
        body = await reader.readexactly(int(lengths[0]))
        if self._body is None:
            self._body = body
        if body != self._body:
            raise WrongAnswerError("a body with other content")
        self.sent += len(self._request)
        self.received += len(head) + len(body)


async def measure(arguments: argparse.Namespace) -> str:
    """Warm up, measure, and give the line of JSON."""
    body = None if arguments.body is None else arguments.body.encode()
    client = Client(arguments.port, arguments.http, body)
    try:
        await client.connect(arguments.connections)
        await client.run(arguments.warmup)
        await asyncio.sleep(SETTLE_S)
        before = server_cpu_ns(arguments.server)
        seconds = await client.run(arguments.seconds)
        await asyncio.sleep(SETTLE_S)
        after = server_cpu_ns(arguments.server)
    finally:
        await client.close()
    ordered = sorted(client.latencies_us)
    result = {
        "connections": arguments.connections,
        "pipeline": 1,
        "messages": len(ordered),
        "bytes_sent": client.sent,
        "bytes_received": client.received,
        "seconds": seconds,
        "burst_us": {"p50": ordered[len(ordered) // 2], "p99": ordered[len(ordered) * 99 // 100], "max": ordered[-1]},
        "server_cpu_ns": None if before is None or after is None else after - before,
    }
    return json.dumps(result)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http", required=True, metavar="PATH")
    parser.add_argument("--body")
    parser.add_argument("--server", type=int, default=0)
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--pipeline", type=int, default=1, choices=[1])
    parser.add_argument("--warmup", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--timeout", type=float, default=60.0)
    arguments = parser.parse_args()
    try:
        print(asyncio.run(asyncio.wait_for(measure(arguments), arguments.timeout)))
    except TimeoutError:
        sys.exit("client: the time limit (--timeout) passed")
    except (OSError, EOFError, WrongAnswerError) as error:
        sys.exit(f"client: {error}")


if __name__ == "__main__":
    main()
