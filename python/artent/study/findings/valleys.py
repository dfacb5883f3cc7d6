"""Findings about the valley: its depth, whether it tells LoRA from full FT, what moves it."""

from __future__ import annotations

from math import isfinite
from statistics import fmean

from artent.study.analysis import sensitivity
from artent.study.analysis.statistics import interval, permutation_test, welch
from artent.study.findings.finding import (
    FAILS,
    HOLDS,
    OPEN,
    Finding,
    few_seeds,
    listed,
    of_kind,
    over_seeds,
    per_seed,
    setting,
    value_of,
)

__all__ = ["valley", "valley_full_ft", "valley_sensitive"]

SHALLOW = 0.05  # nats: a dip smaller than this is no valley


def valley(s):
    """Depth at the row|column cut of LoRA's updates, beside random factors."""
    paper = "LoRA's updates have an entanglement valley: a suppression at the middle of the profile."
    loras = of_kind(s, "lora")
    if not loras:
        return None
    depths = {m.label: over_seeds(s, m, "valley_depth") for m in loras}
    beyond = {m.label: _excess(s, m) for m in loras}
    told, numbers = [], {}
    for m in loras:
        fraction = over_seeds(s, m, "valley_fraction")
        told.append(f"{m.label}: {depths[m.label]}, {100 * fraction.value:.0f} % of the maximum")
        if beyond[m.label] is not None:
            told[-1] += f", {beyond[m.label]} beyond random factors"
            numbers[f"{m.label}: excess over Gaussian factors"] = beyond[m.label].numbers
            numbers |= {f"{m.label}: {k}": v for k, v in _null_depths(s, m).items()}
        numbers |= {f"{m.label}: depth": depths[m.label].numbers, f"{m.label}: fraction": fraction.numbers}
    detail = f"Depth at the row|column cut, nats, means over modules with intervals over seeds: {'; '.join(told)}."
    none = [label for label, depth in depths.items() if depth.high <= SHALLOW]
    if none:
        claim = "LoRA's updates have no entanglement valley"
        if len(none) < len(depths):
            claim = f"{listed(none)} has no entanglement valley"
        standing = FAILS
    elif all(depth.low > SHALLOW for depth in depths.values()):
        claim, standing = "LoRA's updates have an entanglement valley", HOLDS
        known = {label: excess for label, excess in beyond.items() if excess is not None}
        if deeper := [label for label, excess in known.items() if excess.low > SHALLOW]:
            claim += ", deeper than the rank alone makes it" if len(deeper) == len(known) else ""
            detail += "" if len(deeper) == len(known) else f" Deeper than the rank alone makes it: {listed(deeper)}."
        elif known and all(excess.high <= SHALLOW for excess in known.values()):
            claim += ", as deep as the rank alone makes it or less"
    else:
        claim, standing = "Seeds are too few or too different to tell a valley", OPEN
        if few_seeds(s, loras) and all(depth.value > SHALLOW for depth in depths.values()):
            claim = "LoRA's updates have an entanglement valley in the runs so far"
    if few := few_seeds(s, loras):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("valley", claim, detail, standing, paper, numbers)


def valley_full_ft(s):
    """Whether the valley sets LoRA apart from full FT, of all weights and of the targets alone."""
    paper = "Full fine-tuning's profile differs: it lacks LoRA's valley."
    full, loras = of_kind(s, "full-ft"), of_kind(s, "lora")
    if not full or not loras:
        return None
    confidence, numbers, told, rows = s.config.judge.confidence, {}, [], []
    for f in full:
        base = _depths(s, f)
        numbers[f"{f.label}: depth"] = interval(base, confidence).numbers
        for m in loras:
            depths = _depths(s, m)
            difference = welch(depths, base, confidence)
            p = _exchanged(depths, base)
            rows.append((difference, p))
            name = f"{m.label} − {f.label}"
            told.append(f"{name}: {difference}, p = {p:.2g}")
            numbers |= {name: difference.numbers, f"{name}: permutation p": p}
    detail = f"Difference of depth at the row|column cut, nats, with permutation tests over seeds: {'; '.join(told)}."
    alpha = 1 - confidence
    if any(difference.high < SHALLOW for difference, _ in rows):
        claim, standing = "The valley does not set LoRA apart from full FT", FAILS
    elif all(difference.low > 0 and p < alpha for difference, p in rows):
        claim, standing = "LoRA's valley is deeper than full FT's", HOLDS
        lost = [
            m.label
            for m in loras
            if (mine := _excess(s, m)) is not None
            and any((theirs := _excess(s, f)) is not None and mine.value <= theirs.value for f in full)
        ]
        if lost:
            detail += (
                f" Beyond what random matrices of its shape have, the valley of {listed(lost)} is no deeper than full "
                "FT's: there the rank makes the depth."
            )
    else:
        claim, standing = "Seeds are too few or too different to tell LoRA's depth from full FT's", OPEN
    if len(full) < 2:
        other = "of the targets alone" if full[0].train == "all" else "of all weights"
        detail += f" Full FT {other} was not run."
    if few := few_seeds(s, (*full, *loras)):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("valley-full-ft", claim, detail, standing, paper, numbers)


def valley_sensitive(s):
    """Which hyper-parameters move LoRA's profiles by more than seeds do."""
    paper = "The valley is sensitive to LoRA's hyper-parameters."
    loras = {m.name: m.label for m in s.config.methods if m.kind == "lora"}
    if not loras:
        return None
    found = sensitivity.updates_moved(s)
    judged = [moved for moved in found if moved.of in loras]
    if not judged:
        detail = "No sweep of LoRA was run: give the study one of learning_rate, alpha, rank or init."
        return Finding("valley-sensitive", "What moves the valley was not measured", detail, OPEN, paper)
    numbers, told = {}, []
    for moved in found:
        label = f"{_label(s, moved.of)}, {setting(moved.vary)}: {moved.quantity.replace('_', ' ')}"
        numbers |= {f"{label}, range": moved.range, f"{label}, least that seeds do not": _finite(moved.least)}
        if moved.quantity == "depth" and moved.of in loras:
            values = ", ".join(f"{depth:.2f} at {value_of(value)}" for value, depth in moved.values.items())
            told.append(f"{setting(moved.vary)} of {loras[moved.of]}: {values}")
    depth = [moved for moved in judged if moved.quantity in ("depth", "excess")]
    moving = list(dict.fromkeys(setting(m.vary) for m in depth if m.moves))
    still = [v for v in dict.fromkeys(setting(m.vary) for m in depth) if v not in moving]
    detail = f"Depth, nats, means over modules: {'; '.join(told)}. Seeds of one setting scatter by "
    detail += f"{fmean(m.spread for m in depth):.3f} (standard deviation)."
    if any(m.moves is None for m in depth):
        need, have = s.config.judge.seeds, min(m.seeds for m in depth)
        detail += f" The spread of seeds takes {need}, there are {have}."
        return Finding("valley-sensitive", "The valley against hyper-parameters", detail, OPEN, paper, numbers)
    others = {
        quantity: list(dict.fromkeys(setting(m.vary) for m in judged if m.quantity == quantity and m.moves))
        for quantity in ("slope", "effective_rank")
    }
    for quantity, settings in others.items():
        if settings:
            detail += f" The {quantity.replace('_', ' ')} is moved by {listed(settings)}."
    if moving:
        claim = f"The valley's depth moves with {listed(moving)}, by more than between seeds"
        claim += f", not with {listed(still)}" if still else ""
        return Finding("valley-sensitive", claim, detail, HOLDS, paper, numbers)
    claim = f"Neither moves the valley by more than seeds do: {listed(still)}"
    return Finding("valley-sensitive", claim, detail, FAILS, paper, numbers)


def _depths(s, method):
    return per_seed(s, method, "valley_depth")


def _excess(s, method):
    """Depth less the depth of Gaussian updates of the same shapes, over seeds; None without nulls."""
    values = []
    for seed in s.seeds(method.name):
        run = (method.name, seed)
        pairs = [(s.last(run, module), null) for module, null in s.nulls[run].items()]
        if pairs:
            values.append(fmean(float(p.valley_depth) - _null_depth(null["gaussian"], p.cut) for p, null in pairs))
    return interval(values, s.config.judge.confidence) if values else None


def _null_depths(s, method):
    """Mean depth of the three nulls: {"depth of the rank bound": …}."""
    pairs = s.beside_nulls(method.name)
    names = {"bound": "rank bound", "gaussian": "Gaussian null", "haar": "Haar null"}
    return {
        f"depth of the {told}": fmean(_null_depth(null[key], p.cut) for p, null in pairs)
        for key, told in names.items()
        if all(key in null for _, null in pairs)
    }


def _null_depth(line, cut):
    return max(line) - line[cut - 1]


def _exchanged(a, b):
    """Two-sided p of a difference of means, every exchange of seeds between the two as likely as the one seen."""
    values, n = [*a, *b], len(a)

    def statistic(groups):
        first = [v for v, group in zip(values, groups) if not group]
        second = [v for v, group in zip(values, groups) if group]
        return abs(fmean(first) - fmean(second))

    return permutation_test([0] * n + [1] * len(b), statistic)


def _label(s, name):
    return next((m.label for m in s.config.methods if m.name == name), name)


def _finite(x):
    return x if isfinite(x) else None
