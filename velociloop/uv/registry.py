"""Whose record is it: open handles by key, and what requests keep alive.

Facts (H8): a record can outlive its owner (a transport closed between ``poll`` and dispatch), and
some records hold a resource: an accepted connection, the buffer of a write.  Consequence: an owner
is found by key at dispatch, never kept in the record, and buffers belong to the *request*,
so that their release does not depend on an owner.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = ["Owner", "Registry"]


class Owner:
    """What an object must provide to own a handle: the events of its kind of handle, and
    :meth:`on_loop_close`.  Called by the dispatcher only."""

    __slots__ = ()

    def on_read(self, result: int, slab: Any, offset: int) -> None:
        """``result`` bytes were received, at ``slab[offset:]``; or an error code, or EOF."""
        raise NotImplementedError

    def on_written(self, status: int, size: int) -> None:
        """A queued write of ``size`` bytes has ended: 0, or an error code."""
        raise NotImplementedError

    def on_datagram(self, result: int, slab: Any, offset: int) -> None:
        """A datagram of ``result`` bytes was received: see ``VL_OP_DATAGRAM`` in uv.cdef; or an error code."""
        raise NotImplementedError

    def on_accept(self, result: int, slab: Any, offset: int) -> None:
        """A connection was accepted: its key; or an error code, and the listener has stopped."""
        raise NotImplementedError

    def on_poll(self, result: int) -> None:
        """The watched descriptor is ready: READABLE and WRITABLE; or an error code, and the watch
        has stopped."""
        raise NotImplementedError

    def on_signal(self, signum: int) -> None:
        """Signal ``signum`` was caught, once or more often."""
        raise NotImplementedError

    def on_exit(self, returncode: int) -> None:
        """The child process has ended and was reaped: its exit status, or the negated number of the
        signal that ended it."""
        raise NotImplementedError

    def on_wait(self, token: int) -> None:
        """The wait of this token is over: its descriptor is readable, or at its end."""
        raise NotImplementedError

    def enter_anew(self) -> None:
        """The next call comes while one of this owner's callbacks is still running (a nested
        turn): its ``contextvars.Context`` cannot be entered twice, so a copy must take over."""
        raise NotImplementedError

    def on_loop_close(self) -> None:
        """The loop closes; the handle closes after this returns."""
        raise NotImplementedError

    def on_adopt(self) -> None:
        """A forked child has taken the inherited loop into use (H11): let go of what is the parent's
        alone.  Nothing, for most."""


class Registry:
    """The one table of open handles, and the one of pinned buffers."""

    __slots__ = ("_last_token", "owners", "pins", "waits")

    def __init__(self) -> None:
        self.owners: dict[int, Owner] = {}
        #: token -> (size in bytes, cdata that keeps the written object where it is)
        self.pins: dict[int, tuple[int, Any]] = {}
        #: who hears of single waits, which have no handle
        self.waits: Owner | None = None
        self._last_token = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} owners={len(self.owners)} pins={len(self.pins)}>"

    def pin(self, size: int, cdata: Any) -> int:
        """Keep ``cdata`` until :meth:`unpin` and return the token to find it by."""
        self._last_token = token = self._last_token + 1
        self.pins[token] = (size, cdata)
        return token

    def unpin(self, token: int) -> int:
        """Release what ``token`` kept; returns its size in bytes."""
        return self.pins.pop(token)[0]
