"""Lock, Event, Condition, Semaphore, BoundedSemaphore, Barrier: on the loop, fair, and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support import in_time, turns


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Lock


async def test_a_lock_excludes_and_is_fair() -> None:
    lock = asyncio.Lock()
    order: list[int] = []

    async def work(number: int) -> None:
        async with lock:
            assert lock.locked()
            order.append(number)
            await turns()
            order.append(number)

    await asyncio.gather(*map(work, range(4)))
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not lock.locked()


async def test_lock_acquire_and_release() -> None:
    lock = asyncio.Lock()
    assert await lock.acquire() is True
    waiter = asyncio.create_task(lock.acquire())
    await turns()
    await cancel(waiter)
    assert lock.locked()
    lock.release()
    assert not lock.locked()
    with pytest.raises(RuntimeError, match="not acquired"):
        lock.release()


async def test_a_waiter_cancelled_as_it_is_woken_passes_the_lock_on() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    first, second = (asyncio.create_task(lock.acquire()) for _ in range(2))
    await turns()
    lock.release()
    await cancel(first)
    assert await in_time(second) is True


def test_a_primitive_belongs_to_one_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """It is bound to the loop on which somebody first waited."""
    lock = asyncio.Lock()

    async def contend() -> None:
        await lock.acquire()
        waiter = asyncio.create_task(lock.acquire())
        await turns()
        await cancel(waiter)

    with asyncio.Runner(loop_factory=loop_factory) as first, asyncio.Runner(loop_factory=loop_factory) as second:
        first.run(contend())
        with pytest.raises(RuntimeError, match="is bound to a different event loop"):
            second.run(lock.acquire())


# Event


async def test_an_event_wakes_all() -> None:
    event = asyncio.Event()
    assert not event.is_set()
    waiters = [asyncio.create_task(event.wait()) for _ in range(3)]
    await turns()
    await cancel(waiters.pop())
    assert not any(waiter.done() for waiter in waiters)
    event.set()
    assert event.is_set()
    assert await asyncio.gather(*waiters) == [True, True]
    assert await event.wait() is True
    event.clear()
    assert not event.is_set()
    waiter = asyncio.create_task(event.wait())
    await turns()
    assert not waiter.done()
    await cancel(waiter)


# Condition


async def test_a_condition_wakes_as_many_as_notified() -> None:
    condition = asyncio.Condition()
    woken: list[int] = []

    async def wait(number: int) -> None:
        async with condition:
            assert await condition.wait() is True
            assert condition.locked()
            woken.append(number)

    waiters = [asyncio.create_task(wait(number)) for number in range(5)]
    await turns()
    async with condition:
        condition.notify()
        condition.notify(2)
    await in_time(asyncio.wait(waiters[:3]))
    await turns()
    assert woken == [0, 1, 2]
    assert await condition.acquire() is True
    condition.notify_all()
    condition.release()
    await asyncio.gather(*waiters)
    assert woken == [0, 1, 2, 3, 4]


async def test_condition_wait_for() -> None:
    condition = asyncio.Condition()
    numbers: list[int] = []

    async def wait() -> int:
        async with condition:
            return await condition.wait_for(lambda: sum(numbers))

    waiter = asyncio.create_task(wait())
    for number in 0, 0, 7:
        await turns()
        assert not waiter.done()
        async with condition:
            numbers.append(number)
            condition.notify_all()
    assert await in_time(waiter) == 7


async def test_a_cancelled_wait_has_the_lock_again() -> None:
    condition = asyncio.Condition(asyncio.Lock())
    held: list[bool] = []

    async def wait() -> None:
        async with condition:
            try:
                await condition.wait()
            finally:
                held.append(condition.locked())

    waiter = asyncio.create_task(wait())
    await turns()
    assert not condition.locked()
    await cancel(waiter)
    assert held == [True] and not condition.locked()


async def test_a_condition_needs_its_lock() -> None:
    condition = asyncio.Condition()
    for call in condition.notify, condition.notify_all:
        with pytest.raises(RuntimeError, match="lock"):
            call()
    with pytest.raises(RuntimeError, match="lock"):
        await condition.wait()


# Semaphore


async def test_a_semaphore_lets_so_many_in() -> None:
    semaphore = asyncio.Semaphore(3)
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        async with semaphore:
            inside += 1
            most = max(most, inside)
            await turns()
            inside -= 1

    await asyncio.gather(*(work() for _ in range(10)))
    assert (inside, most) == (0, 3)


async def test_semaphore_acquire_and_release() -> None:
    semaphore = asyncio.Semaphore(1)
    assert await semaphore.acquire() is True and semaphore.locked()
    first, second = (asyncio.create_task(semaphore.acquire()) for _ in range(2))
    await turns()
    await cancel(first)
    semaphore.release()
    assert await in_time(second) is True
    semaphore.release()
    semaphore.release()  # it may have more than at first
    assert await semaphore.acquire() and await semaphore.acquire() and semaphore.locked()
    with pytest.raises(ValueError, match=">= 0"):
        asyncio.Semaphore(-1)


async def test_a_bounded_semaphore_does_not_grow() -> None:
    semaphore = asyncio.BoundedSemaphore(1)
    async with semaphore:
        assert semaphore.locked()
    with pytest.raises(ValueError, match="too many times"):
        semaphore.release()


# Barrier


async def test_a_barrier_lets_all_pass_together_again_and_again() -> None:
    barrier = asyncio.Barrier(3)
    order: list[str] = []

    async def work(number: int) -> list[int]:
        places = []
        for _ in range(2):
            order.append("arrives")
            places.append(await barrier.wait())
            order.append("passes")
        return places

    tasks = [asyncio.create_task(work(number)) for number in range(2)]
    await turns()
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 2, False)
    places = await asyncio.gather(work(2), *tasks)
    for turn in zip(*places, strict=True):
        assert sorted(turn) == [0, 1, 2]
    assert order[:4] == ["arrives", "arrives", "arrives", "passes"]
    assert barrier.n_waiting == 0


async def test_a_barrier_as_a_block() -> None:
    barrier = asyncio.Barrier(2)

    async def work() -> object:
        async with barrier as place:  # typeshed has it that this is the barrier; it is the place
            return place

    assert set(await asyncio.gather(work(), work())) == {0, 1}


async def test_abort_and_reset_of_a_barrier() -> None:
    barrier = asyncio.Barrier(2)
    waiter = asyncio.create_task(barrier.wait())
    await turns()
    await barrier.abort()
    with pytest.raises(asyncio.BrokenBarrierError):
        await waiter
    assert barrier.broken
    with pytest.raises(asyncio.BrokenBarrierError):
        await barrier.wait()
    await barrier.reset()
    assert not barrier.broken
    waiter = asyncio.create_task(barrier.wait())
    await turns()
    await barrier.reset()
    with pytest.raises(asyncio.BrokenBarrierError):
        await waiter
    assert sorted(await asyncio.gather(barrier.wait(), barrier.wait())) == [0, 1]
    with pytest.raises(ValueError, match=r">= 1|> 0"):
        asyncio.Barrier(0)
