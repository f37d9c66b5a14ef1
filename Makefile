# Everything a newcomer needs: `make train`, `make test`. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Tests run side by side, in workers that have a local Ray each (about 3 GiB of memory).
WORKERS ?= 2
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: train test test-slow lint docs dist setup clean

train: setup  ## Train GPG on CartPole-v1, live progress, under a minute.
	$(PY) tuned_examples/cartpole_gpg.py

test: lint  ## Lint, types and the fast tests.
	$(PYTEST) -m "not slow and not learning"

test-slow: setup  ## The tests that take longer: many actors, learning.
	$(PYTEST) -m "slow or learning"

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: setup  ## The site, in build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# The wheel is built from the sdist. Both are installed into an environment that was empty.
dist: setup  ## The wheel and the sdist, in dist, after a smoke test of each.
	rm -rf dist build/dist
	$(PY) -m build
	$(PYTHON) -m venv build/dist
	build/dist/bin/python -m pip install --quiet dist/*.whl
	build/dist/bin/python tests/smoke.py
	build/dist/bin/python -m pip uninstall --quiet --yes rllib-gpg
	build/dist/bin/python -m pip install --quiet dist/*.tar.gz
	build/dist/bin/python tests/smoke.py

setup: $(VENV)/.installed

# Installed again when the pins change. The package itself is installed in place, so that remote
# workers on this machine import it from anywhere.
$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "This needs Python 3.11, 3.12 or 3.13; name one with: make PYTHON=python3.12 ...")'
	@echo "Installing Ray, PyTorch and all else into $(VENV): some minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --requirement requirements.txt --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis results
