"""What the packaging tests share: copies of the project, and running its build in them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "vendor" / "libuv"

#: An address where nothing ever listens: the discard port of the loopback interface.
DEAD_ADDRESS = "http://127.0.0.1:9"

#: No package index, no configuration of this machine, no proxy that could help out.
OFFLINE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "",
    "http_proxy": DEAD_ADDRESS,
    "https_proxy": DEAD_ADDRESS,
    "no_proxy": "",
}

#: What decides how a build goes; a test says each of them itself.
SWITCHES = (
    "LIBUV_SOURCE",
    "VELOCILOOP_SYSTEM_LIBUV",
    "VELOCILOOP_DEBUG",
    "VELOCILOOP_PURE",
    "VELOCILOOP_WERROR",
    "CC",
    "CFLAGS",
    "PKG_CONFIG",
    "PYTHONPATH",
)

#: Whether a build for this interpreter contains the accelerator.
ACCELERATED = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


def load_fetch(root: Path = ROOT) -> ModuleType:
    """Import a fresh vendor/fetch.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("velociloop_fetch", root / "vendor" / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clean_clone(target: Path) -> Path:
    """Copy the project as `git clone` would give it: nothing built, nothing fetched."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        ignored = shutil.ignore_patterns(
            ".git", ".venv*", "build", "dist", "__pycache__", "*.so", "*.egg-info", ".*_cache", ".hypothesis"
        )(folder, names)
        if Path(folder) == ROOT / "vendor":
            ignored |= {name for name in names if name == "libuv" or name.startswith(".libuv-")}
        return ignored

    shutil.copytree(ROOT, target, ignore=ignore)
    return target


def run(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment in which only env's switches are set."""
    environ = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environ |= env or {}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed; return what it printed."""
    done = run(*command, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def venv_python(folder: Path, *, pip: bool = True) -> Path:
    """Make a virtual environment; return its interpreter."""
    succeed(sys.executable, "-m", "venv", *([] if pip else ["--without-pip"]), folder, cwd=folder.parent)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
