"""Every keyword of ``subprocess.Popen``, on both roads and on asyncio: the child is as ``Popen`` makes it."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from support import in_time, is_ours

pytestmark = pytest.mark.both_roads

#: What asyncio itself decides on.
ASYNCIOS = {"args", "bufsize", "shell", "stdin", "stdout", "stderr", "encoding", "errors", "text", "universal_newlines"}


class Row:
    """Keywords, what the child's shell prints to show them, and whether libuv can start such a child."""

    def __init__(
        self, keywords: dict[str, Any], command: str, expected: str | Callable[[], str], *, by_uv: bool = False
    ) -> None:
        self.keywords, self.command, self.expected, self.by_uv = keywords, command, expected, by_uv


ROOT = os.geteuid() == 0 if hasattr(os, "geteuid") else False

LEADS_SESSION = "test $(cut -d' ' -f 6 /proc/$$/stat) -eq $$ && echo leader"

ROWS = [
    Row({"cwd": "/"}, "pwd", "/", by_uv=True),
    Row({"cwd": Path("/")}, "pwd", "/", by_uv=True),
    Row({"env": {"A": "b", "PATH": "/usr/bin:/bin"}}, "echo $A $HOME", "b", by_uv=True),
    Row({"env": {b"A": b"\xff", "PATH": "/usr/bin:/bin"}}, "printf %s $A | od -An -tx1", "ff", by_uv=True),
    Row({"start_new_session": True}, LEADS_SESSION, "leader", by_uv=True),
    Row({"executable": "/bin/sh"}, "echo $0", "/bin/sh", by_uv=True),
    Row({"preexec_fn": os.setsid}, LEADS_SESSION, "leader"),
    Row({"close_fds": True}, "test -e /proc/self/fd/{inheritable} || echo closed", "closed", by_uv=True),
    Row({}, "test -e /proc/self/fd/{inheritable} || echo closed", "closed", by_uv=True),
    Row({"close_fds": False}, "test -e /proc/self/fd/{inheritable} && echo open", "open"),
    Row({"pass_fds": "inheritable"}, "test -e /proc/self/fd/{inheritable} && echo open", "open"),
    # Python ignores SIGPIPE.
    Row({"restore_signals": True}, "kill -PIPE $$; echo alive", "", by_uv=True),
    Row({"restore_signals": False}, "kill -PIPE $$; echo alive", "alive"),
    Row({"umask": 0o27}, "umask", "0027"),
    Row({"umask": -1}, "umask", lambda: f"{current_umask():04o}", by_uv=True),
    Row({"process_group": 0}, "test $(cut -d' ' -f 5 /proc/$$/stat) -eq $$ && echo leader", "leader"),
    Row({"process_group": None}, "cut -d' ' -f 5 /proc/$$/stat", lambda: str(os.getpgrp()), by_uv=True),
    Row({"pipesize": -1}, "echo ok", "ok", by_uv=True),
    Row({"startupinfo": None, "creationflags": 0}, "echo ok", "ok", by_uv=True),
    Row({"user": None, "group": None, "extra_groups": None}, "id -u", lambda: str(os.geteuid()), by_uv=True),
]
AS_ROOT = [
    Row({"user": 65534}, "id -u", "65534"),
    Row({"user": "nobody"}, "id -un", "nobody"),
    Row({"group": 65534}, "id -g", "65534"),
    Row({"extra_groups": [1, 2]}, "id -G", "0 1 2"),
]


def current_umask() -> int:
    found = re.search(r"^Umask:\s*(\d+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1], 8)


def name_of(row: Row) -> str:
    return ",".join(row.keywords) or "none"


async def show(row: Row) -> None:
    read, inheritable = os.pipe()
    os.set_inheritable(inheritable, True)
    try:
        keywords: dict[str, Any] = {
            name: (inheritable,) if value == "inheritable" else value for name, value in row.keywords.items()
        }
        command = row.command.replace("{inheritable}", str(inheritable))
        process: Any = await asyncio.create_subprocess_shell(command, stdout=PIPE, **keywords)
        out, _ = await in_time(process.communicate())
        expected = row.expected if isinstance(row.expected, str) else row.expected()
        assert out.decode().strip() == expected.strip()
        if is_ours():
            by_uv = os.environ.get("VELOCILOOP_SPAWN") == "uv" and row.by_uv
            popen = process._transport.get_extra_info("subprocess")
            assert getattr(popen, "by_uv", False) is by_uv
    finally:
        os.close(read)
        os.close(inheritable)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
async def test_need_14_every_popen_keyword(row: Row) -> None:
    await show(row)


@pytest.mark.skipif(not ROOT, reason="only root may become somebody else")
@pytest.mark.parametrize("row", AS_ROOT, ids=name_of)
async def test_need_14_keywords_for_root(row: Row) -> None:
    await show(row)


def test_every_keyword_has_its_row() -> None:
    shown = {name for row in [*ROWS, *AS_ROOT] for name in row.keywords}
    assert set(inspect.signature(subprocess.Popen).parameters) - ASYNCIOS == shown


@pytest.mark.skipif(not hasattr(__import__("fcntl"), "F_GETPIPE_SZ"), reason="only Linux tells a pipe's size")
async def test_pipesize() -> None:
    import fcntl

    process: Any = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, pipesize=16384)
    for fd in (0, 1):
        pipe = process._transport.get_pipe_transport(fd).get_extra_info("pipe")
        assert fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) == 16384
    await in_time(process.communicate(b""))


@pytest.mark.parametrize(
    ("keywords", "exception"),
    [
        ({"startupinfo": object()}, ValueError),
        ({"creationflags": 1}, ValueError),
        ({"user": "no such user"}, KeyError),
        ({"user": -1}, ValueError),
        ({"group": "no such group"}, KeyError),
        ({"pass_fds": (-1,)}, ValueError),
        ({"pipesize": "large"}, TypeError),
        ({"umask": "022"}, TypeError),
        ({"env": 1}, AttributeError),
        ({"cwd": 1}, (TypeError, OSError)),
        ({"preexec_fn": lambda: 1 / 0}, subprocess.SubprocessError),
    ],
)
async def test_bad_values(keywords: dict[str, Any], exception: Any) -> None:
    with pytest.raises(exception):
        await asyncio.create_subprocess_exec("true", stdin=PIPE, stdout=PIPE, **keywords)


async def test_descriptors_of_the_loop_are_not_inherited() -> None:
    program = "import json, os; print(json.dumps(os.listdir('/proc/self/fd')))"
    process: Any = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=PIPE, stdout=PIPE)
    out, _ = await in_time(process.communicate(b""))
    assert set(json.loads(out)) == {"0", "1", "2", "3"}  # 3 is listdir's


async def test_a_descriptor_of_ours_that_does_not_block_stays_so() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        process: Any = await asyncio.create_subprocess_exec("true", stdout=write)
        assert await in_time(process.wait()) == 0
        assert not os.get_blocking(write)
    finally:
        os.close(read)
        os.close(write)


async def test_a_closed_standard_stream_is_no_hindrance() -> None:
    saved = os.dup(0)
    os.close(0)
    try:
        process: Any = await asyncio.create_subprocess_shell(
            "test -e /proc/self/fd/0 || echo closed", stdin=None, stdout=PIPE
        )
        out, _ = await in_time(process.communicate())
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    assert out == b"closed\n"


async def test_ignored_signals() -> None:
    """A difference of the uv road: libuv resets every signal."""
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        process: Any = await asyncio.create_subprocess_shell("kill -USR1 $$; echo alive", stdout=PIPE)
        out, _ = await in_time(process.communicate())
    finally:
        signal.signal(signal.SIGUSR1, previous)
    by_uv = is_ours() and os.environ.get("VELOCILOOP_SPAWN") == "uv"
    assert (out, process.returncode) == ((b"", -signal.SIGUSR1) if by_uv else (b"alive\n", 0))


async def test_audit_event_is_raised() -> None:
    seen: list[Any] = []
    # There is no way to take a hook away again.
    sys.addaudithook(
        lambda event, args: seen.append(args[1]) if event == "subprocess.Popen" and len(seen) < 9 else None
    )
    process: Any = await asyncio.create_subprocess_exec("true", "argument")
    await in_time(process.wait())
    assert seen[:1] == [["true", "argument"]]
    seen.extend([None] * 9)


async def test_an_audit_hook_may_refuse_a_child(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    refusing = True

    def hook(event: str, args: Any) -> None:
        if refusing and event == "subprocess.Popen":
            raise PermissionError("no children here")

    sys.addaudithook(hook)
    with pytest.raises(PermissionError, match="no children here"):
        await asyncio.create_subprocess_exec("touch", str(trace))
    refusing = False
    process: Any = await asyncio.create_subprocess_exec("true")
    await in_time(process.wait())
    assert not trace.exists()
