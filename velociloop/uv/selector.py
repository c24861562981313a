"""One turn of libuv as a ``selectors.BaseSelector``: what asyncio's loop calls ``_selector``.

Facts (H6): libuv aborts when a descriptor that it watches is closed under it, or is a plain file;
both are ordinary user mistakes with ``add_reader``.  Choice (DESIGN): *user* descriptors live in an
epoll or kqueue instance of their own, Python's ``selectors.DefaultSelector``, whose descriptor libuv
watches like any other.  A nested one is harmless.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping
from math import ceil

from .._platform import new_selector
from . import errors
from ._ffi import lib
from .core import ERR_FOREIGN, POLL_RECORDS, POLL_SELECTOR, Core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Selector", "no_preparation"]

_NS = 1_000_000_000
_LONGEST_WAIT_NS = 24 * 3600 * _NS  # what the shim clamps to, and what int64_t holds for sure

_Events = list[tuple[selectors.SelectorKey, int]]


def no_preparation() -> None:
    """Stand for "nothing to do before a wait"."""


class Selector(selectors.BaseSelector):
    """Waits for libuv and for registered descriptors alike.

    ``on_select`` is called first in every ``select``.
    ``before_wait`` is called before a ``select`` that may block; it may replace itself.
    ``on_foreign`` is called when the loop turns out to be a forked child's inheritance.
    """

    def __init__(self, core: Core, on_select: Callable[[], None]) -> None:
        self._core = core
        self._on_select = on_select
        self._pointer = core.pointer
        self._inner: Any = new_selector()
        try:
            self._key = core.open_selector(self._inner.fileno())
        except BaseException:
            self._inner.close()
            raise
        #: The numbers that are registered.
        self.watched: set[int] = set()
        #: Whether the last select() has left undrained records in the ring.
        self.has_records = False
        self.before_wait: Callable[[], None] = no_preparation
        self.on_foreign: Callable[[], None] = no_preparation

    def __repr__(self) -> str:
        watched = self._inner.get_map()
        state = "closed" if watched is None else f"watching {len(watched)} descriptors"
        return f"<{type(self).__name__} {state} on {self._core!r}>"

    def wait_unprepared(self) -> None:
        """Forget ``before_wait``: it has done its work for this run."""
        self.before_wait = no_preparation

    def select(self, timeout: float | None = None) -> _Events:
        """Run libuv once, waiting at most ``timeout`` seconds (None: without limit).

        Returns the registered descriptors that are ready, as ``BaseSelector.select`` does; what
        libuv completed is in the ring.  With undrained records in the ring it returns at once.
        """
        self._on_select()
        if timeout is None:
            self.before_wait()
            ready = lib.vl_core_poll(self._pointer, -1)
        elif timeout <= 0:
            ready = lib.vl_core_poll(self._pointer, 0)
        else:
            self.before_wait()
            # Rounded up: a wait that ends early costs a turn.
            ready = lib.vl_core_poll(self._pointer, min(ceil(timeout * _NS), _LONGEST_WAIT_NS))
        return self.on_polled(ready, timeout)

    def on_polled(self, ready: int, timeout: float | None) -> _Events:
        """Return what :meth:`select` does, of ``vl_core_poll``'s result after ``timeout``; also for the accelerator."""
        if ready < 0:
            if ready != ERR_FOREIGN:
                raise errors.exception_for(ready)
            self.on_foreign()
            return self.select(timeout)
        self.has_records = bool(ready & POLL_RECORDS)
        if ready & POLL_SELECTOR:
            events: _Events = self._inner.select(0)
            return events
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As ``BaseSelector.register``."""
        key: selectors.SelectorKey = self._inner.register(fileobj, events, data)
        self.watched.add(key.fd)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As ``BaseSelector.unregister``."""
        key: selectors.SelectorKey = self._inner.unregister(fileobj)
        self.watched.discard(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As ``BaseSelector.modify``."""
        key: selectors.SelectorKey = self._inner.modify(fileobj, events, data)
        return key

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """As ``BaseSelector.get_map``: None after :meth:`close`, as the standard selectors."""
        mapping: Mapping[Any, selectors.SelectorKey] = self._inner.get_map()
        return mapping

    def close(self) -> None:
        """Stop watching everything.  The core stays."""
        self._core.close_handle(self._key)
        self._inner.close()

    # -- fork (H11) --------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: keep the registrations, let go of the parent's kernel object.

        "A forked child that closes an inherited handle removes it from the shared epoll: the
        parent never reads again."  Closing the descriptor itself is harmless.
        """
        inherited = self._inner
        if inherited.get_map() is None:
            return  # closed before the fork
        remembered: Any = selectors.SelectSelector()  # no kernel object: a table
        self._inner = remembered
        # By number: a registered socket object that was closed meanwhile has none any more.
        for key in inherited.get_map().values():
            remembered.register(key.fd, key.events, key.data)
        inherited.close()

    def adopt(self) -> None:
        """In a forked child, after the core was adopted: watch the same descriptors anew."""
        remembered = self._inner
        self._core.close_handle(self._key)
        self._inner = new_selector()
        self._key = self._core.open_selector(self._inner.fileno())
        for key in remembered.get_map().values():
            try:
                self._inner.register(key.fd, key.events, key.data)
            except OSError:
                # Closed since it was registered: epoll would have dropped it by itself.
                continue
        remembered.close()
