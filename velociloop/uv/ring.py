"""Records and received bytes, seen from Python.

Facts: a cffi struct field costs a cdata object and a lookup, one ``Struct.unpack_from`` on
an ``ffi.buffer`` reads a whole record; slicing an ``ffi.buffer`` copies straight into a
``bytes``.  Segments never move and are never freed before the core (shim_ring.c), so a buffer
object made once stays good.  Consequence: one buffer object a segment, kept for ever.
"""

from __future__ import annotations

import struct
import sys

from ._ffi import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ACCEPT",
    "DATAGRAM",
    "DATAGRAM_HEADER_BYTES",
    "EXIT",
    "FRAMES",
    "HEAD",
    "POLL",
    "READ",
    "RECORD",
    "SEGMENT_MASK",
    "SEGMENT_SHIFT",
    "SIGNAL",
    "TAIL",
    "WAIT",
    "WRITE_DONE",
    "Ring",
    "raw_address",
]

READ: int = lib.VL_OP_READ
WRITE_DONE: int = lib.VL_OP_WRITE_DONE
ACCEPT: int = lib.VL_OP_ACCEPT
POLL: int = lib.VL_OP_POLL
SIGNAL: int = lib.VL_OP_SIGNAL
DATAGRAM: int = lib.VL_OP_DATAGRAM
EXIT: int = lib.VL_OP_EXIT
WAIT: int = lib.VL_OP_WAIT

#: A datagram begins so many bytes after the place that its record names; the sender's address comes before it.
DATAGRAM_HEADER_BYTES: int = lib.VL_DATAGRAM_HEADER

HEAD: int = lib.VL_WORD_HEAD
TAIL: int = lib.VL_WORD_TAIL
FRAMES: int = lib.VL_WORD_FRAMES

#: owner, operation, slab segment, result, aux: struct vl_record
RECORD = struct.Struct("=qiiqq")

SEGMENT_SHIFT: int = lib.VL_RING_SEGMENT_RECORDS.bit_length() - 1
SEGMENT_MASK: int = lib.VL_RING_SEGMENT_RECORDS - 1

_SEGMENT_BYTES: int = lib.VL_RING_SEGMENT_RECORDS * RECORD.size
_WORD_BYTES = 8
_PYPY = sys.implementation.name == "pypy"
_ADDRESS_LENGTH = struct.Struct("=q")


class Ring:
    """The completion ring of one core, and the slab that goes with it."""

    __slots__ = ("_core", "segments", "slabs", "words")

    def __init__(self, core: Any) -> None:
        self._core = core
        words = lib.vl_core_words(core)
        if not _PYPY:
            # 25 ns a look instead of 30-50; on PyPy the cdata costs 1 ns and this 110.
            words = memoryview(ffi.buffer(words, lib.VL_WORDS * _WORD_BYTES)).cast("q")
        #: HEAD, TAIL and FRAMES, shared with the shim
        self.words: Any = words
        self.segments: list[Any] = []
        self.slabs: list[Any] = []

    def __repr__(self) -> str:
        memory = f"{len(self.segments)} segments, {len(self.slabs)} slabs"
        return f"<{type(self).__name__} {len(self)} records pending, {memory} seen>"

    def grow(self, index: int) -> None:
        """Make ``segments[index]`` exist, which the shim has filled."""
        while len(self.segments) <= index:
            address = lib.vl_ring_segment(self._core, len(self.segments))
            self.segments.append(ffi.buffer(address, _SEGMENT_BYTES))

    def grow_slab(self, index: int) -> None:
        """Make ``slabs[index]`` exist, which the shim has filled."""
        while len(self.slabs) <= index:
            address = lib.vl_slab_segment(self._core, len(self.slabs))
            self.slabs.append(ffi.buffer(address, lib.VL_SLAB_SEGMENT_BYTES))

    def find(self, owner: int, operation: int) -> tuple[int, int] | None:
        """Return result and aux of the first such record that nobody has consumed, if there is one."""
        for position in range(self.words[HEAD], self.words[TAIL]):
            self.grow(position >> SEGMENT_SHIFT)
            segment = self.segments[position >> SEGMENT_SHIFT]
            key, found, _, result, aux = RECORD.unpack_from(segment, (position & SEGMENT_MASK) * RECORD.size)
            if key == owner and found == operation:
                return result, aux
        return None

    def __len__(self) -> int:
        return int(self.words[TAIL] - self.words[HEAD])


def raw_address(slab: Any, offset: int) -> bytes:
    """Return the raw ``struct sockaddr`` of an ACCEPT or DATAGRAM record (see uv.cdef)."""
    (length,) = _ADDRESS_LENGTH.unpack_from(slab, offset)
    start = offset + _ADDRESS_LENGTH.size
    return bytes(slab[start : start + length])
