"""The no-hair finding: updates differ between methods, attention does not, and the test would have told."""

from __future__ import annotations

from itertools import combinations
from math import isfinite

from artent.study.analysis import nohair, sampled
from artent.study.findings.finding import FAILS, HOLDS, OPEN, Finding, few_seeds, listed, unlearned

__all__ = ["no_hair"]

ALIKE = 0.05  # nats rms over bonds: profiles nearer than this do not differ
POWER = ("untrained", "lora-10x")  # the controls that the test has to tell
PAPER = "No hair: methods leave different updates, but attention does not tell which of them it was."


def no_hair(s):
    """Holds where attention is equivalent for all pairs of methods, updates differ, and the controls are told."""
    names = [m.name for m in s.methods]
    if len(names) < 2:
        return Finding("no-hair", "No comparison of methods", "It takes two methods.", OPEN, PAPER)
    judge, labels = s.config.judge, s.labels
    margin, confidence, alpha = judge.margin, judge.confidence, 1 - judge.confidence
    matched = nohair.at_matched_loss(s)
    families = 1 if isinstance(matched, str) else 2  # at matched steps, and at matched loss
    attention = nohair.attention_pairs(nohair.final_attention(s), names, margin, confidence, families)
    profiles = nohair.final_profiles(s)
    updates = nohair.updates_differ(profiles, names)
    controls = nohair.control_differences(s, margin, confidence)
    numbers = _numbers(s, attention, updates, controls)
    words = [_ratios(s, numbers)]
    if not attention:
        return Finding("no-hair", "No comparison of methods", "No two methods share a seed.", OPEN, PAPER)
    worst = max(attention, key=lambda pair: pair.excess.high)
    sure = f"{100 * confidence:.0f} % confidence"
    if isfinite(worst.excess.high):
        most = max(pair.excess.mean for pair in attention)
        words.append(
            f"S_ext of one method in excess of another beyond what seeds differ, nats rms over heads: {most:.3f}, "
            f"below {worst.excess.high:.3f} at {sure} ({labels[worst.a]}, {labels[worst.b]}); margin {margin:g}."
        )
    else:
        most = max(pair.between for pair in attention)
        words.append(f"S_ext differs by at most {most:.3f} nats rms over heads between methods at equal seeds.")
    if "all" in updates:
        words.append(f"That updates differ: p = {updates['all']:.2g} (permutations).")
    if isinstance(matched, str):
        words.append(f"Not compared at matched loss: {matched}.")
        later = []
    else:
        later = nohair.attention_pairs(matched[0], names, margin, confidence, families)
        bound = max(pair.excess.high for pair in later)
        if isfinite(bound):
            words.append(f"At a matched held-out loss of {matched[2]:.3f}: below {bound:.3f} nats.")
        if len(matched[1]) == len(s.runs) and (p := nohair.updates_differ(matched[1], names).get("all")) is not None:
            words[-1] = f"{words[-1][:-1]}; that updates differ there: p = {p:.2g}."
            numbers["updates differ, all methods, matched loss, p"] = p
        numbers["smallest margin that the data support, matched loss"] = _finite(bound)
    told = [name for name, test in controls.items() if test.beyond]
    if controls:
        words.append(
            "Controls in excess of their reference: "
            + ", ".join(
                f"{labels[name]} {test.mean:.2f}{'' if name in told or not isfinite(test.high) else ' (not told)'}"
                for name, test in controls.items()
            )
            + "."
        )
    words += _from_samples(s, names, controls, numbers)
    beyond = [pair for pair in (*attention, *later) if pair.excess.beyond]
    same = all(pair.excess.equivalent for pair in (*attention, *later))
    differ = updates.get("all", 1.0) < alpha
    alike = not differ and nohair.updates_alike(profiles, names, ALIKE, confidence)
    missing = [name for name in POWER if name not in controls]
    blind = [name for name in POWER if name in controls and name not in told]
    if few := few_seeds(s, s.methods):
        claim, standing, reason = _so_far(s, numbers), OPEN, few
    elif beyond:
        which = listed(dict.fromkeys(f"{labels[pair.a]} from {labels[pair.b]}" for pair in beyond))
        claim, standing, reason = f"Attention tells methods apart: {which}", FAILS, ""
    elif alike:
        claim, standing, reason = "Updates do not tell methods apart, so there is no hair to lose", FAILS, ""
    elif not differ:
        claim, standing = "Whether updates tell methods apart is not settled", OPEN
        reason = f"Their profiles neither differ by more than seeds nor agree to within {ALIKE:g} nats."
    elif not same:
        least = max(pair.excess.supports for pair in (*attention, *later))
        claim, standing = "Attention is neither equivalent nor different between methods", OPEN
        reason = f"Equivalence would take a margin of {least:.2f} nats."
        if not isfinite(least):
            reason = "Its error is estimated from 3 seeds a method or more."
    elif missing:
        claim, standing = "Methods tell in the updates and not in attention, by a test of unknown power", OPEN
        reason = f"Without {listed(labels[name] for name in missing)} nothing shows that it can tell: add to controls."
    elif blind:
        claim, standing = "Methods do not tell in attention, by a test that does not tell broken models", OPEN
        reason = f"{listed(labels[name] for name in blind)} was not told."
    elif idle := unlearned(s, s.methods):
        claim, standing, reason = "Methods do not tell in attention, which had little to learn", OPEN, idle
    elif isinstance(matched, str):
        claim, standing = "Methods tell in the updates and not in attention, at matched steps", OPEN
        reason = "A verdict takes matched loss as well."
    else:
        claim, standing, reason = "Methods tell in the updates and not in attention", HOLDS, ""
    return Finding("no-hair", claim, " ".join([*words, reason]).strip(), standing, PAPER, numbers)


def _numbers(s, attention, updates, controls):
    labels, numbers = s.labels, {"margin, nats": s.config.judge.margin}
    for pair in attention:
        name = f"{labels[pair.a]} – {labels[pair.b]}"
        numbers[f"{name}: excess"] = [pair.excess.mean, pair.excess.low, _finite(pair.excess.high)]
        numbers[f"{name}: equivalence p"] = pair.excess.p
        numbers[f"{name}: S_ext rms"] = pair.between
        numbers[f"{name}: S_ext rms between seeds"] = pair.within
        if (p := updates.get((pair.a, pair.b))) is not None:
            numbers[f"{name}: updates differ, p"] = p
    if attention:
        numbers["smallest margin that the data support"] = _finite(max(pair.excess.supports for pair in attention))
    if "all" in updates:
        numbers["updates differ, all methods, p"] = updates["all"]
    for name, test in controls.items():
        numbers[f"control {labels[name]}: excess"] = [test.mean, test.low, _finite(test.high)]
    return numbers


def _ratios(s, numbers):
    """r of attention and of updates, in words; both go into ``numbers``."""
    if (found := nohair.ratios(s)) is None:
        return "Two seeds a method would tell how far methods differ beside seeds."
    r_ext, r_int = found.r_ext, found.r_int
    numbers |= {"r of attention, median over heads": r_ext, "r of updates, median over modules": r_int}
    return (
        f"Between methods, updates differ {r_int:.1f} times as much as between seeds; attention {r_ext:.1f} times "
        "(medians over modules and heads, at matched steps)."
    )


def _so_far(s, numbers):
    r_ext, r_int = (
        numbers.get(f"r of {of}") for of in ("attention, median over heads", "updates, median over modules")
    )
    if r_ext is None:
        return "One seed a method does not tell methods from seeds"
    if r_int > 2 > r_ext:
        return "So far, methods tell in the updates more than in attention"
    if r_ext >= 2:
        return "So far, methods tell in attention" + (" and in the updates" if r_int >= 2 else ", not in the updates")
    return "So far, methods tell no more than seeds do"


def _from_samples(s, names, controls, numbers):
    """Total variation of rows and change of outputs, in words: methods against seeds, controls beside them."""
    pairs = list(combinations(names, 2))
    of = s.reference.name if s.reference else None
    broken = [(control, of) for control in controls if control != "untrained"]
    found = sampled.sampled(s, pairs + broken, s.config.judge.confidence)
    methods = [found[pair] for pair in pairs if pair in found]
    seeds = [found[name] for name in names if name in found]
    if not methods:
        return []
    told = []
    for what, name in (
        ("rows", "total variation of attention rows"),
        ("outputs", "relative change of attention outputs"),
    ):
        between = sum(each[what].value for each in methods) / len(methods)
        numbers[f"{name}, between methods"] = between
        text = f"{between:.3f} between methods"
        if seeds:
            within = sum(each[what].value for each in seeds) / len(seeds)
            numbers[f"{name}, between seeds"] = within
            text += f", {within:.3f} between seeds"
        for pair in broken:
            if pair in found:
                numbers[f"{name}, {s.labels[pair[0]]}"] = found[pair][what].numbers
        told.append(f"{name[0].upper()}{name[1:]}: {text}.")
    for pair in pairs:
        if pair in found:
            for what in ("rows", "outputs"):
                label = f"{s.labels[pair[0]]} – {s.labels[pair[1]]}: {what}"
                numbers[label] = found[pair][what].numbers
    return told


def _finite(x):
    return x if isfinite(x) else None
