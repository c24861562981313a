"""Child processes, on both of velociloop's roads to them and on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import pytest
from support import HANG_S, HandlerCalls, in_time, is_ours, open_descriptors, resident_bytes, turns, until

pytestmark = pytest.mark.both_roads
MEBIBYTE = 1 << 20


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Neither a running child nor a zombie."""
    yield
    gc.collect()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def by_uv() -> bool:
    return is_ours() and os.environ.get("VELOCILOOP_SPAWN") == "uv"


def popen_of(process: Any) -> Any:
    return process._transport.get_extra_info("subprocess")


def until_ended(pid: int) -> None:
    """Block until child `pid` has ended; we do not reap it."""
    from velociloop.uv.core import child_returncode  # PyPy has no os.waitid

    with contextlib.suppress(ChildProcessError):  # asyncio's thread has reaped it (before 3.12)
        child_returncode(pid, wait=True)


@contextlib.asynccontextmanager
async def held(status: int, **keywords: Any) -> AsyncIterator[tuple[Any, Callable[[], None]]]:
    """A child that lives until the function is called, which returns when it has ended, not reaped yet."""
    read, write = os.pipe()
    process: Any = await asyncio.create_subprocess_shell(f"read line; echo out; exit {status}", stdin=read, **keywords)
    os.close(read)
    ends = [write]

    def release() -> None:
        os.close(ends.pop())
        until_ended(process.pid)

    try:
        yield process, release
    finally:
        for fd in ends:
            os.close(fd)


class Child(asyncio.SubprocessProtocol):
    """Writes down its callbacks."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        assert type(data) is bytes
        self.received[fd] += data

    def pipe_connection_lost(self, fd: int, exc: BaseException | None) -> None:
        self.events.append(f"pipe {fd} lost")

    def process_exited(self) -> None:
        self.events.append("exited")
        self.exited.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)


async def test_a_mebibyte_each_way() -> None:
    data = bytes(range(256)) * (MEBIBYTE // 256)
    process: Any = await asyncio.create_subprocess_shell("tee /dev/stderr", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    out, err = await in_time(process.communicate(data))
    assert (out, err, process.returncode) == (data, data, 0)


async def test_protocol_is_called_in_order() -> None:
    loop: Any = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(Child, "cat")
    assert transport.get_returncode() is None
    assert transport.get_protocol() is protocol
    assert issubclass(type(transport), asyncio.SubprocessTransport)
    transport.get_pipe_transport(0).write(b"hello")
    await until(lambda: protocol.received[1])
    transport.get_pipe_transport(0).close()
    assert await in_time(protocol.lost) is None
    assert protocol.received == {1: b"hello", 2: b""}
    assert protocol.events[0] == "made"
    assert protocol.events[-1] == "lost"
    assert sorted(protocol.events[1:-1]) == ["exited", "pipe 0 lost", "pipe 1 lost", "pipe 2 lost"]
    assert transport.get_returncode() == 0
    transport.close()


async def test_stdio_may_be_devnull_or_stdout() -> None:
    process: Any = await asyncio.create_subprocess_shell(
        "cat; echo out; echo err >&2", stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    assert await in_time(process.communicate()) == (b"out\nerr\n", None)
    process = await asyncio.create_subprocess_shell("echo out; echo err >&2", stdout=DEVNULL, stderr=PIPE)
    assert await in_time(process.communicate()) == (None, b"err\n")


@pytest.mark.parametrize("kind", ["descriptor", "file"])
async def test_stdio_may_be_a_descriptor_or_a_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"text")
    with (
        open(tmp_path / "in", "rb") as source,
        open(tmp_path / "out", "wb") as out,
        open(tmp_path / "err", "wb") as err,
    ):
        files: list[Any] = [source, out, err]
        given = [file.fileno() for file in files] if kind == "descriptor" else files
        process: Any = await asyncio.create_subprocess_shell(
            "cat; echo oops >&2", stdin=given[0], stdout=given[1], stderr=given[2]
        )
        assert process.stdin is process.stdout is process.stderr is None
        assert await in_time(process.wait()) == 0
        assert not any(file.closed for file in files)
    assert (tmp_path / "out").read_bytes() == b"text"
    assert (tmp_path / "err").read_bytes() == b"oops\n"


async def test_stdio_may_be_swapped() -> None:
    """What becomes the child's 1 and 2 may itself be numbered 2 and 1."""
    loop: Any = asyncio.get_running_loop()
    saved = os.dup(1), os.dup(2)
    ends = [os.pipe(), os.pipe()]
    try:
        os.dup2(ends[0][1], 1)
        os.dup2(ends[1][1], 2)
        transport, protocol = await loop.subprocess_shell(
            Child, "echo out; echo err >&2", stdin=None, stdout=2, stderr=1
        )
        await in_time(protocol.lost)
    finally:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for fd in (*saved, ends[0][1], ends[1][1]):
            os.close(fd)
    transport.close()
    assert [os.read(read, 100) for read, _ in ends] == [b"err\n", b"out\n"]
    for read, _ in ends:
        os.close(read)


@pytest.mark.parametrize("status", [0, 1, 127, 255])
async def test_exit_status(status: int) -> None:
    process: Any = await asyncio.create_subprocess_shell(f"exit {status}")
    assert await in_time(process.wait()) == status
    assert process.returncode == status


async def test_signals() -> None:
    for method, arguments, number in (
        ("terminate", (), signal.SIGTERM),
        ("kill", (), signal.SIGKILL),
        ("send_signal", (signal.SIGHUP,), signal.SIGHUP),
    ):
        process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        getattr(process, method)(*arguments)
        assert await in_time(process.wait()) == -number
        process._transport.close()
    transport: Any = process._transport
    await until(lambda: transport._proc is None)  # connection_lost() was called
    with pytest.raises(ProcessLookupError):
        process.kill()


async def test_a_stopped_child_has_not_ended() -> None:
    process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    process.send_signal(signal.SIGSTOP)
    popen = popen_of(process)
    await turns()
    assert popen.poll() is None
    process.send_signal(signal.SIGCONT)
    assert (await in_time(process.communicate(b"x")))[0] == b"x"
    assert process.returncode == 0


async def test_extra_info() -> None:
    loop: Any = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(Child, "sh", "-c", "read line; exit 3", stdout=None)
    popen = transport.get_extra_info("subprocess")
    assert isinstance(popen, subprocess.Popen)
    assert popen.pid == transport.get_pid()
    assert popen.args == ("sh", "-c", "read line; exit 3")
    assert popen.returncode is popen.poll() is None
    assert popen.stdin is not None
    assert popen.stdout is None
    with pytest.raises(subprocess.TimeoutExpired):
        popen.wait(0)
    transport.get_pipe_transport(0).write(b"\n")
    await in_time(protocol.exited)
    assert [popen.returncode, popen.poll(), popen.wait()] == [3, 3, 3]
    await in_time(protocol.lost)
    transport.close()


async def test_a_child_that_has_ended_before_we_look() -> None:
    async with held(7, stdout=PIPE) as (process, release):
        release()
        out, _ = await in_time(process.communicate())
    assert (out, process.returncode) == (b"out\n", 7)


@pytest.mark.ours("asyncio reports 255: it knows only what it has reaped itself")
async def test_the_user_may_ask_popen_first() -> None:
    for ask in ("poll", "wait"):
        async with held(7, stdout=DEVNULL) as (process, release):
            release()
            assert getattr(popen_of(process), ask)() == 7
            assert await in_time(process.wait()) == 7


@pytest.mark.ours("asyncio reports 255: it knows only what it has reaped itself")
async def test_H9_popen_may_be_waited_for_in_a_thread() -> None:
    process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    popen = popen_of(process)
    waiting = threading.Event()

    def wait() -> int:
        waiting.set()
        return popen.wait()  # type: ignore[no-any-return]

    code = asyncio.create_task(asyncio.to_thread(wait))
    await until(waiting.is_set)
    assert process.stdin is not None
    process.send_signal(signal.SIGTERM)
    assert await in_time(process.wait()) == -signal.SIGTERM
    assert await in_time(code) == -signal.SIGTERM
    process._transport.close()


async def test_shell_and_exec_refuse_what_asyncio_refuses() -> None:
    loop: Any = asyncio.get_running_loop()
    for keywords in (
        {"universal_newlines": True},
        {"bufsize": 1},
        {"text": True},
        {"encoding": "utf-8"},
        {"errors": "strict"},
    ):
        for start in (loop.subprocess_exec, loop.subprocess_shell):
            with pytest.raises(ValueError, match="must be"):
                await start(Child, "true", **keywords)
    with pytest.raises(ValueError, match="cmd must be a string"):
        await loop.subprocess_shell(Child, ["true"])
    for keywords in ({"no_such_keyword": 1}, {"by_uv": True}):
        with pytest.raises(TypeError):
            await loop.subprocess_exec(Child, "true", **keywords)


@pytest.mark.parametrize("folder", [None, "folder", "missing", "file"])
@pytest.mark.parametrize("program", ["true", "missing", "./missing", "./folder", "./file"])
async def test_what_cannot_start_raises_as_popen(program: str, folder: str | None, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no program")
    given = str(tmp_path / program) if program.startswith(".") else program
    cwd = None if folder is None else str(tmp_path / folder)
    expected: Any = None
    try:
        subprocess.run([given], cwd=cwd, check=True)
    except OSError as error:
        expected = error
    try:
        process: Any = await asyncio.create_subprocess_exec(given, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=cwd)
    except OSError as error:
        assert expected is not None
        found = type(error), error.errno, error.filename
        assert found == (type(expected), expected.errno, expected.filename)
    else:
        assert expected is None
        await in_time(process.communicate(b""))


@pytest.mark.parametrize(
    ("arguments", "keywords", "exception"),
    [
        (("a\0b",), {}, ValueError),
        (("true", "a\0b"), {}, ValueError),
        (("true", 1), {}, TypeError),
        ((b"tr\0ue",), {"env": {}}, ValueError),
        (("true",), {"env": {"A=": "b"}}, ValueError),
        (("true",), {"env": {"A": "b\0"}}, ValueError),
        (("true",), {"cwd": "a\0"}, ValueError),
        (("true",), {"env": [("A", "b")]}, AttributeError),
        (("true",), {"stdin": 9999}, OSError),
        (("true",), {"stdin": "file"}, AttributeError),
        (("true",), {"stdin": -7}, (OSError, ValueError)),
    ],
)
async def test_bad_arguments(arguments: Any, keywords: dict[str, Any], exception: Any) -> None:
    with pytest.raises(exception):
        await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, **keywords)


async def test_many_at_once() -> None:
    async def echo(number: int) -> None:
        text = f"{number}".encode()
        process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        out, _ = await process.communicate(text)
        assert (out, process.returncode) == (text, 0)

    await in_time(asyncio.gather(*map(echo, range(50))))


@pytest.mark.ours("counts velociloop's handles")
async def test_a_thousand_one_after_another() -> None:
    loop: Any = asyncio.get_running_loop()
    statuses = []

    async def one(status: int) -> None:
        process: Any = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}", stdin=PIPE, stdout=PIPE)
        await process.communicate(b"")
        statuses.append(process.returncode)

    for _ in range(100):
        await in_time(one(0))
    gc.collect()
    before = open_descriptors().keys(), loop.statistics().handles, threading.active_count()
    memory = resident_bytes()
    # PyPy's Popen takes 20 times as long.
    count = 1000 if sys.implementation.name == "cpython" else 200
    for number in range(count):
        await in_time(one(number % 256))
    gc.collect()
    assert statuses[100:] == [number % 256 for number in range(count)]
    assert (open_descriptors().keys(), loop.statistics().handles, threading.active_count()) == before
    if sys.implementation.name == "cpython":
        assert resident_bytes() - memory < 4 * MEBIBYTE


async def test_need_13_dev_stdin_is_a_pipe() -> None:
    for command in ("cat /dev/stdin", "cat /proc/self/fd/0"):
        process: Any = await asyncio.create_subprocess_shell(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert await in_time(process.communicate(b"hello")) == (b"hello", b"")
    process = await asyncio.create_subprocess_shell(
        "test -p /dev/stdin && test -p /dev/stdout", stdin=PIPE, stdout=PIPE
    )
    await in_time(process.communicate(b""))
    assert process.returncode == 0


async def test_need_26_writing_to_a_child_that_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    process: Any = await asyncio.create_subprocess_exec("true", stdin=PIPE)
    assert process.stdin is not None
    await in_time(process.wait())
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            process.stdin.write(b"x" * MEBIBYTE)
            await in_time(process.stdin.drain())
    with caplog.at_level(logging.WARNING, "asyncio"):
        for _ in range(10):
            process.stdin.write(b"x")
    assert any("pipe closed by peer or os.write(pipe, data) raised exception" in text for text in caplog.messages)
    # communicate() says nothing of it.
    process = await asyncio.create_subprocess_exec("true", stdin=PIPE)
    await in_time(process.communicate(b"x" * MEBIBYTE))


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("count", range(12))
async def test_cancelled_at_every_await(count: int, again: bool) -> None:
    loop: Any = asyncio.get_running_loop()
    task = asyncio.create_task(
        # The grandchild keeps the pipes open.
        asyncio.create_subprocess_shell("sleep 60 & echo $!; wait", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        if is_ours()
        else asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    )
    await turns(count)
    if not task.cancel():
        process: Any = task.result()
        if is_ours():
            os.kill(int(await in_time(process.stdout.readline())), signal.SIGKILL)
        process.kill()
        await in_time(process.communicate(b""))
        return
    if again and is_ours():  # asyncio before 3.14 then leaves pipes
        await turns(1)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(task)
    if is_ours():
        await until(lambda: loop.statistics().handles == 0)


async def test_out_of_descriptors_on_the_way() -> None:
    resource = pytest.importorskip("resource")
    loop: Any = asyncio.get_running_loop()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    started = 0
    for free in range(14):
        taken = [os.open(os.devnull, os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 64, limits[1]))
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for _ in range(free):
            os.close(taken.pop())
        failed = None
        try:
            process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        except OSError as error:
            failed = error.errno
        else:
            started += 1
            assert await in_time(process.communicate(b"x")) == (b"x", b"")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
        assert failed in {None, errno.EMFILE}
        if not is_ours():
            return  # asyncio leaves a child behind where it gets no pidfd
        await until(lambda: loop.statistics().handles == 0)
        assert open_descriptors() == before, free
    assert started


async def test_H9_a_status_that_somebody_else_has_read(caplog: pytest.LogCaptureFixture) -> None:
    if by_uv():
        pytest.skip("libuv reports a child that somebody else has reaped to nobody (docs/differences.md)")
    # asyncio's own watch is by pidfd from 3.12 on, where Python can open one.
    if not is_ours() and not (hasattr(os, "pidfd_open") and hasattr(asyncio.unix_events, "can_use_pidfd")):
        pytest.skip("a thread of asyncio's may reap the child before the test does")
    async with held(7, stdout=DEVNULL) as (process, release):
        release()
        os.waitpid(process.pid, 0)
        assert await in_time(process.wait()) == 255
    assert [str(process.pid) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.ours("looks at velociloop's handles and polls")
async def test_H9_the_watch_ends_with_the_reap(handler_calls: HandlerCalls) -> None:
    """A pidfd stays readable: a watch that stayed would make every poll return at once."""
    loop: Any = asyncio.get_running_loop()
    process: Any = await asyncio.create_subprocess_exec("true")
    await in_time(process.wait())
    assert loop.statistics().handles == 0
    before = loop.statistics().polls
    await asyncio.sleep(0.05)
    assert loop.statistics().polls - before < 20


REFUSED = [errno.ENOSYS, errno.EMFILE, errno.EPERM, errno.ESRCH]


@pytest.mark.ours("replaces velociloop's waitid")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get)
async def test_H9_without_waitid_popen_is_asked(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 5.3 has pidfds but no P_PIDFD (EINVAL); a sandbox may have no waitid at all."""

    def refuse(*args: Any, **kwargs: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("VELOCILOOP_SPAWN", "popen")
    monkeypatch.setattr("velociloop.transports.process.child_returncode", refuse)
    process: Any = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    assert await in_time(process.wait()) == 3
    monkeypatch.setattr("velociloop.transports.process.pidfd_open", refuse)
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 4")
    assert await in_time(process.wait()) == 4
    await until(lambda: threading.active_count() == 1)


@pytest.mark.ours("has Popen fail, which asyncio's watcher does not ask")
async def test_H9_a_failed_reaping_leaves_no_descriptor(
    handler_calls: HandlerCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELOCILOOP_SPAWN", "popen")
    before = open_descriptors()
    async with held(7, stdout=DEVNULL) as (process, release):
        popen = popen_of(process)

        def poll() -> int:
            raise OSError("unexpected")

        popen.poll = poll
        release()
        await until(lambda: len(handler_calls) > 0)
        del popen.poll
        assert popen.wait() == 7
        process._transport._process_exited(7)
        assert await in_time(process.wait()) == 7
    assert str(handler_calls.take()["exception"]) == "unexpected"
    assert open_descriptors() == before


@pytest.mark.ours("takes Popen's lock, which asyncio's watcher does not ask for")
async def test_H9_another_thread_is_about_to_reap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Popen.wait() in a thread has the lock, the child has ended, and the thread has not come to waitpid(2) yet."""
    monkeypatch.setenv("VELOCILOOP_SPAWN", "popen")
    async with held(7, stdout=DEVNULL) as (process, release):
        popen = popen_of(process)
        locked, ended = threading.Event(), threading.Event()

        def wait() -> None:
            with popen._waitpid_lock:
                locked.set()
                assert ended.wait(HANG_S)
                time.sleep(0.05)  # the loop looks meanwhile; however long it takes to, the result is the same
                popen.returncode = os.waitstatus_to_exitcode(os.waitpid(popen.pid, 0)[1])

        thread = threading.Thread(target=wait)
        thread.start()
        await asyncio.to_thread(locked.wait)
        release()
        ended.set()
        assert await in_time(process.wait()) == 7
        thread.join()


@pytest.mark.ours("puts its own lock into Popen")
async def test_H9_a_status_that_another_thread_is_about_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Popen.wait() in a thread has reaped the child, and says so while it holds the lock."""
    monkeypatch.setenv("VELOCILOOP_SPAWN", "popen")
    process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    popen = popen_of(process)

    class Held:
        def __enter__(self) -> None:
            popen.returncode = os.waitstatus_to_exitcode(status)

        def __exit__(self, *_: object) -> None:
            pass

    os.kill(process.pid, signal.SIGKILL)
    _, status = os.waitpid(process.pid, 0)
    popen._waitpid_lock = Held()
    assert await in_time(process.wait()) == -signal.SIGKILL
    process._transport.close()


@pytest.mark.ours("replaces velociloop's pidfd_open")
@pytest.mark.parametrize("number", REFUSED, ids=lambda number: errno.errorcode[number])
async def test_H9_without_pidfd_a_thread_waits(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("velociloop.transports.process.pidfd_open", refuse)
    process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    names = [thread.name for thread in threading.enumerate()]
    assert (f"velociloop-wait-{process.pid}" in names) is not by_uv()
    assert await in_time(process.communicate(b"x")) == (b"x", None)
    assert process.returncode == 0
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    assert await in_time(process.wait()) == 3
    await until(lambda: threading.active_count() == 1)


@pytest.mark.ours("replaces velociloop's pidfd_open and its thread")
async def test_neither_pidfd_nor_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setenv("VELOCILOOP_SPAWN", "popen")
    monkeypatch.setattr("velociloop.transports.process.pidfd_open", refuse)
    monkeypatch.setattr("velociloop.transports.process.threading.Thread", refuse)
    with pytest.raises(OSError, match="none left"):
        await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)


@pytest.mark.ours("the name of the variable is velociloop's")
async def test_the_road_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELOCILOOP_SPAWN", "fork")
    with pytest.raises(ValueError, match="VELOCILOOP_SPAWN must be one of popen, uv, not 'fork'"):
        await asyncio.create_subprocess_exec("true")
    monkeypatch.setenv("VELOCILOOP_SPAWN", "")
    assert await (await asyncio.create_subprocess_exec("true")).wait() == 0
