"""All benchmarks, as `make bench` runs them: every row on every installed loop, with ratios and targets.

    python tests/benchmarks/run.py                        (about twenty minutes)
    python tests/benchmarks/run.py --quick --rows echo-10,sleep0
    python tests/benchmarks/run.py --write                (also docs/benchmarks.md, .json and .svg)

The results are printed on stdout, progress on stderr. --write replaces this interpreter's run in
docs/benchmarks.json and keeps those of other interpreters.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import chart
import harness
import report
import rows
import server
import suite
from harness import BenchmarkError
from results import Run

DOCS = harness.ROOT / "docs"


def write(run: Run, folder: Path) -> None:
    """Put a run in the place of the last one of its interpreter, and draw everything again."""
    path = folder / "benchmarks.json"
    runs = [run, *(other for other in report.load(path) if other.python != run.python)]
    runs.sort(key=lambda each: each.python, reverse=True)
    report.save(path, runs)
    (folder / "benchmarks.md").write_text(report.markdown(runs), encoding="utf-8")
    (folder / "benchmarks.svg").write_text(chart.svg(runs), encoding="utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help=f"comma-separated, of {', '.join(row.key for row in rows.ROWS)} (default: all)")
    parser.add_argument("--loops", help="comma-separated names as in the table (default: all that are installed)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of load in each round (default: 1)")
    parser.add_argument("--warmup", type=float, default=0.3, help="seconds before them; a JIT needs 4 (default: 0.3)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 0.2 s: shows that it works, no more")
    parser.add_argument("--no-growth", action="store_true", help="without costs as connections, timers, tasks grow")
    parser.add_argument("--python", default=sys.executable, help="interpreter that is measured (default: this one)")
    parser.add_argument("--write", nargs="?", type=Path, const=DOCS, metavar="FOLDER", help="default: docs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write this run there")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.warmup = 2, 0.2, 0.1
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked."""
    arguments = parse(argv)
    server.raise_descriptor_limit()
    try:
        run = suite.measure(
            arguments.python,
            rows.choose(arguments.rows),
            names=arguments.loops.split(",") if arguments.loops else None,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            warmup=arguments.warmup,
            growth=not arguments.no_growth and arguments.rows is None,
        )
    except (BenchmarkError, ValueError) as error:
        sys.exit(f"run: {error}")
    except KeyboardInterrupt:
        sys.exit("run: interrupted")
    print(f"{run.python}, {run.about['system']}, {run.about['pinned']}, {run.about['rounds']} rounds")
    for sentence in run.missing:
        print(f"without: {sentence}")
    print(report.text(run))
    if arguments.json is not None:
        report.save(arguments.json, [run])
    if arguments.write is not None:
        write(run, arguments.write)


if __name__ == "__main__":
    main()
