"""The end of a callback, as an event that transports can wait for.

Fact (H5): corked bytes must leave when the handle or callback that wrote them ends, and never
later.  asyncio has no such event, so the turn and the dispatcher provide it: both look at
:attr:`CallbackScope.wrote` after each callback, and empty it through :meth:`CallbackScope.end`.

:attr:`CallbackScope.active` says whether somebody will look.  It is false outside a
turn of ours: before the loop runs, in a turn that another library replaced (nest_asyncio), in
debug mode, where the inherited turn runs.  A transport then must not wait.
"""

from typing import Protocol

__all__ = ["CallbackScope", "Writer"]


class Writer(Protocol):
    """What wants to know that the callback in which it was written to has ended."""

    def on_callback_end(self) -> None:
        """Send what was held back.  Must not raise but KeyboardInterrupt and SystemExit."""


class CallbackScope:
    """Which transports were written to in the callback that is running now."""

    __slots__ = ("active", "wrote")

    def __init__(self) -> None:
        self.active = False
        self.wrote: list[Writer] = []

    def end(self) -> None:
        """Tell each; those that are written to meanwhile are told as well."""
        wrote = self.wrote
        while wrote:
            wrote.pop(0).on_callback_end()
