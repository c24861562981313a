"""H12: the libuv in the extension module is private to it."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from project import ROOT, succeed

from velociloop._accelerator import speedups
from velociloop.uv import _ffi

BOTH_LOOPS = """
import asyncio, ctypes, os, sys
# The harshest order and flags: what is loaded first offers its symbols to all others.
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
for name in sys.argv[1:]:
    __import__(name)
import uvloop, velociloop
assert not hasattr(ctypes.CDLL(velociloop.uv._ffi.__file__), "uv_run")

async def serve(reader, writer):
    writer.write(await reader.readexactly(5))
    await writer.drain()
    writer.close()

async def echo():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello")
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    return asyncio.get_running_loop()

def in_thread():
    # Both at the same time, too.
    import threading
    result = []
    thread = threading.Thread(target=lambda: result.append(uvloop.run(echo())))
    thread.start()
    ours = velociloop.run(echo())
    thread.join()
    return ours, result[0]

for ours, theirs in [(velociloop.run(echo()), uvloop.run(echo())), in_thread()]:
    assert isinstance(ours, velociloop.Loop), ours
    assert isinstance(theirs, uvloop.Loop), theirs
print("both ran on libuv", velociloop.libuv_version())
"""


@pytest.mark.skipif(os.name == "nt", reason="a Windows module exports only what it says it exports")
def test_H12_nothing_but_the_module_is_exported() -> None:
    nm = shutil.which("nm")
    assert nm is not None, "nm (binutils) came with the compiler that built the module"
    option = "-gU" if sys.platform == "darwin" else "-D"
    lines = succeed(nm, option, _ffi.__file__, cwd=ROOT).splitlines()
    # "T", "D", ...: defined here; "U" and "w": wanted from elsewhere.
    defined = [line.split()[-1] for line in lines if line.split()[-2] not in ("U", "w", "v")]
    expected = {"cpython": "PyInit__ffi", "pypy": "_cffi_pypyinit__ffi"}[sys.implementation.name]
    assert [name.removeprefix("_") for name in defined] == [expected.removeprefix("_")]


@pytest.mark.skipif(speedups is None or os.name == "nt", reason="there is no accelerator, or it exports what it says")
def test_H12_the_accelerator_exports_its_entry_and_links_no_libuv() -> None:
    nm = shutil.which("nm")
    assert nm is not None, "nm (binutils) came with the compiler that built the module"
    option = "-gU" if sys.platform == "darwin" else "-D"
    symbols = [line.split()[-2:] for line in succeed(nm, option, speedups.__file__, cwd=ROOT).splitlines()]
    defined = [name for kind, name in symbols if kind not in ("U", "w", "v")]
    assert [name.removeprefix("_") for name in defined] == ["PyInit__speedups"]
    assert not [name for _, name in symbols if name.removeprefix("_").startswith(("uv_", "vl_"))]


@pytest.mark.parametrize("order", [("uvloop", "velociloop"), ("velociloop", "uvloop")], ids="-then-".join)
def test_H12_beside_uvloop(order: tuple[str, str]) -> None:
    pytest.importorskip("uvloop", reason="uvloop has no wheel for this interpreter")
    out = succeed(sys.executable, "-c", BOTH_LOOPS, *order, cwd=ROOT)
    assert out.startswith("both ran on libuv 1.")
