"""Batched randomized SVD that knows its error, with a rank or a tolerance, of tensors and of operators.

Definitions: docs/math.md §3. Algorithm: csrc/rsvd/rsvd.h. Truth: :func:`artent_ext.reference.truncated_svd`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from artent_ext import _native, _rsvd_gradient, _rsvd_ops  # noqa: F401 (register torch.ops.artent.rsvd*)
from artent_ext._arguments import _FLOATS, accumulator_dtype
from artent_ext._rsvd_arguments import (
    check_count,
    check_matrix,
    check_tolerance,
    is_static,
    raise_where_not_finite,
    seed_tensor,
)
from artent_ext.operators import Operator

__all__ = ["RSVD", "rsvd", "svd_lowrank"]

_TINY = 16  # svd_lowrank: up to this min(m, n) a full sketch costs nothing and makes the answer exact
_FIRST_WIDTH = 32  # with a tolerance and no rank: doubled until the tolerance is met


class RSVD(NamedTuple):
    """A ≈ U diag(S) Vh with k columns; conventions of :func:`torch.linalg.svd`."""

    U: Tensor  # (..., m, k), orthonormal columns
    S: Tensor  # (..., k), descending
    Vh: Tensor  # (..., k, n), orthonormal rows
    residual: Tensor  # (...) float64, ‖A − U diag(S) Vh‖_F²
    ranks: Tensor  # (...) int64; with a tolerance the columns past it are zero


def rsvd(
    A: Tensor | Operator,  # (..., m, n)
    rank: int | None = None,
    *,
    tol: float | None = None,
    oversample: int = 8,
    power_iters: int = 2,
    seed: int | Tensor = 0,
    check_finite: bool | None = None,
) -> RSVD:
    """Leading singular triplets of every matrix of a batch, and what they leave out.

    A Gaussian sketch of ``rank + oversample`` columns, ``power_iters`` power iterations, an SVD in the subspace found.
    The random numbers are functions of (seed, element): no global state is read or written, and a matrix has the same
    result alone and in a batch. float16, bfloat16, float32 and float64, any strides; half precision is computed in
    float32 and gives float32 factors. With ``torch.compile``; autocast leaves it alone.

    Differentiable, to any order, in a tensor A: the derivative of the singular triplets of A itself, which supposes
    that the subspace has converged (a gap after σ_k, or enough power iterations), and distinct singular values unless
    the loss does not depend on the choice of vectors among equal ones. The gradients of ``S`` and of ``residual`` need
    no gap. Operators are not differentiated through.

    Args:
        A: (..., m, n), or an :class:`artent_ext.Operator`.
        rank: number of triplets k, at most min(m, n) of which exist. With ``tol``, the most that may be taken.
        tol: relative error in the Frobenius norm: of every matrix the smallest rank with
            ``residual`` ≤ tol²·‖A‖_F² is kept. U, S and Vh are zero past it, so that shapes do not depend on values.
            Where ``rank`` is not enough for it, ``ranks`` is that rank and ``residual`` says what is left. Without
            ``rank`` there are min(m, n) columns, and a matrix is decomposed with 32, 64, 128, … of them until it meets
            ``tol`` (which waits for the device; under ``torch.compile`` and in CUDA graphs all at once instead).
            Factors in float32 can meet no tolerance below about 1e-6.
        oversample: columns of the sketch beyond the rank.
        power_iters: each is two more products with A; singular values that decay slowly want more.
        seed: an integer for all matrices, or integers broadcastable to the batch dimensions, one for each matrix.
        check_finite: raise when a matrix holds NaN or Inf, instead of giving NaN for that matrix. By default on the CPU
            only, because it waits for the device; never under ``torch.compile``.

    Returns:
        :class:`RSVD`. ``residual`` is explicit where ‖A‖_F² − ΣS² would cancel. For an operator it is that difference,
        0 at least: below about 1e-6 (float32) or 1e-15 (float64) of ``norm2`` it is rounding; NaN without ``norm2``.

    Raises:
        TypeError: A is no dense tensor of floats, or an argument has the wrong type.
        ValueError: an argument is out of its range; or A holds NaN or Inf, with the index of the first such matrix.

    Source: docs/math.md §3.
    """
    run, batch, m, n = _operator(A) if isinstance(A, Operator) else _dense(A)
    check_count("rank", rank, 1, optional=True)
    check_count("oversample", oversample, 0)
    check_count("power_iters", power_iters, 0)
    check_tolerance(tol, rank, A)
    seed = seed_tensor(seed, batch, A.device)
    static = is_static(A)
    if rank is None and not static and min(m, n) > _FIRST_WIDTH and math.prod(batch) > 0:
        parts = _grow(run, min(m, n), tol, oversample, power_iters, seed, math.prod(batch), A.device)
    else:
        parts = run(min(m, n) if rank is None else rank, oversample, power_iters, seed)
    U, S, Vh, residual = parts
    if not static and (A.device.type == "cpu" if check_finite is None else check_finite):
        raise_where_not_finite(S if isinstance(A, Operator) else residual[:, None], batch)
    if tol is None:
        ranks = torch.full_like(residual, S.shape[-1], dtype=torch.int64)
    else:
        U, S, Vh, residual, ranks = _truncate(U, S, Vh, residual, tol)
    return RSVD(*(x.reshape((*batch, *x.shape[1:])) for x in (U, S, Vh, residual, ranks)))


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
    *batch, m, n = A.shape
    if q == 0:
        dtype = accumulator_dtype(A.dtype)
        return tuple(A.new_empty(*batch, *shape, dtype=dtype) for shape in ((m, 0), (0,), (n, 0)))
    # The sketch has q columns, as torch's.
    oversample = min(m, n) if min(m, n) <= _TINY else 0
    U, S, Vh, _, _ = rsvd(A, int(q), oversample=oversample, power_iters=max(niter, 0))
    return U, S, Vh.mT


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


def _dense(A):
    """How to decompose the flattened batch of a tensor: run(rank, oversample, power_iters, seed, chosen matrices)."""
    check_matrix(A)
    flat = A[None] if A.dim() == 2 else A.flatten(0, -3)

    def run(rank, oversample, power_iters, seed, chosen=None):
        if chosen is not None:
            return torch.ops.artent.rsvd(
                flat[chosen], rank, oversample, power_iters, seed if len(seed) == 1 else seed[chosen]
            )
        return torch.ops.artent.rsvd(flat, rank, oversample, power_iters, seed)

    return run, A.shape[:-2], *A.shape[-2:]


def _operator(A):
    """The same for an operator, whose callables know the whole batch only."""
    batch, (m, n) = A.batch, A.shape[-2:]
    size = math.prod(batch)

    def product(function, rows):
        def apply(X):
            X = X.expand(size, *X.shape[1:]).reshape((*batch, *X.shape[1:]))
            return function(X).reshape(size, rows, X.shape[-1])

        return apply

    @torch.no_grad()
    def run(rank, oversample, power_iters, seed, chosen=None):
        U, Vh, sigma = _rsvd_ops.factors(
            product(A.matmat, m), product(A.rmatmat, n), m, n, rank, oversample, power_iters, seed, A.dtype
        )
        if A.norm2 is None:
            residual = torch.full((size,), math.nan, dtype=torch.float64, device=A.device)
        else:
            residual = _rsvd_ops.residual_of(A.norm2.reshape(size), sigma, U.shape[-1])
        parts = U, sigma[:, : U.shape[-1]].to(A.dtype), Vh, residual
        return parts if chosen is None else tuple(x[chosen] for x in parts)

    return run, batch, m, n


def _grow(run, full, tol, oversample, power_iters, seed, size, device):
    """Widths doubled until every matrix meets tol; each keeps the result of its own first width that does."""
    width, pending = _FIRST_WIDTH, torch.arange(size, device=device)
    found, order = [], []
    while True:
        U, S, Vh, residual = run(width, oversample, power_iters, seed, pending if found else None)
        missing = full - width
        parts = pad(U, (0, missing)), pad(S, (0, missing)), pad(Vh, (0, 0, 0, missing)), residual
        with torch.no_grad():
            total = residual + S.double().square().sum(-1)
            met = (residual <= tol**2 * total) | ~total.isfinite()
        if width == full or bool(met.all()):
            found.append(parts)
            order.append(pending)
            break
        if bool(met.any()):
            found.append(tuple(x[met] for x in parts))
            order.append(pending[met])
            pending = pending[~met]
        width = full if 4 * width > full else 2 * width  # a half is no cheaper than the whole
    if len(found) == 1:
        return found[0]
    back = torch.cat(order).argsort()
    return tuple(torch.cat(x)[back] for x in zip(*found, strict=True))


def _truncate(U, S, Vh, residual, tol):
    """Columns past the smallest rank that meets tol set to zero, and what they held added to the residual."""
    k = S.shape[-1]
    squares = S.double().square()
    # tail[r] = ‖A − its first r triplets‖², summed from the small end.
    tail = torch.cat([residual[:, None], squares.flip(-1)], -1).cumsum(-1).flip(-1)
    ranks = (~(tail[:, :k] <= tol**2 * tail[:, :1])).sum(-1)  # NaN keeps all columns
    kept = torch.arange(k, device=S.device) < ranks[:, None]
    residual = residual + torch.where(kept, 0.0, squares).sum(-1)
    U = torch.where(kept[:, None, :], U, 0.0)
    Vh = torch.where(kept[:, :, None], Vh, 0.0)
    return U, torch.where(kept, S, 0.0), Vh, residual, ranks
