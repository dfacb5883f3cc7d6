"""Intervals and tests for a few seeds: Student's t, exact permutations, equivalence, bootstraps. torch and math alone.

Seeds are the replicates throughout: modules, heads and texts of one run are averaged first, since what one run's
training did is common to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb, exp, inf, isfinite, lgamma, log, log1p, nan, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

import torch

__all__ = [
    "Equivalence",
    "Estimate",
    "bootstrap",
    "equivalence",
    "interval",
    "permutation_test",
    "range_quantile",
    "t_cdf",
    "t_quantile",
    "welch",
]


class Estimate(NamedTuple):
    """A number with its interval, both ends infinite where it has none, and how many values it is the mean of."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self):
        if not isfinite(self.high - self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def numbers(self):
        """[value, low, high] for a table, None where there is no interval."""
        return [self.value] + [end if isfinite(end) else None for end in (self.low, self.high)]


class Equivalence(NamedTuple):
    """What an equivalence test of a mean against ±margin found.

    ``equivalent``: the mean lies within the margin, at the confidence asked for (two one-sided tests). ``beyond``: it
    lies outside, at the same confidence. ``p`` of the former, the larger of the two one-sided; ``supports``: the
    smallest margin for which these data would be equivalent. ``low``, ``high``: the interval behind it, of confidence
    2c − 1.
    """

    mean: float
    low: float
    high: float
    p: float
    equivalent: bool
    beyond: bool
    supports: float


def t_cdf(t: float, dof: float) -> float:
    """Student's distribution function, by the continued fraction of the incomplete beta function."""
    if dof <= 0:
        return nan
    if not isfinite(t):
        return 1.0 if t > 0 else 0.0
    tail = _incomplete_beta(dof / (dof + t * t), dof / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


@lru_cache(maxsize=1024)
def t_quantile(p: float, dof: float) -> float:
    """The t with P(T ≤ t) = p; infinite without degrees of freedom. By bisection, to rounding."""
    if dof <= 0:
        return inf
    if p < 0.5:
        return -t_quantile(1 - p, dof)
    low, high = 0.0, 1.0
    while t_cdf(high, dof) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, dof) < p else (low, middle)
    return (low + high) / 2


def interval(values: Sequence[float], confidence: float) -> Estimate:
    """The mean with Student's interval; of one value without."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(mean, -inf, inf, n)
    half = t_quantile((1 + confidence) / 2, n - 1) * stdev(values) / sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def welch(a: Sequence[float], b: Sequence[float], confidence: float) -> Estimate:
    """mean(a) − mean(b) with Welch's interval: the two need not scatter alike. Without one where either is single."""
    difference, n = fmean(a) - fmean(b), min(len(a), len(b))
    if n < 2:
        return Estimate(difference, -inf, inf, n)
    parts = [stdev(x) ** 2 / len(x) for x in (a, b)]
    if not sum(parts):
        return Estimate(difference, difference, difference, n)
    dof = sum(parts) ** 2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b)))
    half = t_quantile((1 + confidence) / 2, dof) * sqrt(sum(parts))
    return Estimate(difference, difference - half, difference + half, n)


def permutation_test(groups: Sequence[int], statistic, draws: int = 2000, seed: int = 0) -> float:
    """P(statistic under exchanged labels ≥ the one observed).

    Args:
        groups: the group of every run.
        statistic: of such a sequence; large where the groups differ.
        draws: two groups of which there are at most so many splits are gone through exactly; else so many random
            exchanges, fixed by ``seed``, the observed one counted with them (so p is never 0, and is valid).
    """
    groups = tuple(groups)
    kinds, observed = sorted(set(groups)), statistic(groups)
    floor = observed - 1e-9 * max(1.0, abs(observed))  # equal but for rounding counts as reached
    n, few = len(groups), groups.count(kinds[0])
    if len(kinds) == 2 and comb(n, few) <= draws:
        splits = [tuple(kinds[at not in first] for at in range(n)) for first in map(set, combinations(range(n), few))]
        return fmean(statistic(split) >= floor for split in splits)
    generator = torch.Generator().manual_seed(seed)
    shuffled = (tuple(groups[i] for i in torch.randperm(n, generator=generator).tolist()) for _ in range(draws))
    return (1 + sum(statistic(labels) >= floor for labels in shuffled)) / (draws + 1)


def equivalence(values: Sequence[float], margin: float, confidence: float) -> Equivalence:
    """Two one-sided t tests of the mean of ``values`` against ±``margin`` (D. J. Schuirmann, 1987)."""
    n, mean = len(values), fmean(values)
    if n < 2:
        return Equivalence(mean, -inf, inf, nan, False, False, inf)
    return equivalent(mean, stdev(values) / sqrt(n), n - 1, margin, confidence)


def equivalent(mean: float, error: float, dof: float, margin: float, confidence: float) -> Equivalence:
    """``equivalence`` of a mean whose standard error is known with ``dof`` degrees of freedom."""
    half = t_quantile(confidence, dof) * error
    low, high = mean - half, mean + half
    p = float(abs(mean) >= margin) if not error else 1 - t_cdf((margin - abs(mean)) / error, dof)
    supports = max(abs(low), abs(high))
    return Equivalence(mean, low, high, p, supports < margin, low > margin or high < -margin, supports)


def bootstrap(values, confidence: float, draws: int = 2000, seed: int = 0) -> Estimate:
    """The mean over the first dimension with its percentile interval, resampled ``draws`` times."""
    values = torch.as_tensor(values, dtype=torch.float64)
    n = len(values)
    if n < 2:
        return Estimate(values.mean().item(), -inf, inf, n)
    picks = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    means = values[picks].reshape(draws, -1).mean(1)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    return Estimate(values.mean().item(), *means.quantile(ends).tolist(), n)


@lru_cache(maxsize=64)
def range_quantile(p: float, k: int, dof: int, draws: int = 200_000) -> float:
    """The p-quantile of the range of k normals, in units of a standard deviation estimated with ``dof`` (studentised).

    From ``draws`` seeded draws: right to about a percent at p = 0.95.
    """
    if dof < 1:
        return inf
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(draws, k, generator=generator, dtype=torch.float64)
    chi = torch.randn(draws, dof, generator=generator, dtype=torch.float64).square().mean(1).sqrt()
    return ((normals.amax(1) - normals.amin(1)) / chi).quantile(p).item()


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), regularised: the continued fraction of DLMF 8.17.22, on the side on which it converges."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    c, d, fraction = 1.0, 0.0, 1.0  # Lentz: 1 + d₁/(1 + d₂/(1 + …)), whose inverse it is
    for i in range(1, 2000):
        m = i // 2
        term = m * (b - m) if i % 2 == 0 else -(a + m) * (a + b + m)
        term *= x / ((a + i - 1) * (a + i))
        d = 1 / (1 + term * d or 1e-300)
        c = 1 + term / c or 1e-300
        fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front / fraction
