"""What `make demo` shows: an aiohttp application on velociloop, asked for real, beside the same on stdlib asyncio.

    python tests/benchmarks/demo.py

It starts examples/aiohttp_app.py, shows the first answer whole, and then measures both loops in turn for about
twenty seconds.  Nothing outlives it: the servers end with it, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import http.client
import platform
import signal
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import harness
from harness import BenchmarkError, Cores, Load, Measured, Server

APPLICATION = harness.ROOT / "examples" / "aiohttp_app.py"
LOOPS = ["velociloop", "asyncio"]
CONNECTIONS = 50
#: Short runs in turn: what disturbs the machine for a while disturbs both loops.
ROUNDS = 4
WARMUP_S = 0.5
SECONDS = 1.5
REQUEST_LIMIT_S = 10.0
SHOWN_BODY_CHARACTERS = 240


def application(loop: str, core: int | None) -> Server:
    """Give the application's server, not started yet, on the loop of this name."""
    return Server(
        [sys.executable, str(APPLICATION), "--loop", loop, "--port", "0"],
        core=core,
        line=r"listening on http://127\.0\.0\.1:(\d+)",
        stop=signal.SIGINT,
    )


def show_first_answer(server: Server) -> str:
    """Ask once with http.client and print all that comes back; returns the body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=REQUEST_LIMIT_S)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
    finally:
        connection.close()
    version = {10: "HTTP/1.0", 11: "HTTP/1.1"}[answer.version]
    print("    GET / HTTP/1.1\n")
    print(f"    {version} {answer.status} {answer.reason}")
    for name, value in answer.getheaders():
        print(f"    {name}: {value}")
    print()
    shown = body if len(body) <= SHOWN_BODY_CHARACTERS else body[:SHOWN_BODY_CHARACTERS] + " ..."
    for line in shown.splitlines():
        print(textwrap.fill(line, 96, initial_indent="    ", subsequent_indent="    "))
    print()
    if answer.status != 200:
        raise BenchmarkError(f"the first request was answered with status {answer.status}")
    return body


def load_tool() -> list[str]:
    """Give the command of the load generator: the C program, or else the Python client, with a note."""
    try:
        return [str(harness.build_load())]
    except BenchmarkError as error:
        print(
            f"Note: {error}; a client in Python asks instead.\n"
            "      It is slower than the server, so requests a second below tell about the client.\n"
        )
        return [sys.executable, str(Path(__file__).with_name("client.py"))]


def dot() -> None:
    """Show that it goes on."""
    print(".", end="", flush=True)


def measure(tool: Sequence[str], loop: str, cores: Cores, arguments: argparse.Namespace) -> Measured:
    """Start the application on a loop, load it, and print how it went in one line."""
    load = Load(connections=CONNECTIONS, warmup=WARMUP_S, seconds=arguments.seconds, path="/")
    print(f"  {loop:<12}", end="", flush=True)
    with application(loop, cores.server) as server:
        result = harness.run_load(tool, server, load, cores, dot)
    print(f" {result.messages} requests, all answered rightly", flush=True)
    return result


def median_cost(runs: Sequence[Measured]) -> float | None:
    """Give the median CPU time a request in us, None where the system does not tell it."""
    costs = [run.cpu_us for run in runs if run.cpu_us is not None]
    return statistics.median(costs) if costs else None


def summary(results: dict[str, list[Measured]]) -> str:
    """Lay out what was measured, velociloop first."""
    lines = [f"  {'':<12}{'requests/s':>12}{'CPU time a request':>21}{'half answered in':>19}{'99% in':>10}"]
    for loop, runs in results.items():
        cost = median_cost(runs)
        lines.append(
            f"  {loop:<12}{statistics.median(run.rate for run in runs):>12.0f}"
            f"{'unknown' if cost is None else f'{cost:.1f} us':>21}"
            f"{statistics.median(run.p50_us for run in runs) / 1000:>16.2f} ms"
            f"{statistics.median(run.p99_us for run in runs) / 1000:>7.2f} ms"
        )
    pairs = list(zip(*(results[loop] for loop in LOOPS), strict=True))
    rate = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
    lines.append(
        f"\n  velociloop beside asyncio, the median of {len(pairs)} rounds: {rate:.2f} x the requests a second"
    )
    costs = [ours.cpu_us / theirs.cpu_us for ours, theirs in pairs if ours.cpu_us and theirs.cpu_us]
    if costs:
        lines[-1] += f", {statistics.median(costs):.2f} x the CPU time a request"
    return "\n".join(lines)


def show(arguments: argparse.Namespace) -> None:
    """Run the demonstration."""
    versions = harness.installed(sys.executable, ["velociloop", "aiohttp"])
    for name, version in versions.items():
        if version is None:
            raise BenchmarkError(f"{name} is not installed for {sys.executable}; `make demo` installs it")
    cores = harness.choose_cores()
    print(
        f"\nvelociloop {versions['velociloop']}, aiohttp {versions['aiohttp']}, "
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.release()}\n"
    )
    print(f"Starting {APPLICATION.relative_to(harness.ROOT)} on velociloop and asking it once:\n")
    with application("velociloop", cores.server) as server:
        show_first_answer(server)
    tool = load_tool()
    print(
        f"Now {CONNECTIONS} keep-alive connections ask as fast as they are answered, {arguments.seconds:g} s at a\n"
        f"time, on each loop in turn ({cores}):\n"
    )
    results: dict[str, list[Measured]] = {loop: [] for loop in LOOPS}
    for _ in range(arguments.rounds):
        for loop in LOOPS:
            results[loop].append(measure(tool, loop, cores, arguments))
    print(f"\n{summary(results)}\n")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"measured in each run (default: {SECONDS:g})")
    try:
        show(parser.parse_args())
    except (BenchmarkError, OSError, http.client.HTTPException) as error:
        sys.exit(f"\ndemo: {error}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted")


if __name__ == "__main__":
    main()
