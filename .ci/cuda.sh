#!/usr/bin/env bash
# Compiles every CUDA source for sm_80, sm_90 and compute_90 PTX with the nvcc on PATH, against the headers of the
# installed torch (a CPU torch will do), links them with the static CUDA runtime, and looks at what the library still
# wants: C functions of torch's stable ABI, no C++ symbol of torch, no libcudart. Nothing CUDA runs here.
#
#   PYTHON=python3 .ci/cuda.sh          # as setup.py builds it
#   PYTHON=python3 .ci/cuda.sh lowest   # for sm_80 alone, which compiles what the others do, in a third of the time
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
nvcc=$(command -v nvcc) || { echo "cuda.sh: no nvcc on PATH; install a CUDA toolkit (headers and nvcc suffice)" >&2; exit 1; }
torch=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "include")')
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

targets=(-gencode=arch=compute_80,code=sm_80)
[ "${1:-}" = lowest ] || targets+=(-gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_90,code=compute_90)

mapfile -t sources < <(find csrc -name '*.cu' | sort)
[ ${#sources[@]} -gt 0 ] || { echo "cuda.sh: no .cu file under csrc" >&2; exit 1; }
objects=()
for source in "${sources[@]}"; do objects+=("$out/$(basename "$source").o"); done
# Side by side, the flags of setup.py, which takes -std from torch's builder.
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} bash -c 'echo "cuda.sh: $0"; exec "${@:2}" -c "$0" -o "$1/$(basename "$0").o"' {} "$out" \
  "$nvcc" -O3 -std=c++20 -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020a000000000000 \
  -Icsrc -isystem "$torch" -isystem "$torch/torch/csrc/api/include" \
  --expt-relaxed-constexpr -Werror all-warnings -Xcompiler -fPIC,-Wall "${targets[@]}"
"$nvcc" -shared -cudart=static "${objects[@]}" -o "$out/_C_cuda.so"
if nm -D --undefined-only "$out/_C_cuda.so" | grep -E '_ZN?K?(3c10|2at|5torch)'; then
  echo "cuda.sh: the symbols above tie the library to one torch version" >&2; exit 1
fi
if readelf -d "$out/_C_cuda.so" | grep -F libcudart; then
  echo "cuda.sh: the CUDA runtime is not linked statically" >&2; exit 1
fi
echo "cuda.sh: ${#sources[@]} source(s) compiled with $("$nvcc" --version | sed -n 's/.*release //p')"
