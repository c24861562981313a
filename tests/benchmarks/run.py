"""All benchmarks, as `make bench` runs them."""

from __future__ import annotations

import echo


def main() -> None:
    """Run them one after the other."""
    echo.main([])
    echo.main(["--kind", "streams", "--conns", "50", "--rounds", "3"])


if __name__ == "__main__":
    main()
