"""What the tests of pipes share: both ends of each kind, and transports on them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import socket
import tempfile
import tty
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import Recorder, in_time, turns, until


def make_pipe() -> tuple[Any, Any]:
    reader, writer = os.pipe()
    return io.FileIO(reader, "r"), io.FileIO(writer, "w")


def make_fifo() -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fifo")
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(path, os.O_WRONLY)
    return io.FileIO(reader, "r"), io.FileIO(writer, "w")


def make_sockets() -> tuple[Any, Any]:
    return socket.socketpair()


def make_pty() -> tuple[Any, Any]:
    try:
        master, slave = os.openpty()
    except OSError as exc:  # a container without devpts
        pytest.skip(f"no pseudo-terminals here: {exc}")
    tty.setraw(slave)
    return io.FileIO(master, "r+"), io.FileIO(slave, "w")


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "pipe": make_pipe,
    "fifo": make_fifo,
    "socket": make_sockets,
    "pty": make_pty,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
#: Those whose writing end hears that the reading end was closed.
telling_kind = pytest.mark.parametrize("kind", ["pipe", "fifo", "socket"])


def pattern(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def fill(file: Any) -> int:
    """Write until the kernel takes no more; the number of bytes."""
    os.set_blocking(file.fileno(), False)
    total = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            total += os.write(file.fileno(), b"f" * 4096)
    return total


def send_all(file: Any, data: bytes) -> None:
    os.set_blocking(file.fileno(), True)
    with memoryview(data) as view:
        sent = 0
        while sent < len(data):
            sent += os.write(file.fileno(), view[sent:])


def receive_all(file: Any, count: int) -> bytes:
    os.set_blocking(file.fileno(), True)
    received = bytearray()
    while len(received) < count:
        data = os.read(file.fileno(), count - len(received))
        assert data, f"EOF after {len(received)} of {count} bytes"
        received += data
    return bytes(received)


async def finished(protocol: Recorder) -> BaseException | None:
    exc = await in_time(asyncio.shield(protocol.lost))
    await turns()
    return exc


@contextlib.asynccontextmanager
async def reading(
    kind: str = "pipe", protocol_factory: Callable[[], Any] = Recorder
) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A transport that reads, its protocol, and the file that is written to; all closed at exit."""
    near, far = KINDS[kind]()
    with contextlib.closing(far):
        transport, protocol = await asyncio.get_running_loop().connect_read_pipe(protocol_factory, near)
        try:
            yield transport, protocol, far
        finally:
            transport.close()
            await until(lambda: transport.get_protocol() is None)


@contextlib.asynccontextmanager
async def writing(
    kind: str = "pipe", protocol_factory: Callable[[], Any] = Recorder
) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A transport that writes, its protocol, and the file that is read from; all closed at exit."""
    far, near = KINDS[kind]()
    with contextlib.closing(far):
        transport, protocol = await asyncio.get_running_loop().connect_write_pipe(protocol_factory, near)
        try:
            yield transport, protocol, far
        finally:
            if transport.get_protocol() is not None and not protocol.lost.done():
                if not transport.is_closing() or transport.get_write_buffer_size():
                    transport.abort()
                await until(lambda: transport.get_protocol() is None)
