PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test test-slow lint schema bench bench-rewards

# Every target makes the environment first if it is missing or pyproject.toml is newer.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(RUN)/dipp-ray demo

test: $(VENV)/installed
	$(RUN)/python -m pytest

test-slow: $(VENV)/installed
	$(RUN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy

schema: $(VENV)/installed
	$(RUN)/python -m dipp_ray.schema docs

bench: $(VENV)/installed
	$(RUN)/python jobs/bench.py

bench-rewards: $(VENV)/installed
	$(RUN)/python jobs/bench_rewards.py
