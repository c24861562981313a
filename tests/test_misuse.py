"""Misuse: whatever a program gives to the loop's methods, it gets asyncio's exception, and the loop goes on.

Each example is a sequence of wrong calls, played on both loops; then the loop must still serve a connection, and have
nothing left open. What a wrong call is answered with must be the same exception with the same words.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from support import FACTORIES, LOCALHOST, Echo, Recorder, collect, in_time, open_descriptors, pair, turns

Call = Callable[[Any, Any], Any]


class Odd:
    """Something with a `fileno` that is not one."""

    def __init__(self, number: Any) -> None:
        self._number = number

    def fileno(self) -> Any:
        if isinstance(self._number, Exception):
            raise self._number
        return self._number

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"Odd({self._number!r})"


class Things:
    """What wrong calls are made with: made anew for each example, closed after it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        def keep(thing: Any) -> Any:
            return stack.enter_context(contextlib.closing(thing))

        self.closed_socket = socket.socket()
        self.closed_number = self.closed_socket.fileno()
        self.closed_socket.close()
        # Nothing that the example opens takes the closed number.
        keeper = os.open(os.devnull, os.O_RDONLY)
        if keeper == self.closed_number:
            stack.callback(os.close, os.dup(keeper))
            os.close(keeper)
            self.closed_number = 900
        else:
            stack.callback(os.close, keeper)
            self.closed_number = 900
        self.regular_file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (so it is)
        self.directory = os.open(tempfile.gettempdir(), os.O_RDONLY)
        stack.callback(os.close, self.directory)
        self.closed_file = tempfile.TemporaryFile()  # noqa: SIM115 (closed on the next line)
        self.closed_file.close()
        self.near, self.far = (keep(sock) for sock in socket.socketpair())
        self.near.setblocking(False)
        self.datagram = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.datagram.setblocking(False)
        self.unconnected = keep(socket.socket())
        self.unconnected.setblocking(False)


FILES: dict[str, Callable[[Things], Any]] = {
    "-1": lambda _: -1,
    "-7": lambda _: -7,
    "2**31-1": lambda _: 2**31 - 1,
    "2**31": lambda _: 2**31,
    "2**63": lambda _: 2**63,
    "None": lambda _: None,
    "str": lambda _: "7",
    "bytes": lambda _: b"7",
    "float": lambda _: 7.0,
    "object": lambda _: object(),
    "list": lambda _: [],
    "closed number": lambda things: things.closed_number,
    "closed socket": lambda things: things.closed_socket,
    "regular file": lambda things: things.regular_file,
    "its number": lambda things: things.regular_file.fileno(),
    "directory": lambda things: things.directory,
    "closed file": lambda things: things.closed_file,
    "Odd(-1)": lambda _: Odd(-1),
    "Odd(str)": lambda _: Odd("x"),
    "Odd(None)": lambda _: Odd(None),
    "Odd(raises)": lambda _: Odd(ValueError("of our own")),
    "Odd(closed)": lambda things: Odd(things.closed_number),
}

SOCKETS: dict[str, Callable[[Things], Any]] = {
    **{name: FILES[name] for name in ("None", "str", "object", "closed socket", "-1")},
    "unconnected": lambda things: things.unconnected,
    "datagram": lambda things: things.datagram,
}

DATA: dict[str, Any] = {"None": None, "str": "text", "int": 5, "list": [1], "object": object}
SIZES: dict[str, Any] = {"None": None, "-1": -1, "str": "5", "2**70": 2**70, "float": 1.5}
ADDRESSES: dict[str, Any] = {
    "None": None,
    "empty": (),
    "no port": (LOCALHOST,),
    "str": LOCALHOST,
    "port": (LOCALHOST, "a port"),
    "negative": (LOCALHOST, -1),
    "huge": (LOCALHOST, 1 << 20),
    "host": (None, 80),
    "list": [LOCALHOST, 80],
}
SIGNALS: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "65": 65,
    "2**40": 2**40,
    "str": "SIGTERM",
    "None": None,
    "float": 2.0,
    "SIGKILL": signal.SIGKILL,
    "SIGSTOP": signal.SIGSTOP,
    "32": 32,
}
CALLBACKS: dict[str, Any] = {"coroutine function": asyncio.sleep, "None": None, "int": 5}


async def _coroutine() -> None:
    pass


def _named(kind: str, table: dict[str, Any], *, made: bool = False) -> st.SearchStrategy[tuple[str, Any]]:
    """A name for the example's repr, and a function of `Things`."""
    return st.sampled_from(sorted(table)).map(
        lambda name: (f"{kind} {name}", table[name] if made else lambda _, value=table[name]: value)
    )


files = _named("file", FILES, made=True)
sockets = _named("socket", SOCKETS, made=True)


def _call(name: str, *arguments: st.SearchStrategy[Any], **options: Any) -> st.SearchStrategy[tuple[str, Call]]:
    """The loop's method `name`, with arguments that the strategies make."""

    def build(drawn: tuple[Any, ...]) -> tuple[str, Call]:
        words = ", ".join(word for word, _ in drawn)

        def call(loop: Any, things: Any) -> Any:
            return getattr(loop, name)(*(make(things) for _, make in drawn), **options)

        return f"{name}({words}{', ' if options else ''}{options or ''})", call

    return st.tuples(*arguments).map(build)


def _same(value: Any) -> st.SearchStrategy[tuple[str, Any]]:
    return st.just((repr(value), lambda _: value))


wrong_calls = st.one_of(
    _call("add_reader", files, _same(print)),
    _call("add_writer", files, _same(print)),
    _call("remove_reader", files),
    _call("remove_writer", files),
    _call("sock_recv", sockets, _same(10)),
    _call("sock_recv", _named("socket", {"near": lambda things: things.near}, made=True), _named("size", SIZES)),
    _call("sock_recv_into", sockets, _named("data", DATA)),
    _call("sock_recvfrom", sockets, _same(10)),
    _call("sock_sendall", sockets, _named("data", DATA)),
    _call("sock_sendto", sockets, _same(b"data"), _named("address", ADDRESSES)),
    _call("sock_recvfrom_into", sockets, _named("data", DATA)),
    _call("sock_sendfile", sockets, _named("data", DATA)),
    _call("sock_connect", sockets, _named("address", ADDRESSES)),
    _call("getnameinfo", _named("address", ADDRESSES), _same(3)),
    _call("getnameinfo", _same((LOCALHOST, 80)), _named("flags", SIZES)),
    _call("sock_accept", sockets),
    _call("connect_read_pipe", _same(Recorder), files),
    _call("connect_write_pipe", _same(Recorder), files),
    _call("create_connection", _same(Recorder)),
    _call("create_connection", _same(Recorder), _same(LOCALHOST), _same(1), ssl=5),
    _call("create_connection", _same(Recorder), _same(LOCALHOST), _same(1), server_hostname="name"),
    _call("create_connection", _same(Recorder), _same(LOCALHOST), _same(1), ssl_handshake_timeout=1),
    _call("create_connection", _same(None), _same(LOCALHOST), _same(1)),
    _call("create_server", _same(Recorder)),
    _call("create_server", _same(Recorder), _same(LOCALHOST), _same(0), ssl=True),
    _call("create_server", _same(Recorder), _same(LOCALHOST), _same(-1)),
    _call("create_server", _same(Recorder), _same(5), _same(0)),
    _call("create_unix_connection", _same(Recorder)),
    _call("create_unix_connection", _same(Recorder), _same("/no/such/socket")),
    _call("create_unix_connection", _same(Recorder), _same("\0" * 500)),
    _call("create_unix_server", _same(Recorder)),
    _call("create_unix_server", _same(Recorder), _same("/no/such/folder/socket")),
    _call("create_unix_server", _same(Recorder), _same(5)),
    _call("create_datagram_endpoint", _same(Recorder)),
    _call("create_datagram_endpoint", _same(Recorder), local_addr=LOCALHOST),
    _call("create_datagram_endpoint", _same(Recorder), local_addr=(LOCALHOST, -1)),
    _call("create_datagram_endpoint", _same(Recorder), local_addr=(LOCALHOST, 0), remote_addr=("::1", 1)),
    _call("connect_accepted_socket", _same(Recorder), sockets),
    _call("sendfile", _same(None), _same(None)),
    _call("start_tls", _same(None), _same(None), _same(None)),
    _call("add_signal_handler", _named("signal", SIGNALS), _same(print)),
    _call("add_signal_handler", _same(signal.SIGUSR1), _named("callback", CALLBACKS)),
    _call("remove_signal_handler", _named("signal", SIGNALS)),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol)),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same(5)),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same("/no/such/program")),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same("/"), _same("x")),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same("true\0")),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same("true"), text=True),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same("true"), bufsize=5),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same("true"), stdin="x"),
    _call("subprocess_exec", _same(asyncio.SubprocessProtocol), _same("true"), cwd="/no/such/folder"),
    _call("subprocess_shell", _same(asyncio.SubprocessProtocol), _same(None)),
    _call("subprocess_shell", _same(asyncio.SubprocessProtocol), _same("true"), shell=False),
    _call("call_later", _same(None), _same(print)),
    _call("call_later", _same("5"), _same(print)),
    _call("call_at", _same(None), _same(print)),
    _call("run_until_complete", _same(5)),
    _call("close"),
    _call("create_task", _same(5)),
    _call("set_default_executor", _same(5)),
    _call("set_exception_handler", _same(5)),
    _call("set_task_factory", _same(5)),
    _call("run_in_executor", _same(5), _same(print)),
    _call("getaddrinfo", _same(5), _same(5)),
)


def words_of(exc: BaseException) -> str:
    """Type and message, without what differs from object to object."""
    text = re.sub(r"0x[0-9a-f]+", "0x", f"{type(exc).__name__}: {exc}")
    text = re.sub(r"fd=\d+|laddr=[^>]*|raddr=[^>]*", "", text)
    return re.sub(r"\b\d{2,}\b", "N", text)


async def outcome(loop: Any, things: Things, call: Call) -> str:
    """What becomes of one wrong call: its exception, its result, or that it waits for something."""
    try:
        result = call(loop, things)
        if not asyncio.iscoroutine(result) and not asyncio.isfuture(result):
            return f"returned {result!r}"
        task = asyncio.ensure_future(result)
        await asyncio.wait([task], timeout=0 if task.done() else 0.05)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return "waits"
        result = task.result()
    except Exception as exc:  # noqa: BLE001 (whatever it is, it is what is compared)
        return words_of(exc)
    if isinstance(result, tuple) and hasattr(result[0], "close"):
        result[0].close()
        await turns(5)
    return f"gave {type(result).__name__}"


async def scene(loop_name: str, calls: list[tuple[str, Call]]) -> list[tuple[str, str]]:
    loop: Any = asyncio.get_running_loop()
    outcomes = []
    with contextlib.ExitStack() as stack:
        things = Things(stack)
        for words, call in calls:
            outcomes.append((words, await outcome(loop, things, call)))
        for name in ("near", "datagram", "unconnected"):
            sock = getattr(things, name)
            for remove in (loop.remove_reader, loop.remove_writer):
                if sock.fileno() >= 0:  # a transport that was made of it has closed it
                    remove(sock)
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.set_task_factory(None)
        loop.set_exception_handler(None)
        async with pair(Recorder, Echo) as ends:
            ends.client.transport.write(b"alive")
            assert await ends.client.bytes_received(5) == b"alive"
        await turns(5)
    return outcomes


def play(loop_name: str, calls: list[tuple[str, Call]]) -> list[tuple[str, str]]:
    loop = FACTORIES[loop_name]()
    try:
        found = loop.run_until_complete(in_time(scene(loop_name, calls)))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    return found


@contextlib.contextmanager
def nothing_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    collect()
    leaked = {fd: target for fd, target in open_descriptors().items() if before.get(fd) != target}
    assert not leaked


@given(st.lists(wrong_calls, min_size=1, max_size=4))
@settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_wrong_calls_are_answered_as_by_asyncio(calls: list[tuple[str, Call]]) -> None:
    # Coroutines that a refusal has left, transports of closed files: the oracle warns of them too, and the repr of its
    # half-made transports fails in their __del__.
    with warnings.catch_warnings(), mock.patch.object(sys, "unraisablehook"):
        warnings.simplefilter("ignore")
        with nothing_leaks():
            ours = play("velociloop", calls)
        theirs = play("asyncio", calls)
        collect()
    assert [words for words, _ in ours] == [words for words, _ in theirs]
    for (words, our_answer), (_, their_answer) in zip(ours, theirs, strict=True):
        # A message of ours may go on to say what to do.
        assert our_answer.startswith(their_answer), f"{words}: {our_answer!r}, not {their_answer!r}"


@pytest.mark.ours("asyncio's loop is torn by some of these")
def test_calls_from_another_thread_while_the_loop_waits(loop: Any) -> None:
    """They are refused or done, but nothing crashes, and the loop goes on."""
    near, far = socket.socketpair()
    near.setblocking(False)
    answers: list[str] = []
    with near, far:

        async def main() -> None:
            transport, _ = await loop.create_connection(Recorder, sock=near)
            calls = [
                lambda: transport.write(b"from afar"),
                transport.pause_reading,
                transport.resume_reading,
                lambda: transport.write_eof(),
                lambda: transport.get_extra_info("socket"),
                lambda: transport.get_write_buffer_size(),
                lambda: loop.add_reader(far, print),
                lambda: loop.remove_reader(far),
                loop.close,
                loop.run_forever,
                lambda: loop.add_signal_handler(signal.SIGUSR1, print),
                transport.abort,
                loop.statistics,
            ]

            def misuse() -> None:
                for call in calls:
                    try:
                        call()
                        answers.append("done")
                    except (RuntimeError, ValueError) as exc:
                        answers.append(type(exc).__name__)

            await asyncio.to_thread(misuse)
            transport.abort()
            await turns()
            async with pair(Recorder, Echo) as ends:
                ends.client.transport.write(b"alive")
                assert await ends.client.bytes_received(5) == b"alive"

        loop.run_until_complete(in_time(main()))
    assert len(answers) == 13


def test_calls_after_close(loop_name: str) -> None:
    """Each method on a closed loop: asyncio's answer, never a crash."""

    def answers(name: str) -> dict[str, str]:
        loop: Any = FACTORIES[name]()
        loop.close()
        near, far = socket.socketpair()
        near.setblocking(False)
        calls: dict[str, Callable[[], Any]] = {
            "close": loop.close,
            "run_forever": loop.run_forever,
            "call_soon": lambda: loop.call_soon(print),
            "call_later": lambda: loop.call_later(1, print),
            "call_at": lambda: loop.call_at(1, print),
            "call_soon_threadsafe": lambda: loop.call_soon_threadsafe(print),
            "run_in_executor": lambda: loop.run_in_executor(None, print),
            "add_reader": lambda: loop.add_reader(near, print),
            "remove_reader": lambda: loop.remove_reader(near),
            "add_writer": lambda: loop.add_writer(near, print),
            "remove_writer": lambda: loop.remove_writer(near),
            "add_signal_handler": lambda: loop.add_signal_handler(signal.SIGUSR1, print),
            "remove_signal_handler": lambda: loop.remove_signal_handler(signal.SIGUSR1),
            "stop": loop.stop,
            "is_running": loop.is_running,
            "is_closed": loop.is_closed,
            "time": lambda: type(loop.time()),
            "repr": lambda: re.sub(r"<\w*", "", repr(loop)),
        }
        found = {}
        with near, far:
            for word, call in calls.items():
                try:
                    found[word] = f"returned {call()!r}"
                except Exception as exc:  # noqa: BLE001 (likewise)
                    found[word] = words_of(exc).replace(type(loop).__name__, "LOOP")
        return found

    assert answers(loop_name) == answers("asyncio")


@pytest.mark.ours("3.13.0's loop takes a refused run_forever() for the end of the one that is going on")
def test_reentrant_run_forever(loop: Any) -> None:
    other = FACTORIES["velociloop"]()

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="This event loop is already running"):
                loop.run_forever()
            with pytest.raises(RuntimeError, match="Cannot run the event loop while another loop is running"):
                other.run_forever()
            assert asyncio.get_running_loop() is loop
            assert loop.is_running()
            assert not other.is_running()
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    other.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        other.run_forever()


def test_reentrant_runs(loop: Any) -> None:
    other = FACTORIES["asyncio"]()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            loop.run_until_complete(loop.create_future())
        with pytest.raises(RuntimeError, match="Cannot run the event loop while another loop is running"):
            other.run_until_complete(other.create_future())
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()
        with pytest.raises(RuntimeError, match=r"asyncio\.run\(\) cannot be called from a running event loop"):
            asyncio.run(coroutine := _coroutine())
        coroutine.close()

    loop.run_until_complete(main())
    loop.run_until_complete(main())
    other.close()


def test_a_run_in_another_thread_meanwhile(loop: Any) -> None:
    answers: list[str] = []

    def run() -> None:
        try:
            loop.run_forever()
        except RuntimeError as exc:
            answers.append(str(exc))

    async def main() -> None:
        thread = threading.Thread(target=run)
        thread.start()
        await asyncio.to_thread(thread.join)

    loop.run_until_complete(main())
    assert answers == ["This event loop is already running"]
