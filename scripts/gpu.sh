#!/usr/bin/env bash
# On a machine with a GPU, a CUDA build of torch and a CUDA toolkit: builds with CUDA, runs the tests that need the GPU,
# then the benchmarks. Writes benchmarks/results/<gpu>.json.
#
#   PYTHON=python3 scripts/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" - <<'PY'
import sys
import torch
if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: torch {torch.__version__} sees no GPU (torch.version.cuda is {torch.version.cuda}); "
             "a GPU, its driver and a CUDA build of torch are needed")
PY
gpu=$("$python" -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower())')

ARTENT_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps -e .
"$python" -c 'import artent_ext, sys; i = artent_ext.build_info(); print(i); sys.exit(i["cuda_library"] != "loaded")' \
  || { echo "gpu.sh: the CUDA library was built but cannot be loaded; the line above says why" >&2; exit 1; }
"$python" -m pytest -m gpu
"$python" benchmarks/attention_device.py --device cuda --out "benchmarks/results/$gpu.json"
"$python" benchmarks/rsvd_device.py --device cuda --out "benchmarks/results/$gpu.json"
