"""The charts of a study's report, drawn from the same plain descriptions as its page draws them."""

from __future__ import annotations

import re

from artent.plots.base import COLOURS, new_axes, plt

__all__ = ["chart", "charts"]

_NAMED = {**{f"m{i}": colour for i, colour in enumerate(COLOURS)}, "ink": "black", "null": "0.5", "other": "#8F3FA8"}
_SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # lines pass under a number
_MOST = 14  # entries of a legend in one column


def chart(spec, ax=None, *, colours=None, legend=True):
    """Draw one chart of the study's report.

    Args:
        spec: a description of type ``lines``, ``dots`` or ``heat``, as ``artent/study/report/assets`` draws it. Series
            that are ``off`` there at first are left out.
        ax: matplotlib axes; None for new ones.
        colours: ``{name: colour}`` of the names in ``spec``, over the defaults.
        legend: whether lines are named beside it.

    Returns the axes.
    """
    kind = spec.get("type", "dots" if "rows" in spec else "lines")
    ax = ax or new_axes(*_size(kind, spec))
    colours = {**_NAMED, **(colours or {})}
    {"lines": _lines, "dots": _dots, "heat": _heat}[kind](ax, spec, colours)
    if legend and ax.get_legend_handles_labels()[0]:
        few = len(ax.get_legend_handles_labels()[0]) <= _MOST
        ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), ncols=1 if few else 2)
    return ax


def charts(specs, *, colours=None):
    """Draw charts beside each other, with one legend under them for all. Returns the axes of the first."""
    figure, row = plt.subplots(1, len(specs), figsize=(4.4 * len(specs), 4.2), layout="constrained", squeeze=False)
    named = {}
    for spec, ax in zip(specs, row[0]):
        chart(spec, ax, colours=colours, legend=False)
        for handle, name in zip(*ax.get_legend_handles_labels()):
            named.setdefault(name, handle)
    if named:
        legend = {"loc": "outside lower center", "ncols": min(5, len(named)), "frameon": False, "fontsize": "small"}
        figure.legend(named.values(), named.keys(), **legend)
    return row[0][0]


def _size(kind, spec):
    if kind == "dots":
        return 7.2, 1.3 + 0.34 * len(spec["rows"])
    if kind == "heat":
        return 2.6 + 0.3 * min(len(spec["x"]["names"]), 40), 1.6 + 0.24 * min(len(spec["y"]["names"]), 60)
    return 7.6, 4.0


def _lines(ax, spec, colours):
    for s in spec["series"]:
        if s.get("off") or not s["points"]:
            continue
        colour, width, dash = colours[s["color"]], s.get("width", 2), s.get("dash", "none")
        if s.get("band") and s.get("bars"):
            ax.vlines(*zip(*s["band"]), color=colour, alpha=0.6, linewidth=3)
        elif s.get("band"):
            ax.fill_between(*zip(*s["band"]), color=colour, alpha=0.15, linewidth=0)
        ax.plot(
            *zip(*s["points"]),
            label=_words(s["name"]) or None,
            color=colour,
            linewidth=0.8 * width,
            linestyle="none" if not width else "-" if dash == "none" else (0, tuple(map(float, dash.split()))),
            alpha=0.3 if s.get("faint") else 1,
            marker=_SHAPES.get(s.get("marker")),
            markersize=3.5,
        )
    for mark in spec.get("marks", ()):
        ax.axvline(mark["x"], color="0.6", linestyle=":", linewidth=1, zorder=0)
        ax.annotate(
            mark["label"], (mark["x"], 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", size="small"
        )
    if spec.get("yregion"):
        ax.axhspan(*spec["yregion"], color="#009E73", alpha=0.08, linewidth=0)
    for level in spec.get("levels", ()):
        ax.axhline(level["y"], color="0.6", linestyle=":", linewidth=1, zorder=0)
        at = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "size": "small", "color": "0.35"}
        ax.annotate(level["label"], (1, level["y"]), **at)
    for arrow in spec.get("arrows", ()):
        ax.annotate(
            "",
            (arrow["x"], arrow["from"]),
            (arrow["x"], arrow["to"]),
            arrowprops={"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0},
        )
        middle = (arrow["x"], (arrow["from"] + arrow["to"]) / 2)
        at = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "size": "small", "bbox": _BEHIND}
        ax.annotate(arrow["label"], middle, **at)
    _scale(ax.xaxis, ax.set_xscale, spec["x"])
    if spec["x"].get("kind") == "log" and len(spec["x"].get("ticks", ())) > 7:
        ax.tick_params("x", labelrotation=30)  # where they fall close
    _scale(ax.yaxis, ax.set_yscale, spec["y"])
    if spec["y"].get("kind") != "log":
        ax.set_ylim(bottom=spec["y"].get("min"), top=spec["y"].get("max"))
    ax.set(xlabel=_words(spec["x"]["title"]), ylabel=_words(spec["y"]["title"]))
    ax.spines[["top", "right"]].set_visible(False)


def _scale(axis, set_scale, told):
    if told.get("kind") == "log":
        set_scale("log")
        axis.get_minor_locator().set_params(subs=())
        axis.set_minor_formatter("")
    if "ticks" in told:
        names = told.get("names", {})
        axis.set_ticks(told["ticks"], [str(names.get(tick, _tick(tick))) for tick in told["ticks"]])
    elif told.get("kind") != "log":
        axis.get_major_locator().set_params(nbins=7, integer=told["title"].startswith("bond"))


def _tick(value):
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def _dots(ax, spec, colours):
    if spec.get("region"):
        ax.axvspan(*spec["region"], color="#009E73", alpha=0.08, linewidth=0)
    for ref in spec.get("refs", ()):
        ax.axvline(ref["x"], color="0.5", linestyle=":", linewidth=1)
        ax.annotate(
            ref["label"], (ref["x"], 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", size="small"
        )
    for at, row in enumerate(spec["rows"]):
        colour, points = colours[row["color"]], row.get("points", ())
        ax.plot(points, [at] * len(points), "o", color=colour, alpha=0.3, markersize=3.5, markeredgewidth=0)
        if row.get("interval"):
            ax.plot(row["interval"], [at, at], color=colour, alpha=0.6, linewidth=3)
        if row.get("null") is not None:
            ax.plot([row["null"]] * 2, [at - 0.3, at + 0.3], color=colours["null"], linewidth=2.5)
        if row.get("value") is not None:
            ax.plot(row["value"], at, _SHAPES[row.get("marker", "circle")], color=colour, markersize=6)
    ax.set_yticks(range(len(spec["rows"])), [_words(row["name"]) for row in spec["rows"]])
    ax.set_ylim(len(spec["rows"]) - 0.5, -0.5)
    _scale(ax.xaxis, ax.set_xscale, spec["x"])
    ax.set_xlim(spec["x"]["min"], spec["x"]["max"])
    ax.set_xlabel(_words(spec["x"]["title"]))
    ax.spines[["top", "right"]].set_visible(False)


def _heat(ax, spec, colours):
    value, names = spec["value"], (spec["x"]["names"], spec["y"]["names"])
    cells = [[float("nan") if v is None else v for v in row] for row in spec["cells"]]
    ends = {"vmin": value["min"], "vmax": value["max"]}
    ramp = "RdBu_r" if value.get("diverging") else "cividis"
    picture = ax.imshow(cells, cmap=ramp, aspect="auto", interpolation="nearest", **ends)
    ax.figure.colorbar(picture, ax=ax, label=_words(value["title"]))
    for set_ticks, of in zip((ax.set_xticks, ax.set_yticks), names):
        shown = range(0, len(of), 1 + len(of) // 20)
        set_ticks(shown, [of[i] for i in shown])
    ax.set(xlabel=spec["x"]["title"], ylabel=spec["y"]["title"])


def _words(text):
    """S_ext and W_Q with subscripts. Names come from configurations: a dollar sign of theirs is no mathematics."""
    return re.sub(r"\b([SWrDT])_(ext|int|eff|\w)(?!\w)", r"$\1_\\mathrm{\2}$", text.replace("$", r"\$"))
