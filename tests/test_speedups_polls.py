"""Turns that leave the kernel unpolled (H2)."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from test_speedups import run_turns

from velociloop._accelerator import accelerated

needs_speedups = pytest.mark.skipif(not accelerated(), reason="the accelerator is not in use")

# -- turns that leave the kernel unpolled (H2) ----------------------------------------------------------


#: As many polls must have found nothing.
QUIET_POLLS = 16


def after_quiet_polls(loop: Any, begin: Callable[[], Any]) -> None:
    """Have the loop call `begin` after so many polls that found nothing."""
    left = QUIET_POLLS + 2

    def step() -> None:
        nonlocal left
        left -= 1
        loop.call_soon(step if left else begin)

    loop.call_soon(step)


def polls_within(loop: Any, turns: int, change: Callable[[], Any] | None = None) -> int:
    """Run `turns` turns with a callback ready in each, after one that calls `change`; how often the loop has polled.

    Quiet ones come before.
    """
    before = 0
    left = turns

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            loop.stop()

    def begin() -> None:
        nonlocal before
        before = loop.statistics().polls
        if change is not None:
            change()
        step()

    after_quiet_polls(loop, begin)
    loop.run_forever()
    return int(loop.statistics().polls - before)


@needs_speedups
@pytest.mark.ours("asyncio polls in every turn")
class TestUnpolledTurns:
    def test_H2_at_most_fifteen_in_a_row(self, loop: Any) -> None:
        polls = polls_within(loop, 160)
        assert 160 // 16 - 1 <= polls < 160

    def test_H2_not_the_first_turn_of_a_run(self, loop: Any) -> None:
        for _ in range(5):
            before = loop.statistics().polls
            run_turns(loop, 1)
            assert loop.statistics().polls == before + 1

    def test_H2_not_before_sixteen_polls_have_found_nothing(self, loop: Any) -> None:
        polls: list[int] = []

        def step() -> None:
            polls.append(loop.statistics().polls)
            if len(polls) < 100:
                loop.call_soon(step)
            else:
                loop.stop()

        loop.call_soon(step)
        loop.run_forever()
        assert polls[: QUIET_POLLS - 1] == list(range(polls[0], polls[0] + QUIET_POLLS - 1))
        assert polls[-1] < polls[0] + 99

    def test_H2_not_soon_after_input(self, loop: Any) -> None:
        near, far = os.pipe()
        polls: list[int] = []

        def readable() -> None:
            os.read(near, 1)
            loop.remove_reader(near)
            step()

        def step() -> None:
            polls.append(loop.statistics().polls)
            if len(polls) < QUIET_POLLS:
                loop.call_soon(step)
            else:
                loop.stop()

        def idle() -> None:
            if not polls:
                loop.call_soon(idle)

        def begin() -> None:
            loop.add_reader(near, readable)
            os.write(far, b"x")
            idle()

        after_quiet_polls(loop, begin)
        loop.run_forever()
        os.close(near)
        os.close(far)
        # One for each turn; those of `idle` may have been ready in the turn of the input.
        assert polls == list(range(polls[0], polls[0] + QUIET_POLLS))

    def test_H2_not_in_a_turn_that_is_asked_for_by_name(self, loop: Any) -> None:
        ran: list[int] = []

        def step() -> None:
            ran.append(1)
            loop.call_soon(step)

        step()
        for turn in range(1, 6):
            before = loop.statistics().polls
            loop._run_once()
            assert len(ran) == turn + 1
            assert loop.statistics().polls == before + 1

    @pytest.mark.parametrize("name", ["_run_once", "run_forever", "time", "_process_events"])
    def test_H2_nothing_is_patched(self, loop: Any, name: str) -> None:
        original = getattr(loop, name)
        assert polls_within(loop, 50, lambda: setattr(loop, name, original)) == 49
        delattr(loop, name)

    def test_H2_the_selector_is_not_replaced(self, loop: Any) -> None:
        own = loop._selector
        replaced = mock.Mock(wraps=own)
        assert polls_within(loop, 50, lambda: setattr(loop, "_selector", replaced)) == 49
        loop._selector = own

    def test_H2_a_due_timer_does_not_wait(self, loop: Any) -> None:
        now = loop.time()
        due = [False]

        def clock() -> float:
            return float(now + due[0])

        ran: list[int] = []
        count = [0]

        def step() -> None:
            count[0] += 1
            due[0] = True
            if not ran:
                loop.call_soon(step)

        with mock.patch.object(time, "monotonic", clock):
            loop.call_at(now + 0.5, ran.append, 1)
            loop.call_at(now + 0.5, loop.stop)
            after_quiet_polls(loop, step)
            loop.run_forever()
        assert count[0] == 2  # the clock moves in the first turn, the timer runs in the second, behind its callback

    def test_H2_stop_ends_the_run_with_its_turn(self, loop: Any) -> None:
        ran: list[str] = []

        def second() -> None:
            loop.call_soon(ran.append, "after")
            loop.stop()
            ran.append("with")

        after_quiet_polls(loop, lambda: loop.call_soon(second))
        loop.run_forever()
        assert ran == ["with"]
        run_turns(loop, 1)
        assert ran == ["with", "after"]

    def test_H2_input_is_not_overtaken_for_long(self, loop: Any) -> None:
        """Callbacks that always are ready do not keep a descriptor from being read."""
        near, far = os.pipe()
        seen: list[int] = []
        count = [0]

        def step() -> None:
            count[0] += 1
            if not seen:
                loop.call_soon(step)

        def readable() -> None:
            seen.append(count[0])
            loop.remove_reader(near)
            loop.stop()

        def begin() -> None:
            loop.add_reader(near, readable)
            os.write(far, b"x")
            step()

        after_quiet_polls(loop, begin)
        loop.run_forever()
        os.close(near)
        os.close(far)
        assert seen[0] <= 34  # one row of unpolled turns until the poll that finds it, one at most before


class Counting(asyncio.Protocol):
    """Counts polls in the turn of its data and in those behind it; then leaves."""

    def __init__(self, loop: Any, turns: int) -> None:
        self.loop, self.left = loop, turns
        self.polls: list[int] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.step()

    def step(self) -> None:
        self.polls.append(self.loop.statistics().polls)
        self.left -= 1
        if self.left:
            self.loop.call_soon(self.step)
        else:
            self.transport.abort()
            self.loop.call_soon(self.loop.stop)


def polls_from_input_on(loop: Any, turns: int, change: Callable[[Counting], Any] | None = None) -> list[int]:
    """The numbers of polls in the turn of a transport's input and in those behind it, from 0 on."""
    near, far = socket.socketpair()
    protocol = Counting(loop, turns)

    async def begin() -> None:
        await loop.create_connection(lambda: protocol, sock=near)
        await asyncio.sleep(0.01)  # it waits, without anything ready
        if change is not None:
            change(protocol)
        far.send(b"x")

    task = loop.create_task(begin())
    loop.run_forever()
    far.close()
    task.result()
    loop.run_until_complete(asyncio.sleep(0))
    return [number - protocol.polls[0] for number in protocol.polls]


@needs_speedups
@pytest.mark.ours("asyncio polls in every turn")
class TestTheTurnBehindRecords:
    """Whom completions have woken answers before the next poll."""

    def test_H2_one_turn_and_no_more(self, loop: Any) -> None:
        assert polls_from_input_on(loop, 6) == [0, 0, 1, 2, 3, 4]

    def test_H2_not_while_something_is_being_sent(self, loop: Any) -> None:
        def fill(protocol: Counting) -> None:
            while not protocol.transport.get_write_buffer_size():
                protocol.transport.write(bytes(1 << 20))

        assert polls_from_input_on(loop, 4, fill) == [0, 1, 2, 3]

    @pytest.mark.parametrize("name", ["_run_once", "time", "_process_events"])
    def test_H2_nothing_is_patched(self, loop: Any, name: str) -> None:
        original = getattr(loop, name)
        assert polls_from_input_on(loop, 4, lambda protocol: setattr(loop, name, original)) == [0, 1, 2, 3]
        delattr(loop, name)

    def test_H2_a_due_timer_does_not_wait(self, loop: Any) -> None:
        ran: list[int] = []

        class Timed(Counting):
            def data_received(self, data: bytes) -> None:
                loop.call_later(0, lambda: ran.append(len(self.polls)))
                self.step()

        with mock.patch(f"{__name__}.Counting", Timed):
            assert polls_from_input_on(loop, 4) == [0, 1, 2, 3]
        assert ran == [2]  # in the next turn, behind what was ready

    def test_H2_stop_ends_the_run_with_its_turn(self, loop: Any) -> None:
        ran: list[int] = []

        class Stopping(Counting):
            def data_received(self, data: bytes) -> None:
                loop.call_soon(ran.append, 1)
                loop.stop()
                self.transport.abort()

        near, far = socket.socketpair()
        loop.run_until_complete(loop.create_connection(lambda: Stopping(loop, 1), sock=near))
        far.send(b"x")
        loop.run_forever()
        far.close()
        assert ran == []
        run_turns(loop, 2)
        assert ran == [1]
