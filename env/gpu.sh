#!/usr/bin/env bash
# Builds the CUDA kernels against the torch of this machine, tests them on its GPU, and measures them twice.
#   bash env/gpu.sh [OUT]      writes OUT/ops-*.json (default: benchmarks/results)
# Needs a CUDA build of torch, nvcc of the same CUDA, setuptools, numpy, matplotlib and pytest; no network.
# compute-sanitizer is used where it is found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
HPCNMT_CUDA=1 python3 setup.py -q build_ext --inplace
export HPCNMT_REQUIRE=gpu,kernels PYTHONPATH=$PWD
python3 -m pytest -q tests/gpu tests/unit/ops/test_library.py tests/unit/ops/test_adam_accuracy.py
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        # Without torch's caching every vector is an allocation of its own, so that memcheck sees its ends; the errors that torch gets from
        # asking the driver for functions it may lack are none of ours.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --report-api-errors no --tool "$tool" --error-exitcode 1 \
            python3 -m pytest -q tests/gpu -k "(step or accumulate) and not 2_to_the_31"
    done
else
    echo "no compute-sanitizer found: memcheck and racecheck were not run" >&2
fi
for run in 1 2; do
    python3 benchmarks/ops.py --device cuda --sizes 1e6,1e7,1e8,2.5e8 --name "ops-gpu-$run"
    cp "benchmarks/results/ops-gpu-$run.json" "docs/ops-gpu-$run.png" "$out/" 2> /dev/null || true
done
