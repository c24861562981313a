"""Linux, macOS and the BSDs."""

from __future__ import annotations

import os
import selectors
import socket
import stat
import sys
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "AF_UNIX",
    "DEFAULT_SPAWN",
    "NATIVE_CODES_ARE_ERRNO",
    "SOCKADDR_HAS_LENGTH",
    "at_fork",
    "duplicate_socket",
    "new_selector",
    "tells_of_closed_reader",
]

AF_UNIX: int = socket.AF_UNIX

#: ``subprocess.Popen``: faster than libuv's fork() on Linux, and every keyword works.
DEFAULT_SPAWN = "popen"

#: A libuv code is a negated errno value.
NATIVE_CODES_ARE_ERRNO = True

#: BSD-derived systems put a length byte in front of a one-byte family in ``struct sockaddr``.
SOCKADDR_HAS_LENGTH = sys.platform != "linux"


def duplicate_socket(fd: int) -> int:
    """Return another descriptor of the same socket.

    Not ``socket.dup()``, which calls the constructor of the object's class: subclasses may have another one.
    """
    return os.dup(fd)


def new_selector() -> Any:
    """Return a selector that has a descriptor which is readable when one of its own is ready."""
    selector: Any = selectors.DefaultSelector()
    if not hasattr(selector, "fileno"):
        raise OSError("velociloop needs epoll or kqueue, which this system's Python does not offer")
    return selector


def tells_of_closed_reader(status: os.stat_result) -> bool:
    """Return whether a writing end polls as readable once the reading end was closed.

    asyncio knows two exceptions: pipes on AIX, and named FIFOs on Apple's systems and Solaris, which poll
    as readable while they hold unread data, and tell of no close (gh-145030).
    """
    if not stat.S_ISFIFO(status.st_mode):
        return stat.S_ISSOCK(status.st_mode)
    if sys.platform in {"darwin", "ios", "tvos", "watchos", "sunos5"}:
        return status.st_nlink == 0  # os.pipe()
    return not sys.platform.startswith("aix")


def at_fork(before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Have the functions called around every ``os.fork``, all three by the thread that forks."""
    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
