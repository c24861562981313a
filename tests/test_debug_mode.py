"""Debug mode (need 21): asyncio's checks and asyncio's own words."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from support import HandlerCalls, pair

Loop = asyncio.AbstractEventLoop


@pytest.fixture(autouse=True)
def debug(request: pytest.FixtureRequest) -> None:
    if "loop" in request.fixturenames:
        request.getfixturevalue("loop").set_debug(True)


def run_until_stopped(loop: Loop) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_call_soon_from_another_thread_is_refused(loop: Loop) -> None:
    errors: list[BaseException] = []

    def misuse() -> None:
        for call in loop.call_soon, lambda f: loop.call_later(1, f), lambda f: loop.call_at(1, f):
            try:
                call(print)
            except RuntimeError as error:
                errors.append(error)

    async def main() -> None:
        await asyncio.to_thread(misuse)

    loop.run_until_complete(main())
    assert [str(error) for error in errors] == [
        "Non-thread-safe operation invoked on an event loop other than the current one"
    ] * 3


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_coroutines_and_non_callables_are_refused(loop: Loop, method: str) -> None:
    async def coroutine() -> None:
        pass

    call: Any = getattr(loop, method)
    before = (1,) if method in ("call_later", "call_at") else ()
    for callback in coroutine, 7:
        with pytest.raises(TypeError):
            call(*before, callback)


def test_need_21_a_slow_callback_is_reported_in_asyncios_words(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    assert loop.slow_callback_duration == 0.1
    loop.slow_callback_duration = 0.01
    loop.call_soon(burn, 0.02)
    with caplog.at_level(logging.WARNING, "asyncio"):
        run_until_stopped(loop)
    messages = [r.getMessage() for r in caplog.records if "burn" in r.getMessage()]
    assert len(messages) == 1
    assert messages[0].startswith("Executing <Handle burn(0.02)") and "seconds" in messages[0]


def test_slow_protocol_callback_is_reported(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """One Handle a record in debug mode (H1): a slow `data_received` is told apart from its neighbours."""
    from support import Recorder

    class Slow(Recorder):
        def data_received(self, data: bytes) -> None:
            burn(0.02)
            super().data_received(data)

    async def exchange() -> None:
        async with pair(Recorder, Slow) as ends:
            ends.client.transport.write(b"x")
            await ends.server.bytes_received(1)

    loop.slow_callback_duration = 0.01
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.run_until_complete(exchange())
    assert sum("Executing <Handle " in r.getMessage() for r in caplog.records) >= 1, caplog.text


def test_handles_know_where_they_were_made(loop: Loop, handler_calls: HandlerCalls) -> None:
    handle = loop.call_soon(lambda: 1 / 0)
    assert f"created at {__file__}" in repr(handle)
    run_until_stopped(loop)
    assert handler_calls.take()["source_traceback"]


def test_coroutine_origin_tracking_lasts_while_the_loop_runs(loop: Loop) -> None:
    import sys

    depths = []

    async def look() -> None:
        depths.append(sys.get_coroutine_origin_tracking_depth())

    before = sys.get_coroutine_origin_tracking_depth()
    loop.run_until_complete(look())
    assert depths[0] > 0
    assert sys.get_coroutine_origin_tracking_depth() == before


def test_set_debug_while_running(loop: Loop) -> None:
    async def switch() -> None:
        for on in False, True, False:
            loop.set_debug(on)
            assert loop.get_debug() is on
            await asyncio.sleep(0)

    loop.run_until_complete(switch())


def test_current_handle_stands_in_asyncios_place(loop: Loop) -> None:
    seen: list[Any] = []
    handle = loop.call_soon(lambda: seen.append(loop._current_handle))  # type: ignore[attr-defined]
    run_until_stopped(loop)
    assert seen == [handle]
    assert loop._current_handle is None  # type: ignore[attr-defined]


def test_repr_of_the_loop_shows_its_state(loop: Loop) -> None:
    assert "running=False" in repr(loop) and "debug=True" in repr(loop)
