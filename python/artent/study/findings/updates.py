"""Findings about the updates: volume law, theory beside the profiles, rank."""

from __future__ import annotations

from artent.study.analysis import laws, residuals
from artent.study.findings.finding import (
    FAILS,
    FAULT,
    HOLDS,
    OPEN,
    OURS,
    Finding,
    few_seeds,
    listed,
    of_kind,
    over_seeds,
    sentence,
)

__all__ = ["off_cut", "rank_bound", "rank_use", "theory_updates", "volume_law"]

FOLLOWS = 0.2  # nats: a profile nearer than this to a line is described by it
FOLLOWED = {
    "cardy": "follows a logarithm rather than a volume law",
    "flat": "does not grow",
    None: "does not follow a volume law",
}


def volume_law(s):
    """Slope of S(l) against ln D_l on the rising side, against a logarithm and no growth, of LoRA's updates."""
    paper = "LoRA's updates follow a volume law: S(l) grows linearly in ln D_l up to the valley."
    found = laws.rises(s)
    judged = [m for m in of_kind(s, "lora") or s.methods if m.name in found]
    if not judged:
        return None
    told = "; ".join(
        f"{m.label}: slope {found[m.name].slope}, random {_two(found[m.name].null)}, a line fits best in "
        f"{100 * found[m.name].linear:.0f} % of profiles, with an Akaike weight of {found[m.name].preferred}"
        for m in s.methods
        if m.name in found
    )
    detail = f"Slope dS/d ln D on the rising side, means over modules with intervals over seeds. {told}."
    numbers = {}
    for m in s.methods:
        if rise := found.get(m.name):
            numbers |= {f"{m.label}: slope": rise.slope.numbers, f"{m.label}: slope of random updates": rise.null}
            numbers |= {f"{m.label}: Akaike weight of {k}": w for k, w in rise.weights.items()}
            numbers[f"{m.label}: Akaike weight of linear, over seeds"] = rise.preferred.numbers
    # bounded: all of a method's interval over seeds on one side of ½
    other = {m: _form(found[m.name]) for m in judged if found[m.name].preferred.high < 0.5}
    other |= {m: "flat" for m in judged if found[m.name].slope.high <= 0}
    if other:
        told = {form: listed(m.label for m in other if other[m] == form) for form in dict.fromkeys(other.values())}
        told = [f"of {which} {FOLLOWED[form]}" for form, which in told.items()]
        claim, standing = f"The entropy {' and '.join(told)}", FAILS
    elif all(found[m.name].slope.low > 0 and found[m.name].preferred.low > 0.5 for m in judged):
        claim, standing = "LoRA's updates follow a volume law up to the valley", HOLDS
        if not of_kind(s, "lora"):
            claim = "The updates follow a volume law"
        elif all(_near_null(found[m.name]) for m in judged):
            claim += ", as random factors of their rank do"
    else:
        claim, standing = "Seeds are too few or too different to tell a volume law", OPEN
    if few := few_seeds(s, judged):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("volume-law", claim, detail, standing, paper, numbers)


def theory_updates(s):
    """How far random-matrix lines are from the profiles of full FT and LoRA."""
    paper = "Random matrix theory accounts for the profiles of the updates."
    judged, found = [m for m in s.methods if m.kind != "mps"], {}
    for m in s.methods:
        if left := residuals.residuals(s, m.name):
            found[m.name] = left
    judged = [m for m in judged if "line" in found.get(m.name, ())]
    if not judged:
        return None
    told, numbers = [], {}
    names = {"line": "theory line", "gaussian": "Gaussian null", "haar": "own spectrum with random vectors"}
    for m in s.methods:
        for line, left in found.get(m.name, {}).items():
            numbers[f"{m.label}: rms from the {names[line]}"] = left.rms.numbers
            numbers[f"{m.label}: largest from the {names[line]}"] = left.largest
        if (outliers := residuals.outliers(s, m.name)) is not None:
            numbers[f"{m.label}: outliers beyond the random bulk"] = outliers[0]
            numbers[f"{m.label}: their share of S at the cut"] = outliers[1]
    for m in judged:
        left = found[m.name]
        told.append(f"{m.label}: {left['line'].rms}, at most {left['line'].largest:.2f}")
        told[-1] += f"; from random vectors {left['haar'].rms.value:.2f}" if "haar" in left else ""
    detail = f"Distance from Page's or the LoRA line, nats, rms over bonds and means over modules. {'. '.join(told)}."
    lines = [found[m.name]["line"].rms for m in judged]
    far = [m.label for m in judged if found[m.name]["line"].rms.low > FOLLOWS]
    by_spectrum = all("haar" in found[m.name] and found[m.name]["haar"].rms.high <= FOLLOWS for m in judged)
    if far:
        claim = f"The profiles of {listed(far)} are not those of random matrices"
        claim += "; with their own singular values and random vectors they would be" if by_spectrum else ""
        standing = FAILS
    elif all(rms.high <= FOLLOWS for rms in lines):
        claim, standing = "The profiles follow the lines of random matrices", HOLDS
    else:
        claim, standing = "Seeds are too few or too different to tell whether profiles follow the theory lines", OPEN
    claim = sentence(claim)
    detail += f" A profile counts as described within {FOLLOWS} nats."
    if few := few_seeds(s, judged):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("theory-updates", claim, detail, standing, paper, numbers)


def rank_use(s):
    """Effective rank exp S at the cut beside the nominal one."""
    adapters = [m for m in s.methods if m.rank is not None]
    if not adapters:
        return None
    used = {m.label: (over_seeds(s, m, "effective_rank"), m.rank) for m in adapters}
    told = "; ".join(
        f"{label}: {effective.value:.1f} of {nominal} used" for label, (effective, nominal) in used.items()
    )
    shares = [effective.value / nominal for effective, nominal in used.values()]
    ranks = [nominal for _, nominal in used.values()]
    ordered = [share for _, share in sorted(zip(ranks, shares))]
    if max(shares) < 0.75:
        claim = "The updates use a part of the rank they were given"
    elif min(shares) > 0.9:
        claim = "The updates use nearly all the rank they were given"
    elif len(set(ranks)) == len(ranks) > 1 and ordered in (sorted(ordered), sorted(ordered, reverse=True)):
        claim = "How much of its rank an update uses depends on the rank"
    elif len(shares) > 1:
        claim = "Some updates use more of their rank than others"
    else:
        claim = "The updates use most of the rank they were given"
    detail = f"Effective rank exp S at the row|column cut, means over modules and seeds. {told}."
    numbers = {f"{label}: effective rank": effective.numbers for label, (effective, _) in used.items()}
    return Finding("rank-use", claim, detail, OURS, None, numbers)


def off_cut(s):
    """Whether the spectrum at the cut explains the profile off it. MPS's are told and not judged.

    The singular vectors of the Haar null know no chain, whose χ bounds the bonds beside the cut whatever the spectrum.
    """
    gaps = {}
    for m in s.methods:
        if "haar" in (left := residuals.residuals(s, m.name)):
            gaps[m] = (left["haar"].mean, left["haar"].largest)
    plain = {m: gap for m, gap in gaps.items() if m.kind != "mps"}
    if not plain:
        return None

    def told(rows):
        return "; ".join(f"{m.label}: {mean:.2f} (at most {most:.2f})" for m, (mean, most) in rows.items())

    detail = "Largest distance from random singular vectors with the same singular values, nats, mean over modules: "
    detail += f"{told(plain)}."
    chained = {m: gap for m, gap in gaps.items() if m.kind == "mps"}
    if chained:
        detail += f" {told(chained)}, but random vectors know no chain, whose χ bounds the bonds beside the cut."
    claim = "Off the cut, profiles hold more than the spectrum at it"
    if max(most for _, most in plain.values()) < FOLLOWS:
        claim = "The whole profile follows from the spectrum at the cut" + (", a chain's excepted" if chained else "")
    numbers = {f"{m.label}: mean of the largest distance": mean for m, (mean, _) in gaps.items()}
    return Finding("off-cut", claim, detail, OURS, None, numbers)


def rank_bound(s):
    """Whether every profile of a factored update respects its rank bound; one that does not is a fault."""
    excesses = [
        max(float(S) - bound for S, bound in zip(profile.entropy, s.nulls[run][module]["bound"]))
        for run in s.runs
        for module, steps in s.profiles[run].items()
        for profile in steps.values()
        if profile.rank is not None and module in s.nulls[run]
    ]
    if not excesses:
        return None
    kinds = [name for kind, name in (("lora", "LoRA"), ("mps", "MPS")) if of_kind(s, kind)]
    of, broken = " and ".join(kinds), sum(excess > 1e-6 for excess in excesses)
    numbers = {"largest excess over the bound": max(excesses), "profiles": len(excesses)}
    if broken:
        claim = f"{broken} of {len(excesses)} {of} profiles exceed their rank bound"
        detail = f"No update of that rank can (largest excess {max(excesses):.1e} nats): distrust these numbers."
        return Finding("rank-bound", claim, detail, FAULT, None, numbers)
    detail = "At every bond S(l) stays under ln min(D, (m/D)·r), as it must for an update of rank r"
    detail += ", and MPS's under what χ leaves of it." if "MPS" in kinds else "."
    claim = f"All {len(excesses)} {of} profiles respect their rank bound"
    return Finding("rank-bound", claim, detail, OURS, None, numbers)


def _form(rise):
    """The form that most of the weight is on, None where on none, the volume law aside."""
    return next((form for form, weight in rise.weights.items() if form != "linear" and weight > 0.5), None)


def _near_null(rise):
    return rise.null is not None and abs(rise.slope.value - rise.null) < 0.1


def _two(x):
    return "unknown" if x is None else f"{x:.2f}"
