# Every target makes its own environment; the second time that is instant.
#   make demo                                        extend the small model that ships with the project
#   make test                                        the tests, some 3,600
#   make test PYTHON=python3.12 VENV=.venv-3.12      the same on another Python
#   make test PARITY=0 AOT=0                         without torch and transformers, without libtpu
#   make proof                                       what the TPU compiler proves; a quarter of an hour
# On Python 3.11 the tests also install torch and transformers, for parity with Hugging Face; on every
# Python libtpu, the compiler for TPUs.

PYTHON ?= python3
VENV ?= .venv
PARITY ?= 1
AOT ?= 1
# A file stays on one worker, which compiles its models once.
PYTEST_ARGS ?= -n 2 --dist loadfile
SLOW_ARGS ?= -n 2 --dist worksteal

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EXTRAS := test,parquet,zstd,tensorboard

.PHONY: help demo test slow kill lint clean parity aot proof
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make slow: tests of more than half a minute   make kill: SIGKILL proofs   make lint   make clean"

demo: $(VENV)/.run
	$(BIN)/python -m jaxrope.demo run

test slow proof: export PYTHONPATH := $(abspath $(VENV))/aot

test: $(VENV)/.test parity aot
	$(BIN)/python -m pytest $(PYTEST_ARGS) --durations=15

slow: $(VENV)/.test parity aot
	$(BIN)/python -m pytest $(SLOW_ARGS) -m slow --durations=15

kill: $(VENV)/.test
	$(BIN)/python tests/kill_search.py --kills=20
	$(BIN)/python tests/kill_train.py --kills=20

proof: $(VENV)/.test aot
	$(BIN)/python tests/proof.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV)

$(VENV)/.run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make TARGET PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.run pyproject.toml
	$(PIP) --editable ".[$(EXTRAS)]"
	touch $@

# torch first, pinned and by its name: on Python 3.11 that is a build for the CPU. Without it the
# parity tests skip and say so, so a failure here is no failure of the tests.
parity: $(VENV)/.test
	@if [ "$(PARITY)" = 1 ] && [ ! -e $(VENV)/.parity ] && \
	    $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  if $(PIP) torch==2.13.0 && $(PIP) 'transformers>=5,<6'; then touch $(VENV)/.parity; \
	  else echo "torch could not be installed: the parity tests are skipped"; fi; \
	fi

# The compiler for TPUs, a wheel for Linux, in a folder of its own: where jax finds it unasked, every
# program looks for a TPU first. Without it its tests skip and say so.
aot: $(VENV)/.test
	@if [ "$(AOT)" = 1 ] && [ ! -e $(VENV)/aot/.done ]; then \
	  if $(PIP) --no-deps --target $(VENV)/aot libtpu==0.0.52; then touch $(VENV)/aot/.done; \
	  else echo "libtpu could not be installed: the tests of the TPU compiler are skipped"; fi; \
	fi
