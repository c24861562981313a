"""vendor/fetch.py: the pin, the origins, and what is said when there is none."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from project import DEAD_ADDRESS, OFFLINE, load_fetch


@pytest.fixture
def fetch() -> ModuleType:
    return load_fetch()


@pytest.fixture
def libuv(fetch: ModuleType) -> Path:
    """The real tree, which the build of what is tested here has used."""
    tree: Path = fetch.ensure()
    return tree


@pytest.fixture(autouse=True)
def no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBUV_SOURCE", raising=False)


def small_tree(folder: Path, **changes: bytes) -> Path:
    files = {"src/a.c": b"int a;\n", "src/unix/b.c": b"int b;\n", "include/uv.h": b"", "LICENSE": b"free", **changes}
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return folder


def pin(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, tree: Path, *origins: dict[str, str]) -> None:
    """Pin `tree` in place of libuv."""
    environment = {"kind": "environment", "variable": "LIBUV_SOURCE"}
    wanted = {"version": "9.9.9", "sha256": fetch.tree_hash(tree), "origin": [environment, *origins]}
    monkeypatch.setattr(fetch, "load_pin", lambda: wanted)


def tarball(path: Path, tree: Path, mode: Any = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(tree, "libuv-v9.9.9")
    return path


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# -- the hash -----------------------------------------------------------------------


def test_hash_is_as_defined(fetch: ModuleType, tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "tree")
    text = b"include/uv.h\x000\x00" + b"src/a.c\x007\x00int a;\n" + b"src/unix/b.c\x007\x00int b;\n"
    assert fetch.tree_hash(tree) == hashlib.sha256(text).hexdigest()


def test_hash_sees_names_and_contents_only(fetch: ModuleType, tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "tree")
    before = fetch.tree_hash(tree)
    os.utime(tree / "src/a.c", (1, 1))
    (tree / "src/a.c").chmod(0o755)
    (tree / "test").mkdir()
    (tree / "test/c.c").write_bytes(b"outside of what is hashed")
    assert fetch.tree_hash(tree) == before
    (tree / "src/a.c").rename(tree / "src/c.c")
    renamed = fetch.tree_hash(tree)
    (tree / "src/c.c").write_bytes(b"int c;\n")
    assert len({before, renamed, fetch.tree_hash(tree)}) == 3


def test_pin_fits_what_is_compiled(fetch: ModuleType, libuv: Path) -> None:
    wanted = fetch.load_pin()
    assert fetch.tree_hash(libuv) == wanted["sha256"]
    tables = {name: table for name, table in wanted.items() if isinstance(table, dict)}
    assert {"common", "unix", "win32", "linux", "darwin"} <= tables.keys()
    for name, table in tables.items():
        missing = [source for source in table["sources"] if not (libuv / source).is_file()]
        assert not missing, f"[{name}] names files that libuv does not have: {missing}"
    header = (libuv / "include/uv/version.h").read_text()
    numbers = [header.partition(f"#define UV_VERSION_{part}")[2].split()[0] for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(numbers) == wanted["version"]


# -- a tree that is there -------------------------------------------------------------


def test_present_tree_is_checked_and_kept(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = small_tree(tmp_path / "libuv")
    pin(fetch, monkeypatch, tree)
    assert fetch.ensure(tree) == tree
    (tree / "src/a.c").write_bytes(b"int changed;\n")
    with pytest.raises(fetch.VendorError) as caught:
        fetch.ensure(tree)
    text = one_sentence(caught.value)
    assert str(tree) in text
    assert "is not libuv 9.9.9" in text
    assert "delete that folder" in text
    assert (tree / "src/a.c").read_bytes() == b"int changed;\n"


# -- LIBUV_SOURCE ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tree", "w", "w:gz", "w:xz"])
def test_source_tree_and_tarball(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    origin = small_tree(tmp_path / "origin", **{"test/big.c": b"not wanted"})
    pin(fetch, monkeypatch, origin)
    source = origin if form == "tree" else tarball(tmp_path / "libuv.tar", origin, form)
    monkeypatch.setenv("LIBUV_SOURCE", str(source))
    (tmp_path / "vendor").mkdir()
    tree = fetch.ensure(tmp_path / "vendor/libuv")
    assert sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()) == [
        "LICENSE",
        "include/uv.h",
        "src/a.c",
        "src/unix/b.c",
    ]
    assert os.listdir(tmp_path / "vendor") == ["libuv"]


@pytest.mark.parametrize("form", ["tree", "w:gz"])
def test_source_that_differs_is_refused(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    pin(fetch, monkeypatch, small_tree(tmp_path / "right"))
    wrong = small_tree(tmp_path / "wrong", **{"src/a.c": b"int evil;\n"})
    source = wrong if form == "tree" else tarball(tmp_path / "libuv.tar", wrong, form)
    monkeypatch.setenv("LIBUV_SOURCE", str(source))
    (tmp_path / "vendor").mkdir()
    with pytest.raises(fetch.VendorError) as caught:
        fetch.ensure(tmp_path / "vendor/libuv")
    text = one_sentence(caught.value)
    assert str(source) in text
    assert "unmodified" in text
    assert os.listdir(tmp_path / "vendor") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "does not exist"), (b"no archive at all", "could not be read"), ({"README": b""}, "holds no libuv")],
    ids=["missing", "no archive", "other archive"],
)
def test_source_that_is_no_libuv(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, reason: str
) -> None:
    pin(fetch, monkeypatch, small_tree(tmp_path / "right"), {"kind": "url", "url": DEAD_ADDRESS})
    source = tmp_path / "given.tar.gz"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other/README").touch()
        tarball(source, tmp_path / "other")
    monkeypatch.setenv("LIBUV_SOURCE", str(source))
    (tmp_path / "vendor").mkdir()
    with pytest.raises(fetch.VendorError) as caught:
        fetch.ensure(tmp_path / "vendor/libuv")
    text = one_sentence(caught.value)
    assert reason in text
    assert str(source) in text
    assert os.listdir(tmp_path / "vendor") == []


def test_a_tarball_writes_nowhere_else(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = small_tree(tmp_path / "origin")
    pin(fetch, monkeypatch, origin)
    source = tarball(tmp_path / "libuv.tar", origin, "w")
    with tarfile.open(source, "a") as archive:
        for name in ("../escaped", "libuv-v9.9.9/src/../../../escaped", str(tmp_path / "escaped")):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("libuv-v9.9.9/src/link.c")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/hostname"
        archive.addfile(link)
    monkeypatch.setenv("LIBUV_SOURCE", str(source))
    (tmp_path / "vendor").mkdir()
    tree = fetch.ensure(tmp_path / "vendor/libuv")
    assert not list(tmp_path.rglob("escaped"))
    assert not os.path.lexists(tree / "src/link.c")


# -- other origins ----------------------------------------------------------------------


def test_no_origin_reachable(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = {"kind": "sdist", "requirement": "uvloop==0.23.0", "path": "vendor/libuv"}
    release = {"kind": "url", "url": f"{DEAD_ADDRESS}/libuv.tar.gz"}
    pin(fetch, monkeypatch, small_tree(tmp_path / "right"), sdist, release)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "vendor").mkdir()
    with pytest.raises(fetch.VendorError) as caught:
        fetch.ensure(tmp_path / "vendor/libuv")
    text = one_sentence(caught.value)
    for part in ("uvloop==0.23.0", release["url"], "LIBUV_SOURCE", "VELOCILOOP_SYSTEM_LIBUV=1"):
        assert part in text
    assert os.listdir(tmp_path / "vendor") == []


def test_next_origin_is_tried(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = small_tree(tmp_path / "origin")
    archive = tarball(tmp_path / "libuv.tar.gz", origin)
    dead = {"kind": "url", "url": f"{DEAD_ADDRESS}/libuv.tar.gz"}
    pin(fetch, monkeypatch, origin, dead, {"kind": "url", "url": archive.as_uri()})
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "vendor").mkdir()
    assert (fetch.ensure(tmp_path / "vendor/libuv") / "src/a.c").is_file()


def test_two_builds_at_once(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = small_tree(tmp_path / "origin")
    pin(fetch, monkeypatch, origin)
    monkeypatch.setenv("LIBUV_SOURCE", str(origin))
    target = tmp_path / "vendor/libuv"
    target.parent.mkdir()
    take = fetch._take

    def take_late(*args: Any) -> None:
        take(*args)
        shutil.copytree(origin, target)  # the other build was faster

    monkeypatch.setattr(fetch, "_take", take_late)
    assert fetch.ensure(target) == target
    assert os.listdir(target.parent) == ["libuv"]


@pytest.mark.packaging
def test_the_package_index_delivers_it(fetch: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "vendor").mkdir()
    tree = fetch.ensure(tmp_path / "vendor/libuv")
    assert fetch.tree_hash(tree) == fetch.load_pin()["sha256"]
    assert (tree / "LICENSE").is_file()


def test_by_hand(fetch: ModuleType, libuv: Path) -> None:
    script = Path(fetch.__file__ or "")
    done = subprocess.run(
        [sys.executable, "-I", script, "--hash", libuv], capture_output=True, text=True, check=True, cwd=script.anchor
    )
    assert done.stdout.strip() == fetch.load_pin()["sha256"]
