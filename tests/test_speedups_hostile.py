"""Code of somebody else's that runs in the middle of the accelerator's: comparisons, clocks, callbacks."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import pytest
from test_speedups import run_turns
from test_speedups_polls import after_quiet_polls

from velociloop._accelerator import accelerated, speedups

needs_speedups = pytest.mark.skipif(not accelerated(), reason="the accelerator is not in use")


class Equals:
    """Calls `action` when it is compared, and is equal to everything or nothing."""

    def __init__(self, action: Any, equal: bool) -> None:
        self.action, self.equal = action, equal

    def __eq__(self, other: object) -> bool:
        self.action()
        return self.equal

    __hash__ = None  # type: ignore[assignment]


@needs_speedups
def test_what_is_appended_while_remove_compares_is_kept() -> None:
    queue = speedups.ReadyQueue()
    queue.extend([Equals(lambda: queue.append("meanwhile"), False), "last"])
    queue.remove("last")
    assert list(queue)[1:] == ["meanwhile"]


@needs_speedups
def test_what_is_taken_while_remove_compares_is_not_taken_twice() -> None:
    queue = speedups.ReadyQueue()
    queue.extend([Equals(lambda: queue.popleft(), True), "last"])
    with pytest.raises(IndexError, match="mutated"):
        queue.remove("any")
    assert list(queue) == ["last"]


@needs_speedups
def test_a_ready_queue_within_itself_has_a_repr() -> None:
    queue = speedups.ReadyQueue()
    queue.append(queue)
    assert repr(queue) == "ReadyQueue([[...]])"
    queue.clear()


@pytest.mark.parametrize("resolution", [1000, True])
def test_the_clock_resolution_may_be_any_number(loop: Any, resolution: Any) -> None:
    """A callback sets it in the midst of turns that are not polled: what is due by it is due at once."""
    ran: list[int] = []

    def change() -> None:
        loop._clock_resolution = resolution
        loop.call_later(0.5, ran.append, 1)
        loop.call_soon(loop.call_soon, loop.call_soon, loop.stop)

    after_quiet_polls(loop, change)
    loop.run_forever()
    assert ran == [1]


def test_the_clock_resolution_may_go_while_the_clock_is_read(loop: Any) -> None:
    found, monotonic = loop._clock_resolution, time.monotonic

    def clock() -> float:
        vars(loop).pop("_clock_resolution", None)
        if hasattr(loop, "_clock_resolution"):
            del loop._clock_resolution
        return monotonic()

    loop.call_later(1000, print)
    loop.call_soon(print)
    with mock.patch("time.monotonic", clock), pytest.raises(AttributeError, match="_clock_resolution"):
        loop._run_once()
    loop._clock_resolution = found
    loop._scheduled.clear()
    run_turns(loop, 1)


def test_a_timer_of_somebody_elses_may_empty_the_heap(loop: Any) -> None:
    """Its attributes are Python code, in which the list may lose its last reference to it."""

    class Timer:
        _cancelled = False

        def __getattribute__(self, name: str) -> Any:
            if name == "_when":
                loop._scheduled.clear()
                raise AttributeError(name)
            return object.__getattribute__(self, name)

        def __getattr__(self, name: str) -> Any:
            return loop.time() + 1000

    loop._scheduled.append(Timer())
    run_turns(loop, 1)
    assert loop._scheduled == []
