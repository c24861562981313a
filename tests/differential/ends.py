"""The two ends of a connection: what they do, and what they see."""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from .outcome import RAISED, EndRun, in_one_wording
from .scenario import CERTAINLY_BUFFERED_BYTES, ENDINGS, MAX_WRITE_BYTES, WRITES, EndSpec, Op

if TYPE_CHECKING:
    from .play import Play

#: Byte number n of every stream is PATTERN[n % PERIOD]. The period is odd, so that no power of two of bytes can be
#: lost or come twice unnoticed.
PERIOD = (1 << 18) - 5
PATTERN = Random(1).randbytes(PERIOD) * (2 + MAX_WRITE_BYTES // PERIOD)
FILL_BYTES = 1 << 16
FILL_TIMES = 256
ASYNCIO_TRANSPORT: type = asyncio.selector_events._SelectorTransport  # type: ignore[attr-defined]


class RaisedError(Exception):
    """What the op "raise" raises."""


def pattern(start: int, size: int) -> bytes:
    start %= PERIOD
    return PATTERN[start : start + size]


class Protocol(asyncio.Protocol):
    """The callbacks of an end, as long as `End.protocol` is this object."""

    def __init__(self, end: End) -> None:
        self.end = end

    def connection_made(self, transport: Any) -> None:
        self.end.on_made(self, transport)

    def data_received(self, data: bytes) -> None:
        self.end.check(type(data) is bytes, f"data_received() got a {type(data).__name__}")
        self.end.on_data(self, data)

    def eof_received(self) -> bool:
        return self.end.on_eof(self)

    def pause_writing(self) -> None:
        self.end.on_pause(self)

    def resume_writing(self) -> None:
        self.end.on_resume(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end.on_lost(self, exc)


class BufferedProtocol(asyncio.BufferedProtocol):
    """The same with a buffer of its own."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.buffer = bytearray(end.spec.buffer_bytes)
        self.offered = False

    connection_made = Protocol.connection_made
    eof_received = Protocol.eof_received
    pause_writing = Protocol.pause_writing
    resume_writing = Protocol.resume_writing
    connection_lost = Protocol.connection_lost

    def get_buffer(self, sizehint: int) -> bytearray:
        self.end.check(sizehint == -1, f"get_buffer({sizehint})")
        self.offered = True
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.end.check(self.offered, "buffer_updated() without get_buffer()")
        self.end.check(0 < nbytes <= len(self.buffer), f"buffer_updated({nbytes})")
        self.offered = False
        self.end.on_data(self, bytes(self.buffer[:nbytes]))


PROTOCOLS: dict[str, Callable[[End], Any]] = {"protocol": Protocol, "buffered": BufferedProtocol}


class End:
    """One end of the connection: runs its ops, and writes down what happens to it."""

    def __init__(self, name: str, spec: EndSpec, play: Play) -> None:
        self.name = name
        self.spec = spec
        self.play = play
        self.run = EndRun()
        self.peer: End
        self.protocol: Any = PROTOCOLS[spec.kind](self)
        self.generation = 0
        self.transport: Any = None
        self.reactions = list(spec.reactions)
        self.accepted_bytes = 0  # that the transport took to send
        self.received_bytes = 0
        self.made = self.eof = self.lost = False
        self.user_paused = False  # by an op
        self.slow_pause = False
        self.ended_writing = False
        self.writing_paused = False
        self.cut = False  # this end may not get all that its peer's transport took
        #: Paused in the middle of what was on its way: how much is left depends on the chunks.
        self.unread_uncertain = False
        self.reacting = ""  # to which callback
        self.expects_reset = False  # of bytes that were sent to a socket that has closed

    # What is so at this moment

    def check(self, condition: bool, violation: str) -> None:
        if not condition:
            self.play.run.violations.append(f"{self.name}: {violation}")
            self.play.changed()

    @property
    def closing(self) -> bool:
        return self.transport is not None and bool(self.transport.is_closing())

    @property
    def reads(self) -> bool:
        return self.made and not (self.lost or self.eof or self.user_paused or self.closing)

    @property
    def unread_bytes(self) -> int:
        return self.peer.accepted_bytes - self.received_bytes

    @property
    def ended(self) -> bool:
        """Whether the other end will see the end of the stream when it has read all."""
        return self.ended_writing or self.lost or self.closing

    @property
    def peer_gone(self) -> bool:
        return self.peer.lost or self.peer.closing

    @property
    def resuming(self) -> bool:
        """Whether resume_writing() runs: while bytes are left to send, a transport that closes takes more."""
        return self.reacting == "resume"

    def unsettled(self) -> str | None:
        """What is still to happen at this end without anybody's doing, if anything."""
        if not self.made:
            return "connection_made()"
        if self.slow_pause and not self.closing and not self.user_paused:
            return "resume_reading() of a slow reader"
        if self.reads:
            if self.unread_bytes and not self.cut and not (self.peer.lost and self.play.run.weak):
                return f"{self.unread_bytes} bytes"
            if self.peer.ended:
                return "the end of the stream"
        if not self.lost and self.closing:
            sends = self.peer.unread_bytes if not self.peer.cut else 0
            if sends <= CERTAINLY_BUFFERED_BYTES or self.peer.reads or self.peer.lost:
                return "connection_lost()"
        if self.writing_paused and not self.lost and not self.closing and not self.peer.unread_bytes:
            return "resume_writing()"
        return None

    # Callbacks

    def enter(self, protocol: Any, what: str) -> None:
        self.check(protocol is self.protocol, f"{what} of a protocol that was replaced")
        self.check(self.play.calling is None, f"{what} within {self.play.calling}")
        self.check(not self.lost, f"{what} after connection_lost()")
        self.check(self.made or what == "connection_made()", f"{what} before connection_made()")

    def on_made(self, protocol: Any, transport: Any) -> None:
        self.enter(protocol, "connection_made()")
        self.check(not self.made, "connection_made() twice")
        self.check(isinstance(transport, asyncio.Transport), f"a {type(transport)} is no asyncio.Transport")
        self.made = True
        self.transport = transport
        self.run.callbacks.append("made")
        self.react("made")

    def on_data(self, protocol: Any, data: bytes) -> None:
        self.enter(protocol, "data_received()")
        self.check(len(data) > 0, "data_received(b'')")
        self.check(not self.eof, "data_received() after eof_received()")
        self.check(not self.user_paused, "data_received() while reading is paused")
        self.check(not self.closing, "data_received() after close()")
        self.check(data == pattern(self.received_bytes, len(data)), f"wrong bytes behind {self.received_bytes}")
        self.received_bytes += len(data)
        self.check(self.unread_bytes >= 0, "more bytes came than were sent")
        if self.spec.slow_turns and not self.slow_pause:
            self.slow_pause = True
            self.transport.pause_reading()
            self.play.loop.call_soon(self.be_slow, self.spec.slow_turns)
        self.react("data")

    def be_slow(self, turns: int) -> None:
        if turns and not self.lost:
            self.play.loop.call_soon(self.be_slow, turns - 1)
            return
        self.slow_pause = False
        if not self.user_paused and not self.lost and not self.eof:
            self.transport.resume_reading()
        self.play.changed()

    def on_eof(self, protocol: Any) -> bool:
        self.enter(protocol, "eof_received()")
        self.check(not self.eof, "eof_received() twice")
        self.check(not self.user_paused, "eof_received() while reading is paused")
        self.check(self.peer.ended, "eof_received(), but the stream has not ended")
        self.eof = True
        if not (self.cut or self.play.run.weak):
            self.check(not self.unread_bytes, f"eof_received(), {self.unread_bytes} bytes too early")
        self.run.callbacks.append(("eof", self.generation))
        if not self.spec.keep_open:
            # Its transport closes when this returns.
            self.before_ending("close")
        self.react("eof")
        if not self.spec.keep_open:
            self.before_ending("close")
        return self.spec.keep_open

    def on_pause(self, protocol: Any) -> None:
        self.check(protocol is self.protocol, "pause_writing() of a protocol that was replaced")
        self.check(not self.writing_paused, "pause_writing() twice")
        self.check(not self.lost, "pause_writing() after connection_lost()")
        self.writing_paused = True
        self.react("pause")

    def on_resume(self, protocol: Any) -> None:
        self.check(protocol is self.protocol, "resume_writing() of a protocol that was replaced")
        self.check(not self.lost, "resume_writing() after connection_lost()")
        self.check(self.writing_paused, "resume_writing() twice")
        self.writing_paused = False
        self.react("resume")

    def on_lost(self, protocol: Any, exc: BaseException | None) -> None:
        self.enter(protocol, "connection_lost()")
        self.lost = True
        name = RAISED if isinstance(exc, RaisedError) else type(exc).__name__ if exc is not None else "None"
        self.run.lost = name
        self.run.callbacks.append(("lost", self.generation, name))
        self.react("lost")

    def react(self, when: str) -> None:
        """Run what is to be done in the callback `when`."""
        outer, self.reacting = self.reacting, when
        try:
            for reaction in self.reactions:
                if reaction.when == when and self.received_bytes >= reaction.after_bytes:
                    self.reactions.remove(reaction)
                    if when == "data" and self.peer.accepted_bytes != reaction.after_bytes:
                        self.reacts_amid_bytes(reaction.ops)
                    if (
                        when == "made"
                        and self.peer.may_write_early()
                        and any(op.name in ENDINGS for op in reaction.ops)
                    ):
                        self.play.run.weak = True
                    self.do(reaction.ops)
                    break
        finally:
            self.reacting = outer
            self.play.changed()

    def may_write_early(self) -> bool:
        return any(op.name in WRITES for reaction in self.spec.reactions for op in reaction.ops)

    def reacts_amid_bytes(self, ops: tuple[Op, ...]) -> None:
        """How many have come when "data" is reacted to depends on the chunks."""
        names = {op.name for op in ops}
        if names & (ENDINGS - {"write_eof"}):
            self.play.run.weak = True
        if "pause_reading" in names:
            self.unread_uncertain = True

    # Ops

    def do(self, ops: tuple[Op, ...]) -> None:
        for op in ops:
            to_nobody = op.name in WRITES and self.peer_gone and not self.closing
            self.do_one(op)
            if to_nobody:
                self.expects_reset = self.play.scenario.transport == "tcp" and self.peer.lost and sum(op.sizes) > 0
                # Of several, asyncio sends the first in vain and fails at the second; velociloop may send them
                # as one, and fails at a later one. So does the kernel: only the first reset tells it.
                break

    def do_one(self, op: Op) -> None:
        transport = self.transport
        if op.name == "raise":
            if self.reacting in ("data", "eof"):
                self.before_ending("abort")  # that is what the transport does
            self.run.calls.append("raise")
            raise RaisedError
        if op.name in ("pause_reading", "resume_reading") and self.eof:
            # asyncio's resume_reading() would receive the end of the stream once more.
            return
        if op.name in ("writelines", "fill") and self.closing:
            # asyncio's writelines() of 3.12 and 3.13 watches a descriptor that is about to be closed.
            return
        sent = not self.peer.unread_uncertain and self.peer.unread_bytes <= CERTAINLY_BUFFERED_BYTES
        if op.name in WRITES and self.closing and not (sent or self.lost or self.resuming):
            # It is still taken if not all has been sent; whether it has, the kernel decides.
            return
        if op.name in ENDINGS:
            self.before_ending(op.name)
        unsent_there = self.peer.closing and not self.peer.lost and self.unread_bytes > CERTAINLY_BUFFERED_BYTES
        if op.name in WRITES and unsent_there:
            self.play.run.weak = True
        outcome = self.call(op, transport)
        self.run.calls.append((op, outcome))
        if not self.peer_gone and op.name != "ask":
            self.run.calls.append((transport.is_closing(), transport.is_reading() or self.slow_pause))

    async def until_reset(self) -> None:
        """Wait until the kernel knows that nobody reads what it was given; it tells who asks."""
        self.expects_reset = False
        deadline = time.monotonic() + self.play.stall_s
        while not self.lost:
            poll = select.poll()
            poll.register(self.transport.get_extra_info("socket").fileno(), 0)
            if poll.poll(0):
                break
            self.check(time.monotonic() < deadline, "bytes for a closed socket were not answered by a reset")
            await asyncio.sleep(0)

    def before_ending(self, name: str) -> None:
        """Find out whether what comes of `name`, about to be called, is determined."""
        if self.closing and name != "abort":
            return
        if name == "write_eof":
            return
        unread, unsent = self.unread_bytes, self.peer.unread_bytes
        if self.lost:
            return
        if self.eof:
            unread = 0
        if unread and (self.unread_uncertain or unread > CERTAINLY_BUFFERED_BYTES or unsent > CERTAINLY_BUFFERED_BYTES):
            self.play.run.weak = True
        if self.play.in_flight and (unread or unsent):
            self.play.run.weak = True
        if name == "abort" and unsent > CERTAINLY_BUFFERED_BYTES:
            self.peer.cut = True

    def call(self, op: Op, transport: Any) -> Any:
        self.play.calling = f"{self.name}'s {op!r}"
        try:
            return self.perform(op, transport)
        except (TypeError, ValueError, RuntimeError, OSError) as error:
            return (type(error).__name__, in_one_wording(str(error)))
        except AttributeError:
            # asyncio's transport, where close() had to wait for the peer, forgets to count itself as lost: its
            # abort() and write() then go on to what is gone.
            if self.lost and op.name in ("abort", "write") and isinstance(transport, ASYNCIO_TRANSPORT):
                self.play.run.warnings = None  # it does not count these writes
                return None
            raise
        finally:
            self.play.calling = None

    def perform(self, op: Op, transport: Any) -> Any:
        match op.name:
            case "write":
                data: Any = pattern(self.accepted_bytes, op.sizes[0])
                if op.text != "bytes":
                    data = bytearray(data)
                given = memoryview(data) if op.text == "memoryview" else data
                with self.accepting(op.sizes[0]):
                    transport.write(given)
                return None
            case "writelines":
                start, pieces = self.accepted_bytes, []
                for size in op.sizes:
                    pieces.append(pattern(start, size))
                    start += size
                with self.accepting(start - self.accepted_bytes):
                    transport.writelines(pieces)
                return None
            case "fill":
                for _ in range(FILL_TIMES):
                    if (self.writing_paused or self.closing) and not self.ended_writing:
                        return "full"
                    data = pattern(self.accepted_bytes, FILL_BYTES)
                    with self.accepting(FILL_BYTES):
                        transport.write(data)
                return "bottomless"
            case "bad_write":
                return transport.write({"str": "text", "int": 5, "NoneType": None, "list": []}[op.text])
            case "limits":
                transport.set_write_buffer_limits(**dict(zip(("high", "low"), op.sizes, strict=False)))
                return transport.get_write_buffer_limits()
            case "protocol":
                self.protocol = PROTOCOLS[op.text](self)
                self.generation += 1
                transport.set_protocol(self.protocol)
                return transport.get_protocol() is self.protocol
            case "mark":
                number = len(self.run.marks)
                self.run.marks.append(None)
                determined = self.peer.unread_bytes <= CERTAINLY_BUFFERED_BYTES and not self.peer_gone
                self.play.loop.call_soon(self.on_mark, number, determined)
                return None
            case "ask":
                return self.ask(transport)
            case "pause_reading":
                if not self.closing:
                    self.user_paused = True
                    if self.play.in_flight and self.unread_bytes:
                        # velociloop may have taken it from the kernel, asyncio has not: if this end closes now,
                        # only the one that has not resets the connection.
                        self.unread_uncertain = True
                return transport.pause_reading()
            case "resume_reading":
                if not self.closing:
                    self.user_paused = False
                return transport.resume_reading()
            case "write_eof":
                if not self.closing:
                    self.ended_writing = True
                return transport.write_eof()
            case name:
                return getattr(transport, name)()

    @contextlib.contextmanager
    def accepting(self, size: int) -> Iterator[None]:
        """Count `size` bytes that are written within, where pause_writing() may come, and write more."""
        if self.closing and not (self.resuming and not self.lost):
            size = 0  # dropped
        self.accepted_bytes += size
        try:
            yield
        except BaseException:
            self.accepted_bytes -= size
            raise

    def on_mark(self, number: int, determined: bool) -> None:
        self.run.marks[number] = self.lost if determined and not self.peer_gone else None

    def ask(self, transport: Any) -> list[Any]:
        sock = transport.get_extra_info("socket")
        # Within a reaction it depends on how many bytes have come by now.
        certain = self.peer.received_bytes == self.accepted_bytes and not (self.play.in_flight or self.reacting)
        return [
            transport.can_write_eof(),
            transport.get_write_buffer_limits(),
            transport.get_write_buffer_size() if certain else None,
            transport.get_protocol() is self.protocol,
            type(sock).__name__,
            sock.family.name,
            sock.type.name,
            sock.gettimeout(),
            sock.fileno() == -1,
            [type(transport.get_extra_info(name)).__name__ for name in ("sockname", "peername", "cipher", "pipe")],
            transport.get_extra_info("nothing", "a default"),
        ]

    def afterwards(self) -> None:
        """Call everything on the transport of a lost connection."""
        transport = self.transport
        for op in (
            Op("abort"),
            Op("close"),
            Op("write_eof"),
            Op("write", (5,), "bytes"),
            Op("bad_write", text="str"),
            Op("pause_reading"),
            Op("resume_reading"),
            Op("limits", (10,)),
        ):
            self.run.final[op.name] = self.call(op, transport)
        self.run.final["is"] = (transport.is_closing(), transport.is_reading(), transport.get_write_buffer_size())
        self.run.final["protocol"] = transport.get_protocol() is self.protocol
        self.run.final["socket"] = transport.get_extra_info("socket").fileno()
