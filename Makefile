# make demo, make up, make test, make check: each makes the environment first where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo up test soak test-all check audit format bench bench-load bench-trainers clean

help: ## shows this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

install: $(INSTALLED) ## makes .venv with the pinned versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("samstudy needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,postgres,benchmark]'
	@touch $@

demo: $(INSTALLED) ## starts the service, runs examples/lambda_rho_digits.yaml, prints the table; KEEP=1 stays up
	$(BIN)/samstudy demo examples/lambda_rho_digits.yaml $(if $(KEEP),--keep)

up: $(INSTALLED) ## runs the service until Ctrl-C
	$(BIN)/samstudy up

test: $(INSTALLED) ## every test but the long ones, the real service included
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not soak" -n 3 --ignore tests/e2e --ignore tests/faults
	$(BIN)/pytest -m "not soak" tests/e2e tests/faults

soak: $(INSTALLED) ## the long tests: whatever can die does (SAMSTUDY_FAULTS_MINUTES), long trainings, every torchvision model
	$(BIN)/pytest -m soak --timeout 900

test-all: test soak ## every test

check: $(INSTALLED) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(INSTALLED) ## the installed packages against the published vulnerabilities, where their database can be reached
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[audit]'
	$(BIN)/python tools/audit.py

format: $(INSTALLED) ## formats, and mends what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## the service against the plain script that it replaces; takes about five minutes
	$(BIN)/python benchmarks/study_overhead.py

bench-load: $(INSTALLED) ## the API over 100,000 trials at 50 requests/s, beside MLflow's search; the rate of the export; about half an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[load]'
	$(BIN)/python -m benchmarks.api_load
	$(BIN)/python -m benchmarks.export_rate
	$(BIN)/python -m benchmarks.mlflow_lists

bench-trainers: $(INSTALLED) ## steps against other implementations, the data path against a DataLoader, what sampling costs, synthetic steps
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/data_path.py
	$(BIN)/python benchmarks/sampling_cost.py
	$(BIN)/python benchmarks/synthetic_steps.py

clean: ## removes the environment and every cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
