"""What is compared: each installed loop, under a name, with the environment that selects it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import harness
from harness import BenchmarkError

OURS = "velociloop"
OURS_PURE = "velociloop, pure Python"
FLOOR = "C on libuv"
OLD_UVLOOP = "uvloop 0.22.1"
#: Package of each loop that velociloop is compared with, by its name here.
PEERS = {"asyncio": "asyncio", "uvloop": "uvloop", OLD_UVLOOP: "uvloop", "rloop": "rloop", "zuvloop": "zuvloop"}


@dataclass(frozen=True)
class Contender:
    """A loop that takes part.

    Attributes:
        name: what the tables call it.
        package: the module whose `new_event_loop` makes it; empty for the floor.
        environment: variables that a process needs to get it.
        version: of the package.
    """

    name: str
    package: str
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


def old_uvloop_folder(python: str) -> Path:
    """Give the folder that `pip install --target` puts uvloop 0.22.1 into for an interpreter (`make bench` does)."""
    return harness.BUILD / f"uvloop-0.22.1-{harness.interpreter(python).replace(' ', '-')}"


def find(python: str, names: Sequence[str] | None = None) -> tuple[list[Contender], list[str]]:
    """Give the loops that take part, and a sentence for each that does not.

    Args:
        python: the interpreter whose packages count.
        names: those that must take part; None: all that are there.

    Raises:
        BenchmarkError: one of `names` is not there.
    """
    found: list[Contender] = []
    missing: dict[str, str] = {}
    old = {"PYTHONPATH": str(old_uvloop_folder(python))}
    versions = harness.installed(python, ["asyncio", "uvloop", "rloop", "zuvloop", "velociloop"])
    for name, package in PEERS.items():
        environment = old if name == OLD_UVLOOP else {}
        version = harness.installed(python, [package], environment)[package] if environment else versions[package]
        if version is None or (name == OLD_UVLOOP and version != "0.22.1"):
            missing[name] = f"{name} is not installed"
        else:
            found.append(Contender(name, package, environment, version))
    ours = versions["velociloop"]
    if ours is None:
        missing[OURS] = f"velociloop is not installed for {python}"
    else:
        found.append(Contender(OURS, "velociloop", {}, ours))
        if has_accelerator(python):
            found.append(Contender(OURS_PURE, "velociloop", {"VELOCILOOP_PURE": "1"}, ours))
        else:
            missing[OURS_PURE] = "velociloop is pure Python here: there is no accelerator to leave out"
    try:
        harness.build_floor()
        found.insert(0, Contender(FLOOR, ""))
    except BenchmarkError as error:
        missing[FLOOR] = f"no floor in C: {error}"
    if names is not None:
        for name in names:
            if name not in [contender.name for contender in found]:
                raise BenchmarkError(missing.get(name, f"there is no loop named {name!r}"))
        return [contender for contender in found if contender.name in names], []
    return found, list(missing.values())


def has_accelerator(python: str) -> bool:
    """Tell whether velociloop's C accelerator is used by an interpreter."""
    return harness.installed(python, ["velociloop._speedups"])["velociloop._speedups"] is not None


def main() -> None:
    """Print what would take part, or (for the Makefile) the folder of uvloop 0.22.1."""
    if sys.argv[1:] == ["--old-uvloop-folder"]:
        print(old_uvloop_folder(sys.executable))
        return
    found, missing = find(sys.executable)
    for contender in found:
        print(f"{contender.name} ({contender.version or 'built'})")
    for text in missing:
        print(f"without: {text}")


if __name__ == "__main__":
    main()
