# Every target makes what it needs; `make` alone lists them.

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
WORKERS ?= 2

.PHONY: help demo site install dev check test test-oldest test-gpu test-transformers bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## train, pack and prove a small model on this machine; about three minutes
	$(BIN)/gptpack demo

site: demo/demo.gptpack ## make a page of the demo's model in the folder site, for any static host
	$(BIN)/gptpack web $< --tokenizer demo/tokenizer.model --title "gptpack's demo" -o site

demo/demo.gptpack: | $(VENV)/.installed
	$(BIN)/gptpack demo

install: $(VENV)/.installed ## make the environment .venv with gptpack in it

dev: $(VENV)/.installed-dev ## the same, with what the tests and checks need

check: $(VENV)/.installed-dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check ## lint, types and every test that needs no GPU
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --durations=15

test-oldest: ## every test, with the oldest dependencies that setup.cfg allows (torch as pinned)
	$(PYTHON) -m venv $(OLDEST)
	sed -n 's/^ *\([a-zA-Z_-]*\)>=\([0-9][0-9a-z.]*\).*/\1==\2/p' setup.cfg | \
		grep -Ev '^(torch|triton|flash-attn-4)=' | sort -u >$(OLDEST)/oldest.txt
	grep -E '^(torch|triton)=' constraints.txt >>$(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet \
		-c $(OLDEST)/oldest.txt -e '.[dev]'
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile

test-gpu: $(VENV)/.installed-dev ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu

test-transformers: $(VENV)/.installed-dev ## the plug-in's tests under each release of transformers from 5.9 on
	$(BIN)/python tests/transformers_releases.py

bench: $(VENV)/.installed-dev ## what each command takes, by parameters, tokens and cores
	$(BIN)/python benchmarks/commands.py

clean: ## remove the environment, caches and the demo's files
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gptpack needs Python 3.11 or newer; try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing gptpack and its dependencies into $(VENV)"
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests and checks need into $(VENV)"
	$(PIP) -e '.[dev]'
	@touch $@
