"""Accepted connections: those that the accelerator makes are as those that Python makes, and it steps aside (H3)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import socket
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from support import LOCALHOST, Echo, HandlerCalls, in_time, turns

from velociloop._accelerator import accelerated
from velociloop.transports.endpoint import SocketTransport
from velociloop.transports.listener import Listener
from velociloop.transports.stream import StreamTransport

ours = pytest.mark.ours("its own classes are looked at")


class Buffered(asyncio.BufferedProtocol):
    """Sends back what it receives, from a buffer."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


class Peers:
    """Connections to a server."""

    def __init__(self, address: Any) -> None:
        self.address = address
        self.socks: list[socket.socket] = []

    async def connect(self) -> socket.socket:
        sock = socket.socket()
        self.socks.append(sock)
        sock.setblocking(False)
        await in_time(asyncio.get_running_loop().sock_connect(sock, self.address))
        return sock

    async def echoed(self) -> socket.socket:
        """Connect, and see one message come back."""
        sock = await self.connect()
        loop = asyncio.get_running_loop()
        await in_time(loop.sock_sendall(sock, b"hello"))
        assert await in_time(loop.sock_recv(sock, 100)) == b"hello"
        return sock

    async def refused(self) -> None:
        """Connect, and be closed."""
        sock = await self.connect()
        with contextlib.suppress(ConnectionResetError):
            assert await in_time(asyncio.get_running_loop().sock_recv(sock, 1)) == b""


@contextlib.asynccontextmanager
async def serving(factory: Callable[[], Any]) -> AsyncIterator[tuple[Any, Peers]]:
    """A server and who connects to it."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, LOCALHOST, 0)
    peers = Peers(server.sockets[0].getsockname())
    try:
        yield server, peers
    finally:
        for sock in peers.socks:
            sock.close()
        server.close()
        await in_time(server.wait_closed())
        await turns()


def made(protocols: list[Any]) -> Callable[[], Any]:
    """Give a factory that keeps what it makes."""

    def factory() -> Any:
        protocols.append(Echo())
        return protocols[-1]

    return factory


def slots(transport: Any) -> Iterator[tuple[str, Any]]:
    for each in type(transport).__mro__:
        for name in getattr(each, "__slots__", ()):
            if name not in ("__dict__", "__weakref__"):
                yield name, getattr(transport, name, "(not set)")


@ours
async def test_all_are_like_the_first() -> None:
    """What differs between two new transports is their own: nothing of one is left in another."""
    found: list[dict[str, Any]] = []

    class Looker(Echo):
        def connection_made(self, transport: Any) -> None:
            found.append(dict(slots(transport)))
            super().connection_made(transport)

    async with serving(Looker) as (_, peers):
        for _ in range(3):
            await peers.echoed()
    own = {"_key", "_sock_fd", "_raw_peername", "_protocol"}
    for one in found[1:]:
        assert one.keys() == found[0].keys()
        assert {name for name in one if one[name] != found[0][name]} <= own
        assert one["_own_extra"] is None
        assert len({one[name] for name in own}) == len(own)
    assert [len({id(each[name]) for each in found}) for name in sorted(own)] == [3] * len(own)


@ours
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (StreamTransport, "__init__"),
        (SocketTransport, "__init__"),
        (SocketTransport, "_open"),
        (StreamTransport, "_make_connection"),
        (StreamTransport, "_begin_reading"),
        (StreamTransport, "set_protocol"),
        (SocketTransport, "set_protocol"),
        (asyncio.transports._FlowControlMixin, "__init__"),
        (Listener, "on_accept"),
        (Listener, "_accept_failed"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_what_is_patched_is_called(owner: Any, name: str, handler_calls: HandlerCalls) -> None:
    """H3, also if the first connections were made before."""
    original = getattr(owner, name)
    calls: list[Any] = []

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return original(self, *args, **kwargs)

    fail = False

    def factory() -> Any:
        if fail:
            raise ValueError("no protocol today")
        return Echo()

    async with serving(factory) as (_, peers):
        for _ in range(2):
            await peers.echoed()
        fail = name == "_accept_failed"
        with mock.patch.object(owner, name, patched):
            for count in (1, 2):
                await (peers.refused() if fail else peers.echoed())
                assert len(calls) >= count
        if fail:
            assert [type(context["exception"]) for context in handler_calls.take_all()] == [ValueError] * 2
        fail = False
        seen = len(calls)
        await peers.echoed()
        assert len(calls) == seen


@ours
async def test_a_patched_loop_is_asked() -> None:
    loop = asyncio.get_running_loop()
    async with serving(Echo) as (_, peers):
        for _ in range(2):
            await peers.echoed()
        with mock.patch.object(loop, "call_soon", wraps=loop.call_soon) as call_soon:
            await peers.echoed()
        names = [getattr(call.args[0], "__name__", "") for call in call_soon.call_args_list]
        assert {"_make_connection", "_begin_reading"} <= set(names)


@ours
async def test_a_loop_that_refuses(handler_calls: HandlerCalls) -> None:
    """The connection is closed, and nothing is left of its transport."""
    loop: Any = asyncio.get_running_loop()
    refuse = ""

    def call_soon(callback: Any, *args: Any, **kwargs: Any) -> Any:
        if refuse and getattr(callback, "__name__", "") == refuse:
            raise RuntimeError("not today")
        return original(callback, *args, **kwargs)

    async with serving(Echo) as (_, peers):
        for _ in range(2):
            await peers.echoed()
        original = loop.call_soon
        before = len(loop._transports)
        with mock.patch.object(loop, "call_soon", call_soon), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of the transport that is dropped
            refuse = "_make_connection"
            await peers.refused()
            refuse = ""
            assert str(handler_calls.take()["exception"]) == "not today"
            gc.collect()
        assert len(loop._transports) == before
        await peers.echoed()


async def test_protocols_of_both_kinds() -> None:
    kinds = iter([Echo, Buffered, Buffered, Echo, Buffered, Echo])
    async with serving(lambda: next(kinds)()) as (_, peers):
        for _ in range(6):
            await peers.echoed()


async def test_each_has_its_own_information() -> None:
    protocols: list[Any] = []
    async with serving(made(protocols)) as (server, peers):
        for _ in range(3):
            await peers.echoed()
        for protocol, sock in zip(protocols, peers.socks, strict=True):
            transport = protocol.transport
            assert transport.get_extra_info("peername") == sock.getsockname()
            assert transport.get_extra_info("sockname") == server.sockets[0].getsockname()
            assert transport.get_extra_info("socket").fileno() != sock.fileno()
        for sock in peers.socks:
            sock.close()
        for protocol in protocols:
            await in_time(protocol.lost)
        for protocol in protocols:
            assert protocol.transport.get_extra_info("sockname") == peers.address


async def test_the_name_is_known_after_the_end() -> None:
    """Also if nobody has asked before."""
    protocols: list[Any] = []
    async with serving(made(protocols)) as (_, peers):
        for _ in range(2):
            sock = await peers.echoed()
            name = sock.getsockname()
            sock.close()
            transport = protocols[-1].transport
            await in_time(protocols[-1].lost)
            assert transport.get_extra_info("sockname") == peers.address
            assert transport.get_extra_info("peername") == name


@pytest.mark.ours("asyncio says nothing, and has the collector close the connection")
@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_factory_that_fails(error: type[BaseException], handler_calls: HandlerCalls) -> None:
    fail = False

    def factory() -> Any:
        if fail:
            raise error
        return Echo()

    async with serving(factory) as (_, peers):
        for _ in range(2):
            await peers.echoed()
        fail = True
        await peers.refused()
        context = handler_calls.take()
        assert context["message"] == "Error on transport creation for incoming connection"
        assert isinstance(context["exception"], error)
        fail = False
        await peers.echoed()


@ours
def test_an_interrupted_factory(loop_factory: Any) -> None:
    """KeyboardInterrupt ends the run; that connection is closed, the next run serves the next one."""
    fail = False

    def factory() -> Any:
        if fail:
            raise KeyboardInterrupt
        return Echo()

    loop = loop_factory()
    server = loop.run_until_complete(loop.create_server(factory, LOCALHOST, 0))
    address = server.sockets[0].getsockname()
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection(address))
            sock.setblocking(False)
            sock.send(b"x")
            assert loop.run_until_complete(loop.sock_recv(sock, 1)) == b"x"
        fail = True
        refused = stack.enter_context(socket.create_connection(address))
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        refused.settimeout(10)
        assert refused.recv(1) == b""
        fail = False
        sock = stack.enter_context(socket.create_connection(address))
        sock.setblocking(False)
        sock.send(b"y")
        assert loop.run_until_complete(loop.sock_recv(sock, 1)) == b"y"
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.close()


@pytest.mark.ours("asyncio's _attach() asserts, and the connection stays open for ever")
async def test_a_factory_that_closes_the_server() -> None:
    protocols: list[Any] = []
    close = False

    def factory() -> Any:
        if close:
            server.close()
        return made(protocols)()

    async with serving(factory) as (server, peers):
        for _ in range(2):
            await peers.echoed()
        close = True
        await peers.refused()
        assert len(protocols) == 3


async def test_each_connection_has_a_context_of_its_own() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[tuple[str, int]] = []

    class Noter(Echo):
        def __init__(self) -> None:
            super().__init__()
            seen.append(("factory", variable.get()))
            variable.set(variable.get() + 1)

        def connection_made(self, transport: Any) -> None:
            seen.append(("made", variable.get()))
            variable.set(10)
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            seen.append(("data", variable.get()))
            super().data_received(data)

    variable.set(5)
    async with serving(Noter) as (_, peers):
        variable.set(7)
        for _ in range(3):
            await peers.echoed()
    assert seen == [("factory", 5), ("made", 6), ("data", 6)] * 3


async def test_a_server_knows_all_of_them() -> None:
    protocols: list[Any] = []
    async with serving(made(protocols)) as (server, peers):
        for _ in range(4):
            await peers.echoed()
        if hasattr(server, "close_clients"):
            server.close_clients()
        else:
            for protocol in protocols:
                protocol.transport.close()
        for sock in peers.socks:
            assert await in_time(asyncio.get_running_loop().sock_recv(sock, 1)) == b""
        server.close()
        await in_time(server.wait_closed())


@ours
async def test_debug_mode_says_who_has_connected(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    async with serving(Echo) as (_, peers):
        for _ in range(2):
            await peers.echoed()
        loop.set_debug(True)
        caplog.set_level("DEBUG")
        await peers.echoed()
        loop.set_debug(False)
    assert "got a new connection from" in caplog.text


@pytest.mark.skipif(not accelerated(), reason="the accelerator's own")
@ours
def test_misuse_of_the_maker(loop_factory: Any) -> None:
    from velociloop import _speedups

    loop = loop_factory()
    given: tuple[Any, ...] = (lambda *_: None, loop, loop._scope, None, {}, {}, True)
    wrong: tuple[Any, ...]
    for wrong in [(), given[:-1], (*given, 1), (*given[:2], None, *given[3:]), (*given[:4], [], {}, True)]:
        with pytest.raises(TypeError):
            _speedups.StreamMaker(*wrong)
    with pytest.raises(TypeError, match="no keyword"):
        _speedups.StreamMaker(*given, more=1)
    maker = _speedups.StreamMaker(*given)
    for arguments in [(), (1, 2), (1, 2, 3, 4)]:
        with pytest.raises(TypeError):
            maker(*arguments)
    with pytest.raises(TypeError, match="no keyword"):
        maker(1, b"", None, more=1)
    assert maker(1, b"", None) is None  # what its function returns, whatever it is
    assert maker("no key", b"", None) is None
    loop.close()
