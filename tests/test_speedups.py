"""The accelerator beside its Python twin, and that it steps aside (H3).

Everything here but what asks for `speedups` runs in both variants: VELOCILOOP_PURE=1 chooses the other one.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import gc
import heapq
import importlib.util
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, strategies

import velociloop
from velociloop._accelerator import accelerated, speedups
from velociloop.scheduling import callbacks

needs_speedups = pytest.mark.skipif(not accelerated(), reason="the accelerator is not in use")
Loop = asyncio.AbstractEventLoop

SCOPES = [callbacks.PyCallbackScope, *([speedups.CallbackScope] if accelerated() else [])]


def run_turns(loop: Any, count: int = 3) -> None:
    """Run some turns: callbacks that are ready now, and what they schedule."""
    for _ in range(count):
        loop.call_soon(loop.stop)
        loop.run_forever()


# -- the switch ------------------------------------------------------------------------


@pytest.mark.parametrize("pure", ["", "0", "1"])
def test_velociloop_pure_switches_it_off(pure: str) -> None:
    program = "from velociloop._accelerator import accelerated; import velociloop, sys; print(accelerated())"
    environment = {**os.environ, "VELOCILOOP_PURE": pure}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    built = importlib.util.find_spec("velociloop._speedups") is not None
    assert done.stdout.strip() == str(built and pure != "1")


@needs_speedups
def test_a_shim_of_another_build_is_refused() -> None:
    with pytest.raises(ImportError, match="different builds: install velociloop again"):
        speedups.configure(0, print)


# -- it steps aside (H3) -------------------------------------------------------------


def test_H3_a_replaced_run_is_obeyed(loop: Loop) -> None:
    ran: list[str] = []

    def replacement(handle: asyncio.Handle) -> None:
        ran.append("replaced")

    with mock.patch.object(asyncio.Handle, "_run", replacement):
        loop.call_soon(ran.append, "original")
        loop.call_later(0, ran.append, "original")
        # stop() does not run either, so the turn is asked for by name.
        loop._run_once()  # type: ignore[attr-defined]
    assert ran == ["replaced", "replaced"]
    loop.call_soon(ran.append, "original")
    run_turns(loop)
    assert ran[2:] == ["original"]


def test_H3_a_run_replaced_in_the_middle_of_a_turn_is_obeyed(loop: Loop) -> None:
    ran: list[str] = []
    handle_type: Any = asyncio.Handle
    original = handle_type._run

    def replacement(handle: asyncio.Handle) -> None:
        ran.append("replaced")

    def replace(new: Any) -> None:
        handle_type._run = new

    loop.call_soon(replace, replacement)
    loop.call_soon(ran.append, "original")
    try:
        loop._run_once()  # type: ignore[attr-defined]
    finally:
        replace(original)
    assert ran == ["replaced"]


def test_H3_whatever_is_in_the_ready_queue_runs(loop: Any) -> None:
    ran: list[str] = []

    class Handle(asyncio.Handle):
        def _run(self) -> None:
            ran.append("subclass")
            super()._run()

    stranger = mock.Mock(_cancelled=False)
    loop._ready.append(stranger)
    loop._ready.append(mock.Mock(_cancelled=True))
    loop._ready.append(Handle(ran.append, ("callback",), loop))
    run_turns(loop)
    stranger._run.assert_called_once_with()
    assert ran == ["subclass", "callback"]


@pytest.mark.parametrize("where", ["class", "instance"])
@pytest.mark.parametrize("name", ["time", "call_soon", "call_later", "call_at", "_process_events", "_run_once"])
def test_H3_a_replaced_method_is_obeyed(loop: Any, name: str, where: str) -> None:
    calls: list[Any] = []
    original = getattr(loop, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    new = staticmethod(replacement) if where == "class" else replacement
    target = type(loop) if where == "class" else loop
    with mock.patch.object(target, name, new):
        loop.call_soon(calls.__len__)
        loop.call_later(0, calls.__len__)
        run_turns(loop)
    assert calls
    seen = len(calls)
    loop.call_later(0, calls.__len__)
    run_turns(loop)
    assert len(calls) == seen


def test_H3_a_replaced_method_of_asyncio_is_obeyed(loop: Any) -> None:
    with mock.patch.object(asyncio.BaseEventLoop, "call_soon", mock.Mock(return_value="replaced")):
        assert loop.call_soon(print) == "replaced"
    with mock.patch.object(asyncio.BaseEventLoop, "time", return_value=5.0):
        assert loop.time() == 5.0
        assert loop.call_later(1, print).when() == 6.0


def test_H3_a_replaced_clock_is_obeyed(loop: Any) -> None:
    """Need 28: also where it is put into the module `time`."""
    ran: list[str] = []
    start = time.monotonic()
    loop.call_later(3600, ran.append, "an hour")
    with mock.patch.object(time, "monotonic", return_value=start + 4000):
        assert loop.time() == start + 4000
        run_turns(loop)
    assert ran == ["an hour"]


def test_H3_a_replaced_selector_is_asked(loop: Any) -> None:
    with mock.patch.object(loop._selector, "select", wraps=loop._selector.select) as select:
        run_turns(loop, 1)
    assert select.call_args_list == [mock.call(0)]
    own = loop._selector
    loop._selector = mock.Mock(wraps=own)
    run_turns(loop, 1)
    assert loop._selector.select.called
    loop._selector = own


def test_H3_a_subclass_is_obeyed() -> None:
    class Warped(velociloop.Loop):
        offset = 0.0

        def time(self) -> float:
            return super().time() + self.offset

    loop = Warped()
    ran: list[str] = []
    loop.call_later(1000, ran.append, "warped")
    loop.offset = 2000.0
    run_turns(loop, 1)
    loop.close()
    assert ran == ["warped"]


def test_H3_other_queues_are_accepted(loop: Any) -> None:
    class Deque(collections.deque[Any]):
        appended = 0

        def append(self, item: Any) -> None:
            self.appended += 1
            super().append(item)

    ran: list[int] = []
    before = loop._ready
    loop._ready = Deque(before)
    loop.call_soon(ran.append, 1)
    assert loop._ready.appended == 1
    run_turns(loop, 1)
    loop._ready = before
    assert ran == [1]


def test_H3_whatever_is_a_context(loop: Any) -> None:
    class Context:
        def run(self, callback: Callable[..., Any], *args: Any) -> None:
            callback("in", *args)

    ran: list[Any] = []
    loop.call_soon(lambda *args: ran.append(args), 1, context=Context())
    run_turns(loop, 1)
    assert ran == [("in", 1)]


def test_H3_debug_mode_takes_over_and_back(loop: Any) -> None:
    ran: list[int] = []
    for debug in (True, False, True, False):
        loop.call_soon(loop.set_debug, debug)
        loop.call_soon(ran.append, 1)
        run_turns(loop, 1)
    assert ran == [1] * 4
    loop.set_debug(True)
    assert loop.call_soon(print)._source_traceback
    loop._ready.clear()


def test_H3_a_replaced_cancel_is_obeyed(loop: Any) -> None:
    timer = loop.call_later(1000, print)
    with mock.patch.object(asyncio.TimerHandle, "cancel") as replaced:
        timer.cancel()
        loop.call_later(1000, print).cancel()
    assert len(replaced.mock_calls) == 2 and not timer.cancelled()
    with mock.patch.object(asyncio.Handle, "cancel") as replaced:
        timer.cancel()
    assert len(replaced.mock_calls) == 1 and not timer.cancelled()
    loop._timer_handle_cancelled = mock.Mock()
    timer.cancel()
    loop._timer_handle_cancelled.assert_called_once_with(timer)
    del loop._timer_handle_cancelled
    assert timer.cancelled() and timer._callback is None and timer._args is None


@pytest.mark.parametrize("where", ["instance", "class"])
@pytest.mark.parametrize("name", ["_write_to_self", "_call_soon"])
def test_H3_what_call_soon_threadsafe_calls_is_obeyed(loop: Any, name: str, where: str) -> None:
    if name == "_call_soon" and hasattr(asyncio.events, "_ThreadSafeHandle"):
        pytest.skip("asyncio's makes its handle itself from 3.14 on")
    calls: list[str] = []
    original = getattr(loop, name)

    def replacement(*args: Any) -> Any:
        calls.append(name)
        return original(*(args if where == "instance" else args[1:]))

    with mock.patch.object(loop if where == "instance" else type(loop), name, replacement):
        loop.call_soon_threadsafe(calls.append, "ran")
    run_turns(loop, 1)
    assert calls == [name, "ran"]


# -- what asyncio's signatures say --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("call_soon", (), {}),
        ("call_soon", (print,), {"nothing": 1}),
        ("call_later", (1,), {}),
        ("call_later", (None, print), {}),
        ("call_later", ("1", print), {}),
        ("call_at", (None, print), {}),
        ("call_at", (1.0,), {}),
    ],
)
def test_bad_arguments_get_asyncios_exceptions(loop: Any, name: str, args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError) as ours:
        getattr(loop, name)(*args, **kwargs)
    reference = asyncio.SelectorEventLoop()
    with pytest.raises(TypeError) as theirs:
        getattr(reference, name)(*args, **kwargs)
    reference.close()
    assert str(ours.value) == str(theirs.value)


def test_keywords_as_asyncio_takes_them(loop: Any) -> None:
    ran: list[Any] = []
    loop.call_soon(callback=lambda: ran.append("soon"))
    loop.call_later(delay=0, callback=lambda: ran.append("later"))
    loop.call_soon(ran.append, "none", context=None)
    run_turns(loop, 2)
    assert sorted(ran) == ["later", "none", "soon"]


def test_a_closed_loop_takes_nothing(loop: Any) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_soon(print)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_later(1, print)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_at(1.0, print)


def test_an_exception_is_reported_as_asyncio_words_it(loop: Any) -> None:
    seen: list[Any] = []

    def fail(*args: Any) -> None:
        raise ZeroDivisionError("as told")

    def handler(loop: Any, context: dict[str, Any]) -> None:
        seen.append((context, sys.exc_info()[1]))

    loop.set_exception_handler(handler)
    handle = loop.call_soon(fail, 1, "two")
    loop.call_soon(seen.append, "goes on")
    run_turns(loop, 1)
    context, handled = seen[0]
    assert seen[1] == "goes on"
    assert context["handle"] is handle
    handle._run()  # asyncio's own words
    assert seen[2][0].keys() == context.keys()
    assert seen[2][0]["message"] == context["message"]
    assert type(context["exception"]) is ZeroDivisionError
    assert handled is context["exception"]
    assert sys.exc_info() == (None, None, None)


# -- handles -----------------------------------------------------------------------------


def test_a_handle_that_somebody_has_is_never_used_again(loop: Any) -> None:
    """The accelerator keeps Handles that have run for later calls."""
    held = loop.call_soon(len, "held")
    watched = loop.call_soon(len, "watched")
    context = contextvars.copy_context()
    seen = weakref.ref(watched)
    identity = id(watched)
    del watched
    run_turns(loop, 1)
    gc.collect()
    assert seen() is None
    later = [loop.call_soon(len, str(number), context=context) for number in range(300)]
    assert held not in later
    assert held._args == ("held",) and held._callback is len
    assert not held.cancelled()
    for handle in later:
        assert (handle._callback, handle._loop, handle._cancelled, handle._repr) == (len, loop, False, None)
        assert handle._source_traceback is None
        assert handle._context is context
    assert seen() is None, identity
    run_turns(loop, 1)
    again = loop.call_soon(len, "again")
    assert type(again) is asyncio.Handle and again._args == ("again",)
    again.cancel()
    run_turns(loop, 1)


def test_a_callback_may_cancel_its_own_handle(loop: Any) -> None:
    ran: list[Any] = []

    def callback(*args: Any) -> None:
        handle.cancel()
        gc.collect()
        ran.append(args)

    handle = loop.call_soon(callback, object(), [1])
    run_turns(loop, 1)
    assert ran[0][1] == [1]


def test_many_arguments(loop: Any) -> None:
    ran: list[Any] = []
    for count in range(12):
        loop.call_soon(lambda *args: ran.append(args), *range(count))
    run_turns(loop, 1)
    assert ran == [tuple(range(count)) for count in range(12)]


# -- timers ----------------------------------------------------------------------------------


@given(strategies.lists(strategies.tuples(strategies.integers(0, 6), strategies.booleans()), max_size=200))
def test_the_heap_is_heapqs(events: list[tuple[int, bool]]) -> None:
    """Timers of one time come as in asyncio, also when many of them were cancelled."""
    loop: Any = velociloop.new_event_loop()
    model: list[Any] = []
    try:
        for when, cancel in events:
            timer = loop.call_at(1e9 + when, print)
            heapq.heappush(model, timer)
            assert loop._scheduled == model
            if cancel:
                timer.cancel()
                if model[-1] is timer:
                    del model[-1]  # dropped at once
        cancelled = sum(timer.cancelled() for timer in model)
        assert loop._timer_cancelled_count == cancelled
        run_turns(loop, 1)
        if len(model) > 100 and cancelled / len(model) > 0.5:
            model = [timer for timer in model if not timer.cancelled()]
            heapq.heapify(model)
        else:
            while model and model[0].cancelled():
                heapq.heappop(model)
        assert [id(timer) for timer in loop._scheduled] == [id(timer) for timer in model]
    finally:
        loop.close()


def test_timers_that_are_not_floats(loop: Any) -> None:
    ran: list[Any] = []

    class Timer(asyncio.TimerHandle):
        pass

    now = loop.time()
    loop.call_at(int(now) - 1, ran.append, "int")
    timer = Timer(now - 3, ran.append, ("own",), loop)
    heapq.heappush(loop._scheduled, timer)
    loop.call_at(now - 2, ran.append, "float")
    loop.call_at(True, ran.append, "bool")
    run_turns(loop, 1)
    assert ran == ["bool", "own", "float", "int"] or ran == ["bool", "own", "int", "float"]


# -- the end of a callback, both twins side by side -----------------------------------------------


@pytest.mark.ours("the scope is its own")
@pytest.mark.parametrize("scope_type", SCOPES, ids=lambda scope_type: scope_type.__module__)
class TestCallbackScope:
    def test_tells_each_in_order_and_those_that_come_meanwhile(self, scope_type: Any) -> None:
        told: list[str] = []
        scope = scope_type()
        last = mock.Mock(on_callback_end=lambda: told.append("last"))

        def first() -> None:
            told.append("first")
            scope.corked.append(last)

        scope.corked.append(mock.Mock(on_callback_end=first))
        scope.corked.append(mock.Mock(on_callback_end=lambda: told.append("second")))
        scope.end()
        assert told == ["first", "second", "last"]
        assert scope.corked == []

    def test_an_interrupt_keeps_the_writer(self, scope_type: Any) -> None:
        scope = scope_type()
        writer = mock.Mock(on_callback_end=mock.Mock(side_effect=[KeyboardInterrupt, None]))
        scope.corked.append(writer)
        with pytest.raises(KeyboardInterrupt):
            scope.end()
        assert scope.corked == [writer]
        scope.active = True
        scope.suspend()
        assert scope.corked == [] and scope.active is False

    def test_abandon_tells_and_forgets(self, scope_type: Any) -> None:
        scope = scope_type()
        writer = mock.Mock()
        scope.active = True
        scope.corked.append(writer)
        scope.abandon()
        assert writer.method_calls == [mock.call.on_abandon()]
        assert scope.corked == [] and not scope.active

    def test_repr_shows_its_state(self, scope_type: Any) -> None:
        scope = scope_type()
        assert repr(scope).endswith("CallbackScope idle serial=0 corked=0>")
        scope.active = True
        scope.serial += 3
        scope.corked.append(None)
        assert repr(scope).endswith("CallbackScope active serial=3 corked=1>")
        scope.corked.clear()


# -- memory ------------------------------------------------------------------------------------------


@pytest.mark.ours("asyncio's is Python's")
def test_a_loop_with_a_pending_handle_is_collected() -> None:
    loop: Any = velociloop.new_event_loop()
    loop.call_soon(loop.stop)
    loop.run_forever()  # now it has a Handle in reserve, too
    loop.call_soon(loop.stop)
    loop.call_later(1000, loop.stop)
    seen = weakref.ref(loop)
    queue = loop._ready
    loop.close()  # empties the queue
    queue.append(asyncio.Handle(loop.stop, (), loop))
    del loop, queue
    gc.collect()
    assert seen() is None


def _a_callback(*args: Any) -> None:
    pass


def _raises() -> None:
    raise ZeroDivisionError


def _schedules(loop: Any, context: contextvars.Context) -> None:
    loop.call_soon(_a_callback, 1, 2)
    loop.call_soon(_a_callback, context=context)
    loop.call_soon(_raises)
    loop.call_soon(_a_callback).cancel()
    loop.call_later(0, _a_callback, 3)
    loop.call_later(1000, _a_callback).cancel()
    loop.call_at(loop.time(), _a_callback, context=context)
    loop.call_soon_threadsafe(_a_callback)
    with pytest.raises(TypeError):
        loop.call_soon()
    loop.get_debug()
    run_turns(loop, 2)


async def _sleeps(loop: Any, context: contextvars.Context) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    await asyncio.sleep(0.00001)


REPETITIONS = 400


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
@pytest.mark.parametrize("body", [_schedules, _sleeps], ids=lambda body: body.__name__)
def test_no_reference_is_leaked(loop: Any, body: Callable[..., Any]) -> None:
    loop.set_exception_handler(_a_callback)
    context = contextvars.copy_context()
    shared = [loop, context, _a_callback, asyncio.Handle, asyncio.TimerHandle, time.monotonic, type(loop)]

    def repeat() -> None:
        for _ in range(REPETITIONS):
            result = body(loop, context)
            if result is not None:
                loop.run_until_complete(result)

    def counts() -> tuple[list[int], int]:
        gc.collect()
        return [sys.getrefcount(item) for item in shared], sys.getallocatedblocks()

    repeat()  # caches fill
    references, blocks = counts()
    repeat()
    references_after, blocks_after = counts()
    assert references_after == references
    # One a repetition would be so many; the interpreter's own caches move by a few.
    assert blocks_after - blocks < REPETITIONS // 2
