"""What hyper-parameters and steps move, and what they leave where it is (docs/math.md §7 i, ii)."""

from __future__ import annotations

from itertools import combinations
from math import inf
from statistics import fmean, stdev
from typing import NamedTuple

import torch

from artent import theory
from artent.study.analysis.laws import slope
from artent.study.analysis.nohair import excess
from artent.study.analysis.statistics import Equivalence, range_quantile, t_quantile

__all__ = ["QUANTITIES", "Moved", "Shift", "attention_shifts", "step_shifts", "updates_moved"]

QUANTITIES = ("depth", "excess", "slope", "effective_rank")


class Moved(NamedTuple):
    """One quantity of the updates of the method ``of`` over the values of one hyper-parameter.

    ``values`` {value: mean over modules and seeds}, the method's own among them; ``spread`` of ``seeds`` seeds, one
    standard deviation; ``least`` the range that chance alone stays below at the confidence (studentised); ``moves``:
    whether the range is larger, None where too few seeds tell.
    """

    of: str
    vary: str
    quantity: str
    values: dict
    spread: float
    least: float
    seeds: int
    moves: bool | None

    @property
    def range(self):
        return max(self.values.values()) - min(self.values.values())


class Shift(NamedTuple):
    """How far S_ext is from the method's own value: ``shifts`` {value: rms over heads, nats}, and what it is judged by.

    ``within`` (rms between seeds of the method) and its standard deviation ``scatter`` over pairs of seeds; ``same``:
    at every value the distance, seeds' noise and all, with t·scatter is below the margin; ``beyond``: at one it lies
    above it by more than seeds differ, ``within`` + t·scatter.
    """

    of: str
    vary: str
    shifts: dict
    within: float
    scatter: float
    seeds: int
    same: bool
    beyond: bool


def updates_moved(s) -> list[Moved]:
    """Every quantity of every swept hyper-parameter of every method that was swept."""
    judge, found = s.config.judge, []
    for (of, vary), stages in _swept(s).items():
        own = {q: [_quantity(s, (of, seed), q) for seed in s.seeds(of)] for q in QUANTITIES}
        for quantity in QUANTITIES:
            mine = [x for x in own[quantity] if x is not None]
            points = {value: [_quantity(s, stage, quantity) for stage in at] for value, at in stages.items()}
            points = {value: fmean(x) for value, x in points.items() if None not in x}
            if not mine or not points:
                continue
            n = len(mine)
            spread = stdev(mine) if n > 1 else 0.0
            per_value = min(len(at) for at in stages.values())
            points = {_own_value(s, of, vary): fmean(mine), **points}
            least = range_quantile(judge.confidence, len(points), n - 1) * spread / per_value**0.5 if n > 1 else inf
            enough = n >= judge.seeds
            width = max(points.values()) - min(points.values())
            found.append(Moved(of, vary, quantity, points, spread, least, n, width > least if enough else None))
    return found


def attention_shifts(s) -> list[Shift]:
    """S_ext of every swept hyper-parameter against the method's own value, at the sweep's length and on its texts."""
    judge, found = s.config.judge, []
    for (of, vary), stages in _swept(s).items():
        shifts, within = {}, []
        for value, at in stages.items():
            each = []
            for stage in at:
                swept, own = s.last_attention(stage), s.s_ext.get(stage[:2])
                if swept is None or own is None or swept.length not in s.lengths:
                    continue
                texts = swept.s_ext.shape[1]  # the last ones of the probe
                here = own[s.lengths.index(swept.length)][:, -texts:]
                each.append((swept.s_ext - here).nanmean(1).square().mean().sqrt().item())
                within = within or _between_seeds(s, of, swept.length, texts)
            if each:
                shifts[value] = fmean(each)
        if not shifts:
            continue
        n = len(s.seeds(of))
        enough = n >= judge.seeds and len(within) > 1
        scatter = stdev(within) if len(within) > 1 else 0.0
        error = t_quantile(judge.confidence, n - 1) * scatter if enough else inf
        same = enough and max(shifts.values()) + error < judge.margin
        beyond = enough and max(shifts.values()) - fmean(within) - error > judge.margin
        found.append(Shift(of, vary, shifts, fmean(within) if within else 0.0, scatter, n, same, beyond))
    return found


def step_shifts(s) -> dict[str, tuple[Equivalence, float, tuple[int, int]]]:
    """How far training moved S_ext, ``{method name: (excess of the last step over the first, largest rms, steps)}``.

    Of the steps at which every seed of the method was measured, at ``step_length``. All runs begin as the base, so the
    excess is how far a run moves, what its seed made of it and all. The largest rms over heads is that of the mean
    over seeds at any step against the first.
    """
    judge, found = s.config.judge, {}
    for m in s.methods:
        runs = [s.attention[(m.name, seed)] for seed in s.seeds(m.name) if (m.name, seed) in s.attention]
        if not runs:
            continue
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        if len(steps) < 2:
            continue
        heads = [torch.stack([run[step].s_ext.nanmean(1).flatten() for run in runs]) for step in steps]
        test = excess(heads[-1], heads[0], judge.margin, judge.confidence)
        largest = max((at - heads[0]).mean(0).square().mean().sqrt().item() for at in heads[1:])
        found[m.name] = (test, largest, (steps[0], steps[-1]))
    return found


def _swept(s):
    """``{(of, vary): {value: [stage of every seed]}}``."""
    found = {}
    for run in s.sweeps:
        found.setdefault((run.of, run.vary), {}).setdefault(run.value, []).append(run.stage)
    return found


def _own_value(s, of, vary):
    method = next(m for m in s.config.methods if m.name == of)
    return method.lora_alpha if vary == "alpha" else getattr(method, vary)


def _quantity(s, stage, quantity):
    """Mean over modules of a stage's last profiles; None where it is not known."""
    profiles = s.last_profiles(stage)
    if quantity == "excess":  # of the depth over the line of random factors of the same rank, the null of any sweep
        if any(p.rank is not None and _is_chain(s, stage[0]) for p in profiles.values()):
            return None
        depths = [_depth(p) - _line_depth(p) for p in profiles.values()]
        return fmean(depths) if depths else None
    of = {"depth": _depth, "effective_rank": lambda p: float(p.effective_rank), "slope": slope}[quantity]
    values = [of(p) for p in profiles.values()]
    return None if not values or None in values else fmean(values)


def _is_chain(s, name):
    return any(m.name == name and m.kind == "mps" for m in s.config.methods)


def _line_depth(p):
    line = theory.page_line(p.dims) if p.rank is None else theory.lora_line(p.dims, p.cut, p.rank)
    return max(line) - line[p.cut - 1]


def _depth(profile):
    return float(profile.valley_depth)


def _between_seeds(s, of, length, texts):
    """rms over heads of S_ext between every two seeds of a method."""
    at = s.lengths.index(length)
    heads = [s.s_ext[(of, seed)][at][:, -texts:].nanmean(1) for seed in s.seeds(of) if (of, seed) in s.s_ext]
    return [(a - b).square().mean().sqrt().item() for a, b in combinations(heads, 2)]
