"""Streams: open_connection, start_server, their Unix kin, and every method of StreamReader and StreamWriter."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from support import LOCALHOST, HandlerCalls, RawPeer, in_time, tcp_socketpair, turns, until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(handler: Handler, *, unix: bool = False, **options: Any) -> AsyncIterator[Streams]:
    """A client's streams, with `handler` at the other end; everything is closed at exit."""
    handled = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            handled.set_result(None)

    with tempfile.TemporaryDirectory() as folder:
        if unix:
            path = os.path.join(folder, "socket")
            server = await asyncio.start_unix_server(handle, path)
            reader, writer = await asyncio.open_unix_connection(path, **options)
        else:
            server = await asyncio.start_server(handle, LOCALHOST, 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], **options)
        async with server:
            try:
                yield reader, writer
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await in_time(writer.wait_closed())
                await in_time(handled)


def sends(*pieces: bytes) -> Handler:
    """A handler that sends `pieces`, and then the end."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return handler


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_there_and_back(unix: bool) -> None:
    data = os.urandom(1 << 20)
    async with connected(echo, unix=unix) as (reader, writer):

        async def write() -> None:
            for start in range(0, len(data), 50_000):
                writer.write(data[start : start + 50_000])
                await writer.drain()
            assert writer.can_write_eof()
            writer.write_eof()

        writing = asyncio.create_task(write())
        assert await in_time(reader.readexactly(10)) == data[:10]
        assert await in_time(reader.read()) == data[10:]
        assert reader.at_eof()
        await writing


async def test_the_ways_to_read() -> None:
    async with connected(sends(b"line\n", b"until;", b"exactly", b"a\nb\nc")) as (reader, _):
        assert await in_time(reader.readline()) == b"line\n"
        assert await in_time(reader.readuntil(b";")) == b"until;"
        assert await in_time(reader.readexactly(7)) == b"exactly"
        assert await in_time(reader.read(0)) == b""
        assert [line async for line in reader] == [b"a\n", b"b\n", b"c"]
        assert await in_time(reader.read(10)) == b"" == await in_time(reader.readline())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="several separators from Python 3.13 on")
async def test_readuntil_one_of_several() -> None:
    async with connected(sends(b"one;two\nthree;")) as (reader, _):
        separators: Any = (b"\n", b";")
        assert [await in_time(reader.readuntil(separators)) for _ in range(3)] == [b"one;", b"two\n", b"three;"]


async def test_an_end_too_early() -> None:
    async with connected(sends(b"only this")) as (reader, _):
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await in_time(reader.readexactly(100))
        assert (caught.value.partial, caught.value.expected) == (b"only this", 100)
    async with connected(sends(b"only this")) as (reader, _):
        with pytest.raises(EOFError) as caught_too:
            await in_time(reader.readuntil(b";"))
        assert isinstance(caught_too.value, asyncio.IncompleteReadError)
        assert (caught_too.value.partial, caught_too.value.expected) == (b"only this", None)


async def test_a_line_beyond_the_limit() -> None:
    async with connected(sends(b"x" * 5000 + b"\nrest"), limit=1000) as (reader, _):
        with pytest.raises(asyncio.LimitOverrunError) as caught:
            await in_time(reader.readuntil())
        consumed = caught.value.consumed
        assert 0 < consumed <= 5000
        assert await in_time(reader.readexactly(consumed)) == b"x" * consumed
        await in_time(reader.read())


async def test_the_two_names_of_a_connection() -> None:
    async with connected(echo) as (_, writer):
        near, far = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        assert near[0] == far[0] == LOCALHOST and near != far
        assert writer.get_extra_info("socket").getsockname() == near
        assert writer.get_extra_info("nothing", "default") == "default"
        assert isinstance(writer.transport, asyncio.Transport)
        assert isinstance(writer.transport.get_protocol(), asyncio.StreamReaderProtocol)


async def test_writelines_and_close() -> None:
    received = asyncio.get_running_loop().create_future()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())

    async with connected(collect) as (_, writer):
        writer.writelines([b"one", b"two"])
        assert not writer.is_closing()
        writer.close()
        assert writer.is_closing()
        await in_time(writer.wait_closed())
        assert await in_time(received) == b"onetwo"
        with pytest.raises(ConnectionResetError):
            await writer.drain()


async def test_drain_waits_for_a_slow_reader() -> None:
    go = asyncio.Event()
    size = 8 << 20

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await reader.readexactly(size)
        writer.write(b"all")

    async with connected(slow) as (reader, writer):
        writer.write(bytes(size))
        draining = [asyncio.create_task(writer.drain()) for _ in range(2)]
        await turns(10)
        assert not any(task.done() for task in draining)
        go.set()
        await in_time(asyncio.gather(*draining))
        assert await in_time(reader.readexactly(3)) == b"all"


async def test_a_reset_reaches_reader_and_writer() -> None:
    near, far = tcp_socketpair()
    near.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=near)
    reading = asyncio.create_task(reader.read())
    await turns()
    RawPeer(far).reset()
    with pytest.raises(ConnectionResetError):
        await in_time(reading)
    assert isinstance(reader.exception(), ConnectionResetError)
    with pytest.raises(ConnectionResetError):
        writer.write(b"x")
        await in_time(writer.drain())
    writer.close()
    with pytest.raises(ConnectionResetError):
        await in_time(writer.wait_closed())


async def test_an_exception_in_the_servers_handler_is_reported(handler_calls: HandlerCalls) -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise LookupError("on purpose")

    async with connected(fail) as (reader, _):
        assert await in_time(reader.read()) == b""
    await until(lambda: len(handler_calls))
    assert isinstance(handler_calls.take()["exception"], LookupError)


async def test_a_handler_that_is_no_coroutine() -> None:
    writers = []

    def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        writers.append(writer)

    server = await asyncio.start_server(handler, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await in_time(reader.read()) == b"hello"
        writer.close()
        await in_time(writer.wait_closed())
        await in_time(writers[0].wait_closed())


async def test_a_connection_refused() -> None:
    server = await asyncio.start_server(echo, LOCALHOST, 0)
    address = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    with tempfile.TemporaryDirectory() as folder, pytest.raises(FileNotFoundError):
        await asyncio.open_unix_connection(os.path.join(folder, "none"))


async def test_start_tls_of_streams(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.drain()
        await writer.start_tls(server_tls)
        writer.write((await reader.readline()).upper())
        await writer.drain()

    async with connected(upgrade) as (reader, writer):
        writer.write(b"STARTTLS\n")
        assert await in_time(reader.readline()) == b"go\n"
        await in_time(writer.start_tls(client_tls, server_hostname="localhost"))
        assert writer.get_extra_info("cipher")
        writer.write(b"secret\n")
        assert await in_time(reader.readline()) == b"SECRET\n"


# A reader by itself: what a protocol of one's own feeds


async def test_a_reader_fed_by_hand() -> None:
    reader = asyncio.StreamReader(limit=100)
    waiting = asyncio.create_task(reader.readline())
    await turns()
    reader.feed_data(b"li")
    reader.feed_data(b"ne\nmore")
    assert await waiting == b"line\n"
    assert not reader.at_eof()
    reader.feed_eof()
    assert await reader.read() == b"more" and reader.at_eof()


async def test_a_readers_exception() -> None:
    reader = asyncio.StreamReader()
    waiting = asyncio.create_task(reader.read(1))
    await turns()
    assert reader.exception() is None
    error = LookupError("on purpose")
    reader.set_exception(error)
    assert reader.exception() is error
    for read in waiting, reader.readline():
        with pytest.raises(LookupError, match="on purpose"):
            await read


async def test_one_reader_for_one_task() -> None:
    async with connected(echo) as (reader, _):
        first = asyncio.create_task(reader.readline())
        await turns()
        with pytest.raises(RuntimeError, match="already waiting"):
            await reader.read(1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_streams_by_hand_on_a_pipe() -> None:
    """As the documentation of connect_read_pipe has it: reader and writer on two ends of os.pipe()."""
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0))
    sink, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(writing, "wb", 0)
    )
    writer = asyncio.StreamWriter(sink, protocol, None, loop)
    with pytest.raises(AssertionError):
        reader.set_transport(source)  # the protocol has set it
    data = os.urandom(1 << 20)

    async def write() -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    writing_task = asyncio.create_task(write())
    assert await in_time(reader.read()) == data
    await in_time(writing_task)
    source.close()
    await turns(6)
