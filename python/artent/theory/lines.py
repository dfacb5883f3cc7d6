"""Lines over the bonds 1 … N−1 of a chain: random averages and the rank bound (docs/math.md §1, §5). Nats."""

from math import log, prod

import torch

from artent.updates import MPSUpdate


def page(a: int, b: int, exact: bool = False) -> float:
    """Mean entropy of a random state between sides of dimension a and b, in either order.

    Asymptotically ln a − a/(2b) for a ≤ b. ``exact`` is Page's sum Σ_{k=b+1}^{ab} 1/k − (a−1)/(2b) (D. N. Page,
    Phys. Rev. Lett. 71, 1291, 1993), which averages over complex vectors; a real Gaussian matrix has the same
    asymptote.
    """
    a, b = sorted((a, b))
    if a < 1:
        raise ValueError(f"a, b: dimensions are at least 1, got {a} and {b}")
    if a == 1:
        return 0.0
    if not exact:
        return log(a) - a / (2 * b)
    ends = torch.tensor([a * b + 1, b + 1], dtype=torch.float64).digamma()
    return (ends[0] - ends[1]).item() - (a - 1) / (2 * b)


def page_line(dims: tuple[int, ...]) -> list[float]:
    """``page`` at every bond of a chain: the profile of a random full-rank update."""
    return [max(0.0, page(D, prod(dims) // D)) for D in left_dims(dims)]


def lora_line(dims: tuple[int, ...], cut: int, rank: int, leading: bool = False) -> list[float]:
    """The profile of ΔW = B A with Gaussian factors of the given rank, exact in the limit of large sides.

    Left of the row|column cut the state has the sides D and b = (m/D)·k, k = min(r, n), of which the k columns of C
    are weighted by the spectrum of A: two Marchenko–Pastur laws multiply freely, of ratios c = a/max(D, b), where
    a = min(D, b), and c₂ = k/max(r, n). Their moments (1/p) Σ C(p, i)·C(p, j)·C(p, p−1−i−j)·c^i·c₂^j, differentiated
    at p = 1, give

        S = ln a − (c + c₂)/2 + c·c₂/6 where b < D,    S = ln a − c·(1 + c₂)/2 + c²·c₂/6 where D ≤ b,

    mirrored on the column side; at the cut, with a ≤ b ≤ c of m, n and r, S = ln a − a/(2b) − a/(2c) + a²/(6bc). For
    square factors that is the Fuss–Catalan entropy, ln a − 5/6. ``gaussian_null`` is within 0.02 nats of it at 256² and
    rank 4, within 0.01 from 512² on.

    Args:
        leading: the leading terms alone, ``page`` of D and b and, at the cut, ln a − a/(2b) − a/(2c). They leave out
            that A's spectrum is not flat, up to c₂/2 beside the cut (0.06 nats at r = n/8).
    """
    m, n = _shape(dims, cut, rank)
    line = []
    for l, D in enumerate(left_dims(dims), start=1):
        if l == cut:
            a, b, c = sorted((m, n, rank))
            value = log(a) - a / (2 * b) - a / (2 * c) + (0 if leading else a * a / (6 * b * c))
        else:
            side, inner, outer = (D, m // D, n) if l < cut else (m * n // D, D // m, m)
            k = min(rank, outer)
            value = page(side, inner * k) if leading else _weighted_page(side, inner * k, k / max(rank, outer))
        line.append(max(0.0, value))
    return line


def _weighted_page(D: int, b: int, ratio: float) -> float:
    """``page`` of the sides D and b where b's states are weighted by a Marchenko–Pastur spectrum of that ratio."""
    if b >= D:
        c = D / b
        return log(D) - c * (1 + ratio) / 2 + c * c * ratio / 6
    c = b / D
    return log(b) - (c + ratio) / 2 + c * ratio / 6


def rank_bound(
    dims: tuple[int, ...], cut: int, rank: int | None = None, inner: dict[int, int] | None = None
) -> list[float]:
    """The most entropy a bond can have: ln min(D_l, D_N/D_l), and for rank r on the row side (m/D_l)·r, mirrored.

    Args:
        inner: Schmidt ranks known elsewhere, ``{D: χ}`` with D the dimension left of a bond, such as ``core_ranks``
            of an MPS update. A bond at D_l can then have χ·D/D_l at most where D_l divides D, χ·D_l/D where D divides
            D_l: the sites between the two bonds add no more than their dimension. A D that is unaligned with a bond,
            neither dividing the other, says nothing about it.

    Raises ValueError for a ``cut``, a ``rank`` or an entry of ``inner`` that the chain does not have.
    """
    m, n = _shape(dims, cut, rank)
    known = {1: 1, m * n: 1}  # nothing lies outside the chain
    for D, chi in [(m, min(m, n) if rank is None else rank), *(inner or {}).items()]:
        if not 1 <= D <= m * n or m * n % D or chi < 1:
            raise ValueError(f"inner: expected Schmidt ranks ≥ 1 at divisors of {m * n}, got {{{D}: {chi}}}")
        known[D] = min(chi, known.get(D, chi))
    return [
        log(min(chi * max(at, D) // min(at, D) for at, chi in known.items() if max(at, D) % min(at, D) == 0))
        for D in left_dims(dims)
    ]


def core_ranks(update: MPSUpdate) -> dict[int, int]:
    """The Schmidt ranks that an MPS update's cores allow at their own bonds: ``{D: χ}``, as ``rank_bound`` takes them.

    A bond of A's cores after the sites d₁ … d_k has D = m·d₁⋯d_k to its left, one of B's D = d₁⋯d_k. Its χ bounds the
    Schmidt rank if the core with the rank index r lies on the other factor's side of it; else r runs past it, and the
    bound is χ·r.
    """
    m, r = update.shape[0], update.rank
    ranks = {}
    for chain, start, cut_at_first in zip(update.chains, (1, m), (False, True)):
        beside = 1 if (chain.carrier == "first") == cut_at_first else r
        for k, chi in enumerate(chain.bonds, start=1):
            ranks[start * prod(chain.sites[:k])] = chi * beside
    return ranks


def left_dims(dims: tuple[int, ...]) -> list[int]:
    return [prod(dims[:l]) for l in range(1, len(dims))]


def _shape(dims: tuple[int, ...], cut: int, rank: int | None) -> tuple[int, int]:
    if not 0 <= cut <= len(dims):
        raise ValueError(f"cut: expected between 0 and {len(dims)}, the number of sites, got {cut}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    return prod(dims[:cut]), prod(dims[cut:])
