"""What ``sock_recv`` and ``sock_recv_into`` wait with, where asyncio adds a reader.

Nothing is left behind, and everything else that uses the descriptor meanwhile keeps its meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from support import in_time, is_ours, tcp_socketpair, turns, until

from velociloop._accelerator import accelerated
from velociloop.scheduling.dispatch import Dispatcher
from velociloop.transports.waits import SocketWaits

TWINS = ["c", "python"] if accelerated() else ["python"]
Receive = Callable[[Any, socket.socket], Any]


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        if accelerated() and request.param == "python":
            for target, name, reference in [
                (Dispatcher, "drain", Dispatcher._drain_in_python),
                (SocketWaits, "receive", SocketWaits._receive_in_python),
            ]:
                stack.enter_context(mock.patch.object(target, name, reference, create=True))
        yield request.param


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


async def recv(loop: Any, sock: socket.socket) -> bytes:
    return bytes(await loop.sock_recv(sock, 100))


async def recv_into(loop: Any, sock: socket.socket) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: await loop.sock_recv_into(sock, buffer)])


both = pytest.mark.parametrize("receive", [recv, recv_into])


def waits_for(loop: Any, sock: socket.socket) -> bool:
    if is_ours(loop) and sock.fileno() in loop._waits._pending:
        return True
    return sock.fileno() in {key.fd for key in loop._selector.get_map().values()}


def leaves_no_watch(loop: Any, sock: socket.socket) -> bool:
    """Neither here nor in the kernel."""
    if is_ours(loop):
        from velociloop.uv._ffi import lib

        if lib.vl_wait_forget(loop._core.pointer, sock.fileno()) != -errno.ENOENT:
            return False
    return not waits_for(loop, sock)


async def waiting(loop: Any, sock: socket.socket, receive: Receive) -> asyncio.Task[bytes]:
    task: asyncio.Task[bytes] = asyncio.ensure_future(receive(loop, sock))
    await until(lambda: waits_for(loop, sock))
    return task


@both
async def test_again_and_again(twin: str, receive: Receive, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, far = pair
    for number in range(40):
        expected = b"%d" % number
        if number % 3:
            far.send(expected)
            assert await in_time(receive(loop, near)) == expected
        else:
            task = await waiting(loop, near, receive)
            far.send(expected)
            assert await in_time(task) == expected
        assert not waits_for(loop, near)
    far.close()
    assert await in_time(receive(loop, near)) == b""


@both
async def test_cancelled(twin: str, receive: Receive, pair: Any) -> None:
    """Nothing waits any more, and nothing is lost."""
    loop = asyncio.get_running_loop()
    near, far = pair
    for number in range(4):
        task = await waiting(loop, near, receive)
        if number % 2:
            far.send(b"x")  # in the same turn
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(task)
        await turns(2)
        assert leaves_no_watch(loop, near)
        if number % 2:
            assert await in_time(receive(loop, near)) == b"x"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(receive(loop, near), 0.001)
    await turns(2)
    assert not waits_for(loop, near)


@pytest.mark.ours("asyncio keeps its reader for a coroutine that nobody runs any more")
@both
async def test_closed_coroutine(twin: str, receive: Receive, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, _ = pair
    coroutine = receive(loop, near)
    coroutine.send(None)
    assert waits_for(loop, near)
    coroutine.close()
    assert not waits_for(loop, near)


@both
async def test_an_error(twin: str, receive: Receive) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        near.setblocking(False)
        for _ in range(3):  # the first ones leave their mark
            task = await waiting(loop, near, receive)
            far.send(b"x")
            assert await in_time(task) == b"x"
        task = await waiting(loop, near, receive)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(ConnectionResetError):
            await in_time(task)
        assert not waits_for(loop, near)


@both
async def test_somebody_else_was_faster(twin: str, receive: Receive, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, far = pair
    task = await waiting(loop, near, receive)
    far.send(b"x")
    assert near.recv(1) == b"x"
    await turns(4)
    assert not task.done()
    # And between the poll and what it has found.
    stolen: list[bytes] = []

    def steal() -> None:
        with contextlib.suppress(BlockingIOError):
            stolen.append(near.recv(1))

    for _ in range(5):
        far.send(b"y")
        loop.call_soon(steal)
        await turns(2)
    while len(stolen) < 5 and not task.done():
        steal()
        await turns(1)
    far.send(b"z")
    assert await in_time(task) in (b"y", b"z", b"yz")


@both
async def test_a_reader_takes_its_place(twin: str, receive: Receive, pair: Any) -> None:
    """As in asyncio, where both are readers: the last one counts, and the first waits for ever."""
    loop = asyncio.get_running_loop()
    near, far = pair
    called: list[bytes] = []
    task = await waiting(loop, near, receive)
    loop.add_reader(near, lambda: called.append(near.recv(10)))
    if is_ours(loop):
        assert near.fileno() not in loop._waits._pending  # type: ignore[attr-defined]
    far.send(b"x")
    await until(lambda: called)
    assert called == [b"x"]
    await turns(3)
    assert not task.done()
    task.cancel()
    await turns(3)
    assert waits_for(loop, near)  # the reader is none of its business
    assert loop.remove_reader(near)
    assert not waits_for(loop, near)
    assert not loop.remove_reader(near)


@both
async def test_it_takes_the_place_of_a_reader(twin: str, receive: Receive, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, far = pair
    called: list[int] = []
    task = await waiting(loop, near, receive)  # it is known from before
    far.send(b"x")
    assert await in_time(task) == b"x"
    loop.add_reader(near, called.append, 1)
    task = asyncio.ensure_future(receive(loop, near))
    await turns(3)
    far.send(b"y")
    assert await in_time(task) == b"y"
    await turns(3)
    assert not called
    assert not loop.remove_reader(near)


@both
async def test_remove_reader_ends_the_wait(twin: str, receive: Receive, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, far = pair
    task = await waiting(loop, near, receive)
    assert loop.remove_reader(near.fileno())
    assert not loop.remove_reader(near.fileno())
    far.send(b"x")
    await turns(4)
    assert not task.done()
    task.cancel()
    await turns(3)
    assert await in_time(receive(loop, near)) == b"x"


@both
async def test_beside_a_reader_and_a_writer(twin: str, receive: Receive, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, far = pair
    written: list[int] = []
    loop.add_writer(near, written.append, 1)
    task = await waiting(loop, near, receive)
    await until(lambda: written)
    far.send(b"x")
    assert await in_time(task) == b"x"
    loop.remove_writer(near)
    task = await waiting(loop, near, receive)
    loop.add_writer(near, written.append, 2)
    await until(lambda: written[-1] == 2)
    loop.remove_writer(near)
    far.send(b"y")
    assert await in_time(task) == b"y"
    assert not waits_for(loop, near)


@both
async def test_two_at_once(twin: str, receive: Receive, pair: Any) -> None:
    """The second takes the place of the first."""
    loop = asyncio.get_running_loop()
    near, far = pair
    first = await waiting(loop, near, receive)
    second = asyncio.ensure_future(receive(loop, near))
    await turns(3)
    far.send(b"x")
    assert await in_time(second) == b"x"
    assert not first.done()
    first.cancel()
    await turns(3)
    assert not waits_for(loop, near)


@both
async def test_H6_closed_while_it_is_waited_for(twin: str, receive: Receive) -> None:
    """Neither that wait nor a stale registration disturbs the file that gets the number."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    number = near.fileno()
    task = asyncio.ensure_future(receive(loop, near))
    await turns(3)
    near.close()
    far.close()
    await turns(3)
    assert not task.done()
    task.cancel()
    await turns(3)
    with contextlib.suppress(OSError):  # asyncio's selector has it still
        loop.remove_reader(number)
    near, far = socket.socketpair()
    if near.fileno() != number:
        os.dup2(near.fileno(), number)
        near.close()
        near = socket.socket(fileno=number)
    with near, far:
        near.setblocking(False)
        for _ in range(3):
            task = asyncio.ensure_future(receive(loop, near))
            await turns(3)
            far.send(b"x")
            assert await in_time(task) == b"x"


@pytest.mark.ours("asyncio waits with a reader, which ends with the file")
async def test_H6_another_file_under_the_same_socket_object(twin: str, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, far = pair
    for _ in range(3):
        task = await waiting(loop, near, recv)
        far.send(b"x")
        assert await in_time(task) == b"x"
    other, its_far = socket.socketpair()
    with other, its_far:
        other.setblocking(False)
        os.dup2(other.fileno(), near.fileno())
        task = await waiting(loop, near, recv)
        its_far.send(b"other")
        assert await in_time(task) == b"other"


async def test_arguments(twin: str, pair: Any) -> None:
    loop: Any = asyncio.get_running_loop()
    near, far = pair
    far.send(b"0123456789")
    assert await loop.sock_recv(near, 0) == b""
    assert await loop.sock_recv(near, 3) == b"012"
    assert await loop.sock_recv(near, True) == b"3"
    assert await loop.sock_recv(near, 1 << 20) == b"456789"
    with pytest.raises(ValueError, match="negative") as plain:
        near.recv(-1)
    with pytest.raises(ValueError, match=re.escape(str(plain.value))):
        await loop.sock_recv(near, -1)
    with pytest.raises(TypeError):
        await loop.sock_recv(near, "1")
    with pytest.raises((BlockingIOError, TypeError, AttributeError)):
        await loop.sock_recv(None, 1)
    task = asyncio.ensure_future(loop.sock_recv(near, 1 << 20))
    await turns(3)
    far.send(b"large")
    assert await in_time(task) == b"large"
    near.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await loop.sock_recv(near, 1)


async def test_no_bytes_do_not_wait(twin: str) -> None:
    """A TCP socket without data, which was waited for before, answers 0 bytes at once."""
    loop: Any = asyncio.get_running_loop()
    near, far = tcp_socketpair()
    with near, far:
        near.setblocking(False)
        try:
            near.recv(0)
        except BlockingIOError:
            pytest.skip("this Python's sockets wait for 0 bytes, too")
        for _ in range(2):
            task = await waiting(loop, near, recv)
            far.send(b"x")
            assert await in_time(task) == b"x"
        with pytest.raises(StopIteration) as ended:
            loop.sock_recv(near, 0).send(None)
        assert ended.value.value == b""


async def test_a_subclass_goes_its_own_way(twin: str) -> None:
    class Upper(socket.socket):
        def recv(self, *args: Any) -> bytes:
            return super().recv(*args).upper()

    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    with Upper(fileno=near.detach()) as upper, far:
        upper.setblocking(False)
        task = await waiting(loop, upper, recv)
        far.send(b"x")
        assert await in_time(task) == b"X"


async def test_a_descriptor_with_a_transport(twin: str, pair: Any) -> None:
    loop = asyncio.get_running_loop()
    near, _ = pair
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    with pytest.raises(RuntimeError, match="is used by transport"):
        await in_time(loop.sock_recv(near, 1))
    transport.abort()
    await turns(4)


@pytest.mark.ours("KeyboardInterrupt is put into velociloop's wait")
def test_H1_interrupted(twin: str) -> None:
    import velociloop

    async def begin() -> bytes:
        far.send(b"x")
        return bytes(await loop.sock_recv(near, 10))

    near, far = socket.socketpair()
    loop: Any = velociloop.new_event_loop()
    with near, far:
        near.setblocking(False)
        task = loop.create_task(recv(loop, near))
        loop.run_until_complete(asyncio.sleep(0))
        wait = loop._waits._pending[near.fileno()]
        real, wait.operation = wait.operation, mock.Mock(side_effect=KeyboardInterrupt)
        far.send(b"x")
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        wait.operation = real
        assert loop.run_until_complete(task) == b"x"
        loop.close()


@pytest.mark.ours("forks")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_H11_a_forked_child_waits_by_itself(twin: str) -> None:
    import velociloop

    near, far = socket.socketpair()
    loop: Any = velociloop.new_event_loop()
    with near, far:
        near.setblocking(False)
        task = loop.create_task(recv(loop, near))
        loop.run_until_complete(asyncio.sleep(0))
        child = os.fork()
        if not child:
            status = 1
            try:
                far.send(b"x")
                status = 0 if loop.run_until_complete(task) == b"x" else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        far.send(b"parent")
        assert loop.run_until_complete(task) == b"parent"
        loop.close()


@pytest.mark.ours("its statistics")
async def test_it_is_no_handle_of_the_users(twin: str, pair: Any) -> None:
    loop: Any = asyncio.get_running_loop()
    near, far = pair
    before = loop.statistics().handles
    task = await waiting(loop, near, recv)
    assert loop.statistics().handles == before
    assert "pending=1" in repr(loop._waits)
    far.send(b"x")
    await in_time(task)
    assert not loop._waits._pending


REPETITIONS = 300


@pytest.mark.ours("the twins are its own")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
async def test_no_reference_is_leaked(twin: str, pair: Any) -> None:
    loop: Any = asyncio.get_running_loop()
    near, far = pair
    message = bytes(600)

    async def repeat() -> None:
        for _ in range(REPETITIONS):
            task = asyncio.ensure_future(loop.sock_recv(near, 1000))
            await asyncio.sleep(0)
            far.send(message)
            assert len(await task) == 600

    def counts() -> tuple[list[int], int]:
        gc.collect()
        return [sys.getrefcount(item) for item in (near, loop, loop._waits, socket.socket)], sys.getallocatedblocks()

    await repeat()
    references, blocks = counts()
    await repeat()
    references_after, blocks_after = counts()
    assert references_after == references
    assert blocks_after - blocks < REPETITIONS // 2
