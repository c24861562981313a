"""How a TLS connection goes and ends under either engine: flow control, each state, exceptions of protocols."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import HandlerCalls, Recorder, is_ours, turns
from tls_support import SIDES, Contexts, Slow, wire

pytestmark = pytest.mark.debug_variant


# Flow control


async def test_the_protocol_is_paused_while_the_transport_below_is(contexts: Contexts) -> None:
    w = wire(contexts).connect()
    assert w.transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
    w.transport.set_write_buffer_limits(high=10_000)
    assert w.transport.get_write_buffer_limits() == (2_500, 10_000)
    w.layer.pause_writing()
    w.transport.write(bytes(5_000))
    assert w.protocol.events == ["made"] and w.transport.get_write_buffer_size() > 5_000
    w.transport.write(bytes(5_000))
    assert w.protocol.events == ["made", "pause"]
    assert w.below.pieces == []
    w.layer.resume_writing()
    assert w.protocol.events == ["made", "pause", "resume"]
    assert w.transport.get_write_buffer_size() == 0
    w.exchange()
    assert len(w.peer.received) == 10_000
    with pytest.raises(ValueError, match="must be >= low"):
        w.transport.set_write_buffer_limits(high=1, low=2)
    await w.end()


async def test_the_transport_below_is_paused_while_the_protocol_is(contexts: Contexts) -> None:
    w = wire(contexts).connect()
    assert w.transport.get_read_buffer_limits() == (64 * 1024, 256 * 1024)
    w.transport.set_read_buffer_limits(high=30_000)
    w.transport.pause_reading()
    w.feed(w.peer.write(bytes(20_000)))
    assert w.below.reading
    w.feed(w.peer.write(bytes(20_000)))
    assert not w.below.reading and w.transport.get_read_buffer_size() > 40_000
    w.transport.resume_reading()
    await turns(2)
    assert w.below.reading and len(w.protocol.received) == 40_000
    await w.end()


async def test_a_high_water_mark_of_zero(contexts: Contexts) -> None:
    """Asyncio pauses and resumes in turn, with nothing waiting."""
    w = wire(contexts).connect()
    w.transport.set_write_buffer_limits(high=0)
    assert w.protocol.events == (["made"] if is_ours() else ["made", "pause"])
    w.layer.pause_writing()
    w.transport.write(b"x")
    if is_ours():
        assert w.protocol.events == ["made", "pause"]
    w.layer.resume_writing()
    assert w.protocol.events[-1] == "resume"
    await w.end()


# The end, in each state


@SIDES
async def test_close_and_answer(contexts: Contexts, server_side: bool) -> None:
    w = wire(contexts, server_side).connect()
    w.transport.write(b"last words")
    w.transport.close()
    w.transport.write(b"too late")
    assert w.transport.is_closing()
    w.peer.step(w.below.take())
    assert w.peer.ended and w.peer.received == b"last words"
    assert not w.below.ended
    w.feed(w.peer.close())
    await turns(4)
    assert w.below.ended == [None]
    assert w.protocol.events == ["made", "eof", "lost"] and w.protocol.lost.result() is None
    w.transport.close()
    await w.end()


@SIDES
async def test_the_peer_closes(contexts: Contexts, server_side: bool) -> None:
    w = wire(contexts, server_side).connect()
    w.feed(w.peer.write(b"last words") + w.peer.close())
    assert w.protocol.received == b"last words"
    await turns(4)
    assert w.protocol.events == ["made", "data", "eof", "lost"]
    assert w.below.ended == [None]
    w.peer.step(w.below.take())
    assert w.peer.ended
    await w.end()


async def test_truncation_at_every_byte_ends_alike(contexts: Contexts) -> None:
    async def play(engine: str, cut: int) -> tuple[int, Any]:
        w = wire(contexts, True, engine=engine).connect()
        w.peer.step(w.below.take())
        whole = w.peer.write(b"one") + w.peer.write(b"two") + w.peer.close()
        w.feed(whole[:cut])
        if not w.below.ended:
            w.layer.eof_received()
        await turns(4)
        lost = type(w.protocol.lost.result()) if w.protocol.lost.done() else None
        found = w.protocol.events, bytes(w.protocol.received), lost, w.below.ended
        await w.end()
        return len(whole), found

    length, _ = await play("asyncio", 0)
    for cut in range(length + 1):
        assert await play("velociloop", cut) == await play("asyncio", cut), f"cut at {cut}"


@pytest.mark.parametrize("state", ["handshake", "wrapped", "paused", "flushing", "shutdown"])
async def test_abort(contexts: Contexts, state: str) -> None:
    w = wire(contexts, True)
    if state != "handshake":
        w.connect()
    if state in ("paused", "flushing"):
        w.transport.pause_reading()
        w.feed(w.peer.write(b"unread"))
    if state == "flushing":
        w.layer.eof_received()
    if state == "shutdown":
        w.transport.close()
    w.transport.abort()
    w.transport.abort()
    assert w.below.ended == [None] and w.transport.is_closing()
    await turns(4)
    assert w.protocol.events == ([] if state == "handshake" else ["made", "lost"])
    assert w.protocol.received == b""
    w.transport.abort()
    w.transport.write(b"nobody")
    live = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert live == []
    await w.end()


@pytest.mark.parametrize("reason", ["close", "peer"])
async def test_nothing_is_left_unsent(contexts: Contexts, reason: str) -> None:
    """The transport below is paused when the end comes; on the peer's close asyncio loses what waits."""
    w = wire(contexts, True).connect()
    w.layer.pause_writing()
    w.transport.write(b"x" * 100_000)
    if reason == "close":
        w.transport.close()
        w.layer.resume_writing()
    else:
        w.feed(w.peer.close())
    await turns(4)
    w.peer.step(w.below.take())
    if reason == "close" or is_ours():
        assert len(w.peer.received) == 100_000
    await w.end()


async def test_timeouts(contexts: Contexts) -> None:
    silent = wire(contexts, ssl_handshake_timeout=0.01)
    with pytest.raises(ConnectionAbortedError, match=r"SSL handshake is taking longer than 0\.01 seconds"):
        await silent.waiter
    assert silent.protocol.events == []
    await silent.end()
    mute = wire(contexts, ssl_shutdown_timeout=0.01).connect()
    mute.transport.close()
    exc = await mute.protocol.lost
    assert isinstance(exc, TimeoutError) and str(exc) == "SSL shutdown timed out"
    await mute.end()


# Exceptions of the protocol


@pytest.mark.parametrize("method", ["data_received", "eof_received", "pause_writing", "resume_writing"])
async def test_exceptions(contexts: Contexts, method: str, handler_calls: HandlerCalls) -> None:
    class Failing(Recorder):
        pass

    def fail(self: Failing, *args: Any) -> None:
        raise LookupError("on purpose")

    setattr(Failing, method, fail)
    w = wire(contexts, protocol=Failing()).connect()
    w.transport.set_write_buffer_limits(high=10)
    w.layer.pause_writing()
    w.transport.write(bytes(10))
    w.layer.resume_writing()
    w.feed(w.peer.write(b"x"))
    w.feed(w.peer.close())
    await turns(4)
    context = handler_calls.take()
    assert isinstance(context["exception"], LookupError)
    assert context["message"] == {
        "data_received": "Fatal error on SSL protocol",
        "eof_received": "Error calling eof_received()",
        "pause_writing": "protocol.pause_writing() failed",
        "resume_writing": "protocol.resume_writing() failed",
    }[method]
    assert context["protocol"] is w.layer
    assert w.protocol.events[-1] == "lost"
    await w.end()


@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
async def test_exceptions_of_a_buffered_protocol(
    contexts: Contexts, method: str, handler_calls: HandlerCalls
) -> None:
    class Failing(Slow):
        pass

    w = wire(contexts, protocol=Failing(100)).connect()

    def fail(*args: Any) -> None:
        raise LookupError("on purpose")

    if method == "get_buffer" and is_ours():
        # An empty buffer is refused too; asyncio takes it for the peer's close_notify.
        Failing.get_buffer = lambda self, sizehint: memoryview(b"")  # type: ignore[method-assign]
        expected: type[Exception] = RuntimeError
    else:
        setattr(Failing, method, fail)
        w.layer._set_app_protocol(w.protocol)  # asyncio keeps the methods
        expected = LookupError
    w.feed(w.peer.write(b"x"))
    await turns(3)
    context = handler_calls.take()
    assert isinstance(context["exception"], expected) and context["message"] == "Fatal error on SSL protocol"
    assert w.protocol.events == ["made", "lost"]
    await w.end()


@pytest.mark.parametrize("method", ["abort", "close"])
async def test_ended_by_data_received(contexts: Contexts, method: str) -> None:
    class Ending(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            getattr(self.transport, method)()

    w = wire(contexts, protocol=Ending()).connect()
    w.feed(w.peer.write(b"x"))
    w.exchange()
    if method == "close":
        w.feed(w.peer.close())
    await turns(4)
    assert w.protocol.events[0:2] == ["made", "data"] and w.protocol.events[-1] == "lost"
    assert w.protocol.lost.result() is None
    await w.end()
