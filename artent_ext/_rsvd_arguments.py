"""What can be wrong with the arguments of rsvd, told once, before native code runs."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from artent_ext._arguments import _FLOATS, integer, is_static, refuse_transforms
from artent_ext.operators import Operator


def check_matrix(A):
    """Raises unless A is a dense tensor of real floats with two dimensions or more."""
    if not isinstance(A, Tensor):
        raise TypeError(f"A must be a torch.Tensor or an artent_ext.Operator, got {type(A).__name__}{_instead_of(A)}")
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
    refuse_transforms("rsvd", A)


def _instead_of(A):
    if hasattr(A, "B") and hasattr(A, "A"):
        return "; of a LoRA update: artent_ext.Operator.from_factors(update.B, update.A, update.scaling)"
    if isinstance(A, (list, tuple)):
        return "; stack matrices of equal shape (torch.stack), loop over others"
    return "; torch.as_tensor(A) makes an array one" if hasattr(A, "__array__") else ""


def count(name, value):
    """A non-negative integer."""
    fraction = name == "rank" and isinstance(value, numbers.Real) and 0 < value < 1
    value = integer(name, value, hint=f"; for a relative error of {value:g} give tol={value:g}" if fraction else "")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def tolerance(tol, rank, A):
    """tol as a float, or None where a rank alone is given."""
    if tol is None:
        if rank is None:
            raise ValueError(
                "give a rank (how many triplets), a tol (relative error, e.g. tol=1e-2), or both: "
                "rank then caps the width"
            )
        return None
    if isinstance(tol, bool) or not isinstance(tol, (numbers.Real, torch.SymFloat)):
        raise TypeError(f"tol must be a number, got {type(tol).__name__}")
    if not 0 <= tol < 1:
        raise ValueError(
            "tol is the relative error ‖A − U S Vh‖_F/‖A‖_F, not negative and below 1 (e.g. 0.05 for 5 %), got "
            f"{tol}" + ("; is it the rank?" if tol > 1 else "")
        )
    if isinstance(A, Operator) and A.norm2 is None:
        raise ValueError("tol needs ‖A‖_F² of the operator: build it with norm2=…, or give a rank instead")
    return tol if isinstance(tol, (float, torch.SymFloat)) else float(tol)


_SEED = "an integer, or an integer tensor broadcastable to the batch"


def seed_tensor(seed, batch, device):
    """int64 (1), or (number of matrices)."""
    if isinstance(seed, Tensor):
        if seed.dtype.is_floating_point or seed.dtype.is_complex or seed.dtype == torch.bool:
            raise TypeError(f"seed must be {_SEED}, got a tensor of {seed.dtype}")
        seed = seed.to(device, torch.int64)
        if seed.numel() == 1:
            return seed.reshape(1)
        try:
            return seed.expand(batch).reshape(-1)
        except RuntimeError:
            raise ValueError(
                f"seed of shape {tuple(seed.shape)} does not broadcast to the batch dimensions {tuple(batch)} of A"
            ) from None
    seed = integer("seed", seed, _SEED)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be a signed 64-bit integer, −2⁶³ to 2⁶³ − 1, got {seed}")
    return torch.full((1,), seed, dtype=torch.int64, device=device)


def may_look(A, check_finite=None):
    """Whether values are checked: by default on the CPU only, because it waits for the device."""
    return not is_static(A) and (A.device.type == "cpu" if check_finite is None else check_finite)


def _first(bad, batch):
    """Position of the first of the marked matrices, and where that is in words."""
    position = first = int(bad.to(torch.uint8).argmax())
    index = []
    for size in reversed(batch):
        index.append(first % size)
        first //= size
    index = tuple(reversed(index))
    return position, "" if not index else f" matrix {index[0] if len(index) == 1 else index}"


def raise_where_not_finite(x, batch, instead="check_finite=False"):
    bad = x.isnan().any(-1)
    if not bool(bad.any()):
        return
    _, where = _first(bad, batch)
    raise ValueError(
        f"A holds NaN or Inf{where and f' in{where}'} ({int(bad.sum())} of {bad.numel()} matrices); has a step before "
        f"diverged? {instead} gives NaN factors for these matrices and leaves the others as they are"
    )


def raise_where_norm2_is_exceeded(norm2, found, batch):
    """found: Σσ̂² (number of matrices), which no matrix of that norm can exceed but by rounding."""
    bad = found > norm2 * (1 + 1e-3)
    if not bool(bad.any()):
        return
    first, where = _first(bad, batch)
    raise ValueError(
        f"norm2{where and f' of{where}'} is {norm2[first].item():.6g}, but the singular values found have squares that "
        f"sum to {found[first].item():.6g}: norm2 is the squared Frobenius norm ‖A‖_F². Was ‖A‖_F given, or the norm "
        "of another matrix? Is rmatmat the transpose of matmat?"
    )
