"""How entropies grow: updates over their bonds, attention over T and over its own bonds (docs/math.md §1, §5)."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

import torch

from artent import theory
from artent.study.analysis.statistics import Estimate, bootstrap, interval

__all__ = ["Forms", "Growth", "Rise", "chain_forms", "growths", "rises", "window_exponent"]

FORMS = ("calabrese-cardy", "linear", "flat")


class Rise(NamedTuple):
    """The rising side of a method's updates, means over modules.

    ``slope`` dS/d ln D with its interval over seeds; ``null`` the same of Gaussian updates of their shapes; ``weights``
    Akaike's, {"linear", "cardy", "flat"}; ``preferred`` that of the volume law with its interval over seeds; ``linear``
    the share of profiles that it fits best.
    """

    slope: Estimate
    null: float | None
    weights: dict[str, float]
    preferred: Estimate
    linear: float


class Growth(NamedTuple):
    """c of S_ext = c ln T + b: ``texts`` with its bootstrap interval over texts, ``seeds`` over seeds (None of one
    model); ``layers`` every layer's c."""

    texts: Estimate
    seeds: Estimate | None
    layers: list[float]


class Forms(NamedTuple):
    """Which form the bonds of A follow, over its heads.

    ``shares`` of heads that each fits best; ``weights`` Akaike's, means; ``cardy`` that of Calabrese–Cardy with its
    bootstrap interval over heads; ``c`` the mean coefficient of Calabrese–Cardy.
    """

    shares: dict[str, float]
    cardy: Estimate
    weights: dict[str, float]
    c: float
    heads: int


def rises(s) -> dict[str, Rise]:
    """``{method name: Rise}``; methods whose row side has fewer than three rising bonds are left out."""
    found = {}
    for m in s.methods:
        slopes, nulls, weights, preferred = [], [], [], []
        for seed in s.seeds(m.name):
            run = (m.name, seed)
            fits = {module: _rise(p, p.entropy) for module, p in s.last_profiles(run).items()}
            fits = {module: fit for module, fit in fits.items() if fit}
            if not fits:
                continue
            slopes.append(fmean(fit["linear"].coefficient for fit in fits.values()))
            weights += (of_run := [theory.akaike_weights(fit) for fit in fits.values()])
            preferred.append(fmean(w["linear"] for w in of_run))
            for module in fits.keys() & s.nulls[run].keys():
                null = _rise(s.last(run, module), s.nulls[run][module]["gaussian"])
                nulls.append(null["linear"].coefficient)
        if slopes:
            found[m.name] = Rise(
                interval(slopes, s.config.judge.confidence),
                fmean(nulls) if nulls else None,
                {form: fmean(w[form] for w in weights) for form in weights[0]},
                interval(preferred, s.config.judge.confidence),
                fmean(max(w, key=w.get) == "linear" for w in weights),
            )
    return found


def slope(profile, rank=None):
    """dS/d ln D over the rising side, with a free intercept; None where that has fewer than three bonds.

    ``rank`` of the update where the profile knows none.
    """
    fit = theory.fit_rise(profile.entropy, profile.dims, profile.cut, profile.rank or rank)
    return fit["linear"].coefficient if fit else None


def growths(s) -> dict[str, Growth]:
    """``{"base", "untrained", method name, …: Growth}``; treated base models under "base, sink removed" and alike."""
    found = {name: Growth(_of_fit(s.fits[name]), None, s.fits[name].get("layer_c", [])) for name in _models(s)}
    for m in s.methods:
        fits = [s.fits[(m.name, seed)] for seed in s.seeds(m.name) if (m.name, seed) in s.fits]
        if fits:
            over_seeds = interval([fit["c"] for fit in fits], s.config.judge.confidence)
            layers = [fmean(values) for values in zip(*(fit.get("layer_c", []) for fit in fits))]
            low, high = (fmean(fit["interval"][end] for fit in fits) for end in (0, 1))
            texts = Estimate(over_seeds.value, low, high, fits[0].get("texts", 0))
            found[m.name] = Growth(texts, over_seeds, layers)
    return found


def window_exponent(s) -> float:
    """c that a volume law has at these lengths: a local window's, whose entropy grows with the length, 1 at most.

    At finite T it is below 1, and what grows as fast cannot be told from it.
    """
    return min([1.0, *(fit["c"] for name, fit in s.fits.items() if str(name).startswith("local window"))])


def chain_forms(s, model) -> Forms | None:
    """The forms that ``theory.fit_chain`` finds in the heads of a chain; None without one of 4 bonds or more."""
    chain = s.chains.get(model)
    if chain is None or len(chain.dims) < 5:
        return None
    fits = [theory.fit_chain(S, chain.dims) for S in chain.entropy.flatten(0, 1)]
    weights = [theory.akaike_weights(fit) for fit in fits]
    best = [max(w, key=w.get) for w in weights]
    cardy = torch.tensor([w["calabrese-cardy"] for w in weights], dtype=torch.float64)
    return Forms(
        {form: best.count(form) / len(best) for form in FORMS},
        bootstrap(cardy, s.config.judge.confidence),
        {form: fmean(w[form] for w in weights) for form in FORMS},
        fmean(fit["calabrese-cardy"].coefficient for fit in fits),
        len(fits),
    )


def _rise(profile, S):
    return theory.fit_rise(S, profile.dims, profile.cut, profile.rank)


def _models(s):
    return [
        name for name, fit in s.fits.items() if isinstance(name, str) and name.split(",")[0] in ("base", "untrained")
    ]


def _of_fit(fit):
    return Estimate(fit["c"], *fit["interval"], fit.get("texts", 0))
