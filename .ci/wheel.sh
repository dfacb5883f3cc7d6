#!/usr/bin/env bash
# A wheel built from this tree, installed apart from it, finds its native library and its command from another folder.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
python=$root/.venv/bin/python

echo "wheel.sh: building"
"$python" -m pip wheel -q --no-build-isolation --no-deps -w "$out" .
"$python" -m pip install -q --no-deps --target "$out/site" "$out"/artent-*.whl
cd "$out"
PYTHONPATH=$out/site "$python" -c '
import artent, artent_ext, pathlib, sys, torch
assert pathlib.Path(artent_ext.__file__).parent.parent == pathlib.Path(sys.argv[1]), artent_ext.__file__
assert pathlib.Path(artent.__file__).parent.parent == pathlib.Path(sys.argv[1]), artent.__file__
stats = artent_ext.attention_stats(torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4))
profile = artent.entanglement_profile(torch.randn(8, 8))
print("wheel.sh: installed wheel works,", artent_ext.build_info()["version"], list(stats.entropy.shape), profile.cut)
' "$out/site"
PYTHONPATH=$out/site "$python" -m artent.cli --help >/dev/null
PYTHONPATH=$out/site "$python" -m artent.cli study --list | grep llama >/dev/null  # its data files came along

# Python started in a checkout where nothing was built sees its artent_ext first, and takes the installed library.
mkdir checkout
git -C "$root" archive HEAD artent_ext | tar -x -C checkout
cd checkout
PYTHONPATH=$out/site "$python" -c '
import artent_ext, pathlib
assert pathlib.Path(artent_ext.__file__).is_relative_to(pathlib.Path.cwd()), artent_ext.__file__
print("wheel.sh: so does a checkout beside it,", artent_ext.build_info()["version"])
'
