# AceMath Serving. `make` alone explains every target.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PROBLEM ?=
TESTS ?= tests
# How often a test that fails is run again; it stands as RERUN in the summary then, which is a bug as well (CONTRIBUTING.md).
RERUNS ?= 1

PY := .venv/bin/python
BOOT := PYTHONPATH=deploy/local/src $(PYTHON) -m acemath_local
PACKAGES := core web prompts answers registry gateway policy reward training evaluation cli local
# One worker more than cores; a file stays on one worker, the real stack on one too (tests/conftest.py).
SIDE_BY_SIDE := -n auto --dist loadscope --no-loadscope-reorder
SOURCES := libs services training evaluation cli deploy tests bench

# $(value …): a $ in a problem is a dollar sign, not a variable of make's.
export ACEMATH_PROBLEM := $(value PROBLEM)
export TORCH_CPU_INDEX

.DEFAULT_GOAL := help
.PHONY: help doctor setup setup-dev setup-train run publish solve stop test test-fast test-stack check format lint types layers \
	bench bench-reward bench-gateway interop embedded requirements clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'
	@echo '  every port and path is a setting: ACEMATH_LOCAL__PORT_BASE=18000 make run moves them all'

doctor: ## look at what this machine needs, before anything is installed
	@$(BOOT).preflight

setup: ## make .venv with what `make run` needs (does nothing when nothing changed)
	@$(BOOT).install cpu

setup-dev: ## the same with tests, checks and training (which needs a C++ compiler only when it runs)
	@$(BOOT).install dev

setup-train: ## the same with training only
	@$(BOOT).install train

run: setup ## start the whole stack, solve one problem (PROBLEM="…" for yours), serve until Ctrl-C
	@$(PY) -m acemath_local.run --problem="$$ACEMATH_PROBLEM"

solve: setup ## ask the running stack: make solve PROBLEM="…"
	@if [ -z "$$ACEMATH_PROBLEM" ]; then echo 'usage: make solve PROBLEM="…"' >&2; exit 2; fi
	@$(PY) -m acemath_local.solve -- "$$ACEMATH_PROBLEM"

stop: ## end this checkout's running stack, in order
	@$(BOOT).stop

test: setup-dev ## every test that needs no GPU, the real stack included (TESTS=tests/core for some)
	@DS_ACCELERATOR=cpu $(PY) -m pytest $(SIDE_BY_SIDE) --reruns $(RERUNS) -m 'not gpu' $(TESTS)

test-fast: setup-dev ## the inner loop: no real stack, nothing slow
	@DS_ACCELERATOR=cpu $(PY) -m pytest $(SIDE_BY_SIDE) -q -m 'not gpu and not stack and not slow and not docker' $(TESTS)

test-stack: setup-dev ## only what starts the real stack
	@DS_ACCELERATOR=cpu $(PY) -m pytest -m 'stack and not gpu' $(TESTS)

check: setup-dev ## format, lint, types, import layers; changes nothing
	@$(PY) -m ruff format --check $(wildcard $(SOURCES))
	@$(PY) -m ruff check $(wildcard $(SOURCES))
	@$(MAKE) --no-print-directory types layers

format: setup-dev ## put the code into its format and sort its imports
	@$(PY) -m ruff format $(wildcard $(SOURCES))
	@$(PY) -m ruff check --fix $(wildcard $(SOURCES))

lint: setup-dev ## ruff only
	@$(PY) -m ruff check $(wildcard $(SOURCES))

types: setup-dev ## mypy --strict on every distribution
	@$(PY) -m mypy $(foreach name,$(PACKAGES),$(if $(wildcard */*/src/acemath_$(name) */src/acemath_$(name)),-p acemath_$(name)))

layers: setup-dev ## which part may import which
	@.venv/bin/lint-imports

publish: setup ## put the embedded checkpoints into the local registry (make run does it by itself)
	@$(PY) -m acemath_local.publish

bench: setup-dev publish ## how exact the reward scores are, against transformers' (JSON, with the machine); minutes
	@$(PY) -m bench.reward_exactness "$$(ls -td .local/registry/models/acemath-embedded-reward/*/ | head -1)"

bench-reward: setup-dev publish ## the reward engine beside transformers, vLLM and infinity; half an hour on an idle machine
	@test -x .local/infinity/bin/python || bench/reward/infinity_env.sh .local/infinity
	@$(PY) -m bench.reward run "$$(ls -td .local/registry/models/acemath-embedded-reward/*/ | head -1)" \
	    --out bench/results/reward-here.json --infinity .local/infinity/bin/python

bench-gateway: setup-dev ## what the gateway adds to an answer, beside LiteLLM and optillm; an hour on an idle machine
	@for name in litellm optillm; do test -d .local/bench-gateway/$$name || \
	    bench/interop/env.sh bench/gateway/$$name-requirements.txt .local/bench-gateway/$$name || exit 1; done
	@$(PY) -m bench.gateway run --out bench/results/gateway-here.json --litellm .local/bench-gateway/litellm/bin/python \
	    --optillm .local/bench-gateway/optillm/bin/python

interop: setup-dev ## schemathesis at all three services, LangChain and lm-evaluation-harness at the gateway; minutes
	@for name in schemathesis clients; do test -d .local/interop/$$name || \
	    bench/interop/env.sh bench/interop/$$name-requirements.txt .local/interop/$$name || exit 1; done
	@$(PY) -m bench.interop

embedded: setup-train ## make the embedded checkpoints again from nothing (hours; a C++ compiler; GSM8K=train.jsonl)
	@DS_ACCELERATOR=cpu $(PY) -m acemath_training.embedded.make --work-dir .local/embedded $(if $(GSM8K),--gsm8k "$(GSM8K)")

requirements: ## resolve the pinned files again (needs uv)
	@requirements/compile.sh

clean: ## remove caches and build outputs; .venv and .local stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	@find $(wildcard $(SOURCES)) -type d \( -name __pycache__ -o -name '*.egg-info' -o -name dist -o -name build \) -prune -exec rm -rf {} +

distclean: clean stop ## remove the environment and all local state too: the next make run starts from nothing
	@rm -rf .venv .local
