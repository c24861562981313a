"""Every public name of asyncio, the versions that have it, and the test of ours that covers it.

`names` derives the names from the running interpreter, ``recorded/`` holds what it derived on each supported one,
``covering.toml`` gives each name its test, `table` makes docs/compatibility.md of both, and `test_compatibility`
compares them all. After a change, or on a new Python: ``python -m tests.compatibility --help``.
"""
