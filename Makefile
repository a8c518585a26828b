PYTHON ?= python3
NPROC ?= 2
ARGS ?=
BIN := .venv/bin
WALLS := $(BIN)/python -c 'from importlinter.cli import lint_imports_command as lint; lint()' # its script is missing where it comes with a pod's Python
NUMERICS := tests/verify tests/triton_hooks tests/checks tests/worker
export PYTHON
export PYTHONDONTWRITEBYTECODE = # byte code is written, whatever an image says: hundreds of processes import torch

.DEFAULT_GOAL := help
.PHONY: help setup run quick check test snapshots torture lint fmt type gpu selftest contents engines bench-gpucheck pyz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv: this Python's own torch where it has one, else the CPU set
	@.ci/setup run

run: setup ## set up, then check NPROC=2 ranks on the GPUs here, or on the CPU; ARGS= adds options
	$(BIN)/gpucheck run --nproc $(NPROC) $(ARGS)

quick: lint ## style, import walls and all tests that need no torch: under a minute
	@$(BIN)/python .ci/without_torch.py
	.cache/no-torch/bin/python -m pytest -n 2 --dist loadfile -q -r fE $(ARGS)

check: quick type ## quick, then types, and the tests of numerics and of a rank
	$(BIN)/python -m pytest -n 2 --dist loadfile -q --complete $(NUMERICS) $(ARGS)

test: ## set up, then style, import walls, types and all tests
	@.ci/setup test
	@$(MAKE) --no-print-directory lint type
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --complete $(ARGS)

snapshots: ## write the texts in tests/snapshots anew, after words were changed on purpose
	@.ci/setup test
	$(BIN)/python -m pytest -n 2 --dist loadfile -q --snapshots $(ARGS)

torture: ## kill and stop each process of a run at random moments, again and again; plant on every rank
	@.ci/setup test
	nice -n 10 $(BIN)/python -m pytest -m torture -n 3 $(ARGS)

lint: ## style and import walls
	@.ci/setup quick
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(WALLS) --no-logo 2>/dev/null || $(WALLS)

fmt: ## format the code
	@.ci/setup quick
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

type: ## static types
	@.ci/setup test
	$(BIN)/python -m mypy

gpu: setup ## the gate on every GPU here
	$(BIN)/gpucheck run gate $(ARGS)

selftest: setup ## plant faults in real runs, on the GPUs here or on the CPU, and check that the reports find them
	$(BIN)/gpucheck selftest $(ARGS)

contents: ## test the adapters with each known library content and our kernels with each known Triton
	@.ci/setup test
	@.ci/contents
	GPUCHECK_TEST_CONTENTS=$(CURDIR)/.cache/contents GPUCHECK_TEST_TRITONS=$(CURDIR)/.cache/tritons \
		$(BIN)/python -m pytest tests/library/adapters/test_pairs.py tests/checks/test_compile.py \
		tests/tools/selftest/test_planted_kernels.py $(ARGS)

engines: ## test each known release of a serving engine, and plant each fault in one, on the CPU
	@.ci/setup test
	GPUCHECK_TEST_ENGINES=1 $(BIN)/python -m pytest tests/end_to_end/test_engine*.py \
		tests/end_to_end/test_judge.py tests/end_to_end/test_serving.py tests/library/engines $(ARGS)

bench-gpucheck: setup ## how long gpucheck takes here, beside an earlier version (ARGS="--against REVISION") and a bare script
	$(BIN)/python .ci/bench/bench.py $(ARGS)

pyz: setup ## dist/gpucheck.pyz: one file that a pod's own Python runs without installing anything
	$(BIN)/python .ci/bundle/build.py

clean: ## remove the environment, caches and runs
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache runs build dist *.egg-info
