"""One turn of the loop, with an event at the end of each callback.

The same steps in the same order as asyncio's ``BaseEventLoop._run_once``, which stays in charge in debug
mode: cancelled timers go, wait, completions and due timers become ready, and what is ready now
(not what becomes ready meanwhile) runs.
"""

import heapq
from typing import Any

from .._compat import (
    MAXIMUM_SELECT_TIMEOUT,
    MIN_CANCELLED_TIMER_HANDLES_FRACTION,
    MIN_SCHEDULED_TIMER_HANDLES,
)
from .callbacks import CallbackScope

__all__ = ["run_once"]


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
