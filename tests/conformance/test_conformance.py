"""CPython's own asyncio tests pass on velociloop; and the runner that shows it sees what it must see.

More by hand: `python -m tests.conformance --help`.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
import textwrap
from pathlib import Path

import pytest

from .plan import EXCLUSIONS, LEFT_OUT, MODULES, Exclusion, Module, modules
from .runner import ASYNCIO, ModuleReport, NoTestSuiteError, require_test_suite, run_module


@pytest.fixture(scope="module", autouse=True)
def cpython_tests() -> None:
    try:
        require_test_suite()
    except NoTestSuiteError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def explain(report: ModuleReport) -> str:
    return "\n".join([ModuleReport.HEADER, report.summary(), *report.complaints()])


def test_no_module_is_forgotten() -> None:
    """A Python that brings a module more must have it run, or its reason stated."""
    package = importlib.util.find_spec("test.test_asyncio")  # not imported: PyPy's fails without what child.py does
    assert package is not None
    names = {info.name for info in pkgutil.iter_modules(package.submodule_search_locations)}
    found = {name for name in names if name.startswith("test_")}
    assert "test_events" in found
    assert found <= {module.short_name for module in MODULES} | LEFT_OUT.keys()


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.label)
def test_passes_on_velociloop(module: Module) -> None:
    report = run_module(module)
    assert report.ok, explain(report)
    assert report.loop_class == "velociloop.loop.Loop"


@pytest.mark.parametrize(
    "module", [module for module in modules() if module.debug], ids=lambda module: module.label
)
def test_passes_on_velociloop_in_debug_mode(module: Module) -> None:
    report = run_module(module, dev=True)
    assert report.ok, explain(report)


def test_every_exclusion_names_a_module_of_the_plan() -> None:
    names = {module.name for module in MODULES}
    assert [exclusion for exclusion in EXCLUSIONS if exclusion.module not in names] == []


def test_another_loop_fails() -> None:
    """That the tests pass on velociloop means something: on uvloop, put in place in the same way, they do not."""
    pytest.importorskip("uvloop", reason="uvloop is not installed (there is none for PyPy)")
    module = next(module for module in modules() if module.short_name == "test_server")
    report = run_module(module, "uvloop:new_event_loop", exclusions=())
    assert report.loop_class == "uvloop.Loop"
    assert report.loops
    assert report.failed
    assert not report.failed_at_baseline


# The runner itself, on a test module made for the purpose.

MADE_UP = """
    import asyncio
    import faulthandler
    import os
    import unittest
    import warnings

    from test import support

    class Made(unittest.TestCase):
        def test_passes(self):
            loop = asyncio.new_event_loop()
            loop.close()

        def test_fails(self):
            asyncio.SelectorEventLoop().close()
            self.fail("on purpose")

        def test_fails_in_a_subtest(self):
            with self.subTest("sub"):
                self.fail("on purpose")

        def test_skips(self):
            self.skipTest("a reason")

        def test_aborts(self):
            os.abort()

        def test_exits(self):
            os._exit(0)

        def test_hangs(self):
            while True:
                pass

        def test_alters_the_environment(self):
            support.environment_altered = True

        def test_closes_standard_input(self):
            os.close(0)

        def test_warns(self):
            warnings.warn("unclosed", ResourceWarning)

        def test_strays(self):
            from asyncio import selector_events, unix_events
            unix_events._UnixSelectorEventLoop().close()

        def test_fails_on_others(self):
            loop = asyncio.new_event_loop()
            loop.close()
            self.assertEqual(type(loop).__module__, "asyncio.unix_events")
"""
VELOCILOOP_LIKE = """
    import asyncio

    class Loop(asyncio.SelectorEventLoop):
        pass
"""


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    (tmp_path / "made_up.py").write_text(textwrap.dedent(MADE_UP))
    (tmp_path / "made_up_loop.py").write_text(textwrap.dedent(VELOCILOOP_LIKE))
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    return Module("made_up", test_limit_s=3)


def test_runner_tells_outcomes_apart(made_up: Module) -> None:
    report = run_module(made_up, ASYNCIO, exclusions=[Exclusion("made_up", "Made.test_strays", "for the test")])
    prefix = "made_up.Made.test_"
    assert report.passed == [prefix + "fails_on_others", prefix + "passes", prefix + "warns"]
    assert report.skipped == {prefix + "skips": "a reason"}
    assert list(report.excluded) == [prefix + "strays"]
    assert report.resource_warnings == {prefix + "warns": 1}
    assert report.loops == {prefix + "fails": 1, prefix + "fails_on_others": 1, prefix + "passes": 1}
    details = {test_id.removeprefix(prefix): detail for test_id, detail in report.failed.items()}
    assert sorted(details) == [
        "aborts",
        "alters_the_environment",
        "closes_standard_input",
        "exits",
        "fails",
        "fails_in_a_subtest",
        "hangs",
    ]
    assert "SIGABRT" in details["aborts"]
    assert "ended early" in details["exits"]
    assert "test_hangs" in details["hangs"]  # in the stack that faulthandler printed
    assert "on purpose" in details["fails"]
    assert not report.ok


def test_runner_sees_failures_that_are_not_the_loops(made_up: Module) -> None:
    only = {f"made_up.Made.test_{name}" for name in ("fails", "fails_on_others", "passes")}
    report = run_module(made_up, "made_up_loop:Loop", only=only, exclusions=())
    assert report.loop_class == "made_up_loop.Loop"
    assert list(report.failed_at_baseline) == ["made_up.Made.test_fails"]
    assert list(report.failed) == ["made_up.Made.test_fails_on_others"]


@pytest.mark.parametrize(
    ("select", "exclude", "defect"),
    [
        (("Made.test_passes",), ("Made.test_gone",), "matches no test"),
        (("Made.test_warns",), (), "the substitution does not work"),
        (("Made.test_gone",), (), "no test ran"),
        (("Made.test_passes", "Made.test_strays"), (), "in spite of the substitution"),
    ],
)
def test_runner_sees_a_run_that_shows_nothing(
    made_up: Module, select: tuple[str, ...], exclude: tuple[str, ...], defect: str
) -> None:
    module = Module(made_up.name, select=select)
    rows = [Exclusion(made_up.name, pattern, "for the test") for pattern in exclude]
    report = run_module(module, "made_up_loop:Loop", exclusions=rows)
    assert not report.failed
    assert [defect in found for found in report.defects] == [True]


def test_runner_sees_a_factory_that_is_not_there(made_up: Module) -> None:
    report = run_module(made_up, "made_up_loop:Missing", exclusions=())
    assert "outside of any test" in report.defects[0]
    assert "Missing" in report.defects[0]


def test_missing_test_suite_is_said_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test", None)
    with pytest.raises((NoTestSuiteError, ValueError), match="test"):
        require_test_suite()
