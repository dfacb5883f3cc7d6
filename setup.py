"""Builds the native libraries: artent_ext._C (CPU, always) and artent_ext._C_cuda (when CUDA is there).

ARTENT_CUDA=0 or 1 overrides the choice; the build prints what it did and why. Everything else is in pyproject.toml.
"""

import os
import re
import shutil
from pathlib import Path

import torch
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
VERSION = re.search(r'"(.+)"', (ROOT / "artent_ext/_version.py").read_text())[1]
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10: one build serves every torch from there on
ARCHITECTURES = (  # machine code for A100 and H100, PTX for what comes after
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
)


def cuda_choice():
    """(build it?, why)."""
    wanted = os.environ.get("ARTENT_CUDA")
    if wanted not in (None, "", "0", "1"):
        raise SystemExit(f"ARTENT_CUDA={wanted!r}: expected 0 (never build CUDA) or 1 (build it or fail)")
    nvcc = shutil.which("nvcc") or (cpp_extension.CUDA_HOME and shutil.which(f"{cpp_extension.CUDA_HOME}/bin/nvcc"))
    if wanted == "0":
        return False, "ARTENT_CUDA=0"
    if wanted == "1":
        if not nvcc:
            raise SystemExit("ARTENT_CUDA=1, but there is no nvcc: install a CUDA toolkit or put its bin on PATH")
        return True, "ARTENT_CUDA=1"
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} has no CUDA"
    if not nvcc:
        return False, f"torch has CUDA {torch.version.cuda}, but there is no nvcc on PATH or in CUDA_HOME"
    return True, f"torch has CUDA {torch.version.cuda} and nvcc is {nvcc}"


def sources(pattern):
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob(pattern))


def extension(factory, name, files, flags):
    # No -std flag: torch's builder adds the one its headers need. No fast-math, no -march: see csrc/common/isa.h.
    return factory(
        name,
        files,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args=flags,
        extra_link_args=["-ldl"],
        depends=sources("*.h") + sources("*.cuh"),
    )


def extensions():
    cuda, reason = cuda_choice()
    print(f"artent: building {'with' if cuda else 'without'} CUDA ({reason})", flush=True)
    facts = [
        f'-DARTENT_VERSION="{VERSION}"',
        f"-DARTENT_CUDA={int(cuda)}",
        f'-DARTENT_CUDA_REASON="{reason}"',
    ]
    flags = ["-O3", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"]
    cpu = extension(cpp_extension.CppExtension, "artent_ext._C", sources("*.cpp"), [*flags, *facts])
    cpu.libraries = ["torch_cpu"]  # all the stable ABI needs; not libtorch_python, which the ops never call
    cpu.include_dirs += Pybind11Extension("_", []).include_dirs
    if not cuda:
        return [cpu]
    nvcc = ["-O3", "-DUSE_CUDA", "--expt-relaxed-constexpr", *ARCHITECTURES]
    flags = {"cxx": ["-O3", "-DUSE_CUDA"], "nvcc": nvcc}
    gpu = extension(cpp_extension.CUDAExtension, "artent_ext._C_cuda", sources("*.cu"), flags)
    # torch_cuda holds the current stream; cudart is static, so that no second CUDA runtime has to be found.
    gpu.libraries = ["torch_cpu", "torch_cuda", "cudart_static", "rt", "dl", "pthread"]
    return [cpu, gpu]


setup(ext_modules=extensions(), cmdclass={"build_ext": cpp_extension.BuildExtension})
