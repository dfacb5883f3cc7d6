"""The lines that measurements are drawn against: bounds, random averages, nulls and growth laws (docs/math.md §1, §5).

Entropies are in nats, von Neumann unless options say otherwise. Lists run over the bonds 1 … N−1 of a chain.
"""

from dataclasses import dataclass
from math import log, pi, prod, sin

import torch
from torch import Tensor

from artent.profile import entanglement_profile
from artent.updates import LoRAUpdate, MPSUpdate, Update


def page(a: int, b: int, exact: bool = False) -> float:
    """Mean entropy of a random state between sides of dimension a and b, in either order.

    Asymptotically ln a − a/(2b) for a ≤ b. ``exact`` is Page's sum Σ_{k=b+1}^{ab} 1/k − (a−1)/(2b) (D. N. Page,
    Phys. Rev. Lett. 71, 1291, 1993), which averages over complex vectors; a real Gaussian matrix has the same
    asymptote.
    """
    a, b = sorted((a, b))
    if a < 1:
        raise ValueError(f"a, b: dimensions are at least 1, got {a} and {b}")
    if not exact:
        return log(a) - a / (2 * b)
    ends = torch.tensor([a * b + 1, b + 1], dtype=torch.float64).digamma()
    return (ends[0] - ends[1]).item() - (a - 1) / (2 * b)


def page_line(dims: tuple[int, ...]) -> list[float]:
    """``page`` at every bond of a chain: the profile of a random full-rank update."""
    return [max(0.0, page(D, prod(dims) // D)) for D in _left(dims)]


def lora_line(dims: tuple[int, ...], cut: int, rank: int) -> list[float]:
    """The profile of ΔW = B A with Gaussian factors of the given rank (within 0.06 nats at 512², rank 4 … 64).

    Off the row|column cut ``page`` of the sides D_l and (m/D_l)·min(r, n), mirrored on the column side. At the cut
    ln r − r/(2m) − r/(2n), in which the smallest of r, m, n takes the place of r.
    """
    m, n = _shape(dims, cut, rank)
    line = []
    for l, D in enumerate(_left(dims), start=1):
        if l == cut:
            a, b, c = sorted((m, n, rank))
            value = log(a) - a / (2 * b) - a / (2 * c)
        elif l < cut:
            value = page(D, m // D * min(rank, n))
        else:
            value = page(D // m * min(rank, m), m * n // D)
        line.append(max(0.0, value))
    return line


def rank_bound(dims: tuple[int, ...], cut: int, rank: int | None = None) -> list[float]:
    """The most entropy a bond can have: ln min(D_l, D_N/D_l), and for rank r on the row side (m/D_l)·r, mirrored."""
    m, n = _shape(dims, cut, rank)
    r = min(m, n) if rank is None else rank
    return [log(min(D, m * n // D, (m // D if l <= cut else D // m) * r)) for l, D in enumerate(_left(dims), start=1)]


@dataclass(frozen=True)
class Null:
    """Mean and standard deviation over draws of a null's entropy, per bond."""

    mean: list[float]
    std: list[float]


def gaussian_null(update: Update | tuple[int, int], *, rank=None, draws=8, seed=0, **options) -> Null:
    """Profiles of Gaussian updates of the same shapes: factors where the update has factors, else a full matrix.

    Args:
        update: an update, or a shape (m, n) with an optional ``rank`` for factors.
        draws: how many; ``seed`` fixes them.
        options: ``sites``, ``alpha``, ``log_base`` of ``entanglement_profile``.
    """
    if isinstance(update, (LoRAUpdate, MPSUpdate)):
        rank = update.rank
    m, n = update if isinstance(update, tuple) else update.shape
    generator = _generator(draws, seed)

    def draw():
        if rank is None:
            return torch.randn(m, n, generator=generator)
        return LoRAUpdate(torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator))

    return _null(draw, draws, options)


def haar_null(update: Update, *, draws=8, seed=0, **options) -> Null:
    """Profiles of updates with the singular values of this one and Haar-random singular vectors.

    What the bonds off the row|column cut have beyond it is not explained by the spectrum at the cut. Factored
    updates stay factored: frames of m×r and r×n. Arguments as for ``gaussian_null``.
    """
    with torch.no_grad():
        p = entanglement_profile(update, sites=options.get("sites")).cut_probabilities.cpu()
    m, n = update.shape
    generator = _generator(draws, seed)
    dtype = torch.float32 if isinstance(update, Tensor) else torch.float64
    sigma = p.sqrt().to(dtype)

    def draw():
        U, V = (_haar_frame(size, len(p), generator, dtype) for size in (m, n))
        return (U * sigma) @ V.mT if isinstance(update, Tensor) else LoRAUpdate(U * sigma, V.mT)

    return _null(draw, draws, options)


def causal_uniform(T: int) -> float:
    """S_ext of uniform causal attention, A_ij = 1/(i+1) for j ≤ i < T: a law of growth without any model in it."""
    A = torch.ones(T, T, dtype=torch.float64).tril() / torch.arange(1, T + 1, dtype=torch.float64)[:, None]
    p = torch.linalg.svdvals(A).square()
    return torch.special.entr(p / p.sum()).sum().item()


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
    left = _left(dims)
    x = [N * log(D) / log(total) for D in left]
    forms = {
        "calabrese-cardy": [log(N / pi * sin(pi * at / N)) / 3 for at in x],
        "linear": [log(min(D, total // D)) for D in left],
        "flat": None,
    }
    return {name: _least_squares(S, form) for name, form in forms.items()}


def _least_squares(S: Tensor, form: list[float] | None) -> ChainFit:
    ones = torch.ones_like(S)
    X = ones[:, None] if form is None else torch.stack([ones, torch.tensor(form, dtype=S.dtype)], 1)
    beta = torch.linalg.lstsq(X, S[:, None]).solution[:, 0]
    mean_square = (S - X @ beta).square().mean().item()
    # Two profiles that are matched to rounding are matched alike: the floor keeps ln finite.
    aic = len(S) * log(max(mean_square, 1e-24)) + 2 * (X.shape[1] + 1)
    return ChainFit(beta[1].item() if form else 0.0, beta[0].item(), mean_square**0.5, aic)


def _null(draw, draws: int, options: dict) -> Null:
    S = torch.stack([entanglement_profile(draw(), **options).entropy for _ in range(draws)])
    return Null(S.mean(0).tolist(), S.std(0, correction=min(1, draws - 1)).tolist())


def _generator(draws: int, seed: int) -> torch.Generator:
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws: expected at least one draw, got {draws!r}")
    return torch.Generator().manual_seed(seed)


def _haar_frame(size: int, k: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """(size, k) orthonormal columns, Haar distributed: QR of a Gaussian with the signs of R's diagonal undone."""
    Q, R = torch.linalg.qr(torch.randn(size, k, generator=generator, dtype=dtype))
    return Q * R.diagonal().sign()


def _left(dims: tuple[int, ...]) -> list[int]:
    return [prod(dims[:l]) for l in range(1, len(dims))]


def _shape(dims: tuple[int, ...], cut: int, rank: int | None) -> tuple[int, int]:
    if not 0 <= cut <= len(dims):
        raise ValueError(f"cut: expected between 0 and {len(dims)}, the number of sites, got {cut}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    return prod(dims[:cut]), prod(dims[cut:])
