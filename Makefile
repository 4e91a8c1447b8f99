# Each target creates the virtual environment by itself; only python3 (3.11 or newer), pip and make are needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install demo test test-fast lint bench gpu-check clean

.venv/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable '.[$*]'
	touch $@

install: .venv/cli

demo: .venv/cli
	$(BIN)/tpv demo

test: .venv/test
	$(BIN)/python -m pytest

# The core, the formulas and the algebra: about a minute.
FAST := $(addprefix tests/,common model jacobian perturbations estimators estimation results)
test-fast: .venv/test
	$(BIN)/python -m pytest -m "not slow" $(FAST)

lint: .venv/test .venv/lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/bench
	$(PIP) --no-deps backpack-for-pytorch curvlinops-for-pytorch nngeometry laplace-torch asdfghjkl
	$(BIN)/python -m benchmarks $(ARGS)

# Eight minutes on a GPU; without one: make gpu-check ARGS="--device cpu --minutes 4"
gpu-check: .venv/test
	PYTHONPATH=tests:examples:. $(BIN)/python -m benchmarks.gpu_check $(ARGS)

clean:
	rm -rf .venv
