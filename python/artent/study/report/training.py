"""Charts of training: losses, and what methods are at equal loss."""

from __future__ import annotations

from math import isfinite
from statistics import fmean

from artent.study.report.updates import over_seeds, view_legend
from artent.study.report.view import QUANTITIES, span

__all__ = ["charts", "families"]


def charts(view):
    made = {}
    for text, words in (("new", "the new text"), ("old", "the old text")):
        series = [
            over_seeds(view, m, [view.s.losses[stage][text] for stage in view.stages(m)])
            for m in view.methods
            if all(view.s.losses.get(stage, {}).get(text) for stage in view.stages(m))
        ]
        if series:
            made[f"loss-{text}"] = {
                "type": "lines",
                "legend": True,
                "label": f"Held-out loss on {words} over the steps, by method.",
                "x": {"title": "step"},
                "y": {"title": f"held-out loss on {words}, {view.s.loss_unit}", "digits": 3},
                "series": series,
            }
    made["losses"] = _final(view)
    return made


def families(view):
    matched = _matched(view)
    return {"matched": matched} if matched["charts"] else {}


def _final(view):
    """The held-out loss of the new text at the end, every seed."""
    rows = []
    for m in view.methods:
        losses = [v for v in view.s.final_losses(m.name) if isfinite(v)] if _has_loss(view, m) else []
        if losses:
            style = {key: view.style[m.name][key] for key in ("color", "marker")}
            count = view.s.parameters.get(m.name)
            note = {"note": f"{count:,} trained parameters"} if count else {}
            rows.append(
                {
                    "name": m.label,
                    **style,
                    "value": fmean(losses),
                    "interval": [min(losses), max(losses)],
                    "points": losses,
                    **note,
                }
            )
    if not rows:
        return None
    low, high = span(v for row in rows for v in row["points"])
    room = 0.06 * (high - low) or 0.01
    return {
        "type": "dots",
        "label": "Held-out loss on the new text at the end of every run.",
        "x": {
            "title": f"held-out loss on the new text, {view.s.loss_unit}",
            "min": low - room,
            "max": high + room,
            "digits": 3,
            "points": "seeds",
        },
        "rows": rows,
    }


def _has_loss(view, method):
    return all(view.s.losses.get(stage, {}).get("new") for stage in view.stages(method))


def _matched(view):
    """A quantity against the held-out loss on the way: methods at one loss stand above each other."""
    told = {q: QUANTITIES[q] for q in ("valley_depth", "cut_entropy", "effective_rank")}
    told["s_ext"] = ("S_ext", f"S_ext at T = {view.s.step_length}, nats")
    made = {}
    for quantity, (_, title) in told.items():
        series = []
        for m in view.methods:
            points = []
            for stage in view.stages(m):
                losses = dict(view.s.losses.get(stage, {}).get("new", ()))
                measured = view.s.over_steps.get(stage, []) if quantity == "s_ext" else view.by_step(stage, quantity)
                points.append({step: (losses[step], v) for step, v in measured if step in losses})
            shared = set.intersection(*(set(each) for each in points)) if points else set()
            mean = [[fmean(each[step][k] for each in points) for k in (0, 1)] for step in sorted(shared)]
            if len(mean) > 1:
                series.append({"name": m.label, "points": mean, "width": 2, **view.style[m.name]})
        if series:
            made[quantity] = {
                "type": "lines",
                "label": f"{title} against the held-out loss on the new text, step by step, means over seeds.",
                "x": {
                    "title": f"held-out loss on the new text, {view.s.loss_unit}: training goes to the left",
                    "short": "loss",
                },
                "y": {"title": title},
                "series": series,
            }
    options = [[q, short] for q, (short, _) in told.items() if q in made]
    controls = [{"key": "quantity", "label": "Quantity", "options": options}]
    return {"controls": controls, "charts": made, "legend": view_legend(view)}
