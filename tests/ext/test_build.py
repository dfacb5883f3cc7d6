"""The native library: what it may need from torch, where it is found, what is said when it is not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import artent_ext
from artent_ext import _native

PACKAGE = Path(artent_ext.__file__).parent


def _library():
    return _native._find("_C")


def _symbols_newer_than_2_10():
    """C functions that torch's headers declare only for a target of 2.11 or later."""
    include = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    newer, depth = set(), []
    for header in [include / "stable/c/shim.h", include / "inductor/aoti_torch/c/shim.h"]:
        for line in header.read_text().splitlines():
            if re.match(r"\s*#\s*if", line):
                version = re.search(r"TORCH_FEATURE_VERSION >= TORCH_VERSION_2_(\d+)_0", line)
                depth.append(int(version[1]) if version else 0)
            elif re.match(r"\s*#\s*endif", line):
                depth.pop()
            elif max(depth, default=0) > 10:
                newer.update(re.findall(r"\b((?:aoti_)?torch_\w+)\(", line))
    return newer


def test_needs_nothing_newer_than_torch_2_10():
    """One binary serves every torch from 2.10 on: only C functions of the stable ABI that 2.10 declares."""
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", str(_library())], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[-1].split("@")[0] for line in undefined.splitlines()}
    from_torch = {n for n in names if re.match(r"(aoti_)?torch_", n)}
    assert "torch_parallel_for" in from_torch
    newer = _symbols_newer_than_2_10()
    assert len(newer) >= 5  # the headers were understood
    assert not from_torch & newer
    mangled = [n for n in names if re.search(r"(3c10|2at|5torch)", n)]
    assert mangled == []  # no C++ symbol of torch, which would tie the binary to one version


def test_build_info_names_versions_and_choices():
    info = artent_ext.build_info()
    assert info["version"] == artent_ext.__version__
    assert info["torch"] == torch.__version__
    assert info["isa"] in ("portable", "avx2", "avx512")
    assert isinstance(info["cuda"], bool)
    assert info["cuda_reason"]


def _python(code, cwd):
    return subprocess.run([sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True)


def test_import_from_any_folder(tmp_path):
    result = _python("import artent_ext; print(artent_ext.build_info()['version'])", tmp_path)
    assert result.stdout.strip() == artent_ext.__version__, result.stderr


def _copy_without_library(tmp_path):
    copy = tmp_path / "artent_ext"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


def test_without_the_library_the_error_says_how_to_build_it(tmp_path):
    _copy_without_library(tmp_path)
    code = (
        "import importlib.metadata as m, sys\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.distribution = missing\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import artent_ext"
    )
    result = _python(code, tmp_path)
    assert result.returncode == 1
    assert "native library _C is not built" in result.stderr
    assert "pip install --no-build-isolation" in result.stderr


def test_a_library_of_another_version_is_refused(tmp_path):
    copy = _copy_without_library(tmp_path)
    shutil.copy(_library(), copy)
    (copy / "_version.py").write_text('__version__ = "999.0"\n')
    result = _python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import artent_ext", tmp_path)
    assert result.returncode == 1
    assert f"found a native library of version {artent_ext.__version__}" in result.stderr


def test_unusable_cuda_setting_is_told():
    root = PACKAGE.parent
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "ARTENT_CUDA": "yes"},
        capture_output=True,
        text=True,
    )
    assert "ARTENT_CUDA='yes': expected 0" in result.stderr
