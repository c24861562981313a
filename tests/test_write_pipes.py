"""connect_write_pipe: what is sent at once, what waits, and the reader that goes away."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
from typing import Any

import pytest
from pipe_support import (
    every_kind,
    fill,
    finished,
    pattern,
    receive_all,
    telling_kind,
    writing,
)
from support import HandlerCalls, Recorder, in_time, is_ours, turns, until

pytestmark = pytest.mark.debug_variant



@every_kind
async def test_what_is_sent_arrives(kind: str) -> None:
    data = pattern(500_000)
    async with writing(kind) as (transport, protocol, far):
        transport.write(data[:10])
        transport.write(bytearray(data[10:20]))
        transport.write(memoryview(data)[20:30])
        transport.write(b"")
        transport.write(data[30:])
        assert await asyncio.to_thread(receive_all, far, len(data)) == data
        await until(lambda: not transport.get_write_buffer_size())
        assert protocol.events == ["made", "pause", "resume"]


async def test_need_33_a_write_leaves_at_once() -> None:
    async with writing() as (transport, _, far):
        transport.write(b"one")
        transport.write(b"two")
        assert os.read(far.fileno(), 100) == b"onetwo"


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
async def test_what_waits_is_the_bytes_of_the_moment(make: Any) -> None:
    source = bytearray(pattern(200_000))
    data = memoryview(source) if make is memoryview else make(source)
    async with writing() as (transport, _, far):
        expected = bytes(source)
        transport.write(data)
        assert transport.get_write_buffer_size()
        # asyncio leaves its views to the collector, which shows on PyPy.
        resizable = is_ours() or sys.implementation.name != "pypy"
        if isinstance(data, bytearray):
            data[:] = b"\0" * len(data)
            if resizable:
                data.append(0)
        elif make is memoryview:
            data.release()
            source[:] = b"\0" * len(source)
            if resizable:
                source.clear()
        assert await asyncio.to_thread(receive_all, far, len(expected)) == expected


async def test_a_memoryview_of_larger_items() -> None:
    data = pattern(100_000)
    async with writing() as (transport, _, far):
        if is_ours():  # asyncio takes the number of items for the number of bytes
            transport.write(memoryview(data).cast("I"))
        else:
            transport.write(data)
        assert await asyncio.to_thread(receive_all, far, len(data)) == data


async def test_high_and_low_water() -> None:
    async with writing() as (transport, protocol, far):
        transport.set_write_buffer_limits(high=1000, low=100)
        assert transport.get_write_buffer_limits() == (100, 1000)
        filled = fill(transport.get_extra_info("pipe"))
        transport.write(b"x" * 1000)
        assert transport.get_write_buffer_size() == 1000
        assert protocol.events == ["made"]
        transport.write(b"x")
        assert protocol.events == ["made", "pause"]
        await asyncio.to_thread(receive_all, far, filled + 1001)
        await in_time(protocol.resumed.wait())
        assert transport.get_write_buffer_size() == 0


async def test_close_sends_what_is_left() -> None:
    data = pattern(300_000)
    async with writing() as (transport, protocol, far):
        transport.write(data)
        transport.close()
        assert transport.is_closing()
        await turns()
        assert not protocol.lost.done()
        transport.write(b"dropped")
        assert await asyncio.to_thread(receive_all, far, len(data)) == data
        assert await finished(protocol) is None
        assert await asyncio.to_thread(os.read, far.fileno(), 1) == b""
        assert protocol.events[-1] == "lost"


async def test_write_eof_is_close() -> None:
    async with writing() as (transport, protocol, far):
        assert transport.can_write_eof()
        transport.write(b"end")
        transport.write_eof()
        transport.write_eof()
        assert transport.is_closing()
        assert await finished(protocol) is None
        assert os.read(far.fileno(), 10) == b"end"
        assert os.read(far.fileno(), 10) == b""
        transport.close()
        transport.write_eof()


async def test_abort_drops_what_is_left() -> None:
    async with writing() as (transport, protocol, far):
        transport.write(pattern(300_000))
        left = transport.get_write_buffer_size()
        transport.abort()
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        assert await finished(protocol) is None
        assert len(receive_all(far, 300_000 - left)) == 300_000 - left
        assert os.read(far.fileno(), 1) == b""


async def test_abort_of_a_close_that_waits() -> None:
    async with writing() as (transport, protocol, _):
        transport.write(pattern(300_000))
        transport.close()
        transport.abort()
        assert await finished(protocol) is None


@pytest.mark.ours("asyncio loses the connection twice: AttributeError")
async def test_abort_after_close_loses_once() -> None:
    async with writing() as (transport, protocol, _):
        transport.close()
        transport.abort()
        assert await finished(protocol) is None
        transport.abort()
        assert protocol.events == ["made", "lost"]


@telling_kind
async def test_a_closed_reader_is_noticed(kind: str) -> None:
    """test_write_pipe_disconnect_on_close: nothing is written, and it is told."""
    async with writing(kind) as (transport, protocol, far):
        await turns()
        assert not transport.is_closing()
        far.close()
        assert await finished(protocol) is None
        assert transport.is_closing()


@telling_kind
async def test_a_closed_reader_with_bytes_that_wait(kind: str) -> None:
    async with writing(kind) as (transport, protocol, far):
        transport.write(bytes(300_000))
        far.close()
        assert isinstance(await finished(protocol), BrokenPipeError)


async def test_a_closed_reader_while_a_close_waits() -> None:
    async with writing() as (transport, protocol, far):
        transport.write(bytes(300_000))
        transport.close()
        await turns()
        far.close()
        assert isinstance(await finished(protocol), BrokenPipeError)


async def test_a_terminals_writer_hears_of_the_hangup_when_it_writes() -> None:
    async with writing("pty") as (transport, protocol, far):
        far.close()
        await turns(10)
        assert not transport.is_closing()
        transport.write(b"x")
        assert transport.is_closing()
        assert isinstance(await finished(protocol), OSError)


async def test_writes_to_a_closed_reader_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio warns from the fifth lost write on, in its own words."""
    async with writing() as (transport, protocol, far):
        far.close()
        transport.write(b"first")
        assert transport.is_closing()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(4):
                transport.write(b"x")
            assert not caplog.records
            transport.write(b"x")
        text = "pipe closed by peer or os.write(pipe, data) raised exception."
        assert [record.getMessage() for record in caplog.records] == [text]
        assert isinstance(await finished(protocol), BrokenPipeError)


async def test_writes_after_the_watch_has_told(caplog: pytest.LogCaptureFixture) -> None:
    async with writing() as (transport, protocol, far):
        far.close()
        assert await finished(protocol) is None
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(6):
                transport.write(b"x")
        assert len(caplog.records) == 1


async def test_a_device_that_is_full(handler_calls: HandlerCalls) -> None:
    device = io.FileIO("/dev/full", "w")
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, device)
    transport.write(b"x")
    assert isinstance(await finished(protocol), OSError)


async def test_writing_in_resume_writing() -> None:
    class Insistent(Recorder):
        left = 3

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.left:
                self.left -= 1
                self.transport.write(bytes(200_000))

    async with writing(protocol_factory=Insistent) as (transport, protocol, far):
        transport.write(bytes(200_000))
        await asyncio.to_thread(receive_all, far, 800_000)
        await until(lambda: not transport.get_write_buffer_size())
        assert protocol.events == ["made", *["pause", "resume"] * 4]


@pytest.mark.parametrize("data", ["text", 5, None, [1]])
async def test_what_is_not_bytes_like(data: Any) -> None:
    async with writing() as (transport, _, _far):
        with pytest.raises(AssertionError):
            transport.write(data)
