"""`connect_read_pipe` and `connect_write_pipe`: pipes, FIFOs, sockets and terminals."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import os
import pty
import signal
import socket
import sys
import tempfile
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from support import HandlerCalls, Recorder, collect, in_time, run_child, turns, until

Loop = asyncio.AbstractEventLoop
MUCH = 1 << 20


def _pipe() -> tuple[Any, Any]:
    read_end, write_end = os.pipe()
    return open(read_end, "rb", 0), open(write_end, "wb", 0)


def _fifo() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fifo")
        os.mkfifo(path)
        read_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        return open(read_end, "rb", 0), open(path, "wb", 0)


def _sockets() -> tuple[Any, Any]:
    return socket.socketpair()


def _terminal() -> tuple[Any, Any]:
    controller, terminal = pty.openpty()
    tty.setraw(terminal)
    return open(controller, "rb", 0), open(terminal, "wb", 0)


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "pipe": _pipe,
    "fifo": _fifo,
    "sockets": _sockets,
    "terminal": _terminal,
}


@contextlib.contextmanager
def ends(kind: str = "pipe") -> Iterator[tuple[Any, Any]]:
    """The reading and the writing end."""
    read_end, write_end = KINDS[kind]()
    with contextlib.closing(read_end), contextlib.closing(write_end):
        yield read_end, write_end


async def _gone(transport: Any) -> None:
    # asyncio's abort() fails once close() has let go of the pipe.
    if not transport.is_closing():
        transport.close()
    if hasattr(transport, "abort") and transport.get_write_buffer_size():
        transport.abort()
    await turns()


@contextlib.asynccontextmanager
async def reading(
    read_end: Any, factory: Callable[[], Any] = Recorder
) -> AsyncIterator[tuple[Any, Any]]:
    transport, protocol = await asyncio.get_running_loop().connect_read_pipe(factory, read_end)
    try:
        yield transport, protocol
    finally:
        await _gone(transport)


@contextlib.asynccontextmanager
async def writing(
    write_end: Any, factory: Callable[[], Any] = Recorder
) -> AsyncIterator[tuple[Any, Any]]:
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(factory, write_end)
    try:
        yield transport, protocol
    finally:
        await _gone(transport)


def read_all(end: Any, count: int) -> bytes:
    """Blocking, in a thread."""
    os.set_blocking(end.fileno(), True)
    received = bytearray()
    while len(received) < count:
        received += os.read(end.fileno(), 1 << 16)
    return bytes(received)


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_reading(kind: str) -> None:
    with ends(kind) as (read_end, write_end):
        async with reading(read_end) as (transport, protocol):
            assert protocol.transport is transport
            os.write(write_end.fileno(), b"one")
            assert await protocol.bytes_received(3) == b"one"
            os.write(write_end.fileno(), b"two")
            assert await protocol.bytes_received(6) == b"onetwo"
            assert transport.is_reading()


@pytest.mark.parametrize("kind", ["pipe", "fifo", "sockets"])
async def test_the_end_comes_after_the_data(kind: str) -> None:
    with ends(kind) as (read_end, write_end):
        data = os.urandom(60_000)
        os.write(write_end.fileno(), data)
        write_end.close()
        async with reading(read_end) as (transport, protocol):
            assert await in_time(protocol.lost) is None
            assert protocol.received == data
            assert protocol.events == ["made", "data", "eof", "lost"]
            assert transport.is_closing()
        assert read_end.fileno() == -1 if kind == "sockets" else read_end.closed


async def test_need_26_a_terminals_hang_up(handler_calls: HandlerCalls) -> None:
    """EIO is how a terminal says that its other side is gone: connection_lost() is told, nobody else."""
    with ends("terminal") as (read_end, write_end):
        async with reading(read_end) as (_, protocol):
            os.write(write_end.fileno(), b"last words")
            await protocol.bytes_received(10)
            write_end.close()
            exc = await in_time(protocol.lost)
            assert isinstance(exc, OSError)
            assert exc.errno == errno.EIO
    assert not len(handler_calls)


@pytest.mark.parametrize("kind", ["pipe", "sockets"])
async def test_more_than_a_grant(kind: str) -> None:
    loop = asyncio.get_running_loop()
    data = os.urandom(1 << 16) * (MUCH >> 16)
    with ends(kind) as (read_end, write_end):

        def write() -> None:
            with contextlib.closing(write_end):
                view = memoryview(data)
                while view:
                    view = view[os.write(write_end.fileno(), view) :]

        async with reading(read_end) as (_, protocol):
            await asyncio.gather(loop.run_in_executor(None, write), in_time(protocol.lost))
            assert protocol.received == data


async def test_pause_and_resume() -> None:
    with ends() as (read_end, write_end):
        async with reading(read_end) as (transport, protocol):
            await turns()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            os.write(write_end.fileno(), b"held back")
            await turns(10)
            assert protocol.received == b""
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            assert await protocol.bytes_received(9) == b"held back"


async def test_pausing_in_data_received_holds_the_rest() -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    data = os.urandom(60_000)
    with ends() as (read_end, write_end):
        os.write(write_end.fileno(), data)
        write_end.close()
        async with reading(read_end, Pausing) as (transport, protocol):
            await until(lambda: protocol.received)
            while not protocol.lost.done():
                before = len(protocol.received)
                await turns(3)
                assert len(protocol.received) == before
                transport.resume_reading()
                await turns(3)
            assert protocol.received == data
            assert protocol.events[-2:] == ["eof", "lost"]


async def test_pausing_before_it_begins() -> None:
    class Paused(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    with ends() as (read_end, write_end):
        os.write(write_end.fileno(), b"early")
        async with reading(read_end, Paused) as (transport, protocol):
            await turns(5)
            assert protocol.received == b""
            transport.resume_reading()
            await protocol.bytes_received(5)


async def test_exceptions_of_data_received(handler_calls: HandlerCalls) -> None:
    """They are reported, and the pipe stays open: so asyncio's."""

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise ZeroDivisionError

    with ends() as (read_end, write_end):
        async with reading(read_end, Failing) as (transport, protocol):
            for count in range(1, 3):
                os.write(write_end.fileno(), b"x")
                await protocol.bytes_received(count)
                await turns()
                assert isinstance(handler_calls.take()["exception"], ZeroDivisionError)
            assert not transport.is_closing()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_need_22_interrupts_out_of_data_received(loop: Loop, error: type[BaseException]) -> None:
    class Interrupted(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if len(self.received) == 1:
                raise error

    with ends() as (read_end, write_end):

        async def connect() -> Any:
            return await loop.connect_read_pipe(Interrupted, read_end)

        transport, protocol = loop.run_until_complete(connect())
        os.write(write_end.fileno(), b"x")
        with pytest.raises(error):
            loop.run_forever()
        os.write(write_end.fileno(), b"y")
        assert loop.run_until_complete(protocol.bytes_received(2)) == b"xy"
        transport.close()
        loop.run_until_complete(turns())


async def test_context_of_the_callbacks() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    class Looking(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            seen.append(variable.get())

    with ends() as (read_end, write_end):
        variable.set("connecting")
        async with reading(read_end, Looking) as (_, protocol):
            variable.set("later")
            os.write(write_end.fileno(), b"x")
            await protocol.bytes_received(1)
    assert seen == ["connecting"]


async def test_closing_a_reader() -> None:
    with ends() as (read_end, write_end):
        async with reading(read_end) as (transport, protocol):
            os.write(write_end.fileno(), b"too late")
            transport.close()
            transport.close()
            assert transport.is_closing()
            assert not transport.is_reading()
            assert await in_time(protocol.lost) is None
            assert protocol.received == b""
            assert read_end.closed
            with pytest.raises(BrokenPipeError):
                os.write(write_end.fileno(), b"x")


# -- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_writing(kind: str) -> None:
    with ends(kind) as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            assert protocol.transport is transport
            transport.write(b"at once")
            assert os.read(read_end.fileno(), 100) == b"at once"
            transport.writelines([b"in", bytearray(b" pieces")])
            assert os.read(read_end.fileno(), 100) == b"in pieces"
            transport.write(memoryview(b"view"))
            transport.write(b"")
            assert os.read(read_end.fileno(), 100) == b"view"
            assert transport.get_write_buffer_size() == 0
            assert transport.can_write_eof()


@pytest.mark.parametrize("kind", KINDS)
async def test_more_than_the_kernel_takes(kind: str) -> None:
    data = os.urandom(1 << 16) * (MUCH >> 16)
    with ends(kind) as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            for begin in range(0, len(data), 100_000):
                transport.write(data[begin : begin + 100_000])
            assert transport.get_write_buffer_size() > 0
            assert protocol.events == ["made", "pause"]
            assert await in_time(asyncio.to_thread(read_all, read_end, len(data))) == data
            await until(lambda: protocol.events == ["made", "pause", "resume"])
            assert transport.get_write_buffer_size() == 0
            transport.write(b"and on")
            assert await asyncio.to_thread(read_all, read_end, 6) == b"and on"


@pytest.mark.parametrize("kind", ["pipe", "sockets"])
async def test_closing_sends_what_waits(kind: str) -> None:
    data = bytes(MUCH)
    with ends(kind) as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            transport.write(data)
            transport.close()
            transport.write(b"ignored")
            assert transport.is_closing()
            assert await in_time(asyncio.to_thread(read_all, read_end, len(data))) == data
            assert await in_time(protocol.lost) is None
            assert os.read(read_end.fileno(), 1) == b""


async def test_write_eof_closes() -> None:
    with ends() as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            transport.write(b"the end")
            transport.write_eof()
            transport.write_eof()
            assert await in_time(protocol.lost) is None
            assert os.read(read_end.fileno(), 100) == b"the end"
            assert os.read(read_end.fileno(), 100) == b""


async def test_abort_drops_what_waits() -> None:
    with ends() as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            transport.write(bytes(MUCH))
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            assert await in_time(protocol.lost) is None
            assert write_end.closed
            assert len(await asyncio.to_thread(read_end.read)) < MUCH


@pytest.mark.ours("asyncio fails with an AttributeError in an abort() after the end")
async def test_ends_after_the_end() -> None:
    with ends() as (_, write_end):
        async with writing(write_end) as (transport, protocol):
            transport.abort()
            transport.abort()
            await in_time(protocol.lost)
            transport.abort()
            transport.close()
            transport.write_eof()
            transport.write(b"x")
            assert protocol.events == ["made", "lost"]


@pytest.mark.parametrize("kind", ["pipe", "fifo", "sockets"])
async def test_a_writer_notices_that_its_reader_closed(kind: str) -> None:
    with ends(kind) as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            await turns()
            read_end.close()
            assert await in_time(protocol.lost) is None
            assert transport.is_closing()


@pytest.mark.parametrize("kind", ["pipe", "fifo", "sockets"])
async def test_a_reader_that_closes_while_data_waits(kind: str) -> None:
    with ends(kind) as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            transport.write(bytes(4 * MUCH))
            await turns()
            read_end.close()
            assert isinstance(await in_time(protocol.lost), BrokenPipeError)


async def test_need_26_writing_to_a_closed_pipe(caplog: pytest.LogCaptureFixture) -> None:
    """The first write ends the transport; from the sixth on the log says so, as asyncio's."""
    with ends() as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            read_end.close()
            with caplog.at_level(logging.WARNING):
                for _ in range(10):
                    transport.write(b"x")
            assert isinstance(await in_time(protocol.lost), BrokenPipeError)
    assert {record.getMessage() for record in caplog.records} == {
        "pipe closed by peer or os.write(pipe, data) raised exception."
    }
    assert len(caplog.records) == 5


async def test_resuming_by_low_water_marks() -> None:
    with ends() as (read_end, write_end):
        async with writing(write_end) as (transport, protocol):
            transport.set_write_buffer_limits(high=100_000, low=20_000)
            transport.write(bytes(300_000))
            assert protocol.events == ["made", "pause"]
            await in_time(asyncio.to_thread(read_all, read_end, 300_000))
            await in_time(protocol.resumed.wait())
            assert protocol.events == ["made", "pause", "resume"]


async def test_exceptions_of_resume_writing(handler_calls: HandlerCalls) -> None:
    class Failing(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            raise ZeroDivisionError

    with ends() as (read_end, write_end):
        async with writing(write_end, Failing) as (transport, protocol):
            transport.write(bytes(300_000))
            await in_time(asyncio.to_thread(read_all, read_end, 300_000))
            await in_time(protocol.resumed.wait())
            await until(lambda: len(handler_calls))
            assert isinstance(handler_calls.take()["exception"], ZeroDivisionError)
            assert not transport.is_closing()


async def test_wrong_data() -> None:
    with ends() as (_, write_end):
        async with writing(write_end) as (transport, _):
            for wrong in ("text", None, 5, [1]):
                with pytest.raises(AssertionError):
                    transport.write(wrong)
            assert not transport.is_closing()


# -- both ---------------------------------------------------------------------------------------


async def test_need_15_the_pipe_is_the_users_object() -> None:
    with ends() as (read_end, write_end):
        async with reading(read_end) as (reader, _), writing(write_end) as (writer, _):
            assert reader.get_extra_info("pipe") is read_end
            assert writer.get_extra_info("pipe") is write_end
            assert reader.get_extra_info("socket", 5) == 5
            assert isinstance(reader, asyncio.ReadTransport)
            assert isinstance(writer, asyncio.WriteTransport)
            assert not hasattr(reader, "abort")
            for transport in (reader, writer):
                protocol = Recorder()
                before = transport.get_protocol()
                transport.set_protocol(protocol)
                assert transport.get_protocol() is protocol
                transport.set_protocol(before)
                assert "fd=" in repr(transport)


@pytest.mark.parametrize("connect", ["connect_read_pipe", "connect_write_pipe"])
async def test_need_2_a_regular_file(connect: str) -> None:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file:
        with pytest.raises(ValueError, match="Pipe transport is"):
            await getattr(loop, connect)(Recorder, file)
        file.write(b"still open")


@pytest.mark.parametrize("connect", ["connect_read_pipe", "connect_write_pipe"])
def test_need_2_a_regular_file_kills_nobody(loop_name: str, connect: str) -> None:
    done = run_child(
        f"""
        import tempfile
        loop = new_child_loop()
        class Folder:
            def __init__(self): self.fd = os.open("/", 0)
            def fileno(self): return self.fd
            def close(self): os.close(self.fd)

        for what in tempfile.TemporaryFile(), open(os.devnull, "r+b", 0), Folder():
            try:
                transport, _ = loop.run_until_complete(loop.{connect}(Recorder, what))
                transport.close()
            except (ValueError, OSError) as exc:
                print(type(exc).__name__)
            loop.run_until_complete(turns())
        loop.close()
        print("alive")
        """,
        loop_name,
        "-W",
        "ignore",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ValueError", "ValueError", "alive"]


async def test_a_null_device_can_be_written_to() -> None:
    with open(os.devnull, "wb", 0) as null:
        async with writing(null) as (transport, protocol):
            transport.write(bytes(MUCH))
            assert transport.get_write_buffer_size() == 0
            transport.close()
            assert await in_time(protocol.lost) is None


async def test_a_null_device_cannot_be_read_so(handler_calls: HandlerCalls) -> None:
    """epoll refuses it: the exception handler hears of it, and the transport waits, as asyncio's."""
    with open(os.devnull, "rb", 0) as null:
        async with reading(null) as (transport, protocol):
            await turns(5)
            assert isinstance(handler_calls.take()["exception"], PermissionError)
            transport.close()
            assert await in_time(protocol.lost) is None


def test_need_4_nobody_closes_a_descriptor_twice(loop_name: str) -> None:
    """While other threads open files, a second close() of a number would close one of theirs."""
    done = run_child(
        """
        stolen = []
        ends = threading.Event()

        def opens():
            while not ends.is_set():
                fd = os.open(os.devnull, os.O_RDONLY)
                try:
                    os.fstat(fd)
                    os.close(fd)
                except OSError:
                    stolen.append(fd)

        async def main():
            loop = asyncio.get_running_loop()
            for _ in range(300):
                read_end, write_end = os.pipe()
                reader, got = await loop.connect_read_pipe(Recorder, open(read_end, "rb", 0))
                writer, _ = await loop.connect_write_pipe(Recorder, open(write_end, "wb", 0))
                writer.write(b"x")
                writer.close()
                await got.lost

        threads = [threading.Thread(target=opens) for _ in range(2)]
        for thread in threads:
            thread.start()
        loop = new_child_loop()
        loop.run_until_complete(main())
        loop.close()
        ends.set()
        for thread in threads:
            thread.join()
        assert not stolen, stolen
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


async def test_one_terminal_for_both_directions() -> None:
    """A terminal's descriptor serves both: one watch a number is libuv's limit, not ours."""
    controller, terminal = pty.openpty()
    tty.setraw(terminal)
    with open(controller, "r+b", 0) as near, open(terminal, "r+b", 0) as far:
        reader, got = await asyncio.get_running_loop().connect_read_pipe(Recorder, near)
        writer, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, near)
        far.write(b"to us")
        await got.bytes_received(5)
        writer.write(bytes(100_000))  # more than a terminal takes
        assert await in_time(asyncio.to_thread(read_all, far, 100_000)) == bytes(100_000)
        await until(lambda: writer.get_write_buffer_size() == 0)
        reader.close()
        await in_time(got.lost)
        writer.close()
        await in_time(protocol.lost)


def collect_one(kept: list[Any]) -> None:
    kept.pop()
    collect()


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="when PyPy collects, and warns, nobody knows")
def test_unclosed_pipes_warn(loop: Loop) -> None:
    read_end, write_end = _pipe()
    reader, _ = loop.run_until_complete(loop.connect_read_pipe(asyncio.Protocol, read_end))
    writer, _ = loop.run_until_complete(loop.connect_write_pipe(asyncio.Protocol, write_end))
    loop.close()
    kept = [reader, writer]
    del reader, writer
    for _ in range(2):
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            collect_one(kept)
    assert read_end.closed
    assert write_end.closed


async def test_a_descriptor_closed_behind_the_loops_back(handler_calls: HandlerCalls) -> None:
    """Nothing that asyncio promises anything about; the loop lives on."""
    read_end, write_end = os.pipe()
    loop = asyncio.get_running_loop()
    reader, _ = await loop.connect_read_pipe(asyncio.Protocol, open(read_end, "rb", 0, closefd=False))  # noqa: SIM115
    writer, _ = await loop.connect_write_pipe(asyncio.Protocol, open(write_end, "wb", 0, closefd=False))  # noqa: SIM115
    await turns()
    os.close(read_end)
    os.close(write_end)
    await turns(5)
    writer.write(b"x")
    reader.close()
    writer.close()
    await turns(5)
    handler_calls.clear()


def test_a_forked_child_leaves_the_parents_pipes_alone(loop_name: str) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio's child does disturb its parent")
    done = run_child(
        """
        loop = new_child_loop()
        read_end, write_end = os.pipe()
        reader, got = loop.run_until_complete(loop.connect_read_pipe(Recorder, open(read_end, "rb", 0)))
        writer, _ = loop.run_until_complete(loop.connect_write_pipe(Recorder, open(write_end, "wb", 0)))
        child = os.fork()
        if child == 0:
            for action in reader.close, writer.close, reader.pause_reading:
                try:
                    action()
                except RuntimeError:
                    pass
            mine = new_child_loop()
            mine.run_until_complete(turns())
            mine.close()
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        writer.write(b"still ours")
        assert loop.run_until_complete(got.bytes_received(10)) == b"still ours"
        reader.close()
        writer.close()
        loop.run_until_complete(turns())
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.debug_variant
async def test_pipes_in_debug_mode() -> None:
    with ends() as (read_end, write_end):
        async with reading(read_end) as (_, got), writing(write_end) as (writer, _):
            writer.write(b"x" * 300_000)
            await got.bytes_received(300_000)
            writer.close()
            await in_time(got.lost)


def test_ctrl_c_while_a_pipe_waits(loop: Loop) -> None:
    with ends() as (read_end, _):

        async def main() -> None:
            transport, _ = await loop.connect_read_pipe(Recorder, read_end)
            try:
                threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
                await loop.create_future()
            finally:
                transport.close()

        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.run_until_complete(turns())
