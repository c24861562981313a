"""Child processes: what ``subprocess_exec`` and ``subprocess_shell`` end in.

Two roads lead to a child, and ``VELOCILOOP_SPAWN`` in the environment says which is taken, at each start:

``popen``
    ``subprocess.Popen``; the exit is seen by a pidfd, or by a thread where there is none.  The default.
``uv``
    libuv's ``uv_spawn``, for what it can express; docs/differences.md says what that is.
"""

from __future__ import annotations

import os

from .._platform import DEFAULT_SPAWN
from ..transports.process import ProcessTransport, UvProcessTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["make_subprocess_transport"]

SPAWN_VARIABLE = "VELOCILOOP_SPAWN"
_ROADS = {"popen": ProcessTransport, "uv": UvProcessTransport}


def _transport_class() -> type[ProcessTransport]:
    road = os.environ.get(SPAWN_VARIABLE) or DEFAULT_SPAWN
    try:
        return _ROADS[road]
    except KeyError:
        raise ValueError(f"{SPAWN_VARIABLE} must be one of {', '.join(_ROADS)}, not {road!r}") from None


async def make_subprocess_transport(
    loop: Any,
    protocol: Any,
    args: Any,
    shell: bool,
    stdin: Any,
    stdout: Any,
    stderr: Any,
    bufsize: int,
    extra: dict[str, Any] | None,
    **kwargs: Any,
) -> ProcessTransport:
    """Start a child and return its transport once its pipes are connected.

    Raises what ``subprocess.Popen`` raises, with the same keywords.  Cancelled or failed on the way, it
    kills the child and returns when it is gone.
    """
    make = _transport_class()
    waiter = loop.create_future()
    transport = make(loop, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter, extra, **kwargs)
    try:
        await waiter
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        await transport.give_up()
        raise
    return transport
