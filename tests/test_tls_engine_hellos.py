"""Handshakes on either TLS engine: cut, garbled and truncated anywhere; what is agreed on; what changes later."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support import HANG_S, LOCALHOST, HandlerCalls, turns
from tls_support import SIDES, Contexts, Peer, Wire, wire

if TYPE_CHECKING:
    import trustme
    from certificates import Authority

pytestmark = pytest.mark.debug_variant

fast = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])

BOTH_ENGINES = pytest.mark.ours("the body plays both engines on one loop")


def failure(w: Wire) -> Any:
    """What the waiter was told: an exception's type and OpenSSL's reason, or None while it waits or if all is well."""
    exc = w.waiter.exception() if w.waiter.done() else None
    return type(exc), getattr(exc, "reason", None), w.waiter.done(), len(w.below.ended)


def around_headers(records: bytes) -> list[int]:
    """Places to cut: before, within and behind the header of each record, and before the last byte of all."""
    cuts, start = [], 0
    while start < len(records):
        cuts += [start, start + 1, start + 4, start + 5, start + 6]
        start += 5 + int.from_bytes(records[start + 3 : start + 5], "big")
    return [*cuts[1:], len(records) - 1]


# Cut, garbled, truncated


@SIDES
@VERSIONS
async def test_all_that_a_peer_has_to_say_at_once(
    contexts: Contexts, server_side: bool, version: ssl.TLSVersion
) -> None:
    """The end of the handshake, data and close_notify, as one piece or cut into two: a client's at any byte."""
    contexts[0].maximum_version = contexts[0].minimum_version = version
    cuts = [0]
    for cut in cuts:
        w = wire(contexts, server_side)
        answer = w.peer.step(w.below.take())
        while not w.peer.done:
            w.feed(answer)
            answer = w.peer.step(w.below.take())
        whole = answer + w.peer.write(b"data") + w.peer.close()
        if cut == 0:
            # A server's tickets are long: there, around what stands in the records' headers.
            cuts += range(1, len(whole)) if server_side else around_headers(whole)
        w.feed(whole[:cut])
        w.feed(whole[cut:])
        assert w.waiter.done() and w.waiter.exception() is None
        await turns(4)
        assert w.protocol.events == ["made", "data", "eof", "lost"], f"cut at {cut}"
        assert w.protocol.received == b"data" and w.below.ended == [None]
        await w.end()


@BOTH_ENGINES
async def test_a_hello_truncated_at_every_byte(contexts: Contexts) -> None:
    hello = Peer(contexts[1]).step()

    async def play(engine: str, cut: int) -> Any:
        w = wire(contexts, True, engine=engine)
        w.feed(hello[:cut])
        w.layer.eof_received()
        await turns(3)
        found = failure(w), w.protocol.events, [type(exc) for exc in w.below.ended]
        await w.end()
        return found

    for cut in range(len(hello)):
        ours = await play("velociloop", cut)
        assert ours == await play("asyncio", cut), f"cut at {cut}"
        assert ours[0][0] is ConnectionResetError and ours[1] == []


@SIDES
@VERSIONS
async def test_the_last_flight_truncated(contexts: Contexts, server_side: bool, version: ssl.TLSVersion) -> None:
    """Nobody is told of a connection that was not agreed on, wherever in a flight the stream ends."""
    contexts[0].maximum_version = contexts[0].minimum_version = version
    wires = []

    @fast
    @given(part=st.floats(0, 1, exclude_max=True))
    def run(part: float) -> None:
        w = wire(contexts, server_side)
        wires.append(w)
        flight = w.peer.step(w.below.take())
        if server_side:  # that was the client's hello
            w.feed(flight)
            flight = w.peer.step(w.below.take())
        w.feed(flight[: int(part * len(flight))])
        assert not w.waiter.done()
        w.layer.eof_received()
        assert type(w.waiter.exception()) is ConnectionResetError
        assert w.protocol.events == []

    run()
    await turns(3)
    for w in wires:
        await w.end()


@BOTH_ENGINES
@SIDES
async def test_any_garbage_instead_of_a_handshake(contexts: Contexts, server_side: bool) -> None:
    wires = []

    def outcome(engine: str, pieces: list[bytes]) -> Any:
        w = wire(contexts, server_side, engine=engine)
        wires.append(w)
        w.below.take()
        for piece in pieces:
            w.feed(piece)
        found = failure(w)
        if not w.below.ended:
            w.layer.eof_received()
        assert w.protocol.events == []
        return found, failure(w)

    # Bytes that look like a record's header get further than those that do not.
    header = st.builds(
        lambda kind, minor, size, rest: bytes([kind, 3, minor]) + size.to_bytes(2, "big") + rest,
        st.integers(20, 24),
        st.integers(0, 4),
        st.integers(0, 65535),
        st.binary(max_size=60),
    )

    @settings(fast, max_examples=80)
    @given(pieces=st.lists(st.one_of(header, st.binary(max_size=40)), min_size=1, max_size=4))
    def run(pieces: list[bytes]) -> None:
        assert outcome("velociloop", pieces) == outcome("asyncio", pieces)

    run()
    await turns(3)
    for w in wires:
        await w.end()


@VERSIONS
async def test_a_garbled_flight_of_the_server(contexts: Contexts, version: ssl.TLSVersion) -> None:
    """The client fails, or waits for more: it never gives its protocol a connection with other bytes than were sent."""
    contexts[0].maximum_version = contexts[0].minimum_version = version
    wires = []

    @fast
    @given(part=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
    def run(part: float, bits: int) -> None:
        w = wire(contexts)
        wires.append(w)
        flight = bytearray(w.peer.step(w.below.take()))
        flight[int(part * len(flight))] ^= bits
        w.feed(bytes(flight))
        if w.waiter.done() and w.waiter.exception() is None:
            # Of a record's header not all is protected; then the connection is as good as any.
            w.exchange()
            w.feed(w.peer.write(b"data"))
            assert w.protocol.received == b"data"
            return
        if not w.waiter.done():
            w.layer.eof_received()
        assert isinstance(w.waiter.exception(), (ssl.SSLError, ConnectionResetError))
        assert w.protocol.events == [] and w.below.ended

    run()
    await turns(3)
    for w in wires:
        await w.end()


@BOTH_ENGINES
@pytest.mark.parametrize("state", ["wrapped", "paused", "flushing", "shutdown"])
async def test_garbage_in_each_state(contexts: Contexts, state: str, handler_calls: HandlerCalls) -> None:
    async def play(engine: str) -> Any:
        w = wire(contexts, True, engine=engine).connect()
        if state in ("paused", "flushing"):
            w.transport.pause_reading()
            w.feed(w.peer.write(b"unread"))
        if state == "shutdown":
            w.transport.close()
        w.feed(b"\x17\x03\x03\x00\x20" + b"garbage " * 4)
        if state == "flushing":
            w.layer.eof_received()
        if state in ("paused", "flushing"):
            w.transport.resume_reading()
        await turns(5)
        lost = type(w.protocol.lost.result()) if w.protocol.lost.done() else None
        found = w.protocol.events, bytes(w.protocol.received), lost, [type(exc) for exc in w.below.ended]
        await w.end()
        return found

    ours = await play("velociloop")
    assert ours == await play("asyncio")
    assert ours[0][-1] == "lost"


# What is agreed on


async def test_no_protocol_in_common(contexts: Contexts) -> None:
    contexts[0].set_alpn_protocols(["h2"])
    contexts[1].set_alpn_protocols(["http/1.1"])
    for server_side in (True, False):
        w = wire(contexts, server_side).connect()
        assert w.transport.get_extra_info("ssl_object").selected_alpn_protocol() is None
        await w.end()


async def test_another_context_by_the_servers_name(contexts: Contexts, authority: trustme.CA | Authority) -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere").configure_cert(other)
    names: list[str | None] = []

    def choose(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        names.append(name)
        tls.context = other

    contexts[0].sni_callback = choose
    w = Wire(contexts[0], Peer(contexts[1], server_hostname="elsewhere"), server_side=True).connect()
    assert names == ["elsewhere"]
    assert ("DNS", "elsewhere") in w.peer.tls.getpeercert()["subjectAltName"]  # type: ignore[index]
    assert w.transport.get_extra_info("sslcontext") is contexts[0]
    assert w.transport.get_extra_info("ssl_object").context is other
    await w.end()


async def test_an_exception_of_the_server_name_callback(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))

    def fail(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        raise LookupError("on purpose")

    contexts[0].sni_callback = fail
    w = wire(contexts, True)
    w.feed(w.peer.step())
    assert isinstance(w.waiter.exception(), ssl.SSLError)
    assert reported == [LookupError]
    await turns(3)
    assert w.protocol.events == [] and w.below.ended
    await w.end()


@VERSIONS
async def test_a_session_of_the_client(contexts: Contexts, version: ssl.TLSVersion) -> None:
    """TLS 1.3 sends it behind the handshake, with no data for the protocol."""
    contexts[0].maximum_version = version
    first = wire(contexts).connect()
    session = first.transport.get_extra_info("ssl_object").session
    assert session.has_ticket and first.protocol.events == ["made"]
    await first.end()
    second = Wire(contexts[0], Peer(contexts[1], session=session), server_side=True).connect()
    assert second.peer.tls.session_reused
    await second.end()


@VERSIONS
async def test_a_client_certificate_that_is_refused(
    contexts: Contexts, authority: trustme.CA | Authority, version: ssl.TLSVersion
) -> None:
    """With TLS 1.3 a client is connected before it hears of it."""
    contexts[0].verify_mode = ssl.CERT_REQUIRED
    contexts[0].maximum_version = version
    w = wire(contexts)
    answer = w.peer.step(w.below.take())
    w.feed(answer)
    with pytest.raises(ssl.SSLError):
        w.peer.step(w.below.take())
    w.feed(w.peer.outgoing.read())  # the alert
    await turns(4)
    if version is ssl.TLSVersion.TLSv1_3:
        assert w.waiter.exception() is None
        assert w.protocol.events == ["made", "lost"]
        assert isinstance(w.protocol.lost.result(), ssl.SSLError)
    else:
        assert isinstance(w.waiter.exception(), ssl.SSLError)
        assert w.protocol.events == []
    await w.end()


# Later


@SIDES
async def test_a_certificate_is_asked_for_later(
    contexts: Contexts, authority: trustme.CA | Authority, server_side: bool
) -> None:
    """TLS 1.3's post-handshake authentication: question and answer travel beside the data."""
    server, client = contexts
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    authority.issue_cert("somebody").configure_cert(client)
    server.post_handshake_auth = client.post_handshake_auth = True
    w = wire(contexts, server_side).connect()
    asking: Any = w.transport.get_extra_info("ssl_object") if server_side else w.peer.tls
    assert not asking.getpeercert()
    asking.verify_client_post_handshake()
    if server_side:
        w.transport.write(b"who are you?")
    else:
        w.feed(w.peer.write(b"who are you?"))
    w.exchange()
    assert (w.peer.received if server_side else w.protocol.received) == b"who are you?"
    assert ("DNS", "somebody") in asking.getpeercert()["subjectAltName"]
    w.feed(w.peer.write(b"behind"))
    assert bytes(w.protocol.received).endswith(b"behind")
    await w.end()


@contextlib.asynccontextmanager
async def openssl_client(version: str) -> AsyncIterator[tuple[Any, socket.socket]]:
    """The openssl tool as a client of a socket of ours: the process, and our end."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        address = listener.getsockname()
        command = ["openssl", "s_client", "-connect", f"{address[0]}:{address[1]}", version]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as child:
            killer = threading.Timer(HANG_S, child.kill)
            killer.start()
            listener.settimeout(HANG_S)
            sock, _ = await asyncio.to_thread(listener.accept)
            try:
                with sock:
                    sock.settimeout(HANG_S)
                    yield child, sock
            finally:
                child.kill()
                killer.cancel()
                killer.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl tool is not here")
async def test_a_write_during_a_renegotiation(contexts: Contexts) -> None:
    """OpenSSL refuses it until the renegotiation is over; then it is sent."""
    contexts[0].maximum_version = ssl.TLSVersion.TLSv1_2
    contexts[0].options &= ~ssl.OP_NO_RENEGOTIATION
    contexts[0].options |= 1 << 8  # SSL_OP_ALLOW_CLIENT_RENEGOTIATION, which the ssl module does not name
    w = Wire(contexts[0], Peer(contexts[1]), server_side=True)
    async with openssl_client("-tls1_2") as (child, sock):

        async def relay(condition: Callable[[], object]) -> None:
            while not condition():
                sock.sendall(w.below.take())
                data = await asyncio.to_thread(sock.recv, 65536)
                assert data, "the client ended"
                w.feed(data)

        await relay(lambda: w.protocol.events)
        child.stdin.write(b"before\n")
        await relay(lambda: w.protocol.received == b"before\n")
        child.stdin.write(b"R\n")
        await relay(lambda: w.below.pieces)
        w.transport.write(b"meanwhile\n")
        w.transport.write(b"and more\n")
        await turns(2)
        assert w.transport.get_write_buffer_size() == 19, "the renegotiation was over too soon"
        await relay(lambda: not w.layer._write_backlog)  # to ask for its size would send it
        sock.sendall(w.below.take())
        child.stdin.write(b"behind\n")
        await relay(lambda: w.protocol.received == b"before\nbehind\n")

        def said() -> bool:
            lines = iter(child.stdout.readline, b"")
            return any(b"meanwhile" in line for line in lines) and next(lines) == b"and more\n"

        assert await asyncio.to_thread(said)
    await w.end()
