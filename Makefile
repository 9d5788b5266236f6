# Two commands set everything up: `make demo` and `make test`. Each installs what it needs into .venv and runs.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --no-warn-conflicts -c constraints.txt
DEMO ?= demo

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: help demo test test-all check fix install install-dev pretrain clean

help:
	@echo "make demo       simulated takes to a scored adapter and a report page, in minutes ($(DEMO)/report.html)"
	@echo "make test       lint, types, all tests that take minutes"
	@echo "make check      lint, types, tests that take seconds"
	@echo "make test-all   everything, slow and GPU checks included"
	@echo "make pretrain   train the embedded base model anew (an hour)"

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[reference,decord]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	# Project Aria's cameras need none of the notebooks that it asks for, with which each import of Ray and of Prefect takes a second longer.
	$(PIP) --no-deps "projectaria-tools==2.3.0; python_version < '3.13'"
	touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	$(BIN)/egomill simulate $(DEMO)/takes --takes 15 --seconds 2 --seed 7
	$(BIN)/egomill nightly $(DEMO)/takes --lake $(DEMO)/lake --report $(DEMO)/report.html
	$(BIN)/egomill status --lake $(DEMO)/lake
	# The references that we are held to, on what was just made: PyTorch3D's rasteriser, decord's pictures.
	$(BIN)/python benchmarks/splat.py --points 5000
	$(BIN)/python benchmarks/readers.py $$(find $(DEMO)/takes -name cam01.mp4 | sort | head -1)
	@echo "Open $(DEMO)/report.html"

QUICK = tests/schemas tests/kernels tests/test_layering.py --ignore tests/kernels/test_gga_triton.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright & types=$$!; $(BIN)/pytest -q $(QUICK); tests=$$?; wait $$types && exit $$tests

# Two files of tests at a time, the longest first: half of the time is waiting. Each process has a Ray of its own.
LONG = tests/tasks/training tests/flows tests/tasks/stages tests/tasks/lake

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu" --durations=20 -n 2 --dist loadfile --no-loadscope-reorder $(LONG) tests

test-all: $(VENV)/.installed-dev
	$(BIN)/pytest

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

pretrain: $(VENV)/.installed
	$(BIN)/egomill pretrain egomill/assets/base

clean:
	rm -rf $(DEMO) .pytest_cache .ruff_cache
