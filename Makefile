# Everything from a bare Python 3.10 or newer: `make demo`, `make test`. Nothing else is needed;
# a virtual environment is made in .venv and brought up to date when pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Arguments of pytest, e.g. `make test ARGS="-k otlp -x"`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test stack-test peers bench lint types clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo ## the main job on real input, logged to the OTLP endpoint in the environment
	@$(BIN)/otel-timespan demo $(ARGS)

test: $(VENV)/.test ## all tests; those of the real back ends only where there are some
	@$(BIN)/python -m pytest $(ARGS)

stack-test: $(VENV)/.test ## only the tests of the real back ends; none there is a failure
	@TIMESPAN_REQUIRE_STACK=1 $(BIN)/python -m pytest -m stack $(ARGS)

peers: $(VENV)/.peers ## tests of CPython, Dask, joblib and scikit-learn over this project, e.g. `make peers ARGS=dask`
	@$(BIN)/python -m tests.peers $(ARGS)

bench: $(VENV)/.dev ## the benchmarks, e.g. `make bench ARGS=--quick`
	@$(BIN)/python -m bench $(ARGS)

lint: $(VENV)/.dev ## ruff, and who imports whom (import-linter)
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy --strict on the package; mypy and pyright on programs that use it
	@$(BIN)/mypy --strict otel_timespan
	@$(BIN)/python -m pytest tests/typing

clean: ## removes the virtual environment and all caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp a set of extras; pip does nothing for what is there already. Not `--upgrade`: no surprises.
$(VENV)/.demo: EXTRAS := cli
$(VENV)/.test: EXTRAS := test
$(VENV)/.peers: EXTRAS := peers
$(VENV)/.dev: EXTRAS := dev
$(VENV)/.demo $(VENV)/.test $(VENV)/.peers $(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing otel-timespan[$(EXTRAS)] into $(VENV)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@
