"""The public API: run, new_event_loop, Loop, install, EventLoopPolicy, versions."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import re
import sys
from typing import Any

import pytest
from support import run_child

import velociloop

OURS = pytest.mark.ours("the package's own interface")


def test_run_returns_the_result() -> None:
    async def main() -> tuple[str, type]:
        await asyncio.sleep(0)
        return "result", type(asyncio.get_running_loop())

    assert velociloop.run(main()) == ("result", velociloop.Loop)


def test_run_raises_what_main_raises() -> None:
    async def main() -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        velociloop.run(main())


@pytest.mark.parametrize("debug", [True, False, None])
def test_run_sets_debug_mode(debug: bool | None) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert velociloop.run(main(), debug=debug) is bool(debug)


def test_run_refuses_what_is_no_coroutine() -> None:
    expected = TypeError if sys.version_info >= (3, 14) else ValueError
    with pytest.raises(expected):
        velociloop.run(7)  # type: ignore[arg-type]


def test_run_refuses_to_nest() -> None:
    async def main() -> None:
        coroutine = asyncio.sleep(0)
        try:
            with pytest.raises(RuntimeError, match=r"run\(\) cannot be called from a running event loop"):
                velociloop.run(coroutine)
        finally:
            coroutine.close()

    velociloop.run(main())


def test_run_takes_another_loop_factory() -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(velociloop.new_event_loop())
        return made[0]

    async def main() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    assert velociloop.run(main(), loop_factory=factory) is made[0]
    assert made[0].is_closed()


def test_run_cleans_up() -> None:
    """Tasks are cancelled, generators and the executor shut down, the loop closed; as `asyncio.run`."""
    events: list[str] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def background() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        main.task = asyncio.create_task(background())  # type: ignore[attr-defined]
        await asyncio.to_thread(events.append, "in a thread")

    velociloop.run(main())
    assert events == ["in a thread", "cancelled"]
    assert loops[0].is_closed()


def test_new_event_loop_and_loop() -> None:
    loop = velociloop.new_event_loop()
    assert type(loop) is velociloop.Loop
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()
    velociloop.Loop().close()


def test_need_30_as_a_loop_factory() -> None:
    async def main() -> type:
        return type(asyncio.get_running_loop())

    for factory in velociloop.new_event_loop, velociloop.Loop:
        with asyncio.Runner(loop_factory=factory) as runner:
            assert runner.run(main()) is velociloop.Loop


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run's loop_factory came with Python 3.12")
def test_asyncio_run_with_a_loop_factory() -> None:
    async def main() -> type:
        return type(asyncio.get_running_loop())

    run: Any = asyncio.run
    assert run(main(), loop_factory=velociloop.new_event_loop) is velociloop.Loop


def test_versions() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", velociloop.__version__)
    assert re.fullmatch(r"1\.\d+\.\d+\S*", velociloop.libuv_version())
    try:
        installed = importlib.metadata.version("velociloop")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from the source tree, not installed")
    assert installed == velociloop.__version__


def test_public_names_have_docstrings_and_annotations() -> None:
    for name in velociloop.__all__:
        if name in ("__version__", "EventLoopPolicy"):
            continue
        value = getattr(velociloop, name)
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            assert inspect.signature(value).return_annotation is not inspect.Signature.empty, name


POLICIES = sys.version_info < (3, 16)


@pytest.mark.skipif(not POLICIES, reason="asyncio has no policies from Python 3.16 on")
def test_need_30_install_and_policy() -> None:
    """In a child, since a policy is the whole process's. From 3.14 on asyncio itself warns, and only for who asks."""
    done = run_child(
        """
        import warnings
        warnings.simplefilter("error")
        import velociloop
        warned = sys.version_info >= (3, 14)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            velociloop.install()
        assert any(issubclass(w.category, DeprecationWarning) for w in caught) == warned, caught

        async def main():
            return type(asyncio.get_running_loop()).__name__

        assert asyncio.run(main()) == "Loop"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            policy = velociloop.EventLoopPolicy()
            assert isinstance(policy, asyncio.AbstractEventLoopPolicy)
            loop = policy.new_event_loop()
            assert type(loop) is velociloop.Loop
            loop.close()
            asyncio.set_event_loop_policy(None)
        assert asyncio.run(main()) != "Loop"
        """,
        "velociloop",
    )
    assert done.returncode == 0, done.stderr


def test_need_30_importing_warns_of_nothing_and_touches_no_policy() -> None:
    done = run_child(
        """
        import warnings
        warnings.simplefilter("error")
        import velociloop
        assert asyncio.events._event_loop_policy is None
        assert "EventLoopPolicy" not in vars(velociloop)
        velociloop.run(asyncio.sleep(0))
        """,
        "velociloop",
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        velociloop.nothing  # noqa: B018 (the lookup is the test)


def test_statistics_are_frozen_and_zero_after_close() -> None:
    loop = velociloop.new_event_loop()
    before = loop.statistics()
    assert before.handles == 0
    with pytest.raises(AttributeError):
        before.handles = 1  # type: ignore[misc]

    async def look() -> int:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        handles: int = loop.statistics().handles
        server.close()
        await asyncio.sleep(0)
        return handles

    assert loop.run_until_complete(look()) == 1
    loop.close()
    assert loop.statistics().handles == 0


def test_repr_of_a_loop() -> None:
    loop = velociloop.new_event_loop()
    assert "running=False" in repr(loop) and "closed=False" in repr(loop)
    loop.close()
    assert "closed=True" in repr(loop)


def test_an_unclosed_loop_warns() -> None:
    loop = velociloop.new_event_loop()
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        loop.__del__()
    assert loop.is_closed()


@pytest.mark.ours("asyncio is there already")
def test_what_the_import_leaves_out(loop_name: str) -> None:
    """Modules that take long to import and that asyncio does without; the rest of ours comes when it is asked for."""
    done = run_child(
        """
        import asyncio, sys
        before = set(sys.modules)
        import velociloop
        loop = velociloop.new_event_loop()
        loop.close()
        more = set(sys.modules) - before
        slow = {"typing", "dataclasses", "subprocess", "velociloop.transports.tls", "velociloop._command"}
        assert not more & slow, more
        """,
        loop_name,
    )
    assert done.returncode == 0, done.stderr
