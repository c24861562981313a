"""Coroutines and tasks: create_task, gather, shield, wait, as_completed, cancellation, names, who is running."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import HandlerCalls, in_time, turns, until

Loop = asyncio.AbstractEventLoop

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def wait_cancelled(task: asyncio.Future[Any]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


# Making tasks


async def test_create_task() -> None:
    task = asyncio.create_task(asyncio.sleep(0, "result"), name="worker")
    assert isinstance(task, asyncio.Task) and not task.done()
    assert (task.get_name(), task.get_loop()) == ("worker", asyncio.get_running_loop())
    assert asyncio.iscoroutine(task.get_coro())
    task.set_name("other")
    assert "name='other'" in repr(task)
    assert await task == "result"
    assert task.done() and not task.cancelled()
    assert (task.result(), task.exception()) == ("result", None)


async def test_unnamed_tasks_are_numbered() -> None:
    first, second = (asyncio.create_task(asyncio.sleep(0)) for _ in range(2))
    numbers = [int(task.get_name().removeprefix("Task-")) for task in (first, second)]
    assert numbers[1] == numbers[0] + 1
    await asyncio.gather(first, second)


@pytest.mark.parametrize("make", ["asyncio", "loop"])
async def test_create_task_in_a_context(make: str) -> None:
    async def put() -> str:
        before = VARIABLE.get()
        VARIABLE.set("inside")
        await asyncio.sleep(0)
        return before + VARIABLE.get()

    create: Any = asyncio.create_task if make == "asyncio" else asyncio.get_running_loop().create_task
    context = contextvars.copy_context()
    context.run(VARIABLE.set, "given ")
    task = create(put(), context=context, name="in a context")
    if hasattr(task, "get_context"):
        assert task.get_context() is context
    assert await task == "given inside"
    assert (context[VARIABLE], VARIABLE.get()) == ("inside", "unset")
    # Without one: a copy of the current context.
    assert await create(put()) == "unsetinside"
    assert VARIABLE.get() == "unset"


async def test_create_task_refuses_what_is_no_coroutine() -> None:
    for wrong in 7, forever, asyncio.get_running_loop().create_future():
        with pytest.raises(TypeError, match="a coroutine was expected"):
            await asyncio.create_task(wrong)  # type: ignore[arg-type]


def test_create_task_needs_a_running_loop(loop: Loop) -> None:
    coroutine = asyncio.sleep(0, "later")
    with pytest.raises(RuntimeError, match="no running event loop"):
        loop.run_until_complete(asyncio.create_task(coroutine))
    # A loop that does not run yet takes it.
    task = loop.create_task(coroutine)
    assert loop.run_until_complete(task) == "later"


async def test_ensure_future() -> None:
    class Awaitable:
        def __await__(self) -> Any:
            return asyncio.sleep(0, "awaited").__await__()

    task = asyncio.ensure_future(asyncio.sleep(0, "coroutine"))
    assert isinstance(task, asyncio.Task) and asyncio.ensure_future(task) is task
    assert await task == "coroutine"
    assert await asyncio.ensure_future(Awaitable()) == "awaited"
    with pytest.raises(TypeError):
        await asyncio.ensure_future(7)  # type: ignore[call-overload]


async def test_what_is_a_coroutine_or_a_future() -> None:
    coroutine = forever()
    future = asyncio.get_running_loop().create_future()
    assert asyncio.iscoroutine(coroutine) and not asyncio.iscoroutine(future)
    assert asyncio.isfuture(future) and not asyncio.isfuture(coroutine)
    coroutine.close()


@pytest.mark.filterwarnings("ignore:.*iscoroutinefunction:DeprecationWarning")
def test_iscoroutinefunction() -> None:
    assert asyncio.iscoroutinefunction(forever) and not asyncio.iscoroutinefunction(len)


# Who is running


async def test_current_task_and_all_tasks() -> None:
    seen: list[asyncio.Task[Any] | None] = []

    async def note() -> None:
        seen.append(asyncio.current_task())
        asyncio.get_running_loop().call_soon(lambda: seen.append(asyncio.current_task()))
        await turns()

    me = asyncio.current_task()
    task = asyncio.create_task(note())
    assert asyncio.all_tasks() == asyncio.all_tasks(asyncio.get_running_loop()) == {me, task}
    await task
    assert seen == [task, None]
    assert asyncio.all_tasks() == {me}
    assert asyncio.current_task(asyncio.get_running_loop()) is me


async def test_get_running_loop(loop_factory: Callable[[], Loop]) -> None:
    running = asyncio.get_running_loop()
    assert asyncio.get_event_loop() is running is asyncio._get_running_loop()
    other = loop_factory()
    # Another loop does not become the running one by being there.
    assert asyncio.get_running_loop() is running
    with pytest.raises(RuntimeError, match="Cannot run the event loop while another loop is running"):
        other.run_forever()
    other.close()


async def test_sleep_gives_its_result_and_takes_its_time() -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    assert await asyncio.sleep(0.02, "result") == "result"
    assert loop.time() - start >= 0.02
    for at_once in 0, -1:
        assert await asyncio.sleep(at_once, "now") == "now"


async def test_sleep_zero_takes_one_turn() -> None:
    order: list[str] = []

    async def note(name: str) -> None:
        for step in range(3):
            order.append(f"{name}{step}")
            await asyncio.sleep(0)

    await asyncio.gather(note("a"), note("b"))
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]


# Stacks


async def test_get_stack_and_print_stack() -> None:
    task = asyncio.create_task(forever(), name="asleep")
    await turns()
    frames = task.get_stack()
    assert [frame.f_code.co_name for frame in frames] == ["forever"]
    assert len(task.get_stack(limit=1)) == 1
    out = io.StringIO()
    task.print_stack(file=out)
    assert "Stack for <Task" in out.getvalue() and "in forever" in out.getvalue()
    task.cancel()
    await wait_cancelled(task)
    assert task.get_stack() == []


# Cancelling


async def test_cancel_with_a_message() -> None:
    task = asyncio.create_task(forever())
    await turns()
    assert task.cancel("enough") is True
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert task.cancelled() and task.cancel() is False
    for look in task.result, task.exception:
        with pytest.raises(asyncio.CancelledError):
            look()


async def test_cancelled_before_its_first_step() -> None:
    ran: list[int] = []

    async def never() -> None:
        ran.append(1)

    task = asyncio.create_task(never())
    task.cancel()
    await wait_cancelled(task)
    assert ran == []


async def test_cancelling_and_uncancel() -> None:
    counts: list[int] = []

    async def stubborn() -> str:
        task = asyncio.current_task()
        assert task is not None
        counts.append(task.cancelling())
        try:
            await forever()
        except asyncio.CancelledError:
            counts.append(task.cancelling())
            counts.append(task.uncancel())
        return "stayed"

    task = asyncio.create_task(stubborn())
    await turns()
    task.cancel()
    assert await task == "stayed"
    assert counts == [0, 1, 0]
    assert task.cancelling() == 0


async def test_a_cancelled_wait_cancels_what_it_waits_for() -> None:
    inner = asyncio.create_task(forever())

    async def wait() -> None:
        await inner

    outer = asyncio.create_task(wait())
    await turns()
    outer.cancel()
    await wait_cancelled(outer)
    assert inner.cancelled()


# gather


async def test_gather_keeps_the_order() -> None:
    loop = asyncio.get_running_loop()
    late = loop.create_future()
    loop.call_soon(late.set_result, "late")
    assert list(await asyncio.gather(late, asyncio.sleep(0, "task"), late)) == ["late", "task", "late"]
    assert await asyncio.gather() == []


async def test_gather_and_exceptions() -> None:
    error = LookupError("on purpose")
    other = asyncio.create_task(forever())
    with pytest.raises(LookupError, match="on purpose"):
        await asyncio.gather(fail(error), other)
    assert not other.done()
    gathered = asyncio.gather(fail(error), asyncio.sleep(0, 1), other, return_exceptions=True)
    await turns()
    other.cancel()
    result = list(await gathered)
    assert result[:2] == [error, 1] and isinstance(result[2], asyncio.CancelledError)


async def test_gather_cancelled_cancels_all() -> None:
    tasks = [asyncio.create_task(forever()) for _ in range(3)]
    gathered = asyncio.gather(*tasks)
    await turns()
    assert gathered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathered
    assert all(task.cancelled() for task in tasks)


# shield


async def test_shield() -> None:
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def inner() -> str:
        return await done

    async def outer() -> str:
        return await asyncio.shield(inside)

    inside = asyncio.create_task(inner())
    outside = asyncio.create_task(outer())
    await turns()
    outside.cancel()
    await wait_cancelled(outside)
    assert not inside.cancelled()
    done.set_result("went on")
    assert await inside == "went on"
    assert await asyncio.shield(asyncio.sleep(0, "as it is")) == "as it is"


# wait


async def test_wait() -> None:
    loop = asyncio.get_running_loop()
    quick, slow = asyncio.create_task(asyncio.sleep(0, "quick")), asyncio.create_task(forever())
    assert await asyncio.wait([quick, slow], return_when=asyncio.FIRST_COMPLETED) == ({quick}, {slow})
    failing = asyncio.create_task(fail(LookupError("on purpose")))
    assert await asyncio.wait([failing, slow], return_when=asyncio.FIRST_EXCEPTION) == ({failing}, {slow})
    assert isinstance(failing.exception(), LookupError)
    start = loop.time()
    assert await asyncio.wait([slow], timeout=0.01) == (set(), {slow})
    assert loop.time() - start >= 0.01
    assert not slow.cancelled()
    loop.call_soon(slow.cancel)
    assert await asyncio.wait({quick, slow}, return_when=asyncio.ALL_COMPLETED) == ({quick, slow}, set())


async def test_wait_refuses() -> None:
    with pytest.raises(ValueError, match="empty"):
        await asyncio.wait([])
    coroutine = asyncio.sleep(0)
    with pytest.raises(TypeError, match="forbidden"):
        await asyncio.wait([coroutine])  # type: ignore[type-var]
    coroutine.close()
    task = asyncio.create_task(asyncio.sleep(0))
    with pytest.raises(ValueError, match="Invalid return_when"):
        await asyncio.wait([task], return_when="whenever")
    await task


# as_completed


async def test_as_completed() -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    second.set_result("second")
    loop.call_soon(loop.call_soon, first.set_result, "first")
    assert [await one for one in asyncio.as_completed([first, second])] == ["second", "first"]


async def test_as_completed_in_time_only() -> None:
    never = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        for one in asyncio.as_completed([never], timeout=0.01):
            await one
    assert not never.done()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="`async for` over as_completed came with Python 3.13")
async def test_as_completed_as_an_asynchronous_iterator() -> None:
    """It gives the very tasks that it was given."""
    gate = asyncio.Event()

    async def second() -> str:
        await gate.wait()
        return "second"

    tasks = {asyncio.create_task(second()), asyncio.create_task(asyncio.sleep(0, "first"))}
    results = []
    async for task in asyncio.as_completed(tasks):  # type: ignore[attr-defined]
        assert task in tasks
        results.append(await task)
        gate.set()
    assert results == ["first", "second"]


# Exceptions


async def test_an_exception_nobody_asks_for_is_reported(handler_calls: HandlerCalls) -> None:
    async def nobody_asks() -> None:
        await in_time(asyncio.wait([asyncio.create_task(fail(LookupError("nobody asks")), name="lonely")]))

    await nobody_asks()
    # PyPy may need more than one collection.
    await until(lambda: (gc.collect(), len(handler_calls))[1])
    context = handler_calls.take()
    assert context["message"] == "Task exception was never retrieved"
    assert str(context["exception"]) == "nobody asks"


async def test_a_task_destroyed_while_pending_is_reported(handler_calls: HandlerCalls) -> None:
    async def lost() -> None:
        # Nothing but this frame holds the future, so the loop does not hold the task.
        await asyncio.Future()

    task = asyncio.create_task(lost(), name="lost")
    await turns()
    del task
    gc.collect()
    context = handler_calls.take()
    assert context["message"] == "Task was destroyed but it is pending!"
    assert context["task"].get_name() == "lost"
    # What was reported is garbage for good now; else asyncio.Runner would find it among the tasks and cancel it.
    context.clear()
    gc.collect()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_leave_the_run(loop: Loop, error: type[BaseException]) -> None:
    async def main() -> None:
        await asyncio.sleep(0)
        raise error

    task = loop.create_task(main())
    with pytest.raises(error):
        loop.run_until_complete(task)
    assert isinstance(task.exception(), error)
    assert loop.run_until_complete(asyncio.sleep(0, "on")) == "on"


async def test_results_are_the_coroutines_to_set() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="does not support set_result"):
        task.set_result(None)
    with pytest.raises(RuntimeError, match="does not support set_exception"):
        task.set_exception(LookupError())
    await task


async def test_done_callbacks_of_a_task() -> None:
    called: list[Any] = []
    task = asyncio.create_task(asyncio.sleep(0))
    task.add_done_callback(called.append)
    task.add_done_callback(print)
    assert task.remove_done_callback(print) == 1
    await task
    await turns()
    assert called == [task]
