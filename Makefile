# Both commands need nothing but Python 3.11 or newer: they make .venv if it is not there.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Python keeps what it compiles, whatever the environment says: the tests start many processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint test-only browser benchmarks docs clean

demo: .venv/demo-installed
	$(BIN)/saccade demo

# What waits for the network or has one process goes beside another.
test:
	$(MAKE) --jobs=2 --no-print-directory .venv/dev-installed browser
	$(MAKE) --jobs=2 --no-print-directory .venv/triton-installed lint
	$(MAKE) --no-print-directory test-only

lint: .venv/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test-only: .venv/dev-installed .venv/triton-installed browser
	$(BIN)/pytest -n 2 --dist loadgroup

# The playground's tests need a browser; without one they are skipped. On Debian, root can have it installed.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| echo "No Chromium: the playground's tests will be skipped."

benchmarks: .venv/dev-installed
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/faithfulness.py

# The documentation as a site in build/site. (The variable silences a notice of Material for MkDocs about its successor.)
docs: .venv/dev-installed
	$(BIN)/python docs/write_cli.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo-installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[train,scenes]'
	touch $@

.venv/dev-installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --no-compile -e '.[dev]'  # most of it is never imported
	touch $@ .venv/demo-installed

# NVIDIA Triton Inference Server, in an environment of its own; on other systems than Linux on x86-64 it says why not.
.venv/triton-installed: .venv/dev-installed benchmarks/triton_server.py benchmarks/triton_onnxruntime_backend.py
	$(BIN)/python benchmarks/triton_server.py --install
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
