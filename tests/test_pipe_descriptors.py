"""The descriptors of connect_read_pipe and connect_write_pipe: whose they are, and which are none or no more."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import sys
import tempfile
import warnings
from typing import Any

import pytest
from pipe_support import (
    finished,
    make_pipe,
    make_pty,
    pattern,
    receive_all,
    send_all,
)
from support import HandlerCalls, Recorder, in_time, is_ours, run_child, turns, until

pytestmark = pytest.mark.debug_variant

Loop = asyncio.AbstractEventLoop


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_need_4_the_descriptor_is_closed_once(direction: str) -> None:
    closes: list[int] = []

    class Counting(io.FileIO):
        def close(self) -> None:
            if not self.closed:
                closes.append(self.fileno())
            super().close()

    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    other: Any
    if direction == "read":
        near, other = Counting(reader, "r"), writer
        transport: Any
        transport, protocol = await loop.connect_read_pipe(Recorder, near)
    else:
        near, other = Counting(writer, "w"), reader
        transport, protocol = await loop.connect_write_pipe(Recorder, near)
    number = near.fileno()
    await turns()
    transport.close()
    await finished(protocol)
    assert near.closed and closes == [number]
    if is_ours():
        assert loop.statistics().handles == 0  # type: ignore[attr-defined]
    assert transport.get_protocol() is None
    # The number is another file's now, and stays it.
    again = os.dup(other)
    assert again == number
    del transport, near
    gc.collect()
    await turns()
    os.fstat(again)
    os.close(again)
    os.close(other)
    assert closes == [number]


async def test_both_directions_on_one_file_object() -> None:
    """A terminal: asyncio keeps a reader and a writer for its one descriptor."""
    loop = asyncio.get_running_loop()
    master, slave = make_pty()
    data = pattern(100_000)
    reader, received = await loop.connect_read_pipe(Recorder, master)
    writer, sent = await loop.connect_write_pipe(Recorder, master)

    def echo() -> None:
        send_all(slave, b"in")
        file = os.dup(slave.fileno())
        with open(file, "rb", 0) as other:
            assert receive_all(other, len(data)) == data
        send_all(slave, b"out")

    worker = asyncio.create_task(asyncio.to_thread(echo))
    writer.write(data)
    assert await received.bytes_received(5) == b"inout"
    await worker
    await until(lambda: not writer.get_write_buffer_size())
    reader.pause_reading()
    writer.write(b"x")
    reader.resume_reading()
    os.write(slave.fileno(), b"!")
    assert await received.bytes_received(6) == b"inout!"
    reader.close()
    assert await finished(received) is None
    writer.close()
    assert await finished(sent) is None
    slave.close()


async def test_neither_direction_stops_the_other() -> None:
    loop = asyncio.get_running_loop()
    master, slave = make_pty()
    data = pattern(100_000)
    reader, received = await loop.connect_read_pipe(Recorder, master)
    writer, sent = await loop.connect_write_pipe(Recorder, master)
    writer.write(data)
    assert writer.get_write_buffer_size()  # nobody reads yet
    os.write(slave.fileno(), b"in")
    assert await received.bytes_received(2) == b"in"
    reader.pause_reading()
    reader.resume_reading()
    assert writer.get_write_buffer_size()
    with open(os.dup(slave.fileno()), "rb", 0) as other:
        assert await asyncio.to_thread(receive_all, other, len(data)) == data
        await until(lambda: not writer.get_write_buffer_size())
        os.write(slave.fileno(), b"!")
        assert await received.bytes_received(3) == b"in!"
    writer.close()
    reader.close()
    await finished(sent)
    await finished(received)
    slave.close()


@pytest.mark.ours("asyncio's transport that ends closes the file that both share")
async def test_the_end_of_one_direction_is_not_the_others() -> None:
    class Kept(io.FileIO):
        def close(self) -> None:
            """The file of both: its owner closes it."""

    loop = asyncio.get_running_loop()
    master, slave = make_pty()
    shared = Kept(os.dup(master.fileno()), "r+")
    master.close()
    data = pattern(100_000)
    reader, received = await loop.connect_read_pipe(Recorder, shared)
    writer, sent = await loop.connect_write_pipe(Recorder, shared)
    writer.write(data)
    reader.close()
    assert await finished(received) is None
    with open(os.dup(slave.fileno()), "rb", 0) as other:
        assert await asyncio.to_thread(receive_all, other, len(data)) == data
    await until(lambda: not writer.get_write_buffer_size())
    reader, received = await loop.connect_read_pipe(Recorder, shared)
    writer.close()
    assert await finished(sent) is None
    os.write(slave.fileno(), b"in")
    assert await received.bytes_received(2) == b"in"
    reader.close()
    assert await finished(received) is None
    io.FileIO.close(shared)
    slave.close()


async def test_the_same_pipe_connected_twice() -> None:
    """The second transport takes the descriptor over, as in asyncio's selector."""
    loop = asyncio.get_running_loop()
    near, far = make_pipe()
    first, one = await loop.connect_read_pipe(Recorder, near)
    os.write(far.fileno(), b"1")
    await one.bytes_received(1)
    second, two = await loop.connect_read_pipe(Recorder, near)
    await turns()
    os.write(far.fileno(), b"2")
    assert await two.bytes_received(1) == b"2"
    assert bytes(one.received) == b"1"
    first.close()
    second.close()
    await finished(one)
    await finished(two)
    far.close()


@pytest.mark.ours("asyncio's selector has one reader a descriptor: the user's takes the transport's place")
async def test_a_reader_of_the_users_own_beside_the_transport() -> None:
    loop = asyncio.get_running_loop()
    near, far = make_pipe()
    transport, protocol = await loop.connect_read_pipe(Recorder, near)
    called = asyncio.Event()
    loop.add_reader(near, called.set)
    transport.pause_reading()
    os.write(far.fileno(), b"1")
    await in_time(called.wait())
    transport.resume_reading()
    assert await protocol.bytes_received(1) == b"1"
    assert loop.remove_reader(near)
    os.write(far.fileno(), b"2")
    assert await protocol.bytes_received(2) == b"12"
    transport.close()
    await finished(protocol)
    far.close()


@pytest.mark.ours("velociloop's own table of watches")
async def test_a_watch_goes_on_as_epoll_does() -> None:
    """A closed reader (POLLERR) stops libuv's uv_poll; whoever watches is told until it has had enough."""
    told: list[int] = []

    class Patient:
        def on_readable(self) -> None:
            told.append(1)

    from velociloop.api.pipes import watches_of

    loop: Any = asyncio.get_running_loop()
    far, near = make_pipe()
    watch = watches_of(loop).of(near.fileno())
    end: Any = Patient()
    watch.start_reader(end, 1)
    far.close()
    await until(lambda: len(told) >= 3)
    watch.leave(end)
    assert loop.statistics().handles == 0 and not watches_of(loop).by_fd
    near.close()


async def test_the_number_of_a_forgotten_transport() -> None:
    """Its user has closed the file and not the transport: the next file with its number is heard all the same."""
    loop = asyncio.get_running_loop()
    near, far = make_pipe()
    first, one = await loop.connect_read_pipe(Recorder, near)
    await turns()
    number = near.fileno()
    near.close()
    reader, writer = os.pipe()
    assert reader == number
    if not is_ours():
        # asyncio's selector believes that it watches the number already.
        first.pause_reading()
    second, two = await loop.connect_read_pipe(Recorder, io.FileIO(reader, "r"))
    await turns()
    os.write(writer, b"new")
    assert await two.bytes_received(3) == b"new"
    second.close()
    await finished(two)
    first.close()
    await finished(one)
    os.close(writer)
    far.close()


async def test_what_epoll_does_not_watch(handler_calls: HandlerCalls) -> None:
    """asyncio's add_reader is refused within a callback: reported, and nothing comes."""
    loop = asyncio.get_running_loop()
    with open(os.devnull, "r+b", 0) as null:
        transport, protocol = await in_time(loop.connect_read_pipe(Recorder, null))
        call = handler_calls.take()
        assert isinstance(call["exception"], PermissionError)
        assert transport.is_reading() and not transport.is_closing()
        transport.pause_reading()
        with pytest.raises(PermissionError):
            transport.resume_reading()
        transport.close()
        assert await finished(protocol) is None
    sender: Any
    sender, protocol = await loop.connect_write_pipe(Recorder, io.FileIO(os.devnull, "w"))
    sender.write(bytes(1_000_000))
    assert sender.get_write_buffer_size() == 0
    sender.close()
    assert await finished(protocol) is None


@pytest.mark.parametrize("direction", ["read", "write"])
async def test_wrong_files(direction: str) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.connect_read_pipe if direction == "read" else loop.connect_write_pipe

    class Number:
        def __init__(self, number: Any) -> None:
            self.number = number

        def fileno(self) -> Any:
            return self.number

        def close(self) -> None:
            pass

    with tempfile.TemporaryFile() as file:
        with pytest.raises(ValueError, match="Pipe transport is"):
            await connect(Recorder, file)
        assert not file.closed
    folder = os.open(tempfile.gettempdir(), os.O_RDONLY)
    with pytest.raises(ValueError, match="Pipe transport is"):
        await connect(Recorder, Number(folder))
    os.close(folder)
    if not is_ours():
        return  # asyncio's half-made transport fails in its __del__, which nobody can catch
    with pytest.raises(ValueError, match="closed file"):
        await connect(Recorder, file)
    for number, error in ((-1, OSError), (2**40, OverflowError), ("7", TypeError), (None, TypeError)):
        with pytest.raises(error):
            await connect(Recorder, Number(number))
    with pytest.raises(AttributeError):
        await connect(Recorder, 5)


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy collects when it sees fit")
def test_loop_close_with_open_pipes(loop: Loop) -> None:
    """The transports warn when they are collected, and close their files."""

    async def connect() -> tuple[Any, Any, list[Any]]:
        near, far = make_pipe()
        reader, _ = await loop.connect_read_pipe(Recorder, near)
        other, end = make_pipe()
        writer, _ = await loop.connect_write_pipe(Recorder, end)
        writer.write(bytes(200_000))
        return reader, writer, [near, far, other, end]

    reader, writer, files = loop.run_until_complete(connect())
    loop.close()
    assert "open" in repr(reader) and "open" in repr(writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del reader, writer
        gc.collect()
    said = sorted(str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning))
    assert len(said) == 2 and all(text.startswith("unclosed transport <") for text in said)
    assert files[0].closed and files[3].closed
    files[1].close()
    files[2].close()


CLOSED_BEHIND = """
loop = new_child_loop()
loop.set_exception_handler(lambda loop, context: None)

async def main():
    loop = asyncio.get_running_loop()
    for moment in range(4):
        for direction in "rw":
            ends = os.pipe()
            near, far = (ends[0], ends[1]) if direction == "r" else (ends[1], ends[0])
            file = open(near, direction + "b", 0)
            connect = loop.connect_read_pipe if direction == "r" else loop.connect_write_pipe
            if moment == 0:
                loop.call_soon(os.close, near)
            transport, protocol = await connect(Recorder, file)
            if moment == 1:
                os.close(near)
            if direction == "w":
                transport.write(bytes(200000))
            elif moment == 2:
                transport.pause_reading()
            await turns()
            if moment == 2:
                os.close(near)
                if direction == "r":
                    with contextlib.suppress(OSError):
                        transport.resume_reading()
            elif moment == 3:
                os.close(near)
                os.close(far)
                far = None
            await turns(5)
            with contextlib.suppress(OSError):  # asyncio's epoll_ctl(2)
                if not transport.is_closing():
                    transport.abort() if direction == "w" else transport.close()
            await turns(5)
            if far is not None:
                os.close(far)
            with contextlib.suppress(OSError):
                file.close()

loop.run_until_complete(main())
loop.run_until_complete(asyncio.sleep(0))
loop.close()
print("alive")
"""


def test_H6_closed_behind_the_loops_back(loop_name: str) -> None:
    done = run_child(CLOSED_BEHIND, loop_name, "-W", "ignore::ResourceWarning")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n", done.stderr


def test_need_2_a_regular_file_is_an_exception(loop_name: str) -> None:
    done = run_child(
        """
        loop = new_child_loop()

        async def main():
            with tempfile.TemporaryFile() as file:
                for connect in (loop.connect_read_pipe, loop.connect_write_pipe):
                    try:
                        await connect(Recorder, file)
                    except ValueError as exc:
                        print(exc)

        import tempfile
        loop.run_until_complete(main())
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Pipe transport is") == 2


def test_H11_a_child_that_drops_its_parents_pipes(loop_name: str) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio's child does disturb its parent: unregistering reaches the shared epoll instance")
    done = run_child(
        """
        import gc

        async def main(holder):
            loop = asyncio.get_running_loop()
            ends = os.pipe()
            reader, received = await loop.connect_read_pipe(Recorder, open(ends[0], "rb", 0))
            writer, _ = await loop.connect_write_pipe(Recorder, open(ends[1], "wb", 0))
            writer.write(b"x")
            await received.bytes_received(1)
            pid = os.fork()
            if pid == 0:
                asyncio._set_running_loop(None)
                try:
                    writer.write(b"from the child")
                except RuntimeError:
                    pass
                else:
                    os._exit(1)
                reader.close()
                writer.abort()
                del reader, writer
                holder.clear()
                gc.collect()
                os._exit(0)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0, status
            for count in range(2, 100):
                writer.write(b"x")
                await received.bytes_received(count)
            writer.close()
            assert await in_time(received.lost) is None
            await turns()
            assert received.received == b"x" * 99
            print("parent undisturbed")

        loop = new_child_loop()
        loop.run_until_complete(main([loop]))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "parent undisturbed\n", done.stderr


def test_standard_input_without_anything(loop_name: str) -> None:
    """run_child() gives /dev/null, which epoll refuses: asyncio reports that, and nobody hangs."""
    done = run_child(
        """
        loop = new_child_loop()
        loop.set_exception_handler(lambda loop, context: print(type(context["exception"]).__name__))

        async def main():
            transport, protocol = await in_time(loop.connect_read_pipe(Recorder, sys.stdin))
            transport.close()
            assert await in_time(protocol.lost) is None
            await turns()

        loop.run_until_complete(main())
        loop.close()
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "PermissionError\n", done.stderr
