# Every target sets up its own environment in .venv, only when missing or stale.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Single-threaded BLAS: workers are the parallelism, and results must not depend on it.
export OMP_NUM_THREADS ?= 1
# Every process of a test run would compile its modules anew, and pytest rewrite all its assertions.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow faults gate proofs readers lint bench docs clean

demo: $(STAMP)
	$(BIN)/tracelab demo --out demo --force

# Tests of one file share what they set up.
PYTEST = $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

test: $(STAMP)
	$(PYTEST)

test-slow: $(STAMP)
	$(PYTEST) -m slow

faults: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m faults

gate: $(STAMP)
	$(BIN)/python -m benchmarks._gate

proofs: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m proofs

readers: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m readers

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	$(BIN)/python -m tracelab.stats
	touch $@

clean:
	rm -rf $(VENV) build dist demo docs/_build
