"""The entropy of a density matrix from a few products with it: block Krylov and stochastic quadrature (math.md §3).

As in ``artent_ext._krylov``, whose quadratures serve here too, but for one matrix, whose elements may have any sign,
and step by step, so that whoever drives it stops where the error is small enough.
"""

from collections.abc import Callable, Iterator
from math import hypot, log
from typing import NamedTuple

import torch
from torch import Tensor

from artent_ext._krylov import count, radau

# A Ritz pair with a residual below this share of its value counts as an eigenvalue.
_CONVERGED = 1e-2
# A cluster of eigenvalues that is wider than the block shows as many Ritz values as the block has columns, so close
# together; further apart, up to the second, their weight decides.
_CLUSTER, _LOOSE = 0.05, 0.1
# Gauss and Gauss–Radau err to opposite sides, the latter some 0.6 times as far: this share of the first leaves a fifth
# of their distance or less. Over the spectra of tests/artent/hybrid_spectra.py errors are then one stderr (rms).
_GAUSS = 0.4
_BIAS = 0.2
# Directions of a product below this share of the largest Ritz value are rounding of float32.
_LOST = 1e-6


class Estimate(NamedTuple):
    """Of S in nats after some steps. Standard deviations: of the probes, of the quadrature, of rounding."""

    value: float
    chance: float
    bias: float
    rounding: float
    ritz: Tensor  # (k) float64, descending: λ_i ≥ ritz_i, but for a trace distance
    distance: float  # … of this much, by the asymmetry that rounding left in VᵀρV
    steps: int

    @property
    def stderr(self) -> float:
        return hypot(self.chance, self.bias, self.rounding)


def estimates(product: Callable[[Tensor], Tensor], probes: Tensor, image: Tensor | None = None) -> Iterator[Estimate]:
    """An estimate after each step of the block Krylov space of ρ from ``probes`` (n, b) ±1; ends where the space does.

    ``product`` gives ρ X for X (n, q) of the probes' dtype and device, tr ρ = 1; ``image`` is ρΩ, if known. All else is
    float64, and what has no side of length n is on the CPU: V orthonormal, T = VᵀρV, H = (ρV)ᵀρV, D = VᵀΩ.
    """
    n = len(probes)
    start = probes.double()
    Q = _orthonormal(start, 0.0)
    V, last = Q[:, :0], None
    T = torch.zeros(0, 0, dtype=torch.float64)
    D = (Q.mT @ start).cpu()
    steps = 0
    while Q.shape[1]:
        old, width = V.shape[1], Q.shape[1]
        if steps or image is None:
            W = product(Q.to(probes.dtype)).double()
        else:  # Ω = QD
            W = image.double() @ torch.linalg.pinv(D).to(image.device)
        V = torch.cat([V, Q], 1)
        T = _bordered(T, (V.mT @ W).cpu(), None if last is None else (Q.mT @ last).cpu())
        rest = _outside(V, _outside(V, W))
        steps += 1
        S = (T + T.mT) / 2
        H = S @ S
        H[old:, old:] += (rest.mT @ rest).cpu()
        rounding = torch.linalg.svdvals(T - T.mT).sum().item() / 2
        yield _estimate(S, H, _padded(D, len(S)), width, n, rounding, steps)
        Q = _orthonormal(rest, _LOST * torch.linalg.matrix_norm(S, 2).item())
        Q = _orthonormal(_outside(V, _outside(V, Q)), 0.0)
        last = W


def _bordered(T: Tensor, right: Tensor, below: Tensor | None) -> Tensor:
    """T (k, k) with the columns ``right`` (k + q, q) and the rows that mirror them, those ``below`` as measured."""
    k, q = len(T), right.shape[1]
    out = T.new_empty(k + q, k + q)
    out[:k, :k], out[:, k:], out[k:, :k] = T, right, right[:k].mT
    if below is not None:
        out[k:, k - below.shape[1] : k] = below
    return out


def _padded(D: Tensor, rows: int) -> Tensor:
    """VᵀΩ: Ω is in the span of the first block, to the rounding of float64."""
    return torch.cat([D, D.new_zeros(rows - len(D), D.shape[1])])


def _orthonormal(X: Tensor, least: float) -> Tensor:
    """An orthonormal basis of the columns of X (n, q), without the directions of length up to ``least``."""
    for _ in range(2):  # the second for what the squared condition number of the first took
        lengths, Z = torch.linalg.eigh((X.mT @ X).cpu())
        kept = lengths > max(least**2, 1e-14 * lengths.amax().item()) if len(lengths) else lengths > 0
        X = X @ (Z[:, kept] * lengths[kept].rsqrt()).to(X.device)
        least = 0.0
    return X


def _outside(V: Tensor, X: Tensor) -> Tensor:
    return X - V @ (V.mT @ X)


def _estimate(T: Tensor, H: Tensor, D: Tensor, width: int, n: int, distance: float, steps: int) -> Estimate:
    """Of T (k, k), H, D (k, b) whose last block is ``width`` wide."""
    b = D.shape[1]
    theta, Y = torch.linalg.eigh(T)
    theta, Y = theta.flip(-1).clamp_min(0.0), Y.flip(-1)
    rest = (H - T @ T)[-width:, -width:]
    residual = torch.einsum("ik,ij,jk->k", Y[-width:], rest, Y[-width:]).clamp_min(0.0).sqrt()
    mass = (Y.mT @ D).square()
    converged = (residual <= _CONVERGED * theta).cumprod(-1).sum(-1).clamp_max(_unclustered(theta, mass))[None]

    nodes, weights = radau(T[None], H[None], D[None])
    rows = torch.tensor([float(n)], dtype=torch.float64)
    S_gauss, of_gauss = count(theta[None], mass[None], nodes, converged, rows)
    S_radau, of_radau = count(nodes, weights, nodes, converged, rows)
    influence = _GAUSS * of_gauss + (1 - _GAUSS) * of_radau
    return Estimate(
        value=min(max((_GAUSS * S_gauss + (1 - _GAUSS) * S_radau).item(), 0.0), log(n)),
        chance=influence.std().item() / b**0.5,
        bias=_BIAS * (S_gauss - S_radau).abs().item(),
        rounding=distance * (1 + log(n)),
        ritz=theta,
        distance=distance,
        steps=steps,
    )


def _unclustered(theta: Tensor, mass: Tensor) -> int:
    """How many of the leading Ritz values (k) may each be one eigenvalue, by their weights, (k, b) squared overlaps.

    The Krylov space of b probes holds b vectors of an eigenspace at most, and all the weight that the probes have in
    it, one a dimension. So b Ritz values close together may stand for more eigenvalues than that; chance hides up to
    two more in the weight.
    """
    k, b = mass.shape
    if k < b:
        return k
    first, last = theta[: k - b + 1], theta[b - 1 :]
    heavy = mass.mean(-1).unfold(0, b, 1).sum(-1) > b
    spread = torch.where(heavy, _LOOSE, _CLUSTER)
    suspect = (first - last <= spread * first).nonzero()
    return int(suspect[0]) if len(suspect) else k
