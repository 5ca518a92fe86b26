#!/usr/bin/env bash
# On a machine with a GPU and no network: builds the modules in place, runs the tests marked gpu, times ops and views.
#     benchmarks/gpu/run.sh [arguments of benchmarks/gpu/time_ops.py]
# Needs torch, pybind11, cmake, nvcc and pytest. Exit code 2: no GPU. Rows go to benchmarks/results/gpu_*.csv.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "benchmarks/gpu/run.sh: no CUDA device is visible to torch; nothing was built, tested or timed" >&2
  exit 2
fi
SSL_FAST_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace
"$PYTHON" -m pytest -m gpu tests/ops tests/data/test_engine_fused_gpu.py
"$PYTHON" -m benchmarks.gpu.time_ops "$@"
"$PYTHON" -m benchmarks.gpu.time_views --seconds 90
