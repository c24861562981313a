"""The cffi module that build_ffi.py makes from uv.cdef."""

from typing import Any

ffi: Any
lib: Any
