"""libuv's and the shim's error codes as exceptions: the only such table.

On Unix a libuv code is a negated errno value, on Windows a number of libuv's own; its *name*
(``"ECONNRESET"``) is the same everywhere, so the errno is looked up by name.
"""

import errno
import os
from functools import lru_cache

from .._platform import NATIVE_CODES_ARE_ERRNO
from ._ffi import ffi, lib

__all__ = [
    "EAGAIN",
    "ECANCELED",
    "ENOTSUP",
    "EOF",
    "NEVER_AGAIN",
    "OUT_OF_RESOURCES",
    "STALE",
    "check",
    "exception_for",
    "raise_if_refused",
]

_NAME_BYTES = 64

# UV_EOF has a value of its own on every platform.
EOF: int = lib.VL_EOF
#: The shim's own: the handle was closed.
STALE: int = lib.VL_ERR_STALE

_OWN_ERRORS = {
    lib.VL_ERR_CLOSED: "Event loop is closed",
    lib.VL_ERR_BUSY: (
        "Non-thread-safe operation invoked on an event loop that is polling in another thread; "
        "use loop.call_soon_threadsafe()"
    ),
    lib.VL_ERR_FOREIGN: (
        "this event loop belongs to the parent process; make a new one in the child, "
        "or run this one there to take it into use again"
    ),
}


@lru_cache(maxsize=256)
def _errno_for(code: int) -> int:
    name = ffi.new("char[]", _NAME_BYTES)
    lib.vl_error_name(code, name, _NAME_BYTES)
    # libuv names what its own calls return; ECHILD, from the shim's, is none of them.
    unnamed = -code if NATIVE_CODES_ARE_ERRNO and -code in errno.errorcode else errno.EIO
    return int(getattr(errno, ffi.string(name).decode("ascii"), unnamed))


def exception_for(code: int) -> OSError | RuntimeError:
    """Return (not raise) the exception for a negative code.

    An ``OSError`` carries the errno and the system's own text, so that Python picks the
    subclass that asyncio's users catch (``ConnectionResetError``, ``BrokenPipeError``, ...).
    The shim's own refusals are ``RuntimeError``, as asyncio's are.  A handle that was closed
    is reported as ``EBADF``.
    """
    message = _OWN_ERRORS.get(code)
    if message is not None:
        return RuntimeError(message)
    number = errno.EBADF if code == lib.VL_ERR_STALE else _errno_for(code)
    return OSError(number, os.strerror(number))


def check(code: int) -> int:
    """Return ``code`` if it is a result; raise :func:`exception_for` it if it is an error."""
    if code < 0:
        raise exception_for(code)
    return code


def raise_if_refused(code: int) -> int:
    """Raise RuntimeError if the shim has refused the call (another thread polls, closed, forked).

    That is the caller's mistake, not the connection's end: nothing has happened to the handle.
    Returns ``code`` otherwise: a result, or an error of the connection.
    """
    if code in _OWN_ERRORS:
        raise exception_for(code)
    return code


def _code_for(number: int) -> int:
    # The inverse of _errno_for() for the few codes that callers compare with.
    return next((code for code in range(-1, -4096, -1) if _errno_for(code) == number), 0)


EAGAIN: int = -errno.EAGAIN if NATIVE_CODES_ARE_ERRNO else _code_for(errno.EAGAIN)
ENOTSUP: int = -errno.ENOTSUP if NATIVE_CODES_ARE_ERRNO else _code_for(errno.ENOTSUP)
ECANCELED: int = -errno.ECANCELED if NATIVE_CODES_ARE_ERRNO else _code_for(errno.ECANCELED)

# H8: after these, accepting can work again once somebody closes something.
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# After these it never can.  accept(2) passes on errors of the network too (ENETDOWN, EHOSTUNREACH,
# ...), and firewalls answer EPERM: they pass.
NEVER_AGAIN = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
