"""Threads and forks (H11, need 29): loops side by side, a loop used from the wrong thread, children."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable

import pytest
from support import run_child

Loop = asyncio.AbstractEventLoop


def test_loops_in_several_threads(loop_factory: Callable[[], Loop]) -> None:
    from support import Echo, Recorder, pair

    results: list[int] = []

    async def exchange() -> None:
        async with pair(Recorder, Echo) as ends:
            for count in range(1, 200):
                ends.client.transport.write(b"x")
                await ends.client.bytes_received(count)
            results.append(len(ends.client.received))

    def work() -> None:
        loop = loop_factory()
        loop.run_until_complete(exchange())
        loop.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [199] * 6


def test_a_loop_made_in_one_thread_runs_in_another(loop: Loop) -> None:
    results: list[int] = []

    async def work() -> None:
        await asyncio.sleep(0.001)
        results.append(threading.get_ident())

    thread = threading.Thread(target=lambda: loop.run_until_complete(work()))
    thread.start()
    thread.join()
    assert results == [thread.ident]
    loop.run_until_complete(work())
    assert results[1:] == [threading.get_ident()]


@pytest.mark.ours("asyncio's transports work by luck from another thread")
def test_H11_use_from_another_thread_while_polling_is_refused(loop_name: str) -> None:
    """uv_close while uv_run runs corrupts memory: every entry but waking raises RuntimeError."""
    done = run_child(
        """
        async def main():
            async with pair() as ends:
                transport = ends.client.transport
                other = ends.server.transport
                await turns(5)
                main_thread = threading.main_thread().native_id
                outcomes = []

                def misuse():
                    until_blocked(os.getpid(), main_thread)
                    for name, call in (
                        ("pause_reading", transport.pause_reading),
                        ("write", lambda: transport.write(b"x")),
                        ("abort", other.abort),
                    ):
                        try:
                            call()
                        except RuntimeError:
                            outcomes.append(name + " refused")
                        else:
                            outcomes.append(name)
                    loop.call_soon_threadsafe(done.set_result, None)

                loop = asyncio.get_running_loop()
                done = loop.create_future()
                thread = threading.Thread(target=misuse)
                thread.start()
                await in_time(done)
                thread.join()
                print(outcomes)

        loop = new_child_loop()
        loop.set_exception_handler(lambda loop, context: None)
        loop.run_until_complete(main())
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert "pause_reading refused" in done.stdout and "abort refused" in done.stdout, done.stdout


def test_threadsafe_calls_to_a_loop_that_closes(loop_factory: Callable[[], Loop]) -> None:
    """A wake-up may come when the loop is gone: RuntimeError for the caller, no crash."""
    for _ in range(30):
        loop = loop_factory()
        started = threading.Event()

        def hammer(loop: Loop = loop, started: threading.Event = started) -> None:
            try:
                while True:
                    loop.call_soon_threadsafe(started.set)
            except RuntimeError:
                return

        thread = threading.Thread(target=hammer)
        thread.start()
        while not started.is_set():
            loop.call_soon(loop.stop)
            loop.run_forever()
        loop.close()
        thread.join()


def test_many_executor_jobs(loop: Loop) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(loop.run_in_executor(None, lambda i=i: i * 2) for i in range(500)))  # type: ignore[misc]

    assert loop.run_until_complete(main()) == [i * 2 for i in range(500)]


FORK = """
import ctypes
import warnings
warnings.simplefilter("ignore")  # 3.12 on: fork() in a process with threads

def child_work():
    async def exchange():
        async with pair(Recorder, Echo) as ends:
            ends.client.transport.write(b"child")
            assert await ends.client.bytes_received(5) == b"child"

    loop = new_child_loop()
    loop.run_until_complete(exchange())
    loop.close()

def wait_for(pid):
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "ctypes.CDLL(None).exit(0)"])
def test_need_29_fork_in_a_running_loop(loop_name: str, end: str) -> None:
    """The child makes a loop of its own and ends, with C's exit handlers or without; the parent does not notice."""
    done = run_child(
        FORK
        + f"""
async def main():
    async with pair(Recorder, Echo) as ends:
        ends.client.transport.write(b"before")
        await ends.client.bytes_received(6)
        pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)
            child_work()
            {end}
        await asyncio.to_thread(wait_for, pid)
        for count in range(7, 100):
            ends.client.transport.write(b"x")
            await ends.client.bytes_received(count)
    print("parent undisturbed")

loop = new_child_loop()
loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
""",
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "parent undisturbed\n", done.stderr


def test_H11_a_child_that_drops_the_parents_loop(loop_name: str) -> None:
    """Closing, or collecting, an inherited loop and its transports must not touch the shared epoll instance."""
    if loop_name == "asyncio":
        pytest.skip("asyncio's child does disturb its parent: unregistering reaches the shared epoll instance")
    done = run_child(
        FORK
        + """
import gc

async def main(holder):
    async with pair(Recorder, Echo) as ends:
        ends.client.transport.write(b"x")
        await ends.client.bytes_received(1)
        pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)
            ends.client.transport.abort()
            ends.server.transport.close()
            del ends
            holder.clear()
            gc.collect()
            os._exit(0)
        await asyncio.to_thread(wait_for, pid)
        for count in range(2, 100):
            ends.client.transport.write(b"x")
            await ends.client.bytes_received(count)
    print("parent undisturbed")

loop = new_child_loop()
loop.run_until_complete(main([loop]))
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
""",
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "parent undisturbed\n", done.stderr


def test_need_29_fork_of_an_idle_loop_that_the_child_uses(loop_name: str) -> None:
    """A loop made before the fork (pre-fork servers do that) works in the child, and in the parent."""
    if loop_name == "asyncio":
        pytest.skip("asyncio's processes share one epoll instance afterwards: undefined")
    done = run_child(
        FORK
        + """
async def exchange():
    async with pair(Recorder, Echo) as ends:
        ends.client.transport.write(b"hello")
        assert await ends.client.bytes_received(5) == b"hello"
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set_result, None)).start()
        await in_time(woken)

loop = new_child_loop()
loop.run_until_complete(exchange())
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        loop.run_until_complete(exchange())
        loop.close()
        os._exit(0)
    pids.append(pid)
for pid in pids:
    loop.run_until_complete(exchange())
    wait_for(pid)
loop.run_until_complete(exchange())
loop.close()
print("both")
""",
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both\n"


def test_H11_getaddrinfo_then_fork_then_exit(loop_name: str) -> None:
    """libuv's thread pool, once it has run, makes the child crash in C's exit(): so it never runs."""
    done = run_child(
        FORK
        + """
async def main():
    loop = asyncio.get_running_loop()
    await loop.getaddrinfo("localhost", 80)
    await loop.getnameinfo(("127.0.0.1", 80))
    pid = os.fork()
    if pid == 0:
        # The C library's exit alone: Python's own would wait for threads that do not exist here.
        ctypes.CDLL(None).exit(0)
    return pid

loop = new_child_loop()
wait_for(loop.run_until_complete(main()))
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("done")
""",
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def _in_subprocess(queue: multiprocessing.Queue[str], loop_name: str) -> None:
    os.environ["TEST_LOOP"] = loop_name
    from support import Echo, Recorder, new_child_loop, pair

    async def exchange() -> str:
        async with pair(Recorder, Echo) as ends:
            ends.client.transport.write(b"hello")
            received: bytes = await ends.client.bytes_received(5)
            return received.decode()

    loop = new_child_loop()
    queue.put(loop.run_until_complete(exchange()))
    loop.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_need_29_multiprocessing(loop_name: str, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform has no {method}")
    done = run_child(
        f"""
        import multiprocessing
        from test_threads_fork import _in_subprocess

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})

            async def main():
                queue = context.Queue()
                process = context.Process(target=_in_subprocess, args=(queue, os.environ["TEST_LOOP"]))
                process.start()
                print(await asyncio.to_thread(queue.get, timeout=HANG_S))
                await asyncio.to_thread(process.join)
                assert process.exitcode == 0

            loop = new_child_loop()
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\n"
