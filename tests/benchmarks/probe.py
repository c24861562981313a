"""Rows that pyperf does not fit: `python probe.py late --loop velociloop` prints one number.

late    how late sleep(200 us) is, the median in us; "early" instead if one of them ended before its time
import  ms that importing the package (asyncio is there) and making a loop take
timers  us of CPU time to add and fire each of --count timers, all there at once
tasks   us of CPU time for each step of --count tasks, all there at once
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import statistics
import time

SLEEP_S = 200e-6
SLEEPS = 200
#: When timers are due: few turns fire all of them, so that the cost is the timers' and not the turns'.
TIMERS_FROM_S = 0.001
TIMERS_SPREAD_S = 0.0002
MOST_BATCHES = 200
TASK_STEPS = 20
LEAST_STEPS = 20_000


async def _late() -> str:
    late = []
    for _ in range(SLEEPS):
        began = time.perf_counter()
        await asyncio.sleep(SLEEP_S)
        late.append(time.perf_counter() - began - SLEEP_S)
    return "early" if min(late) < 0 else f"{statistics.median(late) * 1e6:.3f}"


async def _timers(count: int) -> str:
    loop = asyncio.get_running_loop()
    batches = max(1, min(MOST_BATCHES, LEAST_STEPS // count))
    start = time.process_time()
    for _ in range(batches):
        done = loop.create_future()
        left = count

        def fired(done: asyncio.Future[None] = done) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set_result(None)

        for number in range(count):
            # Not in the order of their times, which would spare a heap its work.
            loop.call_later(TIMERS_FROM_S + number * 7919 % count / count * TIMERS_SPREAD_S, fired)
        await done
    return f"{(time.process_time() - start) / (batches * count) * 1e6:.4f}"


async def _tasks(count: int) -> str:
    steps = max(TASK_STEPS, LEAST_STEPS // count)

    async def walk() -> None:
        for _ in range(steps):
            await asyncio.sleep(0)

    start = time.process_time()
    tasks = [asyncio.create_task(walk()) for _ in range(count)]
    await asyncio.wait(tasks)
    return f"{(time.process_time() - start) / (count * steps) * 1e6:.4f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["late", "import", "timers", "tasks"])
    parser.add_argument("--loop", default="velociloop", help="package with a new_event_loop()")
    parser.add_argument("--count", type=int, default=1000, help="of timers or tasks (default: 1000)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    loop: asyncio.AbstractEventLoop = importlib.import_module(arguments.loop).new_event_loop()
    taken_s = time.perf_counter() - start
    loop.close()
    if arguments.what == "import":
        print(f"{taken_s * 1e3:.3f}")
        return
    with asyncio.Runner(loop_factory=importlib.import_module(arguments.loop).new_event_loop) as runner:
        if arguments.what == "late":
            print(runner.run(_late()))
        else:
            print(runner.run((_timers if arguments.what == "timers" else _tasks)(arguments.count)))


if __name__ == "__main__":
    main()
