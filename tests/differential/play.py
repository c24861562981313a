"""Playing a scenario on a loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from .ends import End, RaisedError
from .outcome import Run
from .scenario import ENDINGS, Op, Scenario, Step

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

#: Less, and TCP crawls from one probe of the window to the next; more, and it takes the largest write at once.
TCP_BUFFER_BYTES = 1 << 18


class StalledError(Exception):
    """Nothing happens any more, but should."""


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
        waits = 2  # a machine that was suspended is late with everything, once
        while (reason := unsettled()) is not None and not self.run.violations:
            self._waiter = self.loop.create_future()
            try:
                await asyncio.wait_for(self._waiter, self.stall_s)
                waits = 2
            except TimeoutError:
                waits -= 1
                if not waits:
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
