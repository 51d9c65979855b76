# Everything a newcomer needs: Python 3.11, pip and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
USE    := $(VENV)/.installed
TOOLS  := $(VENV)/.tools
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

OLDEST := .venv-oldest
# Of make fuzz.
SECONDS ?= 600
SEED    ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow coverage fuzz oldest audit lint docs bench studies dist clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(TOOLS)  ## make .venv and install capalloc with its demo, test, lint and docs tools

# torch first and alone, pinned: no later package can then replace it by a CUDA build.
$(USE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e '.[demo]'
	touch $(USE)

$(TOOLS): $(USE)
	$(PIP) -c constraints.txt -e '.[test,lint,docs,dist]'
	touch $(TOOLS)

demo: $(USE)  ## train a small network on digits, measure and propagate its capacity, write demo.html
	$(BIN)/capalloc demo

test: setup  ## the test suite, in parallel (seven to ten minutes on 2 cores)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: setup  ## the long studies too
	$(BIN)/python -m pytest -n auto --dist worksteal

# Tracing costs half the suite's time again, so that `make test` goes without; PART may leave out slow folders.
coverage: setup  ## the test suite, which lines and branches of src it reaches, and any raise that it does not
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" --cov --cov-report=term:skip-covered $(PART)
	$(BIN)/python tests/raises.py

fuzz: setup  ## odd calls, damaged files, kills, ranks and modes for SECONDS (600): what came of each
	$(BIN)/python -m fuzz --seconds $(SECONDS) --seed $(SEED)

# Every lower bound of pyproject.toml, in an environment of its own; torch first, as above.
oldest:  ## the test suite on the oldest version of every dependency, in .venv-oldest
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet "$$(grep '^torch==' $(OLDEST)/constraints.txt)"
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt -e '.[test,tensorboard]'
	$(OLDEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow" --ignore=tests/docs $(PART)

audit: $(USE)  ## the pinned versions that are known to have a hole; a version that cannot be asked for fails too
	$(PIP) pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

lint: setup  ## ruff, mypy, and the one-way flow of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: setup  ## the documentation site in site/, warnings as errors
	$(BIN)/python -m zensical build --clean --strict

bench: setup  ## the timings, one run (an hour); benchmarks/RESULTS.md holds the committed ones
	$(BIN)/python -m benchmarks

studies: setup  ## the experiments whose figures and tables stand in docs (three quarters of an hour)
	$(BIN)/python -m studies

dist: setup  ## the source archive and the wheel made from it, in dist/
	$(BIN)/python -m build --outdir dist

clean:  ## remove what set-up, the demo and the site made
	rm -rf $(VENV) $(OLDEST) demo.html site dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
