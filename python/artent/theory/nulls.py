"""Profiles that a measurement is judged by: Gaussian and Haar updates, uniform attention (docs/math.md §1, §5).

Entropies are in nats, von Neumann unless options say otherwise. Every draw is fixed by its seed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from artent.profile import entanglement_profile
from artent.updates import LoRAUpdate, MPSUpdate, Update


@dataclass(frozen=True)
class Null:
    """Mean and standard deviation over draws of a null's entropy, per bond."""

    mean: list[float]
    std: list[float]


def gaussian_null(update: Update | tuple[int, int], *, rank=None, draws=8, seed=0, **options) -> Null:
    """Profiles of Gaussian updates of the same shapes: cores where the update has cores, factors where it has
    factors, else a full matrix.

    Contracted Gaussian cores are no Gaussian factor: their bonds hold no more than χ. Beside this null of an MPS, pass
    its shape and rank for the one of a LoRA.

    Args:
        update: an update, or a shape (m, n) with an optional ``rank`` for factors.
        draws: how many; ``seed`` fixes them.
        options: ``sites``, ``alpha``, ``log_base`` of ``entanglement_profile``.
    """
    m, n = _shape_of(update)
    generator = _generator(draws, seed)

    def gaussian(factor):
        if isinstance(factor, Tensor):
            return torch.randn(factor.shape, generator=generator)
        return [gaussian(core) for core in factor]

    def draw():
        if isinstance(update, (LoRAUpdate, MPSUpdate)):
            return type(update)(gaussian(update.B), gaussian(update.A))
        if rank is None:
            return torch.randn(m, n, generator=generator)
        return LoRAUpdate(torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator))

    return _null(draw, draws, options)


def haar_null(update: Update, *, draws=8, seed=0, **options) -> Null:
    """Profiles of updates with the singular values of this one and Haar-random singular vectors.

    What the bonds off the row|column cut have beyond it is not explained by the spectrum at the cut. Factored
    updates stay factored: frames of m×r and r×n. Arguments as for ``gaussian_null``.
    """
    m, n = _shape_of(update)
    with torch.no_grad():
        p = entanglement_profile(update, sites=options.get("sites")).cut_probabilities.cpu()
    generator = _generator(draws, seed)
    dtype = torch.float32 if isinstance(update, Tensor) else torch.float64
    sigma = p.sqrt().to(dtype)

    def draw():
        U, V = (haar_frame(size, len(p), generator, dtype) for size in (m, n))
        return (U * sigma) @ V.mT if isinstance(update, Tensor) else LoRAUpdate(U * sigma, V.mT)

    return _null(draw, draws, options)


def causal_uniform(T: int) -> float:
    """S_ext of uniform causal attention, A_ij = 1/(i+1) for j ≤ i < T: a law of growth without any model in it."""
    A = torch.ones(T, T, dtype=torch.float64).tril() / torch.arange(1, T + 1, dtype=torch.float64)[:, None]
    p = torch.linalg.svdvals(A).square()
    return torch.special.entr(p / p.sum()).sum().item()


def _shape_of(update) -> tuple[int, int]:
    shape = update if isinstance(update, tuple) else getattr(update, "shape", None)
    if shape is None or len(shape) != 2:
        raise TypeError(f"update: expected one update or a shape (m, n), got {update!r:.80}")
    return shape


def _null(draw, draws: int, options: dict) -> Null:
    S = torch.stack([entanglement_profile(draw(), **options).entropy for _ in range(draws)])
    return Null(S.mean(0).tolist(), S.std(0, correction=min(1, draws - 1)).tolist())


def _generator(draws: int, seed: int) -> torch.Generator:
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws: expected at least one draw, got {draws!r}")
    return torch.Generator().manual_seed(seed)


def haar_frame(size: int, k: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """(size, k) orthonormal columns, Haar distributed: QR of a Gaussian with the signs of R's diagonal undone."""
    Q, R = torch.linalg.qr(torch.randn(size, k, generator=generator, dtype=dtype))
    return Q * R.diagonal().sign()
