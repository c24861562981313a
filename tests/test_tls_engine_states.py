"""The TLS engine beside asyncio's in sequences made up by hypothesis, and ended from within each callback."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support import HandlerCalls, Recorder, is_ours, turns
from tls_support import SIDES, Contexts, Slow, Wire, wire

pytestmark = pytest.mark.debug_variant

Step = tuple[str, int]

SIZES = st.sampled_from([1, 100, 16384, 16385, 40_000])

#: What may happen to a connection; the number counts only for "write" and "peer".
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["write", "write", "peer", "peer", "peer", "cut", "turn", "deliver", "deliver"],
                *["pause", "resume", "below-pauses", "below-resumes", "close", "peer-closes", "end", "abort"],
            ]
        ),
        SIZES,
    ),
    max_size=14,
)


class Player:
    """One wire on which steps are played."""

    def __init__(self, w: Wire) -> None:
        self.wire = w
        self.arriving = bytearray()
        self.peer_closed = self.ended = self.below_paused = False
        self.was_paused = False  # by the transport below, at any time
        self.written = 0

    def arrive(self) -> None:
        """As a transport below would: nothing while it is paused."""
        w = self.wire
        if self.arriving and w.below.reading and not w.below.ended:
            data, self.arriving = bytes(self.arriving), bytearray()
            w.feed(data)

    async def play(self, step: Step) -> None:
        w = self.wire
        what, size = step
        if what == "write":
            w.transport.write(bytes([self.written % 251]) * size)
            self.written += 1
        elif what == "peer" and not self.peer_closed:
            self.arriving += w.peer.write(bytes(range(250)) * (size // 250 + 1))
        elif what == "cut" and len(self.arriving) > 1:
            half = len(self.arriving) // 2
            rest = self.arriving[half:]
            del self.arriving[half:]
            self.arrive()
            self.arriving += rest
            return
        elif what == "pause" and w.transport.is_reading() and not w.transport.is_closing():
            w.transport.pause_reading()
        elif what == "resume" and not w.transport.is_reading():
            w.transport.resume_reading()
        elif what in ("below-pauses", "below-resumes") and not w.below.ended:
            await turns(1)  # as for "deliver"
            wanted = what == "below-pauses"
            if wanted is not self.below_paused:
                self.below_paused = wanted
                self.was_paused = self.was_paused or wanted
                (w.layer.pause_writing if wanted else w.layer.resume_writing)()
        elif what == "turn":
            await turns(3)
        elif what == "deliver":
            await turns(1)  # ours keeps the second and later writes of a callback until it ends
            if not self.peer_closed:
                w.peer.step(w.below.take())
        elif what == "close":
            # A second one of asyncio's lets go of everything; with reading paused, see below.
            if not w.transport.is_closing() and (not self.ended or w.transport.is_reading()):
                w.transport.close()
        elif what == "peer-closes" and not self.peer_closed:
            self.peer_closed = True
            self.arriving += w.peer.close()
        elif what == "end" and not self.ended and w.below.reading and not w.below.ended and not self.arriving:
            self.ended = self.peer_closed = True
            w.layer.eof_received()
        elif what == "abort":
            w.transport.abort()
        if what != "peer":
            self.arrive()

    def outcome(self) -> dict[str, Any]:
        w = self.wire
        lost = w.protocol.lost
        events = [event for event in w.protocol.events if event not in ("pause", "resume")]
        return {
            "events": [event for i, event in enumerate(events) if event != "data" or events[i - 1] != "data"],
            "received": bytes(w.protocol.received),
            "lost": type(lost.result()) if lost.done() else "not lost",
            "below": [type(exc) for exc in w.below.ended],
            "reading": w.below.reading,
            "closing": w.transport.is_closing(),
        }


@pytest.mark.ours("the body plays both engines on one loop")
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="there asyncio's leaves its errors to others")
@SIDES
def test_any_sequence_ends_alike(
    loop: asyncio.AbstractEventLoop, contexts: Contexts, server_side: bool, handler_calls: HandlerCalls
) -> None:
    async def play(engine: str, steps: list[Step]) -> tuple[dict[str, Any], bytes, bool]:
        player = Player(wire(contexts, server_side, engine=engine).connect())
        w = player.wire
        for step in steps:
            await player.play(step)
        await turns(4)
        player.arrive()
        await turns(4)
        if not player.peer_closed:
            w.peer.step(w.below.take())
        found = player.outcome()
        reports = [(call["message"], type(call["exception"])) for call in handler_calls.take_all()]
        events = w.protocol.events
        assert events[0] == "made" and events.count("made") == 1
        assert events.count("lost") == (1 if w.below.ended else 0) and events.count("eof") <= 1
        assert "lost" not in events[:-1]
        await w.end()
        return {**found, "reports": reports}, bytes(w.peer.received), player.was_paused

    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(steps=STEPS)
    def run(steps: list[Step]) -> None:
        ours, sent, was_paused = loop.run_until_complete(play("velociloop", steps))
        theirs, sent_by_theirs, _ = loop.run_until_complete(play("asyncio", steps))
        assert ours == theirs
        if was_paused:  # asyncio loses what waits when the peer closes
            assert sent.startswith(sent_by_theirs)
        else:
            assert sent == sent_by_theirs

    run()


async def test_closed_while_the_end_waits_for_the_reader(contexts: Contexts) -> None:
    """A StreamReader that is full, and a writer.close() by who has read enough: asyncio waits for ever."""
    w = wire(contexts).connect()
    w.transport.pause_reading()
    w.feed(w.peer.write(b"unread"))
    assert w.layer.eof_received()
    await turns(2)
    assert not w.below.ended
    w.transport.close()
    await turns(4)
    if is_ours():
        assert w.below.ended == [None]
        assert w.protocol.events == ["made", "eof", "lost"] and w.protocol.lost.result() is None
        w.transport.resume_reading()
        await turns(2)
    else:
        assert w.below.ended == []
    assert w.protocol.received == b""
    await w.end()


@pytest.mark.ours("on some versions of asyncio's a RuntimeError of its states")
async def test_aborted_by_what_had_waited_for_the_reader(contexts: Contexts) -> None:
    """Behind the end of the stream: nothing more is said to a protocol that has enough."""

    class Aborting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.abort()

    w = wire(contexts, protocol=Aborting()).connect()
    w.transport.pause_reading()
    w.feed(w.peer.write(b"last words"))
    assert w.layer.eof_received()
    w.transport.resume_reading()
    await turns(4)
    assert w.protocol.events == ["made", "data", "lost"] and w.below.ended == [None]
    await w.end()


@SIDES
@pytest.mark.parametrize("method", ["abort", "close"])
async def test_ended_in_the_handshake(contexts: Contexts, server_side: bool, method: str) -> None:
    """Who waits for the handshake hears that it was not finished; with asyncio it looks as if it was."""
    w = wire(contexts, server_side)
    w.feed(w.peer.step(w.below.take())[:-1])
    getattr(w.transport, method)()
    await turns(4)
    if is_ours():
        assert isinstance(w.waiter.exception(), ConnectionAbortedError)
    else:
        assert w.waiter.exception() is None
    assert w.protocol.events == [] and w.below.ended == [None]
    await w.end()


# Ended from within


CALLBACKS = ["connection_made", "data_received", "eof_received", "pause_writing", "resume_writing"]


@SIDES
@pytest.mark.parametrize("method", ["abort", "close"])
@pytest.mark.parametrize("callback", CALLBACKS)
async def test_ended_within(contexts: Contexts, server_side: bool, method: str, callback: str) -> None:
    class Ending(Recorder):
        pass

    def end(self: Ending, *args: Any) -> Any:
        result = getattr(Recorder, callback)(self, *args)
        getattr(self.transport, method)()
        return result

    setattr(Ending, callback, end)
    w = wire(contexts, server_side, protocol=Ending())
    w.exchange()
    assert w.waiter.exception() is None
    if callback == "data_received":
        w.feed(w.peer.write(b"x" * 20_000) + w.peer.write(b"y"))
    elif callback == "eof_received":
        w.feed(w.peer.close())
    elif callback in ("pause_writing", "resume_writing"):
        w.transport.set_write_buffer_limits(high=10)
        w.layer.pause_writing()
        w.transport.write(bytes(20))
        if not w.below.ended:
            w.layer.resume_writing()
    w.exchange()
    if method == "close" and callback != "eof_received":
        assert w.transport.is_closing() and not w.below.ended, "the peer has not answered"
        w.feed(w.peer.close())
    await turns(4)
    assert w.below.ended == [None]
    assert w.protocol.events.count("lost") == 1 and w.protocol.events[-1] == "lost"
    assert w.protocol.lost.result() is None
    live = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert live == []
    await w.end()


@pytest.mark.parametrize("method", ["abort", "close"])
@pytest.mark.parametrize("callback", ["get_buffer", "buffer_updated"])
@pytest.mark.parametrize("room", [20, 100_000])
async def test_ended_within_a_buffered_protocol(contexts: Contexts, method: str, callback: str, room: int) -> None:
    class Ending(Slow):
        ending = False

        def end(self) -> None:
            if not self.ending:
                self.ending = True
                getattr(self.transport, method)()

        def get_buffer(self, sizehint: int) -> memoryview:
            if callback == "get_buffer" and self.armed:
                self.end()
            return super().get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            if callback == "buffer_updated":
                self.end()

        armed = False

    protocol = Ending(room)
    w = wire(contexts, True, protocol=protocol).connect()
    protocol.armed = True
    w.feed(w.peer.write(b"x" * 20))
    await turns(2)
    w.peer.step(w.below.take())
    if method == "close":
        assert w.peer.ended
        w.feed(w.peer.close())
    await turns(4)
    assert w.below.ended == [None]
    assert protocol.events[0] == "made" and protocol.events[-1] == "lost" and protocol.events.count("lost") == 1
    await w.end()
