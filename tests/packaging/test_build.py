"""The build of the compiled part, run as an installer runs it, in a copy of the project.

Every failure that a user can mend must end in one sentence that says how.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from project import ACCELERATED, OFFLINE, ROOT, TREE, clean_clone, load_fetch, run, succeed

BUILD = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the compiler is named by CC and pkg-config is a script here")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its libuv and with what was compiled of it already."""
    load_fetch().ensure()
    clone = clean_clone(tmp_path_factory.mktemp("clone") / "velociloop")
    shutil.copytree(TREE, clone / "vendor/libuv")
    for archive in (ROOT / "build").glob("libuv-*"):
        shutil.copytree(archive, clone / "build" / archive.name)
    return clone


def failure(clone: Path, *command: str, env: dict[str, str] | None = None) -> str:
    """Run a build that must fail in one sentence, and return it."""
    done = run(*(command or BUILD), cwd=clone, env=env)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("velociloop: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip().endswith(lines[0])
    assert lines[0].endswith(".")
    return lines[0]


def fake_pkg_config(tmp_path: Path, version: str | None, libs: str = "") -> str:
    """A pkg-config that knows libuv in this version, or not at all."""
    script = tmp_path / "pkg-config"
    answers = f'--modversion) echo "{version}";; --cflags-only-I) echo "-I{TREE}/include";; --libs) echo "{libs}";;'
    script.write_text("#!/bin/sh\nexit 1\n" if version is None else f'#!/bin/sh\ncase "$1" in {answers} esac\n')
    script.chmod(0o755)
    return str(script)


def test_builds(clone: Path) -> None:
    succeed(*BUILD, cwd=clone, env={"VELOCILOOP_WERROR": "1"})
    (module,) = (clone / "velociloop/uv").glob("_ffi*.so")
    stable = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    assert (module.name == "_ffi.abi3.so") == stable
    # Another build with asserts: the first one must not count as up to date.
    before = module.read_bytes()
    succeed(*BUILD, cwd=clone, env={"VELOCILOOP_DEBUG": "1"})
    assert module.read_bytes() != before


@pytest.mark.skipif(not ACCELERATED, reason="no accelerator is built for this interpreter")
def test_an_accelerator_that_cannot_be_built_is_left_out(clone: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(clone, broken, ignore=shutil.ignore_patterns("*.so"))
    with (broken / "velociloop/scheduling/speedups.h").open("a") as file:
        file.write("#error for this test\n")
    done = run(*BUILD, cwd=broken)
    assert done.returncode == 0, done.stderr
    assert "\nvelociloop: the accelerator could not be built: velociloop is pure Python, and slower, here.\n" in (
        f"\n{done.stderr}"
    )
    assert list((broken / "velociloop/uv").glob("_ffi*.so"))
    assert not list((broken / "velociloop").glob("_speedups*.so"))
    # Where warnings are errors, that is one.
    assert run(*BUILD, cwd=broken, env={"VELOCILOOP_WERROR": "1"}).returncode != 0


@pytest.mark.skipif(not ACCELERATED, reason="no accelerator is built for this interpreter")
def test_no_accelerator_is_wanted(clone: Path) -> None:
    for module in (clone / "velociloop").glob("_speedups*.so"):
        module.unlink()
    succeed(*BUILD, cwd=clone, env={"VELOCILOOP_PURE": "1"})
    assert not list((clone / "velociloop").glob("_speedups*.so"))


def test_no_compiler(clone: Path) -> None:
    text = failure(clone, env={"CC": "/nowhere/cc"})
    assert "'/nowhere/cc' was not found" in text
    assert "apt install gcc" in text


def test_no_python_headers(clone: Path, tmp_path: Path) -> None:
    program = (
        "import runpy, sys, sysconfig; real = sysconfig.get_path\n"
        f"sysconfig.get_path = lambda name, *args: {str(tmp_path)!r} if name == 'include' else real(name, *args)\n"
        "sys.argv = ['setup.py', '--quiet', 'build_ext', '--inplace']; runpy.run_path('setup.py', run_name='__main__')"
    )
    text = failure(clone, sys.executable, "-c", program)
    assert f"Python.h is not in {tmp_path}" in text
    assert "python3-dev" in text


def test_changed_libuv(clone: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(clone, changed)
    with (changed / "vendor/libuv/src/timer.c").open("a") as file:
        file.write("/* changed */\n")
    text = failure(changed)
    assert "is not libuv" in text
    assert "delete that folder" in text


def test_no_origin(tmp_path: Path) -> None:
    clone = clean_clone(tmp_path / "velociloop")
    pin = clone / "vendor/libuv.toml"
    # The last origin must be unreachable on a machine with a network, too.
    pin.write_text(pin.read_text().replace('url = "https://', 'url = "http://127.0.0.1:9/'))
    text = failure(clone, env=OFFLINE)
    assert "could not be fetched" in text
    assert "LIBUV_SOURCE" in text


def test_source_is_taken(tmp_path: Path) -> None:
    load_fetch().ensure()
    clone = clean_clone(tmp_path / "velociloop")
    text = failure(clone, env={**OFFLINE, "LIBUV_SOURCE": str(tmp_path / "nothing")})
    assert "does not exist" in text
    # With the right one the build gets past libuv, to the compiler.
    text = failure(clone, env={**OFFLINE, "LIBUV_SOURCE": str(TREE), "CC": "/nowhere/cc"})
    assert "was not found" in text
    assert load_fetch(clone).tree_hash(clone / "vendor/libuv") == load_fetch().load_pin()["sha256"]


@pytest.mark.parametrize(
    ("version", "reason"), [("1.44.2", "is 1.44.2 and velociloop needs 1.48 or later"), (None, "knows no libuv")]
)
def test_system_libuv_refused(clone: Path, tmp_path: Path, version: str | None, reason: str) -> None:
    env = {"VELOCILOOP_SYSTEM_LIBUV": "1", "PKG_CONFIG": fake_pkg_config(tmp_path, version)}
    text = failure(clone, env=env)
    assert reason in text
    assert "build without VELOCILOOP_SYSTEM_LIBUV" in text


def test_system_libuv_without_pkg_config(clone: Path) -> None:
    text = failure(clone, env={"VELOCILOOP_SYSTEM_LIBUV": "1", "PKG_CONFIG": "/nowhere/pkg-config"})
    assert "/nowhere/pkg-config was not found" in text


def test_system_libuv_is_linked(clone: Path, tmp_path: Path) -> None:
    # "The system's" libuv is one that was compiled before, at a place of its own.
    succeed(*BUILD, cwd=clone)
    archive = next((clone / "build").glob("libuv-*/lib*.a"))
    (tmp_path / "lib").mkdir()
    shutil.copy(archive, tmp_path / "lib/libuv.a")
    target = tmp_path / "velociloop"
    shutil.copytree(clone, target, ignore=shutil.ignore_patterns("libuv", "libuv-*", "*.so"))
    libs = f"-L{tmp_path}/lib -luv -lpthread -ldl -lrt" if sys.platform == "linux" else f"-L{tmp_path}/lib -luv"
    env = {"VELOCILOOP_SYSTEM_LIBUV": "1", "PKG_CONFIG": fake_pkg_config(tmp_path, "1.52.1", libs), **OFFLINE}
    succeed(*BUILD, cwd=target, env=env)
    assert list((target / "velociloop/uv").glob("_ffi*.so"))
    assert not (target / "vendor/libuv").exists()
