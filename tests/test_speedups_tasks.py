"""create_task() in the accelerator beside asyncio's, and that it notices what is replaced one after another."""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Any
from unittest import mock

import pytest

import velociloop


async def answer() -> int:
    return 42


class OwnTask(asyncio.Task[Any]):
    """A task of somebody's own kind."""


def run(loop: Any, task: Any) -> None:
    assert loop.run_until_complete(task) == 42


def test_its_keywords(loop: Any) -> None:
    variable = contextvars.ContextVar("variable", default="outer")

    async def look() -> str:
        return variable.get()

    context = contextvars.copy_context()
    context.run(variable.set, "inner")
    for keywords, name, found in (
        ({}, None, "outer"),
        ({"name": "n"}, "n", "outer"),
        ({"context": context}, None, "inner"),
        ({"name": "m", "context": context}, "m", "inner"),
        ({"context": context, "name": "m"}, "m", "inner"),
        ({"name": None, "context": None}, None, "outer"),
    ):
        task = loop.create_task(look(), **keywords)
        assert type(task) is asyncio.Task and task.get_loop() is loop
        assert task.get_name() == name if name else task.get_name().startswith("Task-")
        assert loop.run_until_complete(task) == found


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((), {}), ((1,), {}), ((1, 2), {}), ((1,), {"nothing": 1}), ((1,), {"loop": None}), ((), {"name": 1})],
)
def test_bad_arguments(arguments: Any, keywords: Any) -> None:
    said = []
    for factory in (velociloop.new_event_loop, asyncio.SelectorEventLoop):
        loop = factory()
        with pytest.raises(TypeError) as raised:
            loop.create_task(*arguments, **keywords)
        loop.close()
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_a_closed_loop_takes_none(loop: Any) -> None:
    loop.close()
    coroutine = answer()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coroutine)
    coroutine.close()


def test_a_factory_is_asked_and_may_go(loop: Any) -> None:
    factory = mock.Mock(side_effect=lambda loop, coro, **keywords: OwnTask(coro, loop=loop, **keywords))
    for given in (factory, None, factory):
        loop.set_task_factory(given)
        assert loop.get_task_factory() is given
        task = loop.create_task(answer())
        assert type(task) is (asyncio.Task if given is None else OwnTask)
        run(loop, task)
    assert factory.call_count == 2


def test_H3_a_replaced_Task_is_taken(loop: Any) -> None:
    with mock.patch.object(asyncio.tasks, "Task", OwnTask):
        task = loop.create_task(answer(), name="own")
    assert type(task) is OwnTask and task.get_name() == "own"
    run(loop, task)
    task = loop.create_task(answer())
    assert type(task) is asyncio.Task
    run(loop, task)


@pytest.mark.parametrize("where", [asyncio.BaseEventLoop, "class", "instance"])
def test_H3_a_replaced_create_task_is_obeyed(loop: Any, where: Any) -> None:
    owner = type(loop) if where == "class" else loop if where == "instance" else where
    original = loop.create_task
    with mock.patch.object(owner, "create_task", return_value="replaced"):
        coroutine = answer()
        assert loop.create_task(coroutine) == "replaced"
        coroutine.close()
    run(loop, original(answer()))


def test_in_debug_mode_it_knows_where_it_was_made(loop: Any) -> None:
    loop.set_debug(True)
    task = loop.create_task(answer())
    assert "test_in_debug_mode_it_knows" in str(task._source_traceback[-1])
    run(loop, task)


# -- replacements, one behind the other: the number of attributes is the same, and is not that of before ------------


def test_H3_one_replacement_after_another(loop: Any) -> None:
    start = loop.time()
    with mock.patch.object(loop, "getaddrinfo"):  # nothing that scheduling looks at
        loop.call_soon(int)
        loop.stop()
        loop.run_forever()
    ran: list[str] = []
    timer = loop.call_later(3600, ran.append, "an hour")
    with mock.patch.object(loop, "time", return_value=start + 4000):
        loop.call_later(0, ran.append, "now")
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert sorted(ran) == ["an hour", "now"] and not timer.cancelled()
    with mock.patch.object(loop, "getnameinfo"):
        loop.call_soon(loop.stop)
        loop.run_forever()
    with mock.patch.object(loop._selector, "get_key"):
        loop.call_soon(loop.stop)
        loop.run_forever()
    with mock.patch.object(loop._selector, "select", wraps=loop._selector.select) as select:
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert select.call_args_list == [mock.call(0)]


def test_H3_the_clock_of_the_module_is_asked_each_time(loop: Any) -> None:
    now = time.monotonic()
    with mock.patch.object(time, "monotonic", return_value=now + 1000):
        assert loop.call_later(1, print).when() == now + 1001
        assert loop.call_later(2.5, print).when() == now + 1002.5
        assert loop.time() == now + 1000
    with mock.patch.object(time, "monotonic", return_value=7):  # an int
        assert loop.time() == 7 and type(loop.time()) is int
        assert loop.call_later(1, print).when() == 8
    for timer in list(loop._scheduled):
        timer.cancel()


def test_a_delay_that_no_float_can_be(loop: Any) -> None:
    with pytest.raises(OverflowError, match="too large"):
        loop.call_later(10**400, print)
    assert not loop._scheduled
