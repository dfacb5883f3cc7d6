"""The spectrum of a random update as a bulk, what stands out of it, and both as entropies (docs/math.md §5). Nats.

Ratios: with a ≤ b ≤ c the sizes of the matrix and its rank, c₁ = a/b and c₂ = a/c for Gaussian factors; for a full
matrix of sides a ≤ b, c₁ = a/b and c₂ = 0. Eigenvalues are of W Wᵀ, scaled to a mean of one.
"""

from dataclasses import dataclass
from math import exp, log, sqrt

import torch

TRACY_WIDOM = 0.9793  # 95 % quantile of the largest eigenvalue of a real matrix, in its own scale


@dataclass(frozen=True)
class Spectrum:
    """Schmidt probabilities at the row|column cut as ``outliers`` above a random ``bulk``.

    Attributes:
        outliers: how many. edge: the probability above which one stands out.
        mass, share: of the norm ‖ΔW‖², and of the entropy, that the outliers have.
        entropy: measured; predicted: of the outliers beside a bulk that is random, the rest of the mass in it.
    """

    outliers: int
    edge: float
    mass: float
    share: float
    entropy: float
    predicted: float


def bulk_edge(c1: float, c2: float = 0.0) -> float:
    """The upper end of the bulk: Marchenko–Pastur's (1 + √c₁)², and of a product of two Gaussian factors.

    The law is the free product of the two Marchenko–Pastur laws, whose moment function ψ fulfils
    x = (1 + ψ)(1 + c₁ψ)(1 + c₂ψ)/ψ; its end is the least x over ψ > 0.
    """
    return _edge(c1, c2)[0]


def outlier(theta: float, c: float) -> float | None:
    """Where a signal of strength θ (σ² of the signal over that of the noise) comes out of a Marchenko–Pastur bulk.

    (1 + θ)(1 + c/θ) above the threshold θ > √c, None below it, where no eigenvalue leaves the bulk (J. Baik, G. Ben
    Arous and S. Péché, Ann. Probab. 33, 1643, 2005; noise of a rectangular matrix, c ≤ 1 its ratio).
    """
    if theta <= sqrt(c):
        return None
    return (1 + theta) * (1 + c / theta)


def signal(eigenvalue: float, c: float) -> float | None:
    """The θ whose ``outlier`` is here; None within the bulk."""
    if eigenvalue <= (1 + sqrt(c)) ** 2:
        return None
    half = (eigenvalue - 1 - c) / 2
    return half + sqrt(half * half - c)


def split_spectrum(p, shape: tuple[int, int], rank: int | None = None) -> Spectrum:
    """What stands out of a random bulk in the Schmidt probabilities ``p`` at the cut of an update of ``shape``.

    From the largest on, a probability is an outlier while it lies above the end of the bulk that it and those below
    it would make, by more than chance moves the largest eigenvalue (Tracy–Widom, 95 %). The bulk's law is that of a
    Gaussian matrix, with ``rank`` of a product of Gaussian factors.

    Args:
        p: (k,) Schmidt probabilities, in any order; zeros beyond the rank may be left out.

    Raises ValueError for probabilities that are none, or more than the sides and the rank allow.
    """
    m, n = shape
    p = torch.as_tensor(p, dtype=torch.float64).sort(descending=True).values
    a, b, c = sorted((m, n, rank)) if rank else (*sorted((m, n)), None)
    if p.ndim != 1 or not len(p) or (p < 0).any() or not p.isfinite().all() or not p.sum() > 0:
        raise ValueError(f"p: expected probabilities ≥ 0, not all zero, got {tuple(p.shape)}: {p.tolist()[:4]}")
    if (p > 0).sum() > a:
        raise ValueError(f"p: {int((p > 0).sum())} probabilities, but {m}×{n} and rank {rank} allow {a}")
    p = p[:a] / p.sum()
    c1, c2 = a / b, 0.0 if c is None else a / c
    end, scale = _edge(c1, c2)
    end += TRACY_WIDOM * (a * scale) ** (-2 / 3)
    rest = p.flip(0).cumsum(0).flip(0)  # mass from here on
    means = rest / torch.arange(a, a - len(p), -1)
    inside = (p <= end * means).nonzero()
    k = int(inside[0]) if len(inside) else len(p)
    entropy = torch.special.entr(p)
    mass, measured, out = p[:k].sum().item(), entropy.sum().item(), entropy[:k].sum().item()
    bulk = max(0.0, 1 - mass)
    predicted = out + (bulk * (log((a - k) / bulk) - (c1 + c2) / 2 + c1 * c2 / 6) if bulk > 0 and k < a else 0.0)
    predicted = max(0.0, predicted)
    edge = end * float(means[k] if k < len(p) else 0.0)
    return Spectrum(k, edge, mass, out / measured if measured > 0 else 0.0, measured, predicted)


def mixture_entropy(p1: float, T: float) -> float:
    """S of an attention matrix with one large Schmidt probability p₁ beside a random bulk of T states.

    h(p₁) + (1 − p₁)(ln T − ½), h the binary entropy: a bulk like that of a square Gaussian matrix. p₁ is a sink's, or
    the mean row's.
    """
    if not 0 <= p1 <= 1 or T < 1:
        raise ValueError(f"p1, T: expected a probability and at least one state, got {p1} and {T}")
    h = -sum(x * log(x) for x in (p1, 1 - p1) if x > 0)
    return h + (1 - p1) * max(0.0, log(T) - 0.5)


def effective_length(p1: float, S: float) -> float | None:
    """The T whose ``mixture_entropy`` is S; None where p₁ = 1 leaves no bulk."""
    if p1 >= 1:
        return None
    h = -sum(x * log(x) for x in (p1, 1 - p1) if x > 0)
    return exp((S - h) / (1 - p1) + 0.5)


def _edge(c1: float, c2: float) -> tuple[float, float]:
    """(x₊, A): the end of the bulk, and A of its density A·√(x₊ − x)/π there, which sets the scale of chance.

    A = √(2/x″)/x₊ with x″ the second derivative of x(ψ) at its minimum.
    """
    if not (0 <= c1 <= 1 and 0 <= c2 <= 1 and c1 + c2 > 0):
        raise ValueError(f"c1, c2: expected ratios from 0 to 1, not both 0, got {c1} and {c2}")

    def derivative(z):  # of ln x
        return 1 / (1 + z) + c1 / (1 + c1 * z) + c2 / (1 + c2 * z) - 1 / z

    low, high = 1e-12, 1.0
    while derivative(high) < 0:
        high *= 2
    for _ in range(200):
        z = (low + high) / 2
        low, high = (z, high) if derivative(z) < 0 else (low, z)
    x = (1 + z) * (1 + c1 * z) * (1 + c2 * z) / z
    curvature = 1 / z**2 - sum((c / (1 + c * z)) ** 2 for c in (1.0, c1, c2))  # of ln x, where its slope is 0
    return x, sqrt(2 / (x * curvature)) / x
