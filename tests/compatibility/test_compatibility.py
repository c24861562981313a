"""Every public name of asyncio has a test, and docs/compatibility.md says which."""

from __future__ import annotations

import asyncio
import sys

import pytest
from conformance.plan import MODULES

from . import covering, names, table

HOW = "see `python -m tests.compatibility --help`"


@pytest.fixture(scope="module")
def derived() -> frozenset[str]:
    return names.derive(elsewhere=frozenset().union(*names.recorded().values()))


@pytest.fixture(scope="module")
def entries() -> dict[str, tuple[covering.Covering, ...]]:
    return covering.covering()


def ours(entries: dict[str, tuple[covering.Covering, ...]]) -> list[tuple[str, covering.Covering]]:
    return [(name, test) for name, tests in entries.items() for test in tests if not test.conformance]


def test_every_name_of_this_python_has_a_test(
    derived: frozenset[str], entries: dict[str, tuple[covering.Covering, ...]]
) -> None:
    missing = sorted(name for name in derived if not entries.get(name))
    assert missing == [], f"no test is named for these in {covering.COVERING.name}; {HOW}"


@pytest.mark.skipif(sys.platform == "win32", reason="recorded on Linux; Windows has a proactor, and no Unix sockets")
def test_the_list_of_this_python_is_as_recorded(derived: frozenset[str]) -> None:
    lists = names.recorded()
    assert names.version() in lists, f"nothing was recorded on {names.version()} yet; {HOW}"
    known = lists[names.version()]
    assert (sorted(derived - known), sorted(known - derived)) == ([], []), f"new, and gone; {HOW}"


def test_no_entry_is_of_a_name_that_no_python_has(entries: dict[str, tuple[covering.Covering, ...]]) -> None:
    assert sorted(set(entries) - frozenset().union(*names.recorded().values())) == []


def test_every_entrys_test_is_collected(entries: dict[str, tuple[covering.Covering, ...]]) -> None:
    files = {test.file for _, test in ours(entries)}
    assert [str(file) for file in files if not file.exists()] == [], f"no such file; {covering.COVERING.name} names it"
    found = covering.collected(files)
    gone = sorted({test.text for _, test in ours(entries) if test.node_id not in found})
    assert gone == [], f"no such test; {covering.COVERING.name} names it"


def test_every_entrys_test_mentions_the_name(entries: dict[str, tuple[covering.Covering, ...]]) -> None:
    strangers = [(name, test.text) for name, test in ours(entries) if not test.mentions(name)]
    assert strangers == [], "the test has nothing to do with the name"


def test_every_module_of_cpythons_is_in_the_plan(entries: dict[str, tuple[covering.Covering, ...]]) -> None:
    run = {module.short_name for module in MODULES}
    named = {test.conformance for tests in entries.values() for test in tests if test.conformance}
    assert sorted(named - run) == []


def test_the_document_is_what_the_script_makes() -> None:
    assert table.DOCUMENT.read_text() == table.document(), "run `python -m tests.compatibility --write`"


# That the above can fail


def test_a_new_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = names.derive()
    monkeypatch.setattr(asyncio, "__all__", [*asyncio.__all__, "new_function"])
    monkeypatch.setattr(asyncio, "new_function", len, raising=False)
    monkeypatch.setattr(asyncio.AbstractEventLoop, "new_method", len, raising=False)
    monkeypatch.setattr(asyncio.Queue, "new_property", property(len), raising=False)
    assert names.derive() - before == {
        "asyncio.new_function",
        "asyncio.AbstractEventLoop.new_method",
        "asyncio.Queue.new_property",
    }


def test_members_stand_where_they_are_defined_first() -> None:
    found = names.derive()
    assert {"asyncio.BaseTransport.close", "asyncio.Task.cancel", "asyncio.Future.cancel"} <= found
    assert {"asyncio.BaseEventLoop.slow_callback_duration", "asyncio.subprocess.Process.pid"} <= found
    assert {"asyncio.IncompleteReadError.partial", "asyncio.Lock.__aenter__", "asyncio.subprocess.PIPE"} <= found
    for inherited in "Transport.close", "BaseEventLoop.call_soon", "PriorityQueue.put", "QueueEmpty.args", "sys":
        assert f"asyncio.{inherited}" not in found


def test_a_test_that_is_gone_or_a_stranger_is_seen() -> None:
    gone = covering.Covering("test_queues::test_that_never_was")
    assert gone.node_id not in covering.collected({gone.file})
    real = covering.Covering("test_queues::test_order")
    assert real.node_id in covering.collected({real.file})
    assert real.mentions("asyncio.LifoQueue") and not real.mentions("asyncio.Queue.join")
    through_a_helper = covering.Covering("test_streams_tcp::test_events_of_a_connection_in_order")
    assert through_a_helper.mentions("asyncio.Protocol.data_received")
    assert covering.Covering("test_sync::test_a_barrier_as_a_block").mentions("asyncio.Barrier.__aenter__")


@pytest.mark.parametrize(
    ("having", "words"),
    [
        ("cpython-3.11 cpython-3.12 cpython-3.13 pypy-3.11", "all"),
        ("cpython-3.11 cpython-3.12 cpython-3.13", "all, not PyPy 3.11"),
        ("cpython-3.12 cpython-3.13", "3.12+"),
        ("cpython-3.11 cpython-3.12 pypy-3.11", "up to 3.12"),
        ("cpython-3.11 cpython-3.13 pypy-3.11", "3.11, 3.13"),
        ("pypy-3.11", "and PyPy 3.11"),
    ],
)
def test_versions_in_words(having: str, words: str) -> None:
    versions = ["cpython-3.11", "cpython-3.12", "cpython-3.13", "pypy-3.11"]
    lists = {version: frozenset({"name"} if version in having.split() else ()) for version in versions}
    assert table.versions_of("name", lists) == words
