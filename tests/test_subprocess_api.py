"""The high-level interface to child processes: create_subprocess_exec and _shell, and `asyncio.subprocess.Process`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process, SubprocessStreamProtocol
from typing import Any

import pytest
from support import in_time

#: Reads lines, and answers each with its number and itself.
ANSWER = "import sys\nfor n, line in enumerate(sys.stdin): print(n, line, end='', flush=True)"


async def python(code: str, *arguments: str, **options: Any) -> Process:
    return await in_time(asyncio.create_subprocess_exec(sys.executable, "-c", code, *arguments, **options))


async def shell(command: str, **options: Any) -> Process:
    return await in_time(asyncio.create_subprocess_shell(command, **options))


async def communicated(process: Process, data: bytes | None = None) -> tuple[bytes | None, bytes | None]:
    """What communicate gives; None for what is no pipe, whatever typeshed says."""
    return await in_time(process.communicate(data))


async def test_wait_and_returncode() -> None:
    process = await python("raise SystemExit(7)")
    assert isinstance(process, Process) and process.pid > 0
    assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
    assert await in_time(process.wait()) == 7 == process.returncode
    # The result stays, for whoever comes late.
    assert list(await asyncio.gather(process.wait(), process.wait())) == [7, 7]


async def test_communicate() -> None:
    process = await python(
        "import sys; data = sys.stdin.read(); print(data.upper()); print('complaint', file=sys.stderr)",
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.returncode is None
    assert await communicated(process, b"some input") == (b"SOME INPUT\n", b"complaint\n")
    assert process.returncode == 0


async def test_communicate_without_input_or_pipes() -> None:
    process = await shell("echo out; echo err >&2", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    assert await communicated(process) == (b"out\n", None)
    process = await shell("exit 3")
    assert await communicated(process) == (None, None)
    assert process.returncode == 3


async def test_stderr_into_stdout() -> None:
    process = await shell("echo one; echo two >&2; echo three", stdout=PIPE, stderr=STDOUT)
    assert await communicated(process) == (b"one\ntwo\nthree\n", None)


async def test_a_megabyte_each_way_at_once() -> None:
    """A child that answers while it is still being written to: communicate must read and write at once."""
    data = os.urandom(1 << 20)
    process = await shell("exec cat", stdin=PIPE, stdout=PIPE)
    out, _ = await in_time(process.communicate(data))
    assert out == data and process.returncode == 0


async def test_a_conversation_over_streams() -> None:
    process = await python(ANSWER, stdin=PIPE, stdout=PIPE)
    assert isinstance(process.stdin, asyncio.StreamWriter) and isinstance(process.stdout, asyncio.StreamReader)
    for number in range(5):
        process.stdin.write(b"line\n")
        await process.stdin.drain()
        assert await in_time(process.stdout.readline()) == b"%d line\n" % number
    process.stdin.close()
    await in_time(process.stdin.wait_closed())
    assert await in_time(process.stdout.read()) == b""
    assert await in_time(process.wait()) == 0


async def test_reading_line_by_line() -> None:
    process = await shell("for i in 1 2 3; do echo line $i; done", stdout=PIPE)
    assert process.stdout is not None
    assert [line async for line in process.stdout] == [b"line 1\n", b"line 2\n", b"line 3\n"]
    assert await in_time(process.wait()) == 0


async def test_a_long_line_and_the_limit() -> None:
    process = await python("print('x' * 5000)", stdout=PIPE, limit=1000)
    assert process.stdout is not None
    with pytest.raises(ValueError, match=r"longer than limit|exceed"):
        await in_time(process.stdout.readline())
    await in_time(process.communicate())


@pytest.mark.parametrize(
    ("end", "signum"),
    [
        (Process.kill, signal.SIGKILL),
        (Process.terminate, signal.SIGTERM),
        (lambda process: process.send_signal(signal.SIGUSR1), signal.SIGUSR1),
    ],
    ids=["kill", "terminate", "send_signal"],
)
async def test_ends_by_a_signal(end: Any, signum: signal.Signals) -> None:
    process = await shell("echo ready; exec sleep 3600", stdout=PIPE)
    assert process.stdout is not None
    assert await in_time(process.stdout.readline()) == b"ready\n"
    end(process)
    assert await in_time(process.wait()) == -signum
    assert await in_time(process.stdout.read()) == b""
    for late in process.kill, process.terminate, lambda: process.send_signal(signal.SIGUSR1):
        with pytest.raises(ProcessLookupError):
            late()


async def test_wait_with_a_limit() -> None:
    process = await shell("exec sleep 3600")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.01)
    process.kill()
    assert await in_time(process.wait()) == -signal.SIGKILL


async def test_a_cancelled_communicate_can_be_followed_by_a_wait() -> None:
    process = await shell("echo ready; exec sleep 3600", stdout=PIPE)
    task = asyncio.create_task(process.communicate())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    process.kill()
    assert await in_time(process.wait()) == -signal.SIGKILL
    assert process.stdout is not None
    await in_time(process.stdout.read())


async def test_input_for_a_child_that_reads_nothing() -> None:
    """communicate swallows the broken pipe, as `subprocess` does."""
    process = await shell("exec true", stdin=PIPE)
    await in_time(process.communicate(bytes(1 << 20)))
    assert process.returncode == 0


async def test_no_such_program() -> None:
    create: Any = asyncio.create_subprocess_exec
    for options in {}, {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}:
        with pytest.raises(FileNotFoundError):
            await create("/nowhere/to/be/found", **options)


async def test_arguments() -> None:
    create: Any = asyncio.create_subprocess_exec
    for wrong in {"universal_newlines": True}, {"shell": True}, {"bufsize": 4096}, {"text": True}:
        with pytest.raises(ValueError, match="must be"):
            await create("true", **wrong)
    with pytest.raises(TypeError):
        await create("echo", 7)
    with pytest.raises(ValueError, match=r"cmd must be|shell must be"):
        await asyncio.create_subprocess_shell(["true"])  # type: ignore[arg-type]


async def test_popens_keywords() -> None:
    with tempfile.TemporaryDirectory() as folder:
        process = await python(
            "import os; print(os.getcwd(), os.environ['NAME'], os.getsid(0) == os.getpid())",
            stdout=PIPE,
            cwd=folder,
            env={**os.environ, "NAME": "value"},
            start_new_session=True,
        )
        out, _ = await in_time(process.communicate())
        assert out.decode().split() == [os.path.realpath(folder), "value", "True"]


async def test_files_and_descriptors_for_stdio() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"from a file")
        file.seek(0)
        process = await shell("exec cat", stdin=file, stdout=PIPE)
        assert await communicated(process) == (b"from a file", None)
    reading, writing = os.pipe()
    process = await shell("echo through a pipe", stdout=writing)
    os.close(writing)
    assert await in_time(process.wait()) == 0
    assert os.read(reading, 100) == b"through a pipe\n"
    os.close(reading)


async def test_extra_descriptors() -> None:
    reading, writing = os.pipe()
    process = await python(f"import os; os.write({writing}, b'hello')", pass_fds=[writing])
    os.close(writing)
    assert await in_time(process.wait()) == 0
    assert os.read(reading, 100) == b"hello"
    os.close(reading)


async def test_the_protocol_behind_the_streams() -> None:
    """What create_subprocess_exec makes a Process of; a program may do so itself."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_shell(
        lambda: SubprocessStreamProtocol(limit=1000, loop=loop), "read line; echo $line; echo complaint >&2"
    )
    assert protocol.stdin is not None and protocol.stdout is not None and protocol.stderr is not None
    process = Process(transport, protocol, loop)
    assert process.pid == transport.get_pid()
    protocol.stdin.write(b"hello\n")
    assert await in_time(protocol.stdout.readline()) == b"hello\n"
    assert await in_time(protocol.stderr.read()) == b"complaint\n"
    assert await in_time(process.wait()) == 0
    await in_time(process.communicate())


async def test_many_at_once() -> None:
    async def one(number: int) -> tuple[bytes, int | None]:
        process = await shell(f"read line; echo $line; exit {number}", stdin=PIPE, stdout=PIPE)
        out, _ = await in_time(process.communicate(b"%d\n" % number))
        return out, process.returncode

    assert await asyncio.gather(*map(one, range(30))) == [(b"%d\n" % number, number) for number in range(30)]


async def test_children_that_end_before_anybody_looks() -> None:
    processes = [await shell(f"exit {number}") for number in range(5)]
    last = await shell("exit 9")
    await in_time(last.wait())
    assert [await in_time(process.wait()) for process in processes] == [0, 1, 2, 3, 4]


async def test_a_pipeline_of_two() -> None:
    reading, writing = os.pipe()
    first = await shell("printf 'b\\na\\n'", stdout=writing)
    os.close(writing)
    second = await asyncio.create_subprocess_exec("sort", stdin=reading, stdout=PIPE)
    os.close(reading)
    assert await communicated(second) == (b"a\nb\n", None)
    assert await in_time(first.wait()) == 0
