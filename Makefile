# `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/ready
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help env data say-main say-all reproduce reproduce-all check test lab export readme clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

env: $(READY)  ## the environment in .venv (about 3 minutes)

data: $(READY)  ## the embedded images in data/ (10 seconds)
	advbn data

reproduce: say-main data  ## environment, data, main table and figures (about 20 minutes on two cores)
	dvc repro report pictures
	dvc repro --single-item page
	@echo; cat results/openmoji/tables/robustness.md results/openmoji/tables/advbn_set.md

reproduce-all: say-all data  ## all of that and the further tables (about 50 minutes on two cores)
	dvc repro
	@echo; cat results/openmoji/tables/*.md

say-main:
	@echo "environment 2 to 3 minutes, main table and figures about 20 on two cores"

say-all:
	@echo "environment 2 to 3 minutes, every table and figure about 50 on two cores"

check: data  ## the notebooks' own checks
	nbdev_test --path nbs --file_glob '[0-9]*.ipynb' --n_workers 2

test: check  ## environment, the notebooks' own checks, pytest (about 15 minutes on two cores)
	pytest

lab: data  ## JupyterLab on the notebooks
	jupyter lab nbs

export: $(READY)  ## the package from the notebooks, and clean notebooks
	nbdev_export
	nbdev_clean

readme: $(READY)  ## README.md from nbs/index.ipynb, with the tables of results/
	cd nbs && TQDM_DISABLE=1 jupyter nbconvert --log-level WARN --to notebook --execute --inplace index.ipynb
	nbdev_clean
	sh nbs/render.sh > README.md

clean: ## remove what can be made again, but for the environment
	rm -rf executed progress predictions shifted checkpoints data build dist *.egg-info .pytest_cache .hypothesis .dvc/cache .dvc/tmp
