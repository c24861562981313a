"""Runs modules of CPython's test suite on a loop, one child process each (child.py), and judges what comes back.

A run is good if
- every test that ran passed, except those that fail with asyncio's own loop too: failures are run again on that one,
  which finds what this machine lacks (a network, a certificate that has expired) by running, not by guess;
- the tests were given loops of the factory, and never the selector loop that it stands for;
- every exclusion matched a test.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plan import EXCLUSIONS, Exclusion, Module

ASYNCIO = "asyncio:SelectorEventLoop"
VELOCILOOP = "velociloop:new_event_loop"

#: As regrtest and its -bb: default warnings, bytes beside str an error; and nothing imported from beside child.py.
_FLAGS = ("-P", "-u", "-bb", "-W", "default", "-X", "faulthandler")
#: A module with more crashes or hangs than this is given up.
_MOST_CHILDREN = 12
_LOG_TAIL_CHARS = 4000


class NoTestSuiteError(Exception):
    """This interpreter was installed without CPython's tests."""


@dataclass
class ModuleReport:
    """What running one module gave. The keys of the dicts are test ids."""

    module: Module
    factory: str
    loop_class: str = "?"
    passed: list[str] = field(default_factory=list)
    #: With the traceback.
    failed: dict[str, str] = field(default_factory=dict)
    #: Fail with asyncio's own loop too.
    failed_at_baseline: dict[str, str] = field(default_factory=dict)
    #: With the test's own reason.
    skipped: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, Exclusion] = field(default_factory=dict)
    #: How many loops of the factory each test was given; tests with none are left out.
    loops: dict[str, int] = field(default_factory=dict)
    #: Tests in which a plain selector loop was made in spite of the substitution.
    strays: list[str] = field(default_factory=list)
    resource_warnings: dict[str, int] = field(default_factory=dict)
    #: What is wrong with the run rather than with a test.
    defects: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ran(self) -> int:
        return len(self.passed) + len(self.failed) + len(self.failed_at_baseline)

    @property
    def ok(self) -> bool:
        return not self.failed and not self.defects

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.module.label:20} {self.ran:5} {len(self.failed):7} {len(self.failed_at_baseline):9} "
            f"{len(self.skipped):8} {len(self.excluded):9} {sum(self.loops.values()):6} {len(self.loops):11} "
            f"{sum(self.resource_warnings.values()):9} {self.seconds:8.1f}"
        )

    HEADER = (
        f"{'module':20} {'ran':>5} {'failed':>7} {'baseline':>9} {'skipped':>8} {'excluded':>9} "
        f"{'loops':>6} {'tests given':>11} {'resource':>9} {'seconds':>8}\n"
        f"{'':20} {'':5} {'':7} {'failures':>9} {'':8} {'':9} {'made':>6} {'a loop':>11} {'warnings':>9}"
    )

    def complaints(self) -> list[str]:
        """Everything that makes `ok` false, each with what is known about it."""
        found = [f"{self.module.label}: {defect}" for defect in self.defects]
        found += [f"FAILED {test_id}\n{detail}" for test_id, detail in self.failed.items()]
        return found


def require_test_suite() -> None:
    """Raise NoTestSuiteError unless this interpreter has CPython's asyncio tests."""
    found = None
    if importlib.util.find_spec("test") is not None:
        found = importlib.util.find_spec("test.test_asyncio")
    if found is None:
        raise NoTestSuiteError(
            f"{sys.executable} ({sys.version.split()[0]}) has no test.test_asyncio: nothing was tested. "
            "Distributors package it apart from the interpreter (Debian: libpython3.X-testsuite)."
        )


def exclusions_of(module: Module) -> list[Exclusion]:
    return [exclusion for exclusion in EXCLUSIONS if exclusion.module == module.name and exclusion.applies()]


def run_module(
    module: Module,
    factory: str = VELOCILOOP,
    *,
    only: Collection[str] | None = None,
    exclusions: Iterable[Exclusion] | None = None,
    baseline: bool = True,
    dev: bool = False,
    echo: bool = False,
) -> ModuleReport:
    """Run ``module`` on loops of ``factory``, in child processes of this interpreter.

    ``only`` are the ids of the only tests to run (None: all of the plan), ``exclusions`` take the place of the
    plan's, ``baseline`` says whether failures are tried with asyncio's own loop, ``dev`` turns Python's development
    mode on, and with it asyncio's debug mode, ``echo`` shows the children's output.
    """
    report = ModuleReport(module, factory)
    rows = {e.pattern: e for e in (exclusions_of(module) if exclusions is None else exclusions)}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done: set[str] = set()
        for number in range(_MOST_CHILDREN):
            order: dict[str, Any] = {
                "module": module.name,
                "factory": factory,
                "unmock": module.unmock,
                "environment": dict(module.environment),
                "select": module.select,
                "exclude": list(rows),
                "done": sorted(done),
                "only": None if only is None else sorted(only),
                # So that a factory is found where this process would find it, without being installed.
                "path": [os.path.abspath(folder) for folder in sys.path],
                "limit_s": module.test_limit_s,
                "report": os.path.join(folder, f"report-{number}"),
            }
            ending, log = _run_child(order, folder, start + module.limit_s - time.monotonic(), dev, echo)
            events = _read_events(order["report"])
            interrupted = _take_events(events, rows, report)
            done.update(event["id"] for event in events if event["event"] in ("start", "end"))
            if ending is None and events and events[-1]["event"] == "finished":
                break
            # The child ended before its time.
            ending = ending or "ended early, with exit status 0"
            tail = log[-_LOG_TAIL_CHARS:]
            if interrupted is None:
                report.defects.append(f"the child process {ending}, outside of any test\n{tail}")
                break
            report.failed[interrupted] = f"the process {ending}\n{tail}"
            if time.monotonic() - start > module.limit_s:
                report.defects.append(
                    f"took longer than {module.limit_s:g} s; the tests after {interrupted} did not run"
                )
                break
        else:
            report.defects.append(f"given up after {_MOST_CHILDREN} crashes")
    report.seconds = time.monotonic() - start
    if only is None:
        _judge(report, rows)
    if baseline and report.failed and factory != ASYNCIO:
        oracle = run_module(module, ASYNCIO, only=set(report.failed), exclusions=(), baseline=False, dev=dev)
        for test_id in oracle.failed:
            report.failed_at_baseline[test_id] = report.failed.pop(test_id)
    return report


def _judge(report: ModuleReport, rows: dict[str, Exclusion]) -> None:
    """Look for what is wrong with the run as a whole."""
    matched = {found.pattern for found in report.excluded.values()}
    report.defects += [
        f"the exclusion {pattern!r} matches no test: take it out"
        for pattern, exclusion in rows.items()
        if exclusion.must_match() and pattern not in matched
    ]
    if not report.ran:
        report.defects.append("no test ran")
    elif not report.loops:
        report.defects.append(f"no test was given a loop of {report.factory}: the substitution does not work")
    if report.strays:
        report.defects.append(
            "a plain selector loop was made in spite of the substitution, in " + ", ".join(report.strays)
        )


def _run_child(order: dict[str, Any], folder: str, limit_s: float, dev: bool, echo: bool) -> tuple[str | None, str]:
    """Run a child; return how it ended (None: well) and what it printed."""
    order_path = os.path.join(folder, "order")
    log_path = os.path.join(folder, "log")
    Path(order_path).write_text(json.dumps(order), encoding="utf-8")
    # Debug mode and warning filters are the tests' own business.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONASYNCIODEBUG", "PYTHONWARNINGS")}
    env.update(order["environment"])
    command = [
        sys.executable,
        *_FLAGS,
        *(["-X", "dev"] if dev else []),
        str(Path(__file__).with_name("child.py")),
        order_path,
    ]
    with tempfile.TemporaryDirectory(dir=folder) as cwd, open(log_path, "wb") as log:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=None if echo else log,
            stderr=None if echo else subprocess.STDOUT,
            start_new_session=True,
        )
        timed_out = False
        try:
            status = child.wait(max(limit_s, 1.0))
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            # Tests that crashed may have left children of their own.
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
    output = Path(log_path).read_text(encoding="utf-8", errors="replace")
    if timed_out:
        return "was ended when the module's time was up", output
    if status < 0:
        return f"died of {signal.Signals(-status).name}", output
    # faulthandler ends a process in which a test takes too long with status 1.
    return (f"ended with exit status {status}" if status else None), output


def _read_events(path: str) -> list[dict[str, Any]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def _take_events(events: list[dict[str, Any]], rows: dict[str, Exclusion], report: ModuleReport) -> str | None:
    """Enter what a child wrote into the report; return the test that it did not come to the end of."""
    running: str | None = None
    for event in events:
        match event["event"]:
            case "substituted":
                report.loop_class = event["loop_class"]
            case "excluded":
                report.excluded[event["id"]] = rows[event["pattern"]]
            case "start":
                running = event["id"]
            case "end":
                running = None
                test_id, outcome = event["id"], event["outcome"]
                if outcome == "passed":
                    report.passed.append(test_id)
                elif outcome == "skipped":
                    report.skipped[test_id] = event["detail"]
                else:
                    report.failed[test_id] = event["detail"]
                if event["loops"]:
                    report.loops[test_id] = event["loops"]
                if event["strays"]:
                    report.strays.append(test_id)
                if event["resource_warnings"]:
                    report.resource_warnings[test_id] = event["resource_warnings"]
    return running
