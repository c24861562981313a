"""The harness: every test runs on velociloop and on the standard library's loop, its oracle, and ends empty.

Tests that are coroutines get their loop from pytest-asyncio's `pytest_asyncio_loop_factories` hook; tests that
run a loop by hand ask for the `loop_factory` fixture. Both are parametrized alike, by these marks:

``ours(reason)``
    the behaviour is velociloop's own (corking, statistics, ...): the standard library's loop is left out
``debug_variant``
    runs once more on velociloop with ``loop.set_debug(True)``
``both_roads``
    runs once more on velociloop with ``VELOCILOOP_SPAWN=uv``

After each test the harness demands: no call of a loop's exception handler that the test did not take from
`handler_calls`, no descriptor more than before, every loop closed and no libuv handle left in it, no warning.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import os
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import hypothesis
import hypothesis.strategies
import pytest
from certificates import Authority, Certificate
from support import FACTORIES, HandlerCalls, collect, open_descriptors

if TYPE_CHECKING:
    import trustme

#: What is no longer used is gone at once, unless it is in a cycle.
REFCOUNTED = sys.implementation.name == "cpython"

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Harness:
    """The loops that the running test has made, and what their exception handlers were called with."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.handler_calls = HandlerCalls()

    def factory(self, name: str) -> LoopFactory:
        """Wrap the factory `name` so that its loops are known here and report to `handler_calls`."""
        make = FACTORIES[name.partition("-")[0]]
        debug = name.endswith("-debug")
        by_uv = name.endswith("-uv")

        def new_loop() -> asyncio.AbstractEventLoop:
            loop = make()
            if by_uv:
                os.environ["VELOCILOOP_SPAWN"] = "uv"  # until the test ends
            loop.set_exception_handler(self.handler_calls.record)
            if debug:
                # pytest-asyncio's Runner calls set_debug(False) on the new loop, so this waits for the first turn.
                loop.call_soon(loop.set_debug, True)
            self.loops.append(loop)
            return loop

        new_loop.__name__ = name
        return new_loop

    def factories(self, item: pytest.Item | pytest.Function) -> dict[str, LoopFactory]:
        """The factories that `item`'s marks ask for, by the name that stands in its test id."""
        names = ["velociloop"]
        if item.get_closest_marker("debug_variant") is not None:
            names.append("velociloop-debug")
        if item.get_closest_marker("both_roads") is not None:
            names.append("velociloop-uv")
        if item.get_closest_marker("ours") is None and not item.config.getoption("--without-oracle"):
            names.append("asyncio")
        return {name: self.factory(name) for name in names}


harness = Harness()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-oracle",
        action="store_true",
        help="not on the standard library's loop: for a variant of a Python version whose oracle is run elsewhere",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ours(reason): only on velociloop, the behaviour is its own")
    config.addinivalue_line("markers", "both_roads: also on velociloop with VELOCILOOP_SPAWN=uv")
    config.addinivalue_line("markers", "debug_variant: also on velociloop in debug mode")
    config.addinivalue_line("filterwarnings", "error")


def pytest_collection_finish(session: pytest.Session) -> None:
    # What collection made is never garbage; frozen, it does not cost each test's gc.collect() its time.
    if hasattr(gc, "freeze"):  # not on PyPy
        first_example()
        gc.collect()
        gc.freeze()


# Its clock judges nothing here: a busy machine is no defect.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.none())
def first_example(nothing: None) -> None:
    """Have hypothesis make its source of random numbers, whose holder it looks for among what is not frozen."""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    return harness.factories(item)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "loop_factory" in metafunc.fixturenames:
        factories = harness.factories(metafunc.definition)
        metafunc.parametrize("loop_factory", list(factories.values()), ids=list(factories))
    if "loop_name" in metafunc.fixturenames:
        # For `run_child`: the child makes its loop itself.
        names = [name for name in harness.factories(metafunc.definition) if name in FACTORIES]
        metafunc.parametrize("loop_name", names)


def leaked_since(before: Mapping[int, str]) -> dict[int, str]:
    """The descriptors that are open now and were not then."""
    return {fd: target for fd, target in open_descriptors().items() if before.get(fd) != target}


@pytest.fixture(autouse=True, scope="module")
def module_ends_empty() -> Iterator[None]:
    """Where the tests do not: have the garbage of the last ones say what it has to say."""
    yield
    if not REFCOUNTED:
        collect()
        unexpected = harness.handler_calls.take_all()
        assert not unexpected, f"the exception handler was called: {unexpected!r}"


@pytest.fixture(autouse=True)
def ends_empty() -> Iterator[None]:
    """Fail a test that leaves anything behind; set up before, and so torn down after, the loop itself."""
    harness.loops.clear()
    harness.handler_calls.clear()
    before = open_descriptors()
    road = os.environ.pop("VELOCILOOP_SPAWN", None)
    yield
    os.environ.pop("VELOCILOOP_SPAWN", None)
    if road is not None:
        os.environ["VELOCILOOP_SPAWN"] = road
    unexpected = harness.handler_calls.take_all()
    for loop in harness.loops:
        assert loop.is_closed(), f"{loop!r} was left open"
        statistics = getattr(loop, "statistics", None)
        if statistics is not None:
            assert statistics().handles == 0, f"handles are left in {loop!r}: {statistics()!r}"
    harness.loops.clear()
    # Unclosed transports and never-retrieved exceptions warn or call the handler when collected: have it here, or on
    # PyPy, where a collection takes as long as some tests, with the module.
    if REFCOUNTED or leaked_since(before):
        collect()
    unexpected += harness.handler_calls.take_all()
    assert not unexpected, f"the exception handler was called: {unexpected!r}"
    leaked = leaked_since(before)
    assert not leaked, f"descriptors were left open: {leaked!r}"


@pytest.fixture
def handler_calls() -> HandlerCalls:
    """What the loop's exception handler was called with; a test takes what it expects."""
    return harness.handler_calls


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop to run by hand; closed, with its executor and generators, when the test ends."""
    loop = loop_factory()
    yield loop
    if not loop.is_closed():
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> trustme.CA | Authority:
    if importlib.util.find_spec("trustme") is not None:
        return importlib.import_module("trustme").CA()  # type: ignore[no-any-return]
    if shutil.which("openssl") is None:
        pytest.skip("neither trustme nor the openssl tool is here to make certificates")
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA | Authority) -> trustme.LeafCert | Certificate:
    return authority.issue_cert("localhost", "127.0.0.1")


@pytest.fixture(scope="session")
def server_tls(certificate: trustme.LeafCert | Certificate) -> ssl.SSLContext:
    """A server context for "localhost", signed by the authority of this run."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA | Authority) -> ssl.SSLContext:
    """A client context that trusts the authority of this run."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def contexts(
    certificate: trustme.LeafCert | Certificate, authority: trustme.CA | Authority
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server and of a client, for this test alone."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.fixture(autouse=True, scope="session")
def process_is_ready() -> None:
    # libuv keeps its process-wide signal pipe from the first loop on: not a leak of the first test.
    for make in FACTORIES.values():
        make().close()
    assert not os.environ.get("PYTHONASYNCIODEBUG"), "PYTHONASYNCIODEBUG would put the oracle into debug mode"
