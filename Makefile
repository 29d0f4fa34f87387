# `make quickstart` and `make test` set everything up by themselves: the virtual environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup quickstart test lint format clean

help:
	@echo "make setup       the virtual environment .venv with everything in it"
	@echo "make quickstart  build a small Moon, train it about two minutes, search with it; pictures in runs/quickstart"
	@echo "make test        the tests"
	@echo "make lint        ruff and mypy"
	@echo "make format      let ruff format the code"

setup: $(INSTALLED)

# torch first and pinned: a bare requirement would pull the CUDA build.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,eval,dev]"
	touch $(INSTALLED)

quickstart: setup
	$(BIN)/python -m training.quickstart

test: setup
	$(BIN)/python -m pytest tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info
