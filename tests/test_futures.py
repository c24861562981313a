"""Futures, and bridging callback code to await."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import threading
from typing import Any

import pytest
from support import HandlerCalls, in_time, turns

Loop = asyncio.AbstractEventLoop

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


async def test_a_future_from_pending_to_done() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    assert isinstance(future, asyncio.Future) and asyncio.isfuture(future)
    assert future.get_loop() is loop
    assert not future.done() and not future.cancelled() and "pending" in repr(future)
    for look in future.result, future.exception:
        with pytest.raises(asyncio.InvalidStateError):
            look()
    loop.call_soon(future.set_result, "result")
    assert await future == "result"
    assert future.done() and (future.result(), future.exception()) == ("result", None)
    with pytest.raises(asyncio.InvalidStateError):
        future.set_result(1)
    with pytest.raises(asyncio.InvalidStateError):
        future.set_exception(LookupError())
    assert future.cancel() is False


async def test_an_exception() -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    error = LookupError("on purpose")
    loop.call_soon(future.set_exception, error)
    with pytest.raises(LookupError, match="on purpose"):
        await future
    assert future.exception() is error
    made = loop.create_future()
    made.set_exception(ValueError)  # a class is called
    assert isinstance(made.exception(), ValueError)


async def test_cancelled_with_a_message() -> None:
    future = asyncio.get_running_loop().create_future()
    assert future.cancel(msg="enough") is True and future.cancelled()
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await future


async def test_done_callbacks_run_in_turn_in_their_contexts() -> None:
    future = asyncio.get_running_loop().create_future()
    called: list[Any] = []

    def note(future: asyncio.Future[Any]) -> None:
        called.append((future.result(), VARIABLE.get()))

    context = contextvars.copy_context()
    context.run(VARIABLE.set, "given")
    future.add_done_callback(note)
    future.add_done_callback(print)
    future.add_done_callback(note, context=context)
    assert future.remove_done_callback(print) == 1
    assert future.remove_done_callback(print) == 0
    future.set_result(7)
    assert called == []
    await turns()
    assert called == [(7, "unset"), (7, "given")]
    future.add_done_callback(note)
    await turns()
    assert len(called) == 3


async def test_a_failing_done_callback_is_reported(handler_calls: HandlerCalls) -> None:
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda future: 1 / 0)
    future.set_result(None)
    await turns()
    assert isinstance(handler_calls.take()["exception"], ZeroDivisionError)


async def test_an_exception_nobody_asks_for_is_reported(handler_calls: HandlerCalls) -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_exception(LookupError("nobody asks"))
    del future
    gc.collect()
    assert handler_calls.take()["message"] == "Future exception was never retrieved"


async def test_a_callback_api_becomes_awaitable() -> None:
    """The bridge that libraries build: a future per request, its callback completes it."""
    loop = asyncio.get_running_loop()

    def look_up(name: str, on_found: Any, on_error: Any) -> asyncio.Handle:
        if name == "unknown":
            return loop.call_soon(on_error, KeyError(name))
        return loop.call_later(3600 if name == "slow" else 0, on_found, name.upper())

    async def looked_up(name: str) -> str:
        future: asyncio.Future[str] = loop.create_future()
        handle = look_up(name, future.set_result, future.set_exception)
        try:
            return await future
        finally:
            handle.cancel()

    assert await looked_up("name") == "NAME"
    with pytest.raises(KeyError):
        await looked_up("unknown")
    task = asyncio.create_task(looked_up("slow"))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_wrap_future() -> None:
    loop = asyncio.get_running_loop()
    foreign: concurrent.futures.Future[str] = concurrent.futures.Future()
    wrapped = asyncio.wrap_future(foreign)
    assert asyncio.isfuture(wrapped) and asyncio.wrap_future(wrapped) is wrapped
    assert asyncio.ensure_future(wrapped) is wrapped and wrapped.get_loop() is loop
    thread = threading.Thread(target=foreign.set_result, args=("from a thread",))
    thread.start()
    assert await in_time(wrapped) == "from a thread"
    thread.join()
    # Cancelling goes the other way.
    foreign = concurrent.futures.Future()
    wrapped = asyncio.wrap_future(foreign, loop=loop)
    wrapped.cancel()
    await turns()
    assert foreign.cancelled()


async def test_a_future_of_another_loop_is_refused(loop_factory: Any) -> None:
    other = loop_factory()
    future = other.create_future()
    with pytest.raises(RuntimeError, match="attached to a different loop"):
        await asyncio.gather(asyncio.create_task(_wait(future)))
    other.close()


async def _wait(future: asyncio.Future[Any]) -> None:
    await future


def test_run_until_complete_of_a_future(loop: Loop) -> None:
    future = loop.create_future()
    loop.call_soon(future.set_result, "result")
    assert loop.run_until_complete(future) == "result"
    stopped = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        loop.run_until_complete(stopped)
