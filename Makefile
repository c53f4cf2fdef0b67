# make demo   install into .venv and let the bundled model write a story
# make test   install into .venv with the test extras, run the C++ and the Python tests
# make wheels  release wheels in dist/, which install without a compiler, tried on every Python here
# make clients  other people's clients against the server
# make slow   what takes long: notebooks, programs that measure, random examples, fuzzing, an hour's soak,
#             the wheel for aarch64
# make soak   the server with attackers, five minutes; SECONDS=N for another time
#
# Everything lands in .venv and build/. Only a Python (3.10 or newer) and a C++20 compiler must be
# there before; CMake and Ninja come as wheels. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
PROMPT ?= Once upon a time

VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := CMakeLists.txt pyproject.toml \
           $(shell find core bindings cuda tests/core -type f 2>/dev/null)

# Without build isolation the object files of the last build are used again. Python files need no
# new installation: the installed package refers to gptoss/ here.
BUILD := build/venv
INSTALL := $(BIN)/pip install -q --no-build-isolation --config-settings=build-dir=$(BUILD) -e

.PHONY: help install demo wheels wheels-aarch64 test clients slow soak lint sanitize tsan fuzz cuda clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      the bundled model writes a story"
	@echo "make wheels    release wheels in dist/, tried on every Python of this machine"
	@echo "make test      C++ tests (ctest), then Python tests (pytest)"
	@echo "make clients   other people's clients, from their registries, against the server"
	@echo "make slow      what takes long: notebooks, random examples, fuzzing, an hour of soak"
	@echo "make soak      the server under attack for five minutes; SECONDS=N: for longer"
	@echo "make install   the package, editable, in .venv"
	@echo "make lint      formatters, linters, type checker"
	@echo "make sanitize  C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make tsan      C++ tests under ThreadSanitizer"
	@echo "make fuzz      broken checkpoints against the reader, for a minute"
	@echo "make cuda      compiles the CUDA backend with nvcc, where it is; needs no GPU"
	@echo "make clean     remove .venv, build/, dist/ and caches"

$(VENV)/made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no '$(PYTHON)' here. Name a Python 3.10 or newer: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: gptoss needs Python 3.10 or newer, found $$($(PYTHON) --version)." \
	       "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { \
	  echo "make: no C++ compiler '$${CXX:-c++}'. On Debian and Ubuntu: apt install g++;" \
	       "on Fedora: dnf install gcc-c++; or set CXX." >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: '$(PYTHON) -m venv' failed (above). On Debian and Ubuntu: apt install" \
	       "python3-venv; or name another Python: make PYTHON=..." >&2; exit 1; }
	@touch $@

# What pyproject.toml lists under [build-system], read by the build backend itself.
$(VENV)/build-requires: pyproject.toml $(VENV)/made
	@echo "Installing the build tools"
	@$(BIN)/pip install -q scikit-build-core
	@$(BIN)/python -m scikit_build_core build requires > $@.json
	@$(BIN)/python -c 'import json, sys; print(*json.load(sys.stdin), sep="\n")' \
	  < $@.json > $@.txt
	@$(BIN)/pip install -q -r $@.txt
	@touch $@

$(VENV)/installed: $(SOURCES) $(VENV)/build-requires
	@echo "Building and installing gptoss (a minute or two)"
	@$(INSTALL) .
	@touch $@

$(VENV)/test-extras: pyproject.toml $(VENV)/installed
	@echo "Installing the test extras (PyTorch among them)"
	@$(INSTALL) '.[test]'
	@touch $@

$(VENV)/dev-extras: pyproject.toml $(VENV)/test-extras
	@echo "Installing formatters and linters"
	@$(INSTALL) '.[dev]'
	@touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	@$(BIN)/gptoss generate "$(PROMPT)" --echo --max-tokens 250 --temperature 0.4 --top-p 0.9 --seed 7 \
	  --stats

# For x86_64 and aarch64, where MACHINES does not say otherwise; tried here is that of this machine.
MACHINES ?=
wheels:
	@$(PYTHON) tools/wheels/build_wheels.py $(MACHINES)
	@$(PYTHON) tools/wheels/try_wheels.py

# Its own Python 3.11, of Debian, under QEMU.
wheels-aarch64:
	@$(PYTHON) tools/wheels/build_wheels.py aarch64
	@$(PYTHON) tools/wheels/try_aarch64.py

# Both are run, even if the first fails.
test: $(VENV)/test-extras
	@$(BIN)/cmake --build $(BUILD) --target core_tests
	@status=0; \
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --timeout 300 || status=1; \
	$(BIN)/pytest -m "not slow and not clients" || status=1; \
	exit $$status

# Installs them in build/clients; skipped where their registries are not to be had.
# lm-evaluation-harness has a dependency that cannot be built without isolation, as the extras are.
clients: $(VENV)/test-extras
	-@$(BIN)/pip install -q 'lm-eval[api]>=0.4.9'
	@$(BIN)/pytest tests/clients tests/server/test_lm_eval.py

# hypothesis draws other examples each time here, and the same ones in `make test`.
slow: $(VENV)/test-extras
	@status=0; \
	$(BIN)/pytest -m "slow or hypothesis" --hypothesis-profile=random || status=1; \
	$(BIN)/python tools/fuzz/fuzz_checkpoint.py --seconds 300 || status=1; \
	$(MAKE) soak SECONDS=3600 STREAMS=200 || status=1; \
	$(BIN)/python bench.py serve --soak 600 --streams 200 --hostile --keyed -- \
	  --max-sequences 512 || status=1; \
	$(MAKE) tsan || status=1; \
	$(MAKE) wheels-aarch64 || status=1; \
	exit $$status

# A front and two replicas under attack. What is lost or leaks fails it; how long things take does not.
SECONDS ?= 300
STREAMS ?= 100
soak: $(VENV)/test-extras
	$(BIN)/python bench.py serve --soak $(SECONDS) --streams $(STREAMS) --hostile -- \
	  --replicas 2 --max-sequences 512

lint: $(VENV)/dev-extras
	PATH="$(CURDIR)/$(BIN):$$PATH" pre-commit run --all-files --show-diff-on-failure

sanitize: $(VENV)/build-requires
	@$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGPTOSS_PYTHON=OFF -DGPTOSS_WERROR=ON \
	  -DGPTOSS_SANITIZE=address,undefined -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	@$(BIN)/cmake --build build/sanitize
	@$(BIN)/ctest --test-dir build/sanitize --output-on-failure --timeout 600

tsan: $(VENV)/build-requires
	@$(BIN)/cmake -S . -B build/tsan -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGPTOSS_PYTHON=OFF -DGPTOSS_WERROR=ON \
	  -DGPTOSS_SANITIZE=thread -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	@$(BIN)/cmake --build build/tsan
	@$(BIN)/ctest --test-dir build/tsan --output-on-failure --timeout 600

# Warnings are errors, and so are registers that spill to memory, and what ptxas says of wgmma that it
# had to make wait. (It reports each entry's stack and spills.)
cuda: $(VENV)/build-requires
	@command -v nvcc >/dev/null || { echo "make cuda: no nvcc here, nothing to compile"; exit 0; }; \
	rm -rf build/cuda && mkdir -p build/cuda && \
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DGPTOSS_PYTHON=OFF -DGPTOSS_WERROR=ON -DGPTOSS_CUDA=ON && \
	{ $(BIN)/cmake --build build/cuda --target gptoss_cuda > build/cuda/log 2>&1 || \
	  { cat build/cuda/log; exit 1; }; } && \
	if grep -E "[1-9][0-9]* bytes (stack frame|spill)|Potential Performance Loss|C75[0-9][0-9]" \
	  build/cuda/log; then \
	  echo "make cuda: kernels spill or wait, see build/cuda/log" >&2; exit 1; fi && \
	echo "make cuda: $$(grep -c 'Used [0-9]* registers' build/cuda/log) kernels compiled, none spills"

fuzz: $(VENV)/test-extras
	$(BIN)/python tools/fuzz/fuzz_checkpoint.py --seconds 60

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
