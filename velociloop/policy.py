"""The event loop policy, where asyncio has policies.

Python 3.14 deprecates them and 3.16 removes them (gh-127949), so nothing here is made before
somebody asks for it, and the interpreter's own deprecation warnings go out as they are.
"""

import asyncio
from functools import lru_cache
from typing import Any

from .loop import Loop

__all__ = ["event_loop_policy", "install"]

_INSTEAD = (
    "this Python has no event loop policies; use velociloop.run(main()) or "
    "asyncio.Runner(loop_factory=velociloop.new_event_loop)"
)


@lru_cache(maxsize=1)
def event_loop_policy() -> Any:
    """Return the class ``EventLoopPolicy``; AttributeError where asyncio has no policies."""
    base: Any = getattr(asyncio, "DefaultEventLoopPolicy", None)
    if base is None:
        raise AttributeError(_INSTEAD)

    class EventLoopPolicy(base):  # type: ignore[misc]
        """asyncio's default policy, with ``new_event_loop()`` making a :class:`velociloop.Loop`.

        Follows "Policies" in asyncio's documentation.
        """

        _loop_factory = Loop

    EventLoopPolicy.__module__ = "velociloop"
    EventLoopPolicy.__qualname__ = "EventLoopPolicy"
    return EventLoopPolicy


def install() -> None:
    """Make asyncio's default policy create velociloop's loops, as ``uvloop.install()`` does.

    Raises AttributeError where asyncio has no policies (Python 3.16 and later).
    """
    policy = event_loop_policy()
    asyncio.set_event_loop_policy(policy())
