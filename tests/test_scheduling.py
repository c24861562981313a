"""The turn: what runs when, in which order, until when, and what happens to exceptions on the way."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import HANG_S, HandlerCalls, until_blocked

Loop = asyncio.AbstractEventLoop


def run_until_stopped(loop: Loop) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_call_soon_runs_in_order(loop: Loop) -> None:
    ran: list[int] = []
    for i in range(1000):
        loop.call_soon(ran.append, i)
    run_until_stopped(loop)
    assert ran == list(range(1000))


def test_call_soon_from_a_callback_waits_for_the_next_turn(loop: Loop) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.call_soon(ran.append, "third")

    loop.call_soon(first)
    loop.call_soon(ran.append, "second")
    loop.call_soon(loop.call_soon, loop.stop)
    loop.run_forever()
    assert ran == ["first", "second", "third"]


def test_handles_are_asyncios(loop: Loop) -> None:
    """Need 16, 19: real `Handle` and `TimerHandle` objects; `call_later(0)` gives a `TimerHandle` too."""

    def nothing() -> None:
        pass

    assert type(loop.call_soon(nothing)) is asyncio.Handle
    assert isinstance(loop.call_soon_threadsafe(nothing), asyncio.Handle)
    for delay in 0, 0.001, -1:
        timer = loop.call_later(delay, nothing)
        assert isinstance(timer, asyncio.TimerHandle) and repr(timer).startswith("<TimerHandle when=")
        assert timer.when() == pytest.approx(loop.time() + delay, abs=1)
        timer.cancel()
    assert isinstance(loop.call_at(loop.time(), nothing), asyncio.TimerHandle)


def test_cancel(loop: Loop) -> None:
    ran: list[int] = []
    handles = [
        loop.call_soon(ran.append, 0),
        loop.call_later(0, ran.append, 1),
        loop.call_soon_threadsafe(ran.append, 2),
    ]
    for handle in handles:
        handle.cancel()
        assert handle.cancelled()
    loop.call_later(0.002, loop.stop)
    loop.run_forever()
    assert ran == []


def test_cancel_by_an_earlier_callback_of_the_turn(loop: Loop) -> None:
    ran: list[int] = []
    later: list[asyncio.Handle] = []
    loop.call_soon(lambda: later[0].cancel())
    later.append(loop.call_soon(ran.append, 1))
    run_until_stopped(loop)
    assert ran == []


def test_order_ready_then_io_then_timers(loop: Loop) -> None:
    """asyncio's turn: what was ready before the poll, what the poll found, what is due by now."""
    near, far = socket.socketpair()
    ran: list[str] = []
    near.setblocking(False)
    far.send(b"x")

    def read() -> None:
        loop.remove_reader(near)
        ran.append("io")

    loop.call_at(loop.time() - 1, ran.append, "timer")
    loop.call_soon(ran.append, "ready")
    loop.add_reader(near, read)
    run_until_stopped(loop)
    assert ran == ["ready", "io", "timer"]
    near.close()
    far.close()


def test_transport_io_stands_in_the_same_place(loop: Loop) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    ran: list[str] = []

    class Reader(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            ran.append("io")

    transport, _ = loop.run_until_complete(loop.create_connection(Reader, sock=near))
    run_until_stopped(loop)
    far.send(b"x")
    loop.call_at(loop.time() - 1, ran.append, "timer")
    loop.call_soon(ran.append, "ready")
    run_until_stopped(loop)
    assert ran == ["ready", "io", "timer"]
    transport.close()
    run_until_stopped(loop)
    run_until_stopped(loop)
    far.close()


def test_call_soon_threadsafe_wakes_a_blocked_loop(loop: Loop) -> None:
    def stop_from_there() -> None:
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=stop_from_there)
    # The thread starts from the loop's last callback before it blocks.
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def test_need_17_call_soon_threadsafe_from_many_threads_keeps_each_ones_order(loop: Loop) -> None:
    ran: list[tuple[int, int]] = []
    each, count = 2000, 6
    started = threading.Barrier(count)

    def feed(number: int) -> None:
        started.wait()
        for i in range(each):
            loop.call_soon_threadsafe(ran.append, (number, i))
        loop.call_soon_threadsafe(finish)

    finished = 0

    def finish() -> None:
        nonlocal finished
        finished += 1
        if finished == count:
            loop.stop()

    threads = [threading.Thread(target=feed, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()
    for number in range(count):
        assert [i for n, i in ran if n == number] == list(range(each))


def test_need_17_call_soon_threadsafe_from_a_signal_handler(loop: Loop) -> None:
    """A Python-level signal handler of the main thread runs while the loop is blocked, and may schedule."""
    ran: list[int] = []

    def handler(signum: int, frame: Any) -> None:
        loop.call_soon_threadsafe(ran.append, signum)
        loop.call_soon_threadsafe(loop.stop)

    main_thread = threading.get_native_id()

    def send() -> None:
        until_blocked(os.getpid(), main_thread)
        os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        sender = threading.Thread(target=send)
        loop.call_soon(sender.start)
        watchdog = loop.call_later(HANG_S, loop.stop)
        loop.run_forever()
        watchdog.cancel()
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert ran == [signal.SIGUSR1]


@pytest.mark.skipif(not hasattr(gc, "set_threshold"), reason="PyPy's collector cannot be made to run that often")
def test_need_17_call_soon_threadsafe_from_a_finalizer(loop: Loop) -> None:
    """H11: a finalizer may run inside call_soon_threadsafe itself, so no lock may be held there."""
    ran: list[int] = []

    class Final:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            loop.call_soon_threadsafe(ran.append, 1)

    count = 3000
    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for _ in range(count):
            Final()
            loop.call_soon_threadsafe(len, ())
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    run_until_stopped(loop)
    assert len(ran) == count


def test_stop_ends_after_this_turns_callbacks(loop: Loop) -> None:
    ran: list[str] = []

    def stop() -> None:
        loop.stop()
        ran.append("stop")
        loop.call_soon(ran.append, "next run")

    loop.call_soon(stop)
    loop.call_soon(ran.append, "same turn")
    loop.run_forever()
    assert ran == ["stop", "same turn"]
    run_until_stopped(loop)
    assert ran == ["stop", "same turn", "next run"]


def test_stop_before_run_forever_runs_one_turn(loop: Loop) -> None:
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    loop.stop()
    loop.run_forever()
    assert ran == [1]


def test_run_until_complete_results_and_errors(loop: Loop) -> None:
    async def value() -> int:
        return 7

    async def failing() -> None:
        raise LookupError("on purpose")

    assert loop.run_until_complete(value()) == 7
    with pytest.raises(LookupError, match="on purpose"):
        loop.run_until_complete(failing())
    with pytest.raises(TypeError):
        loop.run_until_complete(7)  # type: ignore[arg-type]


def test_run_until_complete_stopped_early(loop: Loop) -> None:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match=r"Event loop stopped before Future completed\."):
        loop.run_until_complete(future)


def test_running_a_running_loop_is_refused(loop: Loop) -> None:
    errors: list[str] = []

    def nested() -> None:
        with pytest.raises(RuntimeError) as caught:
            loop.run_forever()
        errors.append(str(caught.value))

    loop.call_soon(nested)
    run_until_stopped(loop)
    assert errors == ["This event loop is already running"]


def test_running_another_loop_inside_is_refused(loop: Loop, loop_factory: Callable[[], Loop]) -> None:
    other = loop_factory()
    errors: list[str] = []

    def nested() -> None:
        with pytest.raises(RuntimeError) as caught:
            other.run_forever()
        errors.append(str(caught.value))

    loop.call_soon(nested)
    run_until_stopped(loop)
    assert errors == ["Cannot run the event loop while another loop is running"]
    other.close()


def test_closed_loop_refuses_everything(loop: Loop) -> None:
    loop.close()
    loop.close()  # twice is fine
    assert loop.is_closed() and not loop.is_running()
    for call in (
        lambda: loop.call_soon(print),
        lambda: loop.call_later(1, print),
        lambda: loop.call_at(1, print),
        lambda: loop.call_soon_threadsafe(print),
        loop.run_forever,
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call()


def test_closing_a_running_loop_is_refused(loop: Loop) -> None:
    async def close() -> None:
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()

    loop.run_until_complete(close())


def test_close_drops_what_is_pending(loop: Loop) -> None:
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    loop.call_later(0, ran.append, 2)
    loop.close()
    assert ran == []


def test_an_exception_in_a_callback_goes_to_the_handler_and_the_loop_goes_on(
    loop: Loop, handler_calls: HandlerCalls
) -> None:
    ran: list[int] = []

    def failing() -> None:
        raise ValueError("on purpose")

    handle = loop.call_soon(failing)
    loop.call_soon(ran.append, 1)
    run_until_stopped(loop)
    context = handler_calls.take()
    assert isinstance(context["exception"], ValueError) and context["handle"] is handle
    assert context["message"].startswith("Exception in callback ") and "failing" in context["message"]
    assert ran == [1]


def test_timer_and_threadsafe_exceptions_go_to_the_handler(loop: Loop, handler_calls: HandlerCalls) -> None:
    loop.call_later(0.001, lambda: 1 / 0)
    loop.call_soon_threadsafe(lambda: 1 / 0)
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    for _ in range(2):
        assert isinstance(handler_calls.take()["exception"], ZeroDivisionError)


def test_set_exception_handler(loop: Loop) -> None:
    calls: list[dict[str, Any]] = []
    assert loop.get_exception_handler() is not None
    loop.set_exception_handler(lambda loop, context: calls.append(context))
    loop.call_exception_handler({"message": "hello"})
    assert calls == [{"message": "hello"}]
    with pytest.raises(TypeError, match="A callable object or None is expected"):
        loop.set_exception_handler("text")  # type: ignore[arg-type]


def test_default_exception_handler_logs(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_exception_handler(None)
    loop.call_soon(lambda: 1 / 0)
    with caplog.at_level(logging.ERROR, "asyncio"):
        run_until_stopped(loop)
    assert "ZeroDivisionError" in caplog.text and "Exception in callback" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_need_22_interrupts_end_the_run_and_keep_the_rest(loop: Loop, error: type[BaseException]) -> None:
    ran: list[int] = []

    def interrupt() -> None:
        raise error

    loop.call_soon(interrupt)
    loop.call_soon(ran.append, 1)
    with pytest.raises(error):
        loop.run_forever()
    assert not loop.is_running()
    run_until_stopped(loop)
    assert ran == [1]


def test_contexts(loop: Loop) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []

    def look() -> None:
        seen.append(variable.get())

    variable.set(1)
    loop.call_soon(look)
    loop.call_later(0, look)
    loop.call_soon_threadsafe(look)
    variable.set(2)
    explicit = contextvars.copy_context()
    explicit.run(variable.set, 3)
    loop.call_soon(look, context=explicit)
    loop.call_at(loop.time(), look, context=explicit)
    loop.call_soon_threadsafe(look, context=explicit)
    loop.call_later(0.002, loop.stop)
    loop.run_forever()
    assert sorted(seen) == [1, 1, 1, 3, 3, 3]


def test_shutdown_asyncgens(loop: Loop) -> None:
    closed: list[int] = []

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(1)

    async def abandon() -> Any:
        it = generator()
        await anext(it)
        return it

    it = loop.run_until_complete(abandon())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert closed == [1]
    del it


def test_run_in_executor_and_its_shutdown(loop: Loop) -> None:
    async def use() -> tuple[str, int]:
        name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return name, await loop.run_in_executor(pool, sum, [1, 2])

    name, total = loop.run_until_complete(use())
    assert name.startswith("asyncio_") and total == 3
    loop.run_until_complete(loop.shutdown_default_executor())
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, print)


def test_task_factory_and_create_task_keywords(loop: Loop) -> None:
    """Need 9: `create_task` takes what this version's asyncio takes."""
    made: list[tuple[Any, dict[str, Any]]] = []

    def factory(loop: Loop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        made.append((coro, kwargs))
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def work() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    context = contextvars.copy_context()
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    assert loop.run_until_complete(loop.create_task(work(), name="named", context=context)) == "named"
    assert made[0][1].get("context") is context
    loop.set_task_factory(None)
    assert loop.run_until_complete(loop.create_task(work(), name="plain")) == "plain"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_need_9_eager_tasks(loop: Loop) -> None:
    ran: list[str] = []

    async def work() -> None:
        ran.append("work")

    async def main() -> None:
        task = asyncio.create_task(work())
        ran.append("after create_task")
        await task

    loop.set_task_factory(vars(asyncio)["eager_task_factory"])
    loop.run_until_complete(main())
    assert ran == ["work", "after create_task"]


def test_exception_groups_of_a_task_group(loop: Loop) -> None:
    async def failing() -> None:
        raise ValueError

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(failing())

    with pytest.raises(ExceptionGroup):
        loop.run_until_complete(main())
