"""The rows of the table: what is measured, in which unit, and what velociloop has to reach.

Every figure is a cost: less is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness import Load
from loops import FLOOR

BEST = "the best other loop"


@dataclass(frozen=True)
class Target:
    """The most that velociloop may need.

    Attributes:
        limit: times what `against` needs, or in the row's unit where `against` is None.
        against: a loop's name, or BEST.
    """

    limit: float
    against: str | None = BEST

    def __str__(self) -> str:
        return f"<= {self.limit:g}" if self.against is None else f"<= {self.limit:g} x {self.against}"


@dataclass(frozen=True)
class Row:
    """One measurement of every loop.

    Attributes:
        key: its name in the JSON file and for --rows.
        title: its name in the table.
        unit: of the figures.
        targets: all of them must hold.
        how: which part of the suite measures it: server.py (`server`, `memory`), micro.py under pyperf, probe.py.
        kind: echo_server.py's --kind.
        load: what a server gets, apart from the seconds.
        tool: which load generator.
    """

    key: str
    title: str
    unit: str
    targets: tuple[Target, ...]
    how: Literal["server", "micro", "probe", "memory"] = "micro"
    kind: str = ""
    load: Load | None = None
    tool: Literal["load", "tls", "connect"] = "load"


def _server(
    key: str,
    title: str,
    kind: str,
    load: Load,
    *targets: Target,
    tool: Literal["load", "tls", "connect"] = "load",
) -> Row:
    return Row(key, title, "us", targets, "server", kind, load, tool)


def _micro(key: str, title: str, unit: str, *targets: Target) -> Row:
    return Row(key, title, unit, targets)


def _get(connections: int) -> Load:
    return Load(connections, path="/")


ROWS = [
    _server("echo-10", "echo protocol 1 kB, 10 connections", "protocol", Load(10), Target(0.95)),
    _server("echo-200", "echo protocol 1 kB, 200 connections", "protocol", Load(200), Target(0.9), Target(1.1, FLOOR)),
    _server("echo-10k", "echo protocol 10 kB, 50 connections", "protocol", Load(50, 10_240), Target(0.95)),
    _server("echo-100k", "echo protocol 100 kB, 20 connections", "protocol", Load(20, 102_400), Target(0.9)),
    _server(
        "echo-pipelined", "echo protocol 1 kB, 16 at once, 50 connections", "protocol", Load(50, 1024, 16), Target(0.9)
    ),
    _server("buffered", "BufferedProtocol 1 kB, 50 connections", "buffered", Load(50), Target(0.9)),
    _server("buffered-100k", "BufferedProtocol 100 kB, 20 connections", "buffered", Load(20, 102_400), Target(0.9)),
    _server("streams", "streams 1 kB, 50 connections", "streams", Load(50), Target(0.9)),
    _server("sock", "sock_recv + sock_sendall 1 kB, 50 connections", "sock", Load(50), Target(0.5)),
    _server("unix", "Unix socket 1 kB, 50 connections", "unix", Load(50), Target(0.9)),
    _server("udp", "UDP 1 kB, 20 senders", "udp", Load(20, options=("--udp", "1")), Target(0.9)),
    _server("tls-streams", "TLS streams 1 kB, 10 connections", "tls-streams", Load(10), Target(0.55), tool="tls"),
    _server(
        "tls-streams-50k",
        "TLS streams 50 kB, 10 connections",
        "tls-streams",
        Load(10, 51_200),
        Target(0.85),
        tool="tls",
    ),
    _server("tls-protocol", "TLS protocol 1 kB, 10 connections", "tls-protocol", Load(10), Target(0.5), tool="tls"),
    _server("aiohttp", "aiohttp GET 1 kB, 50 connections", "aiohttp", _get(50), Target(0.95)),
    _server("uvicorn", "uvicorn + httptools GET 1 kB, 50 connections", "uvicorn", _get(50), Target(0.95)),
    _server(
        "connect",
        "connect, a byte each way, close",
        "protocol",
        Load(10, echo=False),
        Target(0.8),
        tool="connect",
    ),
    _micro("sleep0", "sleep(0)", "ns", Target(0.9)),
    _micro("chain", "call_soon chain", "ns", Target(0.9)),
    _micro("burst", "call_soon burst", "ns", Target(0.9)),
    _micro("gather", "gather, a coroutine", "us", Target(0.9)),
    _micro("queue", "queue ping-pong", "us", Target(0.9)),
    _micro("wait-for", "wait_for", "us", Target(0.9)),
    _micro("timer-cancel", "timer add + cancel", "us", Target(0.9)),
    _micro("timer-fire", "timer add + fire", "us", Target(0.9)),
    _micro("threadsafe", "call_soon_threadsafe", "us", Target(1.0)),
    _micro("executor", "run_in_executor", "us", Target(1.0)),
    _micro("resolve", "getaddrinfo, localhost", "us", Target(0.6, "asyncio")),
    _micro("numeric", "getaddrinfo, a numeric host", "us", Target(2.0, None)),
    _micro("spawn", "subprocess /bin/true (wall)", "ms", Target(1.0)),
    Row("late", "sleep(200 us), how late: median (wall)", "us", (Target(100.0, None),), "probe"),
    Row("import", "import + new loop (wall)", "ms", (Target(1.0, "uvloop"),), "probe"),
    Row("memory", "memory an idle connection", "kB", (Target(1.0),), "memory", "protocol"),
]


def choose(keys: str | None) -> list[Row]:
    """Give the rows of these comma-separated keys, or all.

    Raises:
        ValueError: there is no such row.
    """
    if keys is None:
        return ROWS
    by_key = {row.key: row for row in ROWS}
    if wrong := [key for key in keys.split(",") if key not in by_key]:
        raise ValueError(f"no row {wrong[0]!r}; there are {', '.join(by_key)}")
    return [by_key[key] for key in keys.split(",")]
