"""The ready queue of the accelerator beside a deque; timers and thread-safe handles that are cancelled."""

from __future__ import annotations

import asyncio
import collections
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies
from test_speedups import run_turns

from velociloop._accelerator import accelerated, speedups

needs_speedups = pytest.mark.skipif(not accelerated(), reason="the accelerator is not in use")

# -- the ready queue, beside a deque ----------------------------------------------------------------

QUEUE_STEPS = strategies.sampled_from(
    ["append", "append", "append", "appendleft", "popleft", "popleft", "pop", "remove", "extend", "clear", "look"]
)


@needs_speedups
@given(strategies.lists(QUEUE_STEPS, max_size=400))
def test_the_ready_queue_is_as_a_deque(steps: list[str]) -> None:
    queue, model = speedups.ReadyQueue(), collections.deque[int]()
    for number, step in enumerate(steps):
        match step:
            case "append" | "appendleft":
                getattr(queue, step)(number)
                getattr(model, step)(number)
            case "popleft" | "pop":
                if model:
                    assert getattr(queue, step)() == getattr(model, step)()
                else:
                    with pytest.raises(IndexError, match="empty"):
                        getattr(queue, step)()
            case "remove":
                if model:
                    queue.remove(model[len(model) // 2])
                    model.remove(model[len(model) // 2])
                with pytest.raises(ValueError, match="not in"):
                    queue.remove(-1)
            case "extend":
                queue.extend(range(40))
                model.extend(range(40))
            case "clear":
                queue.clear()
                model.clear()
            case "look":
                assert list(queue) == list(model) and queue == model and not queue != model  # noqa: SIM202
                assert [queue[i] for i in range(len(queue))] == list(model)
                assert (len(queue), bool(queue)) == (len(model), bool(model))
                assert (number in queue, 0 in queue) == (number in model, 0 in model)
    assert list(queue) == list(model)


@needs_speedups
def test_the_ready_queue_on_its_own() -> None:
    queue = speedups.ReadyQueue()
    assert repr(queue) == "ReadyQueue([])" and queue == collections.deque() and queue != [] and queue != 1
    for index in (0, -1):
        with pytest.raises(IndexError, match="out of range"):
            queue[index]
    queue.extend("ab")
    queue.extend(queue)
    assert queue[-1] == "b" and repr(queue) == "ReadyQueue(['a', 'b', 'a', 'b'])"
    with pytest.raises(TypeError):
        queue.extend(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(queue)
    with pytest.raises(TypeError):
        queue < queue  # noqa: B015

    class Refills:
        def __del__(self) -> None:
            queue.append("again")

    queue.clear()
    queue.append(Refills())
    queue.clear()
    assert list(queue) == ["again"]


@needs_speedups
def test_a_cycle_through_the_ready_queue_is_collected() -> None:
    class Item:
        pass

    queue, item = speedups.ReadyQueue(), Item()
    seen = weakref.ref(item)
    queue.extend([queue, item])
    del queue, item
    gc.collect()
    assert seen() is None


@needs_speedups
@pytest.mark.ours("asyncio's is a deque")
def test_a_loop_has_a_ready_queue(loop: Any) -> None:
    assert type(loop._ready) is speedups.ReadyQueue
    assert loop._ready == collections.deque()


# -- timers that are cancelled -------------------------------------------------------------------------


@pytest.mark.ours("asyncio counts the last, too")
def test_a_timer_cancelled_twice_counts_once(loop: Any) -> None:
    first = loop.call_later(1000, print)
    second = loop.call_later(1001, print)
    for _ in range(2):
        first.cancel()
    assert loop._timer_cancelled_count == 1 and loop._scheduled == [first, second]
    for _ in range(2):
        second.cancel()
    assert loop._timer_cancelled_count == 1 and [id(timer) for timer in loop._scheduled] == [id(first)]
    assert not second._scheduled
    run_turns(loop, 1)
    assert loop._timer_cancelled_count == 0 and loop._scheduled == []


def test_a_timer_cancelled_when_it_is_due_or_has_run(loop: Any) -> None:
    ran: list[int] = []
    timers: list[asyncio.TimerHandle] = []
    timers.append(loop.call_later(0, lambda: timers[1].cancel()))
    timers.append(loop.call_later(0, ran.append, 1))
    run_turns(loop, 2)
    for timer in timers:
        timer.cancel()
    assert ran == [] and loop._timer_cancelled_count == 0


def test_a_timer_of_a_closed_loop_may_be_cancelled(loop_factory: Callable[[], Any]) -> None:
    loop = loop_factory()
    timer = loop.call_later(1000, print)
    loop.close()
    timer.cancel()
    assert timer.cancelled()


@pytest.mark.ours("asyncio keeps it until the next turn")
def test_what_a_cancelled_timer_lets_go_may_do_anything(loop: Any) -> None:
    class Cancels:
        def __del__(self) -> None:
            timer.cancel()
            loop.call_later(1000, print).cancel()

    timer = loop.call_later(1000, print, Cancels())
    timer.cancel()
    gc.collect()
    assert timer.cancelled() and loop._scheduled == []


@pytest.mark.skipif(not hasattr(asyncio.events, "_ThreadSafeHandle"), reason="it came with Python 3.14")
def test_cancel_waits_for_a_callback_that_has_begun(loop: Any) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def callback() -> None:
        begun.set()
        assert not cancelled.wait(0.05)

    def cancel() -> None:
        begun.wait()
        handle.cancel()
        cancelled.set()

    handle = loop.call_soon_threadsafe(callback)
    assert isinstance(handle, asyncio.events._ThreadSafeHandle)  # type: ignore[attr-defined]
    thread = threading.Thread(target=cancel)
    thread.start()
    run_turns(loop, 1)
    thread.join()
    assert handle.cancelled()
    ran: list[Any] = []
    loop.call_soon_threadsafe(ran.append, 1).cancel()
    loop.call_soon_threadsafe(lambda: 1 / 0)
    loop.set_exception_handler(lambda loop, context: ran.append(type(context["exception"])))
    run_turns(loop, 1)
    loop.set_exception_handler(None)
    assert ran == [ZeroDivisionError]
