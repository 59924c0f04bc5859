# `make demo` and `make test` need only Python 3.11+ and the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-lowest install lint docs wheel bench clean

demo: $(VENV)/.installed
	$(BIN)/objbench run --models gmair,spair --data multimnist --protocol demo --workers 2
	$(BIN)/objbench report --paper
	$(BIN)/objbench report --html runs/report.html

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Under a minute on two cores: all tests but those marked slow, which train, time or run whole commands.
test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The tests of test-fast with the lowest versions that pyproject.toml allows, in an environment of its own (several GB).
# LOWEST_TESTS=FILES runs some of them.
test-lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(LOWEST_TESTS)

install: $(VENV)/.installed

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in build/site. A dead link fails; so does, in the tests, a public name without a docstring.
docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

# The wheel, built and tried in an environment of its own.
wheel: $(VENV)/.installed-dev
	PYTHON=$(BIN)/python .ci/wheel

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

.venv-lowest/.installed: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-lowest/lowest.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest build *.egg-info
