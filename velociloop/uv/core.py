"""The shim's entries, one to one.  Binds and does nothing else.

Errors come back as negative codes where the caller has to look at them on a hot path
(:meth:`Core.try_write`), and as exceptions elsewhere.
"""

from __future__ import annotations

import errno
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .._platform import NATIVE_CODES_ARE_ERRNO
from . import errors
from ._ffi import ffi, lib
from .registry import Registry
from .ring import EXIT, Ring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Core",
    "Statistics",
    "child_returncode",
    "exports_address",
    "libuv_version",
    "pidfd_open",
    "stdio_held",
]

STREAM_TCP: int = lib.VL_STREAM_TCP
STREAM_PIPE: int = lib.VL_STREAM_PIPE
POLL_RECORDS: int = lib.VL_POLL_RECORDS
POLL_SELECTOR: int = lib.VL_POLL_SELECTOR
READABLE: int = lib.VL_READABLE
WRITABLE: int = lib.VL_WRITABLE
RECEIVE: int = lib.VL_RECEIVE
ERR_FOREIGN: int = lib.VL_ERR_FOREIGN
SEND_DATAGRAM: Callable[[Any, int, bytes, int, bytes, int], int] = lib.vl_udp_try_send
STREAM_TRY_WRITE: Callable[[Any, int, bytes, int], int] = lib.vl_stream_try_write

# What asyncio reads from a stream at once.
RECEIVE_BYTES = 256 * 1024

# libuv reports whole requests, while asyncio's low-water mark counts unsent bytes: so queued data
# goes to libuv in requests of at most this size, ...
WRITE_REQUEST_BYTES = 256 * 1024
# ... and the last bytes, as many as the mark, in this many: the first of them begins at the mark, and
# if later writes push it back, the protocol resumes at most a quarter of the mark late.
LOW_WATER_REQUESTS = 4
LEAST_REQUEST_BYTES = 4096

_NAME_BYTES = 128
_EINTR = -errno.EINTR if NATIVE_CODES_ARE_ERRNO else 0  # waitid(2)'s; there is none on Windows


class Statistics(
    namedtuple(
        "Statistics",
        ["handles", "closing", "writes", "records", "polls", "ring_segments", "slab_segments"],
        defaults=(0, 0, 0, 0, 0, 0, 0),
    )
):
    """Counters of one loop, for tests and operators.

    ``handles``, ``closing`` and ``writes`` are libuv handles that the loop's user has open, handles that
    are being closed, and queued write requests; all are 0 on a loop with nothing open.
    ``records`` are waiting to be dispatched now; ``polls`` counts turns of libuv so far.  ``ring_segments``
    and ``slab_segments`` are memory: 32 KiB and 1 MiB each.
    """

    __slots__ = ()


class Core:
    """One ``vl_core``: a libuv loop, its ring and its slab."""

    def __init__(self) -> None:
        error = ffi.new("int *")
        pointer = lib.vl_core_new(error)
        if pointer == ffi.NULL:
            raise errors.exception_for(error[0])
        # The memory outlives the libuv loop: a late wake() finds its lock (H11).
        self.pointer = ffi.gc(pointer, lib.vl_core_free)
        #: vl_stream_try_write itself, for hot paths: (pointer, key, bytes, size in bytes) -> sent or code.
        self.send: Callable[[Any, int, bytes, int], int] = STREAM_TRY_WRITE
        #: vl_udp_try_send itself: (pointer, key, bytes, size, receiver's struct sockaddr, its size) -> size or code.
        self.send_datagram: Callable[[Any, int, bytes, int, bytes, int], int] = SEND_DATAGRAM
        self._name = ffi.new("char[]", _NAME_BYTES)  # where close_stream() finds addresses
        self._received: Any = None  # where receive() reads to, made when needed
        self.ring = Ring(self.pointer)
        self.registry = Registry()
        self.closed = False

    def __repr__(self) -> str:
        if self.closed:
            return f"<{type(self).__name__} closed>"
        state = "foreign" if self.foreign else "open"
        return f"<{type(self).__name__} {state} handles={len(self.registry.owners)} pins={len(self.registry.pins)}>"

    @property
    def address(self) -> int:
        """The address that :attr:`pointer` holds, for the accelerator."""
        return int(ffi.cast("uintptr_t", self.pointer))

    def close(self) -> None:
        """Close all handles and the libuv loop; pinned buffers are released."""
        errors.check(lib.vl_core_close(self.pointer))
        self.closed = True
        self.registry.owners.clear()
        self.registry.pins.clear()

    def wake(self) -> None:
        """Make the current or next poll return.  From any thread; never raises."""
        lib.vl_core_wake(self.pointer)

    def check(self) -> None:
        """Raise OSError if libuv's own descriptor was closed or replaced by somebody."""
        errors.check(lib.vl_core_check(self.pointer))

    def abandon(self) -> None:
        """In a forked child: leave everything to the parent."""
        lib.vl_core_abandon(self.pointer)

    def adopt(self) -> None:
        """In a forked child: take the core into use with kernel objects of its own."""
        errors.check(lib.vl_core_adopt(self.pointer))

    @property
    def foreign(self) -> bool:
        """Whether the core is a forked child's inheritance, not adopted yet."""
        return bool(lib.vl_core_is_foreign(self.pointer))

    def statistics(self) -> Statistics:
        """Return the counters of now."""
        out = ffi.new("vl_statistics *")
        lib.vl_core_statistics(self.pointer, out)
        return Statistics(
            handles=out.handles,
            closing=out.closing,
            writes=out.writes,
            records=len(self.ring),
            polls=out.polls,
            ring_segments=out.ring_segments,
            slab_segments=out.slab_segments,
        )

    # -- handles ---------------------------------------------------------------

    def close_handle(self, key: int) -> int:
        """Close a handle; its owner hears nothing more.  Returns 0 or an error code."""
        if self.closed:
            return 0  # also from a __del__, where the memory behind the pointer may be gone
        self.registry.owners.pop(key, None)
        return int(lib.vl_handle_close(self.pointer, key))

    def fileno(self, key: int) -> int:
        """Return the descriptor of a handle."""
        return errors.check(lib.vl_handle_fileno(self.pointer, key))

    def open_stream(self, kind: int, fd: int) -> int:
        """Open a stream on ``fd`` and return its key.  ``fd`` is gone, on failure too."""
        return errors.check(lib.vl_stream_open(self.pointer, kind, fd))

    def sockname(self, key: int) -> bytes:
        """Return the raw ``struct sockaddr`` that a stream is bound to; empty if it has none."""
        if self.closed:
            return b""
        name = ffi.new("char[]", _NAME_BYTES)
        size = lib.vl_stream_sockname(self.pointer, key, name, _NAME_BYTES)
        return bytes(ffi.buffer(name, size)[:]) if size > 0 else b""

    def close_stream(self, key: int) -> bytes:
        """Close a handle and return the raw ``struct sockaddr`` that it was bound to, empty if it has none.

        Of what is no stream none is known here.
        """
        if self.closed:
            return b""  # as in close_handle()
        self.registry.owners.pop(key, None)
        size = lib.vl_stream_close(self.pointer, key, self._name, _NAME_BYTES)
        return bytes(ffi.unpack(self._name, size)) if size > 0 else b""

    def start_reading(self, key: int) -> int:
        """Let received bytes become READ records.  Returns 0 or an error code of the connection."""
        return errors.raise_if_refused(lib.vl_stream_read_start(self.pointer, key))

    def stop_reading(self, key: int) -> int:
        """No more READ records from the next poll on.  Returns 0 or an error code."""
        return _raise_unless_foreign(lib.vl_stream_read_stop(self.pointer, key))

    def receive(self, key: int) -> bytes | int:
        """Read once from a stream that has announced much (a READ record without bytes).

        Returns bytes, or an error code: EOF, EAGAIN if there is nothing.
        """
        if self._received is None:
            self._received = ffi.new("char[]", RECEIVE_BYTES)
        size = int(lib.vl_stream_receive(self.pointer, key, self._received, RECEIVE_BYTES))
        return bytes(ffi.buffer(self._received, size)) if size > 0 else size

    def receive_into(self, key: int, target: memoryview) -> int:
        """The same into writable memory; returns the number of bytes, or an error code."""
        with ffi.from_buffer(target) as view:
            return int(lib.vl_stream_receive(self.pointer, key, view, len(view)))

    def try_write(self, key: int, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes now; returns the number of bytes, or an error code."""
        if type(data) is bytes:
            return int(lib.vl_stream_try_write(self.pointer, key, data, len(data)))
        # Let go at once, on PyPy too: the caller may resize its buffer when this returns.
        with ffi.from_buffer(data) as view:
            return int(lib.vl_stream_try_write(self.pointer, key, view, len(view)))

    def try_write2(self, key: int, first: bytes, second: bytes) -> int:
        """The same for two objects, in one system call."""
        return int(lib.vl_stream_try_write2(self.pointer, key, first, len(first), second, len(second)))

    def queue_write(self, key: int, data: bytes, start: int, low_water: int) -> tuple[int, int]:
        """Have libuv send ``data[start:]`` as the peer takes it.

        Completions come often enough to tell when at most ``low_water`` bytes are unsent.
        Returns the number of bytes that libuv has taken over and, where that is not all of them, the
        error code that stopped it (0 otherwise).

        The object is pinned by the requests until their completion records are dispatched.
        """
        view = ffi.from_buffer(data)
        registry = self.registry
        begin = start
        for size in _request_sizes(len(data) - start, low_water):
            token = registry.pin(size, view)
            status = int(lib.vl_stream_write(self.pointer, key, token, view + begin, size))
            if status < 0:
                registry.unpin(token)
                break
            begin += size
        else:
            status = 0
        return begin - start, status

    def unsent(self, key: int) -> int:
        """Return how many queued bytes the kernel has not taken yet, or an error code."""
        return int(lib.vl_stream_unsent(self.pointer, key))

    def shutdown(self, key: int) -> None:
        """End the sending direction: shutdown(2) with SHUT_WR."""
        errors.check(lib.vl_stream_shutdown(self.pointer, key))

    def open_udp(self, fd: int) -> int:
        """Open a UDP handle on ``fd`` and return its key.  ``fd`` is gone, on failure too."""
        return errors.check(lib.vl_udp_open(self.pointer, fd))

    def start_receiving(self, key: int) -> int:
        """Let received datagrams become DATAGRAM records.  Returns 0 or an error code of the socket."""
        return errors.raise_if_refused(lib.vl_udp_recv_start(self.pointer, key))

    def stop_receiving(self, key: int) -> int:
        """No more DATAGRAM records from the next poll on.  Returns 0 or an error code."""
        return _raise_unless_foreign(lib.vl_udp_recv_stop(self.pointer, key))

    def queue_datagram(self, key: int, data: bytes, receiver: bytes) -> int:
        """Have libuv send ``data`` when the kernel has room for it; returns 0 or an error code.

        ``receiver`` is a raw ``struct sockaddr``, empty on a connected socket.  ``data`` is pinned by the
        request until its completion record is dispatched.
        """
        token = self.registry.pin(len(data), view := ffi.from_buffer(data))
        status = int(lib.vl_udp_send(self.pointer, key, token, view, len(data), receiver, len(receiver)))
        if status < 0:
            self.registry.unpin(token)
        return status

    def open_listener(self, kind: int, fd: int, batch: int) -> int:
        """Accept on ``fd``, at most ``batch`` connections a poll; returns the key."""
        return errors.check(lib.vl_listener_open(self.pointer, kind, fd, batch))

    def restart_listener(self, key: int) -> int:
        """Accept again after an error record.  Returns 0 or an error code."""
        return int(lib.vl_listener_restart(self.pointer, key))

    def open_poll(self, fd: int) -> int:
        """Watch ``fd``, which stays the caller's, for nothing yet; returns the key."""
        return errors.check(lib.vl_poll_open(self.pointer, fd))

    def set_poll(self, key: int, events: int) -> int:
        """Have POLL records made for ``events`` (READABLE, WRITABLE; 0: none), READ records for RECEIVE.

        Returns 0 or an error code.
        """
        return errors.raise_if_refused(lib.vl_poll_events(self.pointer, key, events))

    def reduce_poll(self, key: int, events: int) -> int:
        """The same for less than before."""
        status = int(lib.vl_poll_events(self.pointer, key, events))
        # As in stop_reading().
        return status if status == ERR_FOREIGN else errors.raise_if_refused(status)

    def arm_wait(self, fd: int, token: int) -> int:
        """Wait for ``fd`` to be readable, once: a WAIT record with ``token``.  Returns 0 or an error code."""
        return errors.raise_if_refused(lib.vl_wait_arm(self.pointer, fd, token))

    def forget_wait(self, fd: int) -> None:
        """End the wait for ``fd``, if there is one.  It may have been closed."""
        lib.vl_wait_forget(self.pointer, fd)

    def write_descriptor(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        """write(2) what the kernel takes now (0: nothing); returns the number of bytes, or an error code."""
        if type(data) is bytes:
            return int(lib.vl_descriptor_write(self.pointer, fd, data, len(data)))
        with ffi.from_buffer(data) as view:  # let go at once, as in try_write()
            return int(lib.vl_descriptor_write(self.pointer, fd, view, len(view)))

    def signal_action(self, signum: int) -> bytes:
        """Return what a signal does now (a ``struct sigaction``), for :meth:`open_signal`."""
        action = ffi.new("char[]", lib.VL_ACTION_BYTES)
        errors.check(lib.vl_signal_action(signum, action))
        return bytes(ffi.buffer(action))

    def open_signal(self, signum: int, previous: bytes) -> int:
        """Have libuv catch a signal that Python has just taken; ``previous`` is its action before that.

        Returns the key, or an error code: Python has the signal then, as before.
        """
        return errors.raise_if_refused(lib.vl_signal_open(self.pointer, signum, previous))

    def retake_signal(self, key: int, previous: bytes) -> int:
        """Take a signal back that Python has taken again.  Returns 0 or an error code: Python keeps it."""
        return errors.raise_if_refused(lib.vl_signal_retake(self.pointer, key, previous))

    def close_signal(self, key: int) -> int:
        """Close a signal handle; what the signal does stays what it is now.  Returns 0 or an error code."""
        if self.closed:
            return 0
        self.registry.owners.pop(key, None)
        return int(lib.vl_signal_close(self.pointer, key))

    def spawn(
        self,
        file: bytes,
        args: list[bytes],
        env: list[bytes] | None,
        cwd: bytes | None,
        descriptors: tuple[int, int, int],
        new_session: bool,
    ) -> tuple[int, int]:
        """Start a child that libuv reaps; returns the key of its handle and the process id, or an
        error code and 0.

        ``descriptors`` become 0, 1 and 2 of the child and stay the caller's; no other is inherited.
        ``env`` (NAME=value) None and ``cwd`` None are this process's own.
        """
        # Kept by these names until the call returns: an array holds addresses, not objects.
        argv = [ffi.new("char[]", item) for item in args]
        environment = [ffi.new("char[]", item) for item in env or ()]
        pid = ffi.new("int *")
        key = lib.vl_process_spawn(
            self.pointer,
            file,
            ffi.new("char *[]", [*argv, ffi.NULL]),
            ffi.NULL if env is None else ffi.new("char *[]", [*environment, ffi.NULL]),
            ffi.NULL if cwd is None else cwd,
            *descriptors,
            lib.VL_PROCESS_NEW_SESSION if new_session else 0,
            pid,
        )
        return errors.raise_if_refused(key), int(pid[0])

    def pending_returncode(self, key: int) -> int | None:
        """Return what an EXIT record says that was not dispatched yet; None if there is none."""
        found = self.ring.find(key, EXIT)
        return None if found is None else exit_returncode(*found)

    def open_selector(self, fd: int) -> int:
        """Watch the descriptor of a selector; returns the key."""
        return errors.check(lib.vl_selector_open(self.pointer, fd))


def _raise_unless_foreign(status: int) -> int:
    # A forked child may clean up what it has inherited: nothing reads there anyway.
    return status if status == ERR_FOREIGN else errors.raise_if_refused(status)


def exit_returncode(result: int, aux: int) -> int:
    """Return what an EXIT record says as ``subprocess`` does: exit status, or negated signal number."""
    return -aux if aux else result


def pidfd_open(pid: int) -> int:
    """Return a descriptor that is readable once process ``pid`` has ended (pidfd_open(2)).

    Raises OSError: ENOSYS where the system has none, ESRCH if there is no such process, EMFILE, ...
    """
    return errors.check(lib.vl_pidfd_open(pid))


def child_returncode(pid: int, pidfd: int = -1, *, wait: bool = False) -> int | None:
    """Return how a child has ended, as ``subprocess`` says it, and leave it to be reaped (waitid(2), WNOWAIT).

    ``pidfd``, if given, says which child is meant even if its ``pid`` has become another's.  None: it
    still runs.  ``wait``: return when it has ended.  Raises ChildProcessError if it is no child
    of this process, or somebody has reaped it.
    """
    code = ffi.new("int *")
    while True:
        status = lib.vl_child_look(pid, pidfd, wait, code)
        # Back in the interpreter, signal handlers run between two calls.
        if status != _EINTR:
            break
    return int(code[0]) if errors.check(status) else None


def _request_sizes(total: int, low_water: int) -> Iterator[int]:
    """Cut ``total`` bytes into write requests."""
    tail = min(low_water, total)
    piece = max(low_water // LOW_WATER_REQUESTS, LEAST_REQUEST_BYTES)
    for part, largest in ((total - tail, WRITE_REQUEST_BYTES), (tail, min(piece, WRITE_REQUEST_BYTES))):
        for begin in range(0, part, largest):
            yield min(largest, part - begin)


@contextmanager
def stdio_held() -> Iterator[None]:
    """Within, no file that is opened gets one of the numbers 0-2 (H6).

    A process may have been started without them: what the loop opens for itself must not become its
    standard output, or what is printed lands in the loop's self-pipe.  Raises OSError.
    """
    held = ffi.new("int[3]")
    errors.check(lib.vl_stdio_hold(held))
    try:
        yield
    finally:
        lib.vl_stdio_release(held)


def exports_address() -> int:
    """Return the address of the shim's functions (``vl_exports``), for the accelerator."""
    return int(ffi.cast("uintptr_t", lib.vl_exported()))


def libuv_version() -> str:
    """Return the version of the libuv in use, such as ``"1.52.1"`` (``uv_version_string``)."""
    return str(ffi.string(lib.vl_libuv_version()).decode("ascii"))
