"""Entropy of a density matrix known by its products: block Krylov, stochastic quadrature, bounds (docs/math.md §3).

ρ = M/F is symmetric, positive, of trace one; M is given by products and has no negative element. Batched over matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from artent_ext import _native  # noqa: F401 (registers torch.ops.artent)
from artent_ext._spectral_bounds import bounds, surprise

ops = torch.ops.artent

# A Ritz pair with a residual below this share of its value counts as an eigenvalue. On attention matrices 1e-3 to 5e-2
# do equally well; larger ones count values that are not yet eigenvalues, smaller ones leave more to chance.
_CONVERGED = 1e-2
# The quadratures alternate about the truth and their mean is left with this share of their distance, as observed.
_BIAS = 0.16
# The distance stated for rounding is what is safe; what happens is this much of it.
_ROUNDING = 0.1
_STRIDE = 0x9E3779B97F  # between the seeds of normals that must differ
_ROWS = 4096  # of a block that is float64 at a time


class Estimate(NamedTuple):
    """Of N matrices, float64, nats."""

    value: Tensor  # (N)
    stderr: Tensor  # (N)
    lower: Tensor  # (N)
    upper: Tensor  # (N)
    p: Tensor  # (N, k) descending: bounds from below on the leading eigenvalues of ρ


class State(NamedTuple):
    """N density matrices ρ = M/F of n rows by what defines them, float64 but for the products."""

    product: Callable[[Tensor], Tensor]  # x (N, n, c) → M x, of x's dtype
    matrix: Callable[[], Tensor]  # M (N, n, n) itself, float64
    support: Tensor  # (N, n) of that dtype, 1 where a row of M may be other than zero, else 0
    norm2: Tensor  # (N) F = tr M
    dim: Tensor  # (N) bound on the rank of M
    distance: Tensor  # (N) trace distance by which rounding of M may have moved ρ
    relative: Tensor  # (N) relative rounding of its elements
    products: float  # relative rounding of a product with M


def from_matrix(M: Tensor, state: State) -> Estimate:
    """The estimate that needs no estimating, from M (N, n, n) in float64, the ``state``'s."""
    bad = _bad(state, M)
    p = torch.linalg.eigvalsh(_without(bad, M)).flip(-1).clamp_min(0.0)
    p = p / p.sum(-1, keepdim=True)
    lower, upper = bounds(p, state.dim, p[:, 0] + state.distance, state.distance)
    return _finish(bad, surprise(p).sum(-1), _rounding(state.distance, state.dim), lower, upper, p)


def estimate(state: State, rank: int, steps: int, seed: Tensor) -> Estimate:
    """``steps`` products of ρ with blocks of ``rank`` + 1 columns; rank·steps is at most the number of rows.

    From random signs Ω on the support (functions of ``seed`` and the row: (1), or (N)) an orthonormal basis V of the
    block Krylov space and T = VᵀρV. Gauss quadrature from T alone, and Gauss–Radau with a node at zero from T and the
    residual of the last block, bracket tr f(ρ) for f = −x ln x (the even derivatives are negative, the odd ones
    positive) up to the chance of Ω. So do the same one step earlier, and ¼, ½, ¼ of three in a row takes out what
    alternates. Ritz values that have converged are counted once each, exactly; the rest, weighted by |Ωᵀy|², is
    scaled in number and in size so that it counts the eigenvalues that remain and has the trace that remains.

    The last column is a positive vector x ← ρx from x = 1: max (ρx)_i/x_i bounds λ₁ from above (Collatz–Wielandt).
    """
    n = state.support.shape[1]
    probes = ops.rsvd_sketch(seed, n, rank, state.support.dtype).sign() * state.support[..., None]
    T, H, D, largest = _krylov(state, probes, steps, seed)
    bad = _bad(state, H)
    T, distance = _symmetric(_without(bad, T), state.distance + state.products)
    H, D = _without(bad, H), D.masked_fill(bad[:, None, None], 0.0)

    theta, Y = torch.linalg.eigh(T)
    theta, Y = theta.flip(-1).clamp_min(0.0), Y.flip(-1)
    rest = _last_block(H - T @ T, rank)  # BᵀB, B the part of ρV's last block outside of V
    residual = torch.einsum("nik,nij,njk->nk", Y[:, -rank:], rest, Y[:, -rank:]).clamp_min(0.0).sqrt()
    mass = (Y.mT @ D).square()
    # One eigenvalue each: of a multiple one the block may hold some, but all of its weight.
    single = mass.mean(-1).cumsum(-1)
    index = torch.arange(1, theta.shape[-1] + 1, dtype=theta.dtype, device=theta.device)
    single = single <= index + 4.0 * (2.0 * index / rank).sqrt()
    converged = ((residual <= _CONVERGED * theta) & single).cumprod(-1).sum(-1)

    levels = [(theta, mass), radau(T, H, D)]
    weights = [0.5, 0.5]
    if steps > 1:
        r = rank * (steps - 1)
        levels.insert(0, radau(T[:, :r, :r], H[:, :r, :r], D[:, :r]))
        weights = [0.25, 0.5, 0.25]
    head = levels[-1][0]
    rows = state.support.double().sum(-1)
    found = [count(nodes, mass, head, converged.clamp_max(nodes.shape[-1]), rows) for nodes, mass in levels]
    value = sum(w * S for w, (S, _) in zip(weights, found, strict=True))
    influence = sum(w * I for w, (_, I) in zip(weights, found, strict=True))

    lower, upper = bounds(theta, state.dim, largest * (1.001 + 4 * state.relative), distance)
    chance = influence.std(-1) / math.sqrt(rank) if rank > 1 else (upper - lower) / math.sqrt(12)
    bias = _BIAS * (found[-1][0] - found[-2][0]).abs()
    rounding = _rounding(distance, state.dim)
    return _finish(bad, value, (chance**2 + bias**2 + rounding**2).sqrt(), lower, upper, theta)


def _rounding(distance, dim):
    """What rounding is likely to do to an entropy of ``dim`` probabilities."""
    return _ROUNDING * distance * (1.0 + dim.clamp_min(1.0).log())


def _bad(state, T):
    """(N): NaN came in, or there is nothing to take shares of."""
    return ~(T.isfinite().all(-1).all(-1) & (state.norm2 > 0))


def _finish(bad, value, error, lower, upper, p):
    value = value.clamp(lower, upper)
    nan = torch.where(bad, math.nan, 0.0).to(value)
    return Estimate(value + nan, error + nan, lower + nan, upper + nan, p + nan[:, None])


def _krylov(state, probes, steps, seed):
    """T = VᵀρV and H = (ρV)ᵀρV (N, k, k), D = VᵀΩ (N, k, b), and the bound on λ₁ (N); float64."""
    count, n, b = probes.shape
    F = state.norm2
    V = probes.new_empty(count, n, steps * b)
    T = F.new_zeros(count, steps * b, steps * b)
    Q, R = ops.rsvd_orthonormalise(probes, 0, seed)
    x = state.support[..., None]
    largest = torch.full_like(F, math.inf)
    for j in range(steps):
        at, upto = slice(j * b, (j + 1) * b), slice(0, (j + 1) * b)
        V[:, :, at] = Q
        Y = state.product(torch.cat([Q, x], -1))
        W, y = Y[..., :b], Y[..., b:]
        ratio = torch.where(x > 0, y / x, torch.where(y > 0, math.inf, y)).amax((-2, -1))
        largest = torch.fmin(largest, ratio.double() / F)
        x = y / y.amax(-2, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
        T[:, upto, at] = gram(V[:, :, upto], W) / F[:, None, None]
        residual = _outside(V[:, :, upto], _outside(V[:, :, upto], W))
        if j + 1 < steps:
            Q = _next_block(V[:, :, upto], residual, seed + 3 * j * _STRIDE)
            T[:, (j + 1) * b : (j + 2) * b, at] = gram(Q, W) / F[:, None, None]
    for j in range(2, steps):  # what is zero but for rounding is as measured, on both sides
        T[:, j * b : (j + 1) * b, : (j - 1) * b] = T[:, : (j - 1) * b, j * b : (j + 1) * b].mT
    # V is orthonormal to rounding of its own dtype: V L⁻ᵀ with VᵀV = LLᵀ is to that of float64.
    overlap = gram(V, V)
    L = torch.linalg.cholesky_ex(_without(~overlap.isfinite().all(-1).all(-1), overlap)).L
    T = torch.linalg.solve_triangular(L, T, upper=False)
    T = torch.linalg.solve_triangular(L, T.mT, upper=False).mT
    S = (T + T.mT) / 2
    H = S @ S
    H[:, -b:, -b:] += gram(residual, residual) / F.square()[:, None, None]
    D = T.new_zeros(count, steps * b, b)
    D[:, :b] = L[:, :b, :b].mT @ R
    return T, H, D, largest


def _next_block(V, residual, seed):
    """Orthonormal columns (N, n, b) orthogonal to V, from what a product holds outside of V.

    Where the Krylov space ends that is rounding, which scaled to length one may well lie within V. Such directions are
    told by their cosines with V and give way to normals.
    """
    Q, _ = ops.rsvd_orthonormalise(residual, 0, seed + _STRIDE)
    C = (V.mT @ Q).double()
    C = C.mT @ C
    cosines, Z = torch.linalg.eigh(_without(~C.isfinite().all(-1).all(-1), C))
    lost = cosines > 0.25
    turned = torch.where(lost.any(-1)[:, None, None], Q @ Z.to(Q.dtype), Q)
    Q = torch.where(lost[:, None, :], ops.rsvd_sketch(seed + 2 * _STRIDE, *Q.shape[1:], Q.dtype), turned)
    Q, _ = ops.rsvd_orthonormalise(_outside(V, _outside(V, Q)), 0, seed + 3 * _STRIDE)
    return ops.rsvd_orthonormalise(_outside(V, Q), 0, seed)[0]


def radau(T, H, D):
    """Nodes and weights (N, r), (N, r, b) of Gauss–Radau with a node at zero: one more moment than T has.

    With M = A Aᵀ the nodes are those of UᵀAᵀA U, U the orthonormalised AᵀV: X = Y Θ^{−½} makes U = AᵀV X.
    """
    theta, Y = torch.linalg.eigh(T)
    kept = theta > 1e-10 * theta[:, -1:].clamp_min(torch.finfo(theta.dtype).tiny)
    X = Y * torch.where(kept, theta, math.inf).rsqrt()[:, None, :]
    nodes, Z = torch.linalg.eigh(X.mT @ H @ X)
    nodes, Z = nodes.flip(-1).clamp_min(0.0), Z.flip(-1)
    amplitude = Z.mT @ ((Y * torch.where(kept, theta, 0.0).sqrt()[:, None, :]).mT @ D)
    share = torch.where(nodes > 1e-12 * nodes[:, :1], nodes, math.inf)
    return nodes, amplitude.square() / share[..., None]


def count(nodes, weights, head, converged, rows):
    """Entropy (N), and what each probe adds to its fluctuation (N, b).

    ``head``: nodes (N, ≥ c) of which the first ``converged`` are eigenvalues; ``rows``: how many there are in all.
    """
    tiny = torch.finfo(nodes.dtype).tiny
    first = torch.arange(head.shape[-1], device=nodes.device) < converged[:, None]
    known = torch.where(first, head, 0.0)
    mass = (1.0 - known.sum(-1)).clamp_min(0.0)
    number = (rows - converged).clamp_min(1.0)
    late = torch.arange(nodes.shape[-1], device=nodes.device) >= converged[:, None]
    weights_late = weights * late[..., None]
    f = (weights_late * surprise(nodes)[..., None]).sum(-2)  # (N, b), a probe each: tr f, trace, number
    m = (weights_late * nodes[..., None]).sum(-2)
    z = (rows[:, None] - (weights * ~late[..., None]).sum(-2)).clamp_min(tiny)
    f0, m0, z0 = (x.mean(-1, keepdim=True) for x in (f, m, z))
    some = (m0 > tiny)[:, 0]  # else nothing is known of the rest: as if it were uniform
    m0 = m0.clamp_min(tiny)
    shape = torch.where(some, (f0 / m0 + (m0 / z0).log())[:, 0], 0.0)
    S = surprise(known).sum(-1) + mass * (shape + number.log()) + surprise(mass)
    influence = mass[:, None] * ((f - f0) / m0 - (m - m0) * (f0 / m0 - 1.0) / m0 - (z - z0) / z0)
    return S, torch.where(some[:, None], influence, 0.0)


def _symmetric(T, distance):
    """T's symmetric part, and the distance with what its asymmetry says of the rounding of products."""
    odd = _without(~T.isfinite().all(-1).all(-1), T - T.mT)
    return (T + T.mT) / 2, distance + torch.linalg.svdvals(odd).sum(-1) / 2


def _outside(V, Y):
    """Y less its part in the span of V."""
    return Y - V @ (V.mT @ Y)


def gram(X: Tensor, Y: Tensor) -> Tensor:
    """XᵀY in float64, (N, ·, ·)."""
    return sum(x.double().mT @ y.double() for x, y in zip(X.split(_ROWS, -2), Y.split(_ROWS, -2), strict=True))


def _last_block(H, b):
    return H[:, -b:, -b:]


def _without(bad, T):
    """T with the identity in place of the matrices that ``bad`` marks: what LAPACK takes without complaint."""
    identity = torch.eye(T.shape[-1], dtype=T.dtype, device=T.device)
    return torch.where(bad[:, None, None], identity, T)
