# One environment, .venv, made and kept up to date by whichever target needs it first.
# `make demo` needs Python >= 3.10, a C++ compiler and make; so do the others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
REPORT ?= report
STREAM_ARGS ?=
TEST_ARGS ?=
GPU_CHECK_ARGS ?=
BENCH_ARGS ?=
BENCHMARKS ?= benchmarks/test_ops.py benchmarks/test_overhead.py
BENCH_OUT ?= build/bench
NEWEST_TRITON := build/newest-triton
BENCH_FIGURE ?= $(BENCH_OUT)/ops.svg

SOURCES := $(shell find csrc build_backend -name '*.cpp' -o -name '*.h' -o -name '*.py') setup.py
CPP := $(shell find csrc examples tests -name '*.cpp' -o -name '*.h')

.PHONY: help demo test test-full check-pins lint format bench bench-avx2 gpu-check sanitize clean distclean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/installed  ## stream the sample clip with and without STC, and write a report
	$(BIN)/stc stream --report $(REPORT) $(STREAM_ARGS)

test: $(VENV)/installed-dev  ## run the tests: of large grids a part
	$(BIN)/python -m pytest $(TEST_ARGS)

# Triton's own pin is the one that torch asks for; its newest lies beside it, on a path of its own.
test-full: $(VENV)/installed-dev  ## run all tests and whole grids, then Triton's with its newest version
	$(BIN)/python -m pytest --full $(TEST_ARGS)
ifeq ($(shell uname -sm),Linux x86_64)
	$(PIP) install --quiet --upgrade --no-deps --target $(NEWEST_TRITON) triton
	PYTHONPATH=$(NEWEST_TRITON) $(BIN)/python -m pytest --full tests/interpret
endif

check-pins: $(VENV)/ready  ## resolve constraints.txt against PyPI for every Python, without downloading
	.ci/check-pins $(BIN)/python

lint: $(VENV)/installed-dev  ## ruff, mypy --strict and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/installed-dev  ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/installed-dev  ## time the ops, print one table and draw one figure
	@mkdir -p $(BENCH_OUT)
	$(BIN)/python -m pytest -q $(BENCHMARKS) --benchmark-quiet --benchmark-json $(BENCH_OUT)/run.json $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.report $(BENCH_OUT)/run.json --save $(BENCH_OUT)/results --figure $(BENCH_FIGURE)

# What limits each library to what a machine without AVX-512 has: our ops, torch, oneDNN and MKL.
# Graphs that inductor compiled for this machine are not for that one.
AVX2 := STC_KERNELS_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
  MKL_ENABLE_INSTRUCTIONS=AVX2 TORCHINDUCTOR_CACHE_DIR=$(abspath $(BENCH_OUT)-avx2)/inductor

bench-avx2:  ## the same, as on a machine without AVX-512
	$(AVX2) $(MAKE) bench BENCH_OUT=$(BENCH_OUT)-avx2

# No environment of its own: it takes the torch and the Triton that the machine has.
gpu-check:  ## build, test, sanitize and time on the NVIDIA GPU of this machine, without a network
	$(PYTHON) -m benchmarks.gpu_check $(GPU_CHECK_ARGS)

sanitize: $(VENV)/installed-dev  ## run the ops' tests on kernels built with ASan and UBSan
	tests/sanitize.sh $(BIN)/python

clean:  ## remove what was built, keep the environment
	rm -rf build dist *.egg-info report $(VENV)/installed
	rm -f stc_kernels/_build_info.py stc_kernels/*.so stc_kernels/*.dylib python/stc_numpy/*.so
	rm -rf python/stc_numpy/build python/stc_numpy/*.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

# torch goes in first, so that the build finds it and fetches none of its own.
$(VENV)/ready: constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) was not found: install Python 3.10 or newer, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $$($(PYTHON) --version) is too old: Python 3.10 or newer is needed, say make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch setuptools pybind11 ninja
	@touch $@

# Editable: Python files need no reinstall; C++ files are compiled again, those that changed.
$(VENV)/installed: $(VENV)/ready pyproject.toml $(SOURCES)
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[video]'
	@touch $@

# timm lies beside the environment: next to a torch for CPUs, its torchvision would break transformers.
$(VENV)/installed-dev: constraints.txt pyproject.toml | $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/timm timm torchvision
	@touch $@
