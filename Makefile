# Everything a fresh machine needs: Python 3.11, a C++ compiler and make.
PYTHON ?= python3
BIN := .venv/bin
# A file's tests stay together: they share what it takes long to build.  In their order: those of few but
# long tests would else come last, one process idle beside them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(PATH)
# DeepSpeed compiles one operator on first use: built once by setup, kept here.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 180
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: setup demo up down test check bench cluster-check clean

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	$(BIN)/python -m gradelora.train.compile
	touch $@

demo: setup
	$(BIN)/python -m gradelora.sandbox.demo

# The machine that runs the deployments: docs/operations.md.
up: setup
	$(BIN)/python -m deployments.up $(if $(PORT),--port $(PORT)) $(if $(NOTIFY),--notify $(NOTIFY))

down:
	$(BIN)/python -m deployments.down

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not gpu" $(PARALLEL)

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

# A peer that only a benchmark uses lies beside the tested set, which it must not change.
.cache/peers/installed: bench/requirements-peers.txt | setup
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .cache/peers -r $<
	touch $@

bench: setup .cache/peers/installed
	for script in bench/bench_*.py; do echo "== $$script"; $(BIN)/python -m bench.$$(basename $$script .py) || exit 1; done

# Prefect on PostgreSQL and Redis, killed in the middle: docs/machines.md.
cluster-check: setup
	$(BIN)/python -m bench.cluster_check

clean:
	rm -rf .venv .cache .demo
