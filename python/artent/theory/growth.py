"""How an entropy grows: S = c·ln T + b over lengths, and three laws over the bonds of a chain (docs/math.md §5)."""

from dataclasses import dataclass
from math import exp, fsum, log, pi, prod, sin

import torch
from torch import Tensor

from artent.theory.lines import left_dims


@dataclass(frozen=True)
class GrowthFit:
    """S = c ln T + b. ``interval`` is the bootstrap interval of c over texts."""

    c: float
    b: float
    interval: tuple[float, float]
    r_squared: float
    texts: int

    @property
    def verdict(self) -> str:
        """What the interval of c allows to say, in the words of docs/math.md §5."""
        low, high = self.interval
        if self.texts < 2:
            return "not enough texts"
        if low <= 0 and high >= 1:
            return "undecided"
        if low <= 0 <= high:
            return "area law"
        if low > 0 and high < 1:
            return "area law with a logarithmic correction"
        if low <= 1 <= high:
            return "volume law"
        return "neither law"


def fit_growth(T, S, *, bootstrap: int = 2000, confidence: float = 0.95, seed: int = 0) -> GrowthFit:
    """Least-squares fit of S_ext(T) = c ln T + b to the mean over texts.

    Args:
        T: (k,) lengths, at least two different ones.
        S: (texts, k) entropies in nats, or (k,) for a single curve.
        bootstrap: resamplings of the texts for the ``confidence`` interval of c, fixed by ``seed``. With a single
            text nothing can be resampled: the interval is the point and the verdict "not enough texts".
    """
    T = torch.as_tensor(T, dtype=torch.float64)
    S = torch.atleast_2d(torch.as_tensor(S, dtype=torch.float64))
    if T.ndim != 1 or S.ndim != 2 or S.shape[1] != len(T) or not len(S):
        raise ValueError(f"T, S: expected (k,) and (texts, k), got {tuple(T.shape)} and {tuple(S.shape)}")
    if not (T > 0).all() or len(T.unique()) < 2:
        raise ValueError(f"T: expected at least two different lengths > 0, got {T.tolist()}")
    if not 0 < confidence < 1 or bootstrap < 1:
        raise ValueError(
            f"confidence, bootstrap: expected a share between 0 and 1 and at least one resampling, got {confidence} and"
            f" {bootstrap}"
        )
    if not S.isfinite().all():
        raise ValueError("S: holds NaN or Inf (a text shorter than the longest length?)")
    x = T.log() - T.log().mean()
    slopes = S @ x / (x @ x)
    mean, c = S.mean(0), slopes.mean().item()
    b = (mean.mean() - c * T.log().mean()).item()
    spread = (mean - mean.mean()).square().sum().item()
    residual = (mean - c * T.log() - b).square().sum().item()
    picks = torch.randint(len(S), (bootstrap, len(S)), generator=torch.Generator().manual_seed(seed))
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = slopes[picks].mean(1).quantile(ends).tolist()
    return GrowthFit(c, b, (low, high), 1 - residual / spread if spread > 0 else 1.0, len(S))


@dataclass(frozen=True)
class ChainFit:
    """S(l) = coefficient · f(l) + constant over the bonds of one chain; Akaike's ``aic`` compares forms, lower wins."""

    coefficient: float
    constant: float
    rms: float
    aic: float


def fit_chain(S, dims: tuple[int, ...]) -> dict[str, ChainFit]:
    """Three readings of one profile S(l): Calabrese–Cardy, volume law, area law.

    "calabrese-cardy" is (c/3) ln[(N/π) sin(πx/N)] + s₀ with coefficient c (P. Calabrese and J. Cardy, J. Stat. Mech.
    P06002, 2004: a ring's, whose c is twice an open chain's), "linear" a·ln min(D_l, D_N/D_l) + s₀, "flat" s₀. The
    position is x = N ln D_l / ln D_N, which is l where the sites are alike.
    """
    S = torch.as_tensor(S, dtype=torch.float64)
    N, total = len(dims), prod(dims)
    if S.shape != (N - 1,) or N < 5:
        raise ValueError(
            f"S, dims: expected one entropy for each of at least 4 bonds, got {tuple(S.shape)} and {N} sites"
        )
    left = left_dims(dims)
    x = [N * log(D) / log(total) for D in left]
    forms = {
        "calabrese-cardy": [log(N / pi * sin(pi * at / N)) / 3 for at in x],
        "linear": [log(min(D, total // D)) for D in left],
        "flat": None,
    }
    return {name: _least_squares(S, form) for name, form in forms.items()}


def rising_bonds(dims: tuple[int, ...], cut: int, rank: int | None = None) -> list[int]:
    """The bonds on the row side on which random updates of this rank rise: D_l ≤ ½√(m·k), k = min(rank, n).

    At √(m·k) random factors turn into the valley, at √(m·n), the middle, a full matrix does, and there half a nat is
    missing already; up to half of it at most an eighth. Where that leaves fewer than three bonds, up to √(m·k) itself.
    """
    m, n = prod(dims[:cut]), prod(dims[cut:])
    k = n if rank is None else min(rank, n)
    inner, outer = ([l for l, D in enumerate(left_dims(dims), 1) if l <= cut and m * k >= at * D * D] for at in (4, 1))
    return inner if len(inner) >= 3 else outer


def fit_rise(S, dims: tuple[int, ...], cut: int, rank: int | None = None) -> dict[str, ChainFit] | None:
    """Three readings of a profile's rising side: volume law, Cardy's logarithm, area law; None on fewer than 3 bonds.

    Over ``rising_bonds``, "linear" is a·ln D_l + s₀ with coefficient a (1 for what holds all it can), "cardy"
    (c/3) ln[(N/π) sin(πx/N)] + s₀ of the whole chain as in ``fit_chain``, "flat" s₀.
    """
    S = torch.as_tensor(S, dtype=torch.float64)
    N, total, left = len(dims), prod(dims), left_dims(dims)
    if S.shape != (N - 1,):
        raise ValueError(f"S, dims: expected one entropy for each of {N - 1} bonds, got {tuple(S.shape)}")
    rise = rising_bonds(dims, cut, rank)
    if len(rise) < 3:
        return None
    left = [left[l - 1] for l in rise]
    cardy = [log(N / pi * sin(pi * log(D) / log(total))) / 3 for D in left]
    forms = {"linear": [log(D) for D in left], "cardy": cardy, "flat": None}
    return {name: _least_squares(S[[l - 1 for l in rise]], form) for name, form in forms.items()}


def akaike_weights(fits: dict[str, ChainFit]) -> dict[str, float]:
    """How far each form is supported beside the others: exp(−ΔAIC/2), normalised to a sum of one."""
    best = min(fit.aic for fit in fits.values())
    weights = {name: exp((best - fit.aic) / 2) for name, fit in fits.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _least_squares(S: Tensor, form: list[float] | None) -> ChainFit:
    """In correctly rounded sums: equal profiles have equal fits, wherever in memory they lie."""
    y, n = S.tolist(), len(S)
    x = [0.0] * n if form is None else form
    middle, mean = fsum(x) / n, fsum(y) / n
    spread = fsum((at - middle) ** 2 for at in x)
    slope = fsum((at - middle) * (value - mean) for at, value in zip(x, y)) / spread if spread else 0.0
    constant = mean - slope * middle
    mean_square = fsum((value - constant - slope * at) ** 2 for at, value in zip(x, y)) / n
    # Two profiles that are matched to rounding are matched alike: the floor keeps ln finite.
    aic = n * log(max(mean_square, 1e-24)) + 2 * (2 if form is None else 3)
    return ChainFit(slope, constant, mean_square**0.5, aic)
