"""What this machine has: memory, and the speed of a matrix product, measured in a moment."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass

import torch

from artent.study.estimate.architecture import DTYPES

__all__ = ["Machine", "look"]

SECONDS = 0.25  # of products, a dtype
SIZES = {"cpu": 768, "cuda": 8192}


@dataclass(frozen=True)
class Machine:
    """A ``device`` ("cpu" or a GPU's name), its ``memory`` in bytes, that of the host, and operations a second.

    ``memory`` is what is free on a GPU, and on a CPU all there is. ``speed`` is of products in the dtype that is
    trained in, ``speed32`` of float32.
    """

    kind: str
    device: str
    memory: int
    host: int
    dtype: str
    speed: float
    speed32: float

    def to_dict(self):
        return asdict(self)


def look(kind, dtype):
    """The :class:`Machine` of ``kind``, "cpu" or "cuda". Some half a second."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cuda = kind == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"CPU, torch on {torch.get_num_threads()} threads"
    memory = torch.cuda.mem_get_info()[0] if cuda else host
    speed32 = product_speed(kind, "float32")
    speed = speed32 if dtype == "float32" else product_speed(kind, dtype)
    return Machine(kind, name, memory, host, dtype, speed, speed32)


def product_speed(kind, dtype):
    """Operations a second of a large square product, the best of those that a quarter of a second holds."""
    n = SIZES[kind]
    a = torch.ones(n, n, dtype=DTYPES[dtype], device=kind)
    out, best = torch.empty_like(a), float("inf")
    until = time.perf_counter() + SECONDS
    while best == float("inf") or time.perf_counter() < until:
        _wait(kind)
        begin = time.perf_counter()
        torch.mm(a, a, out=out)
        _wait(kind)
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


def _wait(kind):
    if kind == "cuda":
        torch.cuda.synchronize()
