# make reproduce | test | soak | lab | check: each sets up .venv by itself the first time.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: setup reproduce test soak lab check clean

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ftlab needs Python >= 3.11, found " + sys.version.split()[0] + "; call make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/test: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

.venv/lab: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[lab]'
	touch $@

reproduce: .venv/ready
	$(BIN)/ftlab reproduce --out runs/reproduce $(ARGS)

test: .venv/test
	$(BIN)/python -m pytest tests

soak: .venv/test
	FTLAB_SOAK=$(or $(KILLS),50) $(BIN)/python -m pytest tests/test_kills.py -s

lab: .venv/lab
	$(BIN)/jupyter lab notebooks

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

clean:
	rm -rf .venv build dist
