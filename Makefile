# Each target sets up all that it needs, once, into .venv. A machine with Python >= 3.11, make and package registries is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP_ARGS ?=
# Kernels run in Triton's interpreter where there is no GPU; the package decides, this only makes it visible.
export PYTHONUNBUFFERED = 1

.PHONY: setup model browser lab test test-all book bench bench-gpu mutants lint claims clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[hf,book,dev]"
	touch $@

model: setup
	@$(BIN)/tutor fetch

browser: setup
	@$(BIN)/tutor browser

lab: model
	$(BIN)/tutor lab

test: model browser
	$(BIN)/tutor test

test-all: model browser
	$(BIN)/tutor test --all

book: model
	$(BIN)/tutor book

claims: model
	$(BIN)/tutor claims --run all

bench: model
	$(BIN)/tutor bench

bench-gpu: setup
	$(BIN)/tutor bench --gpu

mutants: model
	$(BIN)/tutor mutants

lint: setup
	$(BIN)/tutor lint

clean:
	rm -rf book/_build build dist *.egg-info tests/mutants/work
