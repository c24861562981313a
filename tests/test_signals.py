"""Signal handlers: asyncio's behaviour, with libuv catching the signals (H10)."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from typing import Any

import pytest
from support import in_time, is_ours, resident_bytes, run_child, turns, until

Loop = asyncio.AbstractEventLoop
USR1, USR2 = signal.SIGUSR1, signal.SIGUSR2


async def test_a_handler_runs_in_the_loop() -> None:
    loop = asyncio.get_running_loop()
    seen: list[Any] = []
    loop.add_signal_handler(USR1, seen.append, "one")
    loop.add_signal_handler(USR2, lambda: seen.append(asyncio.get_running_loop()))
    signal.raise_signal(USR1)
    assert seen == []
    await until(lambda: seen)
    os.kill(os.getpid(), USR2)
    await until(lambda: len(seen) == 2)
    signal.pthread_kill(threading.main_thread().ident or 0, USR1)
    await until(lambda: len(seen) == 3)
    assert seen == ["one", loop, "one"]
    assert loop.remove_signal_handler(USR1) is True
    assert loop.remove_signal_handler(USR1) is False
    assert loop.remove_signal_handler(USR2) is True


async def test_a_signal_ends_a_wait() -> None:
    """Sent by another thread while the loop sleeps in the kernel, and while it is busy."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_signal_handler(USR1, event.set)
    threading.Timer(0.02, os.kill, (os.getpid(), USR1)).start()
    await in_time(event.wait())
    event.clear()
    signal.raise_signal(USR1)
    await in_time(event.wait())
    loop.remove_signal_handler(USR1)


async def test_order_and_context() -> None:
    import contextvars

    loop = asyncio.get_running_loop()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[Any] = []
    variable.set("at the handler's making")
    loop.add_signal_handler(USR1, lambda: seen.append(variable.get()))
    variable.set("later")
    signal.raise_signal(USR1)
    await until(lambda: seen)
    assert seen == ["at the handler's making"]
    loop.remove_signal_handler(USR1)


async def test_replacing_a_handler() -> None:
    loop = asyncio.get_running_loop()
    seen: list[object] = []
    for number in range(20):
        loop.add_signal_handler(USR1, seen.append, number)
        signal.raise_signal(USR1)
        await until(lambda n=number: len(seen) == n + 1)  # type: ignore[misc]
    assert seen == list(range(20))
    # One that was caught by the old handler's watch is the new handler's, if that is there when it is looked at.
    signal.raise_signal(USR1)
    loop.add_signal_handler(USR1, seen.append, "new")
    await until(lambda: len(seen) == 21)
    assert seen[-1] == "new"
    await turns(5)
    assert len(seen) == 21
    loop.remove_signal_handler(USR1)


async def test_a_handler_that_removes_or_replaces_itself() -> None:
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    def second() -> None:
        seen.append("second")
        loop.remove_signal_handler(USR1)

    def first() -> None:
        seen.append("first")
        loop.add_signal_handler(USR1, second)

    loop.add_signal_handler(USR1, first)
    signal.raise_signal(USR1)
    await until(lambda: seen)
    signal.raise_signal(USR1)
    await until(lambda: len(seen) == 2)
    assert signal.getsignal(USR1) is signal.SIG_DFL


async def test_removed_before_it_ran() -> None:
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    loop.add_signal_handler(USR1, seen.append, 1)
    signal.raise_signal(USR1)
    loop.remove_signal_handler(USR1)
    await turns(10)
    assert seen == []


@pytest.mark.parametrize("number", [USR1, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGRTMIN + 3])
async def test_H10_pythons_record_is_kept(number: int) -> None:
    """uv_signal seizes the signal from Python, whose record would go stale; and it leaves SIG_DFL."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(number, print)
    handler: Any = signal.getsignal(number)
    assert handler.__module__ == "asyncio.unix_events"
    loop.remove_signal_handler(number)
    expected = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    assert signal.getsignal(number) == expected


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
async def test_H10_the_kernels_record_agrees() -> None:
    """What libuv does at its last handle's end must not outlive it: SIGINT would end the process in silence."""

    def caught(number: int) -> bool:
        with open("/proc/self/status") as file:
            mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
        return bool(mask >> (number - 1) & 1)

    loop = asyncio.get_running_loop()
    for number in (USR1, signal.SIGINT):
        before = caught(number)
        assert before is (number == signal.SIGINT)
        loop.add_signal_handler(number, print)
        loop.add_signal_handler(number, print)
        assert caught(number)
        loop.remove_signal_handler(number)
        assert caught(number) is before


def test_H10_the_interrupt_comes_back(loop: Loop) -> None:
    seen: list[int] = []
    loop.add_signal_handler(signal.SIGINT, seen.append, 1)

    async def main() -> None:
        signal.raise_signal(signal.SIGINT)
        await until(lambda: seen)
        loop.remove_signal_handler(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        await turns()

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())


async def test_the_program_takes_the_signal_itself() -> None:
    """After add_signal_handler(): Python's handler runs, and the wakeup descriptor tells the loop too."""
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    loop.add_signal_handler(USR1, seen.append, "loop")
    signal.signal(USR1, lambda *_: seen.append("program"))
    signal.raise_signal(USR1)
    await until(lambda: len(seen) == 2)
    assert sorted(seen) == ["loop", "program"]
    # And back again.
    loop.add_signal_handler(USR1, seen.append, "loop again")
    signal.raise_signal(USR1)
    await until(lambda: len(seen) == 3)
    await turns(5)
    assert seen[2:] == ["loop again"]
    loop.remove_signal_handler(USR1)


async def test_the_program_ignores_the_signal() -> None:
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    loop.add_signal_handler(USR1, seen.append, "loop")
    signal.signal(USR1, signal.SIG_IGN)
    signal.raise_signal(USR1)
    await turns(5)
    assert seen == []
    loop.add_signal_handler(USR1, seen.append, "again")
    signal.raise_signal(USR1)
    await until(lambda: seen)
    assert seen == ["again"]
    loop.remove_signal_handler(USR1)


def test_between_two_runs(loop: Loop) -> None:
    seen: list[int] = []
    loop.add_signal_handler(USR1, seen.append, 1)
    loop.run_until_complete(turns())
    signal.raise_signal(USR1)
    signal.raise_signal(USR1)
    assert seen == []
    loop.run_until_complete(until(lambda: seen))
    loop.remove_signal_handler(USR1)


def test_before_the_first_run(loop: Loop) -> None:
    seen: list[int] = []
    loop.add_signal_handler(USR1, seen.append, 1)
    signal.raise_signal(USR1)
    loop.run_until_complete(until(lambda: seen))
    assert seen == [1]


def test_H10_an_interrupt_while_threads_live_never_ends_the_process(loop_name: str) -> None:
    """Not even between two steps of taking SIGINT and giving it back: a thread would take it at SIG_DFL."""
    child = run_child(
        """
        signal.default_int_handler = lambda *args: None  # what a removal puts back is looked up
        idle = threading.Event()
        for _ in range(2):
            threading.Thread(target=idle.wait).start()
        loop = new_child_loop()
        loop.add_signal_handler(signal.SIGINT, print)
        done = threading.Event()

        def interrupt():
            while not done.is_set():
                os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=interrupt)
        sender.start()
        for _ in range(5000):
            loop.remove_signal_handler(signal.SIGINT)
            loop.add_signal_handler(signal.SIGINT, int)
        done.set()
        sender.join()
        idle.set()
        loop.close()
        print("alive")
        """,
        loop_name,
    )
    assert (child.returncode, child.stdout) == (0, "alive\n"), child.stderr


@pytest.mark.ours("asyncio's child has its parent's self-pipe")
def test_H10_a_refused_handler_in_a_forked_child_changes_nothing(loop_name: str) -> None:
    child = run_child(
        """
        loop = new_child_loop()
        seen = []

        async def main():
            loop.add_signal_handler(signal.SIGUSR1, seen.append, "parent")
            await turns()
            pid = os.fork()
            if pid == 0:
                try:
                    loop.add_signal_handler(signal.SIGUSR2, print)
                    os._exit(1)
                except RuntimeError:
                    pass
                if os.fork() == 0:
                    os._exit(loop.remove_signal_handler(signal.SIGUSR1) is not True)  # cleaning up is allowed
                if os.wait()[1] != 0:
                    os._exit(2)
                signal.signal(signal.SIGUSR1, lambda *args: None)
                os.kill(os.getpid(), signal.SIGUSR1)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            await turns(5)
            assert not seen
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: seen == ["parent"])

        loop.run_until_complete(main())
        loop.close()
        print("alive")
        """,
        loop_name,
    )
    assert (child.returncode, child.stdout) == (0, "alive\n"), child.stderr


def test_close_in_another_thread_with_handlers_leaves_no_descriptor(loop_name: str) -> None:
    """signal.signal() raises there: asyncio's ValueError, with all else done."""
    child = run_child(
        """
        loop = new_child_loop()
        loop.close()
        before = open_descriptors().keys()
        loop = new_child_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        errors = []

        def close():
            try:
                loop.close()
            except ValueError as error:
                errors.append(str(error))

        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        assert errors and "main thread" in errors[0], errors
        assert loop.is_closed()
        assert open_descriptors().keys() == before
        print("alive")
        """,
        loop_name,
    )
    assert (child.returncode, child.stdout) == (0, "alive\n"), child.stderr


def test_close_removes_handlers(loop: Loop) -> None:
    loop.add_signal_handler(USR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    loop.close()
    assert signal.getsignal(USR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


async def test_exceptions_of_a_handler(handler_calls: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(USR1, functools.partial(divmod, 1, 0))
    signal.raise_signal(USR1)
    await until(lambda: len(handler_calls))
    assert isinstance(handler_calls.take()["exception"], ZeroDivisionError)
    loop.remove_signal_handler(USR1)


def test_need_22_an_exit_from_a_handler(loop: Loop) -> None:
    def leave() -> None:
        raise SystemExit(7)

    loop.add_signal_handler(USR1, leave)

    async def main() -> None:
        signal.raise_signal(USR1)
        await until(lambda: False)

    with pytest.raises(SystemExit, match="7"):
        loop.run_until_complete(main())
    loop.remove_signal_handler(USR1)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(turns())


async def test_not_in_another_thread() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(RuntimeError):
        await asyncio.to_thread(loop.add_signal_handler, USR1, print)
    assert signal.getsignal(USR1) is signal.SIG_DFL
    assert loop.remove_signal_handler(USR1) is False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_signals_that_nobody_can_catch(loop: Loop, number: int) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=f"sig {int(number)} cannot be caught"):
            loop.add_signal_handler(number, print)
        assert loop.remove_signal_handler(number) is False
        if is_ours(loop):
            # Ctrl-C still ends a wait: asyncio has unset the wakeup descriptor meanwhile.
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
            await loop.create_future()
        else:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())


async def test_a_coroutine_is_no_handler() -> None:
    loop = asyncio.get_running_loop()
    coroutine = turns()
    for wrong in (turns, coroutine):
        with pytest.raises(TypeError, match="coroutines cannot be used"):
            loop.add_signal_handler(USR1, wrong)  # type: ignore[arg-type]
    coroutine.close()
    assert signal.getsignal(USR1) is signal.SIG_DFL


async def test_ten_thousand_signals() -> None:
    """Each sent when the one before was seen: none is lost, none comes twice, nothing piles up."""
    loop = asyncio.get_running_loop()
    count = 10_000
    seen = 0
    done = loop.create_future()

    def handle() -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set_result(None)
        else:
            signal.raise_signal(USR1)

    loop.add_signal_handler(USR1, handle)
    before = resident_bytes()
    signal.raise_signal(USR1)
    await in_time(done)
    await turns(5)
    assert seen == count
    assert resident_bytes() - before < 4 * 2**20
    loop.remove_signal_handler(USR1)
    if is_ours():
        assert loop.statistics().handles == 0  # type: ignore[attr-defined]


@pytest.mark.ours("asyncio complains of its full wakeup descriptor")
async def test_a_storm_from_threads() -> None:
    """Pending signals of one number merge in the kernel; at least one comes, and no more than were sent."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    loop.add_signal_handler(USR1, seen.append, 1)
    loop.add_signal_handler(USR2, seen.append, 2)

    def storm() -> None:
        for _ in range(50):
            os.kill(os.getpid(), USR1)
            os.kill(os.getpid(), USR2)

    await asyncio.gather(*(asyncio.to_thread(storm) for _ in range(4)))
    await until(lambda: 1 in seen and 2 in seen)
    await turns(5)
    assert 1 <= seen.count(1) <= 200
    assert 1 <= seen.count(2) <= 200
    loop.remove_signal_handler(USR1)
    loop.remove_signal_handler(USR2)


@pytest.mark.ours("asyncio's wakeup descriptor is the last loop's alone")
def test_two_loops_with_one_signal(loop_factory: Any) -> None:
    loops = [loop_factory(), loop_factory()]
    seen: list[int] = []
    for number, loop in enumerate(loops):
        loop.add_signal_handler(USR1, seen.append, number)
    signal.raise_signal(USR1)
    for loop in loops:
        loop.run_until_complete(turns(5))
    assert seen == [0, 1]
    for loop in loops:
        loop.close()
    assert signal.getsignal(USR1) is signal.SIG_DFL


def test_H10_a_signal_in_a_forked_child_is_the_childs(loop_name: str) -> None:
    """libuv's handler writes to a pipe that parent and child share; asyncio's child ignores the signal (3.12)."""
    done = run_child(
        """
        loop = new_child_loop()
        seen = []

        async def main():
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, seen.append, os.getpid())
            await turns()
            child = os.fork()
            if child == 0:
                handler = signal.getsignal(signal.SIGUSR1)
                assert handler.__module__ == "asyncio.unix_events", handler
                signal.raise_signal(signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR1)
                os._exit(7)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 7, status
            await turns(10)
            parents = list(seen)
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: len(seen) > len(parents))
            return parents

        parents = loop.run_until_complete(main())
        loop.close()
        print(parents)
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    if loop_name == "velociloop":
        assert done.stdout == "[]\n"  # 3.11's asyncio hears its child


def test_H10_a_forked_child_runs_a_loop_of_its_own(loop_name: str) -> None:
    done = run_child(
        """
        loop = new_child_loop()
        seen = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "parent")
        loop.run_until_complete(turns())
        child = os.fork()
        if child == 0:
            mine = new_child_loop()
            mine.add_signal_handler(signal.SIGUSR1, seen.append, "child")
            signal.raise_signal(signal.SIGUSR1)
            mine.run_until_complete(until(lambda: seen))
            assert seen == ["child"], seen
            mine.close()
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        loop.run_until_complete(turns(10))
        assert seen == [], seen
        signal.raise_signal(signal.SIGUSR1)
        loop.run_until_complete(until(lambda: seen))
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.ours("asyncio's processes share one epoll instance afterwards: undefined")
@pytest.mark.parametrize("how", ["run", "close"])
def test_H10_a_forked_child_takes_the_loop_over(loop_name: str, how: str) -> None:
    done = run_child(
        f"""
        loop = new_child_loop()
        seen = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        loop.run_until_complete(turns())
        child = os.fork()
        if child == 0:
            if {how!r} == "run":
                loop.run_until_complete(turns())
                signal.raise_signal(signal.SIGUSR1)
                loop.run_until_complete(until(lambda: seen))
                loop.add_signal_handler(signal.SIGUSR1, seen.append, 2)
                signal.raise_signal(signal.SIGUSR1)
                loop.run_until_complete(until(lambda: len(seen) == 2))
                assert seen == [1, 2], seen
            loop.close()
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        seen.clear()
        loop.run_until_complete(turns(10))
        assert seen == []
        signal.raise_signal(signal.SIGUSR1)
        loop.run_until_complete(until(lambda: seen))
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


def test_H10_a_fork_under_fire(loop_name: str) -> None:
    """A signal that reaches the child before its hooks have run must not tell the parent either."""
    done = run_child(
        """
        loop = new_child_loop()
        seen = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        loop.run_until_complete(turns())
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        for _ in range(100):
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(1)  # asyncio's no-op handler has run
            os.kill(child, signal.SIGUSR1)  # as soon as it exists
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
        loop.run_until_complete(turns(10))
        loop.close()
        print(len(seen))
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    if loop_name == "velociloop":
        assert done.stdout == "0\n"


def test_H10_a_child_of_subprocess_dies_of_its_signal(loop_name: str) -> None:
    """A handler of the parent is nothing to a program that it starts; with preexec_fn, hooks run in the child."""
    done = run_child(
        """
        import subprocess
        loop = new_child_loop()
        seen = []
        loop.add_signal_handler(signal.SIGTERM, seen.append, 1)
        loop.run_until_complete(turns())
        for preexec in None, int:
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, preexec_fn=preexec)
            child.terminate()
            assert child.wait() == -signal.SIGTERM, child.returncode
            child.stdin.close()
        loop.run_until_complete(turns(10))
        assert seen == [], seen
        loop.close()
        """,
        loop_name,
        "-W",
        "ignore",
    )
    assert done.returncode == 0, done.stderr


def test_the_wakeup_descriptor_of_others_is_put_back(loop: Loop) -> None:
    """Someone's descriptor from before the run is there again after it, handlers added and removed in between."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    try:
        signal.set_wakeup_fd(write_end)

        async def main() -> None:
            loop.call_later(0.001, int)
            await asyncio.sleep(0.002)

        loop.run_until_complete(main())
        assert signal.set_wakeup_fd(write_end) == write_end
    finally:
        signal.set_wakeup_fd(-1)
        os.close(read_end)
        os.close(write_end)


@pytest.mark.ours("asyncio has Python print each of them")
def test_signals_beyond_what_the_wakeup_descriptor_holds_are_quiet(loop_name: str) -> None:
    child = run_child(
        """
        loop = new_child_loop()
        seen = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        loop.add_signal_handler(signal.SIGINT, seen.append, 2)  # Python's own handler writes
        for _ in range(5000):
            signal.raise_signal(signal.SIGINT)
        async def main():
            while not seen:
                await asyncio.sleep(0)
        loop.run_until_complete(main())
        loop.close()
        print(set(seen))
        """,
        loop_name,
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "{2}\n", "")
