"""Findings about the fine-tunings themselves: MPS beside LoRA, what was learned, learning rates."""

from __future__ import annotations

from math import inf, isfinite
from statistics import fmean

from artent.study.analysis.statistics import interval
from artent.study.findings.finding import (
    FAILS,
    HOLDS,
    OPEN,
    OURS,
    Finding,
    few_seeds,
    hardly_learned,
    listed,
    over_seeds,
    sentence,
    unlearned,
)

__all__ = ["learning", "learning_rates", "mps_loss", "mps_valley"]

SHALLOW = 0.05  # nats: a dip smaller than this is no valley


def mps_valley(s):
    """MPS's valley beside LoRA's at equal rank."""
    paper = "MPS adaptation looks like LoRA: its updates have the valley."
    pairs = _equal_ranks(s)
    if not pairs:
        return None
    told, numbers, depths = [], {}, {}
    for a, b in pairs:
        for m, null in ((b, "random cores"), (a, "random factors")):
            depths[m] = over_seeds(s, m, "valley_depth")
            known = s.beside_nulls(m.name)
            told.append(f"{m.label}: {depths[m]}" + (f" ({null} {s.null_depth(m.name)[0]:.2f})" if known else ""))
            numbers[f"{m.label}: depth"] = depths[m].numbers
            if known:
                numbers[f"{m.label}: depth of {null}"] = s.null_depth(m.name)[0]
    detail = f"Depth at the row|column cut, nats, means over modules with intervals over seeds. {'; '.join(told)}."
    for _, b in pairs:
        if (bond := s.core_bond(b.name)) is not None:
            detail += f" At the bond between its cores {b.label} has {bond[0]:.2f} of at most {bond[1]:.2f} nats."
    lora, mps = ([depths[pair[i]] for pair in pairs] for i in (0, 1))
    if any(depth.high <= SHALLOW for depth in mps):
        claim, standing = "MPS's updates have no entanglement valley", FAILS
    elif any(depth.high <= SHALLOW for depth in lora):
        claim, standing = "MPS's updates have an entanglement valley, LoRA's of its rank have none", FAILS
    elif all(depth.low > SHALLOW for depth in (*lora, *mps)):
        claim, standing = "MPS's updates have an entanglement valley, as LoRA's do", HOLDS
    else:
        claim, standing = "Seeds are too few or too different to compare MPS's valley with LoRA's", OPEN
        if all(depth.value > SHALLOW for depth in (*lora, *mps)):
            claim = "MPS's updates have an entanglement valley in the runs so far, as LoRA's do"
    if few := few_seeds(s, [m for pair in pairs for m in pair]):
        detail, standing = f"{detail} {few}", OPEN
    return Finding("mps-valley", claim, detail, standing, paper, numbers)


def mps_loss(s):
    """Whether MPS learned about as well as LoRA of its rank: equivalence within judge.loss_margin."""
    paper = "MPS adaptation reaches about LoRA's test loss."
    pairs, confidence, margin = _equal_ranks(s), s.config.judge.confidence, s.config.judge.loss_margin
    if not pairs:
        return None
    told, numbers, tests, unfair = [], {"margin, nats": margin}, [], []
    for a, b in pairs:
        lora, mps = s.final_losses(a.name), s.final_losses(b.name)
        # Runs of a seed read the same batches, so what the two have in common falls out of the pairs.
        seeds = [seed for seed in s.seeds(a.name) if seed in s.seeds(b.name)]
        pairs_of_runs = [s.losses[(b.name, x)]["new"][-1][1] - s.losses[(a.name, x)]["new"][-1][1] for x in seeds]
        if not pairs_of_runs:
            continue
        difference = interval(pairs_of_runs, confidence)
        told += [_trained(s, m, losses) for m, losses in ((a, lora), (b, mps))]
        ends = f" ({difference.low:+.3f} to {difference.high:+.3f})" if isfinite(difference.high) else ""
        told.append(f"difference {difference.value:+.3f}{ends}, pairs of a seed")
        numbers |= {f"{m.label}: held-out loss": interval(x, confidence).numbers for m, x in ((a, lora), (b, mps))}
        numbers |= {f"{b.label} − {a.label}": difference.numbers}
        if len(seeds) > 1:
            # within takes two one-sided tests, every pair; beyond takes one pair of them
            within = interval(pairs_of_runs, 2 * confidence - 1)
            tests.append((within, interval(pairs_of_runs, 1 - (1 - confidence) / len(pairs))))
        unfair += [m.label for m in (a, b) if _elsewhere(s, m, margin)]
    detail = f"Held-out loss on the new text, {s.loss_unit}, mean and range over seeds. {'; '.join(told)}. "
    detail += f"Margin {margin:g}, told beforehand."
    judged = [m for pair in pairs for m in pair]
    few = few_seeds(s, judged)
    if not tests:
        return Finding(
            "mps-loss", "One seed cannot tell MPS from LoRA of its rank", f"{detail} {few}", OPEN, paper, numbers
        )
    above, below = (any(x.low > margin for _, x in tests), any(x.high < -margin for _, x in tests))
    if above or below:
        where = "above" if above else "below"
        claim, standing = f"MPS's held-out loss is {where} LoRA's at equal rank, by more than {margin:g} nats", FAILS
    elif all(x.low > -margin and x.high < margin for x, _ in tests):
        claim, standing = f"MPS's held-out loss is about LoRA's at equal rank, to within {margin:g} nats", HOLDS
    else:
        claim, standing = f"Whether MPS's held-out loss is within {margin:g} nats of LoRA's is not settled", OPEN
    if unfair:
        which = listed(dict.fromkeys(unfair))
        detail += f" {which} did better at another learning rate, so this compares rates as well."
        claim += ", at these learning rates"
    if reason := few or unlearned(s, judged):
        detail, standing = f"{detail} {reason}", OPEN
    if unfair:
        standing = OPEN
    return Finding("mps-loss", claim, detail, standing, paper, numbers)


def learning(s):
    """Whether the methods learned the new text at all."""
    changes = {m.label: s.loss_change(m.name) for m in s.methods}
    idle, told = hardly_learned(s, s.methods), []
    for label, (start, end, before, after) in changes.items():
        old = "" if before is None else f" (old text {after - before:+.2f})"
        told.append(f"{label}: {start:.2f} → {end:.2f}{old}")
    claim = "Every method learned the new text"
    if idle:
        them = "it" if len(idle) == 1 else "them"
        claim = sentence(f"{listed(idle)} hardly learned, so the verdicts on {them} say little")
    detail = f"Held-out loss on it, {s.loss_unit}: {'; '.join(told)}."
    if s.diverged:
        runs = (f"{s.labels.get(name, name)}, {', '.join(_told(rest))}" for name, *rest in s.diverged)
        detail += f" Diverged: {'; '.join(runs)}."
    numbers = {f"{label}: change of loss": end - start for label, (start, end, *_) in changes.items()}
    return Finding("learning", claim, detail, OURS, None, numbers)


def learning_rates(s):
    """Whether another learning rate of the sweep did better; a loss may be NaN or infinite there."""
    if not s.swept:
        return None
    told, elsewhere = [], []
    for m in s.methods:
        if losses := s.swept.get(m.name):
            row = (f"{_loss(losses[rate])} at {rate:.2g}" for rate in sorted(losses))
            told.append(f"{m.label}: {', '.join(row)}")
            if _elsewhere(s, m, s.config.judge.loss_margin):
                elsewhere.append(m.label)
    if not told:
        return None
    claim = "No method did better at another of the learning rates tried"
    if elsewhere:
        claim = sentence(f"{listed(elsewhere)} did better at another learning rate than the study's")
    detail = f"Held-out loss on the new text, {s.loss_unit}, one seed. {'; '.join(told)}. "
    detail += f"Better is better by {s.config.judge.loss_margin:g}."
    return Finding("learning-rates", claim, detail, OURS)


def _equal_ranks(s):
    """(LoRA, MPS) of equal rank, the LoRA of PEFT's own initialisation where there are several."""
    loras = sorted((m for m in s.methods if m.kind == "lora"), key=lambda m: m.init is not True)
    chains = [m for m in s.methods if m.kind == "mps"]
    return [(a, b) for b in chains if (a := next((m for m in loras if m.rank == b.rank), None)) is not None]


def _trained(s, m, losses):
    told = f"{m.label}: {fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
    told += f", {s.parameters[m.name]:,} parameters" if m.name in s.parameters else ""
    return f"{told}, learning rate {m.learning_rate:.2g}"


def _elsewhere(s, m, margin):
    """Whether a learning rate other than the method's own did better by more than the margin; False without a sweep."""
    losses = s.swept.get(m.name, {})
    own = losses.get(m.learning_rate, inf)
    return any(loss < own - margin for loss in losses.values() if isfinite(loss))


def _loss(loss):
    return f"{loss:.3f}" if isfinite(loss) else "diverged"


def _told(rest):
    """Seed and setting of a stage, in words."""
    return [f"seed {rest[0]}", *(text.replace("_", " ").replace("=", " ") for text in rest[1:])]
