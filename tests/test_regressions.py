"""Transports: what a review and a hostile user found, where no other test holds it."""

from __future__ import annotations

import array
import asyncio
import contextvars
import ctypes
import errno
import os
import socket
import tempfile
from typing import Any

import pytest
from support import (
    LOCALHOST,
    HandlerCalls,
    Recorder,
    closed,
    in_time,
    is_ours,
    pair,
    raw_connection,
    run_child,
    serving,
    turns,
    until,
)

Loop = asyncio.AbstractEventLoop


# Writing


@pytest.mark.ours("asyncio ends the connection, or raises from the inside, depending on what is queued")
@pytest.mark.parametrize("how", ["alone", "corked", "queued", "writelines"])
async def test_writing_a_view_with_gaps(how: str) -> None:
    view = memoryview(b"a-b-c-")[::2]
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, _, peer):
        before = 1 << 20 if how == "queued" else 0
        if before:
            transport.write(b"x" * before)
            assert transport.get_write_buffer_size()
            await turns()  # in another callback: nothing is corked
        if how == "writelines":
            transport.writelines([view, b"", view])
        else:
            transport.write(view)
        if how == "corked":
            transport.write(view)
        again = how in ("corked", "writelines")
        expected = b"abc" * (1 + again)
        assert (await peer.receive_all(before + len(expected)))[before:] == expected


@pytest.mark.ours("asyncio slices the object, and so sends again what was sent already")
@pytest.mark.parametrize(
    "data",
    [
        array.array("i", range(100_000)),
        (ctypes.c_int * 100_000)(*range(100_000)),
        memoryview(bytes(range(240)) * 1000).cast("B", (1000, 240)),
    ],
    ids=["array", "ctypes", "two-dimensional"],
)
async def test_queueing_a_view_whose_items_are_not_bytes(data: Any) -> None:
    view = memoryview(data)
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, _, peer):
        transport.write(view)
        assert transport.get_write_buffer_size()
        assert await peer.receive_all(view.nbytes) == bytes(view)


async def test_the_protocol_resumes_near_the_low_water_mark() -> None:
    low = 90_000
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=100_000, low=low)
        transport.write(b"x" * 600_000)
        assert protocol.events[-1] == "pause"
        sizes = set()
        while protocol.events[-1] == "pause":
            size = transport.get_write_buffer_size()
            sizes.add(size)
            # At most a quarter late, where completions do not fall on the mark.
            assert size > low * 3 // 4
            peer.sock.recv(4096)
            await turns()
        assert protocol.events[-1] == "resume"
        assert transport.get_write_buffer_size() <= low
        assert len(sizes) > 20  # what a watchdog looks at moves with the peer's reading


@pytest.mark.ours("a descriptor that asyncio's selector watches ends nothing when it is closed")
async def test_H6_a_queued_write_learns_why_its_descriptor_was_given_up() -> None:
    async with pair() as ends:
        transport = ends.server.transport
        transport.pause_reading()
        transport.write(b"x" * (1 << 24))
        assert transport.get_write_buffer_size()
        os.close(transport.get_extra_info("socket").fileno())
        lost = await in_time(ends.server.lost)
        assert isinstance(lost, OSError)
        assert lost.errno == errno.EBADF  # not ECANCELED


@pytest.mark.ours("asyncio's close() never ends after that")
async def test_closing_after_a_cancelled_sendfile() -> None:
    loop = asyncio.get_running_loop()
    async with raw_connection(Recorder, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.write(b"x" * (1 << 20))
        with tempfile.TemporaryFile() as file:
            file.write(b"never sent")
            file.seek(0)
            sending = asyncio.ensure_future(loop.sendfile(transport, file))
            await turns()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        transport.write(b"more")
        transport.close()
        assert await peer.receive_to_eof() == b"x" * (1 << 20) + b"more"
        assert await in_time(protocol.lost) is None


@pytest.mark.ours("corking")
async def test_a_nested_turn_at_the_end_of_a_callback() -> None:
    loop: Any = asyncio.get_running_loop()

    class Nesting(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            loop.call_soon(lambda: None)
            loop._run_once()

    ended = loop.create_future()

    def write_twice(transport: Any) -> None:
        transport.write(b"a" * 100)
        transport.write(b"b" * (1 << 20))  # corked, and more than the kernel takes
        transport._high_water = 1 << 16  # pauses when the callback ends, where set_write_buffer_limits() would at once
        ended.set_result(None)

    async with raw_connection(Nesting, "unix", small_buffers=True) as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=1 << 21)
        loop.call_soon(write_twice, transport)
        await in_time(ended)
        await turns()
        assert "pause" in protocol.events
        assert await peer.receive_all(100 + (1 << 20)) == b"a" * 100 + b"b" * (1 << 20)
        await until(lambda: not transport.get_write_buffer_size())


# Reading


async def test_a_stream_that_has_ended_can_be_paused() -> None:
    async with raw_connection(lambda: Recorder(keep_open=True)) as (transport, protocol, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        await in_time(protocol.eof)
        assert transport.is_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        if is_ours():
            # asyncio's tells of the end again: docs/differences.md
            transport.resume_reading()
            assert transport.is_reading()
            await turns(10)
        assert protocol.events == ["made", "eof"]


async def test_private_names_that_programs_look_at() -> None:
    async with raw_connection(Recorder) as (transport, _, _):
        assert (transport._closing, transport._paused, transport._eof) == (False, False, False)
        transport.pause_reading()
        transport.write_eof()
        assert (transport._closing, transport._paused, transport._eof) == (False, True, True)
        transport.close()
        assert transport._closing


async def test_held_bytes_come_in_the_context_of_all_reads() -> None:
    loop = asyncio.get_running_loop()
    reads = contextvars.ContextVar("reads", default=0)
    seen: list[tuple[bytes, int]] = []

    class Counting(Recorder):
        def data_received(self, data: bytes) -> None:
            seen.append((data, reads.get()))
            reads.set(reads.get() + 1)
            super().data_received(data)

    async with raw_connection(Counting, "unix") as (transport, protocol, peer):
        await turns()
        loop.call_soon(transport.pause_reading)  # runs before what the poll of that turn receives
        peer.sock.sendall(b"aa")
        await turns()
        assert not seen
        transport.resume_reading()
        await protocol.bytes_received(2)
        for count, data in ((4, b"bb"), (6, b"cc")):
            peer.sock.sendall(data)
            await protocol.bytes_received(count)
    assert seen == [(b"aa", 0), (b"bb", 1), (b"cc", 2)]


@pytest.mark.ours("the drain handle is ours")
async def test_a_cancelled_drain_handle_goes_on() -> None:
    loop: Any = asyncio.get_running_loop()
    async with raw_connection(Recorder) as (_, protocol, peer):
        loop._drain_handle.cancel()  # as those do who cancel whatever is in the ready queue
        peer.sock.sendall(b"hello")
        assert await protocol.bytes_received(5) == b"hello"


# Protocols that fail


@pytest.mark.ours("asyncio keeps the connection")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "the protocol's"), ValueError("the protocol's")], ids=repr)
async def test_need_23_an_exception_in_connection_made_is_reported_whatever_it_is(
    error: Exception, handler_calls: HandlerCalls
) -> None:
    class Failing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise error

    async with raw_connection(Failing) as (_, protocol, _):
        assert await in_time(protocol.lost) is error
        context = handler_calls.take()
        assert context["exception"] is error
        assert context["protocol"] is protocol


@pytest.mark.ours("asyncio's own error handling fails there")
async def test_need_23_data_received_fails_after_a_nested_turn_has_closed(handler_calls: HandlerCalls) -> None:
    loop: Any = asyncio.get_running_loop()

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            self.transport.abort()
            loop._run_once()
            loop._run_once()
            raise ValueError("the protocol's")

    async with raw_connection(Failing) as (_, protocol, peer):
        peer.sock.sendall(b"x")
        await until(lambda: len(handler_calls))
        assert repr(handler_calls.take()["exception"]) == repr(ValueError("the protocol's"))
        assert protocol.lost.done()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_need_22_an_interrupt_out_of_eof_received_leaves_the_connection_usable(
    loop: Loop, error: type[BaseException]
) -> None:
    class Interrupting(Recorder):
        interrupted = False

        def eof_received(self) -> bool:
            if not self.interrupted:
                self.interrupted = True
                raise error
            return super().eof_received()

    async def connect() -> tuple[Any, Any]:
        return await loop.create_connection(Interrupting, sock=near)

    near, far = socket.socketpair()
    near.setblocking(False)
    with far:
        transport, protocol = loop.run_until_complete(connect())
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(error):
            loop.run_until_complete(in_time(protocol.lost))
        assert not transport.is_closing()
        loop.run_until_complete(in_time(protocol.lost))
        assert protocol.events == ["made", "eof", "lost"]
        loop.run_until_complete(closed(transport))


# Listening


@pytest.mark.ours("asyncio's selector takes the new file for the old one, and never watches it")
async def test_a_listener_whose_number_has_another_file_now() -> None:
    loop = asyncio.get_running_loop()
    first = socket.create_server((LOCALHOST, 0))
    number = first.fileno()
    server = await loop.create_server(Recorder, sock=first)
    await turns()
    first.close()
    with pytest.raises(ValueError, match="Invalid file descriptor"):
        server.close()
    second = socket.create_server((LOCALHOST, 0))
    assert second.fileno() == number
    accepted: asyncio.Future[Any] = loop.create_future()
    server = await loop.create_server(lambda: _kept(accepted, Recorder()), sock=second)
    transport, _ = await loop.create_connection(Recorder, *second.getsockname())
    far = await in_time(accepted)
    await in_time(far.made)
    await closed(transport)
    await closed(far.transport)
    server.close()


def _kept(future: asyncio.Future[Any], protocol: Any) -> Any:
    future.set_result(protocol)
    return protocol


@pytest.mark.ours("the listener is ours")
@pytest.mark.parametrize("code", [errno.ENETDOWN, errno.EHOSTUNREACH, errno.EPERM, errno.ETIMEDOUT])
async def test_H8_an_error_of_the_network_does_not_end_a_listener(
    code: int, handler_calls: HandlerCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop: Any = asyncio.get_running_loop()
    monkeypatch.setattr("velociloop.transports.listener.ACCEPT_RETRY_DELAY", 0.001)
    async with serving(Recorder) as (_, address):
        (listener,) = loop._listeners.values()
        for again in (False, True):
            # What the shim says after accept(2) has failed with it; said once until one was accepted.
            listener.on_accept(-code, None, 0)
            if not again:
                assert handler_calls.take()["exception"].errno == code
            await until(lambda: "listening" in repr(listener))
        _, protocol = await loop.create_connection(Recorder, *address)
        await in_time(protocol.made)
        await until(lambda: loop.statistics().handles == 3)  # accepted: the listener and both ends
        await closed(protocol.transport)
        await until(lambda: loop.statistics().handles == 1)


# Descriptors


@pytest.mark.ours("asyncio's stale registrations break whoever gets the number next")
@pytest.mark.parametrize("seed", range(4))
def test_H6_random_use_with_descriptors_closed_behind_the_loops_back(loop_name: str, seed: int) -> None:
    done = run_child(
        f"""
        import random

        chance = random.Random({seed})
        loop = new_child_loop()
        loop.set_exception_handler(lambda loop, context: None)
        made = lost = 0

        class Counter(asyncio.Protocol):
            def connection_made(self, transport):
                global made
                made += 1

            def connection_lost(self, exc):
                global lost
                lost += 1

        async def main():
            server = await loop.create_server(Counter, LOCALHOST, 0)
            transports, peers, given_up = [], [], []
            for _ in range(4000):
                what = chance.randrange(12)
                transport = chance.choice(transports) if transports else None
                with contextlib.suppress(OSError, RuntimeError):
                    if what < 2 and len(transports) < 20:
                        near, far = socket.socketpair()
                        near.setblocking(False)
                        far.setblocking(False)
                        transports.append((await loop.create_unix_connection(Counter, sock=near))[0])
                        peers.append(far)
                    elif what == 2 and len(transports) < 20:
                        near = socket.create_connection(server.sockets[0].getsockname())
                        transports.append((await loop.create_connection(Counter, sock=near))[0])
                    elif what == 10 and peers:
                        peer = chance.choice(peers)
                        if chance.random() < 0.5:
                            peers.remove(peer)
                            peer.close()
                        else:
                            with contextlib.suppress(BlockingIOError):
                                peer.recv(100_000)
                            peer.send(b"y" * chance.choice((10, 200_000)))
                    elif transport is None:
                        continue
                    elif what == 3 and transport not in given_up:
                        # Once: later its number may be that of a socket which is being connected.
                        given_up.append(transport)
                        os.close(loop._core.fileno(transport._key))
                    elif what in (4, 5):
                        transport.write(b"x" * chance.choice((1, 1000, 900_000)))
                    elif what in (6, 7):
                        transport.pause_reading() if what == 6 else transport.resume_reading()
                    elif what in (8, 9):
                        transports.remove(transport)
                        transport.close() if what == 8 else transport.abort()
                    elif chance.random() < 0.3:
                        transport.write_eof()
                if chance.random() < 0.6:
                    await asyncio.sleep(0)
            for transport in transports:
                transport.abort()
            for peer in peers:
                with contextlib.suppress(OSError):
                    peer.close()
            server.close()

        loop.run_until_complete(main())
        loop.close()
        print("alive" if made > 100 and lost > 50 else (made, lost))
        """,
        loop_name,
        "-W",
        "ignore::ResourceWarning",
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.ours("asyncio's transports own their socket objects")
def test_no_socket_of_a_transport_whose_loop_was_closed(loop_name: str) -> None:
    done = run_child(
        """
        loop = new_child_loop()
        kept = []

        async def main():
            server = await loop.create_server(Recorder, LOCALHOST, 0)
            address = server.sockets[0].getsockname()
            kept.append(server)
            kept.append((await loop.create_connection(Recorder, *address))[0])
            await turns()

        loop.run_until_complete(main())
        number = loop._core.fileno(kept[1]._key)
        loop.close()
        strangers = [socket.socket() for _ in range(20)]
        (stranger,) = [sock for sock in strangers if sock.fileno() == number]
        assert kept[1].get_extra_info("socket").fileno() == -1
        assert stranger.getblocking() and os.get_blocking(number)
        print("alive")
        """,
        loop_name,
        "-W",
        "ignore::ResourceWarning",
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
