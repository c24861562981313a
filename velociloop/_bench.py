"""``python -m velociloop bench``: what the installed loops need, side by side, on the user's machine, in a minute.

Every figure is CPU time of a process that runs one workload on one loop; wall time would say as much about whatever
else the machine does.  The client of the echo rows is this process, with plain sockets.  Loops take turns, so that a
machine that grows slower meanwhile does so for all of them.  tests/benchmarks is the thorough version.
"""

import argparse
import asyncio
import importlib
import importlib.util
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, cast

from ._accelerator import accelerated

__all__ = ["main"]

ROUNDS = 3
#: Module of each loop that may be there, by the name that is printed.
LOOPS = {"asyncio": "asyncio", "uvloop": "uvloop", "rloop": "rloop", "zuvloop": "zuvloop", "velociloop": "velociloop"}
PURE = "velociloop, pure"

CONNECTIONS = 10
MESSAGE_BYTES = 1024
WARMUP_MESSAGES = 1_000
MESSAGES = 5_000
STREAM_READ_BYTES = 65_536
#: CPU seconds that a row without a client is repeated for.
LEAST_CPU_S = 0.15
BURST = 1_000
FAR_S = 3600.0
CHILD_LIMIT_S = 30.0

_CHILD = "from velociloop._bench import child; child()"


class _FailedError(Exception):
    """A loop cannot run a workload; the text says why."""


def main(arguments: Sequence[str]) -> None:
    """Measure, with progress on stderr, and print a table.

    Args:
        arguments: what follows ``bench`` on the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m velociloop bench",
        description="Measure the CPU time that the installed event loops need, side by side (about a minute).",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each is measured (default: {ROUNDS})")
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(_ROWS)} (default: all)")
    own = parser.parse_args(arguments)
    rows = own.rows.split(",") if own.rows else list(_ROWS)
    if wrong := [row for row in rows if row not in _ROWS]:
        parser.error(f"argument --rows: no row {wrong[0]!r}; there are {', '.join(_ROWS)}")
    if own.rounds < 1:
        parser.error("argument --rounds: at least 1")
    loops = [name for name, module in LOOPS.items() if importlib.util.find_spec(module) is not None]
    if accelerated():
        loops.append(PURE)
    figures, failures = _measure(rows, loops, own.rounds)
    print(_table(rows, loops, figures))
    for loop, row in failures:
        print(f"{loop} cannot run {_ROWS[row][0]}: {failures[loop, row]}")


def child() -> None:
    """Run one workload on one loop, as ``sys.argv`` has it, and print its cost in us an operation."""
    module, row = sys.argv[1:]
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(module).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        operation = _ROWS[row][1]
        print(runner.run(_serve(row == "streams") if operation is None else _repeat(operation)))


# -- the measuring process ----------------------------------------------------------------------------------------


def _measure(
    rows: Sequence[str], loops: Sequence[str], rounds: int
) -> tuple[dict[tuple[str, str], list[float]], dict[tuple[str, str], str]]:
    figures: dict[tuple[str, str], list[float]] = {}
    failures: dict[tuple[str, str], str] = {}
    live = sys.stderr.isatty()
    for number in range(rounds):
        for row in rows:
            for loop in loops:
                text = f"round {number + 1} of {rounds}: {_ROWS[row][0]}: {loop}"
                print(f"\r{text:<78}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)
                if (loop, row) not in failures:
                    try:
                        figures.setdefault((loop, row), []).append(_one(loop, row))
                    except _FailedError as error:
                        failures[loop, row] = str(error)
                        figures.pop((loop, row))
    if live:
        print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)
    return figures, failures


def _one(loop: str, row: str) -> float:
    """Give the cost of one run in us."""
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, **({"VELOCILOOP_PURE": "1"} if loop == PURE else {})}
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, LOOPS.get(loop, "velociloop"), row],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        try:
            if _ROWS[row][1] is None:
                _load(cast(IO[str], process.stdout).readline())
            output, errors = process.communicate(timeout=CHILD_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise _FailedError(f"not done in {CHILD_LIMIT_S:.0f} s") from None
        except OSError as error:
            raise _FailedError(f"its server failed: {error}") from error
        finally:
            process.kill()
    if process.returncode != 0:
        raise _FailedError((errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    return float(output)


def _load(port: str) -> None:
    """Ask an echo server for all its messages; ``port`` is the line that it printed, empty if it failed."""
    if not port:
        return
    message = bytes(range(256)) * (MESSAGE_BYTES // 256)
    clients = [socket.create_connection(("127.0.0.1", int(port)), CHILD_LIMIT_S) for _ in range(CONNECTIONS)]
    try:
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range((WARMUP_MESSAGES + MESSAGES) // CONNECTIONS):
            for client in clients:
                client.sendall(message)
            for client in clients:
                if client.recv(MESSAGE_BYTES, socket.MSG_WAITALL) != message:
                    raise OSError("a message came back changed")
    finally:
        for client in clients:
            client.close()


def _table(rows: Sequence[str], loops: Sequence[str], figures: dict[tuple[str, str], list[float]]) -> str:
    width = max(len(_ROWS[row][0]) for row in rows)
    column = max(18, *(len(loop) + 2 for loop in loops))
    lines = ["CPU time of an operation in us; in brackets, times asyncio's: less is better.", ""]
    lines.append(" " * width + "".join(f"{loop:>{column}}" for loop in loops))
    for row in rows:
        line = f"{_ROWS[row][0]:<{width}}"
        for loop in loops:
            ours, base = figures.get((loop, row)), figures.get(("asyncio", row))
            cell = "-" if ours is None else f"{statistics.median(ours):.2f}"
            if ours is not None and base is not None:
                cell += f" ({statistics.median(ours) / statistics.median(base):.2f})"
            line += f"{cell:>{column}}"
        lines.append(line)
    return "\n".join(lines)


# -- the measured process -----------------------------------------------------------------------------------------


class _Count:
    """Sees messages go by and takes the CPU time of those after the warm-up."""

    def __init__(self) -> None:
        self._bytes = 0
        self._start = 0.0
        self.cost_us: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def add(self, size: int) -> None:
        before, self._bytes = self._bytes, self._bytes + size
        if before < WARMUP_MESSAGES * MESSAGE_BYTES <= self._bytes:
            self._start = time.process_time()
        elif self._bytes == (WARMUP_MESSAGES + MESSAGES) * MESSAGE_BYTES:
            self.cost_us.set_result((time.process_time() - self._start) / MESSAGES * 1e6)


class _Echo(asyncio.Protocol):
    """Sends back what comes."""

    def __init__(self, count: _Count) -> None:
        self._count = count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)
        self._count.add(len(data))


async def _serve(streams: bool) -> float:
    """Serve an echo on a port that is printed first, until all messages have gone by."""
    count = _Count()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(STREAM_READ_BYTES):
            writer.write(data)
            await writer.drain()
            count.add(len(data))
        writer.close()

    if streams:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
    else:
        server = await asyncio.get_running_loop().create_server(lambda: _Echo(count), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    cost_us = await count.cost_us
    server.close()
    return cost_us


async def _repeat(operation: Callable[[int], Awaitable[None]]) -> float:
    """Do an operation ever more often, until it takes long enough to be measured."""
    count = 1_000
    while True:
        start = time.process_time()
        await operation(count)
        taken = time.process_time() - start
        if taken >= LEAST_CPU_S:
            return taken / count * 1e6
        count *= 2


async def _sleep0(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _chain(count: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def step(left: int) -> None:
        if left:
            loop.call_soon(step, left - 1)
        else:
            done.set_result(None)

    loop.call_soon(step, count)
    await done


def _nothing() -> None:
    pass


async def _timers(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count // BURST):
        for _ in range(BURST):
            loop.call_later(FAR_S, _nothing).cancel()
        await asyncio.sleep(0)


#: What is printed for each row, and what it repeats; None: it is a server with a client.
_ROWS: dict[str, tuple[str, Callable[[int], Awaitable[None]] | None]] = {
    "echo": ("protocol echo, 1 kB", None),
    "streams": ("stream echo, 1 kB", None),
    "sleep0": ("sleep(0)", _sleep0),
    "chain": ("call_soon", _chain),
    "timers": ("timer add + cancel", _timers),
}
