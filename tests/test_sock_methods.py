"""The loop's methods for sockets that the program keeps: `sock_recv` and its relatives.

asyncio's own code runs above the loop's selector. What is shown is that nothing stays behind: not after success, error,
cancellation, nor with several of them at once on one socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LOCALHOST, in_time, is_ours, tcp_socketpair, turns, until

Loop = asyncio.AbstractEventLoop
#: More than any socket buffer here takes.
MUCH = 8 << 20


@contextlib.contextmanager
def sockets(kind: str = "tcp") -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tcp_socketpair() if kind == "tcp" else socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


@contextlib.contextmanager
def datagram_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
    ):
        for sock in (near, far):
            sock.setblocking(False)
            sock.bind((LOCALHOST, 0))
        yield near, far


def watched(loop: Any) -> set[int]:
    """The descriptors that the loop's selector knows, but for the loop's own."""
    registered = {key.fd for key in loop._selector.get_map().values()} - {loop._ssock.fileno()}
    # velociloop waits for sock_recv() beside its selector.
    return registered | set(loop._waits._pending) if is_ours(loop) else registered


async def blocked(loop: Loop, awaitable: Awaitable[Any], sock: socket.socket) -> asyncio.Future[Any]:
    """Start `awaitable` and return once it waits for `sock`."""
    future = asyncio.ensure_future(awaitable)
    await until(lambda: sock.fileno() in watched(loop))
    return future


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_recv_and_sendall(kind: str) -> None:
    loop = asyncio.get_running_loop()
    with sockets(kind) as (near, far):
        receiving = await blocked(loop, loop.sock_recv(near, 100), near)
        await loop.sock_sendall(far, b"hello")
        assert await in_time(receiving) == b"hello"
        buffer = bytearray(10)
        receiving = await blocked(loop, loop.sock_recv_into(near, buffer), near)
        await loop.sock_sendall(far, memoryview(b"into"))
        assert await in_time(receiving) == 4
        assert buffer[:4] == b"into"
        far.shutdown(socket.SHUT_WR)
        assert await in_time(loop.sock_recv(near, 100)) == b""
        assert not watched(loop)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_more_than_the_kernel_takes(kind: str) -> None:
    loop = asyncio.get_running_loop()
    data = os.urandom(1 << 16) * (MUCH >> 16)
    received = bytearray()

    async def receive(sock: socket.socket) -> None:
        while len(received) < len(data):
            received.extend(await loop.sock_recv(sock, 1 << 16))

    with sockets(kind) as (near, far):
        await in_time(asyncio.gather(loop.sock_sendall(near, data), receive(far)))
        assert received == data
        assert not watched(loop)


async def test_both_directions_of_one_socket() -> None:
    loop = asyncio.get_running_loop()
    with sockets() as (near, far):
        receiving = await blocked(loop, loop.sock_recv(near, 10), near)
        sending = asyncio.ensure_future(loop.sock_sendall(near, bytes(MUCH)))
        await turns()
        await loop.sock_sendall(far, b"across")
        assert await in_time(receiving) == b"across"
        got = 0
        while got < MUCH:
            got += len(await in_time(loop.sock_recv(far, 1 << 20)))
        await in_time(sending)
        assert not watched(loop)


async def test_need_8_datagrams() -> None:
    loop = asyncio.get_running_loop()
    with datagram_sockets() as (near, far):
        receiving = await blocked(loop, loop.sock_recvfrom(near, 100), near)
        assert await loop.sock_sendto(far, b"datagram", near.getsockname()) == 8
        assert await in_time(receiving) == (b"datagram", far.getsockname())
        buffer = bytearray(20)
        receiving = await blocked(loop, loop.sock_recvfrom_into(near, buffer), near)
        assert await loop.sock_sendto(far, b"", near.getsockname()) == 0
        assert await in_time(receiving) == (0, far.getsockname())
        receiving = await blocked(loop, loop.sock_recvfrom_into(near, buffer, 4), near)
        await loop.sock_sendto(far, b"truncated", near.getsockname())
        assert await in_time(receiving) == (4, far.getsockname())
        assert buffer[:5] == b"trun\0"
        with pytest.raises(OSError, match="Message too long") as raised:
            await loop.sock_sendto(far, bytes(1 << 17), near.getsockname())
        assert raised.value.errno == errno.EMSGSIZE
        assert not watched(loop)


async def test_connect_and_accept() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener, socket.socket() as client:
        listener.setblocking(False)
        client.setblocking(False)
        accepting = await blocked(loop, loop.sock_accept(listener), listener)
        await in_time(loop.sock_connect(client, listener.getsockname()))
        accepted, address = await in_time(accepting)
        with accepted:
            assert address == client.getsockname()
            assert accepted.gettimeout() == 0
            await loop.sock_sendall(accepted, b"welcome")
            assert await in_time(loop.sock_recv(client, 100)) == b"welcome"
        assert not watched(loop)


async def test_connect_refused() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as closed:
        closed.bind((LOCALHOST, 0))
        nobody = closed.getsockname()
    with socket.socket() as client:
        client.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await in_time(loop.sock_connect(client, nobody))
        assert not watched(loop)


async def test_connect_to_a_unix_socket() -> None:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(folder, "socket")
        listener.bind(path)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await in_time(loop.sock_connect(client, path))
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            with pytest.raises(FileNotFoundError):
                await in_time(loop.sock_connect(client, path + "-not"))


@pytest.mark.parametrize(("offset", "count"), [(0, None), (1000, None), (0, 70000), (1000, 70000), (0, 1 << 30)])
async def test_need_7_sock_sendfile(offset: int, count: int | None) -> None:
    loop = asyncio.get_running_loop()
    data = os.urandom(200_000)
    with sockets() as (near, far), tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        wanted = data[offset : None if count is None else offset + count]

        async def receive() -> bytes:
            received = bytearray()
            while len(received) < len(wanted):
                received += await loop.sock_recv(far, 1 << 16)
            return bytes(received)

        sent, received = await in_time(asyncio.gather(loop.sock_sendfile(near, file, offset, count), receive()))
        assert sent == len(wanted)
        assert received == wanted
        assert file.tell() == offset + sent
        assert not watched(loop)


async def test_need_7_sock_sendfile_by_reading() -> None:
    """What has no descriptor is read and sent; only where the caller allows it."""
    import io

    loop = asyncio.get_running_loop()
    with sockets() as (near, far):
        assert await in_time(loop.sock_sendfile(near, io.BytesIO(b"from memory"), fallback=True)) == 11
        assert await in_time(loop.sock_recv(far, 100)) == b"from memory"
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await in_time(loop.sock_sendfile(near, io.BytesIO(b"from memory"), fallback=False))


Start = Callable[[Any, socket.socket], Awaitable[Any]]
WAITING: dict[str, Start] = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
    "sock_sendall": lambda loop, sock: loop.sock_sendall(sock, bytes(MUCH)),
}


@pytest.mark.parametrize("name", WAITING)
async def test_cancelled(name: str) -> None:
    """Cancellation leaves no watch behind, and the socket and its descriptor are good for the next."""
    loop = asyncio.get_running_loop()
    with sockets() as (near, far):
        for _ in range(3):
            waiting = await blocked(loop, WAITING[name](loop, near), near)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await in_time(waiting)
            await turns()
            assert not watched(loop)
        await loop.sock_sendall(far, b"still")
        assert await in_time(loop.sock_recv(near, 10)) == b"still"


async def test_cancelled_sendfile() -> None:
    loop = asyncio.get_running_loop()
    with sockets() as (near, far), tempfile.TemporaryFile() as file:
        file.truncate(MUCH)
        for _ in range(3):
            waiting = await blocked(loop, loop.sock_sendfile(near, file), near)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await in_time(waiting)
            await turns()
            assert not watched(loop)
        await loop.sock_sendall(far, b"still")
        assert await in_time(loop.sock_recv(near, 10)) == b"still"


async def test_cancelled_sendto(tmp_path: Path) -> None:
    """A datagram for a receiver whose queue is full."""
    loop = asyncio.get_running_loop()
    address = str(tmp_path / "receiver")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far, socket.socket(far.family, far.type) as near:
        far.bind(address)
        near.setblocking(False)
        near.connect(address)  # or it would always seem writable
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(bytes(1000))
        waiting = await blocked(loop, loop.sock_sendto(near, b"late", address), near)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(waiting)
        await turns()
        assert not watched(loop)


async def test_cancelled_accept() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.setblocking(False)
        waiting = await blocked(loop, loop.sock_accept(listener), listener)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(waiting)
        await turns()
        assert not watched(loop)
        with socket.create_connection(listener.getsockname()) as client:
            accepted, address = await in_time(loop.sock_accept(listener))
            accepted.close()
            assert address == client.getsockname()


async def test_cancelled_connect() -> None:
    """A connect that hangs: the listener's backlog is full."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_INET))
        listener.bind((LOCALHOST, 0))
        listener.listen(0)
        waiting = None
        for _ in range(16):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            waiting = asyncio.ensure_future(loop.sock_connect(client, listener.getsockname()))
            await turns(5)
            if not waiting.done():
                break
        assert waiting is not None
        assert not waiting.done()
        assert watched(loop) == {client.fileno()}
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(waiting)
        await turns()
        assert not watched(loop)


@pytest.mark.parametrize("name", WAITING)
async def test_blocking_sockets_are_refused_in_debug_mode(name: str) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    near, far = tcp_socketpair()
    with near, far:
        with pytest.raises(ValueError, match="the socket must be non-blocking"):
            await WAITING[name](loop, near)


@pytest.mark.parametrize("name", WAITING)
async def test_closed_sockets(name: str) -> None:
    loop = asyncio.get_running_loop()
    with sockets() as (near, _):
        near.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await in_time(WAITING[name](loop, near))


async def test_a_transports_socket_is_refused() -> None:
    """Two readers of one descriptor would tear its bytes apart."""
    loop: Any = asyncio.get_running_loop()
    near, far = tcp_socketpair()
    near.setblocking(False)
    with far:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        fd = transport.get_extra_info("socket").fileno()
        calls: tuple[Callable[[], object], ...] = (
            lambda: loop.add_reader(fd, print),
            lambda: loop.add_writer(fd, print),
            lambda: loop.remove_reader(fd),
            lambda: loop.remove_writer(fd),
        )
        for call in calls:
            with pytest.raises(RuntimeError, match="is used by transport"):
                call()
        # asyncio notices where it would have to wait, which is where the watch is set.
        with pytest.raises(RuntimeError, match="is used by transport"):
            await in_time(loop.sock_recv(near, 10))
        transport.abort()
        await turns()


async def test_after_a_transport_its_descriptor_is_free() -> None:
    loop: Any = asyncio.get_running_loop()
    near, far = tcp_socketpair()
    near.setblocking(False)
    with far:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        fd = transport.get_extra_info("socket").fileno()
        transport.abort()
        await turns()
        assert loop.remove_reader(fd) is False


async def test_many_descriptors() -> None:
    """2,000 watched at once: each event reaches its own callback, and nothing is left."""
    resource = pytest.importorskip("resource")
    loop: Any = asyncio.get_running_loop()
    count = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * count + 200:
        pytest.skip(f"the hard limit is {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * count + 200), hard))
    try:
        pairs = [socket.socketpair() for _ in range(count)]
        seen: list[tuple[int, bytes]] = []
        try:
            for number, (near, _) in enumerate(pairs):
                near.setblocking(False)
                loop.add_reader(near, lambda number=number, near=near: seen.append((number, near.recv(10))))
            for number, (_, far) in enumerate(pairs):
                far.send(b"%d" % number)
            await until(lambda: len(seen) == count)
            assert sorted(seen) == [(number, b"%d" % number) for number in range(count)]
            for near, _ in pairs:
                assert loop.remove_reader(near) is True
            assert not watched(loop)
            if is_ours():
                assert loop.statistics().handles == 0
        finally:
            for near, far in pairs:
                near.close()
                far.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
