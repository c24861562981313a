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
from support import HANG_S, Echo, in_time, run_child, serving

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


def test_a_loop_in_a_subinterpreter(loop_name: str) -> None:
    """One that shares the process's GIL, as embedders make them; others refuse cffi's extensions at import."""
    child = run_child(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            try:
                import _xxsubinterpreters as interpreters
            except ImportError:
                print("alive")
                sys.exit()
        try:
            inner = interpreters.create("legacy")
        except TypeError:
            inner = interpreters.create(isolated=False)
        failed = interpreters.run_string(inner, '''if True:
            import asyncio, sys
            sys.path[:] = %r
            from support import new_child_loop

            async def main():
                async def serve(reader, writer):
                    writer.write(await reader.readline())
                    writer.close()

                server = await asyncio.start_server(serve, "127.0.0.1", 0)
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"line\\\\n")
                assert await reader.read() == b"line\\\\n"
                writer.close()
                server.close()

            loop = new_child_loop()
            loop.run_until_complete(main())
            loop.close()
        ''' % sys.path)
        assert failed is None, failed
        interpreters.destroy(inner)
        print("alive")
        """,
        loop_name,
    )
    assert (child.returncode, child.stdout) == (0, "alive\n"), child.stderr
