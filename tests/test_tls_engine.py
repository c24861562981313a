"""The TLS engine beside asyncio's, byte for byte: handshakes cut anywhere, garbage, truncation, every state's end."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support import HandlerCalls, Recorder, is_ours, turns
from tls_support import SIDES, Contexts, Peer, Slow, Wire, wire

if TYPE_CHECKING:
    import trustme
    from certificates import Authority

pytestmark = pytest.mark.debug_variant

fast = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


# Handshakes


@SIDES
@VERSIONS
async def test_handshake_byte_by_byte(contexts: Contexts, server_side: bool, version: ssl.TLSVersion) -> None:
    contexts[0].maximum_version = contexts[0].minimum_version = version
    w = wire(contexts, server_side)
    w.exchange([1] * 10_000)
    assert w.waiter.done() and w.peer.done
    assert w.protocol.events == ["made"]
    w.feed_in(w.peer.write(b"hello"), [1] * 100)
    assert w.protocol.received == b"hello"
    await w.end()


@SIDES
@VERSIONS
async def test_handshake_in_any_pieces(contexts: Contexts, server_side: bool, version: ssl.TLSVersion) -> None:
    contexts[0].maximum_version = contexts[0].minimum_version = version
    wires = []

    @fast
    @given(sizes=st.lists(st.integers(1, 3000), max_size=30), message=st.binary(min_size=1, max_size=40_000))
    def run(sizes: list[int], message: bytes) -> None:
        w = wire(contexts, server_side)
        wires.append(w)
        w.exchange(sizes)
        assert w.peer.done
        w.feed_in(w.peer.write(message), sizes)
        assert w.protocol.received == message
        w.transport.write(message)
        w.exchange()
        assert w.peer.received == message

    run()
    for w in wires:
        await w.end()


@SIDES
async def test_garbage_instead_of_a_handshake(
    contexts: Contexts, server_side: bool, handler_calls: HandlerCalls
) -> None:
    w = wire(contexts, server_side)
    w.feed(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert isinstance(w.waiter.exception(), ssl.SSLError)
    await turns(3)
    assert w.protocol.events == []
    assert isinstance(w.below.ended[0], ssl.SSLError)
    await w.end()


async def test_a_garbled_hello_ends_on_both_engines_alike(contexts: Contexts) -> None:
    """A server is given the same wrong bytes by either engine: it fails in the same way, or waits on."""
    hello = Peer(contexts[1]).step()
    wires = []

    def outcome(engine: str, data: bytes) -> Any:
        w = wire(contexts, True, engine=engine)
        wires.append(w)
        w.feed(data)
        exc = w.waiter.exception() if w.waiter.done() else None
        assert w.protocol.events == []
        return type(exc), getattr(exc, "reason", None), len(w.below.ended)

    @fast
    @given(at=st.integers(0, len(hello) - 1), bits=st.integers(1, 255))
    def run(at: int, bits: int) -> None:
        garbled = hello[:at] + bytes([hello[at] ^ bits]) + hello[at + 1 :]
        assert outcome("velociloop", garbled) == outcome("asyncio", garbled)

    run()
    for w in wires:
        await w.end()


@SIDES
@pytest.mark.parametrize("at", [0, 1, 3, 5, 20, -1])
async def test_a_garbled_record(contexts: Contexts, server_side: bool, at: int) -> None:
    w = wire(contexts, server_side).connect()
    record = bytearray(w.peer.write(b"secret" * 10))
    record[at] ^= 0x40
    w.feed(bytes(record))
    if not w.below.ended:  # a length that is too large: the rest is waited for
        w.layer.eof_received()
    await turns(3)
    assert w.protocol.received == b""
    assert w.protocol.events[-1] == "lost"
    await w.end()


@SIDES
async def test_the_end_in_a_handshake(contexts: Contexts, server_side: bool) -> None:
    w = wire(contexts, server_side)
    w.feed(w.peer.step(w.below.take())[:100])
    w.layer.eof_received()
    assert type(w.waiter.exception()) is ConnectionResetError
    await turns(3)
    assert w.protocol.events == []
    await w.end()


async def test_a_handshake_that_nobody_finishes_is_no_success(contexts: Contexts) -> None:
    """The transport below is closed meanwhile: asyncio wakes the waiter without an error."""
    w = wire(contexts)
    w.below.close()
    await turns(3)
    if is_ours():
        assert isinstance(w.waiter.exception(), ConnectionAbortedError)
    else:
        assert w.waiter.exception() is None
    assert w.protocol.events == []
    w.transport.abort()


@SIDES
async def test_reading_paused_in_connection_made(contexts: Contexts, server_side: bool) -> None:
    """The end of the handshake is sent all the same; asyncio keeps a client's until something is written."""

    class Pausing(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    w = wire(contexts, server_side, protocol=Pausing())
    w.exchange()
    assert w.peer.done or not is_ours()
    if not w.peer.done:
        w.transport.write(b"x")
        w.exchange()
    w.feed(w.peer.write(b"later"))
    assert not w.transport.is_reading() and w.protocol.received == b""
    w.transport.resume_reading()
    await turns(2)
    assert w.protocol.received == b"later"
    await w.end()


# Certificates, names, and what else the contexts say


async def test_the_name_is_checked(contexts: Contexts) -> None:
    w = wire(contexts, server_hostname="elsewhere")
    w.exchange()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        w.waiter.result()
    await turns(3)
    assert w.protocol.events == [] and w.transport.is_closing()
    await w.end()


async def test_no_context_means_the_default_one(contexts: Contexts) -> None:
    """Which knows nothing of our authority."""
    w = Wire(None, Peer(contexts[0], server_side=True))  # type: ignore[arg-type]
    w.exchange()
    assert isinstance(w.waiter.exception(), ssl.SSLCertVerificationError)
    assert w.transport.get_extra_info("sslcontext").check_hostname
    await w.end()
    unnamed = Wire(None, Peer(contexts[0], server_side=True), server_hostname="")  # type: ignore[arg-type]
    unnamed.exchange()
    assert isinstance(unnamed.waiter.exception(), ssl.SSLCertVerificationError)
    assert not unnamed.transport.get_extra_info("sslcontext").check_hostname
    await unnamed.end()


async def test_arguments(contexts: Contexts) -> None:
    with pytest.raises(ValueError, match="Server side SSL needs a valid SSLContext"):
        Wire(None, Peer(contexts[1]), server_side=True)  # type: ignore[arg-type]
    for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
        for value in (0, -1.5):
            with pytest.raises(ValueError, match=f"{name} should be a positive number, got {value}"):
                wire(contexts, False, **{name: value})


@VERSIONS
async def test_a_client_without_the_certificate_that_is_asked_for(
    contexts: Contexts, authority: trustme.CA | Authority, version: ssl.TLSVersion
) -> None:
    contexts[0].verify_mode = ssl.CERT_REQUIRED
    contexts[0].maximum_version = version
    authority.configure_trust(contexts[0])
    w = wire(contexts, True)
    w.exchange()
    assert isinstance(w.waiter.exception(), ssl.SSLError)
    await turns(3)
    assert w.protocol.events == []
    await w.end()


async def test_client_certificate_and_alpn(contexts: Contexts, authority: trustme.CA | Authority) -> None:
    server, client = contexts
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    authority.issue_cert("somebody").configure_cert(client)
    server.set_alpn_protocols(["h2", "http/1.1"])
    client.set_alpn_protocols(["http/1.1"])
    for server_side in (True, False):
        w = wire(contexts, server_side).connect()
        name = "somebody" if server_side else "localhost"
        assert ("DNS", name) in w.transport.get_extra_info("peercert")["subjectAltName"]
        assert w.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        await w.end()


async def test_server_name_callback(contexts: Contexts) -> None:
    seen: list[str | None] = []
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def choose(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        seen.append(name)
        if name == "localhost":
            return None
        tls.context = other  # has no certificate
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    contexts[0].sni_callback = choose
    w = wire(contexts, True).connect()
    await w.end()
    refused = Wire(contexts[0], Peer(contexts[1], server_hostname="elsewhere"), server_side=True)
    refused.feed(refused.peer.step())
    assert isinstance(refused.waiter.exception(), ssl.SSLError)
    assert seen == ["localhost", "elsewhere"]
    await refused.end()


@VERSIONS
async def test_a_session_is_resumed(contexts: Contexts, version: ssl.TLSVersion) -> None:
    contexts[0].maximum_version = version
    first = wire(contexts, True).connect()
    session = first.peer.tls.session
    await first.end()
    second = Wire(contexts[0], Peer(contexts[1], session=session), server_side=True).connect()
    assert second.peer.tls.session_reused
    assert second.transport.get_extra_info("ssl_object").session_reused
    await second.end()


# Data


@SIDES
@pytest.mark.parametrize("room", [0, 1, 100, 16384, 100_000], ids=["protocol", "1", "100", "16384", "100000"])
async def test_everything_arrives_in_order(contexts: Contexts, server_side: bool, room: int) -> None:
    """However it is written and cut, with reading paused and resumed between."""
    w = wire(contexts, server_side, protocol=Slow(room) if room else None).connect()
    expected = bytearray()
    steps: list[tuple[int, list[int], bool]] = []

    @settings(fast, max_examples=40)
    @given(
        size=st.integers(1, 300 if room == 1 else 70_000),
        sizes=st.lists(st.integers(1, 20_000)),
        pause=st.booleans(),
    )
    def collect_steps(size: int, sizes: list[int], pause: bool) -> None:
        steps.append((size, sizes, pause))

    collect_steps()
    for number, (size, sizes, pause) in enumerate(steps):
        message = (bytes(range(number, number + 50)) * (size // 50 + 1))[:size]
        if pause:
            w.transport.pause_reading()
        w.feed_in(w.peer.write(message), sizes)
        expected += message
        if pause:
            w.transport.resume_reading()
        for _ in range(2000):
            await asyncio.sleep(0)
            if len(w.protocol.received) == len(expected):
                break
        assert w.protocol.received == expected
        w.transport.write(bytearray(message))
        w.exchange()
        assert bytes(w.peer.received) == message
        w.peer.received.clear()
    await w.end()


async def test_what_can_be_written(contexts: Contexts) -> None:
    w = wire(contexts).connect()
    for wrong in ("text", 7, None, [1]):
        with pytest.raises(TypeError, match=f"data: expecting a bytes-like instance, got {type(wrong).__name__}"):
            w.transport.write(wrong)
    w.transport.write(b"")
    assert w.below.pieces == []
    w.transport.write(bytearray(b"one"))
    w.transport.write(memoryview(b"two"))
    w.transport.writelines([b"three", bytearray(b"four"), memoryview(b"five")])
    await turns(1)  # ours keeps the second and later writes until the callback has ended
    w.exchange()
    assert w.peer.received == b"onetwothreefourfive"
    await w.end()


@pytest.mark.ours("how often it reads is velociloop's")
@pytest.mark.parametrize("room", [0, 100_000], ids=["protocol", "buffered"])
@pytest.mark.parametrize("records", [1, 3])
async def test_a_read_that_must_fail_is_not_made(contexts: Contexts, room: int, records: int) -> None:
    """Not behind a record that is full either, as in all of a large message but its end."""
    asked: list[int] = []

    class Counting(ssl.SSLObject):
        def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 (its name is SSLObject's)
            asked.append(len)
            return super().read(len, buffer)

    contexts[0].sslobject_class = Counting
    w = wire(contexts, True, protocol=Slow(room) if room else None).connect()
    asked.clear()
    w.feed(w.peer.write(bytes(16384 * records)))
    assert len(w.protocol.received) == 16384 * records
    assert len(asked) == records
    await w.end()
