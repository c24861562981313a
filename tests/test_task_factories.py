"""Task factories: a program's own, and the eager ones (need 9)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import turns

needs_eager = pytest.mark.skipif(
    not hasattr(asyncio, "eager_task_factory"), reason="eager task factories came with Python 3.12"
)


async def test_a_task_factory_makes_every_task() -> None:
    loop = asyncio.get_running_loop()
    made: list[str] = []

    class Counted(asyncio.Task[Any]):
        pass

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Counted:
        made.append(coro.__name__)
        return Counted(coro, loop=loop, **kwargs)

    assert loop.get_task_factory() is None
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    tasks: list[Any] = [asyncio.create_task(asyncio.sleep(0), name="named"), asyncio.ensure_future(asyncio.sleep(0))]
    async with asyncio.TaskGroup() as group:
        tasks.append(group.create_task(asyncio.sleep(0)))
    await asyncio.gather(*tasks, asyncio.sleep(0))
    assert all(type(task) is Counted for task in tasks)
    assert made == ["sleep"] * 4
    assert tasks[0].get_name() == "named"
    loop.set_task_factory(None)
    task = asyncio.create_task(asyncio.sleep(0))
    assert type(task) is asyncio.Task
    await task


async def test_a_factory_must_be_callable() -> None:
    with pytest.raises(TypeError, match="must be a callable or None"):
        asyncio.get_running_loop().set_task_factory(7)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="other keywords reach the factory from late 3.13 on")
async def test_need_9_further_keywords_reach_the_factory() -> None:
    loop = asyncio.get_running_loop()
    seen: list[dict[str, Any]] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        seen.append(dict(kwargs))
        kwargs.pop("mine", None)
        return asyncio.Task(coro, loop=loop, **kwargs)

    loop.set_task_factory(factory)
    create: Any = loop.create_task
    coroutine = asyncio.sleep(0)
    try:
        task = create(coroutine, name="named", mine=7)
    except TypeError:
        coroutine.close()
        pytest.skip("this release of Python takes name and context only")
    await task
    assert seen[0]["mine"] == 7


@needs_eager
async def test_need_9_eager_tasks_begin_at_once() -> None:
    loop = asyncio.get_running_loop()
    order: list[str] = []

    async def work(name: str, blocks: bool) -> str:
        assert asyncio.current_task() is not me
        order.append(name)
        if blocks:
            await asyncio.sleep(0)
            order.append(f"{name} goes on")
        return name

    me = asyncio.current_task()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    ends = asyncio.create_task(work("ends", False), name="first")
    blocks = asyncio.create_task(work("blocks", True), name="second")
    order.append("here")
    assert asyncio.current_task() is me
    assert (ends.get_name(), blocks.get_name()) == ("first", "second")
    assert ends.done() and ends.result() == "ends" and not blocks.done()
    assert asyncio.all_tasks() == {me, blocks}
    assert await blocks == "blocks"
    assert order == ["ends", "blocks", "here", "blocks goes on"]


@needs_eager
async def test_an_eager_task_that_fails_at_once() -> None:
    async def fail() -> None:
        raise LookupError("at once")

    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    task = asyncio.create_task(fail())
    assert task.done()
    with pytest.raises(LookupError, match="at once"):
        await task


@needs_eager
async def test_create_eager_task_factory_with_a_class_of_ones_own() -> None:
    class Own(asyncio.Task[Any]):
        pass

    make: Callable[..., Any] = asyncio.create_eager_task_factory  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()
    loop.set_task_factory(make(Own))
    task = asyncio.create_task(asyncio.sleep(0, "own"))
    assert type(task) is Own
    assert await task == "own"


@needs_eager
@pytest.mark.parametrize("eager", [True, False])
async def test_gather_and_groups_with_eager_tasks(eager: bool) -> None:
    """What high-level functions give does not depend on the factory."""
    loop = asyncio.get_running_loop()
    if eager:
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]

    async def double(number: int) -> int:
        for _ in range(number % 3):
            await asyncio.sleep(0)
        return 2 * number

    assert await asyncio.gather(*map(double, range(10))) == [2 * number for number in range(10)]
    assert await asyncio.wait_for(double(2), 10) == 4
    assert await asyncio.shield(double(3)) == 6
    done = [await one for one in asyncio.as_completed([double(number) for number in range(6)])]
    assert sorted(done) == [0, 2, 4, 6, 8, 10]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="create_task has eager_start from Python 3.14 on")
async def test_need_9_eager_start_of_one_task() -> None:
    started: list[int] = []

    async def start(number: int) -> None:
        started.append(number)

    create: Any = asyncio.create_task
    eager, lazy = create(start(1), eager_start=True), create(start(2), eager_start=False)
    assert started == [1] and eager.done() and not lazy.done()
    await turns()
    assert started == [1, 2] and lazy.done()
