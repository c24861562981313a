"""What the cffi extension velociloop.uv._ffi is made of: names, sources and flags.

cffi's setuptools hook runs this file; setup.py imports it and does the building.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent
ROOM = "velociloop/uv"

MODULE = "velociloop.uv._ffi"
CDEF = f"{ROOM}/uv.cdef"
SOURCE = '#include "shim.h"\n'
#: The shim, compiled into an archive of its own with our flags; relative to ROOT.
SHIM_SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{ROOM}/shim*.c"))
SHIM_INCLUDE = [ROOM]

#: The accelerator: optional, for CPython, built anew for each of its versions.
SPEEDUPS = "velociloop._speedups"
SPEEDUPS_SOURCES = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.glob("velociloop/scheduling/speedups*.c")
)
SPEEDUPS_HEADERS = ["velociloop/scheduling/speedups.h", CDEF, f"{ROOM}/shim.h"]


def _switch(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


#: Asserts, in libuv too (VELOCILOOP_DEBUG=1: the tests).
DEBUG = _switch("VELOCILOOP_DEBUG")
#: Warnings end the build: set by .ci/run.  Off for everybody else, since a compiler
#: newer than this release would otherwise break its users' builds (in their CI, too,
#: which is why the variable CI is not asked).
WERROR = _switch("VELOCILOOP_WERROR")

#: NDEBUG is always set one way or the other: Python's own flags contain it or not,
#: as its builder liked, and libuv behaves differently with it (H6).
ASSERT_FLAGS = ["-UNDEBUG"] if DEBUG else ["-DNDEBUG"]

if sys.platform == "win32":
    ASSERT_FLAGS = [flag.replace("-", "/", 1) for flag in ASSERT_FLAGS]
    SHIM_FLAGS = ["/std:c11", "/O2", "/W4", *(["/WX"] if WERROR else [])]
    LINK_FLAGS: list[str] = []
else:
    SHIM_FLAGS = ["-std=c11", "-O2", "-fPIC", "-fvisibility=hidden"]
    SHIM_FLAGS += ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", *(["-Werror"] if WERROR else [])]
    # uv.h marks every uv_* function visibility("default"), which -fvisibility=hidden
    # does not undo: exported, they would be taken by, or taken from, another libuv in
    # the process (uvloop's).  The linker hides what comes from archives (H12).
    if sys.platform == "darwin":
        LINK_FLAGS = ["-Wl,-exported_symbol,_PyInit__ffi"]
        if sys.implementation.name == "pypy":
            LINK_FLAGS = ["-Wl,-exported_symbol,__cffi_pypyinit__ffi"]
    else:
        LINK_FLAGS = ["-Wl,--exclude-libs,ALL"]

SPEEDUPS_FLAGS = [*SHIM_FLAGS, *ASSERT_FLAGS]
if sys.platform != "win32":
    # Not ours to be warned of.
    for path in sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")}):
        SPEEDUPS_FLAGS += ["-isystem", path]

# cffi writes the module for CPython's stable ABI (one wheel for 3.11 and later) where
# there is one, and for the running interpreter on PyPy and free-threaded CPython.
ffibuilder = cffi.FFI()
ffibuilder.cdef((ROOT / CDEF).read_text(encoding="utf-8"))
ffibuilder.set_source(MODULE, SOURCE, include_dirs=SHIM_INCLUDE, extra_link_args=LINK_FLAGS)
