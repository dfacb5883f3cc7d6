"""Findings about attention: how S_ext grows with T, what moves it, drift."""

from __future__ import annotations

from math import isfinite
from statistics import fmean

import torch

from artent.study.analysis import laws, sensitivity
from artent.study.analysis.nohair import relative_change
from artent.study.findings.finding import (
    FAILS,
    HOLDS,
    OPEN,
    OURS,
    Finding,
    broken_runs,
    few_of,
    few_seeds,
    listed,
    setting,
    unlearned,
    value_of,
)

__all__ = [
    "drift",
    "external_hyperparameters",
    "external_law",
    "external_steps",
]

AREA_LAW = "External entanglement follows an area law with logarithmic corrections"
AREA = 0.1  # exponents c below this are no growth
ALIKE = 0.05  # exponents c closer than this are not told apart, however narrow the interval over texts
PLAIN = {"area law": "area", "area law with a logarithmic correction": "logarithm", "volume law": "volume"}


def external_law(s):
    """c of S_ext = c ln T + b: an area law with a logarithmic correction has 0 < c < 1, a volume law 1.

    Every model is judged, the base and every method's, by the wider of its intervals over texts and over seeds, which
    has to lie wholly in one law. At finite T a volume law has less than 1: a local window's, whose entropy grows with
    T, is what c has to stay below.
    """
    paper = f"{AREA_LAW}: S_ext = c·ln T + b with c between 0 and 1."
    found = laws.growths(s)
    if "base" not in found:
        return None
    volume, c = laws.window_exponent(s), found["base"].texts
    ends = {"base": (c.low, c.high)}
    for m in s.methods:
        if growth := found.get(m.name):
            known = [x for x in (growth.texts, growth.seeds) if x is not None and x.n > 1]
            ends[m.name] = (min(x.low for x in known), max(x.high for x in known)) if known else (c.value, c.value)
    nulls = {"untrained model": found["untrained"].texts.value} if "untrained" in found else {}
    nulls |= {name: s.fits[name]["c"] for name in s.growth_nulls if name in s.fits}
    detail = f"Base model: c = {c}, interval over texts."
    if nulls:
        detail += f" Nulls: {', '.join(f'{name} {x:.2f}' for name, x in nulls.items())}."
    treated = {name.split(", ")[1]: g.texts for name, g in found.items() if name.startswith("base, ")}
    if treated:
        detail += f" {'; '.join(f'{name}: c = {x}' for name, x in treated.items())}."
    numbers = {"base: c": c.numbers, "base: c of every layer": found["base"].layers}
    numbers |= {f"base, {name}: c": x.numbers for name, x in treated.items()} | {f"{k}: c": x for k, x in nulls.items()}
    numbers["c of a volume law at these lengths (local window)"] = volume
    for m in s.methods:
        if m.name in found:
            numbers[f"{m.label}: c"] = (found[m.name].seeds or found[m.name].texts).numbers
    if c.n and c.n < s.config.judge.seeds:
        claim = "Too few texts to tell how attention entanglement grows"
        return Finding("external-law", claim, detail, OPEN, paper, numbers)
    laws_of = {name: _law(low, high, volume) for name, (low, high) in ends.items()}
    detail += (
        f" A volume law is not c = 1 at these lengths: a local window, whose entropy grows with T, has {volume:.2f}. "
        f"Judged by intervals: an area law below {AREA:g}, a volume law above {volume - ALIKE:.2f}, between them a "
        "logarithmic correction."
    )
    plain = s.fits["base"].get("verdict")
    if plain in PLAIN and PLAIN[plain] != laws_of["base"]:
        detail += f" By the plain rule, 0 < c < 1, it reads as “{plain}”."
    claim, standing = {
        "area": ("Attention entanglement does not grow with length: an area law", FAILS),
        "logarithm": ("Attention entanglement grows as c·ln T with c between 0 and a volume law's", HOLDS),
        "volume": ("Attention entanglement grows as fast as a volume law does at these lengths", FAILS),
        "neither": ("Attention entanglement falls with length: neither law", FAILS),
        "undecided": ("These texts do not settle how attention entanglement grows", OPEN),
    }[laws_of["base"]]
    labels = {"base": "the base model", **{m.name: m.label for m in s.methods}}
    if laws_of["base"] != "undecided":
        unsettled = [labels[name] for name, law in laws_of.items() if law == "undecided"]
        differing = [labels[name] for name, law in laws_of.items() if law not in ("undecided", laws_of["base"])]
        if unsettled:
            detail, standing = f"{detail} Not settled for {listed(unsettled)}.", OPEN
        if differing:
            verb = "differs" if len(differing) == 1 else "differ"
            claim = f"How attention entanglement grows depends on the model: {listed(differing)} {verb} from the base"
            standing = OPEN if {"logarithm", "undecided"} & set(laws_of.values()) else FAILS
    near = min(nulls, key=lambda name: abs(nulls[name] - c.value), default=None)
    if near is not None and (c.low <= nulls[near] <= c.high or abs(nulls[near] - c.value) < ALIKE):
        detail += f" The null “{near}” grows alike, so c alone does not tell learned attention from it."
        claim += f", as the null “{near}” does" if standing == HOLDS else ""
    if few := few_seeds(s, s.methods):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("external-law", claim, detail, standing, paper, numbers)


def external_steps(s):
    """Whether training moves S_ext by more than the margin."""
    paper = "External entanglement is robust to the number of training steps."
    shifts, margin = sensitivity.step_shifts(s), s.config.judge.margin
    judged = [m for m in s.methods if m.kind == "lora" and m.name in shifts]
    judged = judged or [m for m in s.methods if m.name in shifts]
    if not judged:
        return None
    labels = {m.name: m.label for m in s.methods}
    told = "; ".join(
        f"{labels[name]}: {test.mean:.3f}{_below(test.high)} from step {steps[0]} to {steps[1]}"
        for name, (test, _, steps) in shifts.items()
    )
    detail = f"Shift of S_ext of T = {s.step_length}, nats, rms over heads: {told}. "
    detail += f"Margin {margin:g} nats."
    numbers = {}
    for name, (test, largest, _) in shifts.items():
        numbers[f"{labels[name]}: shift"] = [test.mean, test.low, test.high if isfinite(test.high) else None]
        numbers[f"{labels[name]}: largest of the mean over seeds"] = largest
    tests = [shifts[m.name][0] for m in judged]
    by = " by LoRA" if judged[0].kind == "lora" else ""
    beyond = [m.label for m in judged if shifts[m.name][0].beyond]
    if beyond:
        claim, standing = f"Training{by} moves S_ext by more than {margin:g} nats: {listed(beyond)}", FAILS
    elif all(test.equivalent for test in tests):
        claim, standing = f"Training{by} moves S_ext by less than {margin:g} nats", HOLDS
        if idle := unlearned(s, judged):
            detail, standing = f"{detail} {idle}", OPEN
    else:
        claim, standing = f"Whether training{by} moves S_ext by less than {margin:g} nats is not settled", OPEN
    if few := few_seeds(s, judged):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("external-steps", claim, detail, standing, paper, numbers)


def external_hyperparameters(s):
    """Whether LoRA's hyper-parameters leave S_ext within the margin: equivalence, not the absence of a difference."""
    paper = "External entanglement is robust to LoRA's hyper-parameters."
    margin, loras = s.config.judge.margin, {m.name: m.label for m in s.config.methods if m.kind == "lora"}
    if not loras:
        return None
    shifts = sensitivity.attention_shifts(s)
    judged = [shift for shift in shifts if shift.of in loras]
    key = "external-hyperparameters"
    if not judged:
        detail = "S_ext was measured in no sweep of LoRA: give the study one, and measure.sweep_texts of 1 or more."
        if s.config.measure.sweep_texts and any(sweep.of in (*loras, "*") for sweep in s.config.sweep):
            detail = "No run of LoRA's sweep that could be compared is there yet."
        detail += broken_runs(s, loras)
        return Finding(key, "S_ext against hyper-parameters was not measured", detail, OPEN, paper)
    labels, numbers, told = {m.name: m.label for m in s.config.methods}, {}, []
    for shift in shifts:
        where = f"{setting(shift.vary)} of {labels[shift.of]}"
        points = (f"{x.mean:.3f}{_below(x.high)} at {value_of(value)}" for value, x in shift.shifts.items())
        told.append(f"{where}: {', '.join(points)}")
        for value, x in shift.shifts.items():
            numbers[f"{where} = {value_of(value)}: shift"] = [x.mean, x.low, x.high if isfinite(x.high) else None]
        numbers[f"{where}: between seeds"] = shift.within
    detail = "Distance of S_ext from the method's own setting, nats, rms over heads, the noise of seeds taken out: "
    detail += f"{'; '.join(told)}. Two seeds of one setting differ by "
    detail += f"{fmean(shift.within for shift in judged):.3f}. Margin {margin:g}."
    detail += broken_runs(s, loras)
    beyond = list(dict.fromkeys(setting(shift.vary) for shift in judged if shift.beyond))
    idle = unlearned(s, [m for m in s.methods if m.name in {shift.of for shift in judged}])
    if min(shift.seeds for shift in judged) < s.config.judge.seeds:
        detail += f" {few_of(s, min(shift.seeds for shift in judged))}"
        claim, standing = "S_ext against hyper-parameters", OPEN
    elif beyond:
        claim, standing = f"Hyper-parameters move S_ext by more than {margin:g} nats: {listed(beyond)}", FAILS
    elif all(shift.same for shift in judged):
        which = listed(dict.fromkeys(setting(shift.vary) for shift in judged))
        claim, standing = f"S_ext stays within {margin:g} nats whatever the {which}", HOLDS
        if idle:
            detail, standing = f"{detail} {idle}", OPEN
    else:
        unsettled = [shift for shift in judged if not shift.same]
        which = listed(dict.fromkeys(setting(shift.vary) for shift in unsettled))
        claim, standing = f"Whether S_ext stays within {margin:g} nats is not settled for {which}", OPEN
        if any(shift.single for shift in unsettled):
            detail += (
                " One run or two of a value leave too much room beside what seeds differ: it takes 3 seeds a value."
            )
    return Finding(key, claim, detail, standing, paper, numbers)


def drift(s):
    """Relative change of a head's row entropy against the base."""
    if "base" not in s.entropy:
        return None
    changes = {}
    for m in s.methods:
        each = [s.entropy[(m.name, seed)] for seed in s.seeds(m.name) if (m.name, seed) in s.entropy]
        if each:
            change = torch.stack([relative_change(entropy.mT, s.entropy["base"].mT) for entropy in each])
            changes[m.label] = change.nanmean().item()
    if not changes:
        return None
    told = "; ".join(f"{label}: {100 * change:.1f} %" for label, change in changes.items())
    claim = "Fine-tuning moved attention's row entropies"
    if max(changes.values()) < 0.05:
        claim = "Fine-tuning hardly moved the row entropies"
    detail = f"Mean relative change of a head's Shannon entropy a row (not S_ext) against the base: {told}."
    return Finding("drift", claim, detail, OURS, None, {f"{k}: relative change": x for k, x in changes.items()})


def _law(low, high, volume):
    """What an interval of c lies wholly in, as ``external_law`` calls it; ``volume``: what a volume law has."""
    if high < AREA:
        return "area" if high > -AREA else "neither"
    if low > volume - ALIKE:
        return "volume"
    return "logarithm" if low > AREA and high < volume - ALIKE else "undecided"


def _below(high):
    return f" (at most {high:.3f})" if isfinite(high) else ""
