"""Programs of the kinds that asyncio's documentation shows, written anew: each runs on the loop as it stands."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support import LOCALHOST, in_time, run_child, turns

Loop = asyncio.AbstractEventLoop


# Callbacks


def test_a_callback_that_stops_the_loop(loop: Loop) -> None:
    said: list[str] = []

    def hello() -> None:
        said.append("hello")
        loop.stop()

    loop.call_soon(hello)
    loop.run_forever()
    assert said == ["hello"]


def test_a_callback_that_calls_itself_again_until_its_time_is_up(loop: Loop) -> None:
    times: list[float] = []

    def tick() -> None:
        times.append(loop.time())
        if loop.time() + 0.01 < times[0] + 0.05:
            handle = loop.call_later(0.01, tick)
            assert isinstance(handle, asyncio.TimerHandle) and handle.when() >= times[-1] + 0.01
            assert not handle.cancelled()
        else:
            loop.stop()

    loop.call_soon(tick)
    loop.run_forever()
    assert len(times) <= 6
    assert all(later - earlier >= 0.01 for earlier, later in itertools.pairwise(times))


async def test_a_coroutine_that_shows_the_date_until_its_time_is_up() -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.03
    shown: list[datetime.datetime] = []
    while loop.time() < end:
        shown.append(datetime.datetime.now())
        await asyncio.sleep(0.01)
    assert shown and shown == sorted(shown)


def test_a_future_between_a_callback_and_run_until_complete(loop: Loop) -> None:
    future: asyncio.Future[str] = loop.create_future()

    async def set_after(delay: float, value: str) -> None:
        await asyncio.sleep(delay)
        future.set_result(value)

    task = loop.create_task(set_after(0.001, "the future is done"))
    assert loop.run_until_complete(future) == "the future is done"
    loop.run_until_complete(task)


# Waiting for descriptors


def test_watch_a_descriptor(loop: Loop) -> None:
    near, far = socket.socketpair()
    received: list[bytes] = []

    def readable() -> None:
        received.append(near.recv(100))
        assert loop.remove_reader(near)
        loop.stop()

    with near, far:
        loop.add_reader(near, readable)
        loop.call_soon(far.send, b"abc")
        loop.run_forever()
    assert received == [b"abc"]


def test_watch_a_descriptor_for_writing(loop: Loop) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        with contextlib.suppress(BlockingIOError):
            while near.send(bytes(1 << 16)):
                pass

        def writable() -> None:
            assert loop.remove_writer(near)
            loop.stop()

        loop.add_writer(near, writable)
        loop.call_soon(far.recv, 1 << 22)
        loop.run_forever()
        assert not loop.remove_writer(near) and near.send(b"x") == 1


async def test_an_open_socket_as_a_stream_and_as_a_transport() -> None:
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=near)
    asyncio.get_running_loop().call_soon(far.send, b"abc")
    assert await in_time(reader.read(100)) == b"abc"
    writer.close()
    await writer.wait_closed()
    far.close()


async def test_a_socket_server_without_transports() -> None:
    """`sock_accept`, `sock_recv`, `sock_sendall`: an echo server of coroutines alone."""
    loop = asyncio.get_running_loop()
    listener = socket.create_server((LOCALHOST, 0))
    listener.setblocking(False)

    async def serve_one() -> None:
        connection, _ = await loop.sock_accept(listener)
        with connection:
            while data := await loop.sock_recv(connection, 1000):
                await loop.sock_sendall(connection, data)

    with listener, socket.socket() as client:
        serving = asyncio.create_task(serve_one())
        client.setblocking(False)
        await in_time(loop.sock_connect(client, listener.getsockname()))
        await loop.sock_sendall(client, b"hello")
        buffer = bytearray(5)
        assert await in_time(loop.sock_recv_into(client, buffer)) == 5 and buffer == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert await in_time(loop.sock_recv(client, 10)) == b""
        await in_time(serving)


# TCP and UDP by protocols


class EchoServer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


class EchoClient(asyncio.Protocol):
    def __init__(self, message: bytes) -> None:
        self.message = message
        self.received = b""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(None)


async def test_tcp_echo_of_two_protocols() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EchoServer, LOCALHOST, 0)
    async with server:
        serving = asyncio.create_task(server.serve_forever())
        await turns()
        assert isinstance(server, asyncio.AbstractServer)
        assert server.is_serving() and server.get_loop() is loop
        _, client = await loop.create_connection(lambda: EchoClient(b"hello"), *server.sockets[0].getsockname())
        await in_time(client.lost)
        assert client.received == b"hello"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


class DatagramEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


class DatagramClient(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[bytes] = loop.create_future()
        self.error: asyncio.Future[Exception] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.error.done():
            self.error.set_result(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def test_udp_echo_of_two_protocols() -> None:
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(DatagramEcho, local_addr=(LOCALHOST, 0))
    address = server.get_extra_info("sockname")
    transport, client = await loop.create_datagram_endpoint(DatagramClient, remote_addr=address)
    transport.sendto(b"hello")
    assert await in_time(client.answer) == b"hello"
    transport.close()
    server.abort()
    assert await in_time(client.lost) is None
    await turns()


async def test_udp_to_a_port_where_nobody_listens() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOCALHOST, 0))
        address = sock.getsockname()
    transport, client = await loop.create_datagram_endpoint(DatagramClient, remote_addr=address)
    transport.sendto(b"anybody?")
    assert isinstance(await in_time(client.error), ConnectionRefusedError)
    transport.close()
    await in_time(client.lost)


# Queues


async def test_workers_on_a_queue() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    done: list[tuple[str, int]] = []

    async def worker(name: str) -> None:
        while True:
            turns_needed = await queue.get()
            await turns(turns_needed)
            done.append((name, turns_needed))
            queue.task_done()

    work = [random.randrange(1, 5) for _ in range(20)]
    for item in work:
        queue.put_nowait(item)
    tasks = [asyncio.create_task(worker(f"worker-{number}")) for number in range(3)]
    await in_time(queue.join())
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert sorted(item for _, item in done) == sorted(work)
    assert {name for name, _ in done} == {"worker-0", "worker-1", "worker-2"}


# Processes and signals


async def test_read_one_line_of_a_child() -> None:
    """The date in another process."""
    code = "import datetime; print(datetime.date.today())"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    line = (await in_time(process.stdout.readline())).decode().rstrip()
    assert await in_time(process.wait()) == 0
    assert datetime.date.fromisoformat(line)


async def test_watch_a_child_through_a_protocol() -> None:
    class Watcher(asyncio.SubprocessProtocol):
        def __init__(self, over: asyncio.Future[int | None]) -> None:
            self.over, self.output, self.events = over, bytearray(), list[str]()

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def pipe_data_received(self, fd: int, data: bytes) -> None:
            assert fd == 1
            self.output += data

        def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
            self.events.append(f"pipe {fd} lost")

        def process_exited(self) -> None:
            self.events.append("exited")

        def connection_lost(self, exc: Exception | None) -> None:
            self.over.set_result(self.transport.get_returncode())

    loop = asyncio.get_running_loop()
    over = loop.create_future()
    transport, protocol = await loop.subprocess_exec(
        lambda: Watcher(over), "sh", "-c", "echo hello; exit 3", stdin=None, stderr=None
    )
    assert transport.get_pid() > 0 and transport.get_pipe_transport(1) is not None
    assert await in_time(over) == 3
    assert bytes(protocol.output) == b"hello\n"
    assert sorted(protocol.events) == ["exited", "pipe 1 lost"]
    transport.close()


async def test_end_a_child_through_its_transport() -> None:
    loop = asyncio.get_running_loop()
    ends: list[tuple[str, Any, int]] = [
        ("kill", (), signal.SIGKILL),
        ("terminate", (), signal.SIGTERM),
        ("send_signal", (signal.SIGUSR1,), signal.SIGUSR1),
    ]
    for method, arguments, signum in ends:
        exited = loop.create_future()

        class Watcher(asyncio.SubprocessProtocol):
            def process_exited(self, exited: asyncio.Future[None] = exited) -> None:
                exited.set_result(None)

        transport, _ = await loop.subprocess_shell(Watcher, "exec sleep 3600", stdin=None, stdout=None, stderr=None)
        getattr(transport, method)(*arguments)
        await in_time(exited)
        assert transport.get_returncode() == -signum
        transport.close()
        await turns()


@pytest.fixture
def usual_handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {signum: signal.getsignal(signum) for signum in before} == before


@pytest.mark.usefixtures("usual_handlers")
def test_signal_handlers_that_stop_the_loop(loop: Loop) -> None:
    for signum in signal.SIGINT, signal.SIGTERM:
        got: list[str] = []

        def stop(name: str, got: list[str] = got) -> None:
            got.append(name)
            loop.stop()

        loop.add_signal_handler(signum, stop, signum.name)
        loop.call_soon(os.kill, os.getpid(), signum)
        loop.run_forever()
        assert got == [signum.name]
        assert loop.remove_signal_handler(signum) and not loop.remove_signal_handler(signum)


# Threads


def test_a_coroutine_submitted_from_another_thread(loop: Loop) -> None:
    async def main() -> str:
        def in_a_thread() -> str:
            return asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001, "from the loop"), loop).result(30)

        return await asyncio.to_thread(in_a_thread)

    assert loop.run_until_complete(main()) == "from the loop"


def test_processes_and_threads_for_what_blocks(loop_name: str) -> None:
    """`run_in_executor` with the default executor, with threads and with processes."""
    done = run_child(
        """
        import concurrent.futures, hashlib

        async def main():
            loop = asyncio.get_running_loop()
            with open(os.devnull, "rb") as file:
                assert await loop.run_in_executor(None, file.read, 100) == b""
            with concurrent.futures.ThreadPoolExecutor() as pool:
                assert await loop.run_in_executor(pool, sum, range(100)) == 4950
            import multiprocessing
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                assert await loop.run_in_executor(pool, divmod, 7, 2) == (3, 1)

        if __name__ == "__main__":
            with asyncio.Runner(loop_factory=new_child_loop) as runner:
                runner.run(main())
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr


# Factorials side by side, and a limit


async def test_three_countdowns_at_once() -> None:
    said: list[str] = []

    async def factorial(name: str, number: int) -> int:
        product = 1
        for factor in range(2, number + 1):
            said.append(f"{name}: {factor}")
            await asyncio.sleep(0)
            product *= factor
        return product

    assert list(await asyncio.gather(factorial("A", 2), factorial("B", 3), factorial("C", 4))) == [2, 6, 24]
    assert said == ["A: 2", "B: 2", "C: 2", "B: 3", "C: 3", "C: 4"]


async def test_an_endless_coroutine_with_a_limit() -> None:
    async def for_ever() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(for_ever(), timeout=0.01)
