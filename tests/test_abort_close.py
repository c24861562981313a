"""How connections end: close, abort, errors, and what may be called afterwards."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
import sys
from typing import Any

import pytest
from support import (
    LOCALHOST,
    HandlerCalls,
    RawPeer,
    Recorder,
    in_time,
    is_ours,
    pair,
    raw_connection,
    serving,
    tcp_socketpair,
    turns,
    until,
)

pytestmark = pytest.mark.debug_variant


def free_port() -> int:
    """A port that nobody listens on now, and that the kernel is unlikely to hand out next."""
    with socket.create_server((LOCALHOST, 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


async def test_close_sends_what_was_written_first() -> None:
    whole = bytes(3_000_000)
    async with raw_connection(Recorder, small_buffers=True) as (transport, protocol, peer):
        transport.write(whole)
        transport.close()
        assert transport.is_closing()
        assert await peer.receive_to_eof() == whole
        assert await in_time(protocol.lost) is None


async def test_close_is_told_once_and_in_a_later_turn() -> None:
    async with raw_connection(Recorder) as (transport, protocol, _):
        transport.close()
        transport.close()
        assert not protocol.lost.done()
        assert await in_time(protocol.lost) is None
        transport.close()
        transport.abort()
        await turns()
        assert protocol.events == ["made", "lost"]


async def test_close_stops_reading() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        peer.sock.sendall(b"never delivered")
        transport.close()
        await in_time(protocol.lost)
        assert not protocol.received


async def test_abort_drops_what_is_buffered() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(1_000_000))
        assert transport.get_write_buffer_size() > 0
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        assert await in_time(protocol.lost) is None
        assert len(await peer.receive_to_eof()) < 1_000_000


async def test_abort_after_close_ends_at_once() -> None:
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, _):
        transport.write(bytes(1_000_000))
        transport.close()
        await turns()
        assert not protocol.lost.done()
        transport.abort()
        assert await in_time(protocol.lost) is None


async def test_write_write_abort_delivers_both() -> None:
    """asyncio sends at once, so what the kernel took before the abort arrives."""
    async with raw_connection(Recorder) as (transport, protocol, peer):
        transport.write(b"one ")
        transport.write(b"two")
        transport.abort()
        assert await peer.receive_to_eof() == b"one two"
        assert await in_time(protocol.lost) is None


async def test_need_12_write_after_close_is_asyncios() -> None:
    """No exception: the data goes nowhere or is dropped, as the standard library has it."""
    async with raw_connection(Recorder) as (transport, protocol, peer):
        transport.close()
        transport.write(b"too late")
        await in_time(protocol.lost)
        transport.write(b"too late")
        if is_ours():  # asyncio's writelines() fails with a TypeError here from 3.12 on
            transport.writelines([b"too", b"late"])
        assert transport.get_write_buffer_size() == 0
        assert await peer.receive_to_eof() == b""


async def test_write_after_close_with_bytes_waiting_is_still_sent() -> None:
    """asyncio queues it behind them; the connection ends when all has left."""
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(1_000_000))
        transport.close()
        transport.write(b"the end")
        received = await peer.receive_to_eof()
        assert len(received) == 1_000_007 and received.endswith(b"the end")
        assert await in_time(protocol.lost) is None


async def test_write_after_abort_is_dropped_and_logged_after_five(caplog: pytest.LogCaptureFixture) -> None:
    async with raw_connection(Recorder) as (transport, protocol, _):
        transport.abort()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(7):
                transport.write(b"x")
        # The abort counts as the first of the five that pass in silence.
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
            "socket.send() raised exception."
        ] * 3
        assert await in_time(protocol.lost) is None


async def test_methods_after_the_connection_is_lost() -> None:
    async with raw_connection(Recorder) as (transport, protocol, _):
        transport.close()
        await in_time(protocol.lost)
        await turns()
        assert transport.is_closing() and not transport.is_reading()
        assert transport.get_write_buffer_size() == 0
        transport.pause_reading()
        transport.resume_reading()
        assert not transport.is_reading()
        assert transport.get_protocol() in (protocol, None)
        transport.write_eof()
        transport.abort()
        assert repr(transport)


async def test_peer_closes() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        peer.sock.sendall(b"bye")
        peer.sock.close()
        assert await in_time(protocol.lost) is None
        assert protocol.events == ["made", "data", "eof", "lost"]
        assert transport.is_closing()


async def test_peer_resets() -> None:
    async with raw_connection(Recorder) as (_, protocol, peer):
        peer.reset()
        error = await in_time(protocol.lost)
        assert type(error) is ConnectionResetError and error.errno == errno.ECONNRESET
        assert protocol.events == ["made", "lost"]


async def test_peer_resets_with_data_unread() -> None:
    """What arrived before the reset is lost with it, in the kernel: the error is all that there is."""
    async with raw_connection(Recorder) as (transport, protocol, peer):
        transport.pause_reading()
        peer.sock.sendall(b"unread")
        peer.reset()
        transport.resume_reading()
        assert isinstance(await in_time(protocol.lost), ConnectionResetError)


async def test_writing_to_a_peer_that_is_gone() -> None:
    """The first failed write closes the transport with its error; `is_closing()` is true at once."""
    async with raw_connection(Recorder, "unix") as (transport, protocol, peer):
        transport.pause_reading()
        peer.sock.close()
        transport.write(b"x")
        assert transport.is_closing()
        error = await in_time(protocol.lost)
        assert type(error) is BrokenPipeError and error.errno == errno.EPIPE
        assert protocol.events == ["made", "lost"]


async def test_writing_to_a_peer_that_has_reset() -> None:
    async with raw_connection(Recorder) as (transport, protocol, peer):
        transport.pause_reading()
        peer.reset()
        await turns()
        for _ in range(3):
            transport.write(b"x")
            await turns()
        assert isinstance(await in_time(protocol.lost), (BrokenPipeError, ConnectionResetError))


async def test_error_while_bytes_wait() -> None:
    """A reset outranks what is buffered: the buffer is dropped, the error told once."""
    async with raw_connection(Recorder, small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(8_000_000))
        await turns()
        assert transport.get_write_buffer_size() > 0
        peer.reset()
        error = await in_time(protocol.lost)
        assert isinstance(error, (ConnectionResetError, BrokenPipeError))
        assert transport.get_write_buffer_size() == 0
        assert protocol.events[-1] == "lost" and protocol.events.count("lost") == 1


async def test_drain_raises_after_a_failed_write() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    _, writer = await asyncio.open_unix_connection(sock=near)
    far.close()
    writer.write(b"x")
    with pytest.raises(ConnectionError):
        for _ in range(3):
            await writer.drain()
    writer.close()
    with pytest.raises(BrokenPipeError):
        await writer.wait_closed()


async def test_connection_refused() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ConnectionRefusedError) as caught:
        await loop.create_connection(Recorder, LOCALHOST, free_port())
    assert caught.value.errno == errno.ECONNREFUSED
    assert "Connect call failed" in str(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="all_errors came with Python 3.12")
async def test_need_11_all_errors() -> None:
    loop: Any = asyncio.get_running_loop()
    with pytest.raises(ExceptionGroup) as caught:
        await loop.create_connection(Recorder, LOCALHOST, free_port(), all_errors=True)
    assert isinstance(caught.value.exceptions[0], ConnectionRefusedError)


async def test_name_not_found() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(socket.gaierror):
        await loop.create_connection(Recorder, "name.that.does.not.exist.invalid", 80)


async def test_unix_path_not_found() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_connection(Recorder, "/nonexistent/socket")


async def test_address_in_use() -> None:
    loop = asyncio.get_running_loop()
    async with serving(Recorder) as (_, address):
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            await loop.create_server(Recorder, *address)
        assert caught.value.errno == errno.EADDRINUSE


async def test_address_not_available() -> None:
    loop = asyncio.get_running_loop()
    # 203.0.113.0/24 is reserved for documentation: no machine has such an address.
    with pytest.raises(OSError, match=r"could not bind on any address|error while attempting to bind"):
        await loop.create_server(Recorder, "203.0.113.1", 0)


async def test_connect_is_cancellable() -> None:
    """A listener with a full backlog does not answer: the attempt is given up and its socket closed."""
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            assert filler.connect_ex(address) in (0, errno.EINPROGRESS)
            fillers.append(filler)
        task = loop.create_task(loop.create_connection(Recorder, *address))
        await turns(5)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("method", ["data_received", "eof_received"])
async def test_need_23_an_exception_in_a_protocol_closes_that_connection_only(
    handler_calls: HandlerCalls, method: str
) -> None:
    class Failing(Recorder):
        pass

    def fail(self: Failing, *args: Any) -> None:
        raise LookupError("on purpose")

    setattr(Failing, method, fail)
    async with raw_connection(Failing) as (transport, failing, peer), raw_connection(Recorder) as (_, other, peer2):
        peer.sock.sendall(b"x") if method == "data_received" else peer.sock.shutdown(socket.SHUT_WR)
        error = await in_time(failing.lost)
        assert isinstance(error, LookupError)
        context = handler_calls.take()
        assert context["exception"] is error
        assert context["message"] == f"Fatal error: protocol.{method}() call failed."
        assert context["transport"] is transport and context["protocol"] is failing
        peer2.sock.sendall(b"still here")
        assert await other.bytes_received(10) == b"still here"


async def test_need_23_an_exception_in_connection_made_reaches_the_handler(handler_calls: HandlerCalls) -> None:
    class Failing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(transport)
            raise LookupError("on purpose")

    transports: list[Any] = []
    async with serving(Failing) as (_, address):
        with socket.create_connection(address) as sock:
            await until(lambda: len(handler_calls))
            assert isinstance(handler_calls.take()["exception"], LookupError)
            if is_ours():  # asyncio keeps the connection open, with a protocol that was never set up
                await turns(6)
                assert await RawPeer(sock).receive_to_eof() == b""
            transports[0].abort()
            await turns(6)


async def test_an_exception_in_connection_lost_reaches_the_handler(handler_calls: HandlerCalls) -> None:
    class Failing(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            raise LookupError("on purpose")

    async with raw_connection(Failing) as (transport, _, peer):
        transport.close()
        assert await peer.receive_to_eof() == b""
        await until(lambda: len(handler_calls))
        assert isinstance(handler_calls.take()["exception"], LookupError)


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_an_exception_in_flow_control_reaches_the_handler(handler_calls: HandlerCalls, method: str) -> None:
    class Failing(Recorder):
        pass

    def fail(self: Failing) -> None:
        raise LookupError("on purpose")

    setattr(Failing, method, fail)
    async with raw_connection(Failing, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.write(bytes(1_000_000))
        await peer.receive_all(1_000_000)
        await until(lambda: len(handler_calls))
        context = handler_calls.take()
        assert context["message"] == f"protocol.{method}() failed"
        assert isinstance(context["exception"], LookupError)
        assert not protocol.lost.done()


async def test_unclosed_transport_warns_when_collected() -> None:
    """asyncio warns in `__del__`; ours when the loop closes (docs/differences.md), so here it is only closed."""
    async with raw_connection(Recorder) as (transport, _, _peer):
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            transport.__del__()


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy collects when it sees fit")
def test_a_transport_left_open_warns_when_collected(loop: asyncio.AbstractEventLoop) -> None:
    """loop.close() itself is silent, as in asyncio; ours lets go of the libuv handles there (the harness looks)."""
    near, far = socket.socketpair()
    near.setblocking(False)

    async def connect() -> Any:
        return await loop.create_connection(Recorder, sock=near)

    connection = [*loop.run_until_complete(connect())]
    protocol = connection[1]
    loop.close()

    def let_go() -> None:
        protocol.transport = None
        connection.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        let_go()
    assert near.fileno() == -1
    assert far.recv(1) == b""
    far.close()
    assert protocol.events == ["made"]
    assert loop.is_closed()


async def test_closing_in_connection_made() -> None:
    class Closing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    async with pair(Recorder, Closing) as ends:
        assert await in_time(ends.server.lost) is None
        assert await in_time(ends.client.lost) is None


async def test_closing_in_data_received() -> None:
    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(b"last words")
            self.transport.close()

    async with raw_connection(Closing) as (_, protocol, peer):
        peer.sock.sendall(b"x")
        assert await peer.receive_to_eof() == b"last words"
        assert await in_time(protocol.lost) is None


async def test_writing_in_connection_lost() -> None:
    class Late(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            self.transport.write(b"late")
            self.transport.close()

    async with raw_connection(Late) as (_, protocol, peer):
        peer.sock.close()
        assert await in_time(protocol.lost) is None


async def test_many_ends_in_one_turn() -> None:
    """Closing, aborting and resetting many connections at once: each is told once."""
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(30):
        near, far = tcp_socketpair()
        near.setblocking(False)
        connections.append((*await loop.create_connection(Recorder, sock=near), RawPeer(far)))
    for number, (transport, _, peer) in enumerate(connections):
        transport.write(b"x")
        match number % 4:
            case 0:
                transport.close()
            case 1:
                transport.abort()
            case 2:
                peer.sock.close()
            case 3:
                peer.reset()
    for _, protocol, peer in connections:
        await in_time(protocol.lost)
        assert protocol.events[-1] == "lost" and protocol.events.count("lost") == 1
        peer.sock.close()
    await turns(6)
