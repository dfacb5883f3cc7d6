"""What can be wrong with the arguments of rsvd, told once, before native code runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from artent_ext._arguments import _FLOATS
from artent_ext.operators import Operator


def check_matrix(A):
    """Raises unless A is a dense tensor of real floats with two dimensions or more."""
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor or an artent_ext.Operator, got {type(A).__name__}")
    if A.layout != torch.strided or A.is_nested:
        kind = "a nested one" if A.is_nested else f"layout {A.layout}"
        raise TypeError(
            f"A must be a dense (strided) tensor, got {kind}; A.to_dense() makes a sparse one dense, and an "
            "artent_ext.Operator takes it by its products"
        )
    if A.dtype not in _FLOATS:
        raise TypeError(
            f"A must be float16, bfloat16, float32 or float64, got {A.dtype}; "
            + ("torch.linalg.svd takes complex matrices" if A.is_complex() else "convert it, e.g. A.float()")
        )
    if A.dim() < 2:
        raise ValueError(f"A must have at least two dimensions (..., m, n), got shape {tuple(A.shape)}")


def check_count(name, value, least, optional=False):
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_tolerance(tol, rank, A):
    if tol is None:
        if rank is None:
            raise ValueError(
                "give a rank (how many triplets), a tol (relative error, e.g. tol=1e-2), or both: "
                "rank then caps the width"
            )
        return
    if isinstance(tol, bool) or not isinstance(tol, (int, float)):
        raise TypeError(f"tol must be a number, got {type(tol).__name__}")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol is a relative error ‖A − U S Vh‖_F/‖A‖_F, finite and not negative, got {tol}")
    if isinstance(A, Operator) and A.norm2 is None:
        raise ValueError("tol needs ‖A‖_F² of the operator: build it with norm2=…, or give a rank instead")


def seed_tensor(seed, batch, device):
    """int64 (1), or (number of matrices)."""
    if isinstance(seed, Tensor):
        if seed.dtype.is_floating_point or seed.dtype.is_complex or seed.dtype == torch.bool:
            raise TypeError(f"seed must be an integer or a tensor of integers, got {seed.dtype}")
        seed = seed.to(device, torch.int64)
        if seed.numel() == 1:
            return seed.reshape(1)
        try:
            return seed.expand(batch).reshape(-1)
        except RuntimeError:
            raise ValueError(
                f"seed of shape {tuple(seed.shape)} does not broadcast to the batch dimensions {tuple(batch)} of A"
            ) from None
    check_count("seed", seed, -(2**63))
    if seed >= 2**63:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    return torch.full((1,), seed, dtype=torch.int64, device=device)


def is_static(A):
    """Whether values must not be looked at: while tracing, without data, or while a CUDA graph is recorded."""
    if torch.compiler.is_compiling() or A.device.type == "meta":
        return True
    if isinstance(A, torch._subclasses.FakeTensor):
        return True
    return A.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def raise_where_not_finite(x, batch):
    bad = ~x.isfinite().all(-1)
    if not bool(bad.any()):
        return
    first = int(bad.to(torch.uint8).argmax())
    index = []
    for size in reversed(batch):
        index.append(first % size)
        first //= size
    index = tuple(reversed(index))
    where = "" if not index else f" in matrix {index[0] if len(index) == 1 else index}"
    raise ValueError(
        f"A holds NaN or Inf{where} ({int(bad.sum())} of {bad.numel()} matrices); has a step before diverged? "
        "check_finite=False gives NaN factors for these matrices and leaves the others as they are"
    )
