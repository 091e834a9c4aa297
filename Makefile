# Each target works from a clean clone with Python 3.11, pip and a C compiler.
# Another torch build: make TORCH="torch==2.13.0 --index-url <the index of that build>".
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
ASSETS := data/quickstart/cache/prepared.json

.PHONY: help setup quickstart test check bench clean

help:
	@echo "make quickstart   distil a real teacher into a real student on this machine (about ten minutes)"
	@echo "make test         run the tests"
	@echo "make check        ruff and strict types"
	@echo "make bench        speed beside the floor, in one run"

# torch comes first and alone: whatever build pip finds for this machine is kept by what follows.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	touch $@

$(ASSETS): .venv/installed data/quickstart/prepare.py data/quickstart/assets.yaml
	$(BIN)/python data/quickstart/prepare.py
	$(BIN)/llm-distill fetch jobs/quickstart.yaml
	touch $@

setup: $(ASSETS)

quickstart: setup
	$(BIN)/llm-distill run jobs/quickstart.yaml

# Two processes with torch on few cores slow each other down manifold while they spin.
test: export OMP_WAIT_POLICY = PASSIVE
test: setup
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m tests.bench.asking

clean:
	rm -rf .venv data/runs data/ledger.sqlite* data/quickstart/cache
