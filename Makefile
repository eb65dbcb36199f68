PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test test-slow lint schema bench bench-rewards

# Every target makes the environment first if it is missing or pyproject.toml is newer. Nothing is compiled ahead: that
# would take a minute, and Python compiles what is imported when it is: also where images of containers forbid it, for
# else each of a run's processes would compile some 4,700 modules anew, 20 seconds of a core each.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(RUN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable

$(VENV)/package: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/installed: $(VENV)/package
	$(INSTALL) ".[dev]"
	touch $@

demo: $(VENV)/package
	$(RUN)/dipp-ray demo

# Two files at a time, whatever the machine.
test: $(VENV)/installed
	$(RUN)/python -m pytest -n 2 --dist loadfile

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
