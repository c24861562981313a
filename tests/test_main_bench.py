"""`python -m velociloop bench`: measures every installed loop, and takes the place of no program."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest
from test_main_module import OURS, python, write

import velociloop
from velociloop import _bench


def test_every_installed_loop_is_measured(tmp_path: Path) -> None:
    status, output, errors = python(tmp_path, *OURS, "bench", "--rounds", "1", "--rows", "echo,streams,sleep0")
    assert status == 0, errors
    head, *rows = output.splitlines()[2:]
    loops = [name for name, module in _bench.LOOPS.items() if importlib.util.find_spec(module)]
    assert head.split()[: len(loops)] == loops
    assert [row.split("  ")[0] for row in rows[:3]] == ["protocol echo, 1 kB", "stream echo, 1 kB", "sleep(0)"]
    for row in rows[:3]:
        figures = re.findall(r" (\d+\.\d+) \((\d+\.\d+)\)", row)
        assert len(figures) >= 2, row
        assert figures[0][1] == "1.00"  # asyncio beside itself
        assert all(float(figure) > 0 for figure, _ in figures)
    assert "round 1 of 1: stream echo, 1 kB: velociloop" in errors


def test_a_loop_that_fails_does_not_end_it(tmp_path: Path) -> None:
    write(tmp_path, "uvloop/__init__.py", "def new_event_loop():\n    raise NotImplementedError('on purpose')\n")
    path = f"{tmp_path}{os.pathsep}{Path(velociloop.__file__).parent.parent}"
    status, output, errors = python(tmp_path, *OURS, "bench", "--rounds", "1", "--rows", "echo", PYTHONPATH=path)
    assert status == 0, errors
    assert "uvloop cannot run protocol echo, 1 kB: NotImplementedError: on purpose" in output
    assert re.search(r"protocol echo, 1 kB +\d+\.\d+ \(1\.00\) +- ", output), output


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["--rows", "no_such"], "no row 'no_such'; there are echo, streams"), (["--rounds", "0"], "at least 1")],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], what: str) -> None:
    status, output, errors = python(tmp_path, *OURS, "bench", *arguments)
    assert (status, output) == (2, "")
    assert what in errors


@pytest.mark.parametrize("arguments", [["./bench"], ["--", "bench"]], ids=str)
def test_a_script_of_that_name_can_be_run(tmp_path: Path, arguments: list[str]) -> None:
    write(tmp_path, "bench", "print('a script')\n")
    assert python(tmp_path, *OURS, *arguments) == (0, "a script\n", "")
