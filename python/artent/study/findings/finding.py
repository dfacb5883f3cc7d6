"""A finding: a claim, where it stands, and the numbers behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean

from artent.study.analysis.sensitivity import left_out
from artent.study.analysis.statistics import interval

__all__ = [
    "FAILS",
    "FAULT",
    "HOLDS",
    "OPEN",
    "OURS",
    "Finding",
    "broken_runs",
    "few_of",
    "few_seeds",
    "hardly_learned",
    "listed",
    "of_kind",
    "over_seeds",
    "per_seed",
    "sentence",
    "setting",
    "unlearned",
    "value_of",
]

HOLDS, FAILS, OPEN, OURS, FAULT = "holds", "does not hold", "not enough data", "measured here", "fault"
HARDLY = 0.02  # nats a token: a held-out loss that falls by less is no learning


@dataclass(frozen=True)
class Finding:
    """What a study found about one question. Every word of it is chosen by the numbers.

    Attributes:
        key: of the question, the same in every study.
        claim: a sentence.
        detail: the statistics behind it, a sentence or two.
        standing: "holds", "does not hold" or "not enough data" of what the paper reports; "measured here" of what it
            does not; "fault" of what cannot be.
        paper: what arXiv 2601.06788 reports, in this project's words; None where the question is ours.
        numbers: for a table; scalars, and [value, low, high] where there is an interval, None an end not known.
    """

    key: str
    claim: str
    detail: str
    standing: str
    paper: str | None = None
    numbers: dict = field(default_factory=dict)

    def __post_init__(self):
        for key in ("claim", "detail"):  # a minus, as it is printed
            object.__setattr__(self, key, re.sub(r"(?<![\w.-])-(?=\d)", "−", getattr(self, key)))


def listed(labels):
    """The labels as words: a, b and c."""
    labels = list(labels)
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]


def few_seeds(s, methods):
    """Why these methods give no verdict, a sentence; None where all have the seeds that one takes."""
    need = s.config.judge.seeds
    have = {m.label: len(s.seeds(m.name)) for m in methods}
    short = {label: n for label, n in have.items() if n < need}
    if not short:
        return None
    told = listed(f"{label} has {n}" for label, n in short.items())
    if len(short) == len(have) and len(set(short.values())) == 1:
        told = f"there {'is' if 1 in short.values() else 'are'} {min(short.values())}"
    lost = sum(len(stage) == 2 and stage[0] in {m.name for m in methods} for stage in s.diverged)
    more = " Another seed in place of one that diverged would do." if lost else ""
    return f"A verdict takes {need} seeds a method; {told}.{more}"


def few_of(s, have):
    """Why a sweep of a method of so many seeds gives no verdict, a sentence."""
    there = f"there {'is' if have == 1 else 'are'} {have}"
    return f"A verdict takes {s.config.judge.seeds} seeds of the swept method; {there}."


def hardly_learned(s, methods):
    """Labels of the methods whose held-out loss did not fall by more than ``HARDLY``."""
    changes = {m.label: s.loss_change(m.name)[:2] for m in methods}
    return [label for label, (start, end) in changes.items() if start is not None and not end < start - HARDLY]


def unlearned(s, methods):
    """Why these methods give no verdict though they have the seeds, a sentence; None where all learned."""
    if not (idle := hardly_learned(s, methods)):
        return None
    return sentence(f"{listed(idle)} hardly learned: what did not learn moves nothing, which says nothing.")


def broken_runs(s, names):
    """Which runs of the sweeps of these methods count for nothing, a sentence with a blank before it, or nothing."""
    labels = {m.name: m.label for m in s.config.methods}
    told = [
        f"{setting(run.vary)} {value_of(run.value)} of {labels[run.of]}, seed {run.seed}, "
        + (f"its loss rose from {run.start:.2f} to {run.loss:.2f}" if isfinite(run.loss) else "diverged")
        for run in left_out(s)
        if run.of in names
    ]
    return f" Left out: {'; '.join(told)}." if told else ""


def sentence(words):
    """With a capital letter; what begins with a symbol stays."""
    return words[:1].upper() + words[1:]


def of_kind(s, kind):
    """The methods of a kind that have a finished run."""
    return [m for m in s.methods if m.kind == kind]


def over_seeds(s, method, quantity):
    """A profile's attribute: mean over modules, with its interval over seeds."""
    return interval(per_seed(s, method, quantity), s.config.judge.confidence)


def per_seed(s, method, quantity):
    """A profile's attribute at the last step of every seed, mean over modules."""
    runs = [s.last_profiles((method.name, seed)) for seed in s.seeds(method.name)]
    return [fmean(float(getattr(p, quantity)) for p in run.values()) for run in runs]


def setting(vary):
    """A hyper-parameter as readers know it."""
    return {"learning_rate": "learning rate", "init": "initialisation", "chi": "χ", "alpha": "α"}.get(vary, vary)


def value_of(value):
    """A hyper-parameter's value as readers know it."""
    if isinstance(value, (bool, str)):
        return "the default" if value is True else str(value)
    return f"{value:.3g}"
