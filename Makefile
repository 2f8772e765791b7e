# The few verbs a person needs; each sets up what it uses. PYTHON=python3.12 make ... picks another Python.
# PADDLE=own make ... leaves PaddlePaddle to you, such as paddlepaddle-gpu in .venv.
PYTHON ?= python3
PADDLE ?= cpu
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup chat test lint parity bench clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(BIN)/llava ## make .venv with the llava command

$(BIN)/llava: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (PaddlePaddle and OpenVINO are a 250 MB download; a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(PADDLE),serve]'
	@touch $@

$(VENV)/.test: $(BIN)/llava
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(PADDLE),test]'
	@touch $@

$(VENV)/.lint: $(BIN)/llava
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(PADDLE),lint]'
	@touch $@

$(VENV)/.parity: $(VENV)/.test
	@echo "Setting up the reference: transformers on torch (large) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(PADDLE),parity]'
	@touch $@

chat: $(BIN)/llava ## chat with the small model that comes along (PHOTO=..., MODEL=...)
	@$(BIN)/llava demo $(if $(MODEL),--model-path $(MODEL)) $(if $(PHOTO),--image-file $(PHOTO))

test: $(VENV)/.test ## run the tests
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not parity"

parity: $(VENV)/.parity ## compare live with transformers on torch
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m parity

lint: $(VENV)/.lint ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.parity ## measure against transformers; see benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/chat_latency.py
	@$(BIN)/python benchmarks/load.py

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
