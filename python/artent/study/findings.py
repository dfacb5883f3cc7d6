"""What a study found, in words. Every sentence is chosen by the numbers, and turns when they turn.

A finding never says more than its numbers: where the paper (arXiv 2601.06788) reports something, ``standing`` says
whether this study shows the same, and where the data cannot decide, that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import NamedTuple

from artent.study.nohair import SEEDS_NEEDED

__all__ = [
    "Finding",
    "Trained",
    "attention_drift",
    "chain_valley",
    "equal_rank",
    "growth",
    "learning",
    "learning_rates",
    "no_hair",
    "off_cut",
    "rank_bound",
    "rank_use",
    "valley",
]

SAME, OTHER, OPEN, FAULT, OURS = "as in the paper", "not as in the paper", "not enough data", "fault", "measured here"
SHALLOW = 0.05  # nats: a dip smaller than this is no valley
FOLLOWS = 0.2  # nats: a profile nearer than this to its Haar null at every bond has little beyond its spectrum
ALIKE = 0.05  # exponents c closer than this are not told apart, however narrow the interval over texts


@dataclass(frozen=True)
class Finding:
    """A claim, the numbers behind it in a sentence or two, and where it stands."""

    claim: str
    detail: str
    standing: str


class Trained(NamedTuple):
    """What a method reached: its held-out loss of every seed, nats a byte, and what it took.

    ``parameters`` and ``at_best`` (whether its learning rate is the best of its sweep) are None where not known.
    """

    label: str
    losses: list[float]
    rate: float
    parameters: int | None = None
    at_best: bool | None = None


def learning(losses):
    """``losses``: ``{label: (start, end, old_start, old_end)}``, held-out nats a byte on the new and the old text."""
    idle = [label for label, (start, end, *_) in losses.items() if end > start - 0.02]
    told = "; ".join(
        f"{label}: {start:.2f} → {end:.2f} (old text {old - before:+.2f})"
        for label, (start, end, before, old) in losses.items()
    )
    if idle:
        claim = f"{_list(idle)} hardly learned, so what follows says little about {'it' if len(idle) == 1 else 'them'}"
    else:
        claim = "Every method learned the new text"
    return Finding(claim, f"Held-out loss on it, nats a byte: {told}.", OURS)


def learning_rates(swept):
    """``swept``: ``{label: (own rate, {rate: held-out loss})}``, nats a byte; a loss may be NaN or infinite."""
    told, elsewhere = [], []
    for label, (own, losses) in swept.items():
        finite = {rate: loss for rate, loss in losses.items() if isfinite(loss)}
        best = min(finite, key=finite.get, default=own)
        row = ", ".join(f"{losses[rate]:.3f} at {rate:.2g}" for rate in sorted(losses))
        told.append(f"{label}: {row}")
        if best != own:
            elsewhere.append(label)
    if elsewhere:
        claim = f"{_list(elsewhere)} did better at another learning rate than the study's"
    else:
        claim = "Every method ran at the best of the learning rates tried"
    return Finding(claim, f"Held-out loss on the new text, nats a byte, one seed. {'; '.join(told)}.", OURS)


def equal_rank(lora, mps):
    """Whether MPS learned as well as LoRA of its rank: two ``Trained``, their seeds in the same order.

    The measure is LoRA's seed spread, the distance from its best seed to its worst.
    """
    difference, spread = fmean(mps.losses) - fmean(lora.losses), max(lora.losses) - min(lora.losses)
    few = min(len(lora.losses), len(mps.losses)) < SEEDS_NEEDED
    told = "; ".join(
        f"{t.label}: {fmean(t.losses):.3f} ({min(t.losses):.3f} to {max(t.losses):.3f})"
        + (f", {t.parameters:,} parameters" if t.parameters else "")
        + f", learning rate {t.rate:.2g}"
        for t in (lora, mps)
    )
    detail = f"Held-out loss on the new text, nats a byte, mean and range over seeds. {told}."
    if len(lora.losses) == len(mps.losses):
        pairs = ", ".join(f"{b - a:+.3f}" for a, b in zip(lora.losses, mps.losses))
        detail += f" MPS − LoRA on the same batches, seed by seed: {pairs}."
    unfair = [t.label for t in (lora, mps) if t.at_best is False]
    if unfair:
        detail += f" {_list(unfair)} did better at another learning rate, so this compares rates as well."
    if len(lora.losses) < 2:
        return Finding("One seed cannot tell MPS from LoRA of its rank", detail, OPEN)
    if few:
        detail += f" {len(lora.losses)} seeds give a rough spread; {SEEDS_NEEDED} is the least that is taken for one."
    if abs(difference) <= spread:
        claim, standing = "MPS's held-out loss is within LoRA's seed spread at equal rank", SAME
    elif difference > 0:
        claim, standing = "MPS's held-out loss is above LoRA's at equal rank, by more than LoRA's seeds differ", OTHER
    else:
        claim, standing = "MPS's held-out loss is below LoRA's at equal rank, by more than LoRA's seeds differ", OURS
    return Finding(claim, detail, OPEN if few or unfair else standing)


def rank_bound(excesses, of="LoRA"):
    """``excesses``: the largest S(l) − bound(l) of every profile of LoRA (and MPS: ``of``), in nats."""
    broken = sum(excess > 1e-6 for excess in excesses)
    if broken:
        return Finding(
            f"{broken} of {len(excesses)} {of} profiles exceed their rank bound",
            f"No update of that rank can (largest excess {max(excesses):.1e} nats): distrust these numbers.",
            FAULT,
        )
    return Finding(
        f"All {len(excesses)} {of} profiles respect their rank bound",
        "At every bond S(l) stays under ln min(D, (m/D)·r), as it must for an update of rank r"
        + (", and MPS's under what χ leaves of it." if "MPS" in of else "."),
        OURS,
    )


def valley(full, lora):
    """``full``: (depth, null depth, null spread) of full FT, or None; ``lora``: ``{label: the same}``; nats, means."""
    rows = {**lora, **({"full FT": full} if full is not None else {})}
    told = "; ".join(f"{label}: {depth:.2f} (random {null:.2f})" for label, (depth, null, _) in rows.items())
    detail = f"Depth at the row|column cut, nats, means over modules and seeds: {told}."
    if all(depth <= SHALLOW for depth, *_ in lora.values()):
        return Finding("No entanglement valley in LoRA's updates", detail, OTHER)
    deeper = [label for label, (depth, null, spread) in lora.items() if depth > null + 2 * spread]
    if deeper:
        detail += f" {_list(deeper)}: deeper than the rank alone makes it."
    else:
        detail += " Random factors of the same rank have one as deep, so the rank alone accounts for it."
    if full is None:
        return Finding("LoRA's updates have an entanglement valley", detail, SAME)
    if not all(depth > full[0] + SHALLOW for depth, *_ in lora.values()):
        return Finding("A valley, but it does not set LoRA apart from full FT", detail, OTHER)
    claim = "LoRA's updates have an entanglement valley, full FT's is shallower"
    if min(depth - null for depth, null, _ in lora.values()) > full[0] - full[1]:
        return Finding(claim, detail, SAME)
    detail += (
        " In excess of random matrices of its shape, full FT's is as deep as theirs or deeper: what sets them apart in "
        "depth is largely the rank."
    )
    return Finding(claim, detail, OURS)


def chain_valley(lora, mps, core_bond=None):
    """MPS's valley beside LoRA's at equal rank.

    ``lora``, ``mps``: (label, depth, null depth, null spread), nats, means; the nulls are random factors and random
    cores. ``core_bond``: (S, bound) at the bond between the cores, or None.
    """
    (label, depth, null, spread), (lora_label, lora_depth, lora_null, _) = mps, lora
    detail = (
        f"Depth at the row|column cut, nats, means over modules and seeds. {label}: {depth:.2f} (random cores "
        f"{null:.2f}); {lora_label}: {lora_depth:.2f} (random factors {lora_null:.2f})."
    )
    if core_bond is not None:
        detail += f" At the bond between its cores MPS has {core_bond[0]:.2f} of at most {core_bond[1]:.2f} nats."
    if depth <= SHALLOW:
        return Finding("No entanglement valley in MPS's updates", detail, OTHER)
    if lora_depth <= SHALLOW:
        return Finding("MPS's updates have an entanglement valley, LoRA's of its rank have none", detail, OTHER)
    claim = "MPS's updates have an entanglement valley, as LoRA's do"
    if depth > null + 2 * spread:
        return Finding(claim, f"{detail} MPS's is deeper than its shapes alone make it.", SAME)
    return Finding(claim, f"{detail} Random cores have one as deep, so the shapes alone account for it.", OURS)


def off_cut(gaps, chained=None):
    """``gaps``: ``{label: (mean, largest)}`` over profiles of max_l |S(l) − Haar(l)|, nats; ``chained``: MPS's alike.

    MPS's are told and not judged: the singular vectors of the Haar null know no chain, whose χ bounds the bonds beside
    the cut whatever the spectrum at it.
    """

    def told(rows):
        return "; ".join(f"{label}: {mean:.2f} (at most {most:.2f})" for label, (mean, most) in rows.items())

    detail = (
        "Largest distance from random singular vectors with the same singular values, nats, mean over modules: "
        f"{told(gaps)}."
    )
    if chained:
        detail += f" {told(chained)}, but random vectors know no chain, whose χ bounds the bonds beside the cut."
    if max(most for _, most in gaps.values()) < FOLLOWS:
        claim = "The whole profile follows from the spectrum at the cut" + (", a chain's excepted" if chained else "")
        return Finding(claim, detail, OURS)
    return Finding("Off the cut, profiles hold more than the spectrum at it", detail, OURS)


def rank_use(used):
    """``used``: ``{label: (effective rank, nominal rank)}``, means over modules and seeds at the last step."""
    told = "; ".join(f"{label}: {effective:.1f} of {nominal} used" for label, (effective, nominal) in used.items())
    shares = [effective / nominal for effective, nominal in used.values()]
    if max(shares) < 0.75:
        claim = "The updates use a part of the rank they were given"
    elif min(shares) > 0.9:
        claim = "The updates use nearly all the rank they were given"
    else:
        claim = "How much of its rank an update uses depends on the rank"
    return Finding(claim, f"Effective rank exp S at the row|column cut, means over modules and seeds. {told}.", OURS)


def growth(fit, nulls):
    """``fit``: the base model's fit record of S_ext = c ln T + b; ``nulls``: ``{label: c}``."""
    c, (low, high) = fit["c"], fit["interval"]
    told = ", ".join(f"{label}: {null:.2f}" for label, null in nulls.items())
    detail = f"c = {c:.2f}, 95 % interval {low:.2f} to {high:.2f} over texts. Nulls: {told}."
    claim, standing = {
        "area law": ("Attention entanglement does not grow with length: an area law", OTHER),
        "area law with a logarithmic correction": (
            "Attention entanglement grows as c·ln T with c between 0 and 1",
            SAME,
        ),
        "volume law": ("Attention entanglement grows like its maximum ln T: a volume law", OTHER),
        "neither law": ("Attention entanglement follows neither law", OTHER),
        "undecided": ("These texts do not settle how attention entanglement grows", OPEN),
        "not enough texts": ("Too few texts to tell how attention entanglement grows", OPEN),
    }[fit["verdict"]]
    near = min(nulls, key=lambda label: abs(nulls[label] - c))
    if low <= nulls[near] <= high or abs(nulls[near] - c) < ALIKE:
        detail += f" The null “{near}” grows alike, so c alone does not tell learned attention from it."
        standing = OURS if standing == SAME else standing
    return Finding(claim, detail, standing)


def no_hair(r_ext, r_int, judged):
    """Median r of heads and of modules (None: not measurable), and the words of ``nohair.verdict``."""
    if r_ext is None or r_int is None:
        return Finding("No comparison of methods", "It takes two methods, and two seeds of each.", OPEN)
    detail = (
        f"Between methods, updates differ {r_int:.1f} times as much as between seeds; attention {r_ext:.1f} times "
        f"(medians over modules and heads, at matched steps). Verdict on no-hair: {judged}."
    )
    if r_int > 2 > r_ext:
        claim = "So far, methods tell in the updates more than in attention"
    elif r_ext >= 2 and r_int >= 2:
        claim = "Methods tell in the updates and in attention"
    elif r_ext >= 2:
        claim = "Methods tell in attention more than in the updates"
    else:
        claim = "Methods tell no more than seeds do"
    return Finding(claim, detail, OPEN if judged.startswith("not enough") else OURS)


def attention_drift(changes):
    """``changes``: ``{label: mean relative change of row entropies against the base}``."""
    told = "; ".join(f"{label}: {100 * change:.1f} %" for label, change in changes.items())
    small = max(changes.values()) < 0.05
    claim = "Fine-tuning hardly moved the row entropies" if small else "Fine-tuning moved attention's row entropies"
    detail = f"Mean relative change of a head's Shannon entropy a row (not S_ext) against the base: {told}."
    return Finding(claim, detail, OURS)


def _list(labels):
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]
