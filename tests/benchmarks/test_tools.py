"""The benchmarks' tools: load.c finds every wrong byte, servers end, the demo's Python client agrees with it."""

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as `python tests/benchmarks/echo.py` has it

import harness
from harness import BenchmarkError, Cores, Load, Server

LOAD = Load(connections=3, size=300, warmup=0.0, seconds=0.05)
SERVER = ["echo_server.py", "--loop", "asyncio"]

HTTP_ANSWER = b"HTTP/1.1 200 OK\r\nServer: test\r\ncontent-length: 5\r\n\r\nhello"
BAD_STATUS = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(harness.HERE / script), *arguments]


@pytest.fixture(scope="module")
def tool() -> list[str]:
    try:
        return [str(harness.build_load())]
    except BenchmarkError as error:
        pytest.skip(f"load.c runs on Linux with a C compiler: {error}")


class Answering:
    """A process number and a port, where a thread answers each received piece with `answer(piece)`."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pid = 1


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[Answering]:
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                connection.sendall(answer(data))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=(listener.accept()[0],)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield Answering(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join()


def run(tool: list[str], server: Answering | Server, load: Load) -> harness.Measured:
    return harness.run_load(tool, server, load, Cores())  # type: ignore[arg-type]  # port and pid are all it needs


@pytest.mark.parametrize("kind", ["protocol", "buffered", "streams"])
def test_echo_server_serves_and_ends(tool: list[str], kind: str) -> None:
    with Server(python(*SERVER, "--kind", kind)) as server:
        pid = server.pid
        result = run(tool, server, LOAD)
        assert result.messages >= LOAD.connections
        assert result.cpu_us is not None
        assert result.cpu_us > 0
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "load", [Load(2, 100_000, 1, 0.0, 0.05), Load(2, 1, 7, 0.0, 0.05), Load(1, 1000, 16, 0.0, 0.05)], ids=str
)
def test_sizes_and_pipelining(tool: list[str], load: Load) -> None:
    with Server(python(*SERVER)) as server:
        assert run(tool, server, load).messages % load.pipeline == 0


def test_changed_byte_is_found(tool: list[str]) -> None:
    with answering(lambda data: data[:-1] + bytes([data[-1] ^ 1])) as server:
        with pytest.raises(BenchmarkError, match="came back changed"):
            run(tool, server, LOAD)


def test_doubled_message_is_found(tool: list[str]) -> None:
    with answering(lambda data: data * 2) as server:
        with pytest.raises(BenchmarkError, match=r"too many came back|came back changed"):
            run(tool, server, LOAD)


def test_http(tool: list[str]) -> None:
    with answering(lambda data: HTTP_ANSWER * data.count(b"\r\n\r\n")) as server:
        for load in (Load(3, warmup=0.0, seconds=0.05, path="/"), Load(3, 0, 4, 0.0, 0.05, "/", "hello")):
            assert run(tool, server, load).messages >= 3


@pytest.mark.parametrize("client", [None, python("client.py")], ids=["load.c", "client.py"])
@pytest.mark.parametrize(
    ("answer", "what"), [(BAD_STATUS, "500"), (HTTP_ANSWER.replace(b"hello", b"hullo"), "content")]
)
def test_wrong_http_answer_is_found(tool: list[str], client: list[str] | None, answer: bytes, what: str) -> None:
    with answering(lambda data: answer) as server:
        with pytest.raises(BenchmarkError, match=what):
            run(client or tool, server, Load(1, warmup=0.0, seconds=0.05, path="/", body="hello"))


def test_python_client_measures_the_same_way() -> None:
    with answering(lambda data: HTTP_ANSWER) as server:
        result = run(python("client.py"), server, Load(2, warmup=0.0, seconds=0.05, path="/"))
        assert result.messages >= 2
        assert result.p99_us >= result.p50_us > 0


def test_server_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match="no_such_loop is not installed"):
        with Server(python("echo_server.py", "--loop", "no_such_loop")):
            pass
