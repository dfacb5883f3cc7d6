"""Attention rows and attention outputs of runs beside each other, from their sample files (docs/math.md §5)."""

from __future__ import annotations

from itertools import combinations
from math import inf
from statistics import fmean

from artent.study.analysis.statistics import Estimate, interval

__all__ = ["sampled"]


def sampled(s, pairs, confidence: float) -> dict:
    """Total variation of attention rows and relative change of attention outputs between runs, from the sample files.

    ``pairs`` of methods or controls are compared at equal seeds, ``{(a, b): {"rows": Estimate, "outputs": Estimate}}``
    over seeds; beside them ``{method: …}`` of pairs of its seeds. Rows: ½ Σ|p − q|, means over everything. Outputs: ‖x
    − y‖ over the mean of the two norms. Models without a file are left out.
    """
    paths = {model: s.sample_path(model) for model in s.sample_files}
    paths = {model: path for model, path in paths.items() if path is not None and isinstance(model, tuple)}
    names = dict.fromkeys(name for pair in pairs for name in pair)
    seeds = {name: sorted(seed for other, seed in paths if other == name) for name in names}
    wanted = {(a, b): [((a, k), (b, k)) for k in seeds[a] if k in seeds[b]] for a, b in pairs}
    wanted |= {m: [((m, j), (m, k)) for j, k in combinations(seeds[m], 2)] for m in names}
    wanted = {key: couples for key, couples in wanted.items() if couples}
    if not wanted:
        return {}
    needed = {run for couples in wanted.values() for couple in couples for run in couple}
    found = _compare_files({run: paths[run] for run in needed}, {c for couples in wanted.values() for c in couples})
    return {
        key: {what: _of_couples([found[c][what] for c in couples], key, confidence) for what in ("rows", "outputs")}
        for key, couples in wanted.items()
    }


def _of_couples(values, key, confidence) -> Estimate:
    """Over seeds with Student's interval; couples of seeds are not independent, so theirs has none."""
    return interval(values, confidence) if isinstance(key, tuple) else Estimate(fmean(values), -inf, inf, len(values))


def _compare_files(paths, couples):
    """{couple: {"rows", "outputs"}}, a layer of all files in memory at a time."""
    from safetensors import safe_open

    opened = {run: safe_open(path, "pt") for run, path in paths.items()}
    layers = {handle.get_slice("rows").get_shape()[0] for handle in opened.values()}
    sums = {couple: {"rows": 0.0, "outputs": 0.0} for couple in couples}
    for layer in range(min(layers)):
        rows, outputs = (
            {run: handle.get_slice(what)[layer].float() for run, handle in opened.items()}
            for what in ("rows", "outputs")
        )
        for (a, b), total in sums.items():
            total["rows"] += (rows[a] - rows[b]).abs().sum(-1).mean().item() / 2 / min(layers)
            norms = (outputs[a].norm() + outputs[b].norm()).item() / 2
            total["outputs"] += (outputs[a] - outputs[b]).norm().item() / max(norms, 1e-300) / min(layers)
    return sums
