"""What the figures of a study share: how a method is drawn, which modules are one matrix's layers, means over them."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from math import nan
from statistics import fmean

import torch

from artent.study.analysis import laws

__all__ = ["QUANTITIES", "View", "line", "matrix_of", "module_label", "read", "root_mean_square", "span"]

# What can be read off a profile: its name here, what a control calls it, what an axis does.
QUANTITIES = {
    "valley_depth": ("valley depth", "valley depth, nats"),
    "cut_entropy": ("S at the cut", "S at the row|column cut, nats"),
    "effective_rank": ("effective rank", "effective rank, exp S at the cut"),
    "max_entropy": ("greatest S", "greatest S over the bonds, nats"),
    "slope": ("slope", "slope dS/d ln D on the rising side"),
}

# Three families that stay apart under every common colour blindness: blue, orange to brown, green. In each, lightness
# follows the rank, and the marker tells the family without a colour. From the first to the last: (light page, dark).
_RAMPS = {
    "full-ft": (("#0b559f", "#4a90d9"), ("#7db8f0", "#3f86cf")),
    "lora": (("#e08214", "#7a3200"), ("#b86a1c", "#ffd49a")),
    "mps": (("#1f9e77", "#0a4d38"), ("#23926e", "#9cebcd")),
}
_MARKERS = {"full-ft": "circle", "lora": "square", "mps": "triangle"}
_LIGHT = {"ink": "#1d2126", "null": "#767f88", "other": "#8f3fa8"}
_DARK = {"ink": "#e7e9ec", "null": "#909aa4", "other": "#d58cf0"}


def module_label(name):
    """``model.layers.3.self_attn.q_proj`` → ``layer 3, W_Q``."""
    matrix, layer = matrix_of(name)
    return f"layer {layer}, {matrix}" if layer is not None else matrix


def matrix_of(name):
    """(matrix as readers know it, layer or None): ``model.layers.3.self_attn.q_proj`` → ``("W_Q", 3)``."""
    parts = name.split(".")
    layer = next((int(part) for part in parts if part.isdecimal()), None)
    short = parts[-1].removesuffix("_proj")
    return (f"W_{short.upper()}" if len(short) == 1 else parts[-1]), layer


def read(profile, quantity):
    """One of ``QUANTITIES`` of a profile; NaN for the slope of one that rises over fewer than three bonds."""
    if quantity != "slope":
        return float(getattr(profile, quantity))
    found = laws.slope(profile)
    return nan if found is None else found


def line(name, color, x, y, **style):
    """A series of a line chart; ``style``: dash, width, marker, faint, band, tags, off."""
    return {"name": name, "color": color, "points": [list(point) for point in zip(x, y)], **style}


def span(values):
    """(least, greatest) of an iterable of numbers, finite ones only; (0, 1) without any."""
    finite = [v for v in values if v is not None and abs(v) < float("inf")]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def root_mean_square(values):
    """Of an iterable of numbers."""
    return fmean(v * v for v in values) ** 0.5


class View:
    """A Summary as figures see it.

    Attributes:
        s: the Summary. methods: its methods. style: ``{method name: {"color", "marker"}}``.
        palette: ``{colour name: (on a light page, on a dark one)}``.
        matrices: ``{matrix: {layer: module}}`` in order, of the modules that every run has.
    """

    def __init__(self, summary):
        self.s, self.methods = summary, summary.methods
        self.palette = {name: (_LIGHT[name], _DARK[name]) for name in _LIGHT}
        self.style = {}
        for i, m in enumerate(self.methods):
            kin = sorted((k for k in self.methods if k.kind == m.kind), key=lambda k: k.rank or 0)
            at = kin.index(m) / max(1, len(kin) - 1) if m.kind == "full-ft" or len(kin) > 1 else 0.4
            self.palette[f"m{i}"] = tuple(_mixed(*ramp, at) for ramp in _RAMPS[m.kind])
            self.style[m.name] = {"color": f"m{i}", "marker": _MARKERS[m.kind]}
            if m.kind == "mps" or (m.kind == "full-ft" and m.train == "targets"):
                self.style[m.name]["dash"] = "7 3"  # seen where it lies on LoRA of its rank, on full FT

    @cached_property
    def matrices(self):
        shared = set.intersection(*(set(self.s.profiles[run]) for run in self.s.runs))
        found = defaultdict(dict)
        for module in shared:
            matrix, layer = matrix_of(module)
            found[matrix][-1 if layer is None else layer] = module
        given = [matrix_of(target)[0] for target in self.s.config.measure.targets]
        order = sorted(found, key=lambda matrix: (given.index(matrix) if matrix in given else len(given), matrix))
        return {matrix: dict(sorted(found[matrix].items())) for matrix in order}

    @cached_property
    def steps(self):
        """Every step at which any run's updates were profiled."""
        return sorted({step for run in self.s.runs for module in self.s.profiles[run].values() for step in module})

    def stages(self, method):
        """The runs of a method, a stage a seed."""
        return [(method.name, seed) for seed in self.s.seeds(method.name)]

    def across_layers(self, stage, matrix, values):
        """Mean over layers of ``values(stage, module)``, each a list over the bonds; modules of the first's length."""
        rows = [values(stage, module) for module in self.matrices[matrix].values()]
        rows = [row for row in rows if row is not None]
        rows = [row for row in rows if len(row) == len(rows[0])]
        return torch.tensor(rows, dtype=torch.float64).mean(0).tolist() if rows else None

    def profile(self, method, matrix):
        """(mean, least, greatest) over seeds of the mean profile over layers at the last step, lists over the bonds."""
        rows = [self.across_layers(stage, matrix, self.last_entropy) for stage in self.stages(method)]
        S = torch.tensor([row for row in rows if row is not None], dtype=torch.float64)
        return S.mean(0).tolist(), S.amin(0).tolist(), S.amax(0).tolist()

    def null(self, method, matrix, kind):
        """The mean over layers and seeds of a null's line; None where it was not recorded."""

        def recorded(stage, module):
            return self.s.nulls.get(stage, {}).get(module, {}).get(kind)

        rows = [self.across_layers(stage, matrix, recorded) for stage in self.stages(method)]
        rows = [row for row in rows if row is not None]
        return torch.tensor(rows, dtype=torch.float64).mean(0).tolist() if rows else None

    def last_entropy(self, stage, module):
        return self.s.last(stage, module).entropy.tolist()

    def chain(self, matrix):
        """A profile of the matrix, for what all of them share: dims, cut, bonds."""
        return self.s.last(self.s.runs[0], next(iter(self.matrices[matrix].values())))

    def by_step(self, stage, quantity):
        """``[(step, mean over modules of a profile's attribute)]``; steps without an update are left out."""
        found = defaultdict(list)
        for steps in self.s.profiles[stage].values():
            for step, profile in steps.items():
                found[step].append(read(profile, quantity))
        return [(step, fmean(found[step])) for step in sorted(found)]

    def mean_last(self, stage, quantity):
        """Mean over modules of a profile's attribute at the last step, of one stage; None without profiles."""
        return fmean(read(p, quantity) for p in last.values()) if (last := self.s.last_profiles(stage)) else None

    def heads(self, model):
        """S_ext of every head at the longest length, mean over texts, (layers, heads)."""
        return self.s.s_ext[model][-1].nanmean(1)

    def models(self):
        """Every model with a growth record: (key, label), base first."""
        named = [("base", "base model")] + [
            ((m.name, seed), f"{m.label}, seed {seed}") for m in self.methods for seed in self.s.seeds(m.name)
        ]
        named += [("untrained", "untrained model")]
        return [(key, label) for key, label in named if key in self.s.s_ext]


def _mixed(start, end, share):
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (start, end)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends))
