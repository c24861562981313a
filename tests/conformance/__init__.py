"""CPython's own asyncio tests, run from the installed interpreter, with another loop in asyncio's place.

`python -m tests.conformance --help` runs it by hand; test_conformance.py runs it under pytest.

    plan.py     which modules of test.test_asyncio are run, and which tests are left out, with the reason
    runner.py   runs modules, one child process each, and judges what came back
    child.py    the child: replaces the loop, runs one module, writes down each test's outcome
"""
