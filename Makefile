# `make demo` and `make test` do all the set-up on a fresh machine with Python >= 3.10.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint docs bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-lint: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lint]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed        ## the heatmap of the bundled real slide, with its picture
	$(BIN)/streamwsi demo

test: $(VENV)/.installed-test   ## the whole suite, in WORKERS processes (2; 0: one after the other, as plain pytest does)
	$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),2) --dist worksteal

soak: $(VENV)/.installed-test   ## KILLS kills at random moments (100), drawn from SEED (another one each time)
	$(BIN)/python -m tests.faults.soak --kills $(or $(KILLS),100) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.installed-lint   ## ruff, mypy on the package, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.installed-test   ## docs/reference.md, and the pictures of the tutorials (PyTorch is needed for those of one)
	$(BIN)/python -m tools.reference
	$(BIN)/python -m tools.pages

bench: $(VENV)/.installed-bench ## streamwsi beside the JPEG decoder and what else one could use; ARGS='--quick', see benchmarks/
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) demo-output
