"""``add_signal_handler``: asyncio's, with libuv catching the signal.

Facts (H10): ``uv_signal`` takes a signal from Python by sigaction(2) without telling Python, and leaves SIG_DFL.
Choice: asyncio's own methods run first and whole, so that every check, ``signal.getsignal()`` and the wakeup
descriptor are as they are there; then libuv takes the signal over (shim_signal.c).  While Python has it, and for
ever if libuv refuses, its number comes through the wakeup descriptor and the self-pipe: the loop hears of it
once either way.

SIGINT stays with Python, for good.  libuv's end leaves SIG_DFL until we have put Python's action back, and a signal
that comes to another thread in between has SIG_DFL's effect (seen: 6 to 561 SIGINTs under add and remove in a loop).
asyncio leaves SIG_DFL behind for every signal but this one, whose effect must be KeyboardInterrupt then.
"""

from __future__ import annotations

import signal

from ..uv.core import Core
from ..uv.registry import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SignalWatch", "SignalWatches"]


class SignalWatch(Owner):
    """One signal that libuv catches for a loop."""

    __slots__ = ("_loop", "_signum", "key")

    def __init__(self, loop: Any, signum: int, key: int) -> None:
        self._loop = loop
        self._signum = signum
        self.key = key

    def __repr__(self) -> str:
        return f"<{type(self).__name__} signal={self._signum}>"

    def on_signal(self, signum: int) -> None:
        """See ``Owner``."""
        self._loop._handle_signal(signum)

    def enter_anew(self) -> None:
        """See ``Owner``: no context is entered here."""

    def on_loop_close(self) -> None:
        """See ``Owner``: asyncio's close() removes the handlers."""


class SignalWatches:
    """The signals that libuv catches for one loop."""

    __slots__ = ("_core", "_loop", "_watches")

    def __init__(self, loop: Any, core: Core) -> None:
        self._loop = loop
        self._core = core
        self._watches: dict[int, SignalWatch] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self._watches.values())}>"

    def signals(self) -> set[int]:
        """Return the numbers of the signals that libuv catches."""
        return set(self._watches)

    def action(self, signum: Any) -> bytes:
        """Return what the signal does before asyncio takes it, for :meth:`take_over`."""
        if not isinstance(signum, int) or signum not in signal.valid_signals():
            return b""  # asyncio refuses it, in its own words
        return self._core.signal_action(signum)

    def take_over(self, signum: int, previous: bytes) -> None:
        """Have libuv catch a signal that asyncio has just taken, unless it must stay with Python."""
        if signum == signal.SIGINT:
            return
        watch = self._watches.get(signum)
        if watch is not None:
            self._core.retake_signal(watch.key, previous)
            return
        key = self._core.open_signal(signum, previous)
        if key > 0:
            self._watches[signum] = watch = SignalWatch(self._loop, signum, key)
            self._core.registry.owners[key] = watch

    def give_back(self, signum: int) -> None:
        """Stop catching a signal that asyncio has just given up."""
        watch = self._watches.pop(signum, None)
        if watch is not None:
            self._core.close_signal(watch.key)

    def abandon(self) -> None:
        """In a forked child, after the core was abandoned: Python has the signals, as it has in asyncio's child."""
        for signum in self._watches:
            signal.signal(signum, signal.getsignal(signum))
            signal.siginterrupt(signum, False)

    def adopt(self) -> None:
        """In a forked child, after the core was adopted: the loop keeps its handlers."""
        for signum, watch in list(self._watches.items()):
            del self._watches[signum]
            self._core.close_signal(watch.key)  # stopped since the fork
            self.take_over(signum, self._core.signal_action(signum))
