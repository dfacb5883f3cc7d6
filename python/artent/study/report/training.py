"""Charts of training: losses, matched loss, and what the settings that were swept moved."""

from __future__ import annotations

from math import isfinite
from statistics import fmean

from artent.study.report.updates import margin_about, over_seeds, view_legend
from artent.study.report.view import QUANTITIES, line, span

__all__ = ["charts", "families"]

SETTINGS = {
    "learning_rate": ("learning rate", "log"),
    "rank": ("rank r", "log"),
    "alpha": ("α", "log"),
    "chi": ("bond dimension χ", "log"),
    "init": ("initialisation", None),
}


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
    made = {"matched": _matched(view)}
    for name, quantities in (
        ("sweep", ("valley_depth", "effective_rank", "slope", "s_ext", "loss")),
        ("sweep-valley", ("valley_depth",)),
        ("sweep-attention", ("s_ext",)),
        ("sweep-loss", ("loss",)),
    ):
        made[name] = _sweeps(view, quantities)
    made["sweep"]["drawn"] = [key for key in made["sweep"]["charts"] if key.startswith("effective_rank")]
    return {name: family for name, family in made.items() if family and family["charts"]}


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


def _value(view, stage, quantity, loss):
    """What a run ended with."""
    if quantity == "loss":
        return loss
    if quantity == "s_ext":
        return _attention(view, stage)
    return view.mean_last(stage, quantity)


def _attention(view, stage):
    """Mean S_ext at the end, of a swept run and of the run it is beside alike: the same texts and length."""
    s = view.s
    swept = next((seen for run in s.sweeps if (seen := s.last_attention(run.stage))), None)
    if len(stage) == 3:
        seen = s.last_attention(stage)
        return None if seen is None else seen.s_ext.nanmean().item()
    if swept is None or stage not in s.s_ext or swept.length not in s.lengths:
        return None
    return s.s_ext[stage][s.lengths.index(swept.length)][:, : swept.s_ext.shape[1]].nanmean().item()


def _own(view, method, seed, vary):
    """The method's own run of that seed, as a point of its sweep: (value of the setting, stage, loss)."""
    stage = (method.name, seed)
    value = method.lora_alpha if vary == "alpha" else getattr(method, vary)
    if stage not in view.s.runs or not view.s.losses[stage].get("new"):
        return None
    return value, stage, view.s.losses[stage]["new"][-1][1]


def _sweeps(view, quantities):
    """A quantity at the end against a setting, a line a method through the means over seeds."""
    settings = [vary for vary in SETTINGS if any(run.vary == vary for run in view.s.sweeps)]
    made = {}
    for quantity in quantities:
        words = {"loss": f"held-out loss on the new text, {view.s.loss_unit}", "s_ext": "S_ext at the end, nats"}
        title = words.get(quantity) or QUANTITIES[quantity][1]
        for vary in settings:
            series, names = _swept(view, quantity, vary)
            if series:
                name, kind = SETTINGS[vary]
                x = {
                    "title": name + (" (logarithmic)" if kind else ""),
                    "short": name,
                    **({"kind": kind} if kind else {}),
                }
                x |= {"ticks": sorted({at for one in series for at, _ in one["points"]})}
                x |= {"names": names} if names else {}
                y = {"title": title, **({"digits": 3} if quantity in ("loss", "s_ext") else {})}
                key = vary if len(quantities) == 1 else f"{quantity}|{vary}"
                label = f"{title}, against the {name}."
                made[key] = {"type": "lines", "height": 300, "label": label, "x": x, "y": y, "series": series}
                if quantity == "s_ext":
                    made[key]["yregion"] = margin_about(view, (at for one in series for _, at in one["points"]))
    told = {**{q: short for q, (short, _) in QUANTITIES.items()}, "loss": "held-out loss", "s_ext": "S_ext"}
    shown = [q for q in quantities if len(quantities) == 1 or any(key.startswith(f"{q}|") for key in made)]
    controls = (
        [{"key": "quantity", "label": "Quantity", "options": [[q, told[q]] for q in shown]}]
        if len(quantities) > 1
        else []
    )
    controls.append({"key": "vary", "label": "Setting", "options": [[vary, SETTINGS[vary][0]] for vary in settings]})
    swept = {run.of for run in view.s.sweeps}
    return {
        "controls": controls,
        "charts": made,
        "legend": [e for e, m in zip(view_legend(view), view.methods) if m.name in swept],
    }


def _swept(view, quantity, vary):
    series, names = [], {}
    runs = [run for run in view.s.sweeps if run.vary == vary]
    if vary == "init":
        values = dict.fromkeys([str(m.init) for m in view.methods if any(run.of == m.name for run in runs)])
        values |= dict.fromkeys(str(run.value) for run in runs)
        at = {value: i for i, value in enumerate(values)}
        names = {i: {"True": "default"}.get(value, value) for value, i in at.items()}
    for m in view.methods:
        mine = [(run.value, run.stage, run.loss, run.seed) for run in runs if run.of == m.name]
        if not mine:
            continue
        for seed in {seed for *_, seed in mine}:
            if own := _own(view, m, seed, vary):
                mine.append((*own, seed))
        found = {}
        for value, stage, loss, _ in mine:
            measured = _value(view, stage, quantity, loss)
            if measured is not None and isfinite(measured):
                found.setdefault(at[str(value)] if names else value, []).append(measured)
        if len(found) > 1:
            points = sorted(found.items())
            style = {**view.style[m.name], **({"width": 0} if names else {"width": 2.2})}
            band = [[x, min(v), max(v)] for x, v in points] if any(len(v) > 1 for _, v in points) else None
            made = line(m.label, x=[x for x, _ in points], y=[fmean(v) for _, v in points], **style)
            series.append({**made, **({"band": band} if band else {})})
    return series, names
