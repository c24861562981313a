"""BufferedProtocol: the transport fills the protocol's own buffer."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading

import pytest
from support import HandlerCalls, Recorder, in_time, pair, raw_connection, turns

pytestmark = pytest.mark.debug_variant


class Buffered(asyncio.BufferedProtocol):
    """Receives into a buffer of `size` bytes, and keeps everything."""

    def __init__(self, size: int = 1000) -> None:
        loop = asyncio.get_running_loop()
        self.buffer = bytearray(size)
        self.received = bytearray()
        self.largest = 0
        self.made: asyncio.Future[None] = loop.create_future()
        self.eof: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()
        self.calls: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.made.set_result(None)

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:
        self.calls.append("get")
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.calls.append("updated")
        assert 0 < nbytes <= len(self.buffer)
        self.largest = max(self.largest, nbytes)
        self.received += self.buffer[:nbytes]

    def eof_received(self) -> None:
        self.eof.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


@pytest.mark.parametrize("size", [1, 100, 65536, 300_000])
async def test_every_byte_arrives_in_the_buffer(size: int) -> None:
    whole = random.Random(size).randbytes(300 if size == 1 else 500_000)
    async with raw_connection(lambda: Buffered(size)) as (_, protocol, peer):
        thread = threading.Thread(target=peer.sock.sendall, args=(whole,))
        thread.start()
        while len(protocol.received) < len(whole):
            await asyncio.sleep(0)
        await asyncio.to_thread(thread.join)
        peer.sock.close()
        assert await in_time(protocol.lost) is None
        assert protocol.received == whole
        assert protocol.eof.done()
        # Of two calls in a row the second is never buffer_updated(): each has a buffer of its own.
        assert "updated updated" not in " ".join(protocol.calls)


async def test_a_memoryview_is_a_buffer_too() -> None:
    class Views(Buffered):
        def get_buffer(self, sizehint: int) -> bytearray | memoryview:
            return memoryview(self.buffer)[:10]

    async with raw_connection(Views) as (_, protocol, peer):
        peer.sock.sendall(b"0123456789" * 3)
        peer.sock.close()
        assert await in_time(protocol.lost) is None
        assert protocol.received == b"0123456789" * 3 and protocol.largest <= 10


async def test_the_buffer_may_be_resized_between_reads() -> None:
    """The transport keeps no view of it."""

    class Resizing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.buffer += b"x"

    async with raw_connection(lambda: Resizing(5)) as (_, protocol, peer):
        peer.sock.sendall(b"0123456789" * 20)
        peer.sock.close()
        assert await in_time(protocol.lost) is None
        assert protocol.received == b"0123456789" * 20


async def test_pausing_within_buffer_updated() -> None:
    class Pausing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    async with raw_connection(lambda: Pausing(7)) as (_, protocol, peer):
        peer.sock.sendall(b"0123456789" * 20)
        peer.sock.close()
        assert await in_time(protocol.lost) is None
        assert protocol.received == b"0123456789" * 20


async def test_closing_within_buffer_updated() -> None:
    class Closing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.transport.close()

    async with raw_connection(lambda: Closing(7)) as (_, protocol, peer):
        peer.sock.sendall(b"0123456789" * 20)
        assert await in_time(protocol.lost) is None
        assert protocol.received == b"0123456"


async def test_switching_between_protocol_kinds() -> None:
    """From data_received to buffer_updated and back, in the middle of what has arrived."""

    class First(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.set_protocol(buffered)

    class Second(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            last.transport = transport
            transport.set_protocol(last)

    buffered = Second(4)
    last = Recorder()
    async with raw_connection(First) as (transport, first, peer):
        peer.sock.sendall(b"A")
        await first.bytes_received(1)
        peer.sock.sendall(b"0123456789")
        assert await last.bytes_received(6) == b"456789"
        assert buffered.received == b"0123"


@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
async def test_need_23_exceptions_close_that_connection(handler_calls: HandlerCalls, method: str) -> None:
    class Failing(Buffered):
        def get_buffer(self, sizehint: int) -> bytearray | memoryview:
            if method == "get_buffer":
                raise LookupError("on purpose")
            return super().get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            raise LookupError("on purpose")

    async with raw_connection(Failing) as (_, protocol, peer):
        peer.sock.sendall(b"x")
        error = await in_time(protocol.lost)
        assert isinstance(error, LookupError)
        context = handler_calls.take()
        assert context["exception"] is error
        assert context["message"] == f"Fatal error: protocol.{method}() call failed."


async def test_an_empty_buffer_is_an_error(handler_calls: HandlerCalls) -> None:
    async with raw_connection(lambda: Buffered(0)) as (_, protocol, peer):
        peer.sock.sendall(b"x")
        error = await in_time(protocol.lost)
        assert isinstance(error, RuntimeError) and str(error) == "get_buffer() returned an empty buffer"
        assert handler_calls.take()["exception"] is error


async def test_a_read_only_buffer_is_an_error(handler_calls: HandlerCalls) -> None:
    class ReadOnly(Buffered):
        def get_buffer(self, sizehint: int) -> bytearray | memoryview:
            return memoryview(b"read only")

    async with raw_connection(ReadOnly) as (_, protocol, peer):
        peer.sock.sendall(b"x")
        assert isinstance(await in_time(protocol.lost), (TypeError, BufferError))
        handler_calls.take()


async def test_over_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """A memoryview, since the standard library's TLS layer fills slices of what it is given: copies, of a bytearray."""

    class Views(Buffered):
        def get_buffer(self, sizehint: int) -> bytearray | memoryview:
            return memoryview(self.buffer)

    whole = random.Random(1).randbytes(300_000)
    async with pair(Recorder, lambda: Views(10_000), server_tls=server_tls, client_tls=client_tls) as ends:
        ends.client.transport.write(whole)
        while len(ends.server.received) < len(whole):
            await asyncio.sleep(0)
        assert ends.server.received == whole
        ends.client.transport.close()
        assert await in_time(ends.server.lost) is None
        await turns()
