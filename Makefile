# Two commands: `make quickstart` and `make test`. Both set up .venv on their first call.
# `make pixels` is the quickstart from pictures: 20 minutes.
# `make docs` builds the site, tutorials included, in docs/_build/html. `make package` builds what is
# released, and tries it in an empty environment. `make bench` measures; leave the machine alone meanwhile.
# `make gpu TORCH=torch` tries and measures all that wants a GPU, on a machine that has one.

PYTHON ?= python3
# What pip installs as torch. By default the light CPU build; for CUDA on Linux:
#   make quickstart TORCH=torch
TORCH ?= torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart pixels test nightly docs linkcheck package bench gpu format clean

quickstart: .venv/.installed
	$(BIN)/metra train env=half_cheetah preset=laptop output=outputs/quickstart

pixels: .venv/.installed
	$(BIN)/metra train env=quadruped preset=laptop total_frames=350_000 output=outputs/pixels

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

# What takes too long for each change: is learning as good as it was, does a run that fails say so?
nightly: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal -m nightly
	$(BIN)/python benchmarks/guard.py
	$(BIN)/python benchmarks/diagnosis.py chosen_by
	$(BIN)/python benchmarks/diagnosis.py held_out

docs: .venv/.docs
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --fail-on-warning --keep-going --builder html docs docs/_build/html

# Addresses of other sites: needs a network.
linkcheck: .venv/.docs
	$(BIN)/sphinx-build --builder linkcheck --define plot_gallery=0 docs docs/_build/linkcheck

package: .venv/.installed
	rm -rf dist .venv-package
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-package/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cp tests/smoke.py .venv-package/ && cd .venv-package && OMP_NUM_THREADS=1 bin/python smoke.py
	.venv-package/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.tar.gz
	cd .venv-package && OMP_NUM_THREADS=1 bin/python smoke.py
	.venv-package/bin/pip install --quiet --disable-pip-version-check "$$(ls dist/*.whl)[run,mujoco,dm-control]"
	cd .venv-package && OMP_NUM_THREADS=1 bin/python smoke.py commands

bench: .venv/.installed
	$(BIN)/python benchmarks/run.py

gpu: .venv/.installed
	$(BIN)/python benchmarks/gpu.py

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-package dist docs/_build docs/auto_tutorials docs/reference/generated outputs

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version + ": make PYTHON=python3.12 ..."'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) --editable '.[mujoco,envpool,dm-control,kitchen,ray,run,dev]'
	touch $@

.venv/.docs: .venv/.installed
	$(PIP) --editable '.[docs]'
	touch $@
