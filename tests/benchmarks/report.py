"""Shows runs: a table for the terminal, docs/benchmarks.md, and the JSON file that both come from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loops import FLOOR, OURS, OURS_PURE, PEERS
from results import Result, Run, lost
from rows import BEST

INTRODUCTION = """\
# Benchmarks

Written by `make bench BENCH_ARGS=--write`; not edited by hand. Each figure is a cost, so less is better: CPU time of
the server or process by the scheduler's own accounting, apart from the rows marked "wall" and memory. Every loop was
measured once in each round, in processes of its own, in turn; server and load generator had a core each; the load
generators are C programs. A figure is the median over the rounds, "±" half of what lies between the lowest and the
highest round. A ratio is velociloop's figure to the other loop's, the median over the rounds: below 1 velociloop needs
less, above 1 it needs more. **Bold** is the least of a row, the program in C aside. Absolute figures are this
machine's; ratios carry over better.

`python -m velociloop bench` measures some of this on your machine in a minute.

![Costs of the other loops beside velociloop's, and costs as work grows](benchmarks.svg)
"""


def number(value: float) -> str:
    """Write a figure with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 99.5:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.95 else f"{value:.2f}"


def spread(figures: Sequence[float]) -> float:
    """Half of what lies between the lowest and the highest."""
    return (max(figures) - min(figures)) / 2


def columns(run: Run) -> list[str]:
    """Give the loops of the table, in its order."""
    order = [FLOOR, *PEERS, OURS_PURE, OURS]
    return [name for name in order if name in run.loops]


def verdict(result: Result) -> str:
    """Say whether velociloop reaches the row's targets: "0.93, target <= 0.95 x asyncio: holds"."""
    parts = []
    for target in result.row.targets:
        judged = result.judge(target)
        if judged is None:
            why = result.failures.get(OURS, "not measured")
            parts.append(f"{target}: unknown ({why})" if result.median(OURS) is None else f"{target}: unknown")
        else:
            value, holds = judged
            best = f" ({result.best_peer()})" if target.against == BEST else ""
            parts.append(f"{number(value)}, target {target}{best}: {'holds' if holds else 'does NOT hold'}")
    return "; ".join(parts)


def _cell(result: Result, name: str, bold: bool) -> str:
    median = result.median(name)
    if median is None:
        return "early" if result.failures.get(name) == "early" else "-"
    text = number(median)
    if bold and name != FLOOR:
        medians = [value for other in result.figures if other != FLOOR if (value := result.median(other)) is not None]
        text = f"**{text}**" if median == min(medians) else text
    return f"{text} ±{number(spread(result.figures[name]))}"


def _ratio(result: Result, name: str) -> str:
    ratio = result.ratio(OURS, name)
    return "-" if ratio is None else f"{ratio:.2f}"


def count_targets(results: Sequence[Result]) -> tuple[int, int]:
    """Give how many targets hold, and of how many that could be judged."""
    judged = [found for result in results for target in result.row.targets if (found := result.judge(target))]
    return sum(holds for _, holds in judged), len(judged)


def _rows(run: Run, bold: bool) -> list[list[str]]:
    names = columns(run)
    peers = [name for name in PEERS if name in names]
    head = ["", "unit", *names, *(f"/ {name}" for name in peers), "target"]
    return [
        head,
        *(
            [
                result.row.title,
                result.row.unit,
                *(_cell(result, name, bold) for name in names),
                *(_ratio(result, name) for name in peers),
                verdict(result),
            ]
            for result in run.results
        ),
    ]


def text(run: Run) -> str:
    """Lay a run out for a terminal."""
    rows = _rows(run, bold=False)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if place in (0, len(widths) - 1) else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    holding, judged = count_targets(run.results)
    lines += ["", *_lost(run), "", f"{holding} of {judged} targets hold."]
    return "\n".join(lines)


def _lost(run: Run) -> list[str]:
    losses = lost(run.results)
    if not losses:
        return ["There is no row in which another loop needs less than velociloop."]
    losses.sort(key=lambda item: -item[2])
    return [f"Rows in which another loop needs less than velociloop: {len(losses)} of {len(run.results)}"] + [
        f"- {result.row.title}: {ratio:.2f} x {peer}" for result, peer, ratio in losses
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _growth(run: Run) -> list[str]:
    lines = []
    for what, by_loop in run.growth.items():
        names = [name for name in columns(run) if name in by_loop]
        counts = [count for count, _ in by_loop[names[0]]]
        rows = [[what, *names]]
        for place, count in enumerate(counts):
            figures = [by_loop[name][place][1] for name in names]
            rows.append([f"{count:,}", *(number(statistics.median(each)) if each else "-" for each in figures)])
        lines += ["", *_table(rows)]
    return lines


def markdown(runs: Sequence[Run]) -> str:
    """Lay runs out as docs/benchmarks.md."""
    lines = [INTRODUCTION]
    for run in runs:
        facts = run.about
        versions = [name if version in name else f"{name} {version}" for name, version in run.loops.items() if version]
        holding, judged = count_targets(run.results)
        lines += [
            f"## {run.python}",
            "",
            f"{facts['system']}, {facts['date']}; {facts['pinned']}; "
            f"{facts['rounds']} rounds of {facts['seconds']:g} s; "
            f"load average at the start {facts['load_average'][0]:.2f}. {', '.join(versions)}.",
            *([f"Without: {'; '.join(run.missing)}."] if run.missing else []),
            "",
            *_table(_rows(run, bold=True)),
            "",
            f"{holding} of {judged} targets hold.",
            "",
            *_lost(run),
        ]
        if run.growth:
            lines += ["", "Cost as work grows (us a message, a timer added and fired, a task's step):", *_growth(run)]
        lines.append("")
    return "\n".join(lines)


def load(path: Path) -> list[Run]:
    """Read the runs of a JSON file; none if there is no file."""
    if not path.exists():
        return []
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [Run.from_json(item) for item in data["runs"]]


def save(path: Path, runs: Sequence[Run]) -> None:
    """Write runs as JSON."""
    data = {"runs": [run.to_json() for run in runs]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
