"""Every example runs as it stands, does what it says, and stops at Ctrl-C without a word on stderr.

Each is a child process on a free port, which it prints. The HTTP examples are put under load besides:
afterwards the server must hold no descriptor more than before.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO

import pytest
from support import HANG_S, LOCALHOST

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
HTTP_EXAMPLES = ("aiohttp_app", "uvicorn_app")
LOAD_S = 2


class Example:
    """An example in a child process."""

    def __init__(self, name: str, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error::ResourceWarning"}
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors = ""
        self._said = threading.Condition()
        self._ended = False
        assert self.process.stdout and self.process.stderr
        self._readers = [
            threading.Thread(target=self._read_lines, args=(self.process.stdout,)),
            threading.Thread(target=self._read_errors, args=(self.process.stderr,)),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self, stdout: IO[str]) -> None:
        for line in stdout:
            with self._said:
                self.lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()

    def _read_errors(self, stderr: IO[str]) -> None:
        self.errors = stderr.read()

    def line(self, pattern: str) -> re.Match[str]:
        """Wait until the example prints a line that matches `pattern`."""
        start = time.monotonic()
        seen = 0
        with self._said:
            while True:
                for text in self.lines[seen:]:
                    if match := re.search(pattern, text):
                        return match
                seen = len(self.lines)
                left = HANG_S - (time.monotonic() - start)
                if self._ended or left <= 0:
                    break
                self._said.wait(left)
        self.process.kill()
        self._collect()
        pytest.fail(f"the example never said {pattern!r}, but:\n" + "\n".join([*self.lines, self.errors]))

    def address(self) -> tuple[str, int]:
        """Where it says that it listens."""
        host, port = self.line(r"listening on (?:http://)?([0-9.]+):(\d+)$").groups()
        return host, int(port)

    def descriptors(self) -> list[str]:
        """What its descriptors refer to."""
        found = []
        folder = f"/proc/{self.process.pid}/fd"
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"{folder}/{name}"))
        return found

    def descriptors_when_idle(self) -> int:
        """Of an HTTP example: how many it has without connections. What the first request opens, stays."""
        with contextlib.closing(http.client.HTTPConnection(*self.address(), timeout=HANG_S)) as connection:
            get(connection, "/")
            return len(self.descriptors()) - 1  # without this connection's

    def descriptors_fall_to(self, count: int) -> None:
        """Wait until it has no more than `count`: it closes a connection after its client has seen the end."""
        deadline = time.monotonic() + HANG_S
        while len(found := self.descriptors()) > count:
            assert time.monotonic() < deadline, f"{len(found)} descriptors are open, at the start {count}: {found}"
            os.sched_yield()

    def stop(self) -> None:
        """Ctrl-C: it must end with status 0, "stopped" and nothing on stderr."""
        self.process.send_signal(signal.SIGINT)
        self.ends()
        assert self.lines[-1] == "stopped", self.lines

    def ends(self, warning: str = "") -> None:
        """Wait for its end, which must be a good one, with nothing on stderr but a `warning` that matches."""
        try:
            status = self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the example did not end; it said: {self.lines}")
        finally:
            self._collect()
        said = f"exit status {status}, said {self.lines}, stderr:\n{self.errors}"
        assert status == 0, said
        assert re.fullmatch(warning, self.errors, re.DOTALL), said

    def _collect(self) -> None:
        for reader in self._readers:
            reader.join()
        assert self.process.stdout and self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()

    def close(self) -> None:
        """Leave nothing of it behind, however the test has gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._collect()


@contextlib.contextmanager
def running(name: str, *arguments: str) -> Iterator[Example]:
    example = Example(name, *arguments)
    try:
        yield example
    finally:
        example.close()


@contextlib.contextmanager
def connected(address: tuple[str, int] | str) -> Iterator[tuple[socket.socket, IO[bytes]]]:
    """A blocking client and a file to read its lines from."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(HANG_S)
        sock.connect(address)
        with sock.makefile("rb") as file:
            yield sock, file


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    source = pathlib.Path(__file__).read_text()
    assert names
    assert [name for name in names if f'"{name}"' not in source] == []


@pytest.mark.parametrize("server", ["echo_server", "stream_echo_server"])
@pytest.mark.parametrize("client", ["echo_client", "stream_echo_client"])
def test_echo(server: str, client: str) -> None:
    with running(server, "--port", "0") as example:
        host, port = example.address()
        descriptors = len(example.descriptors())
        with running(client, "--host", host, "--port", str(port)) as other:
            other.line(r"received b'hello number 3\\n'|100 connections, 1000 lines sent, 1000 came back")
            other.ends()
        example.descriptors_fall_to(descriptors)
        example.stop()


@pytest.mark.parametrize("name", ["echo_server", "stream_echo_server", "chat"])
def test_a_server_stops_while_clients_are_connected(name: str) -> None:
    with running(name, "--port", "0") as example:
        with connected(example.address()) as (sock, file):
            sock.sendall(b"someone\n")
            assert b"someone" in file.readline()
            example.stop()
            assert file.read() == b""


@pytest.mark.parametrize("client", ["echo_client", "stream_echo_client"])
def test_an_echo_client_without_a_server_says_so(client: str) -> None:
    with socket.socket() as reserved:  # bound, and not listening
        reserved.bind((LOCALHOST, 0))
        port = reserved.getsockname()[1]
        with running(client, "--port", str(port)) as example:
            assert example.process.wait(HANG_S) == 1
    assert example.errors.startswith(f"no echo from 127.0.0.1:{port}: ")
    assert example.errors.count("\n") == 1


@pytest.mark.parametrize("client", ["echo_client", "stream_echo_client"])
def test_an_echo_client_stops_at_ctrl_c(client: str) -> None:
    with socket.create_server((LOCALHOST, 0)) as silent:
        silent.settimeout(HANG_S)  # an example that fails to start connects to nobody
        host, port = silent.getsockname()
        with running(client, "--host", host, "--port", str(port)) as example:
            with silent.accept()[0] as sock:
                assert sock.recv(100)
                example.stop()


def test_chat() -> None:
    with running("chat", "--port", "0") as example:
        address = example.address()
        with connected(address) as (ann, ann_reads), connected(address) as (bob, bob_reads):
            ann.sendall(b"ann\n")
            assert ann_reads.readline() == b"your name? * ann is here\n"
            bob.sendall(b"bob\n")
            assert bob_reads.readline() == b"your name? * bob is here\n"
            assert ann_reads.readline() == b"* bob is here\n"
            bob.sendall(b"hello\n")
            assert ann_reads.readline() == b"bob: hello\n"
            with connected(address) as (other, other_reads):
                other.sendall(b"bob\n")
                assert other_reads.read() == b"your name? that name is taken, or none\n"
            bob.shutdown(socket.SHUT_WR)
            assert ann_reads.readline() == b"* bob has left\n"
            assert bob_reads.read() == b""
            example.stop()


@pytest.mark.skipif(importlib.util.find_spec("trustme") is None, reason="its cryptography has no build for PyPy")
def test_tls_echo() -> None:
    with running("tls_echo", "--port", "0") as example:
        host, port = example.address()
        ca_file = example.line(r"-CAfile (\S+)$").group(1)
        example.line(r"the first client received b'hello\\n' over TLSv1\.[23] with \w+")
        context = ssl.create_default_context(cafile=ca_file)
        with connected((host, port)) as (plain, _):
            with context.wrap_socket(plain, server_hostname="localhost") as sock, sock.makefile("rb") as file:
                line = b"x" * 60000 + b"\n"
                sock.sendall(line)
                assert file.readline() == line
                example.stop()
    assert not os.path.exists(ca_file)


def test_unix_server() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        with running("unix_server", "--path", path) as example:
            example.line("listening on " + re.escape(path))
            with connected(path) as (_, file):
                who = str(os.getpid()) if sys.platform == "linux" else "unknown"
                assert re.fullmatch(rf"it is .* \d\d\d\d, process {who}\n", file.read().decode())
            example.stop()
        assert os.listdir(folder) == []


def test_udp_echo() -> None:
    with running("udp_echo", "--port", "0") as example:
        host, port = example.address()
        for _ in range(3):
            with running("udp_echo", "--port", str(port), "--send", "hello") as client:
                client.line(r"^received b'hello'$")
                client.ends()
            example.line(rf"^5 bytes from {re.escape(host)}:\d+$")
        example.stop()
    with running("udp_echo", "--port", str(port), "--send", "hello") as client:
        assert client.process.wait(HANG_S) == 1
    assert re.match(rf"no echo from 127\.0\.0\.1:{port}: \[Errno \d+\] Connection refused\n$", client.errors)


def test_policy_switch() -> None:
    with running("policy_switch") as example:
        example.line(r"^asyncio.set_event_loop_policy\(None\) +main\(\) ran on asyncio$")
        deprecated = sys.version_info >= (3, 14)  # and shown where __main__ itself sets a policy, as here
        example.ends(r"\S+: DeprecationWarning: 'asyncio.set_event_loop_policy' is .*\n" if deprecated else "")
        loops = [line.rpartition(" ran on ")[2] for line in example.lines[1:]]
        assert loops == ["velociloop", "velociloop", "velociloop", "asyncio"]


# HTTP


def test_subprocess_lines() -> None:
    with running("subprocess_lines") as example:
        for number in range(3):
            example.line(rf"out: line {number}$")
        example.line(r"err: to stderr$")
        example.line(r"^ended with status 0$")
        example.ends()
    with running("subprocess_lines", "--", "sh", "-c", "exit 3") as example:
        example.line(r"^ended with status 3$")
        assert example.process.wait(HANG_S) == 3


def test_subprocess_lines_ends_its_program_at_ctrl_c() -> None:
    with running("subprocess_lines", "--", "sh", "-c", "echo ready; exec sleep 60") as example:
        pid = int(example.line(r"^started process (\d+)$")[1])
        example.line(r"out: ready$")
        example.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, (path, response.status, body)
    return body


@pytest.mark.parametrize("loop", ["velociloop", "asyncio"])
@pytest.mark.parametrize("name", HTTP_EXAMPLES)
def test_http_with_curl(name: str, loop: str) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "this test needs curl"
    with running(name, "--port", "0", "--loop", loop) as example:
        url = "http://{}:{}".format(*example.address())
        descriptors = example.descriptors_when_idle()

        def fetch(*arguments: str) -> bytes:
            command = [curl, "--silent", "--show-error", "--fail", "--max-time", str(int(HANG_S)), *arguments]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

        assert fetch(f"{url}/loop") == loop.encode()
        text = fetch(f"{url}/")
        assert len(text) == 1024
        # One connection for all three.
        assert fetch(*[f"{url}/"] * 3) == 3 * text
        assert len(json.loads(fetch(f"{url}/json"))["items"]) == 24
        with tempfile.NamedTemporaryFile() as file:
            file.write(os.urandom(1 << 20) * 8)
            file.flush()
            sent = pathlib.Path(file.name).read_bytes()
            # With "Expect: 100-continue", as curl does for a large body.
            assert fetch("--data-binary", f"@{file.name}", f"{url}/echo") == sent
        example.descriptors_fall_to(descriptors)
        example.stop()


@pytest.mark.parametrize("name", HTTP_EXAMPLES)
def test_http_with_wrk(name: str) -> None:
    wrk = shutil.which("wrk")
    if wrk is None:
        pytest.skip("wrk is not installed (apt install wrk): no load from 200 connections was tried")
    with running(name, "--port", "0") as example:
        host, port = example.address()
        descriptors = example.descriptors_when_idle()
        command = [wrk, "-c", "200", "-t", "2", "-d", f"{LOAD_S}s", f"http://{host}:{port}/"]
        report = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        requests = re.search(r"(\d+) requests in", report)
        assert requests and int(requests.group(1)) >= 200, report
        # wrk prints these lines only where there is something to say.
        assert "Socket errors" not in report, report
        assert "Non-2xx" not in report, report
        example.descriptors_fall_to(descriptors)
        example.stop()


@pytest.mark.parametrize("name", HTTP_EXAMPLES)
def test_http_with_a_client_like_a_browser(name: str) -> None:
    """Six kept connections for each of several pages: documents, uploads, an idle one, one that goes away."""
    with running(name, "--port", "0") as example:
        host, port = example.address()
        descriptors = example.descriptors_when_idle()

        def visit(number: int) -> int:
            with contextlib.closing(http.client.HTTPConnection(host, port, timeout=HANG_S)) as connection:
                for turn in range(20):
                    assert len(get(connection, "/")) == 1024
                    assert len(json.loads(get(connection, "/json"))["items"]) == 24
                    body = bytes([number, turn]) * (1 + 7000 * turn)
                    connection.request("POST", "/echo", body)
                    with contextlib.closing(connection.getresponse()) as response:
                        assert response.read() == body
                # Goes away in the middle of an answer, as a browser does when its user clicks on.
                connection.request("POST", "/echo", bytes(1 << 20))
                return 1

        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=HANG_S)) as idle:
            text = get(idle, "/")
            with concurrent.futures.ThreadPoolExecutor(12) as threads:
                assert sum(threads.map(visit, range(36))) == 36
            assert get(idle, "/") == text
        example.descriptors_fall_to(descriptors)
        example.stop()


@pytest.mark.parametrize("name", HTTP_EXAMPLES)
def test_http_stops_while_a_connection_is_kept(name: str) -> None:
    with running(name, "--port", "0") as example:
        host, port = example.address()
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=HANG_S)) as connection:
            get(connection, "/")
            example.stop()
