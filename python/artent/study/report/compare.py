"""Several studies on one page: what differs between them, verdicts side by side, curves over each other."""

from __future__ import annotations

from itertools import chain
from math import isfinite
from pathlib import Path
from statistics import fmean

from artent.study.report import beside, page, summary_of
from artent.study.report.updates import over_seeds
from artent.study.report.view import View, line, span
from artent.study.report.words import told

__all__ = ["compare_runs", "render"]

# The runs in order, told apart by dash as well as by colour.
COLOURS = (
    ("#0b559f", "#7db8f0"),
    ("#c2510a", "#ff9d5c"),
    ("#0e7a5a", "#5fd3ae"),
    ("#8a3b8f", "#e09be5"),
    ("#7a6400", "#e0cb55"),
    ("#4a5560", "#b5bfc9"),
)
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2", "12 3")


def compare_runs(folders, out):
    """Write one page that shows the studies in ``folders`` beside each other; returns its path.

    ``out``: an .html file, or the folder that gets ``comparison.html``.

    Models, methods and lengths may differ between them. Raises ValueError for fewer than two folders, and what
    ``write_report`` raises for a folder without a study.
    """
    folders = [Path(folder) for folder in folders]
    if len(folders) < 2:
        raise ValueError(f"runs: expected at least two folders of studies to compare, but there are {len(folders)}")
    from artent.study.findings import findings_of

    summaries = [summary_of(folder) for folder in folders]
    found = [findings_of(summary) for summary in summaries]
    out = Path(out) if Path(out).suffix == ".html" else Path(out) / "comparison.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    return page.write(out, render(_names(folders, summaries), summaries, found))


def _names(folders, summaries):
    """What readers know the runs by: the study's name, with the folder's where two share it."""
    names = [s.config.name for s in summaries]
    alone = [f"{n} ({folder.resolve().name})" if names.count(n) > 1 else n for n, folder in zip(names, folders)]
    return [f"{n} · {i + 1}" if alone.count(n) > 1 else n for i, n in enumerate(alone)]


def render(names, summaries, found):
    """The page as a string; three lists in the same order."""
    views = [View(summary) for summary in summaries]
    palette = {"null": views[0].palette["null"], "other": views[0].palette["other"]}
    palette |= {f"run{i}": COLOURS[i % len(COLOURS)] for i in range(len(views))}
    charts, families = _charts(names, views), _families(names, views)
    charts = {name: chart for name, chart in charts.items() if chart}
    families = {name: family for name, family in families.items() if family["charts"]}
    sections = (
        (
            "Internal and external entanglement",
            (("profiles", "Profiles of the updates", ""), ("growth", "S_ext against T", "")),
        ),
        ("Valley depth", (("valley", "By method", "Grey tick: random updates of the same shapes."),)),
        ("Exponent of attention’s growth", (("exponents", "c of the base models", "Bars: interval over texts."),)),
        (
            "What was learned",
            (("losses", "Held-out loss over the steps", "Models and texts may differ: compare shapes."),),
        ),
    )
    body = [
        "<header class='top'><p class='kicker'>Studies by artent</p>"
        f"<h1>{_count(len(names))} studies beside each other</h1>"
        f"<p class='lead'>{told('; '.join(names))}.</p></header>",
        *(_figures(title, figures, charts, families) for title, figures in sections[:1]),
        beside.verdicts(names, found),
        *(_figures(title, figures, charts, families) for title, figures in sections[1:]),
        beside.differences(names, summaries),
    ]
    data = {"charts": charts, "families": families, "legends": {}, "explorer": None}
    title = f"{', '.join(names)}: studies compared"
    return page.fill(title, "\n".join(body), data, palette, "each study’s own folder holds its figures and tables.")


def _count(n):
    return ("", "", "Two", "Three", "Four", "Five", "Six")[n] if n < 7 else str(n)


def _figures(title, figures, charts, families):
    shown = [each for each in (page.figure(*f, charts, families) for f in figures) if each]
    wide = " one" if len(shown) == 1 else ""
    return f"<section><h2>{told(title)}</h2><div class='panels{wide}'>{''.join(shown)}</div></section>" if shown else ""


def _style(i, **more):
    return {"color": f"run{i}", "dash": DASHES[i % len(DASHES)], "width": 2.2, **more}


def _charts(names, views):
    return {"growth": _growth(names, views), "valley": _valley(names, views), "exponents": _exponents(names, views)}


def _families(names, views):
    return {"profiles": _profiles(names, views), "losses": _losses(names, views)}


def _shared(views):
    """``{label: [(index of the view, its method)]}`` of every method that any run has, the commonest first."""
    found = {}
    for i, view in enumerate(views):
        for method in view.methods:
            found.setdefault(method.label, []).append((i, method))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _profiles(names, views):
    """Mean profiles of one method and matrix, every run over the others; x from 0 to 1 where chains differ."""
    shared, made = _shared(views), {}
    matrices = list(dict.fromkeys(chain.from_iterable(view.matrices for view in views)))
    for label, methods in shared.items():
        for matrix in matrices:
            own = [(i, view, m) for i, m in methods if matrix in (view := views[i]).matrices]
            if not own:
                continue
            sizes = {len(view.chain(matrix).dims) for _, view, _ in own}
            alike = len(sizes) == 1 and len({view.chain(matrix).cut for _, view, _ in own}) == 1
            series = []
            for i, view, m in own:
                mean, low, high = view.profile(m, matrix)
                x = [at if alike else at / (len(mean) + 1) for at in range(1, len(mean) + 1)]
                band = [list(each) for each in zip(x, low, high)]
                series.append(line(names[i], x=x, y=mean, band=band, **_style(i)))
            cut = own[0][1].chain(matrix).cut
            made[f"{label}|{matrix}"] = {
                "type": "lines",
                "legend": True,
                "height": 340,
                "label": f"Profiles of {matrix}, {label}, mean over layers, run by run.",
                "x": {"title": "bond l" if alike else "bond l as a share of the chain", "short": "bond"},
                "y": {"title": f"S(l) of ΔW, {matrix}, nats", "min": 0},
                "marks": [{"x": cut, "label": "row|column cut"}] if alike else [],
                "series": series,
            }
    controls = [
        {"key": "method", "label": "Method", "options": [[label, label] for label in shared]},
        {"key": "matrix", "label": "Matrix", "options": [[m, m] for m in matrices]},
    ]
    return {"controls": controls, "charts": made}


def _growth(names, views):
    """S_ext of the base models over T, and of each run's methods faintly behind."""
    series = []
    for i, view in enumerate(views):
        s, T = view.s, list(view.s.lengths)
        for m in view.methods:
            runs = [s.s_ext[stage].nanmean((1, 2, 3)).tolist() for stage in view.stages(m) if stage in s.s_ext]
            if runs:
                mean = [fmean(values) for values in zip(*runs)]
                series.append(line("", x=T, y=mean, tags=[names[i]], **_style(i, faint=True, width=1.4)))
        if "base" in s.s_ext:
            series.append(
                line(names[i], x=T, y=s.s_ext["base"].nanmean((1, 2, 3)).tolist(), marker="diamond", **_style(i))
            )
    return series and {
        "type": "lines",
        "legend": True,
        "height": 340,
        "label": "S_ext against T of every run's base model, its fine-tuned models faint behind.",
        "x": {"title": "T, tokens (logarithmic)", "short": "T =", "kind": "log"},
        "y": {"title": "S_ext, nats: base model; methods faint", "min": 0},
        "series": series,
    }


def _valley(names, views):
    rows = []
    for label, methods in _shared(views).items():
        for i, m in methods:
            depths = [views[i].mean_last(stage, "valley_depth") for stage in views[i].stages(m)]
            row = {"name": f"{label}: {names[i]}", "color": f"run{i}", "marker": views[i].style[m.name]["marker"]}
            row |= {"value": fmean(depths), "interval": [min(depths), max(depths)]}
            nulls = views[i].s.beside_nulls(m.name)
            rows.append({**row, **({"null": views[i].s.null_depth(m.name)[0]} if nulls else {})})
    high = span(v for row in rows for v in (*row["interval"], row.get("null")))[1]
    return {
        "type": "dots",
        "label": "Valley depth of every method in every run, means over modules.",
        "x": {"title": "valley depth, nats; bars: range over seeds", "min": 0, "max": 1.05 * high},
        "rows": rows,
    }


def _exponents(names, views):
    rows = []
    for i, view in enumerate(views):
        if fit := view.s.fits.get("base"):
            interval = list(fit.get("interval") or (fit["c"], fit["c"]))
            rows.append(
                {"name": names[i], "color": f"run{i}", "marker": "diamond", "value": fit["c"], "interval": interval}
            )
    low, high = span(v for row in rows for v in row["interval"])
    return rows and {
        "type": "dots",
        "label": "Exponent c of S_ext = c ln T + b of every run's base model.",
        "x": {"title": "c of S_ext = c ln T + b", "min": min(-0.05, low), "max": max(1.05, high), "ticks": [0, 0.5, 1]},
        "refs": [{"x": 0, "label": "area law"}, {"x": 1, "label": "volume law at large T"}],
        "rows": rows,
    }


def _losses(names, views):
    """Losses over the steps, a chart a method and unit: a byte's and a token's have no axis in common."""
    shared, made = _shared(views), {}
    for label, methods in shared.items():
        series = {}
        for i, m in methods:
            runs = [view.s.losses.get(stage, {}).get("new") for view in (views[i],) for stage in view.stages(m)]
            if runs and all(runs) and all(isfinite(v) for run in runs for _, v in run):
                drawn = {**over_seeds(views[i], m, runs), **_style(i), "name": names[i]}
                series.setdefault(views[i].s.loss_unit, []).append(drawn)
        for unit, own in series.items():
            made[f"{label}|{unit}"] = {
                "type": "lines",
                "legend": True,
                "label": f"Held-out loss of {label} over the steps, run by run.",
                "x": {"title": "step"},
                "y": {"title": f"held-out loss on the new text, {unit}", "digits": 3},
                "series": own,
            }
    controls = [
        {"key": key, "label": words, "options": [[value, value] for value in dict.fromkeys(each)]}
        for key, words, each in zip(("method", "unit"), ("Method", "Loss in"), zip(*(key.split("|") for key in made)))
    ]
    return {"controls": controls, "charts": made}
