# make reproduce | test | fast | check | lab | docs | bench | soak: each sets up .venv by itself.
PYTHON ?= python3
BIN = .venv/bin
WORKERS ?= 2

.PHONY: setup reproduce test fast soak lab check docs bench organism refusal-judge perf clean

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
	$(BIN)/ftlab reproduce $(ARGS)

test: .venv/test
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadgroup

fast: .venv/test
	$(BIN)/python -m pytest tests -n $(WORKERS) -m "not slow and not perf"

perf: .venv/test
	$(BIN)/python -m pytest tests -m perf

soak: .venv/test
	FTLAB_SOAK=$(or $(KILLS),50) $(BIN)/python -m pytest tests/training/test_kills.py -s

lab: .venv/lab
	$(BIN)/jupyter lab notebooks

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify $$(git ls-files 'notebooks/*.ipynb')

docs: .venv/test
	$(BIN)/python -m docs.build

bench: .venv/test
	$(BIN)/python -m benchmarks.curve $(ARGS)

organism: .venv/ready
	$(BIN)/python -m recipes.organism.build $(ARGS)

refusal-judge: .venv/test
	$(BIN)/python -m recipes.refusal_judge.train $(ARGS)

clean:
	rm -rf .venv build dist
