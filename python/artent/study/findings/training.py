"""Findings about the fine-tunings themselves: MPS beside LoRA, what was learned, learning rates."""

from __future__ import annotations

from math import isfinite
from statistics import fmean

from artent.study.analysis.statistics import interval, welch
from artent.study.findings.finding import FAILS, HOLDS, OPEN, OURS, Finding, few_seeds, listed, over_seeds

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
    """Whether MPS learned as well as LoRA of its rank: equivalence within LoRA's seed spread, best seed to worst."""
    paper = "MPS adaptation reaches about LoRA's test loss."
    pairs, confidence = _equal_ranks(s), s.config.judge.confidence
    if not pairs:
        return None
    told, numbers, tests, unfair = [], {}, [], []
    for a, b in pairs:
        lora, mps = s.final_losses(a.name), s.final_losses(b.name)
        spread, difference = max(lora) - min(lora), welch(mps, lora, confidence)
        told += [_trained(s, m, losses) for m, losses in ((a, lora), (b, mps))]
        told.append(f"difference {difference.value:+.3f}, LoRA's seed spread {spread:.3f}")
        numbers |= {f"{m.label}: held-out loss": interval(x, confidence).numbers for m, x in ((a, lora), (b, mps))}
        numbers |= {f"{b.label} − {a.label}": difference.numbers, f"{a.label}: seed spread": spread}
        if min(len(lora), len(mps)) > 1:
            # the interval that two one-sided tests take, from Welch's of the same difference
            narrow = welch(mps, lora, 2 * confidence - 1)
            tests.append((difference.value, spread, narrow.low > spread or narrow.high < -spread, narrow))
        unfair += [m.label for m in (a, b) if _elsewhere(s, m)]
    detail = f"Held-out loss on the new text, {s.loss_unit}, mean and range over seeds. {'; '.join(told)}."
    few = few_seeds(s, [m for pair in pairs for m in pair])
    if not tests:
        return Finding(
            "mps-loss", "One seed cannot tell MPS from LoRA of its rank", f"{detail} {few}", OPEN, paper, numbers
        )
    if unfair:
        which = listed(dict.fromkeys(unfair))
        detail += f" {which} did better at another learning rate, so this compares rates as well."
    different = [test for test in tests if test[2]]
    if different:
        where = "above" if different[0][0] > 0 else "below"
        claim, standing = (
            f"MPS's held-out loss is {where} LoRA's at equal rank, by more than LoRA's seeds differ",
            FAILS,
        )
    elif all(narrow.low > -spread and narrow.high < spread for _, spread, _, narrow in tests):
        claim, standing = "MPS's held-out loss is within LoRA's seed spread at equal rank", HOLDS
    else:
        claim, standing = "MPS's held-out loss is not settled to within LoRA's seed spread at equal rank", OPEN
    if few or unfair:
        detail, standing = f"{detail} {few or ''}".strip(), OPEN
    return Finding("mps-loss", claim, detail, standing, paper, numbers)


def learning(s):
    """Whether the methods learned the new text at all."""
    changes = {m.label: s.loss_change(m.name) for m in s.methods}
    idle = [label for label, (start, end, *_) in changes.items() if not end < start - 0.02]
    told = []
    for label, (start, end, before, after) in changes.items():
        old = "" if before is None else f" (old text {after - before:+.2f})"
        told.append(f"{label}: {start:.2f} → {end:.2f}{old}")
    claim = "Every method learned the new text"
    if idle:
        claim = f"{listed(idle)} hardly learned, so what follows says little about {'it' if len(idle) == 1 else 'them'}"
    detail = f"Held-out loss on it, {s.loss_unit}: {'; '.join(told)}."
    if s.diverged:
        detail += (
            f" Diverged: {listed(f'{s.labels.get(stage[0], stage[0])}, seed {stage[1]}' for stage in s.diverged)}."
        )
    numbers = {f"{label}: change of loss": end - start for label, (start, end, *_) in changes.items()}
    return Finding("learning", claim, detail, OURS, None, numbers)


def learning_rates(s):
    """Whether another learning rate of the sweep did better; a loss may be NaN or infinite there."""
    if not s.swept:
        return None
    told, elsewhere = [], []
    for m in s.methods:
        if losses := s.swept.get(m.name):
            row = ", ".join(f"{losses[rate]:.3f} at {rate:.2g}" for rate in sorted(losses))
            told.append(f"{m.label}: {row}")
            if _elsewhere(s, m):
                elsewhere.append(m.label)
    if not told:
        return None
    claim = "Every method ran at the best of the learning rates tried"
    if elsewhere:
        claim = f"{listed(elsewhere)} did better at another learning rate than the study's"
    detail = f"Held-out loss on the new text, {s.loss_unit}, one seed. {'; '.join(told)}."
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


def _elsewhere(s, m):
    """Whether a learning rate other than the method's own did best in its sweep; False without one."""
    finite = {rate: loss for rate, loss in s.swept.get(m.name, {}).items() if isfinite(loss)}
    return bool(finite) and min(finite, key=finite.get) != m.learning_rate
