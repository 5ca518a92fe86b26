#!/usr/bin/env bash
# On a machine with a GPU and no network, in at most ten minutes: says what is there, builds the modules in place, runs
# the tests marked gpu, and times views and ops for the time that is left.
#     benchmarks/gpu/run.sh [arguments of benchmarks/gpu/time_ops.py]
# Needs torch, pybind11, cmake and nvcc, and pytest for the tests (with pytest-xdist, in eight processes: most of their
# time is compiling); the recipes are tested too where hydra-core, timm, scikit-image and scikit-learn are installed.
# TOTAL_SECONDS (580) is the limit of all together.
# Exit code 2: no GPU; 1: a part failed, the others ran. Rows of ops go to --output, or benchmarks/results/gpu_ops.csv;
# those of views to benchmarks/results/gpu_views.csv.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3} TOTAL=${TOTAL_SECONDS:-580} failed=0

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "benchmarks/gpu/run.sh: no CUDA device is visible to torch; nothing was built, tested or timed" >&2
  exit 2
fi

part() {  # what it is, its seconds at most, the command
  local name=$1 limit=$2
  shift 2
  echo "== $name, at ${SECONDS} s"
  timeout --signal=INT --kill-after=10 "$limit" "$@" || { failed=1; echo "== $name failed or took longer than $limit s" >&2; }
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv || true
part build 150 env SSL_FAST_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace
part report 60 "$PYTHON" -m ssl_fast
workers=$("$PYTHON" -c 'import xdist' 2>/dev/null && echo "-n 8")
recipes=$("$PYTHON" -c 'import hydra, skimage, sklearn, timm' 2>/dev/null && echo tests/recipes/test_on_gpu.py)
# shellcheck disable=SC2086  # no word where there are no workers, or no packages for the recipes
part tests $(((TOTAL - SECONDS) * 4 / 10)) "$PYTHON" -m pytest -m gpu $recipes tests/ops tests/data --maxfail=30 --tb=short $workers
part views 80 "$PYTHON" -m benchmarks.gpu.time_views --seconds 60
# A size that was begun is finished, so the timing stops a little before the limit.
part timings $((TOTAL - SECONDS)) "$PYTHON" -m benchmarks.gpu.time_ops --seconds $((TOTAL - SECONDS - 30)) "$@"
exit $failed
