"""The end of a callback, as an event that transports can wait for.

Fact (H5): corked bytes must leave when the handle or callback that wrote them ends, and never
later.  asyncio has no such event, so the turn and the dispatcher provide it: both number the
callbacks in :attr:`CallbackScope.serial`, look at :attr:`CallbackScope.corked` after each, and
empty it through :meth:`CallbackScope.end`.

:attr:`CallbackScope.active` says whether somebody will look.  It is false outside a
turn of ours: before the loop runs, in a turn that another library replaced (nest_asyncio), in
debug mode, where the inherited turn runs.  A transport then must not wait.
"""

from __future__ import annotations

from .._accelerator import speedups
from .._compat import format_callback_source
from ..uv.core import exports_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol
else:
    Protocol = object

__all__ = ["CallbackScope", "PyCallbackScope", "Writer", "report_callback_error"]


class Writer(Protocol):
    """What holds something back until the callback in which it was written to has ended."""

    def on_callback_end(self) -> None:
        """Send what was held back.  Must not raise but KeyboardInterrupt and SystemExit."""

    def on_abandon(self) -> None:
        """In a forked child: forget what was held back, which the parent sends."""


class CallbackScope:
    """Which callback is running now, and which transports hold something back in it."""

    __slots__ = ("active", "corked", "serial")

    def __init__(self) -> None:
        self.active = False
        #: Another number in every callback.  A nested turn changes it under an outer callback, whose
        #: next write then counts as its first: it leaves at once, in order.
        self.serial = 0
        self.corked: list[Writer] = []

    def __repr__(self) -> str:
        state = "active" if self.active else "idle"
        return f"<{type(self).__name__} {state} serial={self.serial} corked={len(self.corked)}>"

    def suspend(self) -> None:
        """A turn waits now, perhaps one inside a callback, whose handles nobody watches for their end (H5)."""
        self.active = False
        if self.corked:
            self.end()

    def abandon(self) -> None:
        """In a forked child, perhaps within a callback, which goes on here as well."""
        self.active = False
        for writer in self.corked:
            writer.on_abandon()
        self.corked.clear()

    def end(self) -> None:
        """Tell each; those that are written to meanwhile are told as well."""
        corked = self.corked
        while corked:
            # Out of the list first: a nested turn in there comes by and empties it.
            writer = corked.pop(0)
            try:
                writer.on_callback_end()
            except (KeyboardInterrupt, SystemExit):
                corked.insert(0, writer)  # what it still holds back leaves at the next end
                raise


def report_callback_error(handle: Any, exc: BaseException) -> None:
    """Tell the loop's exception handler what a callback has raised, in the words of ``asyncio.Handle._run``.

    For the accelerator, which calls callbacks without ``_run``.
    """
    loop = handle._loop
    context = {
        "message": f"Exception in callback {format_callback_source(handle._callback, handle._args, loop.get_debug())}",
        "exception": exc,
        "handle": handle,
    }
    if handle._source_traceback:
        context["source_traceback"] = handle._source_traceback
    loop.call_exception_handler(context)


PyCallbackScope = CallbackScope
if speedups is not None and not TYPE_CHECKING:
    # The first module that has use for it tells it what it must know.
    speedups.configure(exports_address(), report_callback_error)
    CallbackScope = speedups.CallbackScope
