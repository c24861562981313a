"""What users get: the source distribution and the wheel, made from a clean clone and installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from project import ACCELERATED, OFFLINE, clean_clone, load_fetch, succeed, venv_python

pytestmark = pytest.mark.packaging

SMOKE = """
import asyncio, pathlib, sys, velociloop

async def main():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"line\\n")
    assert await reader.read() == b"line\\n"
    writer.close()
    server.close()
    assert type(asyncio.get_running_loop()) is velociloop.Loop

velociloop.run(main())
assert pathlib.Path(velociloop.__file__).is_relative_to(sys.prefix), velociloop.__file__
print(velociloop.__version__, velociloop.libuv_version())
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m build` in a clean clone: the wheel is made from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    clone = clean_clone(folder / "velociloop")
    succeed(sys.executable, "-m", "build", "--outdir", folder / "dist", cwd=clone)
    return folder / "dist"


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (path,) = dist.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What building and running velociloop needs, in a folder: all there is, once offline."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", folder)
    packages = ["setuptools>=77", "pip>=23"]
    if sys.implementation.name != "pypy":
        packages.append("cffi>=1.17")
    succeed(*pip, "--only-binary", ":all:", *packages, cwd=folder)
    return folder


def offline(wheelhouse: Path) -> dict[str, str]:
    return {**OFFLINE, "PIP_FIND_LINKS": str(wheelhouse)}


def test_sdist_holds_libuv_and_all_sources(sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["build_ffi.py", "setup.py", "vendor/fetch.py", "vendor/libuv.toml", "velociloop/uv/uv.cdef"]
    wanted += ["velociloop/uv/shim.h", "velociloop/uv/shim_core.c", "velociloop/py.typed", "vendor/libuv/LICENSE"]
    wanted += ["velociloop/scheduling/speedups.h", "velociloop/scheduling/speedups_module.c"]
    assert not set(wanted) - names
    assert not [name for name in names if name.endswith((".so", ".o", ".a", ".pyc"))]
    # The tree in it is the pinned one, whole.
    fetch = load_fetch()
    fetch._take(sdist, "vendor/libuv", tmp_path / "libuv", str(sdist))
    assert fetch.tree_hash(tmp_path / "libuv") == fetch.load_pin()["sha256"]


def test_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tags = HeaderParser().parsestr(archive.read(next(n for n in names if n.endswith("/WHEEL"))).decode())
        licenses = [name for name in names if "/licenses/" in name]
    assert "velociloop/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {"velociloop", names[-1].partition("/")[0]}
    assert not [name for name in names if name.endswith((".c", ".h", ".cdef", ".o", ".a"))]
    assert len([name for name in names if name.startswith("velociloop/uv/_ffi.") and name.endswith(".so")]) == 1
    # libuv's license asks to go with it.
    assert any(name.endswith("/vendor/libuv/LICENSE") for name in licenses)
    assert any(name.endswith("/licenses/LICENSE") for name in licenses)
    speedups = [name for name in names if name.startswith("velociloop/_speedups.")]
    assert len(speedups) == ACCELERATED
    if ACCELERATED:
        # H12: the binding serves every CPython, the accelerator one: the wheel takes the narrower tag.
        tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
        assert tags["Tag"].startswith(f"{tag}-{tag}-")
        assert "velociloop/uv/_ffi.abi3.so" in names


@pytest.mark.skipif(not ACCELERATED, reason="every wheel is pure here")
def test_a_pure_wheel_serves_every_version(sdist: Path, tmp_path: Path) -> None:
    """Need 32: VELOCILOOP_PURE leaves the accelerator out."""
    command = (sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, tmp_path / "source")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    next(tmp_path.glob("velociloop-*")).rename(tmp_path / "source")
    succeed(*command, cwd=tmp_path, env={"VELOCILOOP_PURE": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        assert not [name for name in archive_of_wheel.namelist() if "_speedups." in name]


def test_sdist_installs_without_network(sdist: Path, wheelhouse: Path, tmp_path: Path) -> None:
    python = venv_python(tmp_path / "venv")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--no-cache-dir")
    succeed(*pip, sdist, cwd=tmp_path, env=offline(wheelhouse))
    assert succeed(python, "-c", SMOKE, cwd=tmp_path).split()[1] == load_fetch().load_pin()["version"]


def test_wheel_installs_into_an_empty_environment(wheel: Path, wheelhouse: Path, tmp_path: Path) -> None:
    python = venv_python(tmp_path / "venv")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--no-cache-dir", "--only-binary", ":all:")
    # A compiler that is not there shows that none is needed.
    succeed(*pip, wheel, cwd=tmp_path, env={**offline(wheelhouse), "CC": "/nowhere/cc"})
    assert succeed(python, "-c", SMOKE, cwd=tmp_path).split()[1] == load_fetch().load_pin()["version"]


def test_an_installer_shows_the_sentence(sdist: Path, wheelhouse: Path, tmp_path: Path) -> None:
    """Of a failing isolated build, pip shows our sentence and no traceback of ours."""
    python = venv_python(tmp_path / "venv")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--no-cache-dir", sdist],
        cwd=tmp_path,
        env={**os.environ, **offline(wheelhouse), "CC": "/nowhere/cc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert "velociloop: the C compiler '/nowhere/cc' was not found" in text
    assert "Traceback" not in text
