#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of about nine minutes:
#
#     tools/gpu_check.sh [RESULTS]        (default: build/gpu-check)
#
# Builds for the GPU that is here, runs the kernel tests against float64 and the engine against
# OpenAI's code and the CPU backend, the kernel tests again under compute-sanitizer, then measures
# kernels and whole steps. Needs nvcc 12.4 or later, a C++20 compiler, CMake, Ninja, and a Python
# with its headers, NumPy, Cython, tiktoken, xxhash, pytest and hypothesis; what is missing of the
# Python packages is installed with pip into build/gpu-check-venv, where a network is. torch, if it
# is there, is the peer. Every step runs, whatever became of the ones before; details are in
# RESULTS, a short table comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-build/gpu-check}
mkdir -p "$results"
results=$(cd "$results" && pwd)
build=build/gpu
python=${PYTHON:-python3}
seed=${GPTOSS_TEST_SEED:-$RANDOM}
summary=()
failed=0

step() { # name, seconds at most, command…
  local name=$1 limit=$2 start=$SECONDS verdict=ok
  shift 2
  printf '\n==== %s\n' "$name"
  timeout --kill-after=10 "$limit" "$@" > "$results/$name.log" 2>&1 || { verdict=FAILED; failed=1; }
  tail -n 25 "$results/$name.log"
  summary+=("$(printf '%-12s %-7s %4d s' "$name" "$verdict" $((SECONDS - start)))")
}

missing=$("$python" - <<'PYTHON'
import importlib.util
names = ("numpy", "Cython", "tiktoken", "xxhash", "pytest", "hypothesis", "cmake", "ninja")
print(*(name for name in names if importlib.util.find_spec(name) is None))
PYTHON
)
if command -v cmake >/dev/null; then missing=${missing/cmake/}; fi
if command -v ninja >/dev/null; then missing=${missing/ninja/}; fi
if [ -n "${missing// /}" ]; then
  "$python" -m venv --system-site-packages build/gpu-check-venv &&
    build/gpu-check-venv/bin/python -m pip install -q $missing ||
    { echo "gpu_check: missing Python packages: $missing" >&2; exit 1; }
  python=build/gpu-check-venv/bin/python
fi
bin=$(cd "$(dirname "$(command -v "$python")")" && pwd)
export PATH="$bin:$PATH"
command -v nvcc >/dev/null || export PATH="/usr/local/cuda/bin:$PATH"

build_all() {
  "$python" --version && nvcc --version | tail -n 2 || return
  [ -n "${GPTOSS_CUDA_ARCHITECTURES:-}" ] || nvidia-smi || return
  cmake -S . -B "$build" -G Ninja -DGPTOSS_CUDA=ON -DGPTOSS_WERROR=ON \
    -DGPTOSS_CUDA_ARCHITECTURES="${GPTOSS_CUDA_ARCHITECTURES:-$(native)}" \
    -DPython_EXECUTABLE="$(command -v "$python")" || return
  cmake --build "$build" || return
  rm -rf "$build/site" && mkdir -p "$build/site" && cp -r gptoss "$build/site/" &&
    find "$build/site" -type l -name '*.so' -delete &&
    cp "$build"/bindings/*.so "$build"/cuda/libgptoss_cuda.so "$build/site/gptoss/native/"
}

# Hopper's own instructions need the architecture with an "a".
native() {
  local found
  found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$found" = 90 ] && found=90a
  echo "$found-real"
}

export -f build_all native
export build python
step build 240 bash -c build_all
[ "$failed" = 0 ] || exit 1  # there is nothing to check
export PYTHONPATH="$PWD/$build/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export GPTOSS_CUDA_LIBRARY="$PWD/$build/site/gptoss/native/libgptoss_cuda.so" GPTOSS_TEST_SEED=$seed
tests=("$python" -m pytest -q -p no:cacheprovider -k real)

step kernels 120 "${tests[@]}" tests/cuda --ignore tests/cuda/test_backend.py
step engine 90 "${tests[@]}" tests/cuda/test_backend.py
if command -v compute-sanitizer >/dev/null; then
  some="test_a_row or test_several_pairs or test_large_logits or test_decoding or test_routing or test_draws or test_masks"
  checked=("$python" -m pytest -q -p no:cacheprovider -x -k "real and ($some)" tests/cuda)
  step memcheck 100 compute-sanitizer --tool memcheck --error-exitcode 9 "${checked[@]}"
  step racecheck 100 compute-sanitizer --tool racecheck --error-exitcode 9 "${checked[@]}"
else
  summary+=("compute-sanitizer is not here: not run")
fi
step bench_kernels 120 "$python" bench/cuda.py --library "$GPTOSS_CUDA_LIBRARY"
step bench 200 "$python" bench.py --device cuda --model synthetic:gpt-oss-20b --repeat 3 \
  --prefill 512,8192 --decode 64 --batch 1,64,256 --json "$results/bench.json"
step bench_32k 120 "$python" bench.py --device cuda --model synthetic:gpt-oss-20b --repeat 3 \
  --prefill 512 --decode 64 --depth 32768 --json "$results/bench_32k.json"
step reuse 60 "$python" bench/reuse.py --tokens 100 --batch 1,64 --repeat 3 --activation bf16

printf '\n==== summary (random seed %s)\n' "$seed"
printf '%s\n' "${summary[@]}"
grep -hE '[0-9]+ (passed|failed)' "$results"/*.log
exit "$failed"
