"""Which method for which bond of a dense update: a model of what they cost (``costs``), and a search within it."""

from math import ceil, log, log1p

import torch
from torch import Tensor

from artent.schmidt import exact
from artent.schmidt.costs import exact_cost, sides
from artent.schmidt.plan import Plan
from artent.schmidt.randomized import sketch
from artent.schmidt.spectrum import Spectrum
from artent.sites import Chain

WIDTH = 32  # of the sketch, where nobody says
_PROBE = 16  # and of the first of a search
# A search may spend this share of what it could save before it gives up: the worst case costs 1 + this of exact.
_STAKE = 0.5


def sketched(W: Tensor, chain: Chain, plan: Plan) -> list[Spectrum]:
    """Bounds at every bond of W (m, n); with ``plan.max_error`` from sketches that widen until all meet it.

    They widen no further than exact would cost. Outer bonds are exact, up to where that costs half of the rest.
    """
    width = min(plan.rank or WIDTH, *chain.shape)
    return _widen(W, chain, plan, width, exact_cost(chain, plan.alpha, chain.bonds), _ends)


def cheapest(W: Tensor, chain: Chain, plan: Plan) -> list[Spectrum]:
    """Spectra of W (m, n) that give every entropy within ``plan.max_error``: sketched where that is cheaper, or exact.

    One narrow sketch tells how the spectrum decays. Where no sketch in reach can meet the error, as for a flat
    spectrum, the search ends there, and the bonds that miss it, with those beyond them, are done exactly.
    """
    width = min(plan.rank or _PROBE, *chain.shape)
    budget = _STAKE * exact_cost(chain, plan.alpha, chain.bonds)
    if _sketch_cost(chain, width, 1) > budget:
        return _replace(W, chain, plan, [None] * len(chain.bonds), chain.bonds)
    spectra = _widen(W, chain, plan, width, budget, lambda width: 1)
    return _replace(W, chain, plan, spectra, _missing(chain, plan, spectra))


def _widen(W: Tensor, chain: Chain, plan: Plan, width: int, budget: float, ends) -> list[Spectrum]:
    """A sketch, and wider ones until one meets the error, is complete, or the next would exceed the budget.

    ``ends`` gives, for a width, the size up to which outer bonds are exact.
    """
    budget -= _sketch_cost(chain, width, ends(width))
    spectra = sketch(W, chain, width, ends(width))
    while (missing := _missing(chain, plan, spectra)) and width < min(chain.shape):
        least, guess = _next_widths(chain, plan, spectra, missing, width)
        while _sketch_cost(chain, guess, ends(guess)) > budget and guess > least:
            guess = max(least, guess * 9 // 10)
        budget -= _sketch_cost(chain, guess, ends(guess))
        if budget < 0:
            break
        width = guess
        spectra = sketch(W, chain, width, ends(width))
    return spectra


def _next_widths(
    chain: Chain, plan: Plan, spectra: list[Spectrum], missing: tuple[int, ...], width: int
) -> tuple[int, int]:
    """(least, guess) of the width that will leave the tail that is needed; all columns where none is small enough.

    At the cut, from the probabilities p_1 … p_k found and the tail ε. Whatever comes next is not above p_k, so it
    takes (ε − ε′)/p_k more columns at least to bring the tail to ε′: nearly all of them where the spectrum is flat.
    A guess: it goes on falling geometrically from p_k, at the rate that sums to ε.
    """
    full = min(chain.shape)
    wanted = min(_tail_for(spectra[l - 1], plan) for l in missing)
    at_cut = spectra[chain.cut - 1]
    last, tail = at_cut.p[0, -1].item(), at_cut.tail.item()
    if not 0 < wanted < tail or last <= 0:
        return full, full
    least = ceil((tail - wanted) / last)
    guess = ceil(1.1 * log(tail / wanted) / log1p(last / tail))
    guess = max(least, min(max(guess, width // 2, 1), 3 * width))
    return min(width + max(least, 1), full), min(width + guess, full)


def _tail_for(spectrum: Spectrum, plan: Plan) -> float:
    """The tail with which the spectrum's bounds would be within the error; 0 where none would."""
    tails = spectrum.tail.detach() * 2.0 ** (-torch.arange(100, device=spectrum.p.device) / 2)
    met = spectrum._replace(p=spectrum.p.detach().expand(len(tails), -1), tail=tails).error(plan.alpha) <= plan.nats
    return tails[met].max().item() if met.any() else 0.0


def _missing(chain: Chain, plan: Plan, spectra: list[Spectrum]) -> tuple[int, ...]:
    """The bonds at which the bounds are too far apart."""
    if plan.max_error is None:
        return ()
    errors = torch.stack([spectrum.error(plan.alpha)[0] for spectrum in spectra]).tolist()
    return tuple(l for l, error in zip(chain.bonds, errors) if not error <= plan.nats)


def _replace(W: Tensor, chain: Chain, plan: Plan, spectra: list, missing: tuple[int, ...]) -> list[Spectrum]:
    """The spectra with those of the missing bonds exact, and those that a ladder brings along."""
    spectra = list(spectra)
    for on_left, side in zip((True, False), sides(chain)):
        bonds = [l for l in side if l in missing]
        if bonds and plan.alpha < 1:
            found = {l: exact.one(W[None], chain, l) for l in bonds}
        elif bonds:
            double = plan.nats < exact.TOLERANCE
            ladder = exact.outwards(W[None], chain, bonds[0], on_left, double)
            found = dict(zip(side[side.index(bonds[0]) :], ladder, strict=True))
        else:
            found = {}
        for l, p in found.items():
            spectra[l - 1] = Spectrum(p)
    return spectra


def _sketch_cost(chain: Chain, width: int, ends: int) -> float:
    """Of four narrow float32 products, two in float64 with the outer bonds, the ladders of two halves, small calls."""
    m, n = chain.shape
    passes = 32 * width + 600 + 8 * ends
    return m * n * passes + 25 * ((m * width) ** 1.5 + (n * width) ** 1.5) + 5e8


def _ends(width: int) -> int:
    """The size of outer bonds whose two float64 products, 8·size·N, are half of what the sketch costs besides."""
    return 2 * width + 37
