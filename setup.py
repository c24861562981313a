"""The compiled part of the build: libuv and the shim, as archives, into the cffi module.

The rest is in pyproject.toml.  The flags are build_ffi.py's and vendor/libuv.toml's;
here is what is done with them, and what is said when it cannot be done: a failure
that a user can mend ends the build with one sentence (SystemExit prints it and no
traceback).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# A PEP 517 front end does not put the project's folder on the path.
sys.path[:0] = [str(ROOT), str(ROOT / "vendor")]

import fetch  # noqa: E402

try:
    import build_ffi
except ImportError as error:
    raise SystemExit(
        f"velociloop: {error.name} is missing, which its build needs: build with `pip install .`, which provides it."
    ) from None

SYSTEM_LIBUV = os.environ.get("VELOCILOOP_SYSTEM_LIBUV", "") not in ("", "0")
#: The accelerator is left out, as it is at run time: one wheel then serves all versions of CPython.
PURE = os.environ.get("VELOCILOOP_PURE", "") not in ("", "0")
COMPILER_HINT = (
    "install one (Debian, Ubuntu: apt install gcc libc6-dev; Fedora: dnf install gcc; macOS: xcode-select --install; "
    "Windows: the Visual Studio Build Tools) or name it in CC, and build again"
)


def fail(sentence: str) -> NoReturn:
    """End the build with one sentence."""
    raise SystemExit(f"velociloop: {sentence}")


def note(sentence: str) -> None:
    """Say something that does not end the build."""
    print(f"velociloop: {sentence}.", file=sys.stderr, flush=True)


def fetch_libuv() -> None:
    """Fill vendor/libuv/ unless the system's libuv is wanted."""
    if SYSTEM_LIBUV:
        return
    try:
        fetch.ensure()
    except fetch.VendorError as error:
        raise SystemExit(f"velociloop: {error}") from None


class BuildExt(build_ext):
    """build_ext that makes the archives first and links them."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Times tell nothing about flags: VELOCILOOP_DEBUG=1 after a plain build must
        # not keep the plain one.
        self.force = True

    def build_extensions(self) -> None:
        self.check_compiler()
        extension = next(ext for ext in self.extensions if ext.name == build_ffi.MODULE)
        if SYSTEM_LIBUV:
            include, archives, link = *self.system_libuv(), self.system_link()
        else:
            include, archives, libraries = self.vendored_libuv()
            link = []
            extension.libraries = [*extension.libraries, *libraries]
        shim = self.archive(
            "velociloop_shim",
            build_ffi.SHIM_SOURCES,
            Path(self.build_temp) / "shim",
            include_dirs=[*build_ffi.SHIM_INCLUDE, *include],
            flags=[*build_ffi.SHIM_FLAGS, *build_ffi.ASSERT_FLAGS],
        )
        # In this order: the shim refers to libuv.
        extension.extra_objects = [*extension.extra_objects, shim, *archives]
        extension.extra_link_args = [*extension.extra_link_args, *link]
        super().build_extensions()

    def build_extension(self, ext: Any) -> None:
        if ext.name != build_ffi.SPEEDUPS:
            super().build_extension(ext)
            return
        try:
            super().build_extension(ext)
        except Exception:
            if build_ffi.WERROR:
                raise
            # setuptools warns of an optional extension, with the compiler's words, and goes on.
            note("the accelerator could not be built: velociloop is pure Python, and slower, here")
            raise

    def check_compiler(self) -> None:
        """Say what is missing before a compiler run says it at length."""
        command = getattr(self.compiler, "compiler_so", None)  # none on Windows, where setuptools looks itself
        if command and shutil.which(command[0]) is None:
            fail(f"the C compiler {command[0]!r} was not found: {COMPILER_HINT}.")
        headers = sysconfig.get_path("include")
        if not Path(headers, "Python.h").is_file():
            fail(
                f"Python.h is not in {headers}: install this Python's development files (Debian, Ubuntu: apt install "
                "python3-dev; Fedora: dnf install python3-devel), and build again."
            )

    def vendored_libuv(self) -> tuple[list[str], list[str], list[str]]:
        """Build the pinned libuv.

        The archive depends on no Python, so it is kept in build/ under a hash of all that
        went into it, for the next interpreter.

        Returns:
            Include folders, archives, libraries.
        """
        fetch_libuv()
        pin = fetch.load_pin()
        platform = sys.platform.rstrip("0123456789") if sys.platform != "win32" else sys.platform
        if platform not in pin:
            fail(
                f"vendor/libuv.toml has no table for the platform {platform!r}: set VELOCILOOP_SYSTEM_LIBUV=1 to link "
                "the system's libuv."
            )
        tables = [pin["common"], pin[platform]]
        if (family := pin[platform]["family"]) != platform:
            tables.insert(1, pin[family])

        def collect(key: str) -> list[str]:
            return [value for table in tables for value in table.get(key, [])]

        tree = fetch.TREE.relative_to(ROOT).as_posix()
        sources = [f"{tree}/{name}" for name in collect("sources")]
        include = [f"{tree}/{name}" for name in collect("include")]
        flags = [*collect("flags"), *build_ffi.ASSERT_FLAGS]
        key = repr((pin["sha256"], sources, include, collect("defines"), flags, self.compiler_identity()))
        folder = ROOT / "build" / f"libuv-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        archive = folder / self.compiler.library_filename("velociloop_uv")
        if not archive.is_file():
            # Made under another name and renamed, for a build at the same time.
            scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
            made = self.archive(
                "velociloop_uv",
                sources,
                scratch,
                include_dirs=include,
                flags=flags,
                macros=[tuple((*name.split("=", 1), None)[:2]) for name in collect("defines")],
            )
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(made, archive)
            shutil.rmtree(scratch)
        # Only the public headers for those who use it.
        return [f"{tree}/include"], [str(archive)], collect("libraries")

    def compiler_identity(self) -> tuple[object, ...]:
        """What a cached archive depends on besides its sources and flags."""
        command = getattr(self.compiler, "compiler_so", None)
        if not command:
            return (sys.platform, self.plat_name, os.environ.get("VCToolsVersion"))
        version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
        return (sys.platform, self.plat_name, os.environ.get("MACOSX_DEPLOYMENT_TARGET"), command, version)

    def archive(
        self,
        name: str,
        sources: list[str],
        folder: Path,
        *,
        include_dirs: list[str],
        flags: list[str],
        macros: list[Any] | None = None,
    ) -> str:
        """Compile *sources* into the static library *name* in *folder*; return its path."""
        if self.compiler.compiler_type == "msvc" and not self.compiler.initialized:
            self.compiler.initialize()  # once, and not in each thread

        def compile_one(source: str) -> list[str]:
            # Flags go last: they outrank the -O3 and -DNDEBUG of Python's own.
            return list(
                self.compiler.compile(
                    [source],
                    output_dir=str(folder),
                    macros=macros,
                    include_dirs=include_dirs,
                    extra_postargs=flags,
                )
            )

        for source in sources:
            (folder / source).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(compile_one, sources) for path in paths]
        self.compiler.create_static_lib(objects, name, output_dir=str(folder))
        return str(folder / self.compiler.library_filename(name))

    def system_libuv(self) -> tuple[list[str], list[str]]:
        """Ask pkg-config for the system's libuv.

        Returns:
            Include folders and, since nothing is to be hidden in it, no archive.
        """
        minimum = fetch.load_pin()["system_minimum"]
        version = self.pkg_config("--modversion").strip()
        if tuple(map(int, version.split(".")[:2])) < tuple(map(int, minimum.split("."))):
            fail(
                f"the system's libuv is {version} and velociloop needs {minimum} or later: update it, or build without "
                "VELOCILOOP_SYSTEM_LIBUV."
            )
        return [flag[2:] for flag in self.pkg_config("--cflags-only-I").split()], []

    def system_link(self) -> list[str]:
        """Return the linker's arguments for the system's libuv."""
        return self.pkg_config("--libs").split()

    @staticmethod
    def pkg_config(option: str) -> str:
        """Run pkg-config (or what PKG_CONFIG names) for libuv."""
        command = os.environ.get("PKG_CONFIG", "pkg-config")
        if shutil.which(command) is None:
            fail(
                f"{command} was not found, which VELOCILOOP_SYSTEM_LIBUV=1 needs: install it, or build without "
                "VELOCILOOP_SYSTEM_LIBUV."
            )
        done = subprocess.run([command, option, "libuv"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            fail(
                f"{command} knows no libuv: install its development files (Debian, Ubuntu: apt install libuv1-dev), "
                "or build without VELOCILOOP_SYSTEM_LIBUV."
            )
        return done.stdout


def accelerator() -> list[Extension]:
    """Return the accelerator, where there can be one."""
    if PURE or sys.implementation.name != "cpython":
        return []
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        note("no accelerator on free-threaded Python, since it relies on the GIL: velociloop is pure Python here")
        return []
    extension = Extension(
        build_ffi.SPEEDUPS,
        build_ffi.SPEEDUPS_SOURCES,
        include_dirs=build_ffi.SHIM_INCLUDE,
        depends=build_ffi.SPEEDUPS_HEADERS,
        extra_compile_args=build_ffi.SPEEDUPS_FLAGS,
    )
    extension.optional = not build_ffi.WERROR
    return [extension]


def wheel_options() -> dict[str, str]:
    """Tag the wheel for the stable ABI where cffi uses it (see build_ffi.py) and nothing else needs a version."""
    if ACCELERATOR:
        return {}
    stable = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    if not stable or hasattr(sys, "gettotalrefcount"):
        return {}
    return {"py_limited_api": "cp311"}


# libuv is fetched before setuptools starts, so that its license is found by
# `license-files`, its folder by MANIFEST.in, and a failure is one sentence.  The
# source distribution holds it in any case.
commands = set(sys.argv[1:])
if "sdist" in commands:
    SYSTEM_LIBUV = False
if commands & {"sdist", "bdist_wheel", "editable_wheel", "build", "build_ext", "install", "develop"}:
    fetch_libuv()

ACCELERATOR = accelerator()

setup(
    ext_modules=ACCELERATOR,
    cffi_modules=["build_ffi.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": wheel_options()},
)
