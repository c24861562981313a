"""Queue, PriorityQueue, LifoQueue; join; shutdown from Python 3.13 on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import in_time, turns

needs_shutdown = pytest.mark.skipif(
    not hasattr(asyncio, "QueueShutDown"), reason="queues can be shut down from Python 3.13 on"
)


@pytest.mark.parametrize(
    ("kind", "order"),
    [(asyncio.Queue, [2, 3, 1]), (asyncio.LifoQueue, [1, 3, 2]), (asyncio.PriorityQueue, [1, 2, 3])],
)
async def test_order(kind: type[asyncio.Queue[int]], order: list[int]) -> None:
    queue = kind()
    assert queue.empty() and not queue.full() and queue.maxsize == 0
    for item in 2, 3, 1:
        await queue.put(item)
    assert queue.qsize() == 3 and not queue.empty()
    assert [await queue.get() for _ in range(3)] == order


async def test_a_full_queue_makes_its_producers_wait() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(2)
    done: list[int] = []

    async def produce() -> None:
        for item in range(6):
            await queue.put(item)
            done.append(item)

    producer = asyncio.create_task(produce())
    await turns()
    assert done == [0, 1] and queue.full() and queue.qsize() == queue.maxsize == 2
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait(7)
    assert [await queue.get() for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    await producer
    with pytest.raises(asyncio.QueueEmpty):
        queue.get_nowait()
    queue.put_nowait(7)
    assert queue.get_nowait() == 7


async def test_consumers_are_served_in_turn_and_a_cancelled_one_loses_nothing() -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()
    first, cancelled, last = (asyncio.create_task(queue.get()) for _ in range(3))
    await turns()
    queue.put_nowait("a")
    queue.put_nowait("b")
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert [await in_time(first), await in_time(last)] == ["a", "b"]


async def test_join_waits_for_the_work() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    seen: list[int] = []

    async def work() -> None:
        while True:
            item = await queue.get()
            await turns(item)
            seen.append(item)
            queue.task_done()

    await queue.join()
    for item in range(6):
        queue.put_nowait(item)
    workers = [asyncio.create_task(work()) for _ in range(3)]
    await in_time(queue.join())
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


@needs_shutdown
@pytest.mark.parametrize("immediate", [False, True])
async def test_shutdown(immediate: bool) -> None:
    shut_down: type[Exception] = asyncio.QueueShutDown  # type: ignore[attr-defined]
    queue: Any = asyncio.Queue(1)
    await queue.put("left")
    producer = asyncio.create_task(queue.put("never"))
    joiner = asyncio.create_task(queue.join())
    await turns()
    queue.shutdown(immediate=immediate)
    with pytest.raises(shut_down):
        await producer
    with pytest.raises(shut_down):
        queue.put_nowait("more")
    if not immediate:
        assert await queue.get() == "left"
        queue.task_done()
    await in_time(joiner)
    with pytest.raises(shut_down):
        await queue.get()
    with pytest.raises(shut_down):
        queue.get_nowait()


@needs_shutdown
async def test_shutdown_wakes_consumers() -> None:
    queue: Any = asyncio.Queue()
    consumers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await turns()
    queue.shutdown()
    results = await asyncio.gather(*consumers, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["QueueShutDown"] * 3
