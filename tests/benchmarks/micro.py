"""Rows of one process, by pyperf: `python micro.py --loop velociloop --row chain -o FILE` and pyperf's own options.

pyperf chooses how often, and runs each row in processes of its own.  What it is given is CPU time of the whole
process, threads included, since wall time on a shared machine says as much about the neighbours; only `spawn`,
which waits for another process, is wall time.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

#: Callbacks, timers or coroutines that are there at once.
BURST = 1000
GATHERED = 100
#: Seconds: later than a burst is made, so that timers are pending when they fire.
SHORT_TIMER_S = 0.001
LONG_TIMER_S = 3600.0


def nothing() -> None:
    """What callbacks do here."""


async def sleep0(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def chain(count: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left > 0:
            loop.call_soon(step)
        else:
            done.set_result(None)

    loop.call_soon(step)
    await done


async def _bursts(count: int, add: Callable[[Callable[[], object]], object]) -> None:
    """Let `add` schedule `count` callbacks, BURST at a time, and wait for each burst's last one to have run."""
    loop = asyncio.get_running_loop()
    for start in range(0, count, BURST):
        done = loop.create_future()
        left = min(BURST, count - start)

        def step(done: asyncio.Future[None] = done) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set_result(None)

        for _ in range(left):
            add(step)
        await done


async def burst(count: int) -> None:
    await _bursts(count, asyncio.get_running_loop().call_soon)


async def timer_fire(count: int) -> None:
    loop = asyncio.get_running_loop()
    await _bursts(count, lambda step: loop.call_later(SHORT_TIMER_S, step))


async def timer_cancel(count: int) -> None:
    loop = asyncio.get_running_loop()
    for start in range(0, count, BURST):
        for _ in range(min(BURST, count - start)):
            loop.call_later(LONG_TIMER_S, nothing).cancel()
        await asyncio.sleep(0)


async def gather(count: int) -> None:
    for start in range(0, count, GATHERED):
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(min(GATHERED, count - start))))


async def queue(count: int) -> None:
    there: asyncio.Queue[int] = asyncio.Queue()
    back: asyncio.Queue[int] = asyncio.Queue()

    async def answer() -> None:
        for _ in range(count):
            await back.put(await there.get())

    task = asyncio.create_task(answer())
    for number in range(count):
        await there.put(number)
        await back.get()
    await task


async def wait_for(count: int) -> None:
    for _ in range(count):
        await asyncio.wait_for(asyncio.sleep(0), LONG_TIMER_S)


async def threadsafe(count: int) -> None:
    loop = asyncio.get_running_loop()

    def post() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(nothing)

    await loop.run_in_executor(None, post)


async def executor(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(None, nothing)


async def resolve(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)


async def numeric(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)


async def spawn(count: int) -> None:
    for _ in range(count):
        process = await asyncio.create_subprocess_exec("/bin/true", stdin=subprocess.DEVNULL)
        if await process.wait() != 0:
            raise RuntimeError("/bin/true failed")


ROWS: dict[str, Callable[[int], Awaitable[None]]] = {
    "sleep0": sleep0,
    "chain": chain,
    "burst": burst,
    "gather": gather,
    "queue": queue,
    "wait-for": wait_for,
    "timer-cancel": timer_cancel,
    "timer-fire": timer_fire,
    "threadsafe": threadsafe,
    "executor": executor,
    "resolve": resolve,
    "numeric": numeric,
    "spawn": spawn,
}
WALL = {"spawn"}


def timed(package: str, row: str, count: int) -> float:
    """Give the seconds that `count` operations of a row take on a loop of `package`."""
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(package).new_event_loop
    clock = time.perf_counter if row in WALL else time.process_time

    async def measured() -> float:
        await ROWS[row](1)  # threads, caches, what is made on first use
        start = clock()
        await ROWS[row](count)
        return clock() - start

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(measured())


def main() -> None:
    """Let pyperf measure one row."""

    def hand_on(command: list[str], arguments: argparse.Namespace) -> None:
        command += ["--loop", arguments.loop, "--row", arguments.row]

    pyperf: Any = importlib.import_module("pyperf")
    runner = pyperf.Runner(add_cmdline_args=hand_on)
    runner.argparser.add_argument("--loop", default="velociloop", help="package with a new_event_loop()")
    runner.argparser.add_argument("--row", choices=list(ROWS), required=True)
    arguments = runner.parse_args()
    runner.bench_time_func(
        f"{arguments.row} on {arguments.loop}", lambda count: timed(arguments.loop, arguments.row, count)
    )


if __name__ == "__main__":
    main()
