# Every target that runs something first makes .venv if it is missing or outdated; the system needs
# only make, g++ and a Python 3.10-3.13 with its headers and venv. PYTHON=... chooses which one.

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all matrix lint format docs benchmarks constraints dist clean distclean

BIN := .venv/bin
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))

# Two workers of one thread each: networks of a few beads are too small for more.
REPORT := build/tests.xml
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --junitxml=$(REPORT)

help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

# Candidates are run, not only looked up: a version manager's shim may exist and refuse.
env: ## Make .venv with the package, its dependencies and the developers' tools
	@for python in $(PYTHONS); do \
	    if "$$python" -c "$(SUITABLE)" 2>/dev/null; then \
	        exec "$$python" tools/bootstrap.py $(if $(PYTHON),--exact); \
	    fi; \
	done; \
	echo "No Python 3.10-3.13 with venv among: $(PYTHONS). Name one: make PYTHON=/path/to/python" >&2; \
	exit 1

demo: env ## The whole road on small data, into demo/; the last line is a JSON summary
	@$(BIN)/cgml quickstart --output demo

test: lint ## Lint, types, the fast tests, and the backends with the newest torch and OpenMM
	@$(PYTEST)
	@$(BIN)/python tools/matrix.py --quick --home $(REPORT)

test-all: lint ## Lint, types, every test, slow and GPU ones too, and `make matrix`; writes the docs' results
	@$(PYTEST) -m ""; status=$$?; $(BIN)/python tools/test_results.py $(REPORT) && exit $$status
	@$(BIN)/python tools/matrix.py --write --home $(REPORT)

matrix: env ## The backends with every pair of torch and OpenMM; writes docs/backends.md's table
	@$(BIN)/python tools/matrix.py --write

lint: env ## Style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: env ## Rewrite the sources in the house format
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

docs: env ## The documentation as a site, into build/docs
	@$(BIN)/python -m sphinx -q -W docs build/docs

benchmarks: env ## The benchmarks' quick versions
	@$(BIN)/python -m benchmarks --quick

# One file for every Python version, by environment markers. Versions already in it are kept.
constraints: env ## Update constraints/ after a change to setup.py's requirements
	@.uv/bin/uv pip compile --quiet --universal --python-version 3.10 --no-annotate \
	    --extra torchforce --extra cuda12 --extra dev --custom-compile-command "make constraints" \
	    setup.py --output-file constraints/torchforce.txt

dist: env ## Source distribution and wheel of the last commit, with checksums, into dist/
	@rm -rf dist
	@$(BIN)/python tools/release.py build

clean: ## Remove build products and caches
	@rm -rf build dist demo *.egg-info lightning_logs .mypy_cache .pytest_cache .ruff_cache
	@find . -name '.?*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove the environments too
	@rm -rf .venv .uv .matrix
