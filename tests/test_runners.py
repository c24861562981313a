"""asyncio.run and asyncio.Runner on a loop of each kind: results, contexts, debug mode, Ctrl-C, what they clean up."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import HandlerCalls, start_child, until_blocked

Factory = Callable[[], asyncio.AbstractEventLoop]

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


def test_run_is_a_runner_for_one_coroutine(loop_factory: Factory) -> None:
    """`asyncio.run` has ``loop_factory`` from 3.12 on; before, the Runner does what it does."""

    async def main() -> asyncio.AbstractEventLoop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    if sys.version_info >= (3, 12):
        loop = asyncio.run(main(), loop_factory=loop_factory)
    else:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            loop = runner.run(main())
    assert loop.is_closed()


def test_run_raises_what_main_raises(loop_factory: Factory) -> None:
    async def main() -> None:
        await asyncio.sleep(0)
        raise LookupError("on purpose")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        with pytest.raises(LookupError, match="on purpose"):
            runner.run(main())
        # The runner can be used again.
        assert runner.run(asyncio.sleep(0, "again")) == "again"


def test_several_runs_share_a_loop(loop_factory: Factory) -> None:
    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        assert runner.run(running()) is runner.run(running()) is loop
        assert not loop.is_running()
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="Runner is closed"):
        runner.get_loop()


def test_a_runner_closed_by_hand(loop_factory: Factory) -> None:
    runner = asyncio.Runner(loop_factory=loop_factory)
    loop = runner.get_loop()
    runner.close()
    assert loop.is_closed()
    runner.close()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Runner is closed"):
        runner.run(coroutine)
    coroutine.close()


def test_runs_share_a_context_unless_given_one(loop_factory: Factory) -> None:
    async def put(value: str) -> str:
        before = VARIABLE.get()
        VARIABLE.set(value)
        return before

    other = contextvars.copy_context()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(put("first")) == "unset"
        assert runner.run(put("second")) == "first"
        assert runner.run(put("third"), context=other) == "unset"
        assert runner.run(put("fourth")) == "second"
    assert VARIABLE.get() == "unset"
    assert other[VARIABLE] == "third"


@pytest.mark.parametrize("debug", [True, False])
def test_debug(loop_factory: Factory, debug: bool) -> None:
    async def look() -> bool:
        return asyncio.get_running_loop().get_debug()

    with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
        assert runner.run(look()) is debug


def test_a_runner_refuses_to_nest(loop_factory: Factory) -> None:
    async def main() -> None:
        coroutine = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            runner.run(coroutine)
        coroutine.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_the_end_cancels_tasks_and_closes_generators_and_the_executor(
    loop_factory: Factory, handler_calls: HandlerCalls
) -> None:
    events: list[str] = []
    kept: list[Any] = []

    async def background(name: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            events.append(f"{name} cancelled")
            if name == "second":
                raise LookupError("in the end") from None
            raise

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            events.append("generator closed")

    async def main() -> None:
        kept.extend(asyncio.create_task(background(name)) for name in ("first", "second"))
        kept.append(generator())
        await anext(kept[-1])
        kept.append(await asyncio.to_thread(threading.current_thread))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
        assert events == []
    assert sorted(events[:2]) == ["first cancelled", "second cancelled"]
    assert events[2:] == ["generator closed"]
    assert not kept[-1].is_alive()
    context = handler_calls.take()
    assert context["message"] == "unhandled exception during asyncio.run() shutdown"
    assert isinstance(context["exception"], LookupError)


def test_main_is_a_task(loop_factory: Factory) -> None:
    async def main() -> tuple[bool, int]:
        task = asyncio.current_task()
        return isinstance(task, asyncio.Task), len(asyncio.all_tasks())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == (True, 1)


CTRL_C_IN_A_RUN = """
    def work():
        async def main():
            print("waiting")
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                print("cancelled")
                await asyncio.sleep(0)
                print("cleaned up")
                raise

        with asyncio.Runner(loop_factory=new_child_loop) as runner:
            try:
                runner.run(main())
            except KeyboardInterrupt:
                print("interrupted")
            # The handler is the default one again, and the loop still of use.
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            print(runner.run(asyncio.sleep(0, "of use")))

    work()
    """


def test_ctrl_c_cancels_main_and_becomes_keyboard_interrupt(loop_name: str) -> None:
    child = start_child(CTRL_C_IN_A_RUN, loop_name)
    said = [child.line()]
    until_blocked(child.pid)
    child.send_signal(signal.SIGINT)
    done = child.finish()
    said += done.stdout.splitlines(keepends=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.strip() for line in said] == ["waiting", "cancelled", "cleaned up", "interrupted", "of use"]


def test_ctrl_c_twice_interrupts_at_once(loop_name: str) -> None:
    """The second Ctrl-C does not wait for a main that will not be cancelled."""
    child = start_child(
        """
        def work():
            async def main():
                while True:
                    print("waiting")
                    try:
                        await asyncio.get_running_loop().create_future()
                    except asyncio.CancelledError:
                        pass

            runner = asyncio.Runner(loop_factory=new_child_loop)
            try:
                runner.run(main())
            except KeyboardInterrupt:
                print("interrupted")
                os._exit(7)  # closing the runner would wait for main, which does not end

        work()
        """,
        loop_name,
    )
    for _ in range(2):
        assert child.line() == "waiting\n"
        until_blocked(child.pid)
        child.send_signal(signal.SIGINT)
    done = child.finish()
    assert (done.returncode, done.stdout) == (7, "interrupted\n"), done.stderr
