# Every target does its own set-up first; see scripts/setup.sh.
PYTHON_BIN := .venv/bin/python

# The folders models/, datasets/ and tools/ must not shadow other packages of these names.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-base setup-dev demo lint test bench dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

setup: setup-dev ## make .venv with everything that development needs
	@echo "activate it with: . .venv/bin/activate"

setup-base:
	@sh scripts/setup.sh base

setup-dev:
	@sh scripts/setup.sh dev

demo: setup-base ## ask a drawn receipt, then train and evaluate on drawn shapes: 12 minutes
	$(PYTHON_BIN) tools/demo.py

lint: setup-dev ## ruff and mypy
	$(PYTHON_BIN) -m ruff check .
	$(PYTHON_BIN) -m ruff format --check .
	$(PYTHON_BIN) -m mypy -p zoo

# Tests work on tiny tensors: more threads gain nothing, and cost much where cores are shared.
test: export OMP_NUM_THREADS ?= 1
test: lint ## lint, and all tests
	$(PYTHON_BIN) -m pytest

bench: setup-dev ## compare with the reference implementations: benchmarks/RESULTS.md
	$(PYTHON_BIN) benchmarks/run.py

dist: setup-dev ## build the wheel and the source archive into dist/
	rm -rf build
	$(PYTHON_BIN) -m build --no-isolation

clean: ## remove what was built and cached; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
