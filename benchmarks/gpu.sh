#!/usr/bin/env bash
# Everything that needs a GPU: its tests, every kernel against its reference, kernel timings. Run from the root of the
# repository, in an environment with a CUDA build of PyTorch, Triton and saccade[dev]; results go to benchmarks/results/.
#
#     bash benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python}"

"$PYTHON" -m pytest -q -m gpu tests
"$PYTHON" benchmarks/kernels.py
"$PYTHON" benchmarks/engines.py --precisions fp16 --batch-sizes 1,8,64 # of ONNX Runtime's GPU build and TensorRT, where they are
if command -v compute-sanitizer > /dev/null; then
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # every tensor an allocation of its own, so that its bounds are seen
    SACCADE_KERNELS=fused compute-sanitizer --error-exitcode 1 "$PYTHON" -m pytest -q -m gpu tests/kernels
else
    echo "compute-sanitizer is not installed: memory accesses of the kernels were not checked"
fi
