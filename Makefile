# `make quickstart` and `make test` set everything up by themselves: the virtual environment is made on first use.
PYTHON ?= python3
TORCH_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
LOWEST_INSTALLED := $(LOWEST)/.installed

.PHONY: help setup quickstart test test-slow test-lowest lint format clean

help:
	@echo "make setup       the virtual environment .venv with everything in it"
	@echo "make quickstart  search with a small trained Moon, train it a few steps further, search again; pictures in runs/quickstart"
	@echo "make test        the tests, without those that bear the marker slow, on all cores; one file: .venv/bin/pytest tests/test_readme.py"
	@echo "make test-slow   the slow tests: sweeps of kills, several trainings and processes for what a test of make test covers once"
	@echo "make test-lowest a part of the tests with the lowest versions that pyproject.toml allows, in .venv-lowest"
	@echo "make lint        ruff and mypy"
	@echo "make format      let ruff format the code"

setup: $(INSTALLED)

# torch first, at the pinned version, so that nothing that follows picks another. On Linux the package index offers its CUDA
# build, several GB: where only a CPU is wanted, name PyTorch's own CPU index, `make setup TORCH_FLAGS="--index-url …"`.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_FLAGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,eval,dev,mteb,ray,serve]"
	touch $(INSTALLED)

quickstart: setup
	$(BIN)/moon3 quickstart

# A file's tests share models and trained runs, so a file stays on one core; tests/conftest.py says which go first.
test: setup
	$(BIN)/python -m pytest tests -m "not slow" --numprocesses auto --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest tests -m slow --numprocesses auto --dist loadfile --no-loadscope-reorder

# The same for the lowest versions. `make test-lowest` needs no .venv.
$(LOWEST_INSTALLED): pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt $(TORCH_FLAGS) "$$(grep '^torch==' constraints-lowest.txt)"
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[train,eval,dev,ray,serve]"
	touch $(LOWEST_INSTALLED)

test-lowest: $(LOWEST_INSTALLED)
	$(LOWEST)/bin/python -m pytest tests -m lowest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(LOWEST) build *.egg-info
