# Everything a reader, a contributor or CI runs. Each target makes its own environment when there is none.
#   VENV=folder     where the environment lives (default .venv); a folder with your own environment is used as it is
#   PYTHON=python3  the Python that makes it (default: the oldest installed one from 3.11 on)
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?=
PY := "$(VENV)/bin/python"

export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONWARNINGS ?= ignore::DeprecationWarning
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help env book test check course pdf lab weights feed gpu bench lock address clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1	\2/' | expand -t 18

env:  ## make the environment, if it is missing or out of date
	@scripts/environment.sh "$(VENV)" "$(PYTHON)"

book: env  ## run every chapter and build the book into _build/html
	@$(PY) scripts/build_book.py

test: env  ## run the tests, in a real browser too; builds the book first if need be (ARGS= goes to pytest)
	@$(PY) scripts/build_book.py --if-needed
ifdef ARGS
	@echo "minilib: running the tests"
	@$(PY) -m pytest $(ARGS)
else
	@echo "minilib: the pages, slides and course, alone, since paint is timed; then all else, on two cores"
	@$(PY) -m pytest -m book; pages=$$?; $(PY) -m pytest -m "not book" -n 2 --dist loadfile && exit $$pages
endif

check: env  ## format, lint, types, stripped notebooks, architecture
	@echo "minilib: format" && $(PY) -m ruff format --check .
	@echo "minilib: lint" && $(PY) -m ruff check .
	@echo "minilib: types" && $(PY) -m mypy
	@echo "minilib: notebooks and architecture" && $(PY) -m pytest -q tests/test_architecture.py tests/test_notebooks.py

course: env  ## write student and instructor notebooks, slides, assignments and the key into _build/course
	@$(PY) scripts/build_book.py --if-needed
	@$(PY) scripts/course.py

pdf: env  ## print the built book into _build/book.pdf (needs Chromium)
	@$(PY) scripts/build_book.py --if-needed
	@$(PY) scripts/print_book.py

lab: env  ## open the chapters in JupyterLab
	@echo "minilib: opening notebooks/ in JupyterLab; stop it with Ctrl-C"
	@$(PY) -m jupyterlab notebooks $(ARGS)

weights: env  ## train the tiny models again (resumable)
	@echo "minilib: training the tiny models of minilib/weights"
	@$(PY) scripts/train_weights.py $(ARGS)

feed: env  ## run the curation experiment of chapter 07 again (resumable; an hour on one core)
	@echo "minilib: training 60 small CLIPs on raw, matched, random and curated pairs"
	@$(PY) scripts/feed_experiment.py $(ARGS)

gpu: env  ## measure DIVA on this machine's GPU and write minilib/data/gpu.json (ARGS=--tiny tries it on a CPU)
	@echo "minilib: measuring DIVA at real size and the toy experiment at greater length"
	@$(PY) scripts/gpu.py $(ARGS)

bench: env  ## our speed beside the peers', as ratios from one run
	@for script in benchmarks/*.py; do echo "minilib: $$script"; $(PY) "$$script" $(ARGS) || exit 1; done

lock: env  ## rewrite requirements.lock from pyproject.toml
	@scripts/lock.sh $(PY)

address:  ## write the repository's address everywhere it must stand (URL=https://host/owner/name)
	@python3 scripts/set_address.py "$(URL)"

clean:  ## remove what the build and the tools wrote; the environment stays
	@rm -rf _build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	@echo "minilib: removed _build and caches; the environment in $(VENV) stays"
