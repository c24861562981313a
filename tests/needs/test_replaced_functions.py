"""Needs 11, 28: names resolved by whatever `socket.getaddrinfo` is, clocks by whatever `loop.time` is."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from unittest import mock

import pytest
from support import LOCALHOST, Recorder, in_time, serving, turns

Loop = asyncio.AbstractEventLoop


async def test_need_28_a_replaced_getaddrinfo_is_obeyed() -> None:
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):
        asked: list[Any] = []

        def resolve(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
            asked.append((host, port))
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

        with mock.patch("socket.getaddrinfo", resolve):
            transport, protocol = await loop.create_connection(Recorder, "a.name.of.our.own", 80)
        assert asked == [("a.name.of.our.own", 80)]
        assert transport.get_extra_info("peername") == address
        transport.close()
        await in_time(protocol.lost)


async def test_need_28_a_replaced_loop_getaddrinfo_is_obeyed() -> None:
    """DNS caches replace the loop's own method."""
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):

        async def resolve(host: Any, port: Any, **options: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]

        with mock.patch.object(loop, "getaddrinfo", resolve):
            transport, protocol = await loop.create_connection(Recorder, "a.name.of.our.own", 80)
        transport.close()
        await in_time(protocol.lost)


async def test_need_28_numeric_hosts_ask_nobody() -> None:
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):
        with mock.patch("socket.getaddrinfo", side_effect=AssertionError("asked")):
            transport, protocol = await loop.create_connection(Recorder, *address)
        transport.close()
        await in_time(protocol.lost)


def test_need_28_34_a_patched_clock_is_obeyed(loop: Loop) -> None:
    """Clock-warping tests: an hour passes at once, and its timers run in order."""
    ran: list[str] = []
    now = loop.time()
    offset = 0.0
    loop.time = lambda: now + offset  # type: ignore[method-assign]
    loop.call_later(3600, ran.append, "an hour")
    loop.call_later(60, ran.append, "a minute")
    loop.call_later(7200, ran.append, "two hours")

    def run_turn() -> None:
        loop.call_soon(loop.stop)
        loop.run_forever()

    run_turn()
    assert ran == []
    offset = 61.0
    run_turn()
    assert ran == ["a minute"]
    offset = 3601.0
    run_turn()
    assert ran == ["a minute", "an hour"]
    timer = loop.call_later(10, ran.append, "later")
    assert timer.when() == pytest.approx(now + 3611)
    timer.cancel()


def test_need_28_a_clock_patched_on_the_class(loop: Loop) -> None:
    ran: list[int] = []
    with mock.patch.object(type(loop), "time", return_value=1000.0):
        loop.call_later(1, ran.append, 1)
    with mock.patch.object(type(loop), "time", return_value=1001.5):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert ran == [1]


async def test_need_11_happy_eyeballs() -> None:
    """The second address family answers while the first one hangs."""
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):
        with socket.create_server((LOCALHOST, 0), backlog=0) as silent:
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(silent.getsockname())
                fillers.append(filler)

            async def resolve(host: Any, port: Any, **options: Any) -> list[Any]:
                hanging = (socket.AF_INET, socket.SOCK_STREAM, 6, "", silent.getsockname())
                answering = (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
                return [hanging, answering]

            with mock.patch.object(loop, "getaddrinfo", resolve):
                transport, protocol = await in_time(
                    loop.create_connection(Recorder, "two.addresses", 80, happy_eyeballs_delay=0.01)
                )
            assert transport.get_extra_info("peername") == address
            transport.close()
            await in_time(protocol.lost)
            await turns()
            for filler in fillers:
                filler.close()
