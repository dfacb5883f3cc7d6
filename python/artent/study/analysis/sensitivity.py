"""What hyper-parameters and steps move, and what they leave where it is (docs/math.md §7 i, ii)."""

from __future__ import annotations

from itertools import combinations
from math import inf, isfinite, prod
from statistics import fmean, stdev
from typing import NamedTuple

import torch

from artent import theory
from artent.study.analysis.laws import slope
from artent.study.analysis.nohair import excess
from artent.study.analysis.statistics import Equivalence, equivalent, range_quantile

__all__ = ["QUANTITIES", "Moved", "Shift", "attention_shifts", "left_out", "step_shifts", "updates_moved"]

QUANTITIES = ("depth", "excess", "slope", "effective_rank")


class Moved(NamedTuple):
    """One quantity of the updates of the method ``of`` over the values of one hyper-parameter.

    ``values`` {value: mean over modules and seeds}, the method's own among them, in order; ``spread`` of ``seeds``
    seeds, one standard deviation; ``least`` the range that chance alone stays below at the confidence (studentised,
    with Bonferroni's share of the error for each of the settings swept); ``moves``: whether the range is larger, None
    where too few seeds tell; ``most``: what the true range stays below.
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

    @property
    def most(self):
        return self.range + self.least


class Shift(NamedTuple):
    """How far S_ext is from the method's own setting, over the values of one hyper-parameter.

    ``shifts`` {value: Equivalence} in nats, rms over heads, with the seeds' noise taken out; ``within``: rms over heads
    between two seeds of the method; ``single``: whether some value has too few runs to know its own scatter.
    """

    of: str
    vary: str
    shifts: dict
    within: float
    seeds: int
    single: bool

    @property
    def same(self):
        return all(test.equivalent for test in self.shifts.values())

    @property
    def beyond(self):
        return any(test.beyond for test in self.shifts.values())


def left_out(s):
    """The SweepRuns that nothing is concluded from: their loss did not fall, or is not finite."""
    return [run for run in s.sweeps if not run.learned or run.stage in s.diverged]


def updates_moved(s) -> list[Moved]:
    """Every quantity of every swept hyper-parameter of every method that was swept."""
    judge, found, swept = s.config.judge, [], _swept(s)
    confidence = 1 - (1 - judge.confidence) / max(1, len(swept))
    for (of, vary), stages in swept.items():
        for quantity in QUANTITIES:
            own = [_quantity(s, (of, seed), quantity) for seed in s.seeds(of)]
            own = [x for x in own if x is not None]
            points = {value: [_quantity(s, stage, quantity) for stage in at] for value, at in stages.items()}
            points = {value: fmean(x) for value, x in points.items() if None not in x}
            if not own or not points:
                continue
            n = len(own)
            spread = stdev(own) if n > 1 else 0.0
            per_value = min(len(stages[value]) for value in points)
            points = _ordered({_own_value(s, of, vary): fmean(own), **points})
            least = range_quantile(confidence, len(points), n - 1) * spread / per_value**0.5 if n > 1 else inf
            width = max(points.values()) - min(points.values())
            moves = width > least if n >= judge.seeds else None
            found.append(Moved(of, vary, quantity, points, spread, least, n, moves))
    return found


def attention_shifts(s) -> list[Shift]:
    """S_ext of every swept hyper-parameter against the method's own value, at the sweep's length and on its texts.

    Values of three seeds or more are tested as methods are (``nohair.excess``). Of one run x there is
    d² = ‖x − mean of the y_s of other seeds‖², whose noise is that of one run and of the mean; the same distance of
    every y_s from the other ones is such noise and nothing else, if x scatters as they do, so θ² = d² − its mean. The
    error is the scatter of the latter and that of the products ⟨x − mean, noise⟩, twice, with Student's t. By
    simulation with 4 seeds, 8 or 32 heads and a difference of the margin, either error is found in 0.3 to 8 % for 5.
    """
    judge, rows = s.config.judge, {}
    for (of, vary), stages in _swept(s).items():
        for value, at in stages.items():
            swept = {stage[1]: seen for stage in at if (seen := s.last_attention(stage)) is not None}
            length = next((seen.length for seen in swept.values()), None)
            if length not in s.lengths:
                continue
            texts = next(iter(swept.values())).s_ext.shape[1]  # the last ones of the probe
            runs = [seed for seed in s.seeds(of) if (of, seed) in s.s_ext]
            own = {seed: s.s_ext[(of, seed)][s.lengths.index(length)][:, -texts:] for seed in runs}
            own = {seed: S.nanmean(1).flatten() for seed, S in own.items()}
            if own:
                swept = {seed: seen.s_ext.nanmean(1).flatten() for seed, seen in swept.items()}
                rows.setdefault((of, vary), {})[value] = (swept, own)
    tests, found = sum(map(len, rows.values())), []
    for (of, vary), values in rows.items():
        own = next(iter(values.values()))[1]
        pairs = [(own[a] - own[b]).square().mean() for a, b in combinations(own, 2)]
        within = torch.stack(pairs).mean().sqrt().item() if pairs else 0.0
        shifts = {value: _shift(x, y, judge, tests) for value, (x, y) in values.items()}
        single = any(len(x.keys() & y.keys()) < 3 for x, y in values.values())
        found.append(Shift(of, vary, _ordered(shifts), within, len(own), single))
    return found


def _shift(swept, own, judge, tests):
    """The Equivalence of ``attention_shifts``: ``{seed: (heads,)}`` of a value and of the method's own setting."""
    shared = sorted(swept.keys() & own.keys())
    if len(shared) > 2:
        x, y = (torch.stack([of[seed] for seed in shared]) for of in (swept, own))
        return excess(x, y, judge.margin, judge.confidence, tests)
    y = torch.stack(list(own.values()))
    n = len(y)
    if n < 3:
        far = torch.stack([x - y.mean(0) for x in swept.values()]).square().mean().sqrt().item()
        return Equivalence(far, 0.0, inf, 1.0, False, False, inf)
    noise = (y - y.mean(0)) * n / (n - 1)  # of every run from the mean of the others
    squares = noise.square().mean(1)
    apart = torch.stack([x - torch.stack([own[k] for k in own if k != seed]).mean(0) for seed, x in swept.items()])
    value = (apart.square().mean() - squares.mean()).item()
    products = (apart @ noise.T / y.shape[1]).square().mean().item()
    error = (squares.var().item() * (1 + 1 / n) + 4 * products) ** 0.5
    test = equivalent(value, error, n - 1, judge.margin**2, judge.confidence)
    strict = equivalent(value, error, n - 1, judge.margin**2, 1 - (1 - judge.confidence) / tests)
    mean, low, high = (max(0.0, x) ** 0.5 for x in test[:3])
    return Equivalence(mean, low, high, test.p, high < judge.margin, strict.low > judge.margin**2, high)


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
        tests = sum(other.kind == m.kind for other in s.methods)
        test = excess(heads[-1], heads[0], judge.margin, judge.confidence, tests)
        largest = max((at - heads[0]).mean(0).square().mean().sqrt().item() for at in heads[1:])
        found[m.name] = (test, largest, (steps[0], steps[-1]))
    return found


def _swept(s):
    """``{(of, vary): {value: [stage of every seed]}}`` of the runs that learned."""
    found, broken = {}, left_out(s)
    for run in s.sweeps:
        if run not in broken:
            found.setdefault((run.of, run.vary), {}).setdefault(run.value, []).append(run.stage)
    return found


def _ordered(values):
    """By value; names as they were given, behind the default."""
    plain = [v for v in values if isinstance(v, (bool, str))]
    return {value: values[value] for value in (*plain, *sorted(v for v in values if v not in plain))}


def _own_value(s, of, vary):
    method = next(m for m in s.config.methods if m.name == of)
    return method.lora_alpha if vary == "alpha" else getattr(method, vary)


def _quantity(s, stage, quantity):
    """Mean over modules of a stage's last profiles; None where it is not known, or no number."""
    profiles, rank = s.last_profiles(stage), _rank(s, stage)
    if quantity == "excess":  # of the depth over the line of random factors of the same rank, the null of any sweep
        if any(m.name == stage[0] and m.kind == "mps" for m in s.config.methods):
            return None
        values = [_depth(p) - _line_depth(p, p.rank or rank) for p in profiles.values()]
    else:
        of = {"depth": _depth, "effective_rank": lambda p: float(p.effective_rank), "slope": lambda p: slope(p, rank)}
        values = [of[quantity](p) for p in profiles.values()]
    if not values or None in values or not all(map(isfinite, values)):
        return None
    return fmean(values)


def _rank(s, stage):
    """What the rank of a LoRA's ΔW is at most where the profile knows none: PiSSA and its kin take their start out of
    the base's weights, so that ΔW is the difference of two products, of twice the rank."""
    method = next((m for m in s.config.methods if m.name == stage[0]), None)
    if method is None or method.kind != "lora":
        return None
    swept = next((run.settings["rank"] for run in s.sweeps if run.stage == stage), None)
    return 2 * (swept or method.rank)


def _line_depth(p, rank):
    smaller = min(prod(p.dims[: p.cut]), prod(p.dims[p.cut :]))
    full = rank is None or rank >= smaller
    line = theory.page_line(p.dims) if full else theory.lora_line(p.dims, p.cut, rank)
    return max(line) - line[p.cut - 1]


def _depth(profile):
    return float(profile.valley_depth)
