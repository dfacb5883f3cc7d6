"""Measurements beside theory: what is left of a profile, and of attention, after the lines (docs/math.md §5). Nats."""

from __future__ import annotations

from math import prod
from statistics import fmean
from typing import NamedTuple

import torch

from artent import theory
from artent.study.analysis.statistics import Estimate, bootstrap, interval

__all__ = ["Mixture", "Residual", "attention_mixture", "outliers", "residuals"]

LINES = ("line", "gaussian", "haar")


class Residual(NamedTuple):
    """S(l) less a line, over the bonds of a profile: ``rms`` with its interval over seeds, ``mean`` of the largest and
    the ``largest`` of all profiles; means over modules."""

    rms: Estimate
    mean: float
    largest: float


class Mixture(NamedTuple):
    """S_ext of heads beside an outlier and a bulk: rms of the difference with its interval over heads.

    ``line``: T_eff = T; ``fitted``: one T_eff for all heads, ``share`` = T_eff/T of it; ``explained``: 1 − the squared
    rms of the latter over the variance between heads; ``top``: the mean of p₁.
    """

    line: Estimate
    fitted: Estimate
    share: float
    explained: float
    top: float


def residuals(s, method) -> dict[str, Residual]:
    """``{"line": Page's or the LoRA line, "gaussian", "haar": Residual}`` of a method's last profiles, where known."""
    found = {}
    for line in LINES:
        rms, largest = [], []
        for seed in s.seeds(method):
            run = (method, seed)
            left = [
                s.last(run, m).entropy - torch.tensor(n[line]).double() for m, n in s.nulls[run].items() if line in n
            ]
            if left:
                rms.append(fmean(x.square().mean().sqrt().item() for x in left))
                largest += [x.abs().max().item() for x in left]
        if rms:
            found[line] = Residual(interval(rms, s.config.judge.confidence), fmean(largest), max(largest))
    return found


def outliers(s, method):
    """(outliers, their share of S, S measured less predicted by outliers and bulk): means over modules and seeds.

    Of profiles that know their spectrum at the cut; None without any.
    """
    splits = []
    for seed in s.seeds(method):
        for p in s.last_profiles((method, seed)).values():
            if p.cut in p.bonds and p.bond_methods[p.cut - 1] == "exact" and p.cut_probabilities.sum() > 0:
                splits.append(theory.split_spectrum(p.cut_probabilities, p.shape, p.rank))
    if not splits:
        return None
    return tuple(fmean(x) for x in zip(*((x.outliers, x.share, x.entropy - x.predicted) for x in splits)))


def attention_mixture(s, model) -> Mixture | None:
    """Outlier and bulk beside the measured S at the cut of every head of a model's chain; None without a chain."""
    chain = s.chains.get(model)
    if chain is None:
        return None
    T = prod(chain.dims[: chain.cut])
    p1, S = chain.top.flatten().tolist(), chain.s_cut.flatten()
    line = torch.tensor([theory.mixture_entropy(p, T) for p in p1], dtype=torch.float64)
    bulk = torch.tensor([1 - p for p in p1], dtype=torch.float64)
    moved = ((S - line) @ bulk / (bulk @ bulk).clamp_min(1e-300)).item()  # ln of T_eff/T that fits all heads best
    left = S - line - moved * bulk
    confidence = s.config.judge.confidence
    variance = (S - S.mean()).square().mean()
    return Mixture(
        _rms(S - line, confidence),
        _rms(left, confidence),
        min(torch.tensor(moved).exp().item(), 1e6),
        (1 - left.square().mean() / variance.clamp_min(1e-300)).item(),
        fmean(p1),
    )


def _rms(left, confidence):
    squares = bootstrap(left.square(), confidence)
    return Estimate(*(max(0.0, x) ** 0.5 for x in squares[:3]), squares.n)
