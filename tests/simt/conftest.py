"""Builds the drivers once a session. What the machine checks: README.md."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-shared", "-fPIC", "-Wno-psabi"]


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compiles one driver of this folder; returns the path of its shared library."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    folder = tmp_path_factory.mktemp("simt")

    def compile_driver(source, *flags):
        path = folder / f"{source}{len(list(folder.iterdir()))}.so"
        command = [compiler, *FLAGS, *flags, f"-I{HERE}", f"-I{CSRC}", str(HERE / source), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return path

    return compile_driver


@pytest.fixture(scope="session")
def attention(build):
    """The driver of a dtype, compiled when it is first asked for."""
    from simt_attention import AttentionDriver

    types = {
        torch.float32: "float",
        torch.float64: "double",
        torch.float16: "__half",
        torch.bfloat16: "__nv_bfloat16",
    }
    return functools.cache(
        lambda dtype: AttentionDriver(build("attention_driver.cpp", f"-DARTENT_ELEMENT={types[dtype]}"))
    )


@pytest.fixture(scope="session")
def rsvd(build):
    from simt_rsvd import RsvdDriver

    return RsvdDriver(build("rsvd_driver.cpp"))


@pytest.fixture(scope="session")
def planted(build):
    from simt_driver import Driver

    return Driver(build("planted_driver.cpp"))


@pytest.fixture(scope="session")
def planted_tensor(build):
    from simt_driver import Driver

    return Driver(build("planted_tensor_driver.cpp"))
