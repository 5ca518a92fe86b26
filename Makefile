# Every target implies `install`: an environment in .venv with the pinned packages and the native modules built
# (test-oldest: in .venv-oldest, with older ones).
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONDONTWRITEBYTECODE
# The files of tests are spread over processes of one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
EXTRAS := recipes trt dev
SOURCES := setup.py CMakeLists.txt $(shell find csrc -type f)

# The oldest torch that recipes take, what was made for it, and the newest numpy that this Triton's interpreter takes.
OLDEST := torch==2.11.0 torchvision==0.26.0 triton==3.6.0 numpy==2.3.5 setuptools==81.0.0

.PHONY: install pretrain test test-nightly test-oldest check bench
.DELETE_ON_ERROR:

install: $(VENV)/installed

# The native modules compile in the time that fetching and unpacking leave.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS) $(SOURCES)
	$(MAKE) --no-print-directory -j2 $(VENV)/packages $(VENV)/built
	touch $@

$(VENV)/tools: $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) setuptools pybind11 ninja cmake
	touch $@

$(VENV)/packages: $(VENV)/tools pyproject.toml
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*p['dependencies'], *(r for e in '$(EXTRAS)'.split() for r in p['optional-dependencies'][e]), sep='\n')" > $@.txt
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -r $@.txt
	touch $@

$(VENV)/built: $(VENV)/tools $(SOURCES)
	nice $(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

pretrain: install
	$(BIN)/python recipes/pretrain.py +preset=photo_patches

test: install
	$(PYTEST)

test-nightly: install
	$(PYTEST) -m nightly

.venv-oldest/constraints.txt: constraints.txt Makefile
	mkdir -p $(@D)
	{ grep -vE '^(torch|torchvision|triton|numpy|setuptools)==' constraints.txt; printf '%s\n' $(OLDEST); } > $@

test-oldest: .venv-oldest/constraints.txt
	$(MAKE) --no-print-directory test VENV=.venv-oldest CONSTRAINTS=$<

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

bench: install
	for file in benchmarks/ops/bench_*.py; do $(BIN)/python -m benchmarks.ops.$$(basename $$file .py) || exit 1; done
	$(BIN)/python -m benchmarks.tables
