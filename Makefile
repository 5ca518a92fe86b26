# Every target implies `install`: an environment in .venv with the pinned packages and the native modules built.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE
# The files of tests are spread over processes of one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
EXTRAS := recipes trt dev
SOURCES := setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: install pretrain test test-nightly check bench
.DELETE_ON_ERROR:

install: .venv/installed

# The native modules compile in the time that fetching and unpacking leave.
.venv/installed: pyproject.toml constraints.txt $(SOURCES)
	$(MAKE) --no-print-directory -j2 .venv/packages .venv/built
	touch $@

.venv/tools: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt setuptools pybind11 ninja cmake
	touch $@

.venv/packages: .venv/tools pyproject.toml
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*p['dependencies'], *(r for e in '$(EXTRAS)'.split() for r in p['optional-dependencies'][e]), sep='\n')" > $@.txt
	$(BIN)/pip install --quiet -c constraints.txt -r $@.txt
	touch $@

.venv/built: .venv/tools $(SOURCES)
	nice $(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

pretrain: install
	$(BIN)/python recipes/pretrain.py +preset=photo_patches

test: install
	$(PYTEST)

test-nightly: install
	$(PYTEST) -m nightly

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

bench: install
	for file in benchmarks/ops/bench_*.py; do $(BIN)/python -m benchmarks.ops.$$(basename $$file .py) || exit 1; done
	$(BIN)/python -m benchmarks.tables
