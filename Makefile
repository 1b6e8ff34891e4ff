# Two targets, on a fresh checkout with only python3 and make:
#   make demo   train on real digits, sample with five plans, write out/demo/report.html
#   make test   lint, types, tests
# Packages are installed into .venv when pyproject.toml or constraints.txt changed, and at the first run.

VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt
RECIPE := pyproject.toml constraints.txt

.PHONY: demo test

demo: $(VENV)/demo.stamp
	$(VENV)/bin/unstir demo

test: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2

$(VENV)/bin/python:
	python3 -m venv $(VENV)

$(VENV)/demo.stamp: $(RECIPE) | $(VENV)/bin/python
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/test.stamp: $(RECIPE) | $(VENV)/bin/python
	$(PIP) --editable '.[all,test]'
	touch $@ $(VENV)/demo.stamp
