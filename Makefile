# make demo    train a controller and a language model         make test    lint, types and tests
# make test-all   also what is too slow for every change (not in CI)
# make bench   measured speed (not in CI)                    make claims  every claim, what is missing of it (an hour)
# make docs    the README's list, docs/metrics.md, capabilities.md, methods/ and the pictures of claims, from files and results
# make test-oldest   language models with the oldest versions that pyproject.toml allows (not in CI)
# make test-peers    losses against other libraries' own code (not in CI)
PYTHON ?= python3
BIN := .venv/bin
SHELL := bash

.PHONY: demo test test-all test-oldest test-peers mutants lint types unit bench docs claims claims-page clean
.DEFAULT_GOAL := demo

# torch 2.13.0 first and by itself: where a CPU build of it is at hand, a range would fetch the newest CUDA build instead.
.venv/base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "polopt needs Python 3.11 or newer"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/dev: .venv/base
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

.venv/language: .venv/base
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[language]'
	touch $@

demo: .venv/language
	$(BIN)/python examples/demo.py

test: lint types unit

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev
	$(BIN)/mypy

# What `make test` leaves out: every option of every part, compilation of every method ...
test-all: lint types .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m '' -W error::FutureWarning

# make mutants METHOD=ppo: which small changes of a method's file no test of it sees.
mutants: .venv/dev
	$(BIN)/python -m tests.mutants $(METHOD) --jobs 2

# Compiled once: where Python is told to write no bytecode, every process of the tests would do it again.
unit: .venv/dev
	$(BIN)/python -m compileall -q polopt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

OLDEST := .venv-oldest/bin/python
.venv-oldest/done: pyproject.toml .venv/base
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e '.[language]' 'datasets<4.1' \
		'pytest>=8' 'hypothesis>=6.100'
	touch $@

# Those tests that call what transformers, peft, datasets and torch have changed between versions.
test-oldest: .venv-oldest/done
	OMP_NUM_THREADS=1 $(OLDEST) -m pytest tests/policies/test_causal_lm.py tests/policies/test_causal_passes.py \
		tests/policies/test_causal_scoring.py tests/policies/test_text.py tests/data/test_tokenizing.py \
		tests/data/test_templates.py tests/evaluation/test_completions.py tests/training/test_language_runs.py

.venv/peers: .venv/dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[peers]'
	touch $@

test-peers: .venv/peers
	$(BIN)/python -c 'from benchmarks.environments import python_of; python_of("d3rlpy")'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/peers

bench: .venv/dev
	$(BIN)/python -m benchmarks

claims: .venv/language
	for file in claims/*.py; do $(BIN)/polopt claim $$(basename $$file .py) || exit 1; done
	$(MAKE) claims-page

docs: .venv/base
	$(BIN)/python -m polopt.cli.pages

claims-page: .venv/base
	$(BIN)/python -c 'from polopt.claims.pages import write_claims_page; print(write_claims_page())'
	$(MAKE) docs

clean:
	rm -rf .venv .venv-oldest build dist demo .mypy_cache .ruff_cache .hypothesis
