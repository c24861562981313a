"""Threads and the loop: to_thread, run_in_executor, run_coroutine_threadsafe, call_soon_threadsafe."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import HANG_S, in_time, turns

Loop = asyncio.AbstractEventLoop

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


async def test_to_thread() -> None:
    def work(number: int, *, factor: int) -> tuple[int, str, int]:
        return number * factor, VARIABLE.get(), threading.get_ident()

    VARIABLE.set("in the context")
    result, seen, ident = await asyncio.to_thread(work, 3, factor=7)
    assert (result, seen) == (21, "in the context") and ident != threading.get_ident()
    with pytest.raises(LookupError, match="on purpose"):
        await asyncio.to_thread(_fail)


def _fail() -> None:
    raise LookupError("on purpose")


async def test_the_loop_turns_while_a_thread_works() -> None:
    release = threading.Event()
    thread = asyncio.create_task(asyncio.to_thread(release.wait, HANG_S))
    for _ in range(10):
        await turns()
        assert not thread.done()
    release.set()
    assert await in_time(thread) is True


async def test_run_in_executor() -> None:
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="own") as own:
        name = await loop.run_in_executor(own, lambda: threading.current_thread().name)
        assert name.startswith("own")
    assert await loop.run_in_executor(None, divmod, 7, 2) == (3, 1)


async def test_set_default_executor() -> None:
    loop = asyncio.get_running_loop()
    own = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="default")
    loop.set_default_executor(own)
    assert (await asyncio.to_thread(lambda: threading.current_thread().name)).startswith("default")
    with pytest.raises(TypeError):
        loop.set_default_executor(concurrent.futures.Executor())
    await loop.shutdown_default_executor()
    with pytest.raises(RuntimeError, match="shutdown"):
        await asyncio.to_thread(len, "")


async def test_a_cancelled_wait_for_a_thread() -> None:
    """The thread cannot be stopped, the wait can."""
    release = threading.Event()
    started = threading.Event()

    def work() -> None:
        started.set()
        assert release.wait(HANG_S)

    task = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.to_thread(started.wait, HANG_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()


# Into the loop, from another thread


@contextmanager
def running_in_a_thread(loop: Loop) -> Iterator[None]:
    """`loop` runs in a thread of its own."""
    started = threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.call_soon(started.set)
        loop.run_forever()
        asyncio.set_event_loop(None)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(HANG_S)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(HANG_S)
        assert not thread.is_alive()


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@pytest.mark.filterwarnings("ignore:.*set_event_loop:DeprecationWarning")
def test_run_coroutine_threadsafe(loop: Loop) -> None:
    async def fail() -> None:
        raise LookupError("on purpose")

    with running_in_a_thread(loop):
        future = asyncio.run_coroutine_threadsafe(double(7), loop)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(HANG_S) == 14
        with pytest.raises(LookupError, match="on purpose"):
            asyncio.run_coroutine_threadsafe(fail(), loop).result(HANG_S)
        futures = [asyncio.run_coroutine_threadsafe(double(number), loop) for number in range(100)]
        assert [future.result(HANG_S) for future in futures] == [2 * number for number in range(100)]
    with pytest.raises(TypeError, match="coroutine"):
        asyncio.run_coroutine_threadsafe(7, loop)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*set_event_loop:DeprecationWarning")
def test_cancelling_from_another_thread(loop: Loop) -> None:
    waiting, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        waiting.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with running_in_a_thread(loop):
        future = asyncio.run_coroutine_threadsafe(wait(), loop)
        assert waiting.wait(HANG_S)
        with pytest.raises(TimeoutError):
            future.result(0.01)
        assert future.cancel()
        assert cancelled.wait(HANG_S)


@pytest.mark.filterwarnings("ignore:.*set_event_loop:DeprecationWarning")
def test_two_loops_call_each_other(loop_factory: Callable[[], Loop]) -> None:
    async def ask(other: Loop, number: int) -> int:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(double(number), other))

    far = loop_factory()
    with running_in_a_thread(far), asyncio.Runner(loop_factory=loop_factory) as runner:
        for number in range(20):
            assert runner.run(ask(far, number)) == 2 * number
    far.close()


@pytest.mark.filterwarnings("ignore:.*set_event_loop:DeprecationWarning")
def test_call_soon_threadsafe_in_a_context(loop: Loop) -> None:
    context = contextvars.copy_context()
    context.run(VARIABLE.set, "given")
    seen: list[Any] = []
    done = threading.Event()
    with running_in_a_thread(loop):
        loop.call_soon_threadsafe(lambda: seen.append(VARIABLE.get()), context=context)
        handle = loop.call_soon_threadsafe(done.set)
        assert isinstance(handle, asyncio.Handle)
        assert done.wait(HANG_S)
    assert seen == ["given"]
