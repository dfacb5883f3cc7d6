"""torch.svd_lowrank, as a drop-in on :mod:`artent_ext.rsvd`.

No ``from __future__ import annotations`` here: TorchScript, which torch's own function supports, reads the types.
"""

import torch
from torch import Tensor

from artent_ext._arguments import _FLOATS, integer, refuse_transforms
from artent_ext._rsvd_arguments import may_look, raise_where_not_finite
from artent_ext.rsvd import rsvd

__all__ = ["svd_lowrank"]

_TINY = 16  # up to this min(m, n) a full sketch costs nothing and makes the answer exact


def svd_lowrank(
    A: Tensor, q: int | None = 6, niter: int | None = 2, M: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`torch.svd_lowrank`, as a drop-in: (U, S, V) with A − M ≈ U diag(S) Vᵀ.

    Same arguments, shapes and errors, and on average no worse an approximation at equal ``q`` and ``niter``. What
    differs: the result is the same in every call and the global random state is neither read nor written; float16 and
    bfloat16 are accepted and give float32 factors; NaN and Inf are a ValueError that names the matrix (on the CPU: on
    CUDA they give NaN); gradients are those of :func:`rsvd`, by torch.autograd (reverse mode), and torch.func
    transforms are not supported. Sparse, complex and integer input goes to :func:`torch.svd_lowrank`.

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
    refuse_transforms("svd_lowrank", A, M)
    if A.dim() < 2:
        raise ValueError(f"A must have at least two dimensions (..., m, n), got shape {tuple(A.shape)}")
    if M is not None:
        if M.dtype != A.dtype:
            raise RuntimeError(f"A is {A.dtype} and M is {M.dtype}: they must have one dtype")
        A = A - M.broadcast_to(A.shape)
    q = int(q) if isinstance(q, bool) else integer("q", q)  # torch takes True for 1
    niter = int(niter) if isinstance(niter, bool) else integer("niter", niter)
    if q < 0:
        raise RuntimeError(f"q is the number of columns of the factors and cannot be negative, got {q}")
    shorter = min(A.shape[-2:])
    # The sketch has q columns, as torch's.
    oversample = shorter if shorter <= _TINY else 0
    U, S, Vh, residual, _ = rsvd(A, q, oversample=oversample, power_iters=max(niter, 0), check_finite=False)
    if may_look(A):
        raise_where_not_finite(residual.reshape(-1, 1), A.shape[:-2], "artent_ext.rsvd(…, check_finite=False)")
    return U, S, Vh.mT
