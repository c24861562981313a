"""`getaddrinfo` and `getnameinfo`: `socket`'s answers and errors, in a thread only where something is asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import Any
from unittest import mock

import pytest
from support import LOCALHOST, in_time, is_ours, run_child

Loop = asyncio.AbstractEventLoop

NUMERIC: list[tuple[Any, Any, dict[str, int]]] = [
    (LOCALHOST, 80, {}),
    (LOCALHOST.encode(), "80", {"type": socket.SOCK_STREAM}),
    ("::1", b"80", {"type": socket.SOCK_DGRAM}),
    ("::1", 0, {"family": socket.AF_INET6, "proto": socket.IPPROTO_TCP}),
    (None, 80, {"flags": socket.AI_PASSIVE}),
    (None, 80, {}),
    ("0.0.0.0", None, {}),
    ("127.1", 80, {"flags": socket.AI_NUMERICHOST}),
]


class Threads:
    """An executor's worth of knowledge: which jobs were given to threads."""

    def __init__(self, loop: Loop) -> None:
        self.jobs: list[Any] = []
        self._run: Any = loop.run_in_executor
        self.patch = mock.patch.object(loop, "run_in_executor", self._note)

    def _note(self, executor: Any, function: Any, *args: Any) -> Any:
        self.jobs.append(function)
        return self._run(executor, function, *args)


@pytest.mark.parametrize(("host", "port", "hints"), NUMERIC)
async def test_numeric_addresses(host: Any, port: Any, hints: dict[str, int]) -> None:
    loop = asyncio.get_running_loop()
    threads = Threads(loop)
    with threads.patch:
        found = await in_time(loop.getaddrinfo(host, port, **hints))
    assert found == socket.getaddrinfo(host, port, **hints)
    if is_ours():
        assert not threads.jobs


@pytest.mark.parametrize(("host", "port", "hints"), NUMERIC)
async def test_an_answer_is_the_askers_own(host: Any, port: Any, hints: dict[str, int]) -> None:
    """What one caller does to the list that it got is nothing to the next."""
    loop = asyncio.get_running_loop()
    first = await in_time(loop.getaddrinfo(host, port, **hints))
    first.clear()
    assert await in_time(loop.getaddrinfo(host, port, **hints)) == socket.getaddrinfo(host, port, **hints)


@pytest.mark.parametrize("hint", ["family", "type", "proto"])
@pytest.mark.parametrize("value", [0.0, None, "0", [], True], ids=repr)
async def test_hints_of_another_type(hint: str, value: Any) -> None:
    """A call whose arguments equal those of an earlier one is not yet the same call."""
    loop = asyncio.get_running_loop()
    for number in (0, 1):
        with contextlib.suppress(OSError):
            await in_time(loop.getaddrinfo(LOCALHOST, 80, **{hint: number}))
    outcomes: list[Any] = []
    for ask in (socket.getaddrinfo, loop.getaddrinfo):
        try:
            found: Any = ask(LOCALHOST, 80, **{hint: value})
            outcomes.append(await found if asyncio.iscoroutine(found) else found)
        except (TypeError, OSError) as exc:
            outcomes.append((type(exc), str(exc)))
    assert outcomes[0] == outcomes[1]


async def test_a_port_of_another_type() -> None:
    loop = asyncio.get_running_loop()
    assert await in_time(loop.getaddrinfo(LOCALHOST, 80))
    with pytest.raises((OSError, TypeError), match=r"(?i)int(eger)? or string"):
        await in_time(loop.getaddrinfo(LOCALHOST, 80.0))  # type: ignore[arg-type]


def test_each_call_is_audited(loop_name: str) -> None:
    """ "Raises an auditing event socket.getaddrinfo with arguments host, port, family, type, protocol." """
    done = run_child(
        """
        import socket, sys
        events = []
        sys.addaudithook(lambda name, args: events.append(args) if name == "socket.getaddrinfo" else None)
        loop = new_child_loop()
        for _ in range(3):
            loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))
        assert events == [("127.0.0.1", 80, 0, 1, 0)] * 3, events
        assert {type(each) for event in events for each in event} == {str, int}, events
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("host", "port", "hints"),
    [
        (LOCALHOST, 80, {"family": socket.AF_INET6}),
        ("::1", 80, {"family": socket.AF_INET}),
        (LOCALHOST, 80, {"type": 4711}),
        ("localhost", 80, {"flags": socket.AI_NUMERICHOST}),
        (LOCALHOST, 1 << 70, {}),
        (LOCALHOST, 1.5, {}),
        (80, 80, {}),
        ("a\0b", 80, {}),
        (b"\xff\xfe", 80, {"flags": socket.AI_NUMERICHOST}),
        ("", 80, {"flags": socket.AI_NUMERICHOST}),
        (None, None, {}),
    ],
)
async def test_bad_addresses(host: Any, port: Any, hints: dict[str, int]) -> None:
    with pytest.raises((OSError, TypeError, ValueError, OverflowError)) as expected:
        socket.getaddrinfo(host, port, **hints)
    with pytest.raises(type(expected.value)) as raised:
        await in_time(asyncio.get_running_loop().getaddrinfo(host, port, **hints))
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize(("host", "port"), [("localhost", 80), (LOCALHOST, "http"), ("127.1", 80), ("fe80::1%lo", 80)])
async def test_names_are_looked_up_in_a_thread(host: str, port: Any) -> None:
    """A name, a service, an old spelling, a zone: whatever is not plainly numeric may take its time."""
    loop = asyncio.get_running_loop()
    threads = Threads(loop)
    with threads.patch:
        found = await in_time(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    assert found == socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    assert threads.jobs == [socket.getaddrinfo]


async def test_need_28_a_replaced_getaddrinfo_is_asked_about_numbers_too() -> None:
    """It may block, so it runs in a thread, as under asyncio."""
    loop = asyncio.get_running_loop()
    asked: list[Any] = []

    def resolve(host: Any, port: Any, *args: Any) -> list[Any]:
        asked.append((host, port, threading.get_ident() == loop_thread))
        return []

    loop_thread = threading.get_ident()
    with mock.patch("socket.getaddrinfo", resolve):
        assert await in_time(loop.getaddrinfo(LOCALHOST, 80)) == []
    assert asked == [(LOCALHOST, 80, False)]


def test_need_28_getaddrinfo_replaced_before_the_import(loop_name: str) -> None:
    done = run_child(
        """
        import socket, threading
        asked = []
        def resolve(host, port, *args, **options):
            asked.append(threading.current_thread() is threading.main_thread())
            return []
        resolve.__module__ = "somebody.elses"
        socket.getaddrinfo = resolve
        loop = new_child_loop()
        assert loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80)) == []
        assert asked == [False], asked
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


async def test_numeric_names() -> None:
    loop = asyncio.get_running_loop()
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    threads = Threads(loop)
    with threads.patch:
        assert await in_time(loop.getnameinfo((LOCALHOST, 80), numeric)) == (LOCALHOST, "80")
        assert await in_time(loop.getnameinfo(("::1", 80, 0, 0), numeric)) == ("::1", "80")
    if is_ours():
        assert not threads.jobs
    assert await in_time(loop.getnameinfo((LOCALHOST, 80))) == socket.getnameinfo((LOCALHOST, 80), 0)


@pytest.mark.parametrize(
    ("address", "flags"), [(("localhost", 80), 3), ((LOCALHOST,), 3), ("", 3), (None, 0), ((1, 2), 0)]
)
async def test_bad_names(address: Any, flags: int) -> None:
    with pytest.raises((OSError, TypeError, IndexError)) as expected:  # PyPy: IndexError
        socket.getnameinfo(address, flags)
    with pytest.raises(type(expected.value)) as raised:
        await in_time(asyncio.get_running_loop().getnameinfo(address, flags))
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize(
    ("name", "arguments"), [("getaddrinfo", ("a.name.of.our.own", 80)), ("getnameinfo", ((LOCALHOST, 80),))]
)
async def test_concurrent_and_cancelled_lookups(name: str, arguments: tuple[Any, ...]) -> None:
    """A look-up that nobody waits for any more ends in its thread and disturbs nobody."""
    loop = asyncio.get_running_loop()
    begun, go_on = threading.Event(), threading.Event()

    def resolve(*args: Any) -> list[Any]:
        begun.set()
        go_on.wait()
        return ["late"]

    with mock.patch(f"socket.{name}", resolve):
        task = asyncio.ensure_future(getattr(loop, name)(*arguments))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        late: list[Any] = await in_time(getattr(loop, name)(*arguments))
        assert late == ["late"]
    found = await in_time(asyncio.gather(*(loop.getaddrinfo("localhost", port) for port in range(20))))
    assert [addresses[0][4][1] for addresses in found] == list(range(20))


def test_after_close(loop: Loop) -> None:
    loop.close()
    for call in (loop.getaddrinfo(LOCALHOST, 80), loop.getnameinfo((LOCALHOST, 80), 3)):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call.send(None)


@pytest.mark.ours("asyncio reads it too, but from its own thread pool")
def test_H11_libuvs_thread_pool_is_never_started(loop: Loop) -> None:
    """ "Once libuv's thread pool has run, a forked child that exits crashes.\""""

    def thread_names() -> set[str]:
        found = set()
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/comm") as file:
                found.add(file.read().strip())
        return found

    async def main() -> None:
        await loop.getaddrinfo("localhost", 80)
        await loop.getaddrinfo(LOCALHOST, 80)
        await loop.getnameinfo((LOCALHOST, 80))

    loop.run_until_complete(main())
    assert "libuv-worker" not in thread_names()
