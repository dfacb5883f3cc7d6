"""Charts of the no-hair test: methods against seeds, in updates and in attention, and its controls."""

from __future__ import annotations

from math import isfinite
from statistics import median

import torch

from artent.study.analysis import nohair
from artent.study.report.view import span

__all__ = ["charts"]


def charts(view):
    made = {
        "hair-updates": _strip(view, *_updates(view), "S of ΔW at the cut, nats", "module, in layer order"),
        "ratios": _ratios(view),
        "distances": _distances(view),
        "equivalence": _equivalence(view),
    }
    heads = _attention(view)
    if heads:
        title = f"S_ext at T = {view.s.lengths[-1]}, nats"
        made["hair-attention"] = _strip(view, *heads, title, "head, in the base's order")
    return made


def _updates(view):
    modules = [module for layers in view.matrices.values() for module in layers.values()]
    return {run: [float(view.s.last(run, module).cut_entropy) for module in modules] for run in view.s.runs}, modules


def _attention(view):
    runs = [run for run in view.s.runs if run in view.s.s_ext]
    if not runs:
        return None
    order = view.heads("base" if "base" in view.s.s_ext else runs[0]).flatten().argsort()
    values = {run: view.heads(run).flatten()[order].tolist() for run in runs}
    return values, order.tolist()


def _strip(view, values, units, y, x):
    """Every run over the others, a mark a run and unit: apart by colour means that methods tell."""
    series = []
    for i, m in enumerate(view.methods):
        runs = [values[stage] for stage in view.stages(m) if stage in values]
        if not runs:
            continue
        style = {key: view.style[m.name][key] for key in ("color", "marker")}
        points = [[at + 1, v] for run in runs for at, v in enumerate(run)]
        shift = (i - (len(view.methods) - 1) / 2) * 2
        series.append({"name": m.label, **style, "points": points, "width": 0, "shift": shift})
    count = max(len(one["points"]) for one in series)
    return {
        "type": "lines",
        "legend": True,
        "small": count > 300,
        "label": f"{y}: every run of every method over the others.",
        "x": {"title": x, "short": x.split(",")[0]},
        "y": {"title": y},
        "series": series,
    }


def _rms(pairs):
    """Root mean square over samples and pairs of runs, a value a unit; each run (units, samples)."""
    return torch.stack([(a - b).square().nanmean(-1) for a, b in pairs]).mean(0).sqrt()


def _differences(runs):
    """(between methods, between seeds), rms of every unit; None where there are no such pairs."""
    found = nohair.method_seed_ratio(runs)
    return None if found is None else found[1:]


def _ratios(view):
    found = nohair.ratios(view.s)
    if found is None:
        return None
    rows = [
        {"name": name, "color": "ink", "value": middle, "points": each}
        for name, middle, each in (
            ("updates, r_int", found.r_int, found.updates),
            ("attention, r_ext", found.r_ext, found.attention),
        )
    ]
    low, high = span(p for row in rows for p in row["points"])
    low, high = min(0.5, low) / 1.1, max(2.0, high) * 1.1
    return {
        "type": "dots",
        "label": "Difference between methods as a multiple of the difference between seeds, updates and attention.",
        "x": {
            "title": "between methods ÷ between seeds (logarithmic)",
            "kind": "log",
            "min": low,
            "max": high,
            "points": "modules or heads",
        },
        "refs": [{"x": 1, "label": "as seeds differ"}],
        "rows": rows,
    }


def _distances(view):
    """How far models' S_ext are apart, head by head: methods, seeds and the controls that a test has to tell."""
    s = view.s
    at = {key: value[-1].transpose(1, 2).flatten(0, 1) for key, value in s.s_ext.items()}
    rows = []
    pairs = _differences({run: at[run] for run in s.runs if run in at})
    if pairs is not None:
        rows += [("two methods", {"color": "ink"}, pairs[0]), ("two seeds of one method", {"color": "ink"}, pairs[1])]
    if "base" in at:
        for m in view.methods:
            style = {key: view.style[m.name][key] for key in ("color", "marker")}
            stages = [stage for stage in view.stages(m) if stage in at]
            if stages:
                rows.append((f"{m.label} and base", style, _rms([(at[stage], at["base"]) for stage in stages])))
        for name, runs in _controls(view, at).items():
            rows.append(
                (f"{name} and base", {"color": "other", "marker": "diamond"}, _rms([(run, at["base"]) for run in runs]))
            )
    rows = [(name, style, [v for v in each.tolist() if isfinite(v)]) for name, style, each in rows]
    rows = [{"name": n, **style, "value": median(v), "points": v} for n, style, v in rows if v]
    if not rows:
        return None
    margin = s.config.judge.margin
    return {
        "type": "dots",
        "label": "Differences of S_ext between models, root mean square over texts, every head; controls below.",
        "x": {
            "title": "rms difference of a head's S_ext, nats",
            "min": 0,
            "max": max(1.2 * margin, *(p for row in rows for p in row["points"])),
            "digits": 3,
            "points": "heads",
        },
        "refs": [{"x": margin, "label": f"margin {margin:g}"}],
        "region": [0, margin],
        "rows": rows,
    }


def _controls(view, at):
    """``{words: [(heads, texts) a seed]}`` of every control there is."""
    s, found = view.s, {}
    if "untrained" in at:
        found[s.labels["untrained"]] = [at["untrained"]]
    for name in ("lora-10x", "negated", "haar", "random"):
        runs = [at[key] for key in at if not isinstance(key, str) and key[0] == name]
        runs += [c.s_ext.transpose(1, 2).flatten(0, 1) for key, c in s.controls.items() if key[0] == name]
        if runs:
            found[s.labels[name]] = runs
    return found


def _equivalence(view):
    """The test itself: what methods differ beyond seeds, pair by pair, and the same of controls, with intervals."""
    s, judge = view.s, view.s.config.judge
    names = [m.name for m in view.methods]
    pairs = nohair.attention_pairs(nohair.final_attention(s), names, judge.margin, judge.confidence)
    rows = [(f"{s.labels[p.a]} and {s.labels[p.b]}", "ink", "circle", p.excess) for p in pairs]
    controls = nohair.control_differences(s, judge.margin, judge.confidence)
    rows += [(f"control: {s.labels[name]}", "other", "diamond", each) for name, each in controls.items()]
    rows = [
        {"name": name, "color": color, "marker": marker, "value": each.mean, "interval": [each.low, each.high]}
        for name, color, marker, each in rows
        if isfinite(each.high)
    ]
    if not rows:
        return None
    high = max(1.2 * judge.margin, *(row["interval"][1] for row in rows))
    return {
        "type": "dots",
        "label": "Excess of S_ext between methods over that between seeds, with intervals; controls below.",
        "x": {"title": "excess over seeds, rms over heads, nats", "min": 0, "max": 1.03 * high, "digits": 3},
        "refs": [{"x": judge.margin, "label": f"margin {judge.margin:g}"}],
        "region": [0, judge.margin],
        "rows": rows,
    }
