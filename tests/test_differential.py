"""What a connection does on velociloop and on the standard library's loop, side by side.

hypothesis makes up scenarios (differential.scenario), each is played on both loops in one process, one after
another (differential.play), and both must come to the same (differential.outcome says what that means).

VELOCILOOP_DIFFERENTIAL=large plays many more, and other ones at each run; a number, so many. With
VELOCILOOP_DIFFERENTIAL_SEED such a run can be repeated; it needs pytest's `-o faulthandler_timeout=0`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from differential.outcome import differences
from differential.play import play
from differential.scenario import EndSpec, Op, Reaction, Scenario, Step, scenarios
from hypothesis import HealthCheck, Phase, find, given, seed, settings
from hypothesis.errors import NoSuchExample
from support import FACTORIES, HANG_S, in_time

SIZE = os.environ.get("VELOCILOOP_DIFFERENTIAL", "")
CI_EXAMPLES = 700
EXAMPLES = {"": CI_EXAMPLES, "large": 20000}.get(SIZE) or int(SIZE)
SEED = os.environ.get("VELOCILOOP_DIFFERENTIAL_SEED")
#: So long nothing may happen that should. Many times what a busy machine needs.
STALL_S = 10.0
#: So long a seeded defect may wait for what never comes.
DEFECT_STALL_S = 0.3

ours, oracle = FACTORIES["velociloop"], FACTORIES["asyncio"]


def profile(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=not SIZE,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def compare(scenario: Scenario) -> None:
    found = differences(play(scenario, ours, STALL_S), play(scenario, oracle, STALL_S))
    assert not found, "\n".join(found)


def with_seed(test: Callable[..., None]) -> Callable[..., None]:
    return seed(int(SEED))(test) if SEED else test


@with_seed
@profile(EXAMPLES)
@given(scenarios())
def test_velociloop_behaves_as_asyncio(scenario: Scenario) -> None:
    compare(scenario)


@with_seed
@profile(EXAMPLES // 10)
@given(scenarios())
def test_asyncio_behaves_as_itself(scenario: Scenario) -> None:
    """Otherwise the comparison would depend on something that no rule determines."""
    runs = [play(scenario, oracle, STALL_S) for _ in range(2)]
    found = differences(*runs)
    assert not found, "\n".join(found)


# Scenarios that hypothesis once found, or might take long to find again


def end(*reactions: Reaction, kind: str = "protocol", keep_open: bool = False, slow_turns: int = 0) -> EndSpec:
    return EndSpec(kind, 1000 if kind == "buffered" else 65536, keep_open, slow_turns, reactions)


def write(size: int) -> Op:
    return Op("write", (size,), "bytes")


CLOSE, ABORT, EOF, FILL = Op("close"), Op("abort"), Op("write_eof"), Op("fill")
PAUSE, RESUME, MARK, RAISE = Op("pause_reading"), Op("resume_reading"), Op("mark"), Op("raise")


def client(*ops: Op) -> Step:
    return Step(0, ops, settle=True)


def server(*ops: Op) -> Step:
    return Step(1, ops, settle=True)


FOUND: dict[str, tuple[tuple[EndSpec, EndSpec], tuple[Step, ...]]] = {
    "reset while the end of the stream waits": (
        (end(), end()),
        (client(PAUSE), server(FILL, EOF), client(write(1), CLOSE)),
    ),
    "connection_lost() raises after a close that had to wait": (
        (end(), end(Reaction("lost", (RAISE,)))),
        (server(FILL, CLOSE),),
    ),
    "write_eof() behind a write that fails": (
        (end(), end(keep_open=True)),
        (server(FILL), client(CLOSE), server(write(1), EOF)),
    ),
    "resume_writing() writes while the transport closes": (
        (end(), end(Reaction("resume", (write(10), write(10))))),
        (client(PAUSE), server(Op("limits", (65536, 0)), FILL, CLOSE), client(RESUME)),
    ),
    "close() with more to send than the kernel takes": (
        (end(), end()),
        (client(PAUSE), server(FILL, CLOSE), client(RESUME)),
    ),
    "half-close with an answer in both directions": (
        (end(keep_open=True), end(Reaction("eof", (write(1 << 20), EOF)), keep_open=True)),
        (client(write(1 << 20), EOF), client(CLOSE), server(CLOSE)),
    ),
    "closed with bytes unread": (
        (end(), end()),
        (client(PAUSE), server(write(100)), client(CLOSE)),
    ),
    "call_soon() around close() and abort()": (
        (end(), end()),
        (client(MARK, write(5), CLOSE, MARK, ABORT, MARK),),
    ),
    "both ends full": (
        (end(kind="buffered", slow_turns=1), end(slow_turns=3)),
        (client(PAUSE), server(PAUSE), client(FILL), server(FILL), client(RESUME), server(RESUME)),
    ),
    "another protocol within data_received()": (
        (end(), end(Reaction("data", (Op("protocol", text="buffered"), PAUSE), 1))),
        (client(write(1 << 20)), client(write(5)), server(RESUME)),
    ),
}


def found_scenario(name: str, transport: str) -> Scenario:
    return Scenario(transport, *FOUND[name], last=(), hasty=False)


@pytest.mark.parametrize("transport", ["tcp", "unix", "pair"])
@pytest.mark.parametrize("name", FOUND)
def test_found_scenario(name: str, transport: str) -> None:
    compare(found_scenario(name, transport))


def test_a_write_in_resume_writing_while_closing_is_the_last(loop: asyncio.AbstractEventLoop) -> None:
    """close() waits for its bytes; resume_writing() adds some, and the kernel takes them at once."""

    class Writer(asyncio.Protocol):
        lost: asyncio.Future[None]

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.lost = loop.create_future()

        def resume_writing(self) -> None:
            self.transport.write(b"x")
            self.transport.write(b"y")

        def connection_lost(self, exc: BaseException | None) -> None:
            self.lost.set_result(None)

    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            transport, writer = await loop.create_connection(Writer, sock=near)
            transport.set_write_buffer_limits(high=65536, low=0)
            size = 0
            while transport.get_write_buffer_size() <= 65536:
                transport.write(bytes(65536))
                size += 65536
            transport.close()
            far.settimeout(HANG_S)

            def receive_all() -> bytes:
                received = bytearray()
                while data := far.recv(1 << 16):
                    received += data
                return bytes(received)

            received = await asyncio.to_thread(receive_all)
            await in_time(writer.lost)
            assert received == bytes(size) + b"xy"

    loop.run_until_complete(main())


# The comparison can fail: asyncio's loop with one defect each


class Defective(asyncio.SelectorEventLoop):
    """asyncio's loop, its transports with a defect."""

    def __init__(self, transport: type) -> None:
        super().__init__()
        self.transport = transport

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> Any:
        return self.transport(self, sock, protocol, waiter, extra, server)


if TYPE_CHECKING:

    class _Transport:
        _buffer: Any
        _closing: bool
        _conn_lost: int
        _eof: bool
        _loop: Any
        _protocol: Any
        _read_ready: Any
        _sock_fd: int

        def _call_connection_lost(self, exc: Any) -> None: ...
        def _force_close(self, exc: Any) -> None: ...
        def _read_ready__on_eof(self) -> None: ...
        def abort(self) -> None: ...
        def close(self) -> None: ...
        def is_closing(self) -> bool: ...
        def pause_reading(self) -> None: ...
        def set_protocol(self, protocol: Any) -> None: ...
        def write(self, data: Any) -> None: ...

else:
    _Transport = asyncio.selector_events._SelectorSocketTransport


class DropsAByte(_Transport):
    def write(self, data: Any) -> None:
        super().write(data[:-1] if len(data) == 4097 else data)


class SendsAByteTwice(_Transport):
    def write(self, data: Any) -> None:
        super().write(data)
        if len(data) == 65535:
            super().write(data[-1:])


class LosesTheEnd(_Transport):
    def _read_ready__on_eof(self) -> None:
        self._loop._remove_reader(self._sock_fd)


class LosesTheConnectionTwice(_Transport):
    def _call_connection_lost(self, exc: Any) -> None:
        self._protocol.connection_lost(exc)
        super()._call_connection_lost(exc)


class LosesTheConnectionAtOnce(_Transport):
    def close(self) -> None:
        if not self._closing and not self._buffer and self._loop._selector.get_map().get(self._sock_fd):
            self._loop._remove_reader(self._sock_fd)
            self._closing = True
            self._conn_lost = 1
            self._call_connection_lost(None)


class NeverPausesReading(_Transport):
    def pause_reading(self) -> None:
        super().pause_reading()
        if not self.is_closing():
            self._loop._add_reader(self._sock_fd, self._read_ready)


class ForgetsToResumeWriting(_Transport):
    def _maybe_resume_protocol(self) -> None:
        pass


class AbortsOnClose(_Transport):
    def close(self) -> None:
        self.abort()


class WritesAfterTheEnd(_Transport):
    def write(self, data: Any) -> None:
        if not self._eof:
            super().write(data)


class HidesTheError(_Transport):
    def _force_close(self, exc: Any) -> None:
        super()._force_close(None)


class SwallowsExceptions(_Transport):
    def _fatal_error(self, exc: Any, message: str = "") -> None:
        self._force_close(exc)


class ForgetsKeepOpen(_Transport):
    def _read_ready__on_eof(self) -> None:
        super()._read_ready__on_eof()
        self.close()


class IgnoresSetProtocol(_Transport):
    def set_protocol(self, protocol: Any) -> None:
        if getattr(self, "_protocol", None) is None:
            super().set_protocol(protocol)


class LosesTheConnectionLate(_Transport):
    """Its connection_lost() comes a turn late."""

    def _call_connection_lost(self, exc: Any) -> None:
        self._loop.call_soon(super()._call_connection_lost, exc)


DEFECTS = [
    DropsAByte, SendsAByteTwice, LosesTheEnd, LosesTheConnectionTwice, LosesTheConnectionAtOnce, NeverPausesReading,
    ForgetsToResumeWriting, WritesAfterTheEnd, HidesTheError, SwallowsExceptions, ForgetsKeepOpen, IgnoresSetProtocol,
]  # fmt: skip


def shows(scenario: Scenario, defect: type) -> bool:
    run = play(scenario, lambda: Defective(defect), DEFECT_STALL_S)
    return bool(differences(run, play(scenario, oracle, STALL_S)))


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect: type) -> None:
    options = settings(profile(CI_EXAMPLES), phases=[Phase.generate], derandomize=True)
    try:
        find(scenarios(), lambda scenario: shows(scenario, defect), settings=options)
    except NoSuchExample:
        pytest.fail(f"{CI_EXAMPLES} scenarios do not show it")


@pytest.mark.parametrize("defect", [AbortsOnClose, LosesTheConnectionLate])
def test_a_defect_that_shows_rarely_is_found(defect: type) -> None:
    assert any(shows(found_scenario(name, "tcp"), defect) for name in FOUND)
