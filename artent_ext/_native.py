"""Loads the native libraries, once, and says in words what to do when they are missing.

They lie beside this file in an editable install and in a wheel. Python started in a source checkout sees the checkout's
``artent_ext`` folder first: when nothing was built there, the libraries of the installed distribution are taken, if
there is one of the same version.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.metadata
import importlib.util
from pathlib import Path

import torch

from artent_ext._version import __version__

_BUILD_HINT = (
    "build it with `pip install --no-build-isolation -e .` in the source folder (a C++ compiler, torch, pybind11 and "
    "ninja are needed), or run `make test`, which does so in a virtual environment of its own"
)


def _candidates():
    """Folders that may hold the libraries: this package's own, then the installed distribution's."""
    yield Path(__file__).parent
    try:
        distribution = importlib.metadata.distribution("artent")
    except importlib.metadata.PackageNotFoundError:
        return
    if distribution.version == __version__:
        yield Path(distribution.locate_file("artent_ext"))


def _find(stem: str) -> Path | None:
    for folder in _candidates():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    return None


def _load():
    path = _find("_C")
    if path is None:
        raise ImportError(
            f"artent_ext {__version__}: the native library _C is not built for this Python "
            f"({importlib.machinery.EXTENSION_SUFFIXES[0]}); looked in {', '.join(map(str, _candidates()))}; "
            f"{_BUILD_HINT}"
        )
    loader = importlib.machinery.ExtensionFileLoader("artent_ext._C", str(path))
    spec = importlib.util.spec_from_file_location("artent_ext._C", path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except ImportError as error:
        raise ImportError(
            f"artent_ext: {path} cannot be loaded ({error}); was it built against torch ≥ 2.10 and this is torch "
            f"{torch.__version__}? If not, {_BUILD_HINT}"
        ) from error
    built = module.build_info()["version"]
    if built != __version__:
        raise ImportError(
            f"artent_ext {__version__} found a native library of version {built} at {path}; {_BUILD_HINT}"
        )
    return module


_C = _load()


def _load_cuda() -> str:
    """Loads _C_cuda where torch has CUDA; returns what happened, for ``build_info``."""
    if torch.version.cuda is None:
        return "torch has no CUDA"
    path = _find("_C_cuda")
    if path is None:
        return f"not built ({_C.build_info()['cuda_reason']})"
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    return "loaded"


_CUDA = _load_cuda()


def build_info() -> dict:
    """How the native code was built and what it uses on this machine.

    Keys: ``version``; ``cuda`` (bool, built) and ``cuda_reason``; ``cuda_library`` (what became of loading it);
    ``compiler``; ``torch_target`` (oldest torch the binary serves) and ``torch``; ``isa`` of the CPU kernels
    (``portable``, ``avx2``, ``avx512``).
    """
    return {**_C.build_info(), "cuda_library": _CUDA, "torch": torch.__version__}
