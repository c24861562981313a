"""Windows: the names are here, the selector is not yet.  Nothing of this was ever run."""

from __future__ import annotations

import os
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

AF_UNIX: int = -1  # asyncio has no Unix sockets there

#: libuv's road, which waits for the process's handle there.
DEFAULT_SPAWN = "uv"

#: libuv's codes have values of their own.
NATIVE_CODES_ARE_ERRNO = False

SOCKADDR_HAS_LENGTH = False


def duplicate_socket(fd: int) -> int:
    """Raise OSError: a socket is no file descriptor there."""
    raise OSError("velociloop does not support Windows yet; use asyncio's own loop there")


def new_selector() -> Any:
    """Raise OSError: a selector with a descriptor of its own does not exist there."""
    raise OSError("velociloop does not support Windows yet; use asyncio's own loop there")


def tells_of_closed_reader(status: os.stat_result) -> bool:
    """Return False: there are no such pipes."""
    return False


def at_fork(before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Do nothing: there is no fork."""
