# Each target works alone on a fresh clone: it makes .venv and installs what is pinned in constraints.txt.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help setup demo test quick lint slow fuzz clean

help:
	@echo "make demo   mae-transfer transfer: mae_vit_l to COCO, smoke preset, generated images; then mae-transfer tables"
	@echo "make test   lint, types and the test suite"
	@echo "make quick  the tests that take seconds, for daily work (under 4 minutes)"
	@echo "make slow   the long tests: real-size learning and resume checks"
	@echo "make fuzz   7,600 damaged and odd inputs through all readers"
	@echo "make clean  remove .venv and the demo's runs"

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,tensorboard]'
	touch $@

demo: setup
	rm -rf results/demo
	$(VENV)/bin/mae-transfer transfer --task coco --backbone mae_vit_l --preset smoke --output results/demo/coco-mae_vit_l
	$(VENV)/bin/mae-transfer tables --runs results/demo --output results/demo/tables.md

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

quick: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow and not process and not reference"

slow: setup
	$(PY) -m pytest -m slow

# Damaged and odd inputs through all readers; docs/reliability.md says how each outcome is judged.
fuzz: setup
	OMP_NUM_THREADS=1 $(PY) tests/fuzz/campaign.py

clean:
	rm -rf $(VENV) results/demo
