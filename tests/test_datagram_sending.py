"""What ``sendto`` takes, where it sends, and what waits when the kernel has no room."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import os
import socket
import sys
import tempfile
from typing import Any

import pytest
from support import (
    LOCALHOST,
    DatagramRecorder,
    HandlerCalls,
    endpoint,
    in_time,
    is_ours,
    turns,
    udp_socket,
)

pytestmark = pytest.mark.debug_variant

FULL = -errno.EAGAIN
#: asyncio sends empty datagrams, and counts 8 bytes besides for each that waits, from this version on.
COUNTS_HEADERS = sys.version_info >= (3, 13)
HEADER = 8 if COUNTS_HEADERS else 0


def received(peer: socket.socket, count: int) -> list[bytes]:
    return [peer.recv(1 << 16) for _ in range(count)]


async def test_bytes_like_objects() -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, _):
            for data in b"bytes", bytearray(b"bytearray"), memoryview(b"view"):
                transport.sendto(data, peer.getsockname())
                assert received(peer, 1) == [bytes(data)]


async def test_what_is_not_contiguous_is_refused_by_the_socket(handler_calls: HandlerCalls) -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            transport.sendto(memoryview(b"aXbX")[::2], peer.getsockname())
            assert isinstance(handler_calls.take()["exception"], BufferError)
            assert isinstance(await in_time(protocol.lost), BufferError)


@pytest.mark.parametrize("data", ["text", None, 7, [1, 2]])
async def test_other_objects(data: Any) -> None:
    async with endpoint() as (transport, _):
        with pytest.raises(TypeError, match="data argument must be a bytes-like object"):
            transport.sendto(data, (LOCALHOST, 9))
        assert not transport.is_closing()


async def test_an_empty_datagram() -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, _):
            transport.sendto(b"", peer.getsockname())
            transport.sendto(b"x", peer.getsockname())
            assert received(peer, 1) == ([b""] if COUNTS_HEADERS else [b"x"])


async def test_a_remote_address_binds() -> None:
    with udp_socket() as peer:
        name = peer.getsockname()
        for broadcast in None, True:  # the second is not connected
            async with endpoint(remote_addr=name, allow_broadcast=broadcast) as (transport, _):
                transport.sendto(b"1")
                transport.sendto(b"2", None)
                transport.sendto(b"3", name)
                with pytest.raises(ValueError, match="Invalid address: must be None or "):
                    transport.sendto(b"4", (LOCALHOST, 9))
                assert received(peer, 3) == [b"1", b"2", b"3"]
                assert not transport.is_closing()


@pytest.mark.parametrize("host", ["localhost", "", "<broadcast>", b"127.0.0.1", bytearray(b"127.0.0.1")])
async def test_addresses_that_only_the_socket_module_knows(host: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("", 0))
        peer.settimeout(1)
        async with endpoint(local_addr=(LOCALHOST, 0), allow_broadcast=True) as (transport, protocol):
            transport.sendto(b"x", (host, peer.getsockname()[1]))
            if protocol.errors:
                assert host == "<broadcast>"  # no route to it here
            else:
                assert received(peer, 1) == [b"x"]


@pytest.mark.parametrize(
    "address",
    [
        None,
        LOCALHOST,
        (LOCALHOST,),
        (LOCALHOST, "9"),
        (LOCALHOST, 9.0),
        pytest.param(
            [LOCALHOST, 9],
            marks=pytest.mark.skipif(
                sys.implementation.name == "pypy", reason="PyPy's socket module takes a list, and so do we there"
            ),
        ),
        (LOCALHOST, 9, 0),
        (LOCALHOST, 9, 0, 0),
        (LOCALHOST, 65536),
        (LOCALHOST, -1),
        (None, 9),
        7,
    ],
)
async def test_what_is_no_address(address: Any, handler_calls: HandlerCalls) -> None:
    """As any error but OSError, it ends the transport; which it is, the interpreter's socket module says."""
    with udp_socket() as peer, pytest.raises((TypeError, OverflowError, ValueError)) as expected:
        peer.sendto(b"x", address)
    async with endpoint() as (transport, protocol):
        transport.sendto(b"x", (LOCALHOST, 9))  # 9 is known by now, 9.0 is not
        transport.sendto(b"x", address)
        call = handler_calls.take()
        assert call["message"] == "Fatal write error on datagram transport"
        assert type(call["exception"]) is expected.type
        assert transport.is_closing()
        assert await in_time(protocol.lost) is call["exception"]


async def test_a_host_of_another_family() -> None:
    async with endpoint() as (transport, protocol):
        transport.sendto(b"x", ("::1", 9))
        assert isinstance(protocol.errors.pop(), socket.gaierror)
        assert not transport.is_closing()


async def test_errors_of_the_kernel_go_to_error_received() -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            transport.sendto(bytes(70000), peer.getsockname())
            error = protocol.errors.pop()
            assert isinstance(error, OSError) and error.errno == errno.EMSGSIZE
            assert str(error) == f"[Errno {errno.EMSGSIZE}] Message too long"
            transport.sendto(b"x", (LOCALHOST, 0))
            assert protocol.errors.pop().errno == errno.EINVAL
            transport.sendto(b"y", peer.getsockname())
            assert received(peer, 1) == [b"y"]


async def test_an_exception_of_error_received_comes_out_of_sendto() -> None:
    class Failing(DatagramRecorder):
        def error_received(self, exc: Exception) -> None:
            raise ZeroDivisionError

    async with endpoint(Failing) as (transport, _):
        with pytest.raises(ZeroDivisionError):
            transport.sendto(bytes(70000), (LOCALHOST, 9))
        assert not transport.is_closing()


async def test_sending_after_close() -> None:
    """Without an address of its own the transport still sends until its socket is closed; with one it counts."""
    with udp_socket() as peer:
        async with endpoint() as (transport, _):
            transport.close()
            transport.sendto(b"last words", peer.getsockname())
            assert received(peer, 1) == [b"last words"]
        if is_ours():
            transport.sendto(b"too late", peer.getsockname())  # asyncio: AttributeError


async def test_lost_datagrams_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with udp_socket() as peer, caplog.at_level(logging.WARNING, logger="asyncio"):
        async with endpoint(remote_addr=peer.getsockname()) as (transport, _):
            transport.close()
            for _ in range(7):
                transport.sendto(b"x")
            peer.settimeout(0)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
    assert [record.getMessage() for record in caplog.records] == ["socket.send() raised exception."] * 3


def own_link_local_address() -> tuple[str, str, int]:
    """An address that needs its zone, the zone's name and number; what is sent to it stays in this machine."""
    with contextlib.suppress(FileNotFoundError), open("/proc/net/if_inet6") as file:
        for address, index, _, scope, _, name in map(str.split, file):
            if scope == "20":
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)), name, int(index, 16)
    pytest.skip("no interface of this machine has a link-local IPv6 address")


@pytest.mark.parametrize("waiting", [False, True])
async def test_need_20_zones_of_ipv6_addresses_are_kept(waiting: bool) -> None:
    """In the names of a transport, in what it sends to, and in what it hands to the protocol."""
    host, zone, index = own_link_local_address()
    async with endpoint(local_addr=(f"{host}%{zone}", 0)) as (server, serving):
        port = server.get_extra_info("sockname")[1]
        assert server.get_extra_info("sockname") == (host, port, 0, index)
        async with endpoint(remote_addr=(f"{host}%{zone}", port)) as (transport, _):
            assert transport.get_extra_info("peername") == (host, port, 0, index)
            transport.sendto(b"0")
            await serving.count(1)
            assert serving.received.pop() == (b"0", transport.get_extra_info("sockname"))
        async with endpoint(local_addr=("::", 0)) as (transport, protocol):
            if waiting and is_ours():
                no_room(transport)
            transport.sendto(b"1", (host, port, 0, index))
            transport.sendto(b"2", (f"{host}%{zone}", port))
            assert await serving.count(2) == [b"1", b"2"]
            assert {sender[3] for _, sender in serving.received} == {index}
            assert protocol.errors == []


@pytest.mark.ours("of velociloop's own functions")
def test_need_20_every_address_survives_the_round_trip() -> None:
    from velociloop.uv import sockaddr

    for family, address in (
        (socket.AF_INET, (LOCALHOST, 65535)),
        (socket.AF_INET6, ("fe80::1", 1, 0, 3)),
        (socket.AF_INET6, ("fe80::1", 1, 0xFFFFF, 0xFFFFFFFF)),
        (socket.AF_INET6, ("::ffff:1.2.3.4", 0, 0, 0)),
    ):
        raw = sockaddr.encode(family, *address)
        assert raw is not None
        assert sockaddr.decode(raw) == sockaddr.decode_cached(raw) == address
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            assert sock.family == family
    assert sockaddr.encode(socket.AF_INET6, "fe80::1%lo", 1) is None
    assert sockaddr.encode(socket.AF_INET6, "fe80::1", 1, 0, 1 << 32) is None
    assert sockaddr.encode(socket.AF_INET6, "fe80::1", 1, 1 << 20) is None
    assert sockaddr.encode(socket.AF_INET6, "fe80::1", 1, 0, 0, 0) is None
    assert sockaddr.encode(socket.AF_INET, "\0", 1) is None


# What waits.  Loopback takes every datagram, so here the transport is told that there is no room; it then leaves
# the datagrams to libuv, which does send them.


def no_room(transport: Any, answer: int = FULL) -> None:
    transport._send = lambda *_: answer


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
async def test_what_waits_is_sent_in_order() -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            no_room(transport)
            buffer = bytearray(b"2")
            transport.sendto(b"1", peer.getsockname())
            transport.sendto(buffer, peer.getsockname())
            buffer[:] = b"changed"
            transport.sendto(b"3", ("localhost", peer.getsockname()[1]))
            assert transport.get_write_buffer_size() == 3 + 3 * HEADER
            assert "write=<polling" in repr(transport)
            transport._send = transport._core.send_datagram
            transport.sendto(b"4", peer.getsockname())
            assert await asyncio.to_thread(received, peer, 4) == [b"1", b"2", b"3", b"4"]
            await turns()
            assert transport.get_write_buffer_size() == 0
            assert protocol.events == ["made"]


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        ((LOCALHOST,), TypeError),
        ((LOCALHOST, 9.0), TypeError),
        ((LOCALHOST, 9, 0), TypeError),
        ((None, 9), TypeError),
        ((LOCALHOST, 65536), OverflowError),
        (("::1", 9), socket.gaierror),
    ],
)
async def test_bad_addresses_while_others_wait(
    address: Any, error: type[Exception], handler_calls: HandlerCalls
) -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, protocol):
            no_room(transport)
            transport.sendto(b"1", peer.getsockname())
            for host in "", "<broadcast>", b"127.0.0.1":
                transport.sendto(b"x", (host, 9))
            transport.sendto(b"x", address)
            if error is socket.gaierror:
                assert type(protocol.errors.pop()) is error
            else:
                assert type(handler_calls.take()["exception"]) is error
                assert transport.is_closing()
            assert received(peer, 1) == [b"1"]


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
async def test_flow_control() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    class Looking(DatagramRecorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            seen.append(variable.get())

    with udp_socket() as peer:
        async with endpoint(Looking, remote_addr=peer.getsockname()) as (transport, protocol):
            transport.set_write_buffer_limits(high=1000 + 2 * HEADER, low=500 + HEADER)
            no_room(transport)
            variable.set("sender")
            transport.sendto(bytes(500))
            transport.sendto(bytes(500))
            assert protocol.events == ["made"]
            transport.sendto(b"x")
            assert protocol.events == ["made", "pause"]
            variable.set("changed")
            assert await asyncio.to_thread(received, peer, 3) == [bytes(500)] * 2 + [b"x"]
            await turns()
            assert protocol.events == ["made", "pause", "resume"]
            assert seen == ["sender"]


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
@pytest.mark.parametrize("end", ["close", "abort"])
async def test_the_end_with_datagrams_waiting(end: str) -> None:
    with udp_socket() as peer:
        async with endpoint(remote_addr=peer.getsockname()) as (transport, protocol):
            await turns()
            no_room(transport)
            for number in range(3):
                transport.sendto(b"%d" % number)
            getattr(transport, end)()
            assert transport.is_closing()
            if end == "close":
                transport.sendto(b"3")
                assert not protocol.lost.done()
            assert await in_time(protocol.lost) is None
            # The first was with libuv already, which the kernel has told nothing.
            expected = [b"0", b"1", b"2", b"3"] if end == "close" else [b"0"]
            assert received(peer, len(expected)) == expected
            peer.settimeout(0)
            with pytest.raises(BlockingIOError):
                peer.recv(1)
    statistics: Any = asyncio.get_running_loop()
    assert statistics.statistics().writes == 0
    assert not statistics._core.registry.pins


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
async def test_errors_of_what_waits(handler_calls: HandlerCalls) -> None:
    """Each goes to error_received, and what it does there does not keep the rest from being sent."""

    class Failing(DatagramRecorder):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            if len(self.errors) == 2:
                self.transport.sendto(b"from there")
                raise ZeroDivisionError

    with udp_socket() as peer:
        async with endpoint(Failing, remote_addr=peer.getsockname()) as (transport, protocol):
            no_room(transport)
            for data in b"1", bytes(70000), bytes(70000), b"2":
                transport.sendto(data)
            assert await asyncio.to_thread(received, peer, 3) == [b"1", b"2", b"from there"]
            await turns()
            assert [error.errno for error in protocol.errors] == [errno.EMSGSIZE] * 2
            assert isinstance(handler_calls.take()["exception"], ZeroDivisionError)
            assert transport.get_write_buffer_size() == 0
            assert not transport.is_closing()


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
async def test_what_error_received_sends_is_sent_once() -> None:
    class Answering(DatagramRecorder):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            self.transport.sendto(b"once")

    with udp_socket() as peer:
        async with endpoint(Answering, remote_addr=peer.getsockname()) as (transport, protocol):
            no_room(transport)
            transport.sendto(bytes(70000))
            await protocol.error()
            await turns(5)
            assert received(peer, 1) == [b"once"]
            peer.settimeout(0)
            with pytest.raises(BlockingIOError):
                peer.recv(1)


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
async def test_sending_after_abort_does_not_wait_for_what_it_dropped() -> None:
    with udp_socket() as peer:
        async with endpoint() as (transport, _):
            no_room(transport)
            transport.sendto(b"1", peer.getsockname())
            transport.sendto(b"2", peer.getsockname())
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            transport._send = transport._core.send_datagram
            transport.sendto(b"last words", peer.getsockname())
            assert received(peer, 2) == [b"1", b"last words"]  # the first was with libuv already


@pytest.mark.ours("the kernel's answer is put into velociloop's transport")
@pytest.mark.parametrize("method", ["resume_writing", "error_received"])
def test_an_interrupt_while_sending_what_waits(loop: Any, method: str) -> None:
    class Interrupting(DatagramRecorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            if method == "resume_writing":
                raise KeyboardInterrupt

        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            if method == "error_received":
                raise KeyboardInterrupt

    async def start() -> Any:
        return await loop.create_datagram_endpoint(Interrupting, remote_addr=peer.getsockname())

    with udp_socket() as peer:
        transport, protocol = loop.run_until_complete(start())
        transport.set_write_buffer_limits(high=0)
        no_room(transport)
        transport.sendto(bytes(70000))
        transport.sendto(b"x")
        transport.close()
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(protocol.lost)
        loop.run_until_complete(in_time(protocol.lost))
        assert received(peer, 1) == [b"x"]
        assert protocol.events == ["made", "pause", "resume", "lost"]
        assert len(protocol.errors) == 1
    loop.run_until_complete(turns())


async def test_unix_datagrams_wait_for_a_slow_receiver() -> None:
    """asyncio's own transport above velociloop's selector: what does not fit is kept, in order."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        path = os.path.join(folder, "socket")
        far.bind(path)
        async with endpoint(remote_addr=path, family=socket.AF_UNIX) as (transport, protocol):
            transport.set_write_buffer_limits(high=100_000)
            count = 0
            while not transport.get_write_buffer_size() > 200_000:
                transport.sendto(b"%06d" % count + bytes(10_000))
                count += 1
            data = await asyncio.to_thread(received, far, count)
            assert [int(piece[:6]) for piece in data] == list(range(count))
            await turns(5)
            assert protocol.events == ["made", "pause", "resume"]
