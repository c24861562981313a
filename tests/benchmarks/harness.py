"""What the benchmarks share: C tools built when needed, servers that always end, cores, load runs.

Facts that shape this file:

- A server's cost is its CPU time by the scheduler's own accounting (/proc/PID/task/TID/schedstat, ns): wall
  time on loopback says as much about the client and the scheduler as about the server.  load.c reads it just
  before the first measured message and just after the last one.
- Server and load generator disturb each other least on two cores, so each is pinned to one.

Pinning and CPU time are Linux only; elsewhere a run goes on without them (`cpu_us` is None).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: Compiled tools, named after the hash of what they are made of; git-ignored.
BUILD = ROOT / "build" / "benchmarks"
C_FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]

START_LIMIT_S = 30.0
STOP_LIMIT_S = 3.0
#: Seconds that a load run may take beyond its warm-up and its measured part.
LOAD_SLACK_S = 20


class BenchmarkError(Exception):
    """A part of a benchmark failed; the text says which and why."""


# -- C tools ---------------------------------------------------------------------------


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", ""))
    if command:
        return command
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise BenchmarkError("there is no C compiler (cc, gcc or clang)")


def _build(name: str, command: Sequence[str], inputs: Sequence[Path]) -> Path:
    """Run `command` with "-o PATH" unless a tool made by the same command from the same inputs is there."""
    digest = hashlib.sha256("\0".join([platform.machine(), *command]).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    folder = BUILD
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only tree
        folder = Path(tempfile.gettempdir()) / f"velociloop-benchmarks-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    tool = folder / f"{name}-{digest.hexdigest()[:16]}"
    if tool.exists():
        return tool
    # Renamed when it is complete: a build that is interrupted leaves no half tool.
    partial = tool.with_name(f"{tool.name}.{os.getpid()}")
    try:
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchmarkError(f"the C compiler {command[0]} could not be started ({error.strerror})") from error
    if done.returncode != 0:
        raise BenchmarkError(f"{name} could not be compiled:\n{done.stderr.strip()}")
    partial.rename(tool)
    return tool


def build_load() -> Path:
    """Compile load.c.

    Raises:
        BenchmarkError: this is not Linux, or there is no C compiler.
    """
    if sys.platform != "linux":
        raise BenchmarkError("the load generator in C needs Linux (epoll)")
    source = HERE / "load.c"
    return _build("load", [*_compiler(), *C_FLAGS, str(source)], [source, HERE / "load_common.h"])


def build_load_tls() -> Path:
    """Compile load.c with TLS; besides what build_load() says, it needs OpenSSL's headers.

    Raises:
        BenchmarkError: it could not be compiled.
    """
    build_load()  # tells about the system and the compiler
    source = HERE / "load.c"
    command = [*_compiler(), *C_FLAGS, "-DLOAD_TLS", str(source), "-lssl", "-lcrypto"]
    return _build("load-tls", command, [source, HERE / "load_common.h"])


def build_load_connect() -> Path:
    """Compile load_connect.c; errors as build_load()."""
    build_load()
    source = HERE / "load_connect.c"
    return _build("load-connect", [*_compiler(), *C_FLAGS, str(source)], [source, HERE / "load_common.h"])


def build_floor() -> Path:
    """Compile floor.c with libuv's sources as vendor/libuv.toml lists them (some seconds, once).

    Raises:
        BenchmarkError: this is not Linux, or there is no C compiler or no vendor/libuv.
    """
    tree = ROOT / "vendor" / "libuv"
    pin = ROOT / "vendor" / "libuv.toml"
    if sys.platform != "linux":
        raise BenchmarkError("the floor in C is measured on Linux only")
    if not tree.is_dir():
        raise BenchmarkError("vendor/libuv is missing (python vendor/fetch.py brings it)")
    parts = tomllib.loads(pin.read_text(encoding="utf-8"))
    tables = [parts["common"], parts["unix"], parts["linux"]]
    sources = [str(tree / name) for table in tables for name in table["sources"]]
    defines = [f"-D{name}" for table in tables for name in table.get("defines", [])]
    libraries = [f"-l{name}" for table in tables for name in table.get("libraries", [])]
    includes = [f"-I{tree / name}" for name in parts["common"]["include"]]
    command = [*_compiler(), *parts["unix"]["flags"], "-DNDEBUG", *defines, *includes, str(HERE / "floor.c")]
    return _build("floor", [*command, *sources, *libraries], [HERE / "floor.c", pin])


# -- cores -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cores:
    """The cores that server and load generator are pinned to; None: wherever the system puts them."""

    server: int | None = None
    load: int | None = None

    def __str__(self) -> str:
        if self.server is None:
            return "server and load not pinned"
        return f"server on core {self.server}, load on core {self.load}"


def _siblings(core: int) -> set[int]:
    """Give the hardware threads of the core that `core` belongs to."""
    found = {core}
    with contextlib.suppress(OSError):
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text(encoding="ascii")
        for part in text.strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def choose_cores() -> Cores:
    """Choose a core for the server and another one, of other hardware if possible, for the load."""
    if sys.platform != "linux":
        return Cores()
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return Cores()
    server = allowed[-1]
    apart = [core for core in allowed if core not in _siblings(server)]
    return Cores(server, (apart or allowed[:-1])[-1])


def pin(pid: int, core: int | None) -> None:
    """Let a process run on this core only, where the system allows it."""
    if core is None or sys.platform != "linux":
        return
    with contextlib.suppress(OSError):  # it has ended, or a container forbids it: go on without
        os.sched_setaffinity(pid, {core})


# -- servers ---------------------------------------------------------------------------


class Server:
    """A server process, from its line with the port to its end: `with Server(...) as server: server.port`.

    Args:
        command: what is run; its stdin is a pipe that closes when the benchmark ends, however it ends.
        core: the core that it is pinned to, or None.
        line: matches the line on stdout that says that it serves; group 1 is the port.
        stop: the signal that ends it. SIGKILL follows if it does not obey.
        environment: variables that it gets besides this process's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        core: int | None = None,
        line: str = r"(\d+)\s*$",
        stop: signal.Signals = signal.SIGTERM,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = 0
        self._command = list(command)
        self._core = core
        self._line = re.compile(line)
        self._stop = stop
        self._cwd = cwd
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._heard = threading.Event()
        self._output: list[str] = []

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            cwd=self._cwd,
            env=self._environment,
        )
        try:
            pin(self._process.pid, self._core)
            assert self._process.stdout is not None
            self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
            self._reader.start()
            if not self._heard.wait(START_LIMIT_S):
                raise self._failure(f"said nothing about a port in {START_LIMIT_S:.0f} s")
            if not self.port:
                raise self._failure("ended before it served")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, stream: IO[str]) -> None:
        # Read to the end, so that a server that prints never blocks on a full pipe.
        for line in stream:
            self._output = [*self._output[-49:], line]
            if not self.port and (match := self._line.search(line)):
                self.port = int(match[1])
                self._heard.set()
        self._heard.set()

    def _failure(self, what: str) -> BenchmarkError:
        output = "".join(self._output).strip()
        return BenchmarkError(f"{shlex.join(self._command)} {what}" + (f":\n{output}" if output else ""))

    def close(self) -> None:
        """End the process, whatever it takes, and wait for it."""
        process = self._process
        if process is None:
            return
        try:
            for number in (self._stop, signal.SIGTERM):
                if process.poll() is None:
                    process.send_signal(number)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(STOP_LIMIT_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if self._reader is not None:
                self._reader.join(STOP_LIMIT_S)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


# -- load ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
        connections: how many.
        size: bytes of an echo message.
        pipeline: messages or requests that are sent at once.
        warmup: seconds before the measured part.
        seconds: of the measured part.
        path: an HTTP path to GET instead of echo messages.
        body: the body that each HTTP answer must have; None: that of the first answer.
        active: connections that send, the others are idle; None: all.
        options: further ones of the load generator.
        echo: it is load.c's kind of load; False: load_connect.c's, which has no messages of its own.
    """

    connections: int
    size: int = 1024
    pipeline: int = 1
    warmup: float = 0.5
    seconds: float = 1.5
    path: str | None = None
    body: str | None = None
    active: int | None = None
    options: tuple[str, ...] = ()
    echo: bool = True


@dataclass(frozen=True)
class Measured:
    """One load run. `cpu_us` is the server's CPU time for a message or request, None where it is not known."""

    messages: int
    seconds: float
    cpu_us: float | None
    p50_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        """Messages or requests a second."""
        return self.messages / self.seconds


def run_load(
    tool: Sequence[str],
    server: Server,
    load: Load,
    cores: Cores,
    progress: Callable[[], None] | None = None,
) -> Measured:
    """Run a load generator against a server.

    Args:
        tool: command of load.c's program or of client.py.
        server: what is loaded; its process's CPU time is measured.
        load: what is sent.
        cores: the load generator is pinned to `cores.load`.
        progress: called about twice a second meanwhile.

    Raises:
        BenchmarkError: an answer was wrong, or the server went away or was too slow.
    """
    limit = int(load.warmup + load.seconds) + LOAD_SLACK_S
    command = [*tool, "--port", str(server.port), "--server", str(server.pid), "--timeout", str(limit)]
    command += ["--connections", str(load.connections), "--warmup", str(load.warmup), "--seconds", str(load.seconds)]
    command += load.options
    if load.echo:
        command += ["--pipeline", str(load.pipeline)]
    if load.active is not None:
        command += ["--active", str(load.active)]
    if not load.echo:
        pass
    elif load.path is None:
        command += ["--size", str(load.size)]
    else:
        command += ["--http", load.path]
        if load.body is not None:
            command += ["--body", load.body]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        pin(process.pid, cores.load)
        deadline = time.monotonic() + limit + STOP_LIMIT_S
        while True:
            try:
                output, errors = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"the load generator did not end in {limit} s") from None
                if progress is not None:
                    progress()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise BenchmarkError(errors.strip() or f"the load generator ended with status {process.returncode}")
    result: dict[str, Any] = json.loads(output)
    cpu_ns = result["server_cpu_ns"]
    if result["messages"] == 0:
        raise BenchmarkError("no message came back in the measured part")
    return Measured(
        messages=result["messages"],
        seconds=result["seconds"],
        cpu_us=None if cpu_ns is None else cpu_ns / result["messages"] / 1000,
        p50_us=result["burst_us"]["p50"],
        p99_us=result["burst_us"]["p99"],
    )


# -- about the machine -------------------------------------------------------------------


def interpreter(python: str) -> str:
    """Name an interpreter: "CPython 3.14.0"."""
    code = "import platform; print(platform.python_implementation(), platform.python_version())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def installed(
    python: str, packages: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, str | None]:
    """Tell which of `packages` an interpreter can import: name -> version, None if it cannot; '' if it has none."""
    code = (
        "import importlib, importlib.metadata, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        found[name] = getattr(importlib.import_module(name), '__version__', '')\n"
        "    except ImportError:\n"
        "        found[name] = None\n"
        "        continue\n"
        "    try:\n"
        "        found[name] = found[name] or importlib.metadata.version(name)\n"
        "    except importlib.metadata.PackageNotFoundError:\n"
        "        pass\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [python, "-P", "-c", code, *packages],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{python} could not be asked for its packages:\n{done.stderr.strip()}")
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


class Progress:
    """A line on stderr that says what runs: rewritten on a terminal, else one line a step."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._live:
            print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = max(self._width, len(text))
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a result."""
        if self._live:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)
