"""The only room with C, cdata and pointers.

``uv.cdef`` declares the shim for both cffi and the compiler, ``shim*.c`` is the shim,
:mod:`.core` binds it and does nothing else, and the other modules turn its numbers into
Python's terms: :mod:`.errors` (codes), :mod:`.sockaddr` (addresses), :mod:`.ring` (records
and received bytes), :mod:`.registry` (whose record it is), :mod:`.selector` (the turn as
``selectors.BaseSelector``).
"""
