"""The chart of runs, as SVG: every other loop's cost beside velociloop's, and costs as work grows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from xml.sax.saxutils import escape

from loops import FLOOR, OLD_UVLOOP, OURS, OURS_PURE, PEERS
from results import Run

COLOURS = {
    FLOOR: "#888888",
    "asyncio": "#1f77b4",
    "uvloop": "#d62728",
    OLD_UVLOOP: "#ff9896",
    "rloop": "#8c564b",
    "zuvloop": "#e69f00",
    OURS_PURE: "#7fc97f",
    OURS: "#006400",
}
WIDTH, LEFT, RIGHT = 980, 330, 30
ROW_HEIGHT, PANEL_HEIGHT, HEAD_HEIGHT = 18, 220, 66
#: Ratios beyond these are drawn at the edge.
LEAST, MOST = 0.25, 16.0


def _text(x: float, y: float, content: str, *, anchor: str = "start", size: int = 11, colour: str = "#222") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{colour}">{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _legend(run: Run, y: float) -> list[str]:
    shapes = []
    x = 20.0
    for name in run.loops:
        shapes.append(f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="5" fill="{COLOURS[name]}"/>')
        shapes.append(_text(x + 9, y, name))
        x += 24 + 6.6 * len(name)
    return shapes


def _ratio_place(ratio: float) -> float:
    within = min(max(ratio, LEAST), MOST)
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log(within / LEAST) / math.log(MOST / LEAST)


def _ratios(run: Run, top: float) -> tuple[list[str], float]:
    """Draw one line a row; returns the shapes and where they end."""
    peers = [name for name in (FLOOR, *PEERS) if name in run.loops]
    bottom = top + HEAD_HEIGHT + ROW_HEIGHT * len(run.results)
    shapes = [
        _text(20, top + 18, f"{run.python}: cost of the other loops, in times velociloop's", size=15),
        *_legend(run, top + 38),
    ]
    tick = LEAST
    while tick <= MOST:
        place = _ratio_place(tick)
        colour, width = (COLOURS[OURS], 2) if tick == 1 else ("#ddd", 1)
        shapes.append(_line(place, top + HEAD_HEIGHT - 6, place, bottom, colour, width))
        shapes.append(_text(place, top + HEAD_HEIGHT - 10, f"{tick:g}x", anchor="middle"))
        tick *= 2
    for index, result in enumerate(run.results):
        y = top + HEAD_HEIGHT + ROW_HEIGHT * (index + 0.5)
        drawn = [(name, 1 / ratio) for name in peers if (ratio := result.ratio(OURS, name))]
        is_lost = any(value < 1 for name, value in drawn if name != FLOOR)
        shapes.append(_text(LEFT - 10, y + 4, result.row.title, anchor="end", colour="#b00000" if is_lost else "#222"))
        shapes += [
            f'<circle cx="{_ratio_place(value):.1f}" cy="{y:.1f}" r="4.5" fill="{COLOURS[name]}">'
            f"<title>{escape(f'{name}: {value:.2f}')}</title></circle>"
            for name, value in drawn
        ]
    shapes.append(_text(20, bottom + 16, "Left of the line (and red): that loop needs less than velociloop."))
    return shapes, bottom + 30


def _growth(run: Run, top: float) -> tuple[list[str], float]:
    shapes: list[str] = []
    panel = (WIDTH - 40) / max(len(run.growth), 1)
    for place, (what, lines) in enumerate(run.growth.items()):
        points = {
            name: [(count, statistics.median(figures)) for count, figures in line if figures]
            for name, line in lines.items()
        }
        counts = [count for line in points.values() for count, _ in line]
        figures = [figure for line in points.values() for _, figure in line]
        if not figures:
            continue
        left, right = 20 + panel * place + 40, 20 + panel * (place + 1) - 10
        upper, lower = top + 30, top + PANEL_HEIGHT - 30
        least, most = math.log(min(figures) * 0.9), math.log(max(figures) * 1.1)
        first, last = math.log(min(counts)), math.log(max(counts))

        def across(count: int, left: float = left, right: float = right, a: float = first, b: float = last) -> float:
            return left + (right - left) * (math.log(count) - a) / ((b - a) or 1)

        def up(figure: float, upper: float = upper, lower: float = lower, a: float = least, b: float = most) -> float:
            return lower - (lower - upper) * (math.log(figure) - a) / ((b - a) or 1)

        shapes.append(_text(left, top + 16, f"{what}: us each", size=12))
        shapes += [_line(left, lower, right, lower, "#888"), _line(left, upper, left, lower, "#888")]
        shapes += [_text(across(count), lower + 15, f"{count:,}", anchor="middle", size=9) for count in set(counts)]
        shapes += [
            _text(left - 4, up(edge) + 3, f"{edge:.3g}", anchor="end", size=9) for edge in (min(figures), max(figures))
        ]
        for name, line in points.items():
            path = " ".join(f"{across(count):.1f},{up(figure):.1f}" for count, figure in line)
            shapes.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.8"/>')
    return shapes, top + PANEL_HEIGHT


def svg(runs: Sequence[Run]) -> str:
    """Draw all runs, one under the other."""
    shapes: list[str] = []
    bottom = 10.0
    for run in runs:
        drawn, bottom = _ratios(run, bottom)
        shapes += drawn
        if run.growth:
            drawn, bottom = _growth(run, bottom + 10)
            shapes += drawn
    height = math.ceil(bottom + 10)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *shapes, "</svg>"]) + "\n"
