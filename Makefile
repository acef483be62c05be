PYTHON ?= python3
BIN := .venv/bin
# Python compiles what is imported, a fraction of the 19,000 files that pip would compile (two minutes).
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: setup demo test check docs
.DELETE_ON_ERROR:

setup: .venv/.installed
	@:

demo: setup
	@$(BIN)/vpretrain demo language

# One thread a worker: the tests are small, and two workers with all threads each fight over the same cores.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

check: setup
	@$(BIN)/ruff format --quiet --check --output-format concise . || { echo 'Some files are not in the agreed format; fix: $(BIN)/ruff format'; exit 1; }
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/mypy --no-error-summary src benchmarks

docs: .venv/.installed-docs
	@$(BIN)/zensical build --clean

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "PYTHON=$(PYTHON): vpretrain needs Python 3.11 or newer; name one, as in: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -e '.[dev,vision,eval,posttrain,sweep]'
	@touch $@

.venv/.installed-docs: .venv/.installed
	@$(INSTALL) -e '.[docs]'
	@touch $@
