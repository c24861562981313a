"""Brings the pinned libuv into vendor/libuv/ and proves that it is the pinned one.

The repository holds only what its authors wrote, so libuv is pinned by content
(vendor/libuv.toml) and fetched when it is first needed.  The content hash is the
SHA-256 of this byte string:

    for each regular file below src/ and include/, in the order of their paths:
        path, NUL, size, NUL, content

where *path* is relative to libuv's folder, with "/" between its parts, in UTF-8, and
paths are sorted as byte strings; *size* is the content's length in ASCII decimal
digits.  Time stamps, modes, archive formats and everything outside of those two
folders do not enter, so every honest origin of one release has one hash.

The build imports this file; by hand, `python vendor/fetch.py` does the same.
Standard library only: it also runs where nothing is installed yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

HERE = Path(__file__).resolve().parent
PIN_FILE = HERE / "libuv.toml"
TREE = HERE / "libuv"

#: What the hash covers.
HASHED_FOLDERS = ("src", "include")
#: Kept beside it: libuv's license asks for its text to go with copies.
KEPT_FILES = ("LICENSE", "LICENSE-extra")

DOWNLOAD_TIMEOUT_SECONDS = 60

_SOURCE_HINT = "set LIBUV_SOURCE to a folder or tarball of libuv, with its src/ and include/"


class VendorError(Exception):
    """libuv cannot be had.  The text is one sentence that says why and what to do."""


def load_pin() -> dict[str, Any]:
    """Read vendor/libuv.toml."""
    with PIN_FILE.open("rb") as file:
        return tomllib.load(file)


def tree_hash(tree: Path) -> str:
    """Compute the content hash of a libuv tree, as the head of this file defines it.

    Returns:
        64 hexadecimal digits; the hash of nothing if the folders are missing.
    """
    files = {
        path.relative_to(tree).as_posix().encode(): path
        for folder in HASHED_FOLDERS
        for path in (tree / folder).rglob("*")
        if path.is_file()
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(b"%s\0%d\0" % (name, len(content)))
        digest.update(content)
    return digest.hexdigest()


def ensure(tree: Path = TREE) -> Path:
    """Make sure that *tree* holds the pinned libuv; fetch it if the folder is missing.

    The network is touched only in that case.  A tree that is there is checked each
    time (a few milliseconds), and never replaced: it may be somebody's work.

    Returns:
        tree.

    Raises:
        VendorError: the tree differs from the pin, or no origin could be reached.
    """
    pin = load_pin()
    if tree.is_dir():
        found = tree_hash(tree)
        if found != pin["sha256"]:
            raise VendorError(
                f"{tree} is not libuv {pin['version']} as pinned in vendor/libuv.toml (sha256 {found} instead of "
                f"{pin['sha256']}): delete that folder and build again, and it is fetched anew."
            )
        return tree
    # Unpacked beside its place and renamed: a build that is interrupted, or another
    # one at the same time, never sees half a tree.
    with tempfile.TemporaryDirectory(prefix=".libuv-", dir=tree.parent) as scratch:
        unpacked = Path(scratch) / "libuv"
        origin = _fetch(pin, unpacked, Path(scratch))
        found = tree_hash(unpacked)
        if found != pin["sha256"]:
            raise VendorError(
                f"What {origin} holds is not libuv {pin['version']} as pinned in vendor/libuv.toml (sha256 {found} "
                f"instead of {pin['sha256']}): set LIBUV_SOURCE to an unmodified tree or tarball of libuv "
                f"{pin['version']}."
            )
        try:
            unpacked.rename(tree)
        except OSError:
            # Another build was faster; its tree is as good if it has the hash.
            if not tree.is_dir() or tree_hash(tree) != pin["sha256"]:
                raise
    return tree


def _fetch(pin: dict[str, Any], target: Path, scratch: Path) -> str:
    """Try the origins in order; return the name of the one that delivered."""
    failures = []
    for origin in pin["origin"]:
        kind = origin["kind"]
        if kind == "environment":
            source = os.environ.get(origin["variable"])
            if not source:
                continue
            # A relative path means another folder inside an installer's build.
            path = Path(source).absolute()
            name = f"{origin['variable']}={path}"
            # Named explicitly, so nothing else is tried if it does not serve.
            _take(path, "", target, name)
            return name
        try:
            if kind == "sdist":
                name = f"the source distribution of {origin['requirement']}"
                _take(_download_sdist(origin, scratch), origin["path"], target, name)
            else:
                name = origin["url"]
                _take(_download_url(origin["url"], scratch), "", target, name)
        except VendorError as error:
            failures.append(str(error).rstrip("."))
            continue
        return name
    raise VendorError(
        f"libuv {pin['version']} could not be fetched ({'; '.join(failures)}): connect to the network, or set "
        "LIBUV_SOURCE to an unpacked tree or a tarball of that release, or VELOCILOOP_SYSTEM_LIBUV=1 to link the "
        "system's libuv."
    )


def _download_sdist(origin: dict[str, str], scratch: Path) -> Path:
    requirement = origin["requirement"]
    project = requirement.partition("==")[0]
    folder = scratch / "sdist"
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--no-binary", project, "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise VendorError(f"pip could not be started: {error}.") from error
    archives = sorted(folder.glob("*.tar.gz")) if folder.is_dir() else []
    if done.returncode != 0 or not archives:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
        raise VendorError(f"pip download {requirement}: {reason}.")
    return archives[0]


def _download_url(url: str, scratch: Path) -> Path:
    target = scratch / "release.tar.gz"
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response, target.open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:  # urllib.error.URLError is one
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise VendorError(f"{url}: {reason}.") from error
    return target


def _take(source: Path, inner: str, target: Path, name: str) -> None:
    """Copy the wanted files of a tree or tarball to *target*.

    Args:
        source: a folder or a tar archive.
        inner: the folder that holds libuv, below the archive's single top folder.
        target: made here.
        name: the origin, for messages.
    """
    found = False
    try:
        with _open_files(source) as files:
            for path, read in files:
                wanted = _wanted(path, inner, is_tree=source.is_dir())
                if wanted is None:
                    continue
                found = True
                place = target / wanted
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(read())
    except FileNotFoundError as error:
        raise VendorError(f"{name} does not exist: {_SOURCE_HINT}.") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        # tarfile goes on to list what each of its methods has tried.
        reason = str(error).partition("\n")[0].rstrip(":")
        raise VendorError(f"{name} could not be read ({reason}): {_SOURCE_HINT}.") from error
    if not found:
        raise VendorError(f"{name} holds no libuv: {_SOURCE_HINT}.")


def _wanted(path: PurePosixPath, inner: str, *, is_tree: bool) -> PurePosixPath | None:
    """Where a file goes below the target, or None if it is not wanted."""
    parts = path.parts
    if not is_tree:
        prefix = PurePosixPath(inner).parts
        if parts[1 : 1 + len(prefix)] != prefix:
            return None
        parts = parts[1 + len(prefix) :]
    # A member may not climb out of the target; nothing that we want does.
    if not parts or path.is_absolute() or ".." in parts:
        return None
    if parts[0] in HASHED_FOLDERS or (len(parts) == 1 and parts[0] in KEPT_FILES):
        return PurePosixPath(*parts)
    return None


@contextlib.contextmanager
def _open_files(source: Path) -> Iterator[Iterator[tuple[PurePosixPath, Any]]]:
    """Iterate over (path, function that reads it) of a tree's or tarball's files.

    Only regular files are given, so no link, device or mode of an archive reaches
    the disk: stricter than tarfile's filter="data", which 3.11.0-3.11.3 lack.
    """
    if source.is_dir():
        yield (
            (PurePosixPath(path.relative_to(source).as_posix()), path.read_bytes)
            for folder in (*HASHED_FOLDERS, *KEPT_FILES)
            for path in sorted([source / folder, *(source / folder).rglob("*")])
            if path.is_file()
        )
        return
    with tarfile.open(source) as archive:
        yield ((PurePosixPath(member.name), _reader(archive, member)) for member in archive if member.isfile())


def _reader(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    def read() -> bytes:
        file = archive.extractfile(member)
        assert file is not None  # "If member is a regular file ... an io.BufferedReader object is returned."
        with file:
            return file.read()

    return read


def main() -> None:
    """Fetch and check; with --hash TREE only print a tree's hash."""
    if sys.argv[1:2] == ["--hash"]:
        print(tree_hash(Path(sys.argv[2])))
        return
    try:
        print(f"libuv {load_pin()['version']} is in {ensure()}")
    except VendorError as error:
        raise SystemExit(f"velociloop: {error}") from None


if __name__ == "__main__":
    main()
