# `make reproduce` and `make test` set everything up; only Python 3.11 must be there.
PYTHON ?= python3.11
PROFILE ?= mini
BIN := .venv/bin
# Spinning OpenMP threads slow each other down by an order of magnitude on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: reproduce test bench lab lint
reproduce: .venv/ready
	$(BIN)/python -m hrnetpp_lib reproduce --profile $(PROFILE)

test: .venv/ready
	$(BIN)/python -m pytest -q

# OFFICIAL=DIR, a checkout of the official HRNet code, measures it beside ours.
bench: .venv/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[fast]"
	$(BIN)/python -m benchmarks.bench $(if $(OFFICIAL),--official "$(OFFICIAL)")

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/[0-9]*.ipynb

.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[fast,export,test]"
	touch $@
