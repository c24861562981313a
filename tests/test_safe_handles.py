"""What call_soon_threadsafe() returns from Python 3.14 on, whose cancel() waits for a callback that has begun."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from support import HANG_S

SafeHandle: Any = getattr(asyncio.events, "_ThreadSafeHandle", None)
pytestmark = pytest.mark.skipif(SafeHandle is None, reason="it came with Python 3.14")


def turn(loop: Any) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


class Scene:
    """A callback that stays inside until it is told to end, and threads that want in."""

    def __init__(self, loop: Any, count: int, method: str) -> None:
        self.begun, self.done = threading.Event(), threading.Semaphore(0)
        self.answers: list[Any] = []
        self.handle = loop.call_soon_threadsafe(self.callback)
        self.threads = [threading.Thread(target=self.want, args=(method,)) for _ in range(count)]
        self.ending: Callable[[], Any] = lambda: None
        for thread in self.threads:
            thread.start()

    def callback(self) -> None:
        self.begun.set()
        # Nobody is to come: all that can be shown is that nobody has come yet.
        assert not self.done.acquire(timeout=0.05)
        assert self.answers == []
        self.ending()

    def want(self, method: str) -> None:
        self.begun.wait(HANG_S)
        self.answers.append(getattr(self.handle, method)())
        self.done.release()

    def end(self) -> None:
        for thread in self.threads:
            thread.join(HANG_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("method", ["cancel", "cancelled"])
def test_others_wait_until_the_callback_has_ended(loop: Any, method: str, count: int) -> None:
    scene = Scene(loop, count, method)
    turn(loop)
    scene.end()
    assert scene.answers == [None if method == "cancel" else False] * count
    assert isinstance(scene.handle, SafeHandle) and scene.handle.cancelled() is (method == "cancel")
    assert repr(scene.handle).startswith("<_ThreadSafeHandle ")


def test_a_callback_that_raises_lets_them_in(loop: Any) -> None:
    seen: list[Any] = []
    loop.set_exception_handler(lambda loop, context: seen.append(context["exception"]))
    scene = Scene(loop, 2, "cancel")
    scene.ending = lambda: 1 / 0
    turn(loop)
    scene.end()
    assert [type(exc) for exc in seen] == [ZeroDivisionError]


def test_an_interrupt_lets_them_in(loop: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    scene = Scene(loop, 2, "cancel")
    scene.ending = interrupt
    with pytest.raises(KeyboardInterrupt):
        turn(loop)
    scene.end()


def test_a_callback_may_cancel_itself(loop: Any) -> None:
    ran: list[Any] = []

    def callback() -> None:
        handle.cancel()
        ran.append(handle.cancelled())

    handle = loop.call_soon_threadsafe(callback)
    turn(loop)
    assert ran == [True]


def test_cancelled_before_it_runs_never_runs(loop: Any) -> None:
    ran: list[int] = []
    handle = loop.call_soon_threadsafe(ran.append, 1)
    handle.cancel()
    turn(loop)
    handle._run()
    assert ran == [] and handle.cancelled()


def test_it_runs_by_hand_too(loop: Any) -> None:
    ran: list[int] = []
    loop.call_soon_threadsafe(ran.append, 1)._run()
    turn(loop)
    assert ran == [1, 1]


def test_in_debug_mode(loop: Any) -> None:
    loop.set_debug(True)
    scene = Scene(loop, 1, "cancel")
    turn(loop)
    scene.end()
    assert scene.answers == [None]


@pytest.mark.parametrize("name", ["cancel", "_run"])
@pytest.mark.parametrize("owner", [SafeHandle, asyncio.Handle])
def test_H3_a_replaced_method_is_obeyed(loop: Any, owner: Any, name: str) -> None:
    ran: list[Any] = []
    original = getattr(owner, name)

    def replacement(self: Any) -> Any:
        ran.append(name)
        return original(self)

    handle = loop.call_soon_threadsafe(ran.append, "callback")
    with mock.patch.object(owner, name, replacement):
        if name == "cancel":
            handle.cancel()
        turn(loop)
    assert ran.count(name) >= 1 and ("callback" in ran) is (name == "_run")


def test_one_that_somebody_has_is_not_used_again(loop: Any) -> None:
    kept = [loop.call_soon_threadsafe(int) for _ in range(5)]
    turn(loop)
    for _ in range(20):
        handle = loop.call_soon_threadsafe(int)
        assert all(handle is not other for other in kept)
        del handle
        turn(loop)
    watched = weakref.ref(loop.call_soon_threadsafe(int))
    turn(loop)
    gc.collect()
    assert watched() is None


def test_a_signal_reaches_a_thread_that_waits(loop: Any) -> None:
    """RLock.acquire() "can be interrupted by signals" in the main thread, and so can this."""
    begun, ended = threading.Event(), threading.Event()

    def callback() -> None:
        begun.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        assert ended.wait(HANG_S)

    def handler(signum: int, frame: Any) -> None:
        ended.set()

    before = signal.signal(signal.SIGUSR1, handler)
    handle = loop.call_soon_threadsafe(callback)
    thread = threading.Thread(target=turn, args=(loop,))
    thread.start()
    try:
        assert begun.wait(HANG_S)
        handle.cancel()
        assert ended.is_set()
    finally:
        thread.join(HANG_S)
        signal.signal(signal.SIGUSR1, before)
