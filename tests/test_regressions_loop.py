"""Fork, signals, threads: what a review found, where no other test holds it. Each runs in a child."""

from __future__ import annotations

import subprocess
import textwrap
from typing import Any

import pytest
from support import Recorder, raw_connection, run_child


def check(code: str, loop_name: str) -> None:
    """Run `code` in a child, which must end by printing "alive", and say nothing on stderr."""
    done: subprocess.CompletedProcess[str] = run_child(
        textwrap.dedent(code), loop_name, "-W", "ignore::ResourceWarning", "-W", "ignore::DeprecationWarning"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


# Fork


@pytest.mark.ours("asyncio's child works on the parent's epoll instance")
def test_H11_a_closed_socket_in_add_reader_leaves_the_fork_protection_on(loop_name: str) -> None:
    check(
        """
        loop, other = new_child_loop(), new_child_loop()

        async def main():
            near, far = socket.socketpair()
            loop.add_reader(near, print)
            near.close()
            told = loop.create_future()
            loop.add_signal_handler(signal.SIGUSR1, told.set_result, None)
            await turns()
            child = os.fork()
            if child == 0:
                for mine in (loop, other):
                    assert mine._core.foreign
                    mine.remove_reader(mine._ssock)  # from the child's own table
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            os.kill(os.getpid(), signal.SIGUSR1)
            await in_time(told)  # the self-pipe is still watched
            far.close()

        loop.run_until_complete(main())
        loop.close()
        other.close()
        print("alive")
        """,
        loop_name,
    )


@pytest.mark.ours("asyncio's child registers with the parent's epoll instance")
def test_a_refused_resume_reading_leaves_the_stream_paused(loop_name: str) -> None:
    check(
        """
        loop = new_child_loop()
        near, far = socket.socketpair()
        near.setblocking(False)

        async def connect():
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            transport.pause_reading()
            return transport, protocol

        transport, protocol = loop.run_until_complete(connect())
        child = os.fork()
        if child == 0:
            with contextlib.suppress(RuntimeError):
                transport.resume_reading()
                print("was not refused")
            assert not transport.is_reading()

            async def resume():
                transport.resume_reading()
                far.sendall(b"hello")
                assert await protocol.bytes_received(5) == b"hello"
                await closed(transport)

            loop.run_until_complete(resume())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        loop.run_until_complete(closed(transport))
        loop.close()
        print("alive")
        """,
        loop_name,
    )


@pytest.mark.ours("corking")
def test_H5_what_is_corked_at_a_fork_is_the_parents_to_send(loop_name: str) -> None:
    check(
        """
        loop = new_child_loop()
        near, far = socket.socketpair()
        near.setblocking(False)

        def fork(transport, forked):
            transport.write(b"parent, ")
            transport.write(b"corked")
            child = os.fork()
            if child == 0:
                with contextlib.suppress(RuntimeError):
                    transport.write(b"refused")
                    print("was not refused")
                loop.call_soon(write_in_child, transport)  # in a turn that takes the loop into use
            else:
                assert os.waitpid(child, 0)[1] == 0
                forked.set_result(None)

        def write_in_child(transport):
            transport.write(b"child, ")
            transport.write(b"corked; ")
            loop.call_soon(os._exit, 0)

        async def main():
            transport, protocol = await loop.create_connection(Recorder, sock=near)
            await turns()
            forked = loop.create_future()
            # No task: from 3.14 on its step fails in a forked child, where no loop counts as running.
            loop.call_soon(fork, transport, forked)
            await in_time(forked)
            await turns()
            await closed(transport)

        loop.run_until_complete(main())
        loop.close()
        assert far.recv(1000) == b"parent, child, corked; corked"
        print("alive")
        """,
        loop_name,
    )


# Signals


@pytest.mark.ours("the handler of asyncio's parent runs, on 3.11")
def test_H10_a_childs_signal_does_not_reach_a_parent_that_has_never_waited(loop_name: str) -> None:
    check(
        """
        loop = new_child_loop()

        async def main():
            ran = []
            loop.add_signal_handler(signal.SIGUSR1, ran.append, 1)
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            await turns(10)
            assert not ran

        loop.run_until_complete(main())
        loop.close()
        print("alive")
        """,
        loop_name,
    )


@pytest.mark.parametrize("again", [False, True], ids=["", "the number is a blocking file's"])
def test_H10_a_wakeup_descriptor_that_was_closed_during_the_run(loop_name: str, again: bool) -> None:
    check(
        f"""
        near, far = socket.socketpair()
        near.setblocking(False)
        number = near.fileno()
        signal.set_wakeup_fd(number)
        loop = new_child_loop()

        async def main():
            await asyncio.sleep(0.001)  # a wait: the loop's own is set now
            near.close()
            if {again}:
                os.dup2(far.fileno(), number)
                os.set_blocking(number, True)
            return "result"

        assert loop.run_until_complete(main()) == "result"
        loop.close()
        print("alive")
        """,
        loop_name,
    )


@pytest.mark.ours("asyncio forgets who had set one before")
@pytest.mark.parametrize("how", ["removed", "removed while running", "closed", "never waited", "never run"])
def test_H10_the_wakeup_descriptor_of_before_is_restored_after_signal_handlers(loop_name: str, how: str) -> None:
    check(
        f"""
        near, far = socket.socketpair()
        near.setblocking(False)
        signal.set_wakeup_fd(near.fileno())
        loop = new_child_loop()

        async def main():
            if {how!r} != "never waited":
                await asyncio.sleep(0.01)  # a wait: the loop's own is set now
            loop.add_signal_handler(signal.SIGUSR1, print)
            if {how!r} == "removed while running":
                loop.remove_signal_handler(signal.SIGUSR1)
                await asyncio.sleep(0.001)

        if {how!r} == "never run":
            loop.add_signal_handler(signal.SIGUSR1, print)
        else:
            loop.run_until_complete(main())
        if {how!r} in ("removed", "never waited", "never run"):
            loop.remove_signal_handler(signal.SIGUSR1)
        elif {how!r} == "closed":
            loop.close()
        assert signal.set_wakeup_fd(-1) == near.fileno()
        loop.close()
        print("alive")
        """,
        loop_name,
    )


def test_a_run_in_a_thread_that_python_does_not_know(loop_name: str) -> None:
    check(
        """
        import _thread

        def run():
            loop = new_child_loop()
            loop.run_until_complete(asyncio.sleep(0.001))
            loop.close()
            known.append(threading.active_count())
            ended.release()

        known = []
        ended = _thread.allocate_lock()
        ended.acquire()
        _thread.start_new_thread(run, ())
        assert ended.acquire(timeout=HANG_S)
        assert known == [1]  # no _DummyThread was made for it
        print("alive")
        """,
        loop_name,
    )


# States to be read


@pytest.mark.ours("objects of ours")
async def test_every_stateful_object_shows_its_state() -> None:
    async with raw_connection(Recorder) as (transport, _, _):
        loop: Any = transport._loop
        await _waited(loop)
        assert repr(loop._core) == "<Core open handles=1 pins=0>"
        assert repr(loop._core.ring).startswith("<Ring 0 records pending, ")
        assert repr(loop._scope).startswith("<CallbackScope active serial=")
        assert "watching 1 descriptors on <Core open" in repr(loop._selector)
        assert repr(loop._dispatcher).startswith("<Dispatcher frames=0 <Ring 0 ")
        assert repr(loop._wakeup).startswith(f"<SignalWakeup armed fd={loop._csock.fileno()} ")


async def _waited(loop: Any) -> None:
    future = loop.create_future()
    loop.call_later(0.001, future.set_result, None)
    await future


@pytest.mark.ours("objects of ours")
def test_the_reprs_of_a_closed_loop(loop_name: str) -> None:
    check(
        """
        loop = new_child_loop()
        assert repr(loop._wakeup) == "<SignalWakeup not armed>"
        loop.close()
        assert repr(loop._core) == "<Core closed>"
        assert repr(loop._uv_selector) == "<Selector closed on <Core closed>>"
        print("alive")
        """,
        loop_name,
    )
