"""Prints what vendor/libuv.toml says of this platform as assignments for make.

The list of libuv's files, defines and flags stands there and nowhere else.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vendor"))

import fetch


def main() -> None:
    """Print one assignment a line."""
    pin = fetch.load_pin()
    platform = sys.platform.rstrip("0123456789")
    if platform not in pin:
        raise SystemExit(f"vendor/libuv.toml has no table for the platform {platform!r}")
    tables = [pin["common"], pin[pin[platform]["family"]], pin[platform]]

    def collect(key: str, prefix: str = "") -> str:
        return " ".join(prefix + value for table in tables for value in table.get(key, []))

    print("UV_SOURCES :=", collect("sources"))
    print("UV_CPPFLAGS :=", collect("include", "-I$(UV)/"), collect("defines", "-D"))
    print("UV_CFLAGS :=", collect("flags"))
    print("UV_LIBS :=", collect("libraries", "-l"))


if __name__ == "__main__":
    main()
