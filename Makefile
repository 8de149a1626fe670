# `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PYTEST := pytest -n 2 --dist loadscope --no-loadscope-reorder
NUMBERED := $(wildcard nbs/*/[0-9]*.ipynb)
VERIFY := echo; advbn verify || [ $$? -eq 2 ]  # 2: there is nothing to compare with, and it says so
READY := $(VENV)/ready
WORKSHOP := $(VENV)/workshop
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help env workshop data say-main say-all reproduce reproduce-all check quick suite test test-slow cuda say-cuda promises zoo lint lab export readme docs dist release clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[notebooks]'
	touch $@

$(WORKSHOP): $(READY)
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	touch $@

env: $(READY)  ## the environment in .venv, for the pipeline and JupyterLab (about 2 minutes)

workshop: $(WORKSHOP)  ## and what tests, docs and releases need (about 1 more)

data: $(READY)  ## the embedded images in data/ (10 seconds)
	advbn data

reproduce: say-main data  ## environment, data, main table and figures, compared with the committed ones (about 20 minutes on two cores with AVX-512)
	dvc repro report pictures
	dvc repro --single-item page
	@echo; cat results/openmoji/tables/robustness.md results/openmoji/tables/advbn_set.md
	@$(VERIFY)

reproduce-all: say-all data  ## all of that and the further tables (about 44 minutes on two cores with AVX-512)
	dvc repro
	@echo; cat results/openmoji/tables/*.md
	@$(VERIFY)

say-main:
	@echo "environment about 2 minutes, main table and figures about 17 on two cores with AVX-512, 23 with AVX2 alone, up to 35 on older processors"

say-all:
	@echo "environment about 2 minutes, every table and figure about 42 on two cores with AVX-512, 57 with AVX2 alone, up to 85 on older processors"

check: data $(WORKSHOP)  ## the notebooks' own checks
	@test -n "$(NUMBERED)" || { echo "no numbered notebooks under nbs/" >&2; exit 1; }
	OMP_NUM_THREADS=1 nbdev_test --path nbs --file_glob '[0-9]*.ipynb' --n_workers 1

quick: data $(WORKSHOP)  ## the units of all parts (under 3 minutes on two cores)
	$(PYTEST) tests/unit -m "not slow"

suite: data $(WORKSHOP)  ## pytest without the tests marked slow
	$(PYTEST) -m "not slow"

test: data $(WORKSHOP)  ## environment, notebooks' checks and suite side by side (under 15 minutes)
	$(MAKE) -j2 check suite

test-slow: data $(WORKSHOP)  ## the rest: kills, the soak, the zoo, every command of the documents
	$(PYTEST) -m slow

cuda: say-cuda data $(WORKSHOP)  ## what needs a CUDA device: its tests, every benchmark on it, into the machine's record (sized for under 25 minutes)
	advbn bench --contribute --device cuda --estimate
	pytest -m cuda
	advbn bench --contribute --device cuda

say-cuda:
	@nvidia-smi -L 2>/dev/null | grep -q GPU || { echo "make cuda: there is no CUDA device: no driver of NVIDIA's tells of a GPU (nvidia-smi)" >&2; exit 2; }

promises: data $(WORKSHOP)  ## results/promises.csv, from the tests that keep a promise (about 5 minutes)
	$(PYTEST) tests/promises -m promise --promises results/promises.csv

zoo: $(WORKSHOP)  ## results/zoo.csv, from cuts of torchvision's and timm's networks (about 6 minutes)
	$(PYTEST) tests/whole/test_zoo.py --zoo results/zoo.csv

lint: $(WORKSHOP)  ## ruff on package, tests and notebooks: form and slips
	ruff format --check
	ruff check

lab: data  ## JupyterLab, opened on nbs/explore
	jupyter lab --notebook-dir=nbs --LabApp.default_url=/lab/tree/explore $(LAB)

export: $(WORKSHOP)  ## the package from the notebooks, and clean notebooks
	nbdev_export
	nbdev_clean

readme: $(WORKSHOP)  ## README.md from nbs/index.ipynb, with the tables of results/
	cd nbs && TQDM_DISABLE=1 jupyter nbconvert --log-level WARN --to notebook --execute --inplace index.ipynb
	nbdev_clean
	sh nbs/render.sh > README.md

docs: $(WORKSHOP)  ## the site in _docs/: the notebooks as a book, API, promises
	NO_MKDOCS_2_WARNING=1 mkdocs build -q -f docs/mkdocs.yml
	@echo _docs/index.html

dist: $(WORKSHOP)  ## wheel and source archive in dist/, checked
	python -m build --no-isolation
	twine check --strict dist/*.whl dist/*.tar.gz

release: dist docs  ## what a release's page gets, in dist/: those, site, results, weights of photograph networks, notes, digests
	python -m advbn.release

clean: ## remove what can be made again, but for the environment
	rm -rf executed progress logs predictions shifted checkpoints data data.partial data.before build dist _docs *.egg-info .pytest_cache .hypothesis .dvc/cache .dvc/tmp
