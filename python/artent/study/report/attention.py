"""Charts of attention: its growth with T, the bonds of A, heads, steps."""

from __future__ import annotations

from math import log
from statistics import fmean

import torch

from artent import theory
from artent.study.analysis import laws
from artent.study.report import overview
from artent.study.report.updates import over_seeds
from artent.study.report.view import line, root_mean_square, span

__all__ = ["charts", "families"]

FORMS = {
    "calabrese-cardy": ("(c/3) ln[(N/π) sin(πl/N)] + s₀", "none"),
    "linear": ("volume law: linear in ln D", "7 4"),
    "flat": ("area law: flat", "2 3"),
}


def charts(view):
    growth = {key: value for key, value in overview.growth(view).items() if key != "group"}
    series = [{key: value for key, value in s.items() if key != "off"} for s in growth["series"]]
    made = {
        "growth": {**growth, "series": series, "legend": True, "height": 380},
        "exponents": _exponents(view),
        "attention-steps": _over_steps(view),
        "drift": _drift(view),
    }
    if view.s.chains:
        made |= {"chain": _chain(view), "chain-models": _chain_models(view), "mixture": _mixture(view)}
    return made


def families(view):
    return {"heads": _heads(view)}


def _exponents(view):
    """c of S_ext = c ln T + b, with its interval over texts; single heads where they were fitted."""
    s = view.s

    def row(name, fit, color, marker="circle"):
        interval = fit.get("interval") or (fit["c"], fit["c"])
        return {"name": name, "color": color, "marker": marker, "value": fit["c"], "interval": list(interval)} | (
            {"points": torch.tensor(fit["head_c"]).flatten().tolist()} if fit.get("head_c") else {}
        )

    rows = [row("base model", s.fits["base"], "ink", "diamond")] if "base" in s.fits else []
    for m in view.methods:
        style = {key: view.style[m.name][key] for key in ("color", "marker")}
        fits = [row(m.label, s.fits[stage], **style) for stage in view.stages(m) if stage in s.fits]
        if fits:  # one row for all seeds, its bar from the lowest end of their intervals to the highest
            ends = [end for each in fits for end in each["interval"]]
            points = [v for each in fits for v in each.get("points", ())]
            value = {"value": fmean(each["value"] for each in fits), "interval": [min(ends), max(ends)]}
            rows.append({**fits[0], **value, **({"points": points} if points else {})})
    rows += [row("untrained model", s.fits["untrained"], "other")] if "untrained" in s.fits else []
    rows += [row(name, s.fits[name], "null") for name in s.growth_nulls if name in s.fits]
    if not rows:
        return None
    low, high = span(x for r in rows for x in (r["value"], *r.get("points", ()), *r["interval"]))
    return {
        "type": "dots",
        "label": "Exponent c of S_ext = c ln T + b for every model and null, with intervals over texts.",
        "x": {"title": "c", "min": min(-0.05, low), "max": max(1.05, high), "ticks": [0, 0.5, 1], "points": "heads"},
        "refs": [{"x": 0, "label": "area law"}, {"x": laws.window_exponent(s), "label": "volume law at these T"}],
        "rows": rows,
    }


def _over_steps(view):
    """How far every run is from its first step, head by head, the margin beside it: what the verdict is made of."""
    series = []
    for m in view.methods:
        runs = [_moved(view.s.attention[stage]) for stage in view.stages(m) if view.s.attention.get(stage)]
        if len(runs) == len(view.stages(m)):
            series.append(over_seeds(view, m, runs, mean=root_mean_square))
    if not series or max(len(one["points"]) for one in series) < 2:
        return None
    margin, T = view.s.config.judge.margin, view.s.step_length
    return {
        "type": "lines",
        "legend": True,
        "label": f"Shift of S_ext at T = {T} since the first step, root mean square over heads, over the steps.",
        "x": {"title": "step", "ticks": sorted({x for one in series for x, _ in one["points"]})},
        "y": {"title": f"shift of S_ext at T = {T}, rms over heads, nats", "min": 0},
        "levels": [{"y": margin, "label": f"margin {margin:g}"}],
        "series": series,
    }


def _moved(steps):
    """[(step, rms over heads of S_ext less that of the first step, means over texts)]."""
    heads = {step: seen.s_ext.nanmean(1).flatten() for step, seen in sorted(steps.items())}
    first = heads[min(heads)]
    return [(step, (S - first).square().nanmean().sqrt().item()) for step, S in heads.items()]


def _drift(view):
    """Relative change of every head's row entropy against the base."""
    s, rows = view.s, []
    if "base" not in s.entropy:
        return None
    base = s.entropy["base"]
    for m in view.methods:
        runs = [
            ((s.entropy[stage] - base).abs() / base.abs().clamp_min(1e-12)).nanmean(1).flatten().mul(100).tolist()
            for stage in view.stages(m)
            if stage in s.entropy
        ]
        if runs:
            means = [fmean(run) for run in runs]
            style = {key: view.style[m.name][key] for key in ("color", "marker")}
            rows.append(
                {
                    "name": m.label,
                    **style,
                    "value": fmean(means),
                    "interval": [min(means), max(means)],
                    "points": [v for run in runs for v in run],
                }
            )
    high = span(v for r in rows for v in r["points"])[1]
    return rows and {
        "type": "dots",
        "label": "Relative change of the row entropy of every head against the base model.",
        "x": {
            "title": "change of a head's row entropy, % of the base's",
            "min": 0,
            "max": 1.03 * high,
            "digits": 1,
            "points": "heads and seeds",
        },
        "rows": rows,
    }


def _chain(view):
    """All bonds of the base's attention, with the three readings fitted."""
    chain = view.s.chains.get("base")
    if chain is None or len(chain.dims) < 5:
        return None
    heads = chain.entropy.flatten(0, 1)
    mean = heads.nanmean(0)
    bonds = list(range(1, len(chain.dims)))
    inner = torch.nan_to_num(heads).quantile(torch.tensor([0.1, 0.9], dtype=heads.dtype), 0)
    band = [list(each) for each in zip(bonds, *inner.tolist())]
    series = [line("base model, mean over heads", "ink", bonds, mean.tolist(), band=band, width=2.6, marker="diamond")]
    for name, fit in theory.fit_chain(mean, chain.dims).items():
        words, dash = FORMS[name]
        series.append(
            line(
                f"{words}, rms {fit.rms:.2f} nats",
                "other" if name == "calabrese-cardy" else "null",
                bonds,
                _form(name, fit, chain.dims),
                dash=dash,
                width=1.6,
            )
        )
    return {
        "type": "lines",
        "legend": True,
        "label": "Entropy of the base model's attention matrices at every bond, with three forms fitted.",
        "x": {"title": "bond l of A", "short": "bond"},
        "y": {"title": "S(l) of A, nats, mean over heads", "min": 0},
        "marks": [{"x": chain.cut, "label": "row|column cut"}],
        "series": series,
    }


def _form(name, fit, dims):
    """The values of a fitted form at every bond, as ``theory.fit_chain`` defines it."""
    from math import pi, prod, sin

    N, total, left, made = len(dims), prod(dims), 1, []
    for d in dims[:-1]:
        left *= d
        x = N * log(left) / log(total)
        value = {
            "calabrese-cardy": log(N / pi * sin(pi * x / N)) / 3,
            "linear": log(min(left, total // left)),
            "flat": 0,
        }
        made.append(fit.constant + fit.coefficient * value[name])
    return made


def _chain_models(view):
    """The mean over heads of every method's attention at every bond, beside the base's."""
    s, series = view.s, []
    for m in view.methods:
        runs = [s.chains[stage] for stage in view.stages(m) if stage in s.chains]
        if runs:
            each = [list(enumerate(chain.entropy.nanmean((0, 1)).tolist(), 1)) for chain in runs]
            series.append(over_seeds(view, m, each))
    for name, words, style in (
        ("untrained", "untrained model", {"color": "other", "dash": "7 4"}),
        ("base", "base model", {"color": "ink", "width": 2.5, "marker": "diamond"}),
    ):
        if name in s.chains:
            mean = s.chains[name].entropy.nanmean((0, 1)).tolist()
            series.append(line(words, x=range(1, len(mean) + 1), y=mean, **style))
    return {
        "type": "lines",
        "legend": True,
        "label": "Entropy of attention matrices at every bond, mean over layers and heads: every method and the base.",
        "x": {"title": "bond l of A", "short": "bond"},
        "y": {"title": "S(l) of A, nats, mean over heads", "min": 0},
        "marks": [{"x": next(iter(s.chains.values())).cut, "label": "row|column cut"}],
        "series": series,
    }


def _mixture(view):
    """Every head of the base: S at the cut as measured, against an outlier beside a bulk of random vectors."""
    chain = view.s.chains.get("base")
    if chain is None:
        return None
    T = max(view.s.lengths) if view.s.lengths else max(view.s.config.measure.lengths)
    predicted = [theory.mixture_entropy(p, T) for p in chain.top.flatten().tolist()]
    measured = chain.s_cut.flatten().tolist()
    ends = list(span([*predicted, *measured]))
    heads = {"name": "heads of the base model", "color": "ink", "width": 0, "marker": "diamond"}
    return {
        "type": "lines",
        "label": "Entropy of every head of the base model as measured, against that of an outlier and a bulk.",
        "x": {"title": "h(p₁) + (1 − p₁)(ln T − ½), nats", "short": "predicted"},
        "y": {"title": "S_ext as measured, nats"},
        "series": [
            line("as predicted", "null", ends, ends, width=1, dash="7 4"),
            {**heads, "points": sorted([p, q] for p, q in zip(predicted, measured))},
        ],
    }


def _heads(view):
    """Heat maps over layers and heads: S_ext at the longest T, its change against the base, c where it was fitted."""
    s, T = view.s, view.s.lengths[-1]
    models = view.models()
    layers, heads = view.heads(models[0][0]).shape
    axes = {
        "x": {"title": "head", "names": [str(i) for i in range(heads)]},
        "y": {"title": "layer", "names": [str(i) for i in range(layers)]},
    }
    quantities = {"s_ext": f"S_ext at T = {T}", "change": "change against the base", "c": "c of S_ext = c ln T + b"}
    values = {"s_ext": {key: view.heads(key) for key, _ in models}, "change": {}, "c": {}}
    if "base" in s.s_ext:
        values["change"] = {key: values["s_ext"][key] - values["s_ext"]["base"] for key, _ in models if key != "base"}
    values["c"] = {key: torch.tensor(s.fits[key]["head_c"]) for key, _ in models if s.fits.get(key, {}).get("head_c")}
    if not values["c"] and len(s.lengths) > 1:
        values["c"] = {key: _slopes(s, key) for key, _ in models}
    made = {}
    for quantity, words in quantities.items():
        tuned = [v for key, v in values[quantity].items() if key != "untrained"]
        low, high = span(torch.stack(tuned).flatten().tolist()) if tuned else (0, 1)
        for key, label in models:
            if key in values[quantity]:
                scale = (
                    {"min": -max(-low, high), "max": max(-low, high), "diverging": True}
                    if quantity == "change"
                    else {"min": low, "max": high}
                )
                unit = "" if quantity == "c" else ", nats"
                made[f"{quantity}|{_key(key)}"] = {
                    "type": "heat",
                    "label": f"{words}, every layer and head, {label}.",
                    **axes,
                    "value": {"title": words + unit, "digits": 3, **scale},
                    "cells": values[quantity][key].tolist(),
                }
    controls = [
        {"key": "quantity", "label": "Quantity", "options": [[q, w] for q, w in quantities.items() if values[q]]},
        {"key": "model", "label": "Model", "options": [[_key(key), label] for key, label in models]},
    ]
    return {"controls": controls, "charts": made, "drawn": ["s_ext|base"]}


def _key(model):
    return model if isinstance(model, str) else f"{model[0]}-seed{model[1]}"


def _slopes(s, model):
    """Least-squares c of every head's mean over texts, (layers, heads)."""
    x = torch.tensor(s.lengths, dtype=torch.float64).log()
    x = x - x.mean()
    return (x[:, None, None] * s.s_ext[model].nanmean(2)).sum(0) / x.square().sum()
