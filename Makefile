# Two commands: `make quickstart` and `make test`. Both set up .venv on their first call.
# `make bench` measures; leave the machine alone meanwhile.

PYTHON ?= python3
# What pip installs as torch. By default the light CPU build; for CUDA on Linux:
#   make quickstart TORCH=torch
TORCH ?= torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test bench format clean

quickstart: .venv/.installed
	$(BIN)/python examples/half_cheetah.py +experiment=quickstart

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

bench: .venv/.installed
	$(BIN)/python benchmarks/run.py

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv outputs

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed, this is " + sys.version + ": make PYTHON=python3.12 ..."'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) --editable '.[mujoco,envpool,dm-control,kitchen,ray,plots,video,examples,dev]'
	touch $@
