"""Rows that need a server: starts it on a loop, loads it, gives the cost of one message, request or connection."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import harness
from harness import BenchmarkError, Cores, Load, Server
from loops import FLOOR, Contender
from rows import Row

IDLE_CONNECTIONS = 1000
CONNECT_LIMIT_S = 10.0


class Workshop:
    """What the servers and load generators need, made once: `with Workshop(...) as workshop`.

    Attributes:
        python: interpreter of the servers.
        warmup: seconds before each measured part.
        seconds: of each measured part.
        cores: where server and load generator run.
    """

    def __init__(self, python: str, warmup: float, seconds: float, cores: Cores) -> None:
        self.python = python
        self.warmup = warmup
        self.seconds = seconds
        self.cores = cores
        self._stack = contextlib.ExitStack()
        self._certificate: Path | None = None
        self._folder = Path()

    def __enter__(self) -> Workshop:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="velociloop-bench-")))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cost(self, row: Row, contender: Contender) -> float | None:
        """Measure once: CPU time in us, None if the system does not tell it.

        Raises:
            BenchmarkError: the loop cannot run this server, or answered wrongly.
        """
        assert row.load is not None
        return self.load_cost(row.kind, contender, row.load, row.tool)

    def load_cost(self, kind: str, contender: Contender, load: Load, tool: str = "load") -> float | None:
        """Measure any kind under any load; the seconds are this workshop's."""
        load = replace(load, warmup=self.warmup, seconds=self.seconds)
        if kind == "unix":
            load = replace(load, options=("--unix", str(self._socket_path())))
        build = {
            "load": harness.build_load,
            "tls": harness.build_load_tls,
            "connect": harness.build_load_connect,
        }[tool]
        command = [str(build())]
        with self.serve(kind, contender) as server:
            return harness.run_load(command, server, load, self.cores).cpu_us

    def idle_memory(self, contender: Contender) -> float:
        """Measure how many kB of its own a process takes for each idle connection."""
        with self.serve("protocol", contender) as server, contextlib.ExitStack() as stack:
            first = stack.enter_context(_connect(server.port))
            _exchange([first])
            before = _private_kb(server.pid)
            clients = [stack.enter_context(_connect(server.port)) for _ in range(IDLE_CONNECTIONS)]
            _exchange(clients)
            return (_private_kb(server.pid) - before) / IDLE_CONNECTIONS

    @contextlib.contextmanager
    def serve(self, kind: str, contender: Contender) -> Iterator[Server]:
        """Run a server of this kind on this loop."""
        if contender.name == FLOOR:
            command = [str(harness.build_floor())]
        else:
            script = Path(__file__).with_name("echo_server.py")
            command = [self.python, str(script), "--loop", contender.package, "--kind", kind]
        if kind == "unix":
            self._socket_path().unlink(missing_ok=True)
            command += ["--path", str(self._socket_path())]
        elif kind.startswith("tls-"):
            command += ["--certificate", str(self._tls_file()), "--key", str(self._tls_file())]
        with Server(command, core=self.cores.server, environment=contender.environment) as server:
            yield server

    def _socket_path(self) -> Path:
        return self._folder / "socket"

    def _tls_file(self) -> Path:
        """Give a file with a key and a certificate that it signed itself: the load generator asks for no name."""
        if self._certificate is None:
            path = self._folder / "certificate.pem"
            command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            command += ["-days", "2", "-subj", "/CN=localhost", "-keyout", str(path), "-out", f"{path}.chain"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                raise BenchmarkError(f"TLS needs the openssl tool ({error.strerror})") from error
            if done.returncode != 0:
                raise BenchmarkError(f"no certificate could be made: {done.stderr.strip()}")
            with path.open("a", encoding="ascii") as file:
                file.write(Path(f"{path}.chain").read_text(encoding="ascii"))
            self._certificate = path
        return self._certificate


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), CONNECT_LIMIT_S)


def _exchange(clients: list[socket.socket]) -> None:
    """One byte each way on each connection: the server has seen all of them when this returns."""
    for client in clients:
        client.sendall(b"x")
    for client in clients:
        if client.recv(1) != b"x":
            raise BenchmarkError("the byte did not come back")


def _private_kb(pid: int) -> int:
    """Give the private memory of a process in kB.

    Raises:
        BenchmarkError: the system does not tell it.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise BenchmarkError(f"the memory of a process cannot be read ({error.strerror})") from error
    return sum(int(number) for number in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))


def raise_descriptor_limit() -> None:
    """Let this process and those that it starts have as many descriptors as the system grants."""
    if sys.platform != "win32":
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
