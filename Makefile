# `make demo` and `make test` are all that a newcomer needs; both make .venv first
VENV := .venv
PYTHON ?= python3
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: setup demo test test-slow lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/ready

# made again when a pin or a dependency changes
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Unmask needs Python 3.11 or later; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "making $(VENV): 2.5 GB at the versions of constraints.txt, in some minutes, of which pip says nothing; this is done once"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(VENV)/bin/unmask demo --output runs/demo

# the models of the tests are so small that a second thread only makes the first one wait: two processes share the tests instead
test: setup
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=true $(VENV)/bin/python -m pytest -m "not slow" -n 2 --dist worksteal

# those too that take a minute each: several nodes and training on a Ray cluster
test-slow: setup
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=true $(VENV)/bin/python -m pytest -m slow

lint: setup
	$(VENV)/bin/ruff check src tests bench
	$(VENV)/bin/ruff format --check src tests bench
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
