# make demo       a network learns to read digits
# make test       the test suite; with FAST=1 its core, in under a minute
# make test-slow  the tests marked slow, which make test leaves out; with PART=4 a quarter of them
# make test-outside  against PyTorch, Optax and functions of other packages, which it installs;
#                 with PART=20 every twentieth test
# make test-accelerators  programs compiled for an H100 and a TPU, without either, move no more
#                 than autodiff's; with ALL=1 every block and network compiles
# make fuzz       wrong calls of every public function, CALLS of them (100000)
# make lint       style and types
# make coverage   the lines of fnn that no test runs
# make docs       the documentation, in docs/_build
# make wheel      the package, in dist, tried in an environment of its own
# make bench      side-by-side benchmark
# Another interpreter: make test PYTHON=python3.13 (it gets an environment of its own)

PYTHON ?= python3
VENV   ?= .venv$(if $(filter-out python3,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
BIN     = $(VENV)/bin
# Another installer: make test INSTALL='uv pip install --compile-bytecode --python $$(BIN)/python'
INSTALL ?= $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST  = $(COMPILED) $(BIN)/python -m pytest -n logical --maxprocesses=8 --dist worksteal

# Programs that were compiled once are kept on disk, for the other workers and for the next run.
COMPILED = JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(VENV)/.compiled \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# Where python3.13 is a pyenv shim, it runs only when told which version is meant.
ifneq (,$(filter python3.%,$(notdir $(PYTHON))))
export PYENV_VERSION ?= $(patsubst python%,%,$(notdir $(PYTHON)))
endif

.PHONY: demo test test-slow fuzz test-outside test-accelerators lint coverage docs wheel bench clean

demo: $(VENV)/.experiments
	$(BIN)/python -m experiments digits

# Most tests compile much and run little, so they are compiled with little effort. The
# others say how the library behaves as its users compile it: every 16-bit number, GoogLeNet on
# photographs.
QUICK = XLA_FLAGS="$(XLA_FLAGS) $(shell $(BIN)/python tests/quick.py)" $(PYTEST)
AS_COMPILED = tests/blocks/test_nonlinearities.py tests/experiments/test_exhaustive.py tests/models/test_googlenet.py

# The core: the executor, backpropagation, training, and every block against autodiff and in lower
# precision once. It is what a new JAX would break first.
CORE = -m core tests/test_*.py tests/training/test_training.py tests/blocks/test_zoo.py

test: $(VENV)/.test
ifdef FAST
	$(QUICK) $(CORE)
else
	$(QUICK) fnn docs/howto tests $(addprefix --ignore=,$(AS_COMPILED))
	$(PYTEST) $(AS_COMPILED)
endif

# One test out of PART.
PART ?= 1
test-slow: $(VENV)/.test
	FNN_PART=$(PART) $(QUICK) tests -m slow

test-outside: $(VENV)/.outside
	FNN_PART=$(PART) $(QUICK) tests/outside -m ''

# Their compilers have an environment of their own: JAX would look for the devices.
test-accelerators:
	$(MAKE) .venv-accelerators/.accelerators VENV=.venv-accelerators
	JAX_PLATFORMS=cpu .venv-accelerators/bin/python -m pytest -q tests/experiments/test_compiled.py \
		$(if $(ALL),-m '')

CALLS ?= 100000
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz $(CALLS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(VENV)/.test
	$(QUICK) fnn docs/howto tests $(addprefix --ignore=,$(AS_COMPILED)) -m '' --cov=fnn --cov-report=
	$(PYTEST) $(AS_COMPILED) -m '' --cov=fnn --cov-append --cov-report=term-missing:skip-covered

docs: $(VENV)/.docs
	rm -rf docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "open docs/_build/index.html"

# The README's picture.
docs/circuit.svg: $(VENV)/.experiments $(wildcard fnn/whiteboard/*.py)
	$(BIN)/python -m experiments whiteboard --out results/whiteboard
	cp results/whiteboard/whiteboard.svg $@

wheel: $(VENV)/.test
	$(BIN)/python tests/packages.py

bench: $(VENV)/.bench
	$(BIN)/python -m experiments.benchmarks mlp

# One stamp per set of extras, so that the demo does not wait for the test tools.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing '.[$*]' into $(VENV): half a minute or more"
	$(INSTALL) -c constraints.txt -e '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fnn needs Python 3.11 or later, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf .venv .venv-* build dist docs/_build *.egg-info results .coverage
