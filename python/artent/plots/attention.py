"""Attention: heads as a heat map, growth with the length."""

from __future__ import annotations

import torch

from artent.plots.base import COLOURS, new_axes, plt


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
    ax = ax or new_axes(*size)
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
    ax = ax or new_axes(7.2, 4.4)
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
