# `make` lists the targets. Only Python >= 3.10, git and make are needed; everything else is installed into .venv.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Two notebooks run side by side, and idle threads that spin would take the cores from each other.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
PACKAGING := settings.ini setup.py pyproject.toml constraints.txt
PORT   ?= 8000

.DEFAULT_GOAL := help
.PHONY: help train test notebooks pytest docs serve bench pages sync readme clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "dpo_nb needs Python >= 3.10; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: an environment is brought up to date only when the packaging files change.
$(VENV)/.installed: $(PACKAGING) | $(BIN)/python
	@echo "Installing into $(VENV): a minute or a few, the first time only"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(PACKAGING) | $(BIN)/python
	@echo "Installing into $(VENV), with the test tools: a minute or a few, the first time only"
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

train: $(VENV)/.installed  ## install, then train the embedded model on the embedded preferences (ARGS="--max_steps 20 …")
	$(BIN)/dpo_nb train $(ARGS)

test: notebooks  ## every notebook, then every test
	@$(MAKE) --no-print-directory pytest

notebooks: $(VENV)/.installed-dev  ## run every notebook as a test, with the built wheel, outside of this folder
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python scripts/test_notebooks.py

pytest: $(VENV)/.installed-dev  ## run only tests/ (ARGS="-k toy")
	$(OFFLINE) $(BIN)/python -m pytest $(ARGS)

docs: $(VENV)/.installed-dev  ## build the site into _docs/
	$(OFFLINE) $(BIN)/python scripts/docs.py

serve: docs  ## build the site and serve it on PORT (8000)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _docs $(PORT)

bench: $(VENV)/.installed-dev  ## train by turns with TRL 1.16.0, then time import and command line (ARGS="--cases SmolLM2 --repeat 3", ARGS=--list)
	$(OFFLINE) $(BIN)/python scripts/bench_trl.py $(ARGS)
	$(OFFLINE) $(BIN)/python scripts/bench.py

pages: $(VENV)/.installed-dev  ## run pages from an empty kernel and save their outputs (ARGS="nbs/pairs.ipynb")
	$(BIN)/python scripts/run_pages.py $(ARGS)

sync: $(VENV)/.installed-dev  ## write each page's first cell, clean the notebooks, export the package
	$(BIN)/python scripts/first_cell.py
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

readme: $(VENV)/.installed-dev  ## write README.md from nbs/index.ipynb
	$(BIN)/python scripts/readme.py

clean:  ## remove the environment, the site and caches; trained models and your data stay
	rm -rf $(VENV) _proc _docs build dist *.egg-info .pytest_cache nbs/nbdev.yml
	find dpo_nb scripts tests nbs -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
