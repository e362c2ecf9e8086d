# make demo       enhance the sample clip, with nothing but Python 3.11+ and make at hand
# make test       all tests but the long ones
# make test-long  the long ones
# make test-tensorrt  those that build TensorRT engines, in an environment of their own; no GPU needed
# make check      format, lint, types and tests: what CI runs
# make clean      remove what these made
#
# PYTHON=python3.12    another interpreter          VENV=path         another environment
# PYTEST_ARGS='-k fo'  passed to pytest             PIP_ARGS='...'    passed to pip, for example
#   PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu' for PyTorch's CPU build

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
SAMPLE := samples/nasa_13013.mp4
DEMO := build/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test test-long test-tensorrt check lint format clean help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "srstream needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of packages, so that a second call installs nothing.
$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[test]'
	@touch $@ $(VENV)/.base

demo: $(VENV)/.base
	@mkdir -p $(DEMO)
	$(BIN)/srstream enhance $(SAMPLE) --end 5 --overwrite --restart -o $(DEMO)/nasa_13013_4x.mp4
	@$(BIN)/python -m srstream.pipeline.compare \
		$(SAMPLE) $(DEMO)/nasa_13013_4x.mp4 $(DEMO)/before_after.png >/dev/null
	@echo
	@echo "enhanced clip         $(DEMO)/nasa_13013_4x.mp4"
	@echo "before/after picture  $(DEMO)/before_after.png   (left bicubic, right srstream)"

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(VENV)/.test
	$(BIN)/python -m pytest -m long --timeout 1800 $(PYTEST_ARGS)

# torch-tensorrt-rtx is torch-tensorrt without a driver; the two must never be installed together.
$(VENV)-tensorrt/.built: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tensorrt
	$(VENV)-tensorrt/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		--editable . torch==2.13.0 torch-tensorrt-rtx==2.13.0 hypothesis pytest pytest-timeout
	@touch $@

test-tensorrt: $(VENV)-tensorrt/.built
	FAIL_WITHOUT_TENSORRT=1 $(VENV)-tensorrt/bin/python -m pytest tests/test_tensorrt_build.py \
		--timeout 600 -W ignore $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test

clean:
	rm -rf $(VENV) $(VENV)-tensorrt build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find srstream trainer tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
