PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install -q --disable-pip-version-check -c .ci/constraints.txt

# small networks gain little from threads, and two threaded programs on the same cores lose a lot
export OMP_NUM_THREADS ?= 1

.PHONY: demo test docs bench clean

demo: $(VENV)/.plot  ## the main job: noisy labels on real data, a table and noisy_labels.png
	$(BIN)/python examples/plot_noisy_labels.py

test: $(VENV)/.test  ## style, types, tests, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto

docs: $(VENV)/.docs  ## the site in docs/_build/html, the gallery executed, warnings as errors
	rm -rf docs/api/generated  # of what may have a new name
	$(BIN)/sphinx-build -q -W --keep-going -j auto docs docs/_build/html

bench: $(VENV)/.bench  ## speed and memory as ratios; run it alone on the machine
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) docs/_build docs/auto_examples docs/api/generated

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# one stamp per set of extras, made anew when the requirements change
$(VENV)/.%: pyproject.toml .ci/constraints.txt | $(BIN)/python
	$(INSTALL) torch
	$(INSTALL) -e ".[$*]"
	touch $@
