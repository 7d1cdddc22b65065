# Each target works alone on a fresh clone: it makes .venv and installs what is pinned in constraints.txt.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help setup demo smoke docs test test-lowest quick lint slow fuzz clean

help:
	@echo "make demo   a small study of generated images: MAE pre-training, three transfers, table and page; three minutes"
	@echo "make smoke  mae_vit_l to COCO at its real size: smoke preset, generated images, 7 GB"
	@echo "make test   lint, types and the test suite"
	@echo "make test-lowest  tests of configuration, data, runs and wheel on the lowest versions that are allowed"
	@echo "make quick  the tests that take seconds, for daily work (under 4 minutes)"
	@echo "make slow   the long tests: real-size learning and resume checks"
	@echo "make fuzz   7,600 damaged and odd inputs through all readers"
	@echo "make docs   the documentation as a site, in site/; warnings are errors (Python 3.11 or later)"
	@echo "make clean  remove .venv and the runs of demo and smoke"

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,tensorboard]'
	touch $@

demo: setup
	$(VENV)/bin/mae-transfer demo

smoke: setup
	rm -rf results/smoke
	$(VENV)/bin/mae-transfer transfer --task coco --backbone mae_vit_l --preset smoke --output results/smoke/coco-mae_vit_l
	$(VENV)/bin/mae-transfer tables --runs results/smoke --output results/smoke/tables.md

docs: setup
	$(PY) docs/make_config_reference.py
	$(PY) docs/make_api_reference.py
	$(VENV)/bin/zensical build --clean --strict

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	[ ! -x $(VENV)/bin/lint-imports ] || $(VENV)/bin/lint-imports  # it needs Python 3.11

# Browser tests of the report want Debian's Chromium; they are skipped, with that reason, where there is none.
test: lint
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || echo "no Chromium: browser tests are skipped"
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# Without the tests that compare with other packages, whose lowest versions are nobody's concern.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable . \
	    pytest pytest-xdist pycocotools psutil hatchling submitit transformers
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 -m "not slow and not reference" \
	    tests/config tests/data tests/results/tables tests/run_folder tests/runs tests/test_wheel.py

quick: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow and not process and not reference"

slow: setup
	$(PY) -m pytest -m slow

# Damaged and odd inputs through all readers; docs/reliability.md says how each outcome is judged.
fuzz: setup
	OMP_NUM_THREADS=1 $(PY) tests/fuzz/campaign.py

clean:
	rm -rf $(VENV) .venv-lowest results/demo results/smoke
