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
from artent_ext._arguments import is_static
from artent_ext._rsvd_arguments import (
    check_matrix,
    count,
    may_look,
    raise_where_norm2_is_exceeded,
    raise_where_not_finite,
    seed_tensor,
    tolerance,
)
from artent_ext.operators import Operator

__all__ = ["RSVD", "rsvd"]

_FIRST_WIDTH = 32  # with a tolerance and no rank: doubled until the tolerance is met
_MOST = 2**31 - 1


class RSVD(NamedTuple):
    """A ≈ U diag(S) Vh with k columns; conventions of :func:`torch.linalg.svd`."""

    U: Tensor  # (..., m, k), orthonormal columns
    S: Tensor  # (..., k), descending
    Vh: Tensor  # (..., k, n), orthonormal rows
    residual: Tensor  # (...) float64, ‖A − U diag(S) Vh‖_F²: squared
    ranks: Tensor  # (...) int64; with a tolerance the columns past it are zero


# What help() shows of a field.
RSVD.U.__doc__ = "Left singular vectors (..., m, k), orthonormal columns."
RSVD.S.__doc__ = "Singular values (..., k), descending."
RSVD.Vh.__doc__ = "Right singular vectors, transposed (..., k, n), orthonormal rows."
RSVD.residual.__doc__ = (
    "Squared Frobenius norm of what is left out, ‖A − U diag(S) Vh‖_F², (...) float64. "
    "The relative error is (residual / ‖A‖_F²)^½."
)
RSVD.ranks.__doc__ = "Number of triplets, (...) int64; with a tolerance the columns past it are zero."


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

    Differentiable, to any order, in a tensor A by torch.autograd (reverse mode); torch.func transforms are not
    supported, except vmap without derivatives. It is the derivative of the singular triplets of A itself, which
    supposes that they have converged and a gap after σ_k. Among equal singular values only a loss of the subspace that
    they span has a gradient; of ``S`` and ``residual`` alone the gradient needs no vectors and no gap. Operators are
    not differentiated through.

    Args:
        A: (..., m, n), or an :class:`artent_ext.Operator`.
        rank: number of triplets k, at most min(m, n) of which exist. With ``tol``, the most that may be taken.
        tol: relative error in the Frobenius norm: of every matrix the smallest rank with
            ``residual`` ≤ tol²·‖A‖_F² is kept. U, S and Vh are zero past it, so that shapes do not depend on values.
            Where ``rank`` is not enough for it, ``ranks`` is that rank and ``residual`` says what is left. Without
            ``rank`` there are min(m, n) columns, and a matrix is decomposed with 32, 64, 128, … of them until it meets
            ``tol`` (which waits for the device; under ``torch.compile`` and in CUDA graphs all at once instead): for
            large matrices give a ``rank`` too, as a cap. Factors in float32 can meet no tolerance below about 1e-6.
        oversample: columns of the sketch beyond the rank.
        power_iters: each is two more products with A; singular values that decay slowly want more.
        seed: an integer for all matrices, or integers broadcastable to the batch dimensions, one for each matrix.
        check_finite: raise when a matrix holds NaN or Inf, instead of giving NaN for that matrix; and when an operator
            has larger singular values than its ``norm2`` allows, on the CPU whatever this says. By default on the CPU
            only, because it waits for the device; never under ``torch.compile`` and ``torch.vmap``.

    Returns:
        :class:`RSVD`. ``residual`` is the squared Frobenius norm of A − U diag(S) Vh, explicit where ‖A‖_F² − ΣS² would
        cancel. For an operator it is that difference, 0 at least: below about 1e-6 (float32) or 1e-15 (float64) of
        ``norm2`` it is rounding; NaN without ``norm2``.

    Raises:
        TypeError: A is no dense tensor of floats, or an argument has the wrong type.
        ValueError: an argument is out of its range; or A holds NaN or Inf, with the index of the first such matrix; or
            an operator is none (:class:`Operator`).
        NotImplementedError: a forward-mode or torch.func derivative is asked for.

    Source: docs/math.md §3.
    """
    run, batch, m, n = _operator(A, check_finite) if isinstance(A, Operator) else _dense(A)
    full = min(m, n)
    # Native code counts in 64 bits, and no matrix has as many columns. The sides themselves would be no better a limit,
    # and one that torch.compile specialises to.
    rank = None if rank is None else min(count("rank", rank), _MOST)
    oversample, power_iters = min(count("oversample", oversample), _MOST), count("power_iters", power_iters)
    if power_iters > _MOST:
        raise ValueError(f"power_iters must be below 2³¹ (a few are usual), got {power_iters}")
    tol = tolerance(tol, rank, A)
    seed = seed_tensor(seed, batch, A.device)
    if check_finite is not None and not isinstance(check_finite, bool):
        raise TypeError(f"check_finite must be True, False or None, got {type(check_finite).__name__}")
    if rank is None and not is_static(A) and full > _FIRST_WIDTH and math.prod(batch) > 0:
        parts = _grow(run, full, tol, oversample, power_iters, seed, math.prod(batch), A.device)
    else:
        parts = run(full if rank is None else rank, oversample, power_iters, seed)
    U, S, Vh, residual = parts
    if may_look(A, check_finite):
        raise_where_not_finite(S if isinstance(A, Operator) else residual[:, None], batch)
    if tol is None:
        ranks = torch.full_like(residual, S.shape[-1], dtype=torch.int64)
    else:
        U, S, Vh, residual, ranks = _truncate(U, S, Vh, residual, tol)
    return RSVD(*(x.reshape((*batch, *x.shape[1:])) for x in (U, S, Vh, residual, ranks)))


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


def _operator(A, check_finite):
    """The same for an operator, whose callables know the whole batch only."""
    batch, (m, n) = A.batch, A.shape[-2:]
    size = math.prod(batch)

    def run(rank, oversample, power_iters, seed, chosen=None):
        bad = torch.zeros(size, dtype=torch.bool, device=A.device)

        def product(function, rows):
            def apply(X):
                nonlocal bad
                X = X.expand(size, *X.shape[1:]).reshape((*batch, *X.shape[1:]))
                Y = function(X).reshape(size, rows, X.shape[-1])
                bad = bad | ~Y.isfinite().all(-1).all(-1)
                return Y

            return apply

        with torch.no_grad(), _rsvd_ops.without_autocast(A):
            U, Vh, sigma = _rsvd_ops.factors(
                product(A.matmat, m), product(A.rmatmat, n), m, n, rank, oversample, power_iters, seed, A.dtype
            )
        if A.norm2 is None:
            residual = torch.full((size,), math.nan, dtype=torch.float64, device=A.device)
        else:
            norm2 = A.norm2.reshape(size)
            if not A.norm2_is_ours and may_look(A, check_finite or None):
                raise_where_norm2_is_exceeded(norm2, sigma.square().sum(1).masked_fill(bad, 0.0), batch)
            residual = _rsvd_ops.residual_of(norm2, sigma, U.shape[-1])
        parts = _rsvd_ops.with_nan(bad, U, sigma[:, : U.shape[-1]].to(A.dtype), Vh, residual)
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
            met = (residual <= tol**2 * total) & _in_range(total, S) | total.isnan()
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


def _in_range(total, S):
    """Is ‖A‖_F² a number that shares can be taken of, neither overflown nor vanished?"""
    return total.isfinite() & ((total > 0) | ~(S > 0).any(-1))


def _truncate(U, S, Vh, residual, tol):
    """Columns past the smallest rank that meets tol set to zero, and what they held added to the residual."""
    k = S.shape[-1]
    squares = S.double().square()
    # tail[r] = ‖A − its first r triplets‖², summed from the small end.
    tail = torch.cat([residual[:, None], squares.flip(-1)], -1).cumsum(-1).flip(-1)
    met = (tail[:, :k] <= tol**2 * tail[:, :1]) & _in_range(tail[:, 0], S)[:, None]
    ranks = (~met).sum(-1)  # NaN keeps all columns
    kept = torch.arange(k, device=S.device) < ranks[:, None]
    residual = residual + torch.where(kept, 0.0, squares).sum(-1)
    U = torch.where(kept[:, None, :], U, 0.0)
    Vh = torch.where(kept[:, :, None], Vh, 0.0)
    return U, torch.where(kept, S, 0.0), Vh, residual, ranks
