"""Everything in Python that depends on the operating system, under the same names everywhere.

The C side has its own place, ``uv/shim_os.c``; libuv's queues, which only Unix has, are in ``uv/shim_submit.c``.
"""

import sys

if sys.platform == "win32":
    from .windows import (
        AF_UNIX,
        DEFAULT_SPAWN,
        NATIVE_CODES_ARE_ERRNO,
        SOCKADDR_HAS_LENGTH,
        at_fork,
        duplicate_socket,
        new_selector,
        tells_of_closed_reader,
    )
else:
    from .unix import (
        AF_UNIX,
        DEFAULT_SPAWN,
        NATIVE_CODES_ARE_ERRNO,
        SOCKADDR_HAS_LENGTH,
        at_fork,
        duplicate_socket,
        new_selector,
        tells_of_closed_reader,
    )

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
