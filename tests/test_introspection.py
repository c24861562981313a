"""Seeing a program's tasks: call graphs, and `python -m asyncio ps` and `pstree` (Python 3.14)."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import subprocess
import sys
from typing import Any

import pytest
from support import HANG_S, start_child, turns

needs_graphs = pytest.mark.skipif(
    not hasattr(asyncio, "capture_call_graph"), reason="call graphs came with Python 3.14"
)

api: Any = asyncio


@needs_graphs
async def test_capture_call_graph_of_a_waiting_task() -> None:
    gate = asyncio.Event()

    async def inner() -> None:
        await gate.wait()

    async def outer() -> None:
        await inner()

    async def parent() -> None:
        await child

    child = asyncio.create_task(outer(), name="child")
    waiting = asyncio.create_task(parent(), name="parent")
    await turns()
    graph = api.capture_call_graph(child)
    assert isinstance(graph, api.FutureCallGraph) and graph.future is child
    assert all(isinstance(entry, api.FrameCallGraphEntry) for entry in graph.call_stack)
    assert [entry.frame.f_code.co_name for entry in graph.call_stack] == ["wait", "inner", "outer"]
    assert [one.future for one in graph.awaited_by] == [waiting]
    text = api.format_call_graph(child)
    assert "Task(name='child'" in text and "Task(name='parent'" in text and "outer()" in text
    out = io.StringIO()
    api.print_call_graph(child, file=out)
    assert out.getvalue().strip() == text.strip()
    gate.set()
    await waiting


@needs_graphs
async def test_the_call_graph_of_the_running_task() -> None:
    graph = api.capture_call_graph()
    assert graph.future is asyncio.current_task()
    names = [entry.frame.f_code.co_name for entry in graph.call_stack]
    assert "test_the_call_graph_of_the_running_task" in names


@needs_graphs
async def test_call_graph_of_gather_and_groups() -> None:
    gate = asyncio.Event()

    async def block() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(gate.wait(), name="member")

    task = asyncio.create_task(block(), name="block")
    await turns()
    member = next(one for one in asyncio.all_tasks() if one.get_name() == "member")
    assert [one.future for one in api.capture_call_graph(member).awaited_by] == [task]
    gate.set()
    await task


@needs_graphs
async def test_a_library_tells_who_awaits_whom() -> None:
    loop = asyncio.get_running_loop()
    future, me = loop.create_future(), asyncio.current_task()
    api.future_add_to_awaited_by(future, me)
    assert [one.future for one in api.capture_call_graph(future).awaited_by] == [me]
    api.future_discard_from_awaited_by(future, me)
    assert api.capture_call_graph(future).awaited_by == ()
    future.cancel()


WAITING_PROGRAM = """
    async def inner():
        print("waiting")
        await asyncio.get_running_loop().create_future()

    async def worker():
        await inner()

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(worker(), name="worker of ours")

    # Where the kernel lets a process be read by its parents only (Yama), any may read this one.
    import ctypes
    ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)
    with asyncio.Runner(loop_factory=new_child_loop) as runner:
        runner.run(main())
    """


def has_ps() -> bool:
    return importlib.util.find_spec("asyncio.tools") is not None


@pytest.mark.skipif(not has_ps(), reason="`python -m asyncio ps` came with Python 3.14")
@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_python_m_asyncio_shows_the_tasks_of_a_program(loop_name: str, command: str) -> None:
    child = start_child(WAITING_PROGRAM, loop_name)
    try:
        assert child.line() == "waiting\n"
        shown = subprocess.run(
            [sys.executable, "-m", "asyncio", command, str(child.pid)], capture_output=True, text=True, timeout=HANG_S
        )
    finally:
        child.terminate()
        child.finish()
    if "ermission" in shown.stderr:
        pytest.skip(f"this user may not read another process's memory: {shown.stderr.splitlines()[-1]}")
    assert shown.returncode == 0, shown.stderr
    assert "worker of ours" in shown.stdout and "Task-1" in shown.stdout
    assert "inner" in shown.stdout and "main" in shown.stdout
