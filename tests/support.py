"""What the tests share: loops by name, recording protocols, pairs of connected ends, child processes.

Child processes import this module too (`run_child`), so nothing here needs pytest.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

LOCALHOST = "127.0.0.1"
#: A limit that only a hang reaches, in seconds.
HANG_S = 30.0


def _new_velociloop() -> asyncio.AbstractEventLoop:
    import velociloop

    return velociloop.new_event_loop()


FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "velociloop": _new_velociloop,
    "asyncio": asyncio.SelectorEventLoop,
}


def is_ours(loop: asyncio.AbstractEventLoop | None = None) -> bool:
    """Whether `loop`, or else the running loop, is velociloop's."""
    return type(loop or asyncio.get_running_loop()).__module__.startswith("velociloop")


class HandlerCalls:
    """Contexts given to the exception handler, in order. What a test expects it takes; the rest fails it."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []

    def record(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._calls.append(context)

    def __len__(self) -> int:
        return len(self._calls)

    def take(self) -> dict[str, Any]:
        """The oldest call not yet taken; there must be one."""
        assert self._calls, "the exception handler was not called"
        return self._calls.pop(0)

    def take_all(self) -> list[dict[str, Any]]:
        calls, self._calls = self._calls, []
        return calls

    def clear(self) -> None:
        self._calls.clear()


def open_descriptors() -> dict[int, str]:
    """This process's descriptors and what they refer to; empty where the platform does not list them."""
    found: dict[int, str] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def collect() -> None:
    """Collect all garbage, and have its finalizers run."""
    # PyPy: what a finalizer lets go of is garbage for the next collection, whose finalizers run after that.
    for _ in range(5 if sys.implementation.name == "pypy" else 1):
        gc.collect()


def resident_bytes() -> int:
    """What the process has in memory now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def in_time(awaitable: Awaitable[T]) -> T:
    """`awaitable`'s result; a hang becomes TimeoutError."""
    return await asyncio.wait_for(awaitable, HANG_S)


async def turns(count: int = 3) -> None:
    """Let the running loop turn `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Let the running loop turn until `condition` holds: for state that nothing announces."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never came to hold"
        await asyncio.sleep(0)


class Recorder(asyncio.Protocol):
    """A protocol that writes down its callbacks.

    They are ``made``, ``data`` (a run of it once), ``eof``, ``pause``, ``resume`` and ``lost``.
    """

    def __init__(self, *, keep_open: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[str] = []
        self.received = bytearray()
        self.keep_open = keep_open
        self.transport: Any = None
        self.made: asyncio.Future[None] = loop.create_future()
        self.eof: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()
        self.resumed = asyncio.Event()
        self._wanted: list[tuple[int, asyncio.Future[None]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")
        self.made.set_result(None)

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes and data
        if self.events[-1:] != ["data"]:
            self.events.append("data")
        self.received += data
        for count, future in self._wanted:
            if len(self.received) >= count and not future.done():
                future.set_result(None)

    def eof_received(self) -> bool:
        self.events.append("eof")
        self.eof.set_result(None)
        return self.keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")
        self.resumed.clear()

    def resume_writing(self) -> None:
        self.events.append("resume")
        self.resumed.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)

    async def bytes_received(self, count: int) -> bytes:
        """Wait for at least `count` bytes in all, and give what has come."""
        if len(self.received) < count:
            future = asyncio.get_running_loop().create_future()
            self._wanted.append((count, future))
            await in_time(future)
        return bytes(self.received)


class Echo(Recorder):
    """A `Recorder` that sends back what it receives."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


def tcp_socketpair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on the loopback interface, both blocking."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def packet_socketpair() -> tuple[socket.socket, socket.socket]:
    """Two ends whose peer receives one packet for each system call that sends.

    The descriptors are SOCK_SEQPACKET; the near end claims SOCK_STREAM, which is all that asyncio looks at.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=near.detach()), far


SOCKET_PAIRS: dict[str, Callable[[], tuple[socket.socket, socket.socket]]] = {
    "tcp": tcp_socketpair,
    "unix": socket.socketpair,
    "packets": packet_socketpair,
}


class RawPeer:
    """The blocking far end of a transport, worked from the test's thread or, where it must wait, from another."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(HANG_S)

    async def receive_all(self, count: int) -> bytes:
        """Exactly `count` bytes, waited for in a thread."""
        return await asyncio.to_thread(self._receive_all, count)

    def _receive_all(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            data = self.sock.recv(count - len(received))
            assert data, f"EOF after {len(received)} of {count} bytes"
            received += data
        return bytes(received)

    async def receive_to_eof(self) -> bytes:
        return await asyncio.to_thread(self._receive_to_eof)

    def _receive_to_eof(self) -> bytes:
        received = bytearray()
        while data := self.sock.recv(1 << 16):
            received += data
        return bytes(received)

    def available_packets(self) -> list[bytes]:
        """What has arrived by now, one element for each packet of a `packet_socketpair`; waits for nothing."""
        packets = []
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while packet := self.sock.recv(1 << 20):
                packets.append(packet)
        self.sock.settimeout(HANG_S)
        return packets

    def reset(self) -> None:
        """Close so that the other end is reset (TCP only)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


P = TypeVar("P", bound=asyncio.BaseProtocol)


@contextlib.asynccontextmanager
async def raw_connection(
    protocol_factory: Callable[[], P], kind: str = "tcp", *, small_buffers: bool = False
) -> AsyncIterator[tuple[Any, P, RawPeer]]:
    """A transport, its protocol, and the raw socket at its other end; all closed at exit.

    `kind` is a key of `SOCKET_PAIRS`; `small_buffers` lets the kernel take little: some
    kilobytes on a Unix socket, less than a megabyte on TCP.
    """
    near, far = SOCKET_PAIRS[kind]()
    if small_buffers:
        # TCP with a window below its segment size (64 KiB on the loopback interface) crawls from probe to probe.
        size = 1 << 18 if kind == "tcp" else 8192
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    with far:
        near.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(protocol_factory, sock=near)
        try:
            yield transport, protocol, RawPeer(far)
        finally:
            await closed(transport)


async def closed(transport: Any) -> None:
    """Abort `transport` and wait until it has let go of its socket."""
    # asyncio's own abort() fails on a transport that close() has already let go of.
    if transport._loop is not None:
        transport.abort()
    # connection_lost and the socket's closing are one call_soon away, a TLS transport's a few more.
    await turns(6)


@contextlib.asynccontextmanager
async def serving(
    protocol_factory: Callable[[], asyncio.BaseProtocol], **options: Any
) -> AsyncIterator[tuple[asyncio.Server, Any]]:
    """A server on a free loopback port and its address; closed at exit."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol_factory, LOCALHOST, 0, **options)
    try:
        yield server, server.sockets[0].getsockname()
    finally:
        server.close()
        await turns()


class Pair:
    """Both ends of one connection."""

    def __init__(self, client: Any, server: Any) -> None:
        self.client, self.server = client, server


@contextlib.asynccontextmanager
async def pair(
    client_factory: Callable[[], Any] = Recorder,
    server_factory: Callable[[], Any] = Recorder,
    *,
    server_tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    unix: bool = False,
    **options: Any,
) -> AsyncIterator[Pair]:
    """The protocols (`Recorder`s or alike) of a client and of a server that are connected; aborted at exit."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Any] = loop.create_future()

    def accept() -> Any:
        protocol = server_factory()
        accepted.set_result(protocol)
        return protocol

    with tempfile.TemporaryDirectory() as folder:
        if unix:
            path = os.path.join(folder, "socket")
            server = await loop.create_unix_server(accept, path, ssl=server_tls)
            name = "localhost" if client_tls else None
            _, client = await loop.create_unix_connection(
                client_factory, path, ssl=client_tls, server_hostname=name, **options
            )
        else:
            server = await loop.create_server(accept, LOCALHOST, 0, ssl=server_tls)
            port = server.sockets[0].getsockname()[1]
            _, client = await loop.create_connection(client_factory, LOCALHOST, port, ssl=client_tls, **options)
        far = await in_time(accepted)
        await in_time(far.made)
        try:
            yield Pair(client, far)
        finally:
            server.close()
            await closed(client.transport)
            await closed(far.transport)


# Datagrams


class DatagramRecorder(asyncio.DatagramProtocol):
    """A protocol that writes down its callbacks: ``made``, ``pause``, ``resume``, ``lost``, and what came."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[str] = []
        self.received: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.transport: Any = None
        self.lost: asyncio.Future[BaseException | None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert type(data) is bytes
        self.received.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        assert isinstance(exc, OSError)
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)

    @property
    def payloads(self) -> list[bytes]:
        return [data for data, _ in self.received]

    async def count(self, number: int) -> list[bytes]:
        """Wait for `number` datagrams in all, and give their data."""
        await until(lambda: len(self.received) >= number)
        return self.payloads

    async def error(self, number: int = 1) -> Exception:
        """Wait for the error of this number."""
        await until(lambda: len(self.errors) >= number)
        return self.errors[number - 1]


class DatagramEcho(DatagramRecorder):
    """A `DatagramRecorder` that sends back what it receives."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


@contextlib.asynccontextmanager
async def endpoint(
    protocol_factory: Callable[[], Any] = DatagramRecorder, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """A datagram transport and its protocol; without `options` on a free loopback port. Closed at exit."""
    if not options:
        options = {"local_addr": (LOCALHOST, 0)}
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(protocol_factory, **options)
    try:
        yield transport, protocol
    finally:
        await closed(transport)


@contextlib.contextmanager
def udp_socket(host: str = LOCALHOST) -> Iterator[socket.socket]:
    """A blocking UDP socket on a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(HANG_S)
        sock.bind((host, 0))
        yield sock


# Child processes


def new_child_loop() -> asyncio.AbstractEventLoop:
    """In a child of `run_child`: a loop of the kind that the parent test runs on."""
    return FACTORIES[os.environ["TEST_LOOP"]]()


def child_environment(loop_name: str) -> dict[str, str]:
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "TEST_LOOP": loop_name,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


CHILD_PRELUDE = """\
import asyncio, contextlib, os, signal, socket, sys, threading, time
from support import *
"""


class Child(subprocess.Popen[str]):
    """A child of `start_child`; what it writes to stderr goes to a file, so that stdout can be read by the line."""

    def __init__(self, arguments: list[str], loop_name: str) -> None:
        self.stderr_file = tempfile.TemporaryFile("w+")  # noqa: SIM115 (finish() closes it)
        super().__init__(
            arguments,
            env=child_environment(loop_name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.stderr_file,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill the child and what it has started, which might keep its output open."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def line(self) -> str:
        """The next line of its output."""
        assert self.stdout is not None
        return self.stdout.readline()

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end and give the rest of its output; a child that hangs is killed."""
        assert self.stdout is not None
        killer = threading.Timer(2 * HANG_S, self.kill)
        killer.start()
        try:
            with self, self.stderr_file:
                out = self.stdout.read()
                self.wait()
                self.stderr_file.seek(0)
                err = self.stderr_file.read()
        finally:
            killer.cancel()
            killer.join()
        assert self.returncode != -signal.SIGKILL, f"the child hung; it said:\n{out}\n{err}"
        return subprocess.CompletedProcess(self.args, self.returncode, out, err)


def start_child(code: str, loop_name: str, *flags: str) -> Child:
    """Start Python on `code`, which finds this module's names and asyncio's usual companions imported."""
    program = CHILD_PRELUDE + textwrap.dedent(code)
    return Child([sys.executable, *flags, "-X", "faulthandler", "-c", program], loop_name)


def run_child(code: str, loop_name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a child to its end; the caller checks how it ended."""
    return start_child(code, loop_name, *flags).finish()


def until_blocked(pid: int, thread: int | None = None) -> None:
    """Return once process `pid`'s main thread, or its `thread` by native id, sleeps in the kernel (Linux)."""
    deadline = time.monotonic() + HANG_S
    calm = 0
    while calm < 5:
        assert time.monotonic() < deadline, "the child never blocked"
        with open(f"/proc/{pid}/task/{thread or pid}/stat") as file:
            state = file.read().rsplit(")", 1)[1].split()[0]
        calm = calm + 1 if state == "S" else 0
        # Long enough for a thread that only waited for the GIL to run on, and be seen running.
        threading.Event().wait(0.004)
