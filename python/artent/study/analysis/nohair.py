"""Do methods differ in attention beyond what seeds do? The no-hair test of docs/math.md §5, as numbers.

*The statistic.* a_s and b_s are S_ext of all heads under two methods at seed s, means over texts, at the longest
length. The excess of a over b is what a's runs are farther from b's than b's runs are from each other, in squares:

    η²(a | b) = E‖a_s − b_s′‖² − E‖b_s − b_s′‖² = θ² + V_a − V_b,    s ≠ s′, ‖·‖² the mean over heads of squares,

θ² = mean over s ≠ s′ of ⟨a_s − b_s, a_s′ − b_s′⟩ the systematic difference, V the variance over seeds. Products of
different seeds hold no square of one seed's noise, so the estimate is unbiased, whatever the noise (and can come out
below zero); an order of the texts that both methods share in a seed does not bias it either. Its error is the
jackknife's over seeds, with Student's t of n − 1. Two methods are *equivalent* where η² of either over the other is
below margin² at the confidence asked for, and differ *beyond* the margin where one of the two is above it (Bonferroni).
By simulation with 4 seeds and 8 or 32 heads either error is about as frequent as it may be where noise is independent
between heads; where methods differ in scatter alone and noise moves all heads as one, equivalence is found too often
(9 % for 5). The difference of the two rms distances, not squared, would not do: θ of a whole margin shrinks to nothing
in it wherever seeds differ by more.

*Beside it*: r, the rms difference of two methods over that of two seeds of one method; a permutation test of the
updates' profiles (squared distances within groups, M. J. Anderson, 2001); total variation of attention rows and the
relative change of attention outputs, of pairs of methods against pairs of seeds.
"""

from __future__ import annotations

from itertools import combinations
from math import inf, sqrt
from statistics import median
from typing import NamedTuple

import torch

from artent.study.analysis.statistics import Equivalence, equivalent, permutation_test

__all__ = [
    "Pair",
    "Ratios",
    "attention_pairs",
    "at_matched_loss",
    "control_differences",
    "excess",
    "final_attention",
    "final_profiles",
    "method_seed_ratio",
    "ratios",
    "relative_change",
    "updates_alike",
    "updates_differ",
]


class Pair(NamedTuple):
    """Two methods in nats: the test of their ``excess``, their systematic difference ``theta``, and the rms over heads
    of the difference ``between`` them at equal seeds and ``within``, between seeds of one of them."""

    a: str
    b: str
    excess: Equivalence
    theta: float
    between: float
    within: float


def final_attention(s):
    """``{run: (heads of all layers,)}``: S_ext at the longest length, means over texts; lora-10x among the runs."""
    return {model: _heads(S[-1]) for model, S in s.s_ext.items() if isinstance(model, tuple)}


def final_profiles(s):
    """``{run: (bonds of all modules,)}``: the last profiles, of the modules that every run has."""
    shared = set.intersection(*(set(s.profiles[run]) for run in s.runs)) if s.runs else set()
    if not shared:
        return {}
    return {run: torch.cat([s.last(run, module).entropy.double() for module in sorted(shared)]) for run in s.runs}


def excess(a, b, margin: float, confidence: float, tests: int = 1, both: bool = True) -> Equivalence:
    """η of a over b, and with ``both`` of b over a, tested against ``margin``: the statistic of this module's head.

    Args:
        a, b: (seeds, heads) in nats, of the same seeds. A model without seeds is the same row at every seed.
        tests: how many tests are made of which one ``beyond`` is enough; it is given a share of the error allowed.
            That all are equivalent takes no correction.

    Returns:
        In nats, of the larger of the two; ends below zero are told as zero. With fewer than three seeds there is no
        jackknife, and nothing is decided.
    """
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    n, signs = len(a), (1, -1) if both else (1,)
    if n < 3:
        return Equivalence(_rms(a - b), 0.0, inf, 1.0, False, False, inf)
    left_out = [torch.arange(n) != i for i in range(n)]
    found, beyond = [], False
    for sign in signs:
        value = _excess(a, b, sign)
        without = torch.stack([_excess(a[kept], b[kept], sign) for kept in left_out])
        error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt().item()
        found.append(equivalent(value.item(), error, n - 1, margin**2, confidence))
        strict = 1 - (1 - confidence) / (tests * len(signs))
        beyond |= equivalent(value.item(), error, n - 1, margin**2, strict).low > margin**2
    value, low, high = (sqrt(max(0.0, *(one[i] for one in found))) for i in range(3))
    return Equivalence(value, low, high, max(one.p for one in found), high < margin, beyond, high)


def attention_pairs(values, methods, margin: float, confidence: float, families: int = 1) -> list[Pair]:
    """Every pair of ``methods``, of ``values`` {(method, seed): (heads,)}, at the seeds both have.

    ``families``: how many such sets of pairs are judged together, of all of which one that is beyond is enough.
    """
    pairs = list(combinations(methods, 2))
    found = []
    for a, b in pairs:
        seeds = [seed for name, seed in values if name == a and (b, seed) in values]
        if not seeds:
            continue
        x, y = (torch.stack([values[(name, seed)] for seed in seeds]) for name in (a, b))
        tested = excess(x, y, margin, confidence, families * len(pairs))
        theta = sqrt(max(0.0, _cross(x - y).item())) if len(seeds) > 1 else _rms(x - y)
        found.append(Pair(a, b, tested, theta, _rms(x - y), _between_seeds(values, (a, b))))
    return found


def control_differences(s, margin: float, confidence: float) -> dict[str, Equivalence]:
    """The excess of every control, and of the untrained model, over the method that controls are made from.

    A control is told where it is ``beyond`` the margin. Those that were not measured, or whose loss was not finite, are
    left out.
    """
    if s.reference is None:
        return {}
    of, tuned = s.reference.name, final_attention(s)
    others = {("lora-10x", seed): S for (name, seed), S in tuned.items() if name == "lora-10x"}
    others |= {at: _heads(control.s_ext) for at, control in s.controls.items()}
    if "untrained" in s.s_ext:
        others |= {("untrained", seed): _heads(s.s_ext["untrained"][-1]) for seed in s.seeds(of)}
    found = {}
    for control in dict.fromkeys(name for name, _ in others):
        seeds = [seed for name, seed in others if name == control and (of, seed) in tuned]
        if seeds:
            x = torch.stack([others[(control, seed)] for seed in seeds])
            y = torch.stack([tuned[(of, seed)] for seed in seeds])
            found[control] = excess(x, y, margin, confidence, both=False)
    return found


def at_matched_loss(s):
    """(attention, profiles, loss) of every run where its held-out loss reached the highest final loss of all runs.

    From what was measured on the way, between two steps linearly in the loss; attention at ``step_length`` on the texts
    of the steps. A string that says why, where that was not measured.
    """
    runs = {run: _trajectory(s, run) for run in s.runs}
    if bare := [run for run, path in runs.items() if len(path) < 2]:
        return f"{bare[0][0]}, seed {bare[0][1]}, has no attention and loss measured at two steps"
    target = max(path[-1][1] for path in runs.values())
    if above := [run for run, path in runs.items() if path[0][1] <= target]:
        return f"the highest final loss, {target:.3f}, is not below where {above[0][0]}, seed {above[0][1]}, began"
    shared = set.intersection(*(set(s.profiles[run]) for run in s.runs))
    attention, profiles = {}, {}
    for run, path in runs.items():
        at = next(i for i, (_, loss) in enumerate(path) if loss <= target)
        (before, high), (after, low) = path[at - 1], path[at]
        part = (high - target) / (high - low)
        steps = s.attention[run]
        attention[run] = torch.lerp(_heads(steps[before].s_ext), _heads(steps[after].s_ext), part)
        measured = [s.profiles[run][module] for module in sorted(shared)]
        if measured and all({before, after} <= set(of) for of in measured):
            S = [torch.lerp(of[before].entropy.double(), of[after].entropy.double(), part) for of in measured]
            profiles[run] = torch.cat(S)
    return attention, profiles, target


def updates_differ(profiles, methods, seed=0) -> dict:
    """Permutation p that methods' profiles differ: "all" of them at once, and of every pair, exact for few seeds.

    ``profiles``: {(method, seed): (values,)}. Empty without two methods of two seeds each.
    """
    groups = {m: [run for run in profiles if run[0] == m] for m in methods}
    several = [m for m in methods if len(groups[m]) > 1]
    if len(several) < 2:
        return {}
    pairs = combinations(several, 2)
    return {
        "all": _anderson(profiles, [run for m in several for run in groups[m]], seed),
        **{(a, b): _anderson(profiles, groups[a] + groups[b], seed) for a, b in pairs},
    }


def updates_alike(profiles, methods, margin: float, confidence: float) -> bool:
    """Whether the profiles of all pairs of methods are equivalent: ``excess`` of bonds in place of heads."""
    pairs = attention_pairs(profiles, methods, margin, confidence)
    return bool(pairs) and all(pair.excess.equivalent for pair in pairs)


def method_seed_ratio(runs):
    """r of every unit, and the two differences it divides.

    Args:
        runs: ``{(method, seed): tensor (units, samples)}`` with equal shapes, in nats.

    Returns:
        ``(r, between_methods, between_seeds)``, each ``(units,)`` float64: the rms over samples and over the pairs of
        runs that differ in method and seed, over that of the pairs that differ in seed alone. None where there are
        fewer than two methods or no method with two seeds: then there is nothing to divide.
    """
    keys = sorted(runs)
    shapes = {tuple(runs[key].shape) for key in keys}
    if len(shapes) > 1:
        raise ValueError(f"runs: every tensor must have the same (units, samples), but there are {sorted(shapes)}")
    pairs = list(combinations(keys, 2))
    methods = [(a, b) for a, b in pairs if a[0] != b[0] and a[1] != b[1]]
    seeds = [(a, b) for a, b in pairs if a[0] == b[0]]
    if not methods or not seeds:
        return None
    between_methods, between_seeds = (
        torch.stack([(runs[a].double() - runs[b].double()).square().mean(-1) for a, b in chosen]).mean(0).sqrt()
        for chosen in (methods, seeds)
    )
    return between_methods / between_seeds.clamp_min(1e-300), between_methods, between_seeds


class Ratios(NamedTuple):
    """r of every unit with its median: ``attention`` of heads, of means over texts; ``updates`` of modules."""

    attention: list[float]
    updates: list[float]
    r_ext: float
    r_int: float


def ratios(s) -> Ratios | None:
    """How far methods differ beside seeds, at the last step; None without two methods and two seeds of one.

    A unit whose seeds do not differ at all is left out. Medians are those between the two middle values.
    """
    heads = method_seed_ratio({run: S[:, None] for run, S in final_attention(s).items() if run in s.runs})
    shared = set.intersection(*(set(s.profiles[run]) for run in s.runs))
    updates = [
        method_seed_ratio({run: s.last(run, module).entropy.double()[None] for run in s.runs})
        for module in sorted(shared)
    ]
    if heads is None or not updates or None in updates:
        return None
    attention, updates = ([x for r, _, seeds in each for x in r[seeds > 0].tolist()] for each in ([heads], updates))
    return Ratios(attention, updates, median(attention), median(updates)) if attention and updates else None


def relative_change(tuned, base):
    """Mean over texts of |tuned − base| / base, ``(…, texts) → (…)``: positive quantities, such as entropies."""
    return ((tuned - base).abs() / base.abs().clamp_min(1e-12)).mean(-1)


def _heads(s_ext):
    """(layers, texts, heads) → (layers · heads,), mean over texts that are long enough."""
    return s_ext.nanmean(1).flatten()


def _cross(x):
    """Mean over pairs of different rows of the mean of their product."""
    n, heads = x.shape
    return (x.sum(0).square().sum() - x.square().sum()) / (n * (n - 1) * heads)


def _excess(a, b, sign):
    """η² of a over b; with a ``sign`` of −1 of b over a."""
    return _cross(a - b) + sign * (a.var(0).mean() - b.var(0).mean())


def _rms(x):
    return x.square().mean().sqrt().item()


def _between_seeds(values, methods):
    """rms over heads and pairs of seeds within each of ``methods``; 0 where none has two."""
    runs = sorted(run for run in values if run[0] in methods)
    x = [values[a] - values[b] for a, b in combinations(runs, 2) if a[0] == b[0]]
    return _rms(torch.stack(x)) if x else 0.0


def _trajectory(s, run):
    """[(step, held-out loss of the new text)] at the steps with attention, ascending, down to the lowest loss's end."""
    losses = dict(s.losses[run]["new"])
    return [(step, losses[step]) for step in sorted(s.attention.get(run, ())) if step in losses]


def _anderson(profiles, runs, seed):
    x = torch.stack([profiles[run].double() for run in runs])
    squared = torch.cdist(x, x).square()

    def within(groups):  # large where the groups differ: little is left within them
        member = torch.nn.functional.one_hot(torch.tensor(groups)).double()
        return -((member.T @ squared * member.T).sum(1) / (2 * member.sum(0))).nan_to_num().sum().item()

    names = [run[0] for run in runs]
    return permutation_test([names.index(name) for name in names], within, seed=seed)
