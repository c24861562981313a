"""What asyncio tells a developer: coroutines never awaited, slow callbacks, wrong threads, where things were made."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
import time
from typing import Any

import pytest
from support import HandlerCalls, run_child, turns

Loop = asyncio.AbstractEventLoop


async def test_a_coroutine_never_awaited_warns() -> None:
    async def forgotten() -> None:
        pass

    def forget() -> None:
        forgotten()  # type: ignore[unused-coroutine]
        gc.collect()

    with pytest.warns(RuntimeWarning, match=r"coroutine '.*forgotten' was never awaited"):
        forget()


@pytest.mark.parametrize("debug", [False, True])
def test_debug_mode_names_the_line_of_a_coroutine_never_awaited(loop_name: str, debug: bool) -> None:
    done = run_child(
        """
        import gc

        async def forgotten():
            pass

        async def main():
            forgotten()  # here
            gc.collect()

        with asyncio.Runner(loop_factory=new_child_loop) as runner:
            runner.run(main())
        """,
        loop_name,
        *(["-X", "dev"] if debug else []),
    )
    assert done.returncode == 0
    assert "coroutine 'forgotten' was never awaited" in done.stderr
    assert ("Coroutine created at" in done.stderr) is debug


@pytest.mark.parametrize("how", ["environment", "dev mode", "argument"])
def test_ways_into_debug_mode(loop_name: str, how: str) -> None:
    done = run_child(
        f"""
        import subprocess

        def look():
            loop = new_child_loop()
            debug = loop.get_debug()
            loop.close()
            return debug

        if {how!r} == "argument":
            async def main():
                return asyncio.get_running_loop().get_debug()

            with asyncio.Runner(loop_factory=new_child_loop, debug=True) as runner:
                assert runner.run(main())
        elif "PYTHONASYNCIODEBUG" in os.environ or sys.flags.dev_mode:
            assert look()
        else:
            assert not look()
            environment = {{**os.environ, "PYTHONASYNCIODEBUG": "1"}}
            code = "from support import *; loop = new_child_loop(); print(loop.get_debug()); loop.close()"
            assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"True\\n"
        """,
        loop_name,
        *(["-X", "dev"] if how == "dev mode" else []),
    )
    assert done.returncode == 0, done.stderr


def test_a_slow_task_is_reported(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def slow() -> None:
        end = time.monotonic() + 0.03
        while time.monotonic() < end:
            pass

    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.run_until_complete(slow())
    assert any("Executing <Task" in message and "slow()" in message for message in caplog.messages), caplog.messages


def test_a_slow_step_is_not_reported_without_debug_mode(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.slow_callback_duration = 0.0
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.run_until_complete(asyncio.sleep(0))
    assert caplog.messages == []


def test_a_task_made_from_another_thread_is_refused_in_debug_mode(loop: Loop, handler_calls: HandlerCalls) -> None:
    loop.set_debug(True)
    caught: list[str] = []

    def misuse() -> None:
        coroutine = asyncio.sleep(0)
        try:
            loop.create_task(coroutine)
        except RuntimeError as error:
            caught.append(str(error))
            coroutine.close()

    async def main() -> None:
        thread = threading.Thread(target=misuse)
        thread.start()
        await asyncio.to_thread(thread.join)

    loop.run_until_complete(main())
    assert "Non-thread-safe operation" in caught[0]
    gc.collect()
    # The task was half made: nothing will ever run it.
    assert {context["message"] for context in handler_calls.take_all()} <= {"Task was destroyed but it is pending!"}


def test_a_failed_task_knows_where_it_was_made(loop: Loop, handler_calls: HandlerCalls) -> None:
    async def fail() -> None:
        raise LookupError("on purpose")

    async def main() -> None:
        asyncio.create_task(fail())  # noqa: RUF006 (nobody keeps it: that is the point)
        await turns()
        gc.collect()

    loop.set_debug(True)
    loop.run_until_complete(main())
    context = handler_calls.take()
    assert context["message"] == "Task exception was never retrieved"
    assert any(frame.filename == __file__ for frame in context["source_traceback"])


def test_an_unclosed_transport_warns(loop: Loop) -> None:
    near, far = socket.socketpair()

    async def forget() -> None:
        near.setblocking(False)
        await loop.create_connection(asyncio.Protocol, sock=near)

    def close() -> None:
        loop.close()
        gc.collect()

    with far:
        loop.run_until_complete(forget())
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            close()


# The exception handler


async def test_the_exception_handler() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    seen: list[tuple[Loop, dict[str, Any]]] = []
    loop.set_exception_handler(lambda loop, context: seen.append((loop, context)))
    try:
        loop.call_exception_handler({"message": "by hand"})
        handle = loop.call_soon(lambda: 1 / 0)
        await turns()
    finally:
        loop.set_exception_handler(before)
    assert seen[0] == (loop, {"message": "by hand"})
    assert seen[1][0] is loop and seen[1][1]["handle"] is handle
    assert isinstance(seen[1][1]["exception"], ZeroDivisionError)
    with pytest.raises(TypeError, match="callable"):
        loop.set_exception_handler(7)  # type: ignore[arg-type]


async def test_the_default_exception_handler_logs(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None
    with caplog.at_level(logging.ERROR, "asyncio"):
        loop.call_soon(lambda: 1 / 0)
        await turns()
        loop.default_exception_handler({"message": "by hand", "number": 7})
    loop.set_exception_handler(before)
    first, second = caplog.records
    assert first.name == "asyncio" and first.getMessage().startswith("Exception in callback")
    assert first.exc_info and first.exc_info[0] is ZeroDivisionError
    assert second.getMessage() == "by hand\nnumber: 7"


async def test_a_handler_that_fails_itself(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def fail(loop: Loop, context: dict[str, Any]) -> None:
        raise LookupError("in the handler")

    loop.set_exception_handler(fail)
    with caplog.at_level(logging.ERROR, "asyncio"):
        loop.call_exception_handler({"message": "first"})
    loop.set_exception_handler(before)
    assert "Unhandled error in exception handler" in caplog.text and "in the handler" in caplog.text
