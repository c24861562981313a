"""The command line of the conformance runner.

Exit status: 0 all as it should be, 1 failures, 2 no CPython test suite in this interpreter.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from .plan import modules
from .runner import VELOCILOOP, ModuleReport, NoTestSuiteError, exclusions_of, require_test_suite, run_module


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Run CPython's own asyncio tests with another event loop in place of the selector loop.",
    )
    parser.add_argument("modules", nargs="*", help="such as test_streams; without any: all of the plan")
    parser.add_argument(
        "--factory", default=VELOCILOOP, help="MODULE:CALLABLE that makes a loop (default: %(default)s)"
    )
    parser.add_argument("-k", dest="patterns", action="append", metavar="CLASS.METHOD", help="only tests like this")
    parser.add_argument("--no-baseline", action="store_true", help="do not run failures again on asyncio's own loop")
    parser.add_argument("--dev", action="store_true", help="run in asyncio's debug mode (python -X dev)")
    parser.add_argument("--excluded", action="store_true", help="run the excluded tests, and nothing else")
    parser.add_argument("--echo", action="store_true", help="show the output of the tests as they run")
    parser.add_argument("--json", metavar="FILE", help="write the ids of failed and skipped tests there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        require_test_suite()
    except NoTestSuiteError as error:
        print(f"!!!! {error}", file=sys.stderr)
        return 2
    chosen = [module for module in modules() if not arguments.modules or module.short_name in arguments.modules]
    unknown = set(arguments.modules) - {module.short_name for module in chosen}
    if unknown:
        print(f"not in the plan: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 1
    print(f"{sys.implementation.name} {sys.version.split()[0]}, {arguments.factory}\n{ModuleReport.HEADER}", flush=True)
    reports = []
    for module in chosen:
        whole_plan = not arguments.patterns and not arguments.excluded
        if arguments.excluded:
            patterns = tuple(exclusion.pattern for exclusion in exclusions_of(module))
            if not patterns:
                continue
            module = replace(module, select=patterns)
        elif arguments.patterns:
            module = replace(module, select=tuple(arguments.patterns))
        report = run_module(
            module,
            arguments.factory,
            exclusions=None if whole_plan else (),
            baseline=not arguments.no_baseline,
            dev=arguments.dev,
            echo=arguments.echo,
        )
        print(report.summary(), flush=True)
        reports.append(report)
    for report in reports:
        for complaint in report.complaints():
            print("=" * 80, complaint, sep="\n")
        for test_id in report.failed_at_baseline:
            print(f"fails on asyncio's own loop too: {test_id}")
    if arguments.json:
        write_json(arguments.json, reports)
    good = all(report.ok for report in reports)
    loops = sorted({report.loop_class for report in reports})
    print(f"{'passed' if good else 'FAILED'} on {', '.join(loops)}")
    return 0 if good else 1


def write_json(path: str, reports: list[ModuleReport]) -> None:
    found = {
        report.module.label: {
            "passed": len(report.passed),
            "failed": report.failed,
            "failed_at_baseline": report.failed_at_baseline,
            "skipped": report.skipped,
            "excluded": {test_id: exclusion.reason for test_id, exclusion in report.excluded.items()},
            "resource_warnings": report.resource_warnings,
            "without_loop": sorted(set(report.passed) - set(report.loops)),
        }
        for report in reports
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
