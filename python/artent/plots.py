"""Figures, and nothing but figures: matplotlib is imported here and nowhere else."""

from __future__ import annotations

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install artent[plots]") from error

import torch

from artent.entanglement import EntanglementProfile
from artent.entropy import nats_per_unit
from artent.theory import Null, rank_bound

# Okabe and Ito's palette, told apart under every common colour blindness; black is kept for bounds.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_BAND = "certified bounds"
_CUT = "row|column cut"
_NAMED = {**{f"m{i}": colour for i, colour in enumerate(COLOURS)}, "ink": "black", "null": "0.5", "other": "#8F3FA8"}


def profile(profile, ax=None, *, nulls=None, label=None):
    """Entropy against bond, with the rank bound, the row|column cut and the valley marked.

    Certain bounds are shaded. A randomized profile is drawn midway between them, and its valley is a number only where
    they agree on its digits, else the interval that they leave; a hybrid one is drawn with its standard errors.

    Args:
        profile: an ``EntanglementProfile``.
        ax: matplotlib axes; None for new ones.
        nulls: {name: values} to draw beside it, each an ``artent.theory.Null``, another ``EntanglementProfile``, or a
            tensor, array or sequence over bonds, in the unit of the profile.
        label: what the legend calls the profile.

    Returns the axes. Raises ValueError for nulls that have not one value a bond.
    """
    ax = ax or plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
    bonds, S = profile.bonds, profile.entropy.detach().cpu()
    ax.plot(bonds, S, color=COLOURS[0], marker="o", markersize=4, linewidth=2, zorder=3, label=label or "profile")
    if profile.method != "exact":
        name = None if _BAND in ax.get_legend_handles_labels()[1] else _BAND
        low, high = profile.lower.detach().cpu(), profile.upper.detach().cpu()
        ax.fill_between(bonds, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label=name)
    if profile.stderr.any():
        error = profile.stderr.cpu()
        x, y, e = (v[error > 0] for v in (torch.tensor(bonds), S, error))
        ax.errorbar(x, y, e, fmt="none", ecolor=COLOURS[0], capsize=3, label="standard error")
    _draw_bound(ax, profile)
    for colour, (name, null) in zip(COLOURS[1:] * (len(nulls or {}) + 1), (nulls or {}).items()):
        middle, low, high = _null(name, null, profile)
        ax.plot(bonds, middle, color=colour, linestyle="--", linewidth=1.2, zorder=4, label=name)  # seen over a match
        if low is not None:
            ax.fill_between(bonds, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.autoscale(axis="y")  # for what is drawn on axes that were fixed before
    ax.set_ylim(bottom=0)
    if profile.cut in bonds:
        _mark_cut(ax, profile)
    _name_axes(ax, profile)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def profiles(named, ax=None, *, title=None):
    """Profiles of one chain and nominal rank in one picture, below the rank bound they share.

    Up to six are told apart by colour and named; more are coloured in their order, from the first to the last.
    Bounds are shaded about the middle between them, standard errors about an estimate.

    Args:
        named: {name: ``EntanglementProfile``}, such as those of a kind of module by layer.
        ax: matplotlib axes; None for new ones.
        title: what they are, said above them.

    Returns the axes. Raises ValueError for none at all, or for sites, ranks, orders or units that differ.
    """
    asked = {(p.sites, p.rank, p.alpha, p.log_base) for p in named.values()}
    if len(asked) != 1:
        raise ValueError(f"named: expected profiles of one chain, rank, order and unit, got {len(asked)} kinds of them")
    first = next(iter(named.values()))
    ax = ax or plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
    few = len(named) <= len(COLOURS)
    colours = COLOURS if few else plt.get_cmap("viridis")(torch.linspace(0, 0.95, len(named)))
    for colour, (name, p) in zip(colours, named.items()):
        style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1.5 if few else 1, "zorder": 3}
        S = p.entropy.detach().cpu()
        ax.plot(p.bonds, S, label=name if few else None, **style)
        if p.method != "exact":
            error = p.stderr.cpu() if p.stderr.any() else p.error.detach().cpu()
            ax.fill_between(p.bonds, S - error, S + error, color=colour, alpha=0.15, linewidth=0)
    _draw_bound(ax, first)
    if first.cut in first.bonds:
        ax.axvline(first.cut, color="0.75", linewidth=0.8, zorder=0, label=_CUT)
    if not few:
        scale = plt.cm.ScalarMappable(plt.Normalize(0, len(named) - 1), "viridis")
        bar = ax.figure.colorbar(scale, ax=ax, ticks=[0, len(named) - 1])
        bar.ax.set_yticklabels([next(iter(named)), next(reversed(named))])
    ax.set_ylim(bottom=0)
    _name_axes(ax, first, title)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def effective_ranks(measured, ax=None):
    """Effective rank against layer, a line a kind of module through the means, nominal ranks dotted.

    Bars are bounds, or an estimate's standard error.

    Args:
        measured: a sequence of (kind, layer, ``EntanglementProfile``).
        ax: matplotlib axes; None for new ones.

    Returns the axes.
    """
    ax = ax or plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1]
    kinds = {}
    for kind, layer, p in measured:
        kinds.setdefault(kind, {}).setdefault(layer, []).append(p)
    for colour, (kind, layers) in zip(COLOURS * (1 + len(kinds)), kinds.items()):
        drawn = [(layer, p) for layer in sorted(layers) for p in layers[layer]]
        x = [layer for layer, _ in drawn]
        middle = torch.tensor([float(p.effective_rank) for _, p in drawn])
        bars = torch.tensor([_reach(p) for _, p in drawn]).T.clamp_min(0)
        ax.errorbar(x, middle, yerr=bars, fmt="o", color=colour, markersize=4, elinewidth=0.8, capsize=2)
        means = [sum(float(p.effective_rank) for p in layers[layer]) / len(layers[layer]) for layer in sorted(layers)]
        ax.plot(sorted(layers), means, color=colour, linewidth=1.5, label=kind)
    for rank in sorted({p.rank for _, _, p in measured if p.rank is not None}):
        ax.axhline(rank, color="black", linestyle=":", linewidth=1, label=f"nominal rank {rank}")
    ax.set_ylim(bottom=0)
    ax.set(xlabel="layer", ylabel="effective rank, exp S at the row|column cut")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _draw_bound(ax, profile):
    bound = rank_bound(profile.dims, profile.cut, profile.rank)
    values = [nats / nats_per_unit(profile.log_base) for nats in bound]
    ax.plot(profile.bonds, values, color="black", linestyle=":", linewidth=1, label="rank bound")


def _name_axes(ax, profile, title=None):
    size = "{}×{}".format(*profile.shape) + (f", rank {profile.rank}" if profile.rank else "")
    ax.set_title(f"{title}: {size}" if title else size, loc="left")
    symbol = "S" if profile.alpha == 1 else f"S, Rényi {profile.alpha:g}"
    ax.set(xlabel="bond", ylabel=f"{symbol} ({profile.unit})")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)


def _reach(p):
    """How far below and above its effective rank the truth may lie: bounds, or one standard error."""
    if error := float(p.effective_rank_stderr):
        return error, error
    rank, (low, high) = float(p.effective_rank), p.effective_rank_bounds
    return rank - float(low), float(high) - rank


def _null(name, null, profile):
    """(middle, low, high) of a null over the bonds of the profile, in its unit; low and high are None without any."""
    if isinstance(null, Null):
        mean, std = torch.tensor(null.mean), torch.tensor(null.std)
        lines = mean, mean - std, mean + std
    elif isinstance(null, EntanglementProfile):
        unit = nats_per_unit(null.log_base) / nats_per_unit(profile.log_base)
        lines = [x * unit for x in (null.entropy, null.lower, null.upper)]
        lines = lines if null.method != "exact" else (lines[0], None, None)
    else:
        lines = torch.as_tensor(null), None, None
    if lines[0].shape != profile.entropy.shape:
        raise ValueError(
            f"nulls[{name!r}]: expected {len(profile.bonds)} values, one for each bond of the profile, got shape "
            f"{tuple(lines[0].shape)} (another shape of the update, or other sites?)"
        )
    return [x if x is None else x.detach().cpu().double() for x in lines]


def _mark_cut(ax, profile):
    """A line at the row|column cut, and an arrow down the valley where there is certainly one to see."""
    cut, top = profile.cut, float(profile.max_entropy)
    foot = float(profile.cut_bounds[0])
    high = float(profile.valley_bounds[1])
    deep = foot < 0.2 * ax.get_ylim()[1]  # no room below it for words; at the head the valley is wide
    ax.axvline(cut, color="0.75", linewidth=0.8, zorder=0)
    small = {"textcoords": "offset points", "fontsize": "small", "color": "0.35"}
    if all(text.get_text() != _CUT for text in ax.texts):
        at = {"xytext": (4, -4), "va": "top"} if deep else {"xytext": (4, 4), "va": "bottom"}
        ax.annotate(_CUT, (cut, 1 if deep else 0), xycoords=("data", "axes fraction"), ha="left", **at, **small)
    if high <= 0.05 * top:
        return
    valley = profile.printed("valley_depth")
    if "…" not in valley:
        arrow = {"arrowstyle": "<->", "color": "0.35", "shrinkA": 0}
        ax.annotate("", (cut, float(profile.cut_entropy)), (cut, top), arrowprops=arrow)
    if deep:
        ax.annotate(f"valley {valley}", (cut, top), xytext=(-4, 0), ha="right", va="bottom", **small)
    else:
        ax.annotate(f"valley {valley}", (cut, foot), xytext=(0, -6), ha="center", va="top", **small)


def attention_heads(result, ax=None, *, length=None):
    """S_ext of every head at one length, a heat map of layers and heads; means over texts.

    Args:
        result: an ``artent.attention.AttentionEntanglement``.
        ax: matplotlib axes; None for new ones.
        length: one of ``result.lengths``; None for the greatest.

    Returns the axes. Raises ValueError for a length that wasn't measured.
    """
    length = max(result.lengths) if length is None else length
    if length not in result.lengths:
        raise ValueError(f"length is {length}; measured were {', '.join(map(str, result.lengths))}")
    S = result.s_ext[result.lengths.index(length)].nanmean(1)  # (layers, heads)
    layers, heads = S.shape
    size = (2.2 + 0.28 * min(heads, 40), 1.4 + 0.24 * min(layers, 60))
    ax = ax or plt.subplots(figsize=size, layout="constrained")[1]
    picture = ax.imshow(S, cmap="viridis", aspect="auto", interpolation="nearest")
    ax.figure.colorbar(picture, ax=ax, label="S_ext (nats)")
    ax.set_title(f"T = {length}", loc="left")
    ax.set(xlabel="head", ylabel="layer")
    ticks = range(0, layers, 1 + layers // 20)
    ax.set_yticks(ticks, [str(result.layers[i]) for i in ticks])
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def attention_growth(result, ax=None, *, nulls=None):
    """S_ext against T, a line a layer (mean over texts and heads), with bounds as bars where it was estimated.

    Args:
        result: an ``artent.attention.AttentionEntanglement``.
        ax: matplotlib axes; None for new ones.
        nulls: {name: values at ``result.lengths``} to draw beside it, in nats.

    Returns the axes.
    """
    ax = ax or plt.subplots(figsize=(7.2, 4.4), layout="constrained")[1]
    order = sorted(range(len(result.lengths)), key=result.lengths.__getitem__)
    T = [result.lengths[i] for i in order]
    S, low, high = (x[order].flatten(2).nanmean(-1).T for x in (result.s_ext, result.s_ext_lower, result.s_ext_upper))
    few = len(result.layers) <= len(COLOURS)
    colours = COLOURS if few else plt.get_cmap("viridis")(torch.linspace(0, 0.95, len(result.layers)))
    for at, layer in enumerate(result.layers):
        bars = torch.stack((S[at] - low[at], high[at] - S[at])).clamp_min(0)
        style = {"color": colours[at], "marker": "o", "markersize": 3.5, "linewidth": 1.5, "capsize": 2}
        ax.errorbar(T, S[at], yerr=bars, label=f"layer {layer}" if few else None, elinewidth=0.8, **style)
    ax.plot(T, torch.tensor(T).log(), color="black", linestyle=":", linewidth=1, label="ln T, the most there can be")
    for dash, (name, values) in zip(("--", "-.", ":") * len(nulls or ()), (nulls or {}).items()):
        ax.plot(T, [values[i] for i in order], color="0.5", linestyle=dash, linewidth=1.2, label=name)
    if not few:
        scale = plt.cm.ScalarMappable(plt.Normalize(result.layers[0], result.layers[-1]), "viridis")
        ax.figure.colorbar(scale, ax=ax, label="layer")
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xticks(T, [str(tokens) for tokens in T])
    ax.set_ylim(bottom=0)
    bars = "; bars are bounds" if "streamed" in result.methods else ""
    ax.set(xlabel="T, tokens (logarithmic)", ylabel=f"S_ext (nats), mean over heads{bars}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def chart(spec, ax=None):
    """Draw a chart of the study's report; ``spec`` is described in ``artent.study.figures``. Returns the axes."""
    rows = spec.get("rows")
    height = 4.0 if rows is None else 1.2 + 0.36 * len(rows)
    ax = ax or plt.subplots(figsize=(7.2, height), layout="constrained")[1]
    if spec["x"].get("kind") == "log":
        ax.set_xscale("log")
        ax.minorticks_off()
    (_lines if rows is None else _dots)(ax, spec)
    ax.set_xlabel(spec["x"]["title"])
    if "ticks" in spec["x"]:
        ax.set_xticks(spec["x"]["ticks"], [f"{tick:g}" for tick in spec["x"]["ticks"]])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def save(ax, path):
    """Write the figure that ``ax`` belongs to, and close it."""
    ax.figure.savefig(path, dpi=150)
    plt.close(ax.figure)


def _lines(ax, spec):
    for band in spec.get("bands", ()):
        ax.fill_between(*zip(*band["points"]), color=_NAMED[band["color"]], alpha=0.15, linewidth=0)
    for s in spec["series"]:
        width, dash = s.get("width", 2), s.get("dash")
        ax.plot(
            *zip(*s["points"]),
            label=s["name"] or None,
            color=_NAMED[s["color"]],
            linewidth=0.8 * width,
            linestyle="none" if not width else (0, tuple(map(float, dash.split()))) if dash else "-",
            alpha=0.3 if s.get("faint") else 1,
            marker="o" if s.get("dots") else None,
            markersize=3.5,
        )
    ax.set_ylabel(spec["y"]["title"])
    ax.set_ylim(bottom=spec["y"].get("min"))
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _dots(ax, spec):
    for ref in spec.get("refs", ()):
        ax.axvline(ref["x"], color="0.5", linestyle=":", linewidth=1)
        ax.annotate(ref["label"], (ref["x"], 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    for at, row in enumerate(spec["rows"]):
        colour, points = _NAMED[row["color"]], row.get("points", ())
        ax.plot(points, [at] * len(points), "o", color=colour, alpha=0.3, markersize=3.5)
        if "interval" in row:
            ax.plot(row["interval"], [at, at], color=colour, alpha=0.6, linewidth=3)
        ax.plot(row["value"], at, "o", color=colour, markersize=6)
    ax.set_yticks(range(len(spec["rows"])), [row["name"] for row in spec["rows"]])
    ax.set_ylim(len(spec["rows"]) - 0.5, -0.5)
