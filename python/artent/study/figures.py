"""The charts of a study as plain values, one description for the page and for PNG files.

A description is what ``assets/charts.js`` and ``artent.plots.chart`` draw: lines over x, or dots in named rows.
Colours are names: ``m0``, ``m1``, … for the methods in order, ``ink``, ``null``, ``other``.
"""

from __future__ import annotations

from math import isfinite
from statistics import fmean

import torch

from artent.study import nohair

__all__ = ["charts", "colour", "module_label"]

DASHES = ("7 4", "2 4", "9 3 2 3", "4 2")


def charts(s):
    """Every fixed chart of a :class:`~artent.study.summary.Summary`, by id."""
    made = {
        "growth": _growth(s),
        "exponents": _exponents(s),
        "hair-updates": _hair_updates(s),
        "hair-attention": _hair_attention(s),
        "loss-new": _losses(s, "new", "the new text"),
        "loss-old": _losses(s, "old", "the old text"),
        "steps-cut": _over_steps(s, "cut_entropy", "S at the cut, nats"),
        "steps-valley": _over_steps(s, "valley_depth", "valley depth, nats"),
        "steps-external": _external_over_steps(s),
        "distances": _distances(s),
    }
    made |= {"ratios": _ratios(s), "sweep": _sweep(s)}
    return {name: chart for name, chart in made.items() if chart is not None}


def module_label(name):
    """``model.layers.3.self_attn.q_proj`` → ``layer 3, W_Q``."""
    parts = name.split(".")
    layer = next((part for part in parts if part.isdecimal()), "")
    return f"layer {layer}, W_{parts[-1].removesuffix('_proj').upper()}"


def colour(s, method):
    return f"m{[m.name for m in s.methods].index(method) % 6}"


def _growth(s):
    lengths = list(s.config.lengths)
    series = [_line("ln T, the most there can be", "ink", lengths, torch.tensor(lengths).log().tolist(), width=1)]
    for dash, (name, values) in zip(DASHES, s.growth_nulls.items()):
        series.append(_line(name, "null", lengths, values, dash=dash, width=1.5))
    untrained = s.s_ext["untrained"].mean((1, 2, 3)).tolist()
    series.append(_line("untrained model", "other", lengths, untrained, dash="7 4"))
    for m in s.methods:
        mean = torch.stack([s.s_ext[(m.name, seed)] for seed in s.seeds(m.name)]).mean((0, 2, 3, 4))
        series.append(_line(m.label, colour(s, m.name), lengths, mean.tolist(), dots=True))
    per_text = s.s_ext["base"].mean((1, 3))  # (lengths, texts)
    series.append(_line("base model", "ink", lengths, per_text.mean(1).tolist(), width=2.5, dots=True))
    band = {
        "color": "ink",
        "points": list(map(list, zip(lengths, per_text.amin(1).tolist(), per_text.amax(1).tolist()))),
    }
    return {
        "type": "lines",
        "label": "S_ext against the length T: base model, fine-tuned models, untrained model and nulls.",
        "height": 400,
        "x": {"title": "T, tokens (logarithmic)", "short": "T =", "kind": "log", "ticks": lengths},
        "y": {"title": "S_ext, nats, mean over heads", "min": 0},
        "series": series,
        "bands": [band],
        "legend": True,
    }


def _exponents(s):
    def row(name, color, fit):
        heads = torch.tensor(fit.get("head_c", [])).flatten().tolist()
        return {"name": name, "color": color, "value": fit["c"], "interval": fit["interval"], "points": heads}

    rows = [row("base model", "ink", s.fits["base"])]
    rows += [
        row(f"{s.labels[m]}, seed {seed}", colour(s, m), s.fits[(m, seed)]) for m in s.labels for seed in s.seeds(m)
    ]
    rows += [row("untrained model", "other", s.fits["untrained"])]
    rows += [row(name, "null", s.fits[name]) for name in s.growth_nulls]
    reach = [x for r in rows for x in (*r["points"], *r["interval"])]
    return {
        "type": "dots",
        "label": "Exponent c of S_ext = c ln T + b for every model and null, with 95 % intervals over texts.",
        "x": {"title": "c", "min": min(-0.05, *reach), "max": max(1.05, *reach), "ticks": [0, 0.25, 0.5, 0.75, 1]},
        "refs": [{"x": 0, "label": "area law"}, {"x": 1, "label": "volume law"}],
        "rows": rows,
    }


def _hair_updates(s):
    modules = sorted(s.profiles[s.runs[0]])
    values = {run: [float(s.last(run, m).cut_entropy) for m in modules] for run in s.runs}
    label = "Entropy at the cut of every module's update"
    return _strip(s, values, "S at the cut, nats", "module, in layer order", label)


def _hair_attention(s):
    order = s.s_ext["base"][-1].mean(1).flatten().argsort()  # (layers, texts, heads): the mean over texts
    values = {run: s.s_ext[run][-1].mean(1).flatten()[order].tolist() for run in s.runs}
    title = "head, by the base model's S_ext"
    return _strip(s, values, f"S_ext at T = {s.config.lengths[-1]}, nats", title, "S_ext of every head")


def _strip(s, values, y, x, label):
    series = []
    for i, (method, seed) in enumerate(s.runs):
        points = values[(method, seed)]
        name = f"{s.labels[method]}, seed {seed}"
        style = {"width": 0, "dots": True, "shift": i - (len(s.runs) - 1) / 2}  # a pixel apart, none hides another
        series.append(_line(name, colour(s, method), range(1, len(points) + 1), points, **style))
    return {
        "type": "lines",
        "label": f"{label}, every run over the others: apart by colour means that methods tell.",
        "x": {"title": x, "short": x.split(",")[0]},
        "y": {"title": y, "min": 0},
        "series": series,
    }


def _losses(s, text, name):
    return _runs_over_steps(
        s,
        lambda run: s.losses[run][text],
        f"loss on {name}, nats a byte",
        f"Held-out loss on {name} over steps, by method.",
        low=None,
        digits=3,
    )


def _sweep(s):
    """Held-out loss against the learning rate, a line a method; None without a sweep."""
    series = []
    for m in s.methods:
        points = sorted([rate, loss] for rate, loss in s.swept[m.name].items() if isfinite(loss))
        series.append({"name": m.label, "color": colour(s, m.name), "points": points, "width": 2.25, "dots": True})
    rates = [rate for one in series for rate, _ in one["points"]]
    if not rates:
        return None
    ticks = [digit * 10.0**power for power in range(-9, 3) for digit in (1, 3)]
    return {
        "type": "lines",
        "label": "Held-out loss on the new text at the end against the learning rate, by method.",
        "x": {
            "title": "learning rate (logarithmic)",
            "short": "rate",
            "kind": "log",
            "ticks": [tick for tick in ticks if 0.99 * min(rates) <= tick <= 1.01 * max(rates)],
        },
        "y": {"title": "loss on the new text, nats a byte", "digits": 3},
        "series": series,
    }


def _over_steps(s, quantity, title):
    def points(run):
        steps = sorted({step for module in s.profiles[run].values() for step in module})
        return [
            (step, fmean(float(getattr(m[step], quantity)) for m in s.profiles[run].values() if step in m))
            for step in steps
        ]

    return _runs_over_steps(s, points, title, f"{title}, mean over modules, over steps, by method.")


def _external_over_steps(s):
    title = f"S_ext at T = {s.step_length}, nats"
    return _runs_over_steps(s, lambda run: s.over_steps[run], title, f"{title}, over steps, by method.", low=None)


def _runs_over_steps(s, points, title, label, low=0, digits=None):
    """A line a method, the mean over its seeds, with the seeds behind it."""
    series = []
    for m in s.methods:
        runs = [points((m.name, seed)) for seed in s.seeds(m.name)]
        color = colour(s, m.name)
        for run in runs if len(runs) > 1 else ():
            series.append({"name": "", "color": color, "points": run, "width": 1.5, "faint": True})
        mean = [(at[0][0], fmean(value for _, value in at)) for at in zip(*runs)]
        series.append({"name": m.label, "color": color, "points": mean, "width": 2.25, "dots": True})
    y = {"title": title, "min": low, "digits": digits}
    return {
        "type": "lines",
        "label": label,
        "x": {"title": "step", "ticks": [step for step, _ in mean]},
        "y": {key: value for key, value in y.items() if value is not None},
        "series": series,
    }


def _ratios(s):
    attention, updates = nohair.method_seed_ratio(s.head_runs()), s.module_ratio()
    if attention is None or updates is None:
        return None
    rows = [
        {"name": f"{name} ({len(r)} {units})", "color": color, "value": r.median().item(), "points": r.tolist()}
        for name, units, color, (r, *_) in (
            ("updates", "modules", "ink", updates),
            ("attention", "heads", "ink", attention),
        )
    ]
    reach = [p for row in rows for p in row["points"]]
    low, high = min(0.5, *reach) / 1.1, max(2.0, *reach) * 1.1
    return {
        "type": "dots",
        "label": "Difference between methods as a multiple of the difference between seeds, updates and attention.",
        "x": {
            "title": "between methods ÷ between seeds (logarithmic)",
            "kind": "log",
            "min": low,
            "max": high,
            "ticks": [t for t in (0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if low <= t <= high],
        },
        "refs": [{"x": 1, "label": "as seeds differ"}],
        "rows": rows,
    }


def _distances(s):
    """How far apart models' S_ext are, head by head: the scale on which the no-hair ratio is to be read."""
    at_full = {model: s_ext[-1].transpose(1, 2).flatten(0, 1) for model, s_ext in s.s_ext.items()}
    rows = []
    ratio = nohair.method_seed_ratio(s.head_runs())
    if ratio is not None:
        rows += [("two seeds", "ink", ratio[2]), ("two methods", "ink", ratio[1])]
    for m in s.methods:
        each = [nohair.rms_change(at_full[(m.name, seed)], at_full["base"]) for seed in s.seeds(m.name)]
        rows.append((f"{m.label} and base", colour(s, m.name), torch.stack(each).mean(0)))
    rows.append(("untrained and base", "other", nohair.rms_change(at_full["untrained"], at_full["base"])))
    rows = [{"name": n, "color": c, "value": v.median().item(), "points": v.tolist()} for n, c, v in rows]
    return {
        "type": "dots",
        "label": "Differences of S_ext between models, root mean square over texts, every head.",
        "x": {
            "title": "rms difference of a head's S_ext, nats",
            "min": 0,
            "max": max(p for row in rows for p in row["points"]),
        },
        "rows": rows,
    }


def _line(name, color, x, y, **style):
    return {"name": name, "color": color, "points": list(map(list, zip(x, y))), **style}
