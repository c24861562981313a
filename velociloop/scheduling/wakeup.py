"""Ctrl-C and Python-level signal handlers while libuv waits.

Facts (H10): libuv's poll swallows EINTR, so a signal whose handler is Python's ends no wait by
itself.  ``signal.set_wakeup_fd`` has the C-level handler write a byte, which does.  The interpreter
runs the Python handler between two bytecodes, so right after the poll has returned.

Choice: armed by the main thread's first wait that may block, not when the run starts, because
nest_asyncio and others replace ``run_forever``; restored when the run ends; off in a forked child,
which shares the pipe with its parent.
"""

import signal
import threading

__all__ = ["SignalWakeup"]

_NONE = -1


def _in_main_thread() -> bool:
    # Not current_thread(), which makes a _DummyThread for a thread that Python does not know.
    return threading.get_ident() == threading.main_thread().ident


def _hear_signals() -> None:
    """Run the handlers of signals that have come.

    One that comes while ``set_wakeup_fd()`` is at work, but has not set the descriptor yet, writes nowhere: nothing
    but its handler tells the loop.  CPython runs handlers where the interpreter looks for them, which is at the
    beginning of each Python function such as this one, not behind each call of a C function; and the next thing that
    happens may be a wait without end.
    """


def _give_back(fd: int) -> int:
    """Have signals write to somebody else's descriptor again; returns the one before."""
    try:
        return signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except (OSError, ValueError):
        # Its owner has closed it meanwhile, and its number may be another file's, which blocks.
        return signal.set_wakeup_fd(_NONE)


class SignalWakeup:
    """Has signals write to one descriptor while the loop runs.

    Not armed --arm()--> armed --restore()--> not armed.  ``previous`` is what was set before.
    """

    __slots__ = ("_fd", "_previous")

    def __init__(self) -> None:
        self._fd = _NONE
        self._previous = _NONE

    def __repr__(self) -> str:
        state = "not armed" if self._fd == _NONE else f"armed fd={self._fd} previous={self._previous}"
        return f"<{type(self).__name__} {state}>"

    def arm(self, fd: int) -> None:
        """Have signals write to ``fd``, in the main thread; elsewhere do nothing.

        Python runs signal handlers in the main thread only, and only that one may set the
        descriptor (``signal.set_wakeup_fd``: "only be called from the main thread").
        """
        if not _in_main_thread():
            return
        try:
            previous = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        except ValueError:
            return  # "only works in main thread of the main interpreter": a subinterpreter hears no signals
        if previous != fd:
            self._previous = previous
        self._fd = fd
        _hear_signals()

    def restore(self) -> None:
        """Put back what was set before; nothing if somebody has set another since."""
        if self._fd == _NONE or not _in_main_thread():
            return
        mine, self._fd = self._fd, _NONE
        previous, self._previous = self._previous, _NONE
        found = _give_back(previous)
        # asyncio's remove_signal_handler() leaves none behind: that is nobody's.
        if found not in (mine, _NONE):
            _give_back(found)

    def set_again(self) -> None:
        """Undo that asyncio has unset the descriptor, with its last signal handler; nothing if not armed."""
        if self._fd != _NONE and _in_main_thread():
            signal.set_wakeup_fd(self._fd, warn_on_full_buffer=False)

    def mute(self, fd: int) -> None:
        """Before ``fd`` is closed: no signal writes to it any more, nor into a descriptor that gets its number."""
        if _in_main_thread():
            self._unset(fd)

    def abandon(self, fd: int) -> None:
        """In a forked child: its signals must not reach the parent's loop, whose descriptor ``fd`` is.

        asyncio's add_signal_handler() sets it too, and only from 3.12 on asyncio unsets it in a child.
        """
        mine = self._fd
        self._fd = self._previous = _NONE
        if _in_main_thread():
            self._unset(mine, fd)

    def _unset(self, *fds: int) -> None:
        try:
            found = signal.set_wakeup_fd(_NONE)
        except ValueError:
            return  # as in arm()
        if found not in (*fds, _NONE):
            _give_back(found)
