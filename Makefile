# Needs python3.11, gcc, make and a package index; everything else is installed into .venv.

PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev
MYPY_PATH := build/mypy

# Waiting threads that spin slow down whatever else runs on the machine.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo setup model test test-rows test-document load test-crash bench bench-serve bench-store bench-train check fix docs

help:
	@echo "make demo    a dialogue into a memory, its questions four ways side by side"
	@echo "             (DATA=FILE ROW=ID for a dialogue of yours)"
	@echo "make setup   everything needed to work on it, in .venv"
	@echo "make test    install what is missing and run every test"
	@echo "make test-crash  processes killed at every step and at random, for minutes; counts printed"
	@echo "make test-rows  10,000 random batches: no row ever says what another's adapter would; counts printed"
	@echo "make test-document  schemathesis on the OpenAPI document: no 5xx; counts printed"
	@echo "make load    50 people for five minutes, the server killed in the middle; counts printed"
	@echo "make bench-serve  figures of serving, docs/serving-benchmarks.md; goes on where it was"
	@echo "make bench-store  the store on SQLite and PostgreSQL, docs/store-benchmarks.md (USERS=10000)"
	@echo "make bench-train  questions a second in training, and the share of the matrix peak"
	@echo "make bench   evaluations of docs/benchmarks.md, and the page again (LIMIT=60 people;"
	@echo "             DMR=FILE and MEMBENCH=FILE for dialogues); goes on where it was"
	@echo "make check   format, lint, types, import contracts, freshness of the docs"
	@echo "make fix     what can be corrected by itself"
	@echo "make docs    write the generated pages of docs/ again"

demo: $(INSTALLED)
	@$(BIN)/memory demo $(if $(DATA),--data '$(DATA)') $(if $(ROW),--row '$(ROW)')

setup: $(INSTALLED_DEV)

# Tests of the real base model skip themselves without it, so go on where it cannot be had.
model: $(INSTALLED)
	@$(BIN)/memory models pull || echo "no base model: its tests will be skipped"

test: $(INSTALLED_DEV) model
	$(BIN)/python -m pytest -rs -n auto --maxprocesses 8 --dist worksteal

test-rows: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -q -s tests/unit/inference/test_batch.py -k adapter_of_another

test-document: $(INSTALLED_DEV)
	DOCUMENT_EXAMPLES=$${DOCUMENT_EXAMPLES:-100} $(BIN)/python -m pytest -q -s tests/e2e/test_document.py

load: $(INSTALLED_DEV)
	$(BIN)/python -m tests.load

test-crash: $(INSTALLED_DEV)
	CRASH_ROUNDS=$${CRASH_ROUNDS:-25} $(BIN)/python -m pytest -q -s tests/integration/test_crashes.py

bench-train: $(INSTALLED) model
	@$(BIN)/memory train bench smollm2-135m

bench: $(INSTALLED) model
	$(INSTALL) -e '.[eval]'
	$(BIN)/python docs/benchmarks.py $(if $(LIMIT),--limit $(LIMIT)) $(if $(DMR),--dmr '$(DMR)') $(if $(MEMBENCH),--membench '$(MEMBENCH)')

bench-serve: $(INSTALLED_DEV) model
	PYTHONPATH=. $(BIN)/python docs/bench_serve.py

bench-store: $(INSTALLED_DEV)
	$(BIN)/python docs/bench_store.py --users $(or $(USERS),10000)

check: $(INSTALLED_DEV) $(MYPY_PATH)/memory_cli
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=$(MYPY_PATH) $(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

fix: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED_DEV)
	$(BIN)/python docs/generate.py

$(BIN)/python:
	@echo "creating .venv"
	@$(PYTHON) -m venv .venv

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing (a few minutes the first time)"
	$(INSTALL) -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "installing what development needs"
	$(INSTALL) -e '.[dev]'
	@touch $@

# The folder cli is the package memory_cli: mypy finds it under that name here.
$(MYPY_PATH)/memory_cli:
	@mkdir -p $(MYPY_PATH)
	@ln -sfn ../../cli $@
