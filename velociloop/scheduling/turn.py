"""One turn of the loop, with an event at the end of each callback.

The same steps in the same order as asyncio's ``BaseEventLoop._run_once``, which stays in charge in debug
mode: cancelled timers go, wait, completions and due timers become ready, and what is ready now
(not what becomes ready meanwhile) runs.
"""

from __future__ import annotations

import heapq

from .._accelerator import speedups
from .._compat import (
    MAXIMUM_SELECT_TIMEOUT,
    MIN_CANCELLED_TIMER_HANDLES_FRACTION,
    MIN_SCHEDULED_TIMER_HANDLES,
)
from .callbacks import CallbackScope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LoopBase", "PyLoopBase", "register_loop", "run_once"]


class PyLoopBase:
    """What the loop has from its scheduling: nothing here, but C methods in the accelerator's ``LoopBase``.

    The subclass must provide ``_turn_in_python()``, which runs one turn in whatever state the loop is.
    """

    # asyncio's __del__ asks is_closed(), also of a loop whose __init__ has failed.
    _closed = True
    #: How many polls in a row have found nothing in the current run, which the accelerator counts (H2); -1 outside of
    #: a run.
    _quiet_polls = -1
    _scheduled: list[Any]
    _timer_cancelled_count: int

    def _turn_in_python(self) -> None:
        raise NotImplementedError

    def _timer_handle_cancelled(self, handle: Any) -> None:
        """Drop a timer that is cancelled while it is the heap's last item; count others, for the turn to drop them.

        Most timeouts are cancelled soon: the newest is the last if its time is the latest.  A heap without its last
        item is a heap.
        """
        scheduled = self._scheduled
        if scheduled and scheduled[-1] is handle:
            del scheduled[-1]
            handle._scheduled = False
        elif handle._scheduled:
            self._timer_cancelled_count += 1

    def _attach(
        self, pointer: Any, address: int, scope: CallbackScope, selector: Any, no_preparation: Any, drain: Any
    ) -> None:
        """Hand the accelerator what a complete loop has; before that it leaves everything to Python."""


def register_loop(loop_type: type) -> type:
    """Have the accelerator serve loops of this type while their methods are what they are now (H3)."""
    if speedups is None:
        loop_type._run_once = loop_type._turn_in_python  # type: ignore[attr-defined]
    else:
        speedups.register_loop(loop_type)
    return loop_type


LoopBase = PyLoopBase
if speedups is not None and not TYPE_CHECKING:
    LoopBase = speedups.LoopBase


def _drop_cancelled_timers(loop: Any) -> None:
    scheduled = loop._scheduled
    cancelled = loop._timer_cancelled_count
    if (
        len(scheduled) > MIN_SCHEDULED_TIMER_HANDLES
        and cancelled / len(scheduled) > MIN_CANCELLED_TIMER_HANDLES_FRACTION
    ):
        for handle in scheduled:
            if handle._cancelled:
                handle._scheduled = False
        # In place: _scheduled stays the list that others may hold (nest_asyncio).
        scheduled[:] = [handle for handle in scheduled if not handle._cancelled]
        heapq.heapify(scheduled)
        loop._timer_cancelled_count = 0
        return
    while scheduled and scheduled[0]._cancelled:
        loop._timer_cancelled_count -= 1
        heapq.heappop(scheduled)._scheduled = False


def run_once(loop: Any, scope: CallbackScope) -> None:
    """Run one turn of ``loop``, telling ``scope`` when each callback has ended."""
    scheduled = loop._scheduled
    ready = loop._ready
    timeout = None
    if scheduled:
        _drop_cancelled_timers(loop)
    if ready or loop._stopping:
        timeout = 0
    elif scheduled:
        timeout = min(max(0, scheduled[0]._when - loop.time()), MAXIMUM_SELECT_TIMEOUT)

    loop._process_events(loop._selector.select(timeout))

    if scheduled:
        end = loop.time() + loop._clock_resolution
        # "Not later", and not "earlier": a time that is not a number is due, as in asyncio.
        while scheduled and not scheduled[0]._when >= end:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)

    corked = scope.corked
    scope.active = True
    try:
        for _ in range(len(ready)):
            if not ready:
                break  # a nested turn inside a callback ran the rest
            handle = ready.popleft()
            if not handle._cancelled:
                scope.serial += 1
                handle._run()
                if corked:
                    scope.end()
    finally:
        scope.active = False
        handle = None  # a traceback that keeps this frame must not keep the callback
        if corked:
            scope.end()
