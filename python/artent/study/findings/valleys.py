"""Findings about the valley: its depth, whether it tells LoRA from full FT, what moves it."""

from __future__ import annotations

from math import comb, isfinite
from statistics import fmean

from artent.study.analysis import sensitivity
from artent.study.analysis.statistics import interval, permutation_test, welch
from artent.study.findings.finding import (
    FAILS,
    HOLDS,
    OPEN,
    Finding,
    broken_runs,
    few_of,
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
            claim = f"{listed(none)} {'has' if len(none) == 1 else 'have'} no entanglement valley"
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
    """Whether full FT's profile differs at the cut, of all weights and of the targets alone: depths, either way round.

    That they differ takes every pair beyond chance; that they do not, every pair within ``SHALLOW``.
    """
    paper = "The profile of full fine-tuning is different."
    full, loras = of_kind(s, "full-ft"), of_kind(s, "lora")
    if not full or not loras:
        return None
    confidence, numbers, told, rows = s.config.judge.confidence, {}, [], []
    depths = {m: over_seeds(s, m, "valley_depth") for m in (*full, *loras)}
    numbers |= {f"{m.label}: depth": depth.numbers for m, depth in depths.items()}
    for f in full:
        for m in loras:
            difference, p = welch(_depths(s, m), _depths(s, f), confidence), _exchanged(_depths(s, m), _depths(s, f))
            rows.append((difference, p))
            name = f"{m.label} − {f.label}"
            told.append(f"{name}: {difference}, p = {p:.2g}")
            numbers |= {name: difference.numbers, f"{name}: permutation p": p}
    detail = "Depth at the row|column cut, nats, with intervals over seeds: "
    detail += f"{'; '.join(f'{m.label}: {depth}' for m, depth in depths.items())}. "
    detail += f"Differences, with permutation tests over seeds: {'; '.join(told)}."
    alpha = 1 - confidence
    certain = all(p < alpha for _, p in rows)
    if certain and all(difference.low > 0 for difference, _ in rows):
        claim, standing = "LoRA's valley is deeper than full FT's" + _which_has_one(depths, full), HOLDS
        detail += _beyond_shape(s, full, loras)
    elif certain and all(difference.high < 0 for difference, _ in rows):
        claim, standing = "Full FT's valley is deeper than LoRA's" + _which_has_one(depths, loras), HOLDS
    elif certain and all(difference.low > 0 or difference.high < 0 for difference, _ in rows):
        claim, standing = "Full FT's valley is deeper than some LoRAs' and shallower than others'", HOLDS
    elif all(difference.low > -SHALLOW and difference.high < SHALLOW for difference, _ in rows):
        claim, standing = f"The valley's depth does not set LoRA apart from full FT, to within {SHALLOW:g} nats", FAILS
    else:
        claim, standing = "Seeds are too few or too different to tell LoRA's depth from full FT's", OPEN
        least = max(
            2 / comb(len(s.seeds(f.name)) + len(s.seeds(m.name)), len(s.seeds(f.name))) for f in full for m in loras
        )
        if least >= alpha:
            detail += f" With so few seeds p cannot fall below {least:.2g}, whatever they say: it takes {alpha:.2g}."
    if len(full) < 2:
        other = "of the targets alone" if full[0].train == "all" else "of all weights"
        detail += f" Full FT {other} was not run."
    if few := few_seeds(s, (*full, *loras)):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("valley-full-ft", claim, detail, standing, paper, numbers)


def _which_has_one(depths, methods):
    """Whether the shallower of the two have a valley, the end of a sentence about the deeper."""
    if all(depths[m].low > SHALLOW for m in methods):
        return ", which has one too"
    return ", which has none" if all(depths[m].high <= SHALLOW for m in methods) else ""


def _beyond_shape(s, full, loras):
    """Whose valley is no deeper than full FT's once random matrices of the shape are taken off, or nothing."""
    told = []
    for m in loras:
        for f in full:
            mine, theirs = _excesses(s, m), _excesses(s, f)
            if mine and theirs:
                apart = welch(mine, theirs, s.config.judge.confidence)
                if apart.low > 0:
                    continue
                how = "shallower than" if apart.high < 0 else "not told from"
                told.append(f"that of {m.label} is {how} that of {f.label} ({fmean(mine):.2f} and {fmean(theirs):.2f})")
    return f" Beyond what random matrices of the same shape have, {'; '.join(told)}." if told else ""


def valley_sensitive(s):
    """Which hyper-parameters move LoRA's valley by more than seeds do, and which, to within ``SHALLOW``, do not."""
    paper = "The valley is sensitive to LoRA's hyper-parameters."
    loras = {m.name: m.label for m in s.config.methods if m.kind == "lora"}
    if not loras:
        return None
    found = sensitivity.updates_moved(s)
    depth = [moved for moved in found if moved.of in loras and moved.quantity == "depth"]
    if not depth:
        detail = "No sweep of LoRA was run: give the study one of learning_rate, alpha, rank or init."
        if any(sweep.of in (*loras, "*") for sweep in s.config.sweep):
            detail = "No run of LoRA's sweep that could be compared is there yet."
        detail += broken_runs(s, loras)
        return Finding("valley-sensitive", "What moves the valley was not measured", detail, OPEN, paper)
    numbers, told = {}, []
    for moved in found:
        label = f"{_label(s, moved.of)}, {setting(moved.vary)}: {moved.quantity.replace('_', ' ')}"
        numbers |= {f"{label}, range": moved.range, f"{label}, least that seeds do not": _finite(moved.least)}
        if moved in depth:
            values = ", ".join(f"{x:.2f} at {value_of(value)}" for value, x in moved.values.items())
            told.append(f"{setting(moved.vary)} of {loras[moved.of]}: {values}")
    detail = f"Depth, nats, means over modules: {'; '.join(told)}. Seeds of one setting scatter by "
    detail += f"{fmean(m.spread for m in depth):.3f} (standard deviation)."
    detail += broken_runs(s, loras)
    if any(m.moves is None for m in depth):
        detail += f" {few_of(s, min(m.seeds for m in depth))}"
        return Finding("valley-sensitive", "The valley against hyper-parameters", detail, OPEN, paper, numbers)
    moving = list(dict.fromkeys(setting(m.vary) for m in depth if m.moves))
    rest = [v for v in dict.fromkeys(setting(m.vary) for m in depth) if v not in moving]
    still = [v for v in rest if all(m.most < SHALLOW for m in depth if setting(m.vary) == v)]
    unsettled = [v for v in rest if v not in still]
    for quantity in ("excess", "slope", "effective_rank"):
        others = [m for m in found if m.of in loras and m.quantity == quantity and m.moves]
        if others:
            name = {"excess": "depth beyond what the rank makes"}.get(quantity, quantity.replace("_", " "))
            detail += f" The {name} is moved by {listed(dict.fromkeys(setting(m.vary) for m in others))}."
    if unsettled:
        widest = max(m.most for m in depth if setting(m.vary) in unsettled)
        detail += f" Not settled for {listed(unsettled)}: seeds leave room for a range of {widest:.2f} nats."
    if moving:
        claim, standing = f"The valley's depth moves with {listed(moving)}, by more than between seeds", HOLDS
        claim += f", not with {listed(still)}" if still else ""
    elif not unsettled:
        claim, standing = f"No setting moves the valley's depth by {SHALLOW:g} nats: {listed(still)}", FAILS
    else:
        claim, standing = "Whether settings move the valley by more than seeds do is not settled", OPEN
    return Finding("valley-sensitive", claim, detail, standing, paper, numbers)


def _depths(s, method):
    return per_seed(s, method, "valley_depth")


def _excesses(s, method):
    """Depth less the depth of Gaussian updates of the same shapes, of every seed with nulls, means over modules."""
    values = []
    for seed in s.seeds(method.name):
        run = (method.name, seed)
        pairs = [(s.last(run, module), null) for module, null in s.nulls[run].items()]
        if pairs:
            values.append(fmean(float(p.valley_depth) - _null_depth(null["gaussian"], p.cut) for p, null in pairs))
    return values


def _excess(s, method):
    """``_excesses`` as their mean with its interval; None without nulls."""
    values = _excesses(s, method)
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
