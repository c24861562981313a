"""Runs the rows on every installed loop in turn, round by round, in one run.

Each round measures every row on every loop once, in processes of their own, so that a machine that grows slower or
faster meanwhile does so for all; another loop begins in each round and row.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import harness
import loops
from harness import BenchmarkError, Cores, Load, Progress
from loops import FLOOR, Contender
from results import Growth, Result, Run
from rows import Row
from server import Workshop

#: us in each unit.
UNITS = {"ns": 1e-3, "us": 1.0, "ms": 1e3}
#: Which servers the floor in C is.
FLOOR_KINDS = ("protocol",)
PROBE_LIMIT_S = 120.0
GROWTH = {
    "connections, 1% of them active": [10, 100, 1_000, 10_000],
    "timers": [10, 100, 1_000, 10_000, 100_000, 1_000_000],
    "tasks": [1, 10, 100, 1_000, 10_000],
}
CONNECTIONS, TIMERS, TASKS = GROWTH


class Suite:
    """A run: `run(rows)`, then perhaps `grow()`.

    Args:
        workshop: makes servers.
        contenders: the loops that take part.
        rounds: how often each is measured.
    """

    def __init__(self, workshop: Workshop, contenders: Sequence[Contender], rounds: int) -> None:
        self._workshop = workshop
        self._contenders = list(contenders)
        self._rounds = rounds
        self._progress = Progress()
        self._began = time.monotonic()

    def run(self, rows: Sequence[Row]) -> list[Result]:
        """Measure these rows; what a loop cannot do is a failure of that loop in that row, and does not end the run."""
        results = [Result(row) for row in rows]
        for number in range(self._rounds):
            for index, result in enumerate(results):
                for contender in self._in_turn(number + index):
                    if contender.name != FLOOR or result.row.kind in FLOOR_KINDS:
                        self._show(f"round {number + 1} of {self._rounds}: {result.row.title}: {contender.name}")
                        self._measure(result, contender)
        self._progress.clear()
        order = {contender.name: place for place, contender in enumerate(self._contenders)}
        for result in results:
            result.figures = dict(sorted(result.figures.items(), key=lambda item: order[item[0]]))
        return results

    def grow(self, counts: dict[str, list[int]] = GROWTH) -> Growth:
        """Measure the cost of a message, timer or step as their number grows."""
        growth: Growth = {
            what: {
                contender.name: [(count, []) for count in counts[what]]
                for contender in self._contenders
                if contender.name != FLOOR or what == CONNECTIONS
            }
            for what in counts
        }
        for number in range(self._rounds):
            for what, lines in growth.items():
                for place, count in enumerate(counts[what]):
                    for contender in self._in_turn(number + place):
                        if contender.name in lines:
                            self._show(f"round {number + 1} of {self._rounds}: {count} {what}: {contender.name}")
                            try:
                                lines[contender.name][place][1].append(self._growing(what, contender, count))
                            except BenchmarkError as error:  # this point stays without a figure of this round
                                print(f"{count} {what}: {contender.name}: {error}", file=sys.stderr)
        self._progress.clear()
        return growth

    def _in_turn(self, shift: int) -> list[Contender]:
        shift %= len(self._contenders)
        return self._contenders[shift:] + self._contenders[:shift]

    def _show(self, text: str) -> None:
        self._progress.show(f"[{time.monotonic() - self._began:4.0f} s] {text}")

    def _measure(self, result: Result, contender: Contender) -> None:
        row = result.row
        if contender.name in result.failures:
            return
        try:
            figure = self._figure(row, contender)
        except BenchmarkError as error:
            result.failures[contender.name] = str(error).splitlines()[-1]
            result.figures.pop(contender.name, None)
        else:
            result.figures.setdefault(contender.name, []).append(figure)

    def _figure(self, row: Row, contender: Contender) -> float:
        if row.how == "memory":
            return self._workshop.idle_memory(contender)
        if row.how == "server":
            cost = self._workshop.cost(row, contender)
            if cost is None:
                raise BenchmarkError("the system does not tell a process's CPU time")
            return cost / UNITS[row.unit]
        if row.how == "micro":
            return self._pyperf(row, contender) / UNITS[row.unit]
        answer = self._probe(contender, row.key)
        if answer == "early":
            raise BenchmarkError("early")
        return float(answer)

    def _growing(self, what: str, contender: Contender, count: int) -> float:
        if what == CONNECTIONS:
            cost = self._workshop.load_cost("protocol", contender, Load(count, active=max(1, count // 100)))
            if cost is None:
                raise BenchmarkError("the system does not tell a process's CPU time")
            return cost
        return float(self._probe(contender, "timers" if what == TIMERS else "tasks", "--count", str(count)))

    def _pyperf(self, row: Row, contender: Contender) -> float:
        """Give pyperf's median of one row in us."""
        with tempfile.TemporaryDirectory(prefix="velociloop-bench-") as folder:
            file = Path(folder) / "result.json"
            command = ["micro.py", "--loop", contender.package, "--row", row.key, "--quiet", "-o", str(file)]
            command += ["--processes", "1", "--values", "3", "--warmups", "1"]
            command += ["--min-time", str(min(0.1, self._workshop.seconds / 3))]
            command += ["--inherit-environ", ",".join([*contender.environment, "PYTHONPATH"])]
            if self._workshop.cores.server is not None:
                command += ["--affinity", str(self._workshop.cores.server)]
            self._python(contender, *command)
            data = json.loads(file.read_text(encoding="utf-8"))
        values: list[float] = [value for run in data["benchmarks"][0]["runs"] for value in run.get("values", [])]
        return statistics.median(values) * 1e6

    def _probe(self, contender: Contender, what: str, *options: str) -> str:
        return self._python(contender, "probe.py", what, "--loop", contender.package, *options).strip()

    def _python(self, contender: Contender, script: str, *arguments: str) -> str:
        """Run a script of this folder on a loop's behalf, on the server's core, and give its output."""
        command = [self._workshop.python, str(harness.HERE / script), *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **contender.environment},
        )
        harness.pin(process.pid, self._workshop.cores.server)
        try:
            output, errors = process.communicate(timeout=PROBE_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{script} did not end in {PROBE_LIMIT_S:.0f} s") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode != 0:
            raise BenchmarkError(errors.strip() or f"{script} ended with status {process.returncode}")
        return output


def about(cores: Cores, rounds: int, seconds: float) -> dict[str, object]:
    """Gather what a reader must know about the machine and the run."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "cores": asdict(cores),
        "pinned": str(cores),
        "rounds": rounds,
        "seconds": seconds,
        "load_average": list(os.getloadavg()),
    }


def measure(
    python: str,
    rows: Sequence[Row],
    *,
    names: Sequence[str] | None = None,
    rounds: int,
    seconds: float,
    warmup: float,
    growth: bool,
) -> Run:
    """Run everything on one interpreter.

    Raises:
        BenchmarkError: a loop of `names`, or pyperf, is not there.
    """
    if any(row.how == "micro" for row in rows) and harness.installed(python, ["pyperf"])["pyperf"] is None:
        raise BenchmarkError("pyperf is not installed (`make bench` installs it)")
    contenders, missing = loops.find(python, names)
    cores = harness.choose_cores()
    facts = about(cores, rounds, seconds)
    with Workshop(python, warmup, seconds, cores) as workshop:
        suite = Suite(workshop, contenders, rounds)
        results = suite.run(rows)
        grown = suite.grow() if growth else {}
    versions = {contender.name: contender.version for contender in contenders}
    return Run(harness.interpreter(python), facts, versions, missing, results, grown)


if __name__ == "__main__":
    sys.exit("suite: `python run.py` runs it")
