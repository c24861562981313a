"""timeout, timeout_at, their rescheduling, and wait_for."""

from __future__ import annotations

import asyncio

import pytest
from support import turns


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_in_time() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with asyncio.timeout(3600) as limit:
        when = limit.when()
        assert when is not None and before + 3600 <= when <= loop.time() + 3600
        await asyncio.sleep(0)
    assert isinstance(limit, asyncio.Timeout)
    assert not limit.expired() and limit.when() == when


async def test_too_late() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02) as limit:
            await forever()
    assert limit.expired() and loop.time() - start >= 0.02
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    assert asyncio.TimeoutError is TimeoutError


@pytest.mark.parametrize("delay", [0, -1])
async def test_no_time_at_all(delay: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(delay):
            await asyncio.sleep(0)
            await forever()


async def test_timeout_at() -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 0.02
    with pytest.raises(TimeoutError):
        async with asyncio.timeout_at(deadline) as limit:
            await forever()
    assert limit.when() == deadline and loop.time() >= deadline


async def test_no_limit() -> None:
    async with asyncio.timeout(None) as limit:
        assert limit.when() is None
        await turns()
    async with asyncio.timeout_at(None):
        await turns()


async def test_reschedule() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            limit.reschedule(start + 3600)
            limit.reschedule(start + 0.02)
            assert limit.when() == start + 0.02
            await forever()
    assert loop.time() - start >= 0.02
    with pytest.raises(RuntimeError, match="Cannot change state of expired Timeout"):
        limit.reschedule(None)


async def test_nested() -> None:
    """The one whose time is up raises; the other sees an ordinary exception pass."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600) as outer:
            async with asyncio.timeout(0.01) as inner:
                await forever()
    assert inner.expired() and not outer.expired()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01) as outer:
            async with asyncio.timeout(3600) as inner:
                await forever()
    assert outer.expired() and not inner.expired()


async def test_a_cancellation_from_outside_stays_one() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with asyncio.timeout(3600):
            entered.set()
            await forever()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_exception_passes() -> None:
    with pytest.raises(LookupError, match="own"):
        async with asyncio.timeout(3600):
            raise LookupError("own")


async def test_wait_for_in_time() -> None:
    assert await asyncio.wait_for(asyncio.sleep(0, "result"), 3600) == "result"
    assert await asyncio.wait_for(asyncio.sleep(0, "result"), None) == "result"
    with pytest.raises(LookupError, match="own"):
        await asyncio.wait_for(_fail(), 3600)


async def _fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("own")


async def test_wait_for_cancels_and_waits_for_the_end_of_it() -> None:
    events: list[str] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            await turns()
            events.append("cleaned up")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work(), 0.01)
    assert events == ["cleaned up"]


async def test_wait_for_without_time() -> None:
    done = asyncio.get_running_loop().create_future()
    done.set_result("done")
    assert await asyncio.wait_for(done, 0) == "done"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(forever(), 0)


async def test_wait_for_cancelled_cancels_its_task() -> None:
    inner = asyncio.create_task(forever())
    outer = asyncio.create_task(asyncio.wait_for(inner, 3600))
    await turns()
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert inner.cancelled()


async def test_timeouts_by_the_thousand() -> None:
    """Those that never expire leave nothing behind, those that do all expire."""

    async def one(limit: float) -> bool:
        try:
            async with asyncio.timeout(limit):
                if limit > 1:
                    await asyncio.sleep(0)
                else:
                    await forever()
        except TimeoutError:
            return True
        return False

    results = await asyncio.gather(*(one(3600 if number % 2 else 0.01) for number in range(2000)))
    assert results == [number % 2 == 0 for number in range(2000)]
