"""Task groups: all end before the block does, and one that fails takes the others along."""

from __future__ import annotations

import asyncio
import contextvars
import sys

import pytest
from support import turns

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def test_the_block_waits_for_its_tasks() -> None:
    done: list[str] = []

    async def work(name: str) -> str:
        await asyncio.sleep(0)
        done.append(name)
        return name

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(name), name=name) for name in ("a", "b")]
        assert done == []
        # Tasks may join while others run.
        await turns()
        tasks.append(group.create_task(work("c")))
    assert [task.result() for task in tasks] == done == ["a", "b", "c"]
    assert tasks[0].get_name() == "a"


async def test_a_task_in_a_context() -> None:
    async def look() -> str:
        return VARIABLE.get()

    context = contextvars.copy_context()
    context.run(VARIABLE.set, "given")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(look(), context=context)
    assert task.result() == "given"


async def test_a_failure_cancels_the_others_and_the_block() -> None:
    error = LookupError("on purpose")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            other = group.create_task(forever())
            group.create_task(fail(error))
            await forever()
    assert caught.value.exceptions == (error,)
    assert other.cancelled()
    # The block was cancelled by the group, not from outside: nothing of it stays.
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_several_failures_are_grouped() -> None:
    async def fail_when_cancelled(error: Exception) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise error from None

    first, second, third = LookupError("first"), ValueError("second"), OSError("of the block")
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_when_cancelled(second))
            group.create_task(fail(first))
            try:
                await forever()
            except asyncio.CancelledError:
                raise third from None
    assert set(caught.value.exceptions) == {first, second, third}


async def test_cancelled_from_outside() -> None:
    inside: list[asyncio.Task[None]] = []

    async def block() -> None:
        async with asyncio.TaskGroup() as group:
            inside.append(group.create_task(forever()))

    task = asyncio.create_task(block())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inside[0].cancelled()


async def test_a_cancelled_member_harms_nobody() -> None:
    async with asyncio.TaskGroup() as group:
        member = group.create_task(forever())
        await turns()
        member.cancel()
    assert member.cancelled()


async def test_a_group_that_has_ended_takes_no_more() -> None:
    async with asyncio.TaskGroup() as group:
        pass
    coroutine = forever()
    with pytest.raises(RuntimeError, match="is finished"):
        group.create_task(coroutine)
    coroutine.close()
    with pytest.raises(RuntimeError, match="has already been entered"):
        async with group:
            pass


@pytest.mark.skipif(sys.version_info < (3, 14), reason="create_task passes every keyword on from Python 3.14 on")
async def test_an_eager_member() -> None:
    started: list[str] = []

    async def start() -> None:
        started.append("started")

    async with asyncio.TaskGroup() as group:
        group.create_task(start(), eager_start=True)  # type: ignore[call-arg]
        assert started == ["started"]


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
async def test_members_of_an_eager_factory() -> None:
    started: list[str] = []

    async def start(name: str) -> str:
        started.append(name)
        return name

    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(start("at once"))
        assert started == ["at once"] and task.done()
    assert task.result() == "at once"


async def test_a_failure_in_the_block_alone() -> None:
    error = LookupError("on purpose")
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            member = group.create_task(forever())
            await turns()
            raise error
    assert caught.value.exceptions == (error,)
    assert member.cancelled()
