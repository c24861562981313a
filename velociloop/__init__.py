"""velociloop: libuv as a drop-in asyncio event loop, on CPython and PyPy.

>>> import velociloop
>>> async def main():
...     return "hello"
>>> velociloop.run(main())
'hello'
"""

from __future__ import annotations

import asyncio as _asyncio
from collections.abc import Coroutine as _Coroutine

from ._version import __version__
from .loop import Loop, Statistics, new_event_loop
from .policy import event_loop_policy as _event_loop_policy, install
from .uv.core import libuv_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar as _TypeVar

    _T = _TypeVar("_T")

    class EventLoopPolicy(_asyncio.DefaultEventLoopPolicy):
        """See :func:`velociloop.policy.event_loop_policy`."""

__all__ = [
    "EventLoopPolicy",
    "Loop",
    "Statistics",
    "__version__",
    "install",
    "libuv_version",
    "new_event_loop",
    "run",
]


def run(main: _Coroutine[Any, Any, _T], *, debug: bool | None = None, **kw: Any) -> _T:
    """Run the coroutine ``main`` on a new loop and return its result: ``asyncio.run`` on velociloop.

    ``debug`` sets the loop's debug mode (None: as the environment says). ``kw`` are further
    arguments of ``asyncio.Runner``; a ``loop_factory`` takes the place of :func:`new_event_loop`.
    Raises what ``main`` raises, ValueError if it is no coroutine, and RuntimeError if a loop is
    running in this thread.  Follows ``asyncio.run`` and ``asyncio.Runner``.
    """
    kw.setdefault("loop_factory", new_event_loop)
    if _asyncio.events._get_running_loop() is not None:
        raise RuntimeError("velociloop.run() cannot be called from a running event loop")
    with _asyncio.Runner(debug=debug, **kw) as runner:
        return runner.run(main)


def __getattr__(name: str) -> Any:
    # Policies only where asyncio has them, and only for who asks: touching them warns on 3.14.
    if name == "EventLoopPolicy":
        return _event_loop_policy()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
