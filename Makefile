# `make reproduce` and `make test` set everything up; only Python 3.11 must be there.
PYTHON ?= python3.11
PROFILE ?= mini
BIN := .venv/bin
# Spinning OpenMP threads slow each other down by an order of magnitude on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: reproduce test bench book lab explore lint
reproduce: .venv/ready
	$(BIN)/python -m hrnetpp_lib reproduce --profile $(PROFILE)

test: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# OFFICIAL=DIR, a checkout of the official HRNet code, measures it beside ours.
bench: .venv/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[fast]"
	$(BIN)/python -m benchmarks.bench $(if $(OFFICIAL),--official "$(OFFICIAL)")

# REPOSITORY=https://github.com/OWNER/NAME gives the site links to the source and to where notebooks can be run.
book: .venv/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[book]"
	rm -rf build/book
	$(BIN)/python -m sphinx -W --keep-going -q -E -c docs -d build/doctrees -D public_repository=$(REPOSITORY) . build/book
	$(BIN)/python -m pytest -q -m book tests/test_docs.py

lab: .venv/ready
	$(BIN)/jupyter lab notebooks

# PICTURES=FOLDER and CHECKPOINT=FILE look at one's own.
explore: .venv/ready
	$(BIN)/python -m hrnetpp_lib explore --profile $(PROFILE) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
		$(if $(PICTURES),"$(PICTURES)")

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/[0-9]*.ipynb

.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[fast,export,test]"
	touch $@
