"""The command line that brings the recorded names and docs/compatibility.md up to date."""

from __future__ import annotations

import argparse

from .covering import COVERING, covering
from .names import RECORDED, derive, recorded, version
from .table import DOCUMENT, document


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.compatibility",
        description="asyncio's public names, the versions that have them, and the tests that cover them. "
        "Without an option: names of this interpreter that have no test yet, or are new or gone.",
        epilog="A new Python: --record on it, give new names a test in tests/compatibility/covering.toml, --write.",
    )
    parser.add_argument("--record", action="store_true", help="write down the names that this interpreter has")
    parser.add_argument("--write", action="store_true", help="write docs/compatibility.md")
    arguments = parser.parse_args(argv)
    lists = recorded()
    found = derive(elsewhere=frozenset().union(*lists.values()))
    if arguments.record:
        path = RECORDED / f"{version()}.txt"
        path.write_text("\n".join(sorted(found)) + "\n")
        print(f"{path}: {len(found)} names")
        lists = recorded()
    if arguments.write:
        DOCUMENT.write_text(document())
        print(DOCUMENT)
    before = lists.get(version(), frozenset())
    for title, names in (
        (f"without a test in {COVERING.name}", found - set(covering())),
        (f"not in the list of {version()}", found - before),
        (f"in the list of {version()} only", before - found),
    ):
        if names:
            print(f"{title}:", *sorted(names), sep="\n    ")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
