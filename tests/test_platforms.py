"""What asyncio says of platforms: selectors of one's own, and what may be done off the main thread."""

from __future__ import annotations

import asyncio
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import HANG_S, Echo, in_time, serving

Loop = asyncio.AbstractEventLoop

SELECTORS = [
    name
    for name in ("DefaultSelector", "SelectSelector", "PollSelector", "EpollSelector", "KqueueSelector")
    if hasattr(selectors, name)
]


@pytest.mark.parametrize("name", SELECTORS)
def test_a_loop_made_with_a_selector(loop: Loop, name: str) -> None:
    """Any selector is taken; that velociloop's own does the work shows nowhere."""
    kind: Any = type(loop)
    made: Any = kind(getattr(selectors, name)())
    assert isinstance(made, asyncio.SelectorEventLoop)
    near, far = socket.socketpair()

    async def main() -> None:
        seen = made.create_future()
        made.add_reader(near, lambda: seen.set_result(near.recv(10)))
        far.send(b"ready")
        assert await in_time(seen) == b"ready"
        assert made.remove_reader(near)
        async with serving(Echo) as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"line\n")
            assert await in_time(reader.readline()) == b"line\n"
            writer.close()
            await writer.wait_closed()

    with near, far:
        made.run_until_complete(main())
    made.close()


def in_another_thread(work: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (goes to the test's thread)
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(2 * HANG_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_a_loop_in_another_thread_has_children(loop_factory: Callable[[], Loop]) -> None:
    async def main() -> tuple[bytes, int | None]:
        process = await asyncio.create_subprocess_shell("echo hello; exit 7", stdout=asyncio.subprocess.PIPE)
        out, _ = await in_time(process.communicate())
        return out, process.returncode

    def work() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert runner.run(main()) == (b"hello\n", 7)

    in_another_thread(work)


def test_signal_handlers_are_the_main_threads(loop_factory: Callable[[], Loop]) -> None:
    before = signal.getsignal(signal.SIGUSR1)

    def work() -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pytest.raises(RuntimeError, match="main thread"):
                loop.add_signal_handler(signal.SIGUSR1, print)
            assert not loop.remove_signal_handler(signal.SIGUSR1)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    in_another_thread(work)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_signals_that_cannot_be_handled(loop: Loop) -> None:
    for wrong in signal.SIGKILL, signal.SIGSTOP:
        with pytest.raises(RuntimeError, match="cannot be caught"):
            loop.add_signal_handler(wrong, print)
    for senseless in 0, 1000:
        with pytest.raises(ValueError, match=r"sig|signal number"):
            loop.add_signal_handler(senseless, print)
    with pytest.raises(TypeError):
        loop.add_signal_handler("SIGUSR1", print)  # type: ignore[arg-type]

    async def coroutine() -> None:
        pass

    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine)
