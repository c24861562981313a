"""The table: each kind of server and row runs on asyncio, comparisons are right, a failing loop fails alone."""

import asyncio
import json
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as `python tests/benchmarks/run.py` has it

import chart
import echo_server
import harness
import micro
import report
import rows
import run as runner
from harness import BenchmarkError, Cores, Load
from loops import OURS, Contender
from results import Result, Run, lost
from rows import ROWS, Target
from server import Workshop
from suite import GROWTH, Suite

ASYNCIO = Contender("asyncio", "asyncio")
BROKEN = Contender("broken", "no_such_package")
NEEDS = {"aiohttp": ["aiohttp"], "uvicorn": ["uvicorn", "httptools"]}


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    try:
        harness.build_load()
    except BenchmarkError as error:
        pytest.skip(f"load.c runs on Linux with a C compiler: {error}")
    with Workshop(sys.executable, 0.0, 0.03, Cores()) as made:
        yield made


@pytest.mark.parametrize("row", [row for row in ROWS if row.how == "server"], ids=lambda row: row.key)
def test_each_server_row_is_measured(workshop: Workshop, row: rows.Row) -> None:
    for package in NEEDS.get(row.kind, []):
        pytest.importorskip(package)
    if row.tool == "tls":
        try:
            harness.build_load_tls()
        except BenchmarkError as error:
            pytest.skip(f"OpenSSL's headers are missing: {error}")
    cost = workshop.cost(row, ASYNCIO)
    assert cost is not None
    assert cost > 0


def test_all_kinds_of_servers_are_used() -> None:
    assert {row.kind for row in ROWS if row.kind} == set(echo_server.KINDS)


def test_idle_connections_take_memory(workshop: Workshop) -> None:
    assert 0 < workshop.idle_memory(ASYNCIO) < 1000


@pytest.mark.parametrize("row", [row.key for row in ROWS if row.how == "micro"])
@pytest.mark.parametrize("count", [1, 3])
def test_each_row_of_one_process_runs(row: str, count: int) -> None:
    assert micro.timed("asyncio", row, count) >= 0


def test_micro_has_exactly_its_rows() -> None:
    assert set(micro.ROWS) == {row.key for row in ROWS if row.how == "micro"}


@pytest.mark.parametrize("what", ["late", "import", "timers", "tasks"])
def test_probes(what: str) -> None:
    command = [sys.executable, str(harness.HERE / "probe.py"), what, "--count", "3", "--loop", "asyncio"]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) > 0


def test_a_failing_loop_fails_alone(workshop: Workshop) -> None:
    (result,) = Suite(workshop, [BROKEN, ASYNCIO], 2).run(rows.choose("echo-10"))
    assert len(result.figures["asyncio"]) == 2
    assert list(result.figures) == ["asyncio"]
    assert "no_such_package is not installed" in result.failures["broken"]


def test_growth(workshop: Workshop) -> None:
    growth = Suite(workshop, [ASYNCIO], 1).grow({what: [2] for what in GROWTH})
    for lines in growth.values():
        ((count, figures),) = lines["asyncio"]
        assert count == 2
        assert figures[0] > 0


def result_of(key: str, **figures: list[float]) -> Result:
    (row,) = rows.choose(key)
    return Result(row, dict(figures))


def test_ratios_are_of_the_same_round() -> None:
    # The machine grew slower meanwhile; the ratio of uvloop's and velociloop's medians would be 0.25.
    result = result_of("echo-10", velociloop=[1.0, 10.0, 1.0], uvloop=[2.0, 4.0, 8.0], asyncio=[8.0, 80.0, 8.0])
    assert result.ratio(OURS, "uvloop") == 0.5
    assert result.best_peer() == "uvloop"
    assert result.judge(Target(0.5)) == (0.5, True)
    assert result.judge(Target(0.49)) == (0.5, False)
    assert result.judge(Target(0.1, "asyncio")) == (0.125, False)
    assert result.judge(Target(1.0, "rloop")) is None
    assert result.judge(Target(1.0, None)) == (1.0, True)
    assert lost([result]) == []


def test_lost_rows_are_said() -> None:
    run = Run(
        "CPython 3",
        {"system": "s", "date": "d", "pinned": "p", "rounds": 1, "seconds": 1.0, "load_average": [0.0]},
        {"asyncio": "", "uvloop": "1", OURS: "2"},
        ["rloop is not installed"],
        [
            result_of("echo-10", asyncio=[9.0], uvloop=[2.0], velociloop=[3.0]),
            result_of("late", asyncio=[1000.0], velociloop=[50.0]),
        ],
        {"tasks": {"asyncio": [(1, [2.0]), (10, [])], OURS: [(1, [1.0]), (10, [1.5])]}},
    )
    run.results[1].failures["uvloop"] = "early"
    for shown in (report.text(run), report.markdown([run])):
        assert "1 of 2 targets hold" in shown
        assert "- echo protocol 1 kB, 10 connections: 1.50 x uvloop" in shown
        assert "1.50, target <= 0.95 x the best other loop (uvloop): does NOT hold" in shown
        assert "50.0, target <= 100: holds" in shown
        assert "early" in shown
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run
    picture = xml.etree.ElementTree.fromstring(chart.svg([run]))
    assert "echo protocol 1 kB, 10 connections" in "".join(picture.itertext())


def test_write_keeps_other_interpreters(tmp_path: Path) -> None:
    about = {"system": "s", "date": "d", "pinned": "p", "rounds": 1, "seconds": 1.0, "load_average": [0.0]}
    for python, version in (("CPython 3.13", "1"), ("CPython 3.14", "2"), ("CPython 3.13", "3")):
        runner.write(Run(python, about, {OURS: version}, [], [result_of("echo-10", velociloop=[1.0])]), tmp_path)
    found = report.load(tmp_path / "benchmarks.json")
    assert [(run.python, run.loops[OURS]) for run in found] == [("CPython 3.14", "2"), ("CPython 3.13", "3")]
    assert "## CPython 3.13" in (tmp_path / "benchmarks.md").read_text()


def test_wrong_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no row 'no_such'; there are echo-10"):
        rows.choose("echo-10,no_such")


def test_load_options_reach_the_generator(workshop: Workshop) -> None:
    assert workshop.load_cost("protocol", ASYNCIO, Load(20, active=2))
    with pytest.raises(BenchmarkError, match="--active is more than --connections"):
        workshop.load_cost("protocol", ASYNCIO, Load(2, active=3))


def test_short_connections_find_a_changed_byte(workshop: Workshop) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes([(await reader.readexactly(1))[0] ^ 1]))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def check() -> tuple[int | None, bytes]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            process = await asyncio.create_subprocess_exec(
                str(harness.build_load_connect()),
                *("--port", str(server.sockets[0].getsockname()[1]), "--connections", "1", "--timeout", "10"),
                stderr=subprocess.PIPE,
            )
            _, errors = await process.communicate()
        return process.returncode, errors

    assert asyncio.run(check()) == (1, b"load: the byte came back changed\n")
