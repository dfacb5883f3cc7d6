"""The overview: profiles of the updates beside the growth of attention's entanglement, every method in each."""

from __future__ import annotations

import torch

from artent.study.report.view import line

__all__ = ["NULLS", "charts", "legend"]

GROUP = "overview"
# Lines that an update's profile is judged by: key in the record, words, how it is drawn.
NULLS = (
    ("bound", "rank bound", "none", 1),
    ("line", "theory: LoRA line, Page's line", "7 4", 1.4),
    ("gaussian", "random factors", "2 3", 1.4),
    ("haar", "Haar: same singular values", "9 3 2 3", 1.4),
)
GROWTH_DASHES = ("7 4", "2 4", "9 3 2 3", "4 2")
MOST = "ln T, the most there can be"
UNTRAINED = "untrained model"


def charts(view):
    """``{id: chart}``: one of every matrix, and ``overview-external``; all of one group."""
    made = {f"overview-{matrix}": _profiles(view, matrix) for matrix in view.matrices}
    return made | {"overview-external": growth(view)}


def legend(view):
    """The parts of the overview's legend: its entries switch lines of all its charts."""
    entries = [{"tag": m.label, **view.style[m.name]} for m in view.methods]
    entries.append({"tag": "base model", "color": "ink", "width": 2.5, "marker": "diamond"})
    has = {key for m in view.methods for matrix in view.matrices for key, *_ in NULLS if view.null(m, matrix, key)}
    updates = [
        {"tag": words, "color": "null", "dash": dash, "width": width, "off": True}
        for key, words, dash, width in NULLS
        if key in has
    ]
    attention = [
        {
            "tag": s["name"],
            "color": s["color"],
            "dash": s.get("dash", "none"),
            "width": s["width"],
            "off": s.get("off", False),
        }
        for s in growth(view)["series"]
        if s["color"] in ("null", "other") or s["name"] == MOST
    ]
    parts = [("Models", entries), ("Nulls of updates", updates), ("Nulls of attention", attention)]
    return [{"title": title, "entries": each} for title, each in parts if each]


def _profiles(view, matrix):
    chain, series = view.chain(matrix), []
    deepest = None
    for m in view.methods:
        mean, low, high = view.profile(m, matrix)
        bonds = range(1, len(mean) + 1)
        style = {**view.style[m.name], "marker": None}
        band = [list(each) for each in zip(bonds, low, high)]
        series.append(line(m.label, x=bonds, y=mean, band=band, tags=[m.label], width=2.2, **style))
        cut, top = mean[chain.cut - 1], max(mean)
        if deepest is None or top - cut > deepest["to"] - deepest["from"]:
            deepest = {"x": chain.cut, "from": cut, "to": top, "label": f"{top - cut:.2f}", "tags": [m.label]}
        for key, words, dash, width in NULLS:
            if values := view.null(m, matrix, key):
                style = {"color": view.style[m.name]["color"], "dash": dash, "width": width, "off": True}
                series.append(line(f"{m.label}, {words}", x=bonds, y=values, tags=[m.label, words], **style))
    return {
        "type": "lines",
        "group": GROUP,
        "label": f"Entropy S(l) of the updates of {matrix} at every bond, mean over layers, by method.",
        "height": 330,
        "x": {"title": "bond l", "short": "bond"},
        "y": {"title": f"S(l) of ΔW, {matrix}, nats", "min": 0},
        "marks": [{"x": chain.cut, "label": "row|column cut: the valley"}],
        "arrows": [deepest] if deepest and deepest["to"] - deepest["from"] > 0.05 else [],
        "series": series,
    }


def growth(view):
    """S_ext against T: every method, the base, and what it would be without a trained model behind it."""
    s, T = view.s, list(view.s.lengths)
    series = [line(MOST, "ink", T, torch.tensor(T).double().log().tolist(), width=1, dash="1 3")]
    for i, (name, values) in enumerate(s.growth_nulls.items()):
        dash = GROWTH_DASHES[i % len(GROWTH_DASHES)]
        series.append(line(name, "null", T, values, dash=dash, width=1.5, off=True))
    if UNTRAINED.split()[0] in s.s_ext:
        mean = s.s_ext["untrained"].nanmean((1, 2, 3)).tolist()
        series.append(line(UNTRAINED, "other", T, mean, dash="7 4", width=1.8, off=True))
    for m in view.methods:
        runs = [s.s_ext[stage].nanmean((1, 2, 3)) for stage in view.stages(m) if stage in s.s_ext]
        if not runs:
            continue
        runs = torch.stack(runs)
        band = [list(each) for each in zip(T, runs.amin(0).tolist(), runs.amax(0).tolist())]
        series.append(line(m.label, x=T, y=runs.mean(0).tolist(), width=2.2, band=band, **view.style[m.name]))
    if "base" in s.s_ext:
        mean = s.s_ext["base"].nanmean((1, 2, 3)).tolist()
        series.append(line("base model", "ink", T, mean, width=2.5, marker="diamond"))
    return {
        "type": "lines",
        "group": GROUP,
        "label": "S_ext against the length T, mean over layers, heads and texts: every method and the base model.",
        "height": 330,
        "x": {"title": "T, tokens (logarithmic)", "short": "T =", "kind": "log", "ticks": T},
        "y": {"title": "S_ext of attention, nats", "min": 0},
        "series": series,
    }
