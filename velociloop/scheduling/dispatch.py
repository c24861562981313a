"""From records to their owners: the only consumer of the ring.

Facts (H1): KeyboardInterrupt can strike anywhere, and a nested turn inside a callback
(nest_asyncio) may poll and dispatch while an outer dispatch is on the stack.  Seen with a naive
consumer: an interrupt in A's ``data_received`` lost B's bytes, and a nested turn handed C's
bytes to B.

Consequence: the read cursor (``words[HEAD]``) lives in the shim and moves *before* each dispatch;
every record is looked at anew through it, so whoever consumes, each record is consumed once and in
order.  ``words[FRAMES]`` counts dispatchers on the stack: while it is not 0, the shim does not
reuse the ring and the slab.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .._accelerator import speedups
from ..uv import ring as _ring
from ..uv.core import Core, exit_returncode
from ..uv.registry import Owner
from .callbacks import CallbackScope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Dispatcher", "DrainHandle"]

_READ = _ring.READ
_ACCEPT = _ring.ACCEPT
_WRITE_DONE = _ring.WRITE_DONE
_POLL = _ring.POLL
_SIGNAL = _ring.SIGNAL
_DATAGRAM = _ring.DATAGRAM
_EXIT = _ring.EXIT
_WAIT = _ring.WAIT
_HEAD = _ring.HEAD
_TAIL = _ring.TAIL
_FRAMES = _ring.FRAMES
_SHIFT = _ring.SEGMENT_SHIFT
_MASK = _ring.SEGMENT_MASK
_SIZE = _ring.RECORD.size
_unpack = _ring.RECORD.unpack_from


class DrainHandle(asyncio.Handle):
    """The entry of the ready queue that dispatches a poll's completions.

    A Handle, so that FIFO order, ``stop()`` and whoever looks into ``_ready`` see what they
    know.  It enters no context of its own: every owner has its own.  It holds no state, so one
    serves a loop for life, and being queued twice is harmless.
    """

    __slots__ = ("_dispatcher",)

    def __init__(self, dispatcher: Dispatcher, loop: Any) -> None:
        super().__init__(dispatcher.drain, (), loop)
        self._dispatcher = dispatcher

    def cancel(self) -> None:
        """Do nothing: whoever clears the ready queue must not end the dispatch for good."""

    def _run(self) -> None:
        try:
            self._dispatcher.drain()
        except BaseException:
            # KeyboardInterrupt or SystemExit out of a protocol: the run ends with it, and what
            # was received behind it comes first in the next run.
            self._requeue_rest()
            raise

    def _requeue_rest(self) -> None:
        if self._dispatcher.pending():
            self._dispatcher.requeue(self)


class PyDispatcherBase:
    """What the accelerator's ``DispatcherBase`` does in C.

    The subclass must provide ``_drain_in_python()``.
    """

    __slots__ = ()

    def _drain_in_python(self) -> None:
        raise NotImplementedError

    def drain(self) -> None:
        """Dispatch records until the ring is empty."""
        self._drain_in_python()

    def _attach(
        self, pointer: Any, address: int, owners: dict[int, Owner], scope: CallbackScope, report: Any, waits: Any
    ) -> None:
        """Hand the accelerator what it works on."""


DispatcherBase = PyDispatcherBase
if speedups is not None and not TYPE_CHECKING:
    DispatcherBase = speedups.DispatcherBase


class Dispatcher(DispatcherBase):
    """Pops records and calls their owners.

    ``requeue`` puts a handle back at the head of the ready queue.  ``report`` takes an exception
    that an owner let through, which is a defect of ours: users' exceptions are the owners' matter.
    """

    __slots__ = ("_core", "_report", "_ring", "_scope", "requeue")

    def __init__(
        self,
        core: Core,
        scope: CallbackScope,
        requeue: Callable[[Any], None],
        report: Callable[[BaseException, Any], None],
    ) -> None:
        self._core = core
        self._ring = core.ring
        self._scope = scope
        self.requeue = requeue
        self._report = report
        self._attach(core.pointer, core.address, core.registry.owners, scope, report, core.registry.waits)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} frames={self._ring.words[_FRAMES]} {self._ring!r}>"

    def pending(self) -> int:
        """Return the number of records that nobody has consumed."""
        return len(self._ring)

    def _drain_in_python(self) -> None:
        """Dispatch records until the ring is empty."""
        ring = self._ring
        words = ring.words
        segments = ring.segments
        slabs = ring.slabs
        owners = self._core.registry.owners
        scope = self._scope
        corked = scope.corked
        outer = words[_FRAMES]
        words[_FRAMES] = outer + 1
        try:
            while True:
                head = words[_HEAD]
                if head == words[_TAIL]:
                    return
                try:
                    segment = segments[head >> _SHIFT]
                except IndexError:
                    ring.grow(head >> _SHIFT)
                    segment = segments[head >> _SHIFT]
                key, operation, number, result, aux = _unpack(segment, (head & _MASK) * _SIZE)
                scope.serial += 1
                if operation == _READ:
                    try:
                        slab = slabs[number]
                    except IndexError:
                        ring.grow_slab(number)
                        slab = slabs[number]
                    owner = owners.get(key)
                    words[_HEAD] = head + 1
                    if owner is None:
                        continue  # closed after the poll: nobody wants these bytes
                    if outer:
                        owner.enter_anew()
                    try:
                        owner.on_read(result, slab, aux)
                    except Exception as exc:
                        self._report(exc, owner)
                else:
                    words[_HEAD] = head + 1
                    self._dispatch_other(key, operation, number, result, aux, outer)
                if corked:
                    scope.end()
        finally:
            words[_FRAMES] = outer
            if corked:
                scope.end()

    def _read_in_python(self, owner: Owner, number: int, result: int, aux: int) -> None:
        """Have an owner read what the accelerator leaves to it."""
        self._ring.grow_slab(number)
        owner.on_read(result, self._ring.slabs[number], aux)

    def _datagram_in_python(self, owner: Owner, number: int, result: int, aux: int) -> None:
        """The same for a datagram."""
        self._ring.grow_slab(number)
        owner.on_datagram(result, self._ring.slabs[number], aux)

    def owners_of_pending(self) -> list[Owner | None]:
        """Return the owner of each record that nobody has consumed, in order."""
        words = self._ring.words
        return [self._owner_at(position) for position in range(words[_HEAD], words[_TAIL])]

    def dispatch_one(self) -> None:
        """Dispatch the next record, if there is one (debug mode: one Handle a record)."""
        ring = self._ring
        words = ring.words
        head = words[_HEAD]
        if head == words[_TAIL]:
            return  # a nested turn was here before
        outer = words[_FRAMES]
        words[_FRAMES] = outer + 1
        try:
            key, operation, number, result, aux = self._record_at(head)
            words[_HEAD] = head + 1
            if operation == _READ:
                owner = self._core.registry.owners.get(key)
                if owner is not None:
                    if outer:
                        owner.enter_anew()
                    ring.grow_slab(number)
                    owner.on_read(result, ring.slabs[number], aux)
            else:
                self._dispatch_other(key, operation, number, result, aux, outer)
        finally:
            words[_FRAMES] = outer
            self._scope.end()

    def _record_at(self, position: int) -> tuple[int, int, int, int, int]:
        ring = self._ring
        ring.grow(position >> _SHIFT)
        record: tuple[int, int, int, int, int] = _unpack(
            ring.segments[position >> _SHIFT], (position & _MASK) * _SIZE
        )
        return record

    def _owner_at(self, position: int) -> Owner | None:
        return self._core.registry.owners.get(self._record_at(position)[0])

    def _dispatch_other(
        self, key: int, operation: int, number: int, result: int, aux: int, nested: int
    ) -> None:
        registry = self._core.registry
        owner = registry.owners.get(key)
        if nested and owner is not None:
            owner.enter_anew()
        try:
            if operation == _DATAGRAM:
                if owner is not None:  # else closed after the poll: nobody wants it
                    self._ring.grow_slab(number)
                    owner.on_datagram(result, self._ring.slabs[number], aux)
            elif operation == _ACCEPT:
                if owner is None:
                    # H8: "a record whose server has closed meanwhile closes its descriptor".
                    if result > 0:
                        self._core.close_handle(result)
                elif result > 0:
                    self._ring.grow_slab(number)
                    owner.on_accept(result, self._ring.slabs[number], aux)
                else:
                    owner.on_accept(result, None, 0)
            elif operation == _WRITE_DONE:
                # The pin is the request's: it goes whether the owner lives or not.
                size = registry.unpin(aux)
                if owner is not None:
                    owner.on_written(result, size)
            elif operation == _WAIT:
                owner = registry.waits
                if owner is not None:
                    owner.on_wait(aux)
            elif owner is None:
                pass  # closed after the poll; these records hold nothing
            elif operation == _POLL:
                owner.on_poll(result)
            elif operation == _SIGNAL:
                owner.on_signal(result)
            elif operation == _EXIT:
                owner.on_exit(exit_returncode(result, aux))
            else:
                raise RuntimeError(f"unknown operation {operation} in the ring")
        except Exception as exc:
            self._report(exc, owner)


if speedups is None:
    Dispatcher.drain = Dispatcher._drain_in_python  # type: ignore[method-assign, assignment]  # without a frame between
else:
    speedups.register_dispatcher(Dispatcher, DrainHandle)
