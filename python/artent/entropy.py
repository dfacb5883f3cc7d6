"""Entropies of Schmidt probabilities, in nats, and certificates from an incomplete list of them (docs/math.md §1, §3).

Probabilities are the last axis; the axes before it are a batch. Every function is differentiable, with a zero
gradient (never NaN) at p = 0.
"""

from math import inf, isnan, log
from numbers import Real

import torch
from torch import Tensor


def check_alpha(alpha: float) -> float:
    """A Rényi order: any α > 0, infinity included."""
    if not isinstance(alpha, Real) or isinstance(alpha, bool):
        raise TypeError(f"alpha: expected a number > 0, got {alpha!r}")
    if isnan(alpha) or alpha <= 0:
        raise ValueError(f"alpha: a Rényi order is > 0 (1 is von Neumann, math.inf the largest p), got {alpha}")
    return float(alpha)


def check_log_base(log_base: float | None) -> float | None:
    """None (nats) or a finite number > 1, such as 2 for bits."""
    if log_base is None:
        return None
    if not isinstance(log_base, Real) or isinstance(log_base, bool):
        raise TypeError(f"log_base: expected None (nats) or a number > 1 such as 2, got {log_base!r}")
    if not 1 < log_base < inf:
        raise ValueError(f"log_base: expected None (nats) or a number > 1 such as 2, got {log_base}")
    return float(log_base)


def nats_per_unit(log_base: float | None) -> float:
    """ln(log_base), by which an entropy in nats is divided; 1 for None."""
    return 1.0 if log_base is None else log(check_log_base(log_base))


def von_neumann(p: Tensor, count: Tensor | float = 1.0) -> Tensor:
    """S = −Σ p ln p of p (…, k), as p stands (not renormalised), each occurring ``count`` times."""
    return -(count * p * _log(p)).sum(-1)


def purity(p: Tensor) -> Tensor:
    """Σ p² of p (…, k)."""
    return p.square().sum(-1)


def renyi(p: Tensor, alpha: float) -> Tensor:
    """S_α = ln(Σ p^α) / (1 − α) of p (…, k), Σp = 1; α = 1 is von Neumann, α = ∞ is −ln max p."""
    return _renyi(p, torch.ones_like(p), check_alpha(alpha))


def entropy(p: Tensor, alpha: float = 1.0, log_base: float | None = None) -> Tensor:
    """S_α of p (…, k) in units of ``log_base`` (None: nats)."""
    return renyi(p, alpha) / nats_per_unit(log_base)


def certificate(
    p: Tensor, tail: Tensor, dim: int, alpha: float = 1.0, rounding: float | None = None
) -> tuple[Tensor, Tensor]:
    """Deterministic bounds (lower, upper) in nats on S_α when only part of a spectrum is known (docs/math.md §3).

    ``p`` (…, k), descending, bound the k largest of the ``dim`` probabilities from below, λ_i ≥ p_i, and ``tail`` (…)
    is what they leave of the trace, 1 − Σp. Such are the squared singular values of QᵀA/‖A‖ for an orthonormal Q of
    k columns (Cauchy), with ``dim`` the smaller dimension of A; and the eigenvalues of one positive part of a density
    matrix whose other part has trace ``tail`` (Weyl). Every spectrum of that kind is majorised by (p₁ + tail, p₂, …),
    and majorises the one that the tail makes when it fills p from below to a common level, like water: the bounds
    are the entropies of these two.

    Both are widened for arithmetic: ``rounding`` states the trace distance ½Σ|δ| within which the given p and tail
    are right (default 4·(machine epsilon of p's dtype)), and the bounds hold for every spectrum that close: the lower
    one moves that much probability from the smallest to the largest, the upper one from the largest to the smallest.
    The float64 rounding of the entropies themselves is added to both.
    """
    alpha = check_alpha(alpha)
    k = p.shape[-1]
    if not 1 <= k <= dim:
        raise ValueError(f"p: expected between 1 and dim = {dim} probabilities, got {k}")
    distance = 4 * torch.finfo(p.dtype).eps if rounding is None else rounding
    p, tail = p.double().clamp(min=0), tail.double().clamp(min=0)[..., None]
    total = p.sum(-1, keepdim=True) + tail
    p, tail = p / total, tail / total

    steep = torch.cat([p[..., :1] + tail + distance, p[..., 1:]], -1)
    below = steep.flip(-1).cumsum(-1).flip(-1) - steep
    steep = steep - (distance - below).clamp(min=0).minimum(steep)

    count = torch.ones_like(p)
    flat = p
    if dim > k:
        flat = torch.cat([p, torch.zeros_like(tail)], -1)
        count = torch.cat([count, torch.full_like(tail, dim - k)], -1)
    mass = count * flat
    ceiling = ((mass.cumsum(-1) - distance) / count.cumsum(-1)).amax(-1, keepdim=True)
    floor = ((mass.flip(-1).cumsum(-1) + tail + distance) / count.flip(-1).cumsum(-1)).amin(-1, keepdim=True)
    # More to move than makes it uniform: uniform is the flattest there is.
    flat = torch.where(ceiling > floor, flat.minimum(ceiling).maximum(floor), 1.0 / dim)
    lower, upper = _renyi(steep, torch.ones_like(steep), alpha), _renyi(flat, count, alpha)
    summation = 8 * torch.finfo(torch.float64).eps * (1 + log(dim))
    return (lower - summation).clamp(min=0), upper + summation


def _log(p: Tensor) -> Tensor:
    """ln p, and 0 with zero gradient at p = 0."""
    return torch.where(p > 0, p, 1.0).log()


def _renyi(p: Tensor, count: Tensor, alpha: float) -> Tensor:
    """S_α of probabilities p (…, k) that occur ``count`` times each."""
    if alpha == 1:
        return von_neumann(p, count)
    if alpha == inf:
        return -p.amax(-1).log()
    if abs(alpha - 1) < 0.5:
        # ln Σp^α cancels against 1 − α near α = 1, so with Σp = 1: Σp^α = 1 + Σ p (p^{α−1} − 1).
        return (count * p * torch.expm1((alpha - 1) * _log(p))).sum(-1).log1p() / (1 - alpha)
    powers = (alpha * _log(p) + count.log()).masked_fill(p <= 0, -inf)
    return powers.logsumexp(-1) / (1 - alpha)
