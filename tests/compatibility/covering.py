"""Which test covers which name: ``covering.toml``, and whether what stands there is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
COVERING = Path(__file__).parent / "covering.toml"

#: How a statement that calls a special method is written.
STATEMENTS = {
    "__aenter__": r"async with",
    "__aiter__": r"async for",
    "__anext__": r"async for",
    "__await__": r"await",
    "__enter__": r"with",
}


@dataclass(frozen=True)
class Covering:
    """One test: ours, or a module of CPython's that the conformance runner runs."""

    #: As in covering.toml: "test_queues::test_order", or "conformance:test_locks".
    text: str

    @property
    def conformance(self) -> str | None:
        """The module of CPython's, if it is one."""
        kind, found, module = self.text.partition("conformance:")
        return module if found and not kind else None

    @property
    def file(self) -> Path:
        return TESTS / f"{self.text.partition('::')[0]}.py"

    @property
    def test(self) -> str:
        return self.text.partition("::")[2]

    @property
    def node_id(self) -> str:
        """As pytest writes it, from the project's folder on."""
        return f"tests/{self.file.relative_to(TESTS).as_posix()}::{self.test}"

    def mentions(self, name: str) -> bool:
        """Whether the source of the test, or of a helper that it uses, has the last part of `name`."""
        word = name.rpartition(".")[2]
        pattern = STATEMENTS.get(word, re.escape(word))
        return re.search(rf"\b{pattern}\b", _source(self.file, self.test)) is not None


@cache
def _definitions(file: Path) -> dict[str, str]:
    """The source of each function, class and constant of `file`."""
    text = file.read_text()
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
        found.update(dict.fromkeys(names, "\n".join(lines[first - 1 : node.end_lineno])))
    return found


@cache
def _source(file: Path, test: str) -> str:
    """The source of `test` and of what it uses of its own file, of support.py and of conftest.py."""
    known = _definitions(TESTS / "conftest.py") | _definitions(TESTS / "support.py") | _definitions(file)
    used, new = {test}, {test}
    while new:
        words = {word for name in new for word in re.findall(r"\w+", known.get(name, ""))}
        new = {word for word in words if word in known and not word.startswith("test_")} - used
        used |= new
    return "\n".join(known.get(name, "") for name in used)


def covering() -> dict[str, tuple[Covering, ...]]:
    """For each name its tests."""
    tables = tomllib.loads(COVERING.read_text())
    found = {}
    for prefix, table in tables.items():
        for name, value in table.items():
            found[f"{prefix}.{name}"] = tuple(map(Covering, [value] if isinstance(value, str) else value))
    return found


def collected(files: set[Path]) -> set[str]:
    """The node ids of the tests that pytest collects from `files`, without parameters."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"pytest could not collect:\n{done.stdout}\n{done.stderr}")
    return {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
