# make demo    what velociloop does, on a real server, beside stdlib asyncio
# make test    the whole test suite, on PYTHON (make test PYTHON=python3.12)
# make lint    ruff, mypy --strict, import-linter
# make ctest   the shim's C tests, plain and under ASan+UBSan
# make bench   every loop beside the others: ratios, and which targets hold (BENCH_ARGS=--quick, --write, --help)
# make clean   removes all that the others made
#
# Each makes the virtual environments that it needs (.venv-*) and installs into them.

PYTHON ?= python3
# More arguments for pytest, such as -k NAME.
PYTEST_ARGS ?=
# Arguments for tests/benchmarks/run.py.
BENCH_ARGS ?=

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test lint ctest bench clean python-check

# cpython-3.13, pypy-3.11, cpython-3.14t
TAG := $(shell $(PYTHON) -c 'import sys, sysconfig; print("{}-{}.{}{}".format(sys.implementation.name, *sys.version_info[:2], "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""))' 2>/dev/null)
TEST_ENV := .venv-test-$(TAG)
BENCH_ENV := .venv-bench-$(TAG)
LINT_ENV := .venv-lint-$(TAG)

PIP = -m pip --disable-pip-version-check install -qq
PACKAGING := pyproject.toml setup.py build_ffi.py MANIFEST.in vendor/libuv.toml vendor/fetch.py
C_FILES := $(wildcard velociloop/*/*.c velociloop/*/*.h velociloop/uv/uv.cdef)
PY_FILES := $(shell find velociloop -name '*.py')

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

python-check:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("velociloop needs Python 3.11 or later; %s is %s.%s: name another one, as in make PYTHON=python3.12" % (sys.executable, *sys.version_info[:2]))'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }

# Editable, so that a change of Python code needs no new installation; with asserts.
$(TEST_ENV)/.installed: $(PACKAGING) $(C_FILES) | python-check
	@echo "== $(TEST_ENV): building velociloop with asserts, installing the tests' tools"
	@test -x $(TEST_ENV)/bin/python || $(PYTHON) -m venv $(TEST_ENV)
	@VELOCILOOP_DEBUG=1 $(TEST_ENV)/bin/python $(PIP) --prefer-binary --editable '.[test]'
	@touch $@

# As a user gets it.  setuptools keeps deleted modules in build/lib*.
$(BENCH_ENV)/.installed: $(PACKAGING) $(C_FILES) $(PY_FILES) | python-check
	@echo "== $(BENCH_ENV): building velociloop, installing what it is compared with"
	@test -x $(BENCH_ENV)/bin/python || $(PYTHON) -m venv $(BENCH_ENV)
	@rm -rf build/lib* build/bdist*
	@$(BENCH_ENV)/bin/python $(PIP) '.[bench]'
	@touch $@

# Two versions of uvloop do not fit into one environment.  A loop that cannot be installed here is left out, and said so.
$(BENCH_ENV)/.peers: $(BENCH_ENV)/.installed
	@$(BENCH_ENV)/bin/python $(PIP) '.[peers]' || echo "== not all loops could be installed here" >&2
	@$(BENCH_ENV)/bin/python $(PIP) --only-binary uvloop --no-deps --upgrade --target "$$($(BENCH_ENV)/bin/python tests/benchmarks/loops.py --old-uvloop-folder)" uvloop==0.22.1 || echo "== uvloop 0.22.1 could not be installed here" >&2
	@touch $@

$(LINT_ENV)/.installed: pyproject.toml | python-check
	@echo "== $(LINT_ENV): installing ruff, mypy, import-linter"
	@test -x $(LINT_ENV)/bin/python || $(PYTHON) -m venv $(LINT_ENV)
	@$(LINT_ENV)/bin/python $(PIP) 'setuptools>=77' 'cffi>=1.17' $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["lint"])')
	@touch $@

demo: $(BENCH_ENV)/.installed
	@$(BENCH_ENV)/bin/python tests/benchmarks/demo.py

bench: $(BENCH_ENV)/.peers
	@$(BENCH_ENV)/bin/python tests/benchmarks/run.py $(BENCH_ARGS)

test: $(TEST_ENV)/.installed
	$(TEST_ENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(LINT_ENV)/.installed
	$(LINT_ENV)/bin/ruff check .
	$(LINT_ENV)/bin/mypy
	$(LINT_ENV)/bin/lint-imports

ctest: | python-check
	@$(PYTHON) vendor/fetch.py
	$(MAKE) --no-print-directory -C tests/c PYTHON=$(PYTHON)

clean:
	rm -rf .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find velociloop tests examples vendor \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
