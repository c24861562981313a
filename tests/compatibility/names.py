"""asyncio's public names, as the running interpreter has them.

What counts, since the index pages of asyncio's documentation are made by hand:

- the names that the package exports: those in ``asyncio.__all__`` (some begin with an underscore: they are there for
  libraries that extend asyncio), and other public objects that its namespace holds;
- what the documented submodule ``asyncio.subprocess`` defines;
- of each class among them, its public methods, properties and class attributes, the special methods that statements
  call (``async with``, ``async for``, ``await``), and the public attributes that its ``__init__`` gives the instance.

A method stands where it is first defined: not again under a class that inherits or overrides it, unless in
`REPEATED`. What a class has from outside asyncio (``Exception.args``) does not count.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import dis
import inspect
import platform
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"

#: Classes that the documentation describes in full, whatever they inherit.
REPEATED = frozenset({"asyncio.Task"})

#: The special methods that a statement or expression calls, without those that only end what another began.
SPECIAL = frozenset({"__aenter__", "__aiter__", "__anext__", "__await__", "__enter__"})


def version() -> str:
    """The running interpreter, by the name of its file in `RECORDED`."""
    return f"{platform.python_implementation().lower()}-{sys.version_info[0]}.{sys.version_info[1]}"


def recorded() -> dict[str, frozenset[str]]:
    """The names that were derived on each version, CPython's first and in order."""
    paths = {path.stem: path for path in RECORDED.glob("*.txt")}

    def order(stem: str) -> tuple[str, list[int]]:
        implementation, _, number = stem.rpartition("-")
        return implementation, [int(part) for part in number.split(".")]

    return {stem: frozenset(paths[stem].read_text().split()) for stem in sorted(paths, key=order)}


def derive(elsewhere: Iterable[str] = ()) -> frozenset[str]:
    """The names of the running interpreter, each beginning with "asyncio.".

    Names that are deprecated may be answered by the package's ``__getattr__`` alone, which lists nothing: `elsewhere`
    are names of other versions, to ask it for.
    """
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in _exported():
            found[f"asyncio.{name}"] = getattr(asyncio, name)
        for full in elsewhere:
            name = full.removeprefix("asyncio.")
            if "." not in name and full not in found and hasattr(asyncio, name):
                found[full] = getattr(asyncio, name)
    for name, value in vars(asyncio.subprocess).items():
        own = getattr(value, "__module__", None) == "asyncio.subprocess" or isinstance(value, int)
        if own and not name.startswith("_") and f"asyncio.{name}" not in found:
            found[f"asyncio.subprocess.{name}"] = value
    classes = {value: name for name, value in found.items() if inspect.isclass(value)}
    names = set(found)
    for cls, name in classes.items():
        names |= {f"{name}.{member}" for member in _members(cls, classes)}
    return frozenset(names)


def _exported() -> Iterator[str]:
    yield from asyncio.__all__
    for name, value in vars(asyncio).items():
        if not name.startswith("_") and name not in asyncio.__all__ and not isinstance(value, types.ModuleType):
            yield name


def _members(cls: type[Any], classes: dict[type[Any], str]) -> set[str]:
    found = set()
    for base in cls.__mro__:
        if not base.__module__.startswith(("asyncio", "_asyncio")):
            continue
        for name in [*vars(base), *_set_by_init(base)]:
            if name in SPECIAL or not name.startswith("_"):
                found.add(name)
    if classes[cls] not in REPEATED:
        for base in cls.__mro__[1:]:
            if base in classes:
                found -= _members(base, {**classes, base: classes[base]}) | _inherited(base, classes)
    return found


def _inherited(cls: type[Any], classes: dict[type[Any], str]) -> set[str]:
    found: set[str] = set()
    for base in cls.__mro__[1:]:
        if base in classes:
            found |= _members(base, classes)
    return found


def _set_by_init(cls: type[Any]) -> Iterator[str]:
    """The attributes that ``cls.__init__`` sets, of a class that is written in Python."""
    init = vars(cls).get("__init__")
    if isinstance(init, types.FunctionType):
        for instruction in dis.get_instructions(init):
            if instruction.opname == "STORE_ATTR":
                yield instruction.argval
