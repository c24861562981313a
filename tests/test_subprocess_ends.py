"""Children beside signal handlers, forks, and loops that end before them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
from support import FACTORIES, collect, in_time, is_ours, open_descriptors, run_child, turns, until

pytestmark = pytest.mark.both_roads


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Neither a running child nor a zombie."""
    yield
    collect()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def popen_of(process: Any) -> Any:
    return process._transport.get_extra_info("subprocess")


# -- the loop ends first


@pytest.mark.ours("asyncio leaves the pidfd open")
def test_a_child_outlives_its_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    before = open_descriptors()
    read, write = os.pipe()
    loop = loop_factory()
    process: Any = loop.run_until_complete(asyncio.create_subprocess_exec("cat", stdin=read, stdout=DEVNULL))
    loop.close()
    os.close(read)
    assert open_descriptors().keys() - before.keys() == {write}
    popen = popen_of(process)
    assert popen.poll() is None
    os.close(write)
    assert popen.wait() == 0
    process._transport.close()
    assert popen_of(process).returncode == 0


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="when PyPy collects, and warns, nobody knows")
@pytest.mark.ours("asyncio before 3.14 raises in __del__, and leaves the child alone")
@pytest.mark.parametrize("stdin", [PIPE, DEVNULL], ids=["pipe", "devnull"])
def test_a_forgotten_child_is_killed(loop_factory: Callable[[], asyncio.AbstractEventLoop], stdin: int) -> None:
    loop = loop_factory()
    process: Any = loop.run_until_complete(
        asyncio.create_subprocess_exec("sleep", "60", stdin=stdin, stdout=PIPE if stdin == PIPE else DEVNULL)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        popen = popen_of(process)
        transport = weakref.ref(process._transport)
        del process
        collect()
        assert transport() is None
    assert "unclosed transport <" in "".join(str(warning.message) for warning in caught)
    assert {warning.category for warning in caught} == {ResourceWarning}
    assert popen.wait() == -signal.SIGKILL


@pytest.mark.ours("looks at what only velociloop promises")
def test_a_status_seen_before_the_loop_closes_leaves_no_zombie(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    loop = loop_factory()
    process: Any = loop.run_until_complete(asyncio.create_subprocess_exec("cat", stdin=PIPE))
    popen = popen_of(process)
    popen.kill()
    assert popen.wait() == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop.close()
        del process
        collect()
    with pytest.raises(ChildProcessError):
        os.waitpid(popen.pid, os.WNOHANG)


@pytest.mark.ours("replaces velociloop's pidfd_open")
def test_the_loop_closes_under_a_waiting_thread(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(pid: int) -> int:
        raise OSError("none here")

    loop = loop_factory()
    monkeypatch.setenv("VELOCILOOP_SPAWN", "popen")
    monkeypatch.setattr("velociloop.transports.process.pidfd_open", refuse)
    read, write = os.pipe()
    process: Any = loop.run_until_complete(asyncio.create_subprocess_exec("cat", stdin=read, stdout=DEVNULL))
    os.close(read)
    loop.close()
    (thread,) = (thread for thread in threading.enumerate() if thread.name.startswith("velociloop-wait"))
    with caplog.at_level(logging.WARNING, "asyncio"):
        os.close(write)
        thread.join()
    assert f"that handles pid {process.pid} is closed" in caplog.text
    assert popen_of(process).returncode == 0
    process._transport.close()


# -- SIGCHLD


async def test_need_25_sigchld_handler_of_the_loop() -> None:
    loop: Any = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_signal_handler(signal.SIGCHLD, seen.set)
    try:
        for status in range(3):
            seen.clear()
            process: Any = await asyncio.create_subprocess_shell(f"exit {status}", stdin=PIPE, stdout=PIPE)
            await in_time(process.communicate(b""))
            assert process.returncode == status
            await in_time(seen.wait())
            seen.clear()
            await asyncio.to_thread(subprocess.run, ["true"])
            await in_time(seen.wait())
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)


async def test_need_25_sigchld_handler_of_python() -> None:
    seen = []
    previous = signal.signal(signal.SIGCHLD, lambda *_: seen.append(True))
    try:
        process: Any = await asyncio.create_subprocess_shell("exit 3")
        assert await in_time(process.wait()) == 3
        await until(lambda: seen)
        assert signal.getsignal(signal.SIGCHLD) is not previous
    finally:
        signal.signal(signal.SIGCHLD, previous)


async def test_children_that_nobody_keeps(caplog: pytest.LogCaptureFixture) -> None:
    """SIGCHLD ignored: the kernel reaps, and the status is lost."""
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process: Any = await asyncio.create_subprocess_shell("read line; exit 3", stdin=PIPE)
        await in_time(process.communicate(b""))
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert process.returncode == 255
    assert str(process.pid) in caplog.text


@pytest.mark.ours("what libuv leaves behind")
async def test_H9_sigchld_is_as_before_when_no_child_is_left() -> None:
    process: Any = await asyncio.create_subprocess_exec("true")
    await in_time(process.wait())
    with open("/proc/self/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    assert not caught & 1 << (signal.SIGCHLD - 1)


# -- fork

FORKED = """
    async def main():
        before = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE)
        report, write = os.pipe()
        if not (child := os.fork()):
            # A loop of its own, with a child of its own; its parent's child stays what it is.
            async def own():
                process: Any = await asyncio.create_subprocess_shell("exit 5", stdin=subprocess.PIPE)
                return await process.wait()
            asyncio.events._set_running_loop(None)
            loop = new_child_loop()
            answer = [loop.run_until_complete(own())]
            loop.close()
            # Nor does closing the inherited transport kill it.
            answer.append(popen_of(before).poll())
            os.write(write, repr(answer).encode())
            os._exit(0)
        os.close(write)
        print(await asyncio.to_thread(os.read, report, 1000))
        os.close(report)
        print(os.waitpid(child, 0)[1])
        print(popen_of(before).poll())
        await before.communicate(b"")
        print(before.returncode)
    import subprocess
    def popen_of(process):
        return process._transport.get_extra_info("subprocess")
    the_loop = new_child_loop()
    the_loop.run_until_complete(main())
    the_loop.close()
"""
ADOPTED = """
    import subprocess, warnings
    async def start():
        return await asyncio.create_subprocess_exec("cat", stdin=read)
    async def own():
        process: Any = await asyncio.create_subprocess_shell("exit 5")
        return await process.wait()
    read, write = os.pipe()
    loop = new_child_loop()
    process: Any = loop.run_until_complete(start())
    os.close(read)
    popen = process._transport.get_extra_info("subprocess")
    if not (child := os.fork()):
        warnings.simplefilter("ignore")
        print(loop.run_until_complete(own()), loop.statistics().handles, popen.poll())
        process._transport.close()  # does not kill a sibling
        loop.close()
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    print(popen.poll())
    os.close(write)
    print(loop.run_until_complete(process.wait()))
    loop.close()
"""


@pytest.mark.parametrize("road", ["popen", "uv"])
def test_H11_need_29_forked_children(loop_name: str, road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loop_name == "asyncio" and (road == "uv" or sys.version_info < (3, 12)):
        pytest.skip("asyncio has one road, and before 3.12 a child watcher that knows the parent's loop only")
    monkeypatch.setenv("VELOCILOOP_SPAWN", road)
    done = run_child(FORKED, loop_name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["b'[5, 0]'", "0", "None", "0"]


@pytest.mark.ours("asyncio's forked child takes the parent's loop apart")
@pytest.mark.parametrize("road", ["popen", "uv"])
def test_H11_an_inherited_loop_does_not_watch_the_parents_children(
    loop_name: str, road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELOCILOOP_SPAWN", road)
    done = run_child(ADOPTED, loop_name)
    assert (done.returncode, done.stderr) == (0, "")
    # Popen says 0 of what is no child of the asking process.
    assert done.stdout.splitlines() == ["5 0 0", "0", "None", "0"]


async def test_need_29_children_that_use_a_loop_themselves() -> None:
    program = "import asyncio, subprocess; print(asyncio.run(asyncio.to_thread(subprocess.getoutput, 'echo hello')))"
    process: Any = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=PIPE)
    out, _ = await in_time(process.communicate())
    assert (out, process.returncode) == (b"hello\n", 0)


# -- other threads, other loops


async def test_a_loop_in_another_thread_has_children() -> None:
    name = "velociloop" if is_ours() else "asyncio"
    if name == "asyncio" and sys.version_info < (3, 12):
        pytest.skip("what asyncio's child watcher does in threads depends on the version")

    async def there() -> Any:
        process: Any = await asyncio.create_subprocess_shell("cat >&2; exit 3", stdin=PIPE, stderr=PIPE)
        await process.communicate(b"x")
        assert process.returncode is not None
        return process.returncode

    def run() -> Any:
        loop = FACTORIES[name]()
        with contextlib.closing(loop):
            return loop.run_until_complete(there())

    codes: Any = await in_time(asyncio.gather(asyncio.to_thread(run), asyncio.to_thread(run), there()))
    assert codes == [3, 3, 3]


@pytest.mark.ours("a task factory that fails leaves asyncio's child running")
async def test_a_task_factory_that_fails() -> None:
    loop: Any = asyncio.get_running_loop()

    def refuse(*_: Any, **__: Any) -> Any:
        _[1].close()
        raise ZeroDivisionError

    before = loop.get_task_factory()
    loop.set_task_factory(refuse)
    try:
        with pytest.raises(ZeroDivisionError):
            await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    finally:
        loop.set_task_factory(before)
    await until(lambda: loop.statistics().handles == 0)
    await turns()
