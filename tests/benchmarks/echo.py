"""CPU time of a TCP echo on every installed loop, side by side (Linux).

    python tests/benchmarks/echo.py
    python tests/benchmarks/echo.py --python /usr/bin/pypy3 --warmup 4 --loops asyncio,velociloop

Each round measures every loop once, in a fresh server process, so that a machine that grows slower or faster
meanwhile does so for all; a ratio is the median of the rounds' ratios.  The floor is a C program on libuv.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import harness
from harness import BenchmarkError, Cores, Load, Measured, Progress, Server

KNOWN_LOOPS = ["asyncio", "uvloop", "rloop", "zuvloop", "velociloop"]
FLOOR = "C on libuv"
#: connections -> highest ratio of velociloop's CPU time to uvloop's (1 kB protocol echo, pure Python, an
#: optimised build of CPython).
TARGETS = {10: 1.2, 200: 1.05}


@dataclass
class Row:
    """A loop at a number of connections: one `Measured` a round."""

    loop: str
    connections: int
    rounds: list[Measured] = field(default_factory=list)

    @property
    def costs(self) -> list[float]:
        """CPU time a message, in us, round by round."""
        return [run.cpu_us for run in self.rounds if run.cpu_us is not None]

    def ratio(self, other: Row | None) -> float | None:
        """The median over the rounds of this row's cost to another's; None without one."""
        pairs = list(zip(self.costs, other.costs, strict=False)) if other is not None else []
        return statistics.median(ours / theirs for ours, theirs in pairs) if pairs else None


def server_command(loop: str, arguments: argparse.Namespace) -> list[str]:
    """Give the command of an echo server; `loop` is a package or "velociloop:pure"."""
    if loop == FLOOR:
        return [str(harness.build_floor())]
    package, _, variant = loop.partition(":")
    script = Path(__file__).with_name("echo_server.py")
    command = [arguments.python, str(script), "--loop", package, "--kind", arguments.kind]
    return [*command, "--pure"] if variant == "pure" else command


def choose_loops(arguments: argparse.Namespace) -> list[str]:
    """Give the loops to measure: those asked for, or all that are installed, and the floor if it can be built."""
    asked = arguments.loops.split(",") if arguments.loops else None
    wanted = asked or KNOWN_LOOPS
    versions = harness.installed(arguments.python, [name.partition(":")[0] for name in wanted])
    missing = [name for name in wanted if versions[name.partition(":")[0]] is None]
    if asked and missing:
        raise BenchmarkError(f"not installed for {arguments.python}: {', '.join(missing)}")
    loops = [name for name in wanted if name not in missing]
    if not asked and arguments.kind == "protocol":
        try:
            harness.build_floor()
            loops.insert(0, FLOOR)
        except BenchmarkError as error:
            print(f"without the floor in C: {error}", file=sys.stderr)
    return loops


def measure(arguments: argparse.Namespace, loops: Sequence[str], cores: Cores) -> list[Row]:
    """Run all rounds."""
    tool = [str(harness.build_load())]
    rows = [Row(loop, connections) for connections in arguments.conns for loop in loops]
    progress = Progress()
    steps = len(rows) * arguments.rounds
    began = time.monotonic()
    done = 0
    for number in range(arguments.rounds):
        # Another loop begins in each round: what the first one suffers, all suffer.
        shift = number % len(rows)
        for row in rows[shift:] + rows[:shift]:
            left = f", about {(time.monotonic() - began) / done * (steps - done):.0f} s left" if done else ""
            progress.show(f"round {number + 1}/{arguments.rounds}: {row.loop}, {row.connections} connections{left}")
            load = Load(
                connections=row.connections,
                size=arguments.size,
                pipeline=arguments.pipeline,
                warmup=arguments.warmup,
                seconds=arguments.seconds,
            )
            with Server(server_command(row.loop, arguments), core=cores.server) as server:
                row.rounds.append(harness.run_load(tool, server, load, cores))
            done += 1
    progress.clear()
    return rows


def find(rows: Sequence[Row], loop: str, connections: int) -> Row | None:
    """Give the row of a loop, None if it was not measured."""
    return next((row for row in rows if row.loop == loop and row.connections == connections), None)


def targets(rows: Sequence[Row], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare velociloop's rows with the targets that apply to what was measured."""
    if (arguments.kind, arguments.size, arguments.pipeline) != ("protocol", 1024, 1):
        return []
    found = []
    for row in rows:
        ratio = row.ratio(find(rows, "uvloop", row.connections))
        if row.loop.startswith("velociloop") and ratio is not None and row.connections in TARGETS:
            limit = TARGETS[row.connections]
            found.append(
                {
                    "loop": row.loop,
                    "connections": row.connections,
                    "ratio": ratio,
                    "limit": limit,
                    "holds": ratio <= limit,
                }
            )
    return found


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out as text."""
    head = f"{'connections':>11}  {'loop':<16}{'us/message':>11}  {'range':<15}"
    lines = [head + f"{'/uvloop':>8}{'/asyncio':>9}{'messages/s':>12}"]
    for row in rows:
        costs = row.costs
        cost, span = "-", "-"
        if costs:
            cost, span = f"{statistics.median(costs):.2f}", f"{min(costs):.2f}-{max(costs):.2f}"
        ratios = [row.ratio(find(rows, other, row.connections)) for other in ("uvloop", "asyncio")]
        texts = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rate = statistics.median(run.rate for run in row.rounds)
        lines.append(
            f"{row.connections:>11}  {row.loop:<16}{cost:>11}  {span:<15}{texts[0]:>8}{texts[1]:>9}{rate:>12.0f}"
        )
    return "\n".join(lines)


def report(rows: Sequence[Row], arguments: argparse.Namespace, cores: Cores) -> dict[str, Any]:
    """Gather all that is known about this run, for --json."""
    return {
        "benchmark": "echo",
        "kind": arguments.kind,
        "size": arguments.size,
        "pipeline": arguments.pipeline,
        "python": harness.interpreter(arguments.python),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": asdict(cores),
        "load_average": os.getloadavg(),
        "results": [
            {
                "loop": row.loop,
                "connections": row.connections,
                "cpu_us": statistics.median(row.costs) if row.costs else None,
                "to_uvloop": row.ratio(find(rows, "uvloop", row.connections)),
                "to_asyncio": row.ratio(find(rows, "asyncio", row.connections)),
                "rounds": [asdict(run) for run in row.rounds],
            }
            for row in rows
        ],
        "targets": targets(rows, arguments),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", help="comma-separated, also velociloop:pure (default: all that are installed)")
    parser.add_argument("--kind", choices=["protocol", "buffered", "streams"], default="protocol")
    parser.add_argument("--conns", default="10,200", help="numbers of connections (default: 10,200)")
    parser.add_argument("--size", type=int, default=1024, help="bytes of a message (default: 1024)")
    parser.add_argument("--pipeline", type=int, default=1, help="messages sent at once (default: 1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="measured in each round (default: 1.5)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before that; a JIT needs 4 (default: 0.5)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the servers (default: this one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args(argv)
    arguments.conns = [int(part) for part in arguments.conns.split(",")]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = parse(argv)
    cores = harness.choose_cores()
    try:
        loops = choose_loops(arguments)
        rows = measure(arguments, loops, cores)
    except BenchmarkError as error:
        sys.exit(f"echo: {error}")
    pipelined = f", {arguments.pipeline} at once" if arguments.pipeline > 1 else ""
    print(
        f"\nTCP echo ({arguments.kind}) of {arguments.size} bytes{pipelined}: CPU time of the server for a message\n"
        f"{harness.interpreter(arguments.python)}, {platform.system()} {platform.release()}, {cores}, "
        f"{arguments.rounds} rounds of {arguments.seconds:g} s\n"
    )
    print(table(rows))
    for target in targets(rows, arguments):
        verdict = "holds" if target["holds"] else "does NOT hold"
        print(
            f"\n{target['loop']} at {target['connections']} connections: {target['ratio']:.2f} x uvloop, "
            f"target <= {target['limit']}: {verdict}",
            end="",
        )
    print()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report(rows, arguments, cores), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
