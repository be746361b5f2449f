# make adopt      takes an extension that lies in fastrnn/ for a build of these sources
# make demo       the main job: a character language model with fastrnn and with torch.nn
# make test       the tests                       (ARGS="-k lstm" and the like)
# make test-torch TORCH=2.14.1   the tests with another torch, in a copy of the tree that has an
#                 environment of its own: build/torch-2.14.1
# make bench      the benchmarks beside torch.nn  (ARGS="--help" tells the choices)
# make lint       ruff and clang-format           make format applies them
# make sanitize   the CPU kernels under AddressSanitizer + UBSan and ThreadSanitizer, the CUDA
#                 kernels (on the shim of tests/cuda_shim) under ThreadSanitizer
# make cuda-check compiles every CUDA source, without a GPU, and checks the kernels' registers
# make release-check   what .ci/run leaves out of the last two: every architecture, every dtype
# make gpu-bundle PYTHON=python3.12 TORCH=2.11.0   .gpu/: the sources, compiled for a machine with a
#                 GPU that has those; there, `bash .gpu/run.sh FOLDER` measures
# make sdist      a source distribution in dist/
# make clean      removes build products; make distclean the virtual environment too
#
# Each target first makes what it needs: .venv with the pinned packages, then the extension,
# compiled again only where sources or settings changed. A second call starts at once.
#
# PYTHON       the Python that makes .venv (3.11 or newer; default python3)
# CXX          the C++ compiler            MAX_JOBS  compilations at once
# FASTRNN_CUDA 0: no CUDA kernels, 1: CUDA kernels or an error

PYTHON ?= python3
ARGS ?=
export CXX FASTRNN_CUDA

# The build's output goes through a filter, which must not hide its exit status.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# Folders are in the list so that an added or removed file counts as a change.
EXTENSION_INPUTS := $(shell find csrc) setup.py fastrnn/_version.py
PYTHON_TREES := setup.py $(wildcard fastrnn tests examples benchmarks)
CPP_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build adopt demo test test-torch bench lint format sanitize cuda-check release-check \
        gpu-bundle sdist clean distclean FORCE

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//; p' Makefile

# --- the environment and the extension ---------------------------------------------------------

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "fastrnn needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments: install its venv package"; \
	    echo "(on Debian and Ubuntu: apt-get install python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; \
	    sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { \
	    echo "$(PYTHON) has no C headers (Python.h): install its development package"; \
	    echo "(on Debian and Ubuntu: apt-get install python3-dev)."; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || { \
	    echo "No C++ compiler '$(CXX)': install g++, or name one: make CXX=clang++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.requirements: requirements.txt $(VENV)/.created
	@echo "installing torch and the other pinned packages into $(VENV)"
	$(PIP) install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.created
	$(PIP) install --quiet --requirement requirements-dev.txt
	@touch $@

# Holds the settings of the last build, and is newer than the extension when they changed.
build/settings: FORCE
	@mkdir -p build
	@echo '$(CXX) | $(CXXFLAGS) | $(FASTRNN_CUDA)' | cmp -s - $@ || \
	    echo '$(CXX) | $(CXXFLAGS) | $(FASTRNN_CUDA)' > $@

# torch has ninja print whole command lines; the file's name is what a person watches for.
BRIEF := sed -u -E 's@^(\[[0-9]+/[0-9]+\]) .* -o [^ ]*/(csrc/[^ ]+)\.o .*@\1 compiled \2@'

# In place: fastrnn/_C.*.so.
$(VENV)/.extension: $(EXTENSION_INPUTS) build/settings $(VENV)/.requirements
	$(PY) setup.py --quiet build_ext --inplace 2>&1 | $(BRIEF)
	@touch $@

# The editable install makes `import fastrnn` work from any folder; it compiles nothing again.
$(VENV)/.installed: pyproject.toml setup.py fastrnn/_version.py $(VENV)/.requirements \
                    | $(VENV)/.extension
	$(PIP) install --quiet --no-deps --no-build-isolation \
	    --config-settings editable_mode=compat --editable .
	@touch $@

build: $(VENV)/.extension $(VENV)/.installed

# Takes an extension that lies in fastrnn/ for what these sources give, and compiles nothing.
adopt: build/settings $(VENV)/.requirements
	@ls fastrnn/_C*.so
	@$(PY) -c 'import pathlib, site; \
	    pathlib.Path(site.getsitepackages()[0], "fastrnn-tree.pth").write_text(str(pathlib.Path.cwd()))'
	@touch $(VENV)/.extension $(VENV)/.installed

# --- what people run ----------------------------------------------------------------------------

demo: build
	$(PY) examples/char_lm.py $(ARGS)

test: build
	$(PY) -m pytest $(ARGS)

# Without CUDA kernels: a newer release's default build may bring CUDA.
test-torch:
	@test -n "$(TORCH)" || { echo "Name a release: make test-torch TORCH=2.14.1"; exit 1; }
	@mkdir -p build/torch-$(TORCH)
	git ls-files -z | xargs -0 tar c | tar x -C build/torch-$(TORCH)
	sed -i 's/^torch==.*/torch==$(TORCH)/' build/torch-$(TORCH)/requirements.txt
	FASTRNN_CUDA=0 $(MAKE) -C build/torch-$(TORCH) test ARGS="$(ARGS)"

bench: build $(VENV)/.dev
	$(PY) -m benchmarks $(ARGS)

sdist: $(VENV)/.requirements
	rm -rf build/sdist
	$(PY) setup.py --quiet sdist --dist-dir build/sdist
	@mkdir -p dist && cp build/sdist/*.tar.gz dist/ && ls dist/

# --- style --------------------------------------------------------------------------------------

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check $(PYTHON_TREES)
	$(VENV)/bin/ruff format --check $(PYTHON_TREES)
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP_FILES)

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix $(PYTHON_TREES)
	$(VENV)/bin/ruff format $(PYTHON_TREES)
	$(VENV)/bin/clang-format -i $(CPP_FILES)

# --- sanitizers ---------------------------------------------------------------------------------

# Only files that know nothing of torch, so a program of its own can run every target's kernels.
# ThreadSanitizer cannot see through libgomp's own synchronisation, so its build runs the same
# team on std::thread; who waits for whom does not depend on the dtype, so one is enough there.
# A dtype ("quantized" is the packed weights' kernels) that is left out gets an empty table (null
# pointers), which the program skips.
ASAN_DTYPES ?= float double bf16 half quantized
TSAN_DTYPES ?= float quantized
TSAN_LAYERS ?= 60
SANITIZE_JOBS ?= 2
# Unoptimised: avx512_float.cpp, instrumented, compiles in 40 s with -O0 and in 160 s with -O1.
SANITIZE_FLAGS := -std=c++17 -O0 -g1 -fno-omit-frame-pointer -ffp-contract=off -fno-math-errno \
                  -Wall -Wextra -Wno-maybe-uninitialized -Wno-uninitialized \
                  -Icsrc -MMD -MP
ASAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all -fopenmp
TSAN_FLAGS := -fsanitize=thread -DFASTRNN_STD_THREADS -pthread

SANITIZE_COMMON := tests/sanitize/kernels_main.cpp csrc/cpu/dispatch.cpp csrc/cpu/team.cpp
TARGETS := $(sort $(wildcard csrc/cpu/targets/*.cpp))
targets_of = $(foreach dtype,$(1),$(filter %_$(dtype).cpp,$(TARGETS)))
# objects_of(asan or tsan, dtypes)
objects_of = $(patsubst %.cpp,build/sanitize/$(1)/%.o,$(SANITIZE_COMMON) $(call targets_of,$(2))) \
             $(patsubst %.cpp,build/sanitize/stub/%.o,$(filter-out $(call targets_of,$(2)),$(TARGETS)))
ASAN_OBJECTS := $(call objects_of,asan,$(ASAN_DTYPES))
TSAN_OBJECTS := $(call objects_of,tsan,$(TSAN_DTYPES))
# ThreadSanitizer of older compilers cannot place its memory under strong address randomisation.
NO_RANDOM := $(shell setarch -R true 2>/dev/null && echo setarch -R)

build/sanitize/asan/%.o: %.cpp
	@mkdir -p $(@D); echo "asan $<"
	@$(CXX) $(SANITIZE_FLAGS) $(ASAN_FLAGS) -c $< -o $@

build/sanitize/tsan/%.o: %.cpp
	@mkdir -p $(@D); echo "tsan $<"
	@$(CXX) $(SANITIZE_FLAGS) $(TSAN_FLAGS) -c $< -o $@

# avx2_half.cpp defines kAvx2Half; so does its stub.
build/sanitize/stub/%.o: %.cpp csrc/cpu/params.h
	@mkdir -p $(@D)
	@table=k$$(basename $* | sed -E 's/(^|_)(.)/\U\2/g'); \
	    printf '#include "cpu/params.h"\nnamespace fastrnn::cpu { extern const Kernels %s; const Kernels %s = {}; }\n' \
	    $$table $$table | $(CXX) -std=c++17 -Icsrc -x c++ -c - -o $@

# The list of objects depends on the dtypes, so these link anew each time.
build/sanitize/kernels-asan: $(ASAN_OBJECTS) FORCE
	@$(CXX) $(ASAN_FLAGS) $(ASAN_OBJECTS) -o $@

build/sanitize/kernels-tsan: $(TSAN_OBJECTS) FORCE
	@$(CXX) $(TSAN_FLAGS) $(TSAN_OBJECTS) -o $@

# The CUDA kernels on the shim: a thread's stack is too small for a -O0 build of them, and -O1
# compiles in seconds.
SHIM_OBJECTS := $(patsubst tests/cuda_shim/%.cpp,build/sanitize/shim/%.o, \
                  $(filter-out %/library.cpp %/kernels_steps.cpp, \
                    $(wildcard tests/cuda_shim/*.cpp)))

build/sanitize/shim/%.o: tests/cuda_shim/%.cpp
	@mkdir -p $(@D); echo "tsan $<"
	@$(CXX) -Itests/cuda_shim $(subst -O0,-O1,$(SANITIZE_FLAGS)) -fno-strict-aliasing \
	    -fsanitize=thread -c $< -o $@

# The scheduler of the threads is not one of them.
build/sanitize/shim/fibers.o: tests/cuda_shim/fibers.cpp
	@mkdir -p $(@D); echo "tsan $<"
	@$(CXX) $(subst -O0,-O1,$(SANITIZE_FLAGS)) -DFASTRNN_SHIM_TSAN -c $< -o $@

build/sanitize/shim-tsan: $(SHIM_OBJECTS)
	@$(CXX) -fsanitize=thread $(SHIM_OBJECTS) -o $@

sanitize:
	@$(MAKE) --no-print-directory -j$(SANITIZE_JOBS) \
	    build/sanitize/kernels-asan build/sanitize/kernels-tsan build/sanitize/shim-tsan
	UBSAN_OPTIONS=print_stacktrace=1 build/sanitize/kernels-asan
	TSAN_OPTIONS=halt_on_error=1 $(NO_RANDOM) build/sanitize/kernels-tsan $(TSAN_LAYERS)
	TSAN_OPTIONS=halt_on_error=1 $(NO_RANDOM) build/sanitize/shim-tsan

-include $(ASAN_OBJECTS:.o=.d) $(TSAN_OBJECTS:.o=.d) $(SHIM_OBJECTS:.o=.d)

# --- CUDA sources, compiled only ----------------------------------------------------------------

# Needs nvcc, but neither a GPU nor a CUDA build of torch. ARGS=--write makes the table anew.
cuda-check: $(VENV)/.requirements
	$(PY) -m tests.cuda_resources $(ARGS)

release-check: cuda-check sanitize

# --- a machine with a GPU -----------------------------------------------------------------------

# For another Python and torch than .venv's: the script makes an environment for them.
TORCH ?= 2.11.0
gpu-bundle:
	PYTHON=$(PYTHON) TORCH=$(TORCH) bash benchmarks/gpu/bundle.sh

# --- cleaning -----------------------------------------------------------------------------------

clean:
	rm -rf build dist .gpu *.egg-info fastrnn/*.so .pytest_cache .ruff_cache $(VENV)/.extension \
	    $(VENV)/.installed
	find fastrnn tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
