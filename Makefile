# Each stage target runs the plain command it prints; nobody needs make.
#   make pretrain EXPERIMENT=recipes/qwen3_1.8b ACCELERATE=accelerate_configs/zero1.yaml
SHELL := /bin/bash
.DEFAULT_GOAL := help

EXPERIMENT ?= recipes/quickstart
ACCELERATE ?= accelerate_configs/cpu.yaml
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The quickstart and the tests are meant to need nothing: no Hub, no telemetry, no other site's settings.
OFFLINE := HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=true PYTHONNOUSERSITE=1
CORES := $(shell getconf _NPROCESSORS_ONLN)
# One process on the CPU may use every core; other topologies keep accelerate's default of one thread a rank.
THREADS = $(if $(filter %/cpu.yaml,$(ACCELERATE)),--num_cpu_threads_per_process $(CORES))
# DeepSpeed, which tests need, otherwise warns on a machine without a GPU.
ON_CPU = $(if $(filter %/cpu.yaml %/cpu_ddp.yaml,$(ACCELERATE)),DS_ACCELERATOR=cpu)
LAUNCH = $(ON_CPU) $(BIN)/python -m modeling_foundry.launch --config_file $(ACCELERATE) $(THREADS)

.PHONY: help setup quickstart plan data pretrain plot sft dpo eval app publish test test-fast check format bench clean

help: ## print every target with one line each
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  EXPERIMENT=$(EXPERIMENT)  ACCELERATE=$(ACCELERATE)  ARGS='--key=value ...'"

setup: $(INSTALLED) ## make .venv and install everything the quickstart and the tests use

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed ($(PYTHON) is $$($(PYTHON) --version)); try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 3 GB, a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: setup ## the whole life of a small model on two CPU cores, then its report
	@$(MAKE) --no-print-directory plan EXPERIMENT=recipes/quickstart
	@$(MAKE) --no-print-directory data pretrain sft dpo eval EXPERIMENT=recipes/quickstart ACCELERATE=accelerate_configs/cpu.yaml

plan: setup ## what EXPERIMENT's model will cost, before it is trained
	$(BIN)/python recipes/plan.py model --model $(EXPERIMENT)/pretrain.yaml $(ARGS)

data: setup ## tokenizer, token shards and samples
	$(OFFLINE) $(BIN)/python recipes/prepare_data.py --config $(EXPERIMENT)/data.yaml $(ARGS)

pretrain: setup ## pretrain from scratch, or go on where it was
	$(OFFLINE) $(LAUNCH) recipes/pretrain.py --config $(EXPERIMENT)/pretrain.yaml $(ARGS)

plot: setup ## the training panels of EXPERIMENT's pretraining
	$(BIN)/python recipes/pretrain.py plot --runs runs/$(notdir $(EXPERIMENT))/pretrain $(ARGS)

sft: setup ## supervised fine-tuning of the pretrained model
	$(OFFLINE) $(LAUNCH) recipes/sft.py --config $(EXPERIMENT)/sft.yaml $(ARGS)

dpo: setup ## preference optimization of the fine-tuned model
	$(OFFLINE) $(LAUNCH) recipes/dpo.py --config $(EXPERIMENT)/dpo.yaml $(ARGS)

eval: setup ## lm-eval tasks, bits per byte, stop rate, and the report
	$(OFFLINE) $(BIN)/python recipes/evaluate.py --config $(EXPERIMENT)/evaluate.yaml $(ARGS)

publish: setup ## export as a stock checkpoint with a model card; pushes only when told to
	$(BIN)/python recipes/publish.py --config $(EXPERIMENT)/publish.yaml $(ARGS)

app: setup ## chat with the trained model in the browser
	$(BIN)/python app/app.py --model runs/$(notdir $(EXPERIMENT))/dpo/model $(ARGS)

test: setup ## every test, offline
	$(OFFLINE) $(BIN)/python -m pytest $(ARGS)

test-fast: setup ## two minutes of tests, of every room: all but those marked slow
	$(OFFLINE) $(BIN)/python -m pytest -m "not slow" $(ARGS)

check: setup ## lint, format, types, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell

format: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup ## regenerate the receipts that need no GPU
	$(OFFLINE) $(BIN)/python benchmarks/run_all.py $(ARGS)

clean: ## remove the runs of EXPERIMENT (the environment stays)
	rm -rf runs/$(notdir $(EXPERIMENT))
