"""The child process: puts a loop in place of asyncio's selector loop and runs one module of CPython's tests.

It uses the standard library only and is started as a script, as ``child.py ORDER``, where ORDER is a file with a
JSON object:

    module    the module to run, such as "test.test_asyncio.test_streams"
    factory   "module:name" of a callable that makes a loop
    unmock    whether BaseEventLoops with mocked input and output become real loops (`unmock`)
    select    shell-style patterns of test names ("Class.method") to run
    exclude   patterns of those to leave out
    done      ids of tests that an earlier child has run
    only      ids of the only tests to run, or null
    path      where to look for modules after everywhere else
    limit_s   seconds that one test may take; the child then prints every thread's stack and ends
    report    the file to write to

The report has one JSON object a line, each written before the child goes on, so that what a crash leaves says where it
came: "substituted", "excluded" (name and pattern), "start" and "end" of each test, "finished".

How the tests come by their loops, and what is therefore replaced: they call ``asyncio.SelectorEventLoop``, with no
argument or a selector, or ``asyncio.EventLoop``; or they call ``asyncio.new_event_loop``, ``asyncio.run`` or
``asyncio.Runner``, which ask the default policy's ``_loop_factory`` (an attribute of a class in asyncio.unix_events).
``asyncio.BaseEventLoop`` stays as it is, but see `unmock`.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import faulthandler
import gc
import importlib
import json
import os
import sys
import threading
import traceback
import types
import unittest
import unittest.mock
import warnings
import weakref
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, TextIO

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

ORIGINAL = asyncio.SelectorEventLoop
#: The worse outcome of a test is the one that counts (a failed subtest, then a clean end).
SEVERITY = ["passed", "skipped", "failed"]


class Substitute:
    """Stands where a loop class stood: callable, and usable in ``isinstance`` and as a base class.

    It is no class of its own: loops are then exactly of the type that the factory makes, with nothing patched or
    overridden that an accelerator might look at.
    """

    def __init__(self, factory: LoopFactory) -> None:
        self._factory = factory
        #: How many loops the tests have been given.
        self.made = 0
        probe = factory()
        self.loop_class = type(probe)
        probe.close()

    def __call__(self, selector: Any = None) -> asyncio.AbstractEventLoop:
        self.made += 1
        if selector is None:
            return self._factory()
        if issubclass(self.loop_class, ORIGINAL):
            loop: asyncio.AbstractEventLoop = self.loop_class(selector)
            return loop
        # A loop that is no selector loop has no use for it.
        selector.close()
        return self._factory()

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.loop_class)

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self.loop_class)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self.loop_class,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop_class, name)


def resolve(name: str) -> LoopFactory:
    """Return the factory that ``name``, a "module:name", stands for."""
    module, _, attribute = name.partition(":")
    factory: LoopFactory = getattr(importlib.import_module(module), attribute)
    return factory


def put_in_place(substitute: Substitute) -> None:
    """Make every name by which tests reach the selector loop lead to ``substitute``; check that they do."""
    platform = sys.modules[ORIGINAL.__module__]
    for module in (asyncio, platform):
        for name in ("SelectorEventLoop", "EventLoop"):
            if getattr(module, name, None) is ORIGINAL:
                setattr(module, name, substitute)
    for policy in list(vars(platform).values()):
        if isinstance(policy, type) and vars(policy).get("_loop_factory") is ORIGINAL:
            setattr(policy, "_loop_factory", substitute)  # noqa: B010  (mypy does not know it)
    for make in (asyncio.new_event_loop, asyncio.SelectorEventLoop):
        loop = make()
        loop.close()
        if type(loop) is not substitute.loop_class:
            raise RuntimeError(f"{make!r} still makes a {type(loop)!r}")
    substitute.made = 0


def unmock(substitute: Substitute) -> None:
    """Let tests that mock the input and output of a BaseEventLoop run on real loops.

    They make ``asyncio.BaseEventLoop()``, put mocks into its ``_selector``, ``_process_events`` and ``_write_to_self``,
    and hand it to a Runner or to their base class's ``set_event_loop``. Here they get a loop of the factory, and both
    of those take the mocks out of it again.
    """
    selectors: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def make() -> asyncio.AbstractEventLoop:
        loop = substitute()
        selectors[loop] = getattr(loop, "_selector", None)
        return loop

    def clean(loop: Any) -> None:
        # _selector is an attribute of the instance, or a field of its type.
        for name in ("_selector", "_process_events", "_write_to_self"):
            if isinstance(getattr(loop, name, None), unittest.mock.NonCallableMock):
                delattr(loop, name)
                if name == "_selector" and selectors[loop] is not None:
                    loop._selector = selectors[loop]

    runner_class: Any = asyncio.Runner
    prepare = runner_class._lazy_init

    def prepare_clean(runner: Any) -> None:
        prepare(runner)
        clean(runner._loop)

    case_class: Any = importlib.import_module("test.test_asyncio.utils").TestCase
    take = case_class.set_event_loop

    def take_clean(case: Any, loop: Any, **kwargs: Any) -> None:
        clean(loop)
        take(case, loop, **kwargs)

    runner_class._lazy_init = prepare_clean
    case_class.set_event_loop = take_clean
    setattr(asyncio, "BaseEventLoop", make)  # noqa: B010  (mypy refuses the assignment)


class Strays:
    """Counts the selector loops that were made in spite of the substitution."""

    def __init__(self, substitute: Substitute) -> None:
        self.count = 0
        if issubclass(ORIGINAL, substitute.loop_class):
            return  # asyncio's own is what is being run
        inner = asyncio.base_events.BaseEventLoop.__init__

        def init(loop: Any, *args: Any, **kwargs: Any) -> None:
            if type(loop) is ORIGINAL:
                self.count += 1
            inner(loop, *args, **kwargs)

        setattr(asyncio.base_events.BaseEventLoop, "__init__", init)  # noqa: B010  (mypy refuses the assignment)


class Report:
    """The report file."""

    def __init__(self, path: str) -> None:
        self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115  (open until the process ends)

    def write(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()


def standard_descriptors() -> list[tuple[int, int] | None]:
    """What descriptors 0, 1 and 2 refer to."""
    found: list[tuple[int, int] | None] = []
    for fd in range(3):
        try:
            status = os.fstat(fd)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found


class Result(unittest.TextTestResult):
    """Writes the outcome of each test into the report, and watches what unittest does not."""

    report: Report
    substitute: Substitute
    strays: Strays
    limit_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._outcome = "passed"
        self._detail = ""
        self._running: str | None = None
        self._made_before = 0
        self._stray_before = 0
        self._resource_warnings = 0
        self._descriptors = standard_descriptors()
        # What regrtest calls a changed environment: it fails the run there, and the test here.
        sys.unraisablehook = self._unraisable
        threading.excepthook = self._thread_exception

    def listen_to_warnings(self) -> None:
        """Count ResourceWarnings; call it when unittest has set its filters up."""
        show = warnings.showwarning

        def counting(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, ResourceWarning):
                self._resource_warnings += 1
            show(message, category, *args, **kwargs)

        warnings.showwarning = counting

    def _note(self, outcome: str, detail: str) -> None:
        if SEVERITY.index(outcome) >= SEVERITY.index(self._outcome):
            self._outcome = outcome
            self._detail = f"{self._detail}\n{detail}".strip()

    def _unraisable(self, unraisable: Any) -> None:
        text = "".join(traceback.format_exception(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback))
        self._note("failed", f"unraisable exception in {unraisable.object!r}: {text}")

    def _thread_exception(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            text = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
            self._note("failed", f"unhandled exception in {args.thread!r}: {text}")

    def startTest(self, test: unittest.TestCase) -> None:
        self._begin(test.id())
        super().startTest(test)

    def _begin(self, test_id: str) -> None:
        self._outcome, self._detail, self._running = "passed", "", test_id
        self._made_before = self.substitute.made
        self._stray_before = self.strays.count
        self._resource_warnings = 0
        self.report.write("start", id=test_id)
        faulthandler.dump_traceback_later(self.limit_s, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._end()

    def _end(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        support: Any = sys.modules["test.support"]
        if support.environment_altered:
            support.environment_altered = False
            self._note("failed", "environment altered (threads or children left behind; see the log)")
        descriptors = standard_descriptors()
        if descriptors != self._descriptors:
            self._descriptors = descriptors
            self._note("failed", "descriptor 0, 1 or 2 was closed or replaced")
        self.report.write(
            "end",
            id=self._running,
            outcome=self._outcome,
            detail=self._detail,
            loops=self.substitute.made - self._made_before,
            strays=self.strays.count - self._stray_before,
            resource_warnings=self._resource_warnings,
        )
        self._running = None

    def _settle(self, test: unittest.TestCase, outcome: str, detail: str) -> None:
        if self._running is not None:
            self._note(outcome, detail)
        else:  # setUpModule, setUpClass and their likes are reported with no startTest
            self._begin(test.id())
            self._note(outcome, detail)
            self._end()

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._settle(test, "failed", self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._settle(test, "failed", self.failures[-1][1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._settle(test, "failed", f"{subtest}\n" + "".join(traceback.format_exception(*err)))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._settle(test, "skipped", reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self._settle(test, "failed", "unexpected success")


class Runner(unittest.TextTestRunner):
    """unittest's runner, with its result listening to warnings once its filters are set."""

    def run(self, test: Any) -> Any:
        def listening(result: Result) -> None:
            result.listen_to_warnings()
            test(result)

        return super().run(listening)  # type: ignore[arg-type]


def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The tests of ``suite``, in order."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


def chosen(module: types.ModuleType, order: dict[str, Any], report: Report) -> unittest.TestSuite:
    """The tests of ``module`` that ``order`` asks for."""
    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for test in flat(loader.loadTestsFromModule(module)):
        test_id = test.id()
        name = test_id.removeprefix(order["module"] + ".")
        if test_id in order["done"] or not any(fnmatchcase(name, pattern) for pattern in order["select"]):
            continue
        pattern = next((pattern for pattern in order["exclude"] if fnmatchcase(name, pattern)), None)
        if pattern is not None:
            report.write("excluded", id=test_id, pattern=pattern)
        elif order["only"] is None or test_id in order["only"]:
            suite.addTest(test)
    if loader.errors:
        raise RuntimeError("unittest could not load some tests:\n" + "\n".join(map(str, loader.errors)))
    return suite


def forgo_testcapi() -> None:
    """Make ``_testcapi`` plainly missing where its import fails otherwise.

    PyPy compiles it on import, from a source that Debian does not ship; CPython's tests are prepared for ImportError.
    """
    try:
        importlib.import_module("_testcapi")
    except ImportError:
        pass
    except OSError:
        sys.modules["_testcapi"] = None  # type: ignore[assignment]  # documented: makes the import fail


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        order = json.load(file)
    sys.path += [folder for folder in order["path"] if folder not in sys.path]
    report = Report(order["report"])
    faulthandler.enable()
    substitute = Substitute(resolve(order["factory"]))
    strays = Strays(substitute)
    put_in_place(substitute)
    forgo_testcapi()
    if order["unmock"]:
        unmock(substitute)
    loop_class = substitute.loop_class
    report.write("substituted", loop_class=f"{loop_class.__module__}.{loop_class.__qualname__}")
    try:
        module = importlib.import_module(order["module"])
    except unittest.SkipTest as skip:
        nothing = {"loops": 0, "strays": 0, "resource_warnings": 0}
        report.write("end", id=order["module"], outcome="skipped", detail=str(skip), **nothing)
        report.write("finished")
        return
    suite = chosen(module, order, report)

    Result.report, Result.substitute, Result.strays, Result.limit_s = report, substitute, strays, order["limit_s"]
    Runner(verbosity=2, resultclass=Result).run(suite)
    gc.collect()
    report.write("finished")


if __name__ == "__main__":
    main()
