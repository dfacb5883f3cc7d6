"""torch.svd_lowrank, as a drop-in on :mod:`artent_ext.rsvd`.

No ``from __future__ import annotations`` here: TorchScript, which torch's own function supports, reads the types.
"""

import torch
from torch import Tensor

from artent_ext._arguments import _FLOATS
from artent_ext.rsvd import rsvd

__all__ = ["svd_lowrank"]

_TINY = 16  # up to this min(m, n) a full sketch costs nothing and makes the answer exact


def svd_lowrank(
    A: Tensor, q: int | None = 6, niter: int | None = 2, M: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`torch.svd_lowrank`, as a drop-in: (U, S, V) with A − M ≈ U diag(S) Vᵀ.

    Same arguments, shapes and errors, and no worse approximation at equal ``q`` and ``niter``. What differs: the result
    is the same in every call and the global random state is neither read nor written; float16 and bfloat16 are
    accepted and give float32 factors; NaN and Inf are a ValueError that names the matrix; gradients are those of
    :func:`rsvd`. Sparse, complex and integer input goes to :func:`torch.svd_lowrank`.

    Args:
        A: (..., m, n).
        q: columns of the sketch and of the factors; min(q, m, n) are returned.
        niter: power iterations.
        M: subtracted from A; broadcast to its shape.

    Returns:
        U (..., m, q), S (..., q), V (..., n, q).
    """
    return _svd_lowrank(A, q, niter, M)


@torch.jit.ignore
def _svd_lowrank(A: Tensor, q: int | None, niter: int | None, M: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    q = 6 if q is None else q
    niter = 2 if niter is None else niter
    if not isinstance(A, Tensor) or not (M is None or isinstance(M, Tensor)):
        name, x = ("A", A) if not isinstance(A, Tensor) else ("M", M)
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if any(x is not None and (x.layout != torch.strided or x.dtype not in _FLOATS) for x in (A, M)):
        return torch.svd_lowrank(A, q=q, niter=niter, M=M)
    if A.dim() < 2:
        raise ValueError(f"A must have at least two dimensions (..., m, n), got shape {tuple(A.shape)}")
    if M is not None:
        if M.dtype != A.dtype:
            raise RuntimeError(f"A is {A.dtype} and M is {M.dtype}: they must have one dtype")
        A = A - M.broadcast_to(A.shape)
    if not isinstance(q, (int, torch.SymInt)):
        raise TypeError(f"q must be an integer, got {type(q).__name__}")
    if q < 0:
        raise RuntimeError(f"q is the number of columns of the factors and cannot be negative, got {q}")
    shorter = min(A.shape[-2:])
    # The sketch has q columns, as torch's.
    oversample = shorter if shorter <= _TINY else 0
    U, S, Vh, _, _ = rsvd(A, int(q), oversample=oversample, power_iters=max(niter, 0))
    return U, S, Vh.mT
