"""What was measured, compared: medians, ratios, the best other loop, and whether the targets hold."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from loops import OURS, PEERS
from rows import BEST, ROWS, Row, Target

#: Connections, timers, tasks -> loop -> figures, one a round.
Growth = dict[str, dict[str, list[tuple[int, list[float]]]]]


@dataclass
class Result:
    """A row's figures.

    Attributes:
        row: what was measured.
        figures: loop -> one figure a round.
        failures: loop -> why it has none.
    """

    row: Row
    figures: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, loop: str) -> float | None:
        """The median over the rounds, None if the loop has no figure."""
        return statistics.median(self.figures[loop]) if self.figures.get(loop) else None

    def ratio(self, loop: str, other: str) -> float | None:
        """The median over the rounds of one loop's figure to another's in the same round."""
        ours, theirs = self.figures.get(loop, []), self.figures.get(other, [])
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if b > 0]
        return statistics.median(a / b for a, b in pairs) if pairs else None

    def best_peer(self) -> str | None:
        """The other loop with the least median."""
        found = {name: value for name in PEERS if (value := self.median(name)) is not None}
        return min(found, key=lambda name: found[name]) if found else None

    def judge(self, target: Target, loop: str = OURS) -> tuple[float, bool] | None:
        """Give what is held against the target's limit, and whether it holds; None if it cannot be told."""
        against = self.best_peer() if target.against == BEST else target.against
        value = self.median(loop) if against is None and target.against is None else None
        if against is not None:
            value = self.ratio(loop, against)
        return None if value is None else (value, value <= target.limit)


@dataclass
class Run:
    """One run of the suite on one interpreter.

    Attributes:
        python: "CPython 3.13.0".
        about: what else a reader must know: system, date, cores, rounds, seconds.
        loops: name -> version, in the order of the table.
        missing: a sentence for each loop that did not take part.
        results: row by row.
        growth: cost as work grows.
    """

    python: str
    about: dict[str, Any]
    loops: dict[str, str]
    missing: list[str]
    results: list[Result]
    growth: Growth = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give all that is known, for a file; the ratios and verdicts are there for readers, not for from_json()."""
        return {
            "python": self.python,
            "about": self.about,
            "loops": self.loops,
            "missing": self.missing,
            "rows": [_row_json(result) for result in self.results],
            "growth": self.growth,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """Read what to_json() gave; rows that the table no longer has are left out."""
        rows = {row.key: row for row in ROWS}
        results = [
            Result(rows[item["key"]], item["figures"], item["failures"]) for item in data["rows"] if item["key"] in rows
        ]
        growth = {
            what: {loop: [(count, list(figures)) for count, figures in points] for loop, points in lines.items()}
            for what, lines in data["growth"].items()
        }
        return cls(data["python"], data["about"], data["loops"], data["missing"], results, growth)


def _row_json(result: Result) -> dict[str, Any]:
    verdicts = [(target, result.judge(target)) for target in result.row.targets]
    return {
        "key": result.row.key,
        "title": result.row.title,
        "unit": result.row.unit,
        "figures": result.figures,
        "failures": result.failures,
        "medians": {loop: result.median(loop) for loop in result.figures},
        "best_peer": result.best_peer(),
        "ratios": {name: result.ratio(OURS, name) for name in result.figures if name != OURS},
        "targets": [
            {
                "target": str(target),
                "value": None if verdict is None else verdict[0],
                "holds": None if verdict is None else verdict[1],
            }
            for target, verdict in verdicts
        ],
    }


def lost(results: Iterable[Result]) -> list[tuple[Result, str, float]]:
    """Give the rows in which another loop needs less than velociloop, with that loop and the ratio."""
    found = []
    for result in results:
        peer = result.best_peer()
        ratio = result.ratio(OURS, peer) if peer is not None else None
        if peer is not None and ratio is not None and ratio > 1:
            found.append((result, peer, ratio))
    return found
