"""Bounds on the entropy of probabilities of which only some are known, and those from below (docs/math.md §3).

Everything float64, nats; probabilities are the last axis, the axes before it a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps


def surprise(p: Tensor) -> Tensor:
    """−p ln p, 0 at p ≤ 0."""
    p = p.clamp_min(0.0)
    return -torch.special.xlogy(p, p)


def bounds(
    p: Tensor,  # (..., k) descending
    dim: Tensor,  # (...)
    largest: Tensor,  # (...)
    distance: Tensor,  # (...)
) -> tuple[Tensor, Tensor]:
    """(lower, upper) on the entropy of every spectrum λ₁ ≥ λ₂ ≥ … of sum one that what is known allows.

    Known are λ_i ≥ p_i for the k largest of ``dim`` probabilities, λ₁ ≤ ``largest`` (1: nothing), both but for a
    change of trace distance ½Σ|δ| ≤ ``distance``. Every such λ is majorised by the steepest: partial sums
    min(j·largest, p₁ + … + p_j + ε + distance, 1) with ε = 1 − Σp, a minimum of concave sequences. And it majorises
    the flattest: ε + distance fills the p from below to a common level, like water, what is above a common ceiling
    having given ``distance``.
    """
    p = p.clamp_min(0.0)
    p = p / p.sum(-1).clamp_min(1.0)[..., None]
    tail = (1.0 - p.sum(-1)).clamp_min(0.0)
    lower = _steepest(p, tail + distance, largest.clamp(p[..., 0], torch.ones_like(tail)))
    upper = torch.minimum(_flattest(p, tail, dim, distance), dim.clamp_min(1.0).log())
    summation = 8 * _EPS * (1.0 + math.log(max(2, p.shape[-1])) + upper)
    lower = (lower - summation).clamp_min(0.0)
    return lower, torch.maximum(upper + summation, lower)


def _steepest(p, extra, largest):
    count = torch.arange(1, p.shape[-1] + 1, device=p.device, dtype=p.dtype)
    partial = torch.minimum(p.cumsum(-1) + extra[..., None], count * largest[..., None]).clamp_max(1.0)
    found = surprise(partial.diff(prepend=torch.zeros_like(partial[..., :1]))).sum(-1)
    rest = (1.0 - partial[..., -1]).clamp_min(0.0)  # nothing, or k·largest < 1: more of the same size
    whole = (rest / largest).floor()
    return found + whole * surprise(largest) + surprise(rest - whole * largest)


def _flattest(p, tail, dim, distance):
    tail, distance = tail[..., None], distance[..., None]
    others = (dim[..., None] - p.shape[-1]).clamp_min(0.0)
    flat = torch.cat([p, torch.zeros_like(tail)], -1)
    count = torch.cat([torch.ones_like(p), others], -1)
    mass = count * flat
    ceiling = ((mass.cumsum(-1) - distance) / count.cumsum(-1)).amax(-1, keepdim=True)
    below = count.flip(-1).cumsum(-1)
    level = (mass.flip(-1).cumsum(-1) + tail + distance) / below
    level = torch.where(below > 0, level, math.inf).amin(-1, keepdim=True)
    # More to move than makes it uniform: uniform is the flattest there is.
    flat = torch.where(ceiling > level, flat.minimum(ceiling).maximum(level), 1.0 / count.sum(-1, keepdim=True))
    return (count * surprise(flat)).sum(-1)
