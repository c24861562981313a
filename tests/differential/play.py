"""Playing a scenario on a loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import select
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from .outcome import RAISED, EndRun, Run
from .scenario import CERTAINLY_BUFFERED_BYTES, ENDINGS, MAX_WRITE_BYTES, WRITES, EndSpec, Op, Scenario, Step

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

#: Byte number n of every stream is PATTERN[n % PERIOD]. The period is odd, so that no power of two of bytes can be
#: lost or come twice unnoticed.
PERIOD = (1 << 18) - 5
PATTERN = Random(1).randbytes(PERIOD) * (2 + MAX_WRITE_BYTES // PERIOD)
FILL_BYTES = 1 << 16
FILL_TIMES = 256
#: Less, and TCP crawls from one probe of the window to the next; more, and it takes the largest write at once.
TCP_BUFFER_BYTES = 1 << 18

ASYNCIO_TRANSPORT: type = asyncio.selector_events._SelectorTransport  # type: ignore[attr-defined]


class RaisedError(Exception):
    """What the op "raise" raises."""


class StalledError(Exception):
    """Nothing happens any more, but should."""


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
            # asyncio 3.11's writelines() is a write(), in its errors too.
            return (type(error).__name__, str(error).replace("writelines()", "write()"))
        except AttributeError:
            # asyncio's transport, where close() had to wait for the peer, forgets to count itself as lost: its
            # abort() and write() then go on to what is gone.
            if self.lost and op.name in ("abort", "write") and isinstance(transport, ASYNCIO_TRANSPORT):
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


class Play:
    """A scenario on a loop."""

    def __init__(self, scenario: Scenario, loop: asyncio.AbstractEventLoop, stall_s: float) -> None:
        self.scenario = scenario
        self.loop = loop
        self.stall_s = stall_s
        self.calling: str | None = None
        self.in_flight = False  # the steps before this one were not waited for
        self._waiter: asyncio.Future[None] | None = None
        self.client = End("client", scenario.ends[0], self)
        self.server = End("server", scenario.ends[1], self)
        self.client.peer, self.server.peer = self.server, self.client
        self.ends = (self.client, self.server)
        self.run = Run(self.client.run, self.server.run, weak=scenario.hasty, warnings=[])
        if scenario.hasty:
            self.client.cut = self.server.cut = True

    def changed(self) -> None:
        """Something has happened: whoever waits may look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def until(self, unsettled: Callable[[], str | None]) -> None:
        """Wait until `unsettled` has nothing to say; StalledError if it says the same for `stall_s` seconds."""
        while (reason := unsettled()) is not None and not self.run.violations:
            self._waiter = self.loop.create_future()
            try:
                await asyncio.wait_for(self._waiter, self.stall_s)
            except TimeoutError:
                raise StalledError(f"{reason} never came") from None

    def unsettled(self) -> str | None:
        for end in self.ends:
            if (reason := end.unsettled()) is not None:
                return f"{end.name}: {reason}"
        return None

    async def settle(self) -> None:
        for end in self.ends:
            if end.expects_reset:
                await end.until_reset()
        while True:
            await self.until(self.unsettled)
            for _ in range(3):  # what was scheduled by what has just happened
                await asyncio.sleep(0)
            if self.unsettled() is None or self.run.violations:
                break
        self.in_flight = False
        for end in self.ends:
            if not end.unread_bytes:
                end.unread_uncertain = False
            end.run.callbacks.append("settled")

    def report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Be the loop's exception handler."""
        error = context.get("exception")
        message = re.sub("(Exception in callback) .*", r"\1", context["message"], flags=re.DOTALL)
        told = (message, type(error).__name__, sorted(context))
        owner = getattr(context.get("protocol"), "end", None)
        if owner is None:
            text = repr(context.get("handle"))
            owners = [end for end in self.ends if isinstance(error, RaisedError)]
            owner = next((end for end in owners if end.name in text), owners[0] if owners else None)
        if self.run.weak and told[0] == "Exception in callback" and getattr(error, "errno", None) == errno.ENOTCONN:
            pass  # asyncio's delayed shutdown() of a connection that was reset
        elif owner is None or not isinstance(error, RaisedError):
            self.run.violations.append(f"the exception handler was told {told}: {error!r}")
        else:
            owner.run.reports.append(told)
        self.changed()

    # The connection

    async def connect(self) -> asyncio.Server | None:
        loop = self.loop

        def accept() -> Any:
            return self.server.protocol

        def client() -> Any:
            return self.client.protocol

        if self.scenario.transport == "pair":
            near, far = socket.socketpair()
            for sock in (near, far):
                sock.setblocking(False)
            await loop.connect_accepted_socket(accept, far)
            await loop.create_connection(client, sock=near)
            return None
        if self.scenario.transport == "unix":
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "socket")
                server = await loop.create_unix_server(accept, path)
                await loop.create_unix_connection(client, path)
                await self.until(lambda: None if self.server.made else "server: connection_made()")
            return server
        listener = socket.create_server(("127.0.0.1", 0))
        sock = socket.socket()
        for one in (listener, sock):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TCP_BUFFER_BYTES)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TCP_BUFFER_BYTES)
        sock.setblocking(False)
        server = await loop.create_server(accept, sock=listener)
        await loop.sock_connect(sock, listener.getsockname())
        await loop.create_connection(client, sock=sock)
        return server

    async def perform(self) -> None:
        server = await self.connect()
        try:
            await self.until(lambda: None if all(end.made for end in self.ends) else "connection_made()")
            await self.steps(self.scenario.steps)
            await self.steps(self.scenario.last)
            await self.end()
        except StalledError as stalled:
            self.run.violations.append(str(stalled))
        finally:
            for end in self.ends:
                if end.transport is not None and not end.lost:
                    end.transport.abort()
            if server is not None:
                server.close()
            for _ in range(6):
                await asyncio.sleep(0)
            if server is not None and not self.run.violations:
                try:
                    await asyncio.wait_for(server.wait_closed(), self.stall_s)
                except TimeoutError:
                    self.run.violations.append("server: wait_closed() never returned")

    async def steps(self, steps: tuple[Step, ...]) -> None:
        if not self.scenario.hasty:
            await self.settle()
        for step in steps:
            if self.run.violations:
                return
            if not self.scenario.hasty and self.in_flight and any(op.name in ENDINGS for op in step.ops):
                await self.settle()
            try:
                self.ends[step.end].do(step.ops)
            except RaisedError:
                pass
            ending = any(op.name in ENDINGS for op in step.ops) or any(
                op.name in ENDINGS for end in self.ends for reaction in end.reactions for op in reaction.ops
            )
            if self.scenario.hasty:
                self.in_flight = True
                await asyncio.sleep(0)
            elif step.settle or ending:
                await self.settle()
            else:
                self.in_flight = True
                await asyncio.sleep(0)

    async def end(self) -> None:
        """Let everything be read, close what is open, and look at what is left."""
        if not self.scenario.hasty:
            await self.settle()
        for end in self.ends:
            end.reactions.clear()
            if end.user_paused and not end.eof and not end.closing:
                end.do((Op("resume_reading"),))
        if not self.scenario.hasty:
            await self.settle()
        for end in self.ends:
            end.run.complete = end.cut or end.eof or end.closing or end.unread_bytes == 0
        for end in self.ends:
            if not end.closing and not self.run.weak:
                end.do((Op("close"),))
                await self.settle()
            elif not end.lost:
                # Its last bytes can have nobody to read them: it would wait for ever.
                end.transport.abort()
        await self.until(lambda: None if all(end.lost for end in self.ends) else "connection_lost()")
        for end in self.ends:
            end.afterwards()


class Log(logging.Handler):
    """Collects what the logger "asyncio" is given."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    logger, handler = logging.getLogger("asyncio"), Log()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def play(scenario: Scenario, factory: LoopFactory, stall_s: float) -> Run:
    """Play `scenario` on a new loop, which is closed again."""
    with logged() as messages:
        loop = factory()
        try:
            performance = Play(scenario, loop, stall_s)
            loop.set_exception_handler(performance.report)
            loop.run_until_complete(performance.perform())
        finally:
            loop.close()
    run = performance.run
    if run.warnings is not None:
        run.warnings = messages
    return run
