"""Charts of what fine-tuning wrote: volume law, valley, nulls, steps, layers."""

from __future__ import annotations

from statistics import fmean

from artent import theory
from artent.study.report.view import QUANTITIES, line, read, span

__all__ = ["charts", "families"]


DRAWN = ["valley_depth", "effective_rank"]  # of what is chosen on the page, as files


def charts(view):
    return {
        "slopes": _quantity(view, "slope", "slope dS/d ln D on the rising side", null=True),
        "valley": _quantity(view, "valley_depth", "valley depth, nats", null=True),
        "valley-excess": _excess(view),
        "effective-rank": _effective_ranks(view),
        "off-cut": _off_cut(view),
    }


def families(view):
    first = list(view.matrices)
    controls = [{"key": "matrix", "label": "Matrix", "options": [[m, m] for m in first]}]
    made = {
        "rise": {"controls": controls, "charts": {m: _rise(view, m) for m in first}},
        "residuals": {"controls": controls, "charts": {m: _residuals(view, m) for m in first}},
    }
    told = {q: words for q, words in QUANTITIES.items() if q != "max_entropy"}
    quantity = {"key": "quantity", "label": "Quantity", "options": [[q, short] for q, (short, _) in told.items()]}
    if len(view.steps) > 1:  # of all but the slope, a fit for every profile of every step
        over = {q: _over_steps(view, q, title) for q, (_, title) in told.items() if q != "slope"}
        some = {**quantity, "options": [option for option in quantity["options"] if option[0] != "slope"]}
        made["steps"] = {"controls": [some], "charts": over, "legend": view_legend(view), "drawn": DRAWN}
    if any(len(layers) > 1 for layers in view.matrices.values()):
        by = {f"{q}|{m}": _by_layer(view, q, title, m) for q, (_, title) in told.items() for m in first}
        made["layers"] = {"controls": [quantity, *controls], "charts": by, "legend": view_legend(view)}
        made["layers"]["drawn"] = [f"{q}|{m}" for q in DRAWN for m in first]
    chains = [m for m in view.methods if m.kind == "mps"]
    if chains:
        options = [[m, m] for m in first]
        made["mps"] = {
            "controls": [{"key": "matrix", "label": "Matrix", "options": options}],
            "charts": {m: _mps(view, chains, m) for m in first},
        }
    return made


def view_legend(view):
    """A line of the legend for every method."""
    return [{"tag": m.label, **view.style[m.name]} for m in view.methods]


def _each(view, method, quantity):
    """A quantity at the last step: one list over modules a seed."""
    return [[read(p, quantity) for p in view.s.last_profiles(stage).values()] for stage in view.stages(method)]


def _row(view, method, runs, **more):
    """A row of dots: the mean over seeds of means over modules, its range over seeds, all modules as points."""
    means = [fmean(run) for run in runs if run]
    interval = {"interval": [min(means), max(means)]} if len(means) > 1 else {}
    style = {key: value for key, value in view.style[method.name].items() if key != "dash"}
    return {
        "name": method.label,
        **style,
        "value": fmean(means),
        **interval,
        "points": [v for run in runs for v in run],
        **more,
    }


def _dots(label, title, rows, **more):
    low, high = span(v for r in rows for v in (r["value"], r.get("null"), *r.get("points", ()), *r.get("interval", ())))
    low = min(low, 0.0)
    x = {
        "title": title,
        "min": low,
        "max": high + 0.04 * (high - low),
        "points": "modules and seeds",
        **more.pop("x", {}),
    }
    return {"type": "dots", "label": label, "x": x, "rows": rows, **more}


def _quantity(view, quantity, title, null=False):
    rows = []
    for m in view.methods:
        values = _null_values(view, m, quantity) if null else []
        rows.append(_row(view, m, _each(view, m, quantity), **({"null": fmean(values)} if values else {})))
    label = f"{QUANTITIES[quantity][0]} of every method beside random updates of the same shapes."
    return _dots(label, title, rows)


def _random(method):
    return {"full-ft": "random matrices", "lora": "random factors", "mps": "random cores"}[method.kind]


def _null_values(view, method, quantity):
    """The same quantity of the mean Gaussian profile, for every module and seed."""
    found = []
    for profile, null in view.s.beside_nulls(method.name):
        S, at = null["gaussian"], profile.cut - 1
        if quantity == "valley_depth":
            found.append(max(S) - S[at])
        elif quantity == "slope":
            rise = theory.fit_rise(S, profile.dims, profile.cut, profile.rank)
            found += [rise["linear"].coefficient] if rise else []
    return found


def _excess(view):
    """The depth beyond random updates of the same shapes: what the rank alone does not make."""
    rows = []
    for m in view.methods:
        runs = []
        for stage in view.stages(m):
            pairs = [(view.s.last(stage, module), null["gaussian"]) for module, null in view.s.nulls[stage].items()]
            runs.append([float(p.valley_depth) - (max(S) - S[p.cut - 1]) for p, S in pairs])
        if any(runs):
            rows.append(_row(view, m, runs))
    if not rows:
        return None
    chart = _dots("Valley depth beyond that of random updates.", "depth beyond random updates alike, nats", rows)
    return {**chart, "refs": [{"x": 0, "label": "as random"}]}


def _effective_ranks(view):
    rows = []
    for m in view.methods:
        if m.rank:
            rows.append(_row(view, m, _each(view, m, "effective_rank"), note=f"nominal rank {m.rank}"))
    if not rows:
        return None
    return _dots("Effective rank of every adapter.", "effective rank, exp S at the row|column cut", rows)


def _off_cut(view):
    rows = []
    for m in view.methods:
        runs = []
        for stage in view.stages(m):
            pairs = [(view.s.last(stage, module), null["haar"]) for module, null in view.s.nulls[stage].items()]
            runs.append([max(abs(float(S) - h) for S, h in zip(p.entropy, haar)) for p, haar in pairs])
        if any(runs):
            rows.append(_row(view, m, runs))
    return (
        _dots("Distance from the Haar null.", "largest |S(l) − Haar(l)| over the bonds, nats", rows) if rows else None
    )


def _rise(view, matrix):
    """S against ln D_l on the way to the cut: a straight line is the volume law."""
    chain, series = view.chain(matrix), []
    logs = [float(x) for x in chain.log_dims][: chain.cut]
    ends = [0.0, logs[-1]]
    series.append(line("ln D, the most there can be", "ink", ends, ends, width=1, dash="1 3"))
    for m in view.methods:
        mean, low, high = (values[: chain.cut] for values in view.profile(m, matrix))
        band = [list(each) for each in zip(logs, low, high)]
        series.append(line(m.label, x=logs, y=mean, band=band, width=2.2, **view.style[m.name]))
    return {
        "type": "lines",
        "legend": True,
        "label": f"Entropy of the updates of {matrix} against the logarithm of the dimension left of the bond.",
        "x": {"title": "ln D of the left side, nats", "short": "ln D ="},
        "y": {"title": f"S of ΔW, {matrix}, nats", "min": 0},
        "series": series,
    }


def _residuals(view, matrix):
    chain, series = view.chain(matrix), []
    for m in view.methods:
        theory = view.null(m, matrix, "line")
        if theory is None:
            continue
        mean, low, high = view.profile(m, matrix)
        bonds = range(1, len(mean) + 1)
        difference, low, high = ([a - b for a, b in zip(values, theory)] for values in (mean, low, high))
        band = [list(each) for each in zip(bonds, low, high)]
        series.append(
            line(m.label, x=bonds, y=difference, band=band, width=2.2, **{**view.style[m.name], "marker": None})
        )
    return {
        "type": "lines",
        "legend": True,
        "label": f"Measured entropy of {matrix}'s updates less the line of random updates of the same rank.",
        "x": {"title": "bond l", "short": "bond"},
        "y": {"title": "S(l) less the theory line, nats", "digits": 3},
        "marks": [{"x": chain.cut, "label": "row|column cut"}],
        "levels": [{"y": 0, "label": "as random"}],
        "series": series,
    }


def _over_steps(view, quantity, title):
    series = []
    for m in view.methods:
        runs = [view.by_step(stage, quantity) for stage in view.stages(m)]
        series.append(over_seeds(view, m, runs))
    x = {"title": "step", "ticks": view.steps}
    label = f"{title}, mean over modules, over the steps of training."
    return {"type": "lines", "label": label, "x": x, "y": {"title": title}, "series": series}


def over_seeds(view, method, runs, mean=fmean):
    """A line through the means of runs ``[(x, y)]``, with the range over them, at every x that all of them have."""
    runs = [dict(run) for run in runs]
    shared = [x for x in runs[0] if all(x in run for run in runs)]
    rows = [[run[x] for run in runs] for x in shared]
    band = [[x, min(row), max(row)] for x, row in zip(shared, rows)]
    y = [mean(row) for row in rows]
    return line(method.label, x=shared, y=y, band=band, width=2.2, **view.style[method.name])


def _by_layer(view, quantity, title, matrix):
    series = []
    for m in view.methods:
        runs = [
            [(layer, read(view.s.last(stage, module), quantity)) for layer, module in view.matrices[matrix].items()]
            for stage in view.stages(m)
        ]
        series.append(over_seeds(view, m, runs))
    label = f"{title} of {matrix} in every layer, by method."
    return {
        "type": "lines",
        "label": label,
        "x": {"title": "layer"},
        "y": {"title": f"{title}: {matrix}"},
        "series": series,
    }


def _mps(view, chains, matrix):
    """MPS beside LoRA of its rank, and the random cores that its chain allows."""
    series, chain = [], view.chain(matrix)
    ranks = {m.rank for m in chains}
    for m in view.methods:
        if m in chains or (m.kind == "lora" and m.rank in ranks):
            mean, low, high = view.profile(m, matrix)
            bonds = range(1, len(mean) + 1)
            band = [list(each) for each in zip(bonds, low, high)]
            series.append(line(m.label, x=bonds, y=mean, band=band, width=2.2, **view.style[m.name]))
            if values := view.null(m, matrix, "gaussian"):
                color = view.style[m.name]["color"]
                series.append(
                    line(f"{_random(m)} of its shape: {m.label}", color, bonds, values, dash="2 3", width=1.4)
                )
    return {
        "type": "lines",
        "legend": True,
        "label": f"Entropy of {matrix}'s updates at every bond: MPS beside LoRA of the same rank.",
        "x": {"title": "bond l", "short": "bond"},
        "y": {"title": f"S(l) of ΔW, {matrix}, nats", "min": 0},
        "marks": [{"x": chain.cut, "label": "row|column cut"}],
        "series": series,
    }
