"""The event loop policy, where asyncio has policies.

Python 3.14 deprecates them and 3.16 removes them (gh-127949), so nothing here is made before
somebody asks for it, and the interpreter's own deprecation warnings go out as they are.
"""

from __future__ import annotations

import asyncio
import warnings
from functools import lru_cache

from ._compat import replace_new_event_loop
from .loop import Loop, new_event_loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["event_loop_policy", "install", "replace_default_loop"]

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


def replace_default_loop() -> None:
    """Have asyncio make velociloop's loops wherever a program does not say which, and warn nobody.

    For programs that are not ours: ``install()`` where asyncio has policies, its ``new_event_loop()`` replaced
    where it has none.  A loop factory, or a policy that is set later, takes precedence as ever.
    """
    with warnings.catch_warnings():
        # The program has not asked for policies, so that they will be removed is none of its business.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            policy = event_loop_policy()
        except AttributeError:
            replace_new_event_loop(new_event_loop)
        else:
            asyncio.set_event_loop_policy(policy())
