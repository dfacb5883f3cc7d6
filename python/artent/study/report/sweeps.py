"""Charts of the settings that were swept: what they moved in the updates, in attention and in the loss."""

from __future__ import annotations

from math import isfinite
from statistics import fmean

from artent.study.analysis import sensitivity
from artent.study.report.updates import view_legend
from artent.study.report.view import QUANTITIES, line

__all__ = ["families"]

SETTINGS = {
    "learning_rate": ("learning rate", "log"),
    "rank": ("rank r", "log"),
    "alpha": ("α", "log"),
    "chi": ("bond dimension χ", "log"),
    "init": ("initialisation", None),
}


def families(view):
    made = {
        "sweep": _sweeps(view, ("valley_depth", "effective_rank", "slope", "s_ext", "loss")),
        "sweep-valley": _sweeps(view, ("valley_depth",)),
        "sweep-attention": _shifts(view),
        "sweep-loss": _sweeps(view, ("loss",)),
    }
    made["sweep"]["drawn"] = [key for key in made["sweep"]["charts"] if key.startswith("effective_rank")]
    return {name: family for name, family in made.items() if family["charts"]}


def _value(view, stage, quantity, loss):
    """What a run ended with."""
    if quantity == "loss":
        return loss
    if quantity == "s_ext":
        return _attention(view, stage)
    return view.mean_last(stage, quantity)


def _attention(view, stage):
    """Mean S_ext at the end, of a swept run and of the run it is beside alike: the same texts, the probe's last."""
    s = view.s
    swept = next((seen for run in s.sweeps if (seen := s.last_attention(run.stage))), None)
    if len(stage) == 3:
        seen = s.last_attention(stage)
        return None if seen is None else seen.s_ext.nanmean().item()
    if swept is None or stage not in s.s_ext or swept.length not in s.lengths:
        return None
    return s.s_ext[stage][s.lengths.index(swept.length)][:, -swept.s_ext.shape[1] :].nanmean().item()


def _own(view, method, seed, vary):
    """The method's own run of that seed, as a point of its sweep: (value of the setting, stage, loss)."""
    stage = (method.name, seed)
    if stage not in view.s.runs or not view.s.losses[stage].get("new"):
        return None
    return _own_value(method, vary), stage, view.s.losses[stage]["new"][-1][1]


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
                y = {"title": title, **({"digits": 3} if quantity in ("loss", "s_ext") else {})}
                made[vary if len(quantities) == 1 else f"{quantity}|{vary}"] = _chart(vary, series, names, y)
    told = {**{q: short for q, (short, _) in QUANTITIES.items()}, "loss": "held-out loss", "s_ext": "S_ext"}
    shown = [q for q in quantities if any(key.startswith(f"{q}|") for key in made)]
    controls = [{"key": "quantity", "label": "Quantity", "options": [[q, told[q]] for q in shown]}] if shown else []
    return _family(view, made, controls, settings)


def _shifts(view):
    """How far S_ext is from the method's own setting, with intervals and the margin: what the verdict is made of."""
    shifts, margin = sensitivity.attention_shifts(view.s), view.s.config.judge.margin
    made = {}
    for vary in SETTINGS:
        mine = {shift.of: shift.shifts for shift in shifts if shift.vary == vary}
        own = {m.name: _own_value(m, vary) for m in view.methods if m.name in mine}
        at, names = _places(vary, [*own.values(), *(value for each in mine.values() for value in each)])
        series = []
        for m in (m for m in view.methods if m.name in mine):
            tests = {at(value): test for value, test in mine[m.name].items()}
            points = sorted({at(own[m.name]): 0.0, **{x: test.mean for x, test in tests.items()}}.items())
            band = [[x, tests[x].low, tests[x].high] if x in tests else [x, 0.0, 0.0] for x, _ in points]
            style = {**view.style[m.name], "width": 0 if names else 2.2}
            known = {"band": band, "bars": True} if all(isfinite(high) for *_, high in band) else {}
            x, values = zip(*points)
            series.append(line(m.label, x=x, y=values, **style, **known))
        if series:
            y = {"title": "shift of S_ext, rms over heads, nats", "min": 0, "digits": 3}
            made[vary] = _chart(vary, series, names, y) | {"levels": [{"y": margin, "label": f"margin {margin:g}"}]}
    return _family(view, made, [], list(made))


def _chart(vary, series, names, y):
    name, kind = SETTINGS[vary]
    x = {"title": name + (" (logarithmic)" if kind else ""), "short": name, **({"kind": kind} if kind else {})}
    x |= {"ticks": sorted({at for one in series for at, _ in one["points"]}), **({"names": names} if names else {})}
    label = f"{y['title']}, against the {name}."
    return {"type": "lines", "height": 300, "label": label, "x": x, "y": y, "series": series}


def _family(view, made, controls, settings):
    swept = {run.of for run in view.s.sweeps}
    settings = {"key": "vary", "label": "Setting", "options": [[vary, SETTINGS[vary][0]] for vary in settings]}
    legend = [entry for entry, m in zip(view_legend(view), view.methods) if m.name in swept]
    return {"controls": [*controls, settings], "charts": made, "legend": legend}


def _swept(view, quantity, vary):
    """(series, names of the ticks)."""
    broken = sensitivity.left_out(view.s) if quantity != "loss" else []
    runs = [run for run in view.s.sweeps if run.vary == vary and run not in broken]
    of = [m for m in view.methods if any(run.of == m.name for run in runs)]
    at, names = _places(vary, [*(_own_value(m, vary) for m in of), *(run.value for run in runs)])
    series = []
    for m in of:
        mine = [(run.value, run.stage, run.loss, run.seed) for run in runs if run.of == m.name]
        for seed in {seed for *_, seed in mine}:
            if own := _own(view, m, seed, vary):
                mine.append((*own, seed))
        found = {}
        for value, stage, loss, _ in mine:
            measured = _value(view, stage, quantity, loss)
            if measured is not None and isfinite(measured):
                found.setdefault(at(value), []).append(measured)
        if len(found) > 1:
            points = sorted(found.items())
            style = {**view.style[m.name], "width": 0 if names else 2.2}
            band = [[x, min(v), max(v)] for x, v in points] if any(len(v) > 1 for _, v in points) else None
            made = line(m.label, x=[x for x, _ in points], y=[fmean(v) for _, v in points], **style)
            series.append({**made, **({"band": band} if band else {})})
    return series, names


def _places(vary, values):
    """(a value's place on the axis, ``{place: name}``): numbers stand where they are, initialisations in a row."""
    if vary != "init":
        return lambda value: value, {}
    at = {value: i for i, value in enumerate(dict.fromkeys(map(str, values)))}
    return lambda value: at[str(value)], {i: {"True": "default"}.get(value, value) for value, i in at.items()}


def _own_value(method, vary):
    return method.lora_alpha if vary == "alpha" else getattr(method, vary)
