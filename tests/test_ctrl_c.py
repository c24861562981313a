"""Ctrl-C (H10, need 22): a blocked poll is interrupted at once, however the loop was started."""

from __future__ import annotations

import os
import signal
import sys
import types

import pytest
from support import run_child, start_child, until_blocked

from velociloop.scheduling import wakeup

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals; Windows has its own tests")

SCENES = {
    "bare run_forever": """
        loop = new_child_loop()
        loop.call_soon(print, "ready")
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        """,
    "run_until_complete": """
        loop = new_child_loop()
        loop.call_soon(print, "ready")
        future = loop.create_future()
        try:
            loop.run_until_complete(future)
        except KeyboardInterrupt:
            print("interrupted")
        loop.close()
        """,
    "asyncio.Runner": """
        async def main():
            print("ready")
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                print("cancelled")
                raise

        try:
            with asyncio.Runner(loop_factory=new_child_loop) as runner:
                runner.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
    "velociloop.run": """
        async def main():
            print("ready")
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                print("cancelled")
                raise

        try:
            if os.environ["TEST_LOOP"] == "velociloop":
                import velociloop
                velociloop.run(main())
            else:
                asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
    "with a server and a connection": """
        async def main():
            async with pair(Recorder, Echo) as ends:
                ends.client.transport.write(b"x")
                await ends.client.bytes_received(1)
                print("ready")
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    print("cancelled")
                    raise

        try:
            with asyncio.Runner(loop_factory=new_child_loop) as runner:
                runner.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """,
    "debug mode": """
        loop = new_child_loop()
        loop.set_debug(True)
        loop.call_soon(print, "ready")
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        loop.close()
        """,
}


@pytest.mark.parametrize("scene", SCENES)
def test_H10_ctrl_c_interrupts_a_blocked_poll(loop_name: str, scene: str) -> None:
    child = start_child(SCENES[scene], loop_name)
    assert child.line() == "ready\n"
    until_blocked(child.pid)
    child.send_signal(signal.SIGINT)
    done = child.finish()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("interrupted\n"), done.stdout + done.stderr
    assert ("cancelled" in done.stdout) is ("cancelled" in SCENES[scene])


def test_H10_an_unhandled_ctrl_c_ends_the_process_by_the_signal(loop_name: str) -> None:
    child = start_child('loop = new_child_loop()\nloop.call_soon(print, "ready")\nloop.run_forever()', loop_name)
    assert child.line() == "ready\n"
    until_blocked(child.pid)
    child.send_signal(signal.SIGINT)
    done = child.finish()
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr


def test_H10_a_loop_that_never_blocks_is_interrupted_too(loop_name: str) -> None:
    child = start_child(
        """
        loop = new_child_loop()

        def again():
            loop.call_soon(again)

        loop.call_soon(print, "ready")
        again()
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        """,
        loop_name,
    )
    assert child.line() == "ready\n"
    child.send_signal(signal.SIGINT)
    done = child.finish()
    assert done.stdout == "interrupted\n", done.stderr


def test_H10_a_handler_that_only_takes_note_does_not_end_the_run(loop_name: str) -> None:
    """A Python-level handler runs while the loop is blocked; the loop goes back to waiting."""
    child = start_child(
        """
        seen = []

        def note(signum, frame):
            seen.append(signum)
            if len(seen) == 3:
                loop.call_soon_threadsafe(loop.stop)
            print("noted")

        signal.signal(signal.SIGUSR1, note)
        loop = new_child_loop()
        loop.call_soon(print, "ready")
        loop.run_forever()
        print(len(seen))
        loop.close()
        """,
        loop_name,
    )
    assert child.line() == "ready\n"
    for _ in range(3):
        until_blocked(child.pid)
        child.send_signal(signal.SIGUSR1)
        assert child.line() == "noted\n"
    done = child.finish()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"


@pytest.mark.parametrize("hook", ["own descriptor", "none"])
def test_H10_the_wakeup_descriptor_is_restored(loop_name: str, hook: str) -> None:
    """What a program had set with signal.set_wakeup_fd is there again after the run, and in between it works."""
    done = run_child(
        f"""
        if {hook!r} == "own descriptor":
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            signal.set_wakeup_fd(writing)
        else:
            writing = -1
        loop = new_child_loop()
        loop.run_until_complete(asyncio.sleep(0.01))
        before = signal.set_wakeup_fd(-1)
        assert before == writing, (before, writing)
        signal.set_wakeup_fd(writing)
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        after = signal.set_wakeup_fd(-1)
        assert after == writing, (after, writing)
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


def test_H10_add_signal_handler_and_ctrl_c_side_by_side(loop_name: str) -> None:
    child = start_child(
        """
        loop = new_child_loop()
        loop.add_signal_handler(signal.SIGTERM, print, "terminated")
        loop.call_soon(print, "ready")
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        assert loop.remove_signal_handler(signal.SIGTERM) is True
        assert loop.remove_signal_handler(signal.SIGTERM) is False
        loop.close()
        """,
        loop_name,
    )
    assert child.line() == "ready\n"
    until_blocked(child.pid)
    os.kill(child.pid, signal.SIGTERM)
    assert child.line() == "terminated\n"
    until_blocked(child.pid)
    child.send_signal(signal.SIGINT)
    done = child.finish()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted\n"


def test_H10_ctrl_c_after_the_last_signal_handler_was_removed(loop_name: str) -> None:
    """asyncio unsets the wakeup descriptor with its last handler; a blocked poll must be woken all the same."""
    child = start_child(
        """
        loop = new_child_loop()
        loop.add_signal_handler(signal.SIGTERM, print)
        def ready():
            loop.remove_signal_handler(signal.SIGTERM)
            print("ready")
        loop.call_later(0.01, ready)
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        loop.close()
        """,
        loop_name,
    )
    assert child.line() == "ready\n"
    until_blocked(child.pid)
    child.send_signal(signal.SIGINT)
    assert child.finish().stdout == "interrupted\n"


def test_need_22_ctrl_c_in_a_busy_server_loses_no_bytes(loop_name: str) -> None:
    """Interrupted again and again while data streams in: after each run everything goes on where it was."""
    done = run_child(
        """
        loop = new_child_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        whole = os.urandom(3_000_000)

        async def connect():
            return await loop.create_connection(Recorder, sock=near)

        transport, protocol = loop.run_until_complete(connect())
        stop = threading.Event()

        def send():
            for start in range(0, len(whole), 997):
                far.sendall(whole[start : start + 997])

        def interrupt():
            while not stop.wait(0.003):
                os.kill(os.getpid(), signal.SIGUSR1)

        class Interrupt(BaseException):
            pass

        armed = False

        def handler(signum, frame):
            global armed
            # Only where the interrupt belongs: in code that the loop calls, as KeyboardInterrupt is raised there.
            if armed:
                loop.call_soon_threadsafe(strike)

        def strike():
            raise KeyboardInterrupt

        signal.signal(signal.SIGUSR1, handler)
        threads = [threading.Thread(target=send), threading.Thread(target=interrupt)]
        for thread in threads:
            thread.start()
        strikes = 0
        deadline = time.monotonic() + HANG_S
        while len(protocol.received) < len(whole) or strikes < 5:
            assert time.monotonic() < deadline, (strikes, len(protocol.received))
            armed = True
            try:
                loop.run_forever()
            except KeyboardInterrupt:
                strikes += 1
        armed = False
        stop.set()
        for thread in threads:
            thread.join()
        assert protocol.received == whole
        transport.abort()
        loop.run_until_complete(turns(6))
        loop.close()
        print("all there")
        """,
        loop_name,
    )
    assert done.stdout == "all there\n", done.stderr


@pytest.mark.ours("asyncio sets it with its first signal handler only, since a signal ends its waits")
def test_H10_a_signal_while_the_wakeup_descriptor_is_set(loop_name: str) -> None:
    """It has written nowhere, and the loop is about to wait: its handler must have been run before that."""
    done = run_child(
        """
        import _thread, asyncio, functools, operator, signal

        set_wakeup_fd = signal.set_wakeup_fd

        def interrupted(fd, **options):
            # Both in C, and the call has a keyword: CPython 3.14 looks for signals behind neither.
            calls = [functools.partial(_thread.interrupt_main, signal.SIGUSR1)]
            calls += [functools.partial(set_wakeup_fd, fd, **options)]
            return sorted(map(operator.call, calls), key=str)[0]

        def on_signal(number, frame):
            loop.call_soon_threadsafe(loop.stop)

        signal.signal(signal.SIGUSR1, on_signal)
        loop = new_child_loop()
        signal.set_wakeup_fd = interrupted
        loop.run_forever()
        signal.set_wakeup_fd = set_wakeup_fd
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.ours("its own order of steps")
def test_H10_signals_are_heard_behind_set_wakeup_fd(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython looks for signals at the beginning of a Python function, and not behind this call of a C function.

    Without that, one Ctrl-C of 50 was lost that came in the moment in which a program began to wait (3.14, when busy).
    """
    steps: list[str] = []
    assert isinstance(wakeup._hear_signals, types.FunctionType)

    def set_wakeup_fd(fd: int, **options: bool) -> int:
        steps.append("set")
        return -1

    monkeypatch.setattr(signal, "set_wakeup_fd", set_wakeup_fd)
    monkeypatch.setattr(wakeup, "_hear_signals", lambda: steps.append("hear"))
    wakeup.SignalWakeup().arm(5)
    assert steps == ["set", "hear"]
