"""Whether the optional accelerator is in use: the one place to ask."""

import sys

__all__ = ["accelerated"]


def accelerated() -> bool:
    """Return whether the hot objects are those of the C extension ``velociloop._speedups``.

    False is the pure-Python reference: the extension was not built, or was not wanted, and so nobody imported it.
    """
    return sys.modules.get(f"{__package__}._speedups") is not None
