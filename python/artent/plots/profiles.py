"""Profiles over the bonds, with bounds, nulls and the valley; effective ranks over the layers."""

from __future__ import annotations

import torch

from artent.entanglement import EntanglementProfile
from artent.entropy import nats_per_unit
from artent.plots.base import COLOURS, new_axes, plt
from artent.theory import Null, rank_bound

_BAND = "certified bounds"
_CUT = "row|column cut"


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
    ax = ax or new_axes()
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
    ax = ax or new_axes()
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
    ax = ax or new_axes()
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
