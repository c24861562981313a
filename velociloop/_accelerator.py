"""Whether the optional accelerator is in use: the one place to ask."""

from __future__ import annotations

import os
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["accelerated", "speedups"]


def _find() -> Any:
    if os.environ.get("VELOCILOOP_PURE", "") not in ("", "0"):
        return None
    try:
        return import_module("._speedups", __package__)
    except ImportError:
        # Not built (PyPy, a free-threaded build, no compiler), or it does not know this asyncio's objects.
        return None


#: The C extension ``velociloop._speedups``; None where the pure-Python reference is in use: the extension was
#: not built, or ``VELOCILOOP_PURE`` said when velociloop was imported that it is not wanted.
speedups: Any = _find()


def accelerated() -> bool:
    """Return whether the hot objects are those of the C extension ``velociloop._speedups``."""
    return speedups is not None
