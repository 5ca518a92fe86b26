#!/usr/bin/env bash
# On a machine with a GPU and no network: builds the modules in place, runs one part, and prints the book in short.
#     benchmarks/gpu/run.sh tests | sanitize | ops | views | train | cifar | tune  [arguments of the part's module]
# tests      the tests marked gpu (the recipes' where hydra-core, timm, scikit-image and scikit-learn are installed)
# sanitize   compute-sanitizer, memcheck and racecheck, over a small case of every kernel
# ops        losses and optimiser steps beside their equations and peers      (benchmarks.gpu.time_ops)
# views      views beside torchvision, kornia and DALI                        (benchmarks.gpu.time_views)
# train      images/s of whole steps: ViT-S/16, ResNet-50, ResNet-18          (benchmarks.gpu.time_training)
# cifar      CIFAR-10 to the end: --data cifar10.npz, TOTAL_SECONDS=580       (benchmarks.gpu.time_to_accuracy)
# tune       candidates for the most used rows of the table of tiles          (benchmarks.gpu.tune_tiles)
# Needs torch, numpy, pybind11, setuptools, cmake and nvcc; tests and sanitize: pytest and torchvision (with pytest-xdist
# in eight processes); train and cifar: timm.
# TOTAL_SECONDS (350) is the limit of a part, the build included. Rows join benchmarks/results/gpu_*.csv as they are
# measured, and at the end those files are copied to the folder COPY_TO, if it is set. What is there already, of the
# same hardware and versions, is left out: the same command goes on, also on another machine that was given the files.
# Exit code 2: no GPU, or no such part; 1: something failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3} TOTAL=${TOTAL_SECONDS:-350} failed=0 part=${1:-}

case $part in
  tests | sanitize | ops | views | train | cifar | tune) shift ;;
  *)
    echo "benchmarks/gpu/run.sh: expected tests, sanitize, ops, views, train, cifar or tune, got '$part'" >&2
    exit 2
    ;;
esac
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "benchmarks/gpu/run.sh: no CUDA device is visible to torch; nothing was built, tested or timed" >&2
  exit 2
fi

limited() {  # the seconds that it may take, what it is, the command
  local limit=$(($1 > 15 ? $1 : 15)) name=$2
  shift 2
  echo "== $name, at ${SECONDS} s"
  timeout --signal=TERM --kill-after=10 "$limit" "$@" && return
  failed=1
  echo "== $name failed or took longer than $limit s" >&2
  return 1
}

step() { limited $((TOTAL - SECONDS - 15)) "$@"; }  # leaves time for the summary

copied() { [[ -z ${COPY_TO:-} ]] || cp benchmarks/results/gpu_*.csv "$COPY_TO" 2>/dev/null; }
trap copied EXIT

has() { "$PYTHON" -c "import $1" 2>/dev/null; }

timed() {  # a module that begins nothing new shortly before the end
  step "$1" "$PYTHON" -m "benchmarks.gpu.$1" --seconds $((TOTAL - SECONDS - 40)) "${@:2}"
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv || true
step build env SSL_FAST_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace || exit 1
step report "$PYTHON" -m ssl_fast

case $part in
  tests)
    recipes=$(has "hydra, skimage, sklearn, timm" && echo tests/recipes/test_on_gpu.py)
    [[ $recipes ]] || echo "the recipes' tests are left out: a package of hydra-core, scikit-image, scikit-learn, timm is missing"
    workers=$(has xdist && echo "-n 8")
    # shellcheck disable=SC2086  # no word where there are no workers, or no packages for the recipes
    step tests "$PYTHON" -u -m pytest -m gpu $recipes tests/ops tests/data tests/export --continue-on-collection-errors --maxfail=30 --tb=short $workers "$@"
    ;;
  sanitize)
    # The allocator's large blocks would hide what lies beyond a tensor's end.
    step "every kernel, without it" "$PYTHON" -m tests.every_kernel "$@"  # and they are compiled
    runs=4
    for kernels in native triton; do
      for tool in memcheck racecheck; do
        limited $(((TOTAL - SECONDS - 15) / runs--)) "$tool of $kernels kernels" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
          compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 9 \
          "$PYTHON" -m tests.every_kernel --only "$kernels" "$@"
      done
    done
    ;;
  ops) timed time_ops "$@" ;;
  views) timed time_views "$@" ;;
  train) timed time_training "$@" ;;
  cifar) step time_to_accuracy "$PYTHON" -m benchmarks.gpu.time_to_accuracy "$@" ;;
  tune) timed tune_tiles "$@" ;;
esac
step summary "$PYTHON" -m benchmarks.gpu.summary
exit $failed
