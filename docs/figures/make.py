"""The figures of the documentation: `python docs/figures/make.py` writes NAME.svg and NAME-dark.svg beside itself.

Examples are drawn at random or built by hand, and say so; none is a measurement of a trained model. Seeds are fixed.
"""

from math import exp, log
from pathlib import Path

import artent
import matplotlib.pyplot as plt
import torch
from artent.theory import causal_uniform, gaussian_null, rank_bound
from examples import diverged, few_rows, random_full, random_lora, unused_rank
from matplotlib.patches import FancyArrowPatch, Rectangle

HERE = Path(__file__).parent
THEMES = {
    "": {"ink": "#1f2328", "faint": "#8c959f", "colours": ("#0072B2", "#D55E00", "#009E73", "#B0578D")},
    "-dark": {"ink": "#d7dce2", "faint": "#848d97", "colours": ("#56B4E9", "#F08A3C", "#2CC295", "#DE9AC4")},
}


def chain(theme):
    """An 8 × 8 matrix, its six sites, its five bonds."""
    fig, ax = plt.subplots(figsize=(6.6, 2.0))
    ink, (rows, cols, *_) = theme["ink"], theme["colours"]
    for i in range(8):
        for j in range(8):
            shade = 0.12 + 0.5 * ((3 * i + 5 * j) % 7) / 7
            ax.add_patch(Rectangle((j * 0.2, 1.4 - i * 0.2), 0.2, 0.2, fc=theme["faint"], alpha=shade, lw=0))
    ax.text(0.8, 1.72, "W, 8 × 8", ha="center", color=ink)
    ax.add_patch(FancyArrowPatch((1.85, 0.8), (2.45, 0.8), arrowstyle="-|>", mutation_scale=14, color=ink))
    at = [3.0 + 0.9 * k for k in range(6)]
    ax.plot(at, [0.8] * 6, color=ink, lw=1.5, zorder=1)
    for k, x in enumerate(at):
        ax.scatter(x, 0.8, s=230, color=rows if k < 3 else cols, zorder=2)
        ax.text(x, 0.8, "2", ha="center", va="center", color="white", fontsize=9, zorder=3)
    for k in range(5):
        middle = (at[k] + at[k + 1]) / 2
        ax.text(middle, 1.0, f"{k + 1}", ha="center", color=ink if k == 2 else theme["faint"], fontsize=9)
    middle = (at[2] + at[3]) / 2
    ax.plot([middle] * 2, [0.3, 0.95], color=ink, ls="--", lw=1)
    ax.text(middle, 0.12, "row|column cut", ha="center", color=ink, fontsize=9)
    ax.text((at[0] + at[2]) / 2, 1.35, "row sites", ha="center", color=rows)
    ax.text((at[3] + at[5]) / 2, 1.35, "column sites", ha="center", color=cols)
    ax.set(xlim=(-0.1, 7.9), ylim=(0, 1.95))
    ax.axis("off")
    return fig


def spectra(theme):
    """Three sets of probabilities, their entropy and how many equal ones would have it."""
    fig, axes = plt.subplots(1, 3, figsize=(5.6, 2.0), sharey=True)
    flat = [1 / 8] * 8
    decaying = [2.0**-k for k in range(8)]
    lone = [40.0, *[1.0] * 7]
    for ax, (name, p), colour in zip(
        axes, {"all alike": flat, "decaying": decaying, "one dominates": lone}.items(), theme["colours"]
    ):
        p = [x / sum(p) for x in p]
        S = -sum(x * log(x) for x in p)
        ax.bar(range(1, 9), p, color=colour)
        ax.set_title(f"{name}\nS = {S:.2f}, exp S = {exp(S):.1f}", fontsize=9)
        ax.set_xticks([1, 8])
    axes[0].set_ylabel("p")
    axes[1].set_xlabel("number of the singular value")
    return fig


def example(update):
    """A profile with the rank bound and the random null of its shapes, as every profile should be seen."""

    def draw(theme):
        profile, null = artent.entanglement_profile(update), gaussian_null(update, draws=8)
        fig, ax = plt.subplots(figsize=(5.6, 2.4))
        x = profile.bonds
        bound = rank_bound(profile.dims, profile.cut, profile.rank)
        ax.plot(x, bound, color=theme["faint"], ls=":", label="rank bound")
        ax.plot(x, null.mean, color=theme["faint"], lw=1, label="random of the same shapes")
        ax.plot(x, profile.entropy, "o-", color=theme["colours"][0], ms=4, label="update")
        ax.axvline(profile.cut, color=theme["ink"], lw=0.8, ls="--")
        ax.set(xlabel="bond", ylabel="S, nats", ylim=(0, 5.9), xticks=list(x))
        ax.text(profile.cut + 0.1, 5.45, "row|column cut", fontsize=8, color=theme["ink"])
        ax.legend(frameon=False, fontsize=8, loc="upper left")
        return fig

    return draw


def growth(theme):
    """S_ext against T for attention matrices without any model in them."""
    lengths = (16, 32, 64, 128, 256, 512)
    curves = {
        "sees the 8 keys before it": [_entropy(_window(T, 8)) for T in lengths],
        "random logits, σ = 2": [_entropy(_random(T, 2.0)) for T in lengths],
        "all keys before it alike": [causal_uniform(T) for T in lengths],
        "half of its weight on token 1": [_entropy(0.5 * _window(T, 8) + 0.5 * _sink(T)) for T in lengths],
    }
    fig, ax = plt.subplots(figsize=(5.6, 2.9))
    for (name, S), colour in zip(curves.items(), theme["colours"]):
        c = artent.theory.fit_growth(lengths, S).c
        ax.plot(lengths, S, "o-", ms=4, color=colour, label=f"{name}: c = {c:.2f}")
    ax.plot(lengths, [log(T) for T in lengths], color=theme["faint"], ls=":", label="ln T, the most there can be")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="T, tokens", ylabel="S_ext, nats", xticks=lengths, xticklabels=lengths)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.set_ylim(0, 9)
    return fig


def equivalence(theme):
    """Four intervals of a difference against a margin, and what each lets one say."""
    fig, ax = plt.subplots(figsize=(5.6, 1.9))
    cases = (
        (-0.05, 0.04, "equal within the margin"),
        (0.03, 0.08, "a difference, but within the margin"),
        (-0.06, 0.19, "not enough data"),
        (0.14, 0.30, "different"),
    )
    ax.axvspan(-0.1, 0.1, color=theme["faint"], alpha=0.2, lw=0)
    ax.axvline(0, color=theme["faint"], lw=0.8)
    for y, ((low, high, says), colour) in enumerate(zip(cases, theme["colours"])):
        ax.plot([low, high], [-y, -y], color=colour, lw=2.5, marker="|", ms=9)
        ax.text(0.34, -y, says, va="center", fontsize=9, color=theme["ink"])
    ax.set(yticks=[], xlim=(-0.15, 0.75), ylim=(-3.6, 0.6), xticks=[-0.1, 0, 0.1, 0.2, 0.3])
    ax.set_xlabel("difference in S_ext, nats; shaded: the margin, stated beforehand", loc="left")
    ax.spines["left"].set_visible(False)
    return fig


def _entropy(A):
    p = torch.linalg.svdvals(A.double()).square()
    return torch.special.entr(p / p.sum()).sum().item()


def _window(T, width):
    """Every query spreads its weight over the last ``width`` keys."""
    A = torch.ones(T, T).tril() - torch.ones(T, T).tril(-width)
    return A / A.sum(1, keepdim=True)


def _sink(T):
    return torch.eye(T)[:1].expand(T, T)


def _random(T, spread):
    logits = spread * torch.randn(T, T, generator=torch.Generator().manual_seed(0))
    return logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(1)


FIGURES = {
    "chain": chain,
    "spectra": spectra,
    "growth": growth,
    "equivalence": equivalence,
    "random-full": example(random_full()),
    "random-lora": example(random_lora()),
    "few-rows": example(few_rows()),
    "unused-rank": example(unused_rank()),
    "diverged": example(diverged()),
}


def main():
    for suffix, theme in THEMES.items():
        colour = theme["ink"]
        plt.rcParams.update(
            {f"{what}.color": colour for what in ("text", "xtick", "ytick")}
            | {"axes.edgecolor": colour, "axes.labelcolor": colour, "axes.spines.top": False}
            | {"axes.spines.right": False, "font.size": 9, "font.family": "sans-serif", "svg.fonttype": "none"}
            | {"svg.hashsalt": "artent", "figure.constrained_layout.use": True}
        )
        for name, draw in FIGURES.items():
            draw(theme).savefig(HERE / f"{name}{suffix}.svg", transparent=True, metadata={"Date": None})
            plt.close("all")


if __name__ == "__main__":
    main()
