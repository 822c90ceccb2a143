# Two commands for a fresh machine: `make demo` and `make test`. Each does all its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := third_party/constraints.txt
MODEL ?= benchmarks/reference-10m
TEXT ?= benchmarks/data/evaluation.txt
DEMO := demo

.PHONY: help install demo test lint parity tools clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(VENV)/.installed ## make .venv with a working ewq-gguf

# The dev extra is small and pinned, so one environment serves users of the checkout and its tests.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) third_party/build_wheel.py third_party/pins.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=23.1"
	@wheel=$$($(BIN)/python third_party/build_wheel.py) && \
	echo "Installing ewq-gguf and its pinned dependencies into $(VENV)" >&2 && \
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) "$$wheel" -e ".[dev,plot]"
	@touch $@

demo: install ## convert the reference model with EWQ, measure both files, generate a few words
	@mkdir -p $(DEMO)
	$(BIN)/ewq-gguf convert $(MODEL) -o $(DEMO)/baseline.gguf --type bf16
	$(BIN)/ewq-gguf convert $(MODEL) -o $(DEMO)/ewq.gguf --method ewq
	$(BIN)/ewq-gguf evaluate perplexity $(DEMO)/baseline.gguf $(DEMO)/ewq.gguf --text $(TEXT) --chunks 20
	$(BIN)/ewq-gguf evaluate divergence $(DEMO)/ewq.gguf --baseline $(DEMO)/baseline.gguf --text $(TEXT) --chunks 20
	$(BIN)/ewq-gguf generate $(DEMO)/ewq.gguf --prompt "The history of" --tokens 32

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## ruff, mypy and the tests
	$(BIN)/python -m pytest

tools: install ## build llama.cpp's own programs for comparison
	$(BIN)/python third_party/build_tools.py

parity: tools ## compare with llama.cpp's own converter and programs (needs torch from the registry, in the cache)
	$(BIN)/python -m pytest -m parity -o addopts="-q --strict-markers" tests

clean: ## remove the environment and what demo and tests made
	rm -rf $(VENV) $(DEMO) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
