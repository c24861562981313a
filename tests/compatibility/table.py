"""docs/compatibility.md, made of the recorded names and of covering.toml alone: the same on every interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from .covering import Covering, covering
from .names import recorded

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "compatibility.md"

_HEAD = """\
# Compatibility

Every public name of asyncio: all that the package exports, and each public method and attribute of its classes. Beside
it, the Python versions that have it, and the test that covers it on velociloop. `test_x::test_y` stands for
`tests/test_x.py::test_y`; almost all of them run on asyncio's own loop too, so that both are known to behave alike.
"CPython's test_x" is that module of CPython's own test suite, run on velociloop by `python -m tests.conformance
test_x`.

The list is derived from the interpreter (`tests/compatibility/names.py`). CI derives it again on each, and fails if a
Python has a name that is missing here, if a test is gone, or if this page is not what `python -m tests.compatibility
--write` makes. What is meant to differ from asyncio stands in [differences.md](differences.md).

Derived on Linux, with {versions}.
"""


def document() -> str:
    """The page."""
    lists, tests = recorded(), covering()
    names = sorted(set().union(*lists.values()), key=_order)
    lines = [_HEAD.format(versions=", ".join(map(_spoken, lists)))]
    for group, members in groupby(names, key=lambda name: name.rpartition(".")[0]):
        lines += [f"## {group}", "", "| name | Python | test |", "|---|---|---|"]
        for name in members:
            covered = ", ".join(map(_cell, tests.get(name, ())))
            lines.append(f"| `{_short(name)}` | {versions_of(name, lists)} | {covered} |")
        lines.append("")
    return "\n".join(lines)


def _order(name: str) -> tuple[str, str, str]:
    group, _, last = name.rpartition(".")
    return ("" if group == "asyncio" else group, last.strip("_").lower(), last)


def _short(name: str) -> str:
    last = name.rpartition(".")[2]
    statement = {"__aenter__": "async with", "__aiter__": "async for", "__await__": "await", "__enter__": "with"}
    return statement.get(last, last)


def _cell(test: Covering) -> str:
    return f"CPython's {test.conformance}" if test.conformance else f"`{test.text}`"


def _spoken(version: str) -> str:
    implementation, _, number = version.rpartition("-")
    return {"cpython": "", "pypy": "PyPy "}[implementation] + number


def versions_of(name: str, lists: Mapping[str, frozenset[str]]) -> str:
    """In which versions `name` exists, in words: "all", "3.12+", "up to 3.13", ..."""
    cpython = [version for version in lists if version.startswith("cpython-")]
    having = [version for version in cpython if name in lists[version]]
    if having == cpython:
        words = "all"
    elif having and having == cpython[-len(having) :]:
        words = f"{_spoken(having[0])}+"
    elif having and having == cpython[: len(having)]:
        words = f"up to {_spoken(having[-1])}"
    else:
        words = ", ".join(map(_spoken, having))
    for version in lists:
        same = version.replace("pypy-", "cpython-")
        if version != same and (name in lists[version]) != (name in lists.get(same, frozenset())):
            words += f", {'and' if name in lists[version] else 'not'} {_spoken(version)}"
    return words.removeprefix(", ")
