"""The page's words: which claim stands where, with which charts, and text made safe for HTML."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

__all__ = ["ABOUT", "PAPER", "PARTS", "WIDE", "Claim", "badge", "told"]

WIDE = {"equivalence", "distances", "ratios"}  # figures with long names, or few rows: as wide as the page
PAPER = "https://arxiv.org/abs/2601.06788"


def told(text):
    """Text as HTML: escaped, with S_ext, r_int and W_Q set with their subscripts."""
    return re.sub(r"\b([SWrDT])_(ext|int|eff|\w)(?!\w)", r"\1<sub>\2</sub>", html.escape(str(text)))


def badge(standing):
    """A verdict's badge; its class is the standing's words."""
    kind = re.sub(r"\W+", "-", standing.strip().lower())
    return f"<span class='badge {kind}'>{html.escape(standing)}</span>"


@dataclass(frozen=True)
class Claim:
    """A claim's place on the page. ``title`` in the table of verdicts; ``figures``: (chart or family, title, "
    "caption)."""

    key: str
    title: str
    figures: tuple = ()


PARTS = (
    (
        "i",
        "What fine-tuning writes",
        "An update ΔW is read as a chain of sites, rows first. S(l) is its entropy at bond l, in nats; at the "
        "row|column "
        "cut it counts the rank that is used.",
        (
            Claim(
                "volume-law",
                "Volume law of the updates",
                (
                    ("rise", "On the way to the cut", "A straight line is a volume law. Bands: range over seeds."),
                    (
                        "slopes",
                        "Slope of the rise",
                        "Bars: range over seeds; faint: modules. Grey tick: random updates of the same shapes.",
                    ),
                ),
            ),
            Claim(
                "valley",
                "Entanglement valley in LoRA",
                (
                    (
                        "valley",
                        "Depth of the valley",
                        "Bars: range over seeds. A LoRA of rank r has no more than ln r at the cut, so a part of its "
                        "valley is forced: the grey ticks have the same shapes and nothing learned.",
                    ),
                ),
            ),
            Claim(
                "valley-full-ft",
                "Full FT differs",
                (
                    (
                        "valley-excess",
                        "Depth beyond what the rank makes",
                        "Zero is the valley of random updates of the same shapes.",
                    ),
                ),
            ),
            Claim(
                "valley-sensitive",
                "The valley follows hyper-parameters",
                (
                    (
                        "sweep-valley",
                        "Valley depth against a setting",
                        "Each at the end of its own run, everything else as it was. Runs that learned nothing are "
                        "left out.",
                    ),
                ),
            ),
            Claim(
                "theory-updates",
                "Updates against theory",
                (
                    (
                        "residuals",
                        "Measured less theory",
                        "Theory: random factors of the same rank, Page’s line where there is none. Bands: range over "
                        "seeds.",
                    ),
                ),
            ),
            Claim(
                "rank-use", "Rank that is used", (("effective-rank", "Effective rank", "Faint: modules and seeds."),)
            ),
            Claim(
                "off-cut",
                "What bonds off the cut add",
                (("off-cut", "Distance from Haar", "Haar keeps the singular values and draws the vectors at random."),),
            ),
            Claim("rank-bound", "Every profile keeps its bound"),
        ),
    ),
    (
        "ii",
        "What attention makes of it",
        "S_ext is the entropy of one head’s T×T attention matrix across its row|column cut. It never passes ln T: c "
        "= 1 of "
        "S_ext = c·ln T + b is the volume law of large T, c = 0 the area law, and a logarithmic correction lies "
        "between.",
        (
            Claim(
                "external-law",
                "Area law with a logarithmic correction, over T",
                (
                    ("growth", "S_ext against T", "Lines are means over layers, heads and texts."),
                    (
                        "exponents",
                        "The exponent c",
                        "Bars: intervals over texts, of all seeds. Faint: single heads. At finite T a volume law has "
                        "less than 1: its line is where a local window lies.",
                    ),
                ),
            ),
            Claim(
                "external-chain",
                "… over the bonds of A",
                (
                    (
                        "chain",
                        "The base model’s attention as a chain",
                        "Three readings fitted to the mean. Band: 10 % to 90 % of heads.",
                    ),
                    ("chain-models", "Every method’s", "Means over layers and heads; bands: range over seeds."),
                ),
            ),
            Claim(
                "external-steps",
                "Robust over training steps",
                (
                    (
                        "attention-steps",
                        "Shift of S_ext over the steps",
                        "How far a run is from its first step, rms over heads. Bands: range over seeds.",
                    ),
                ),
            ),
            Claim(
                "external-hyperparameters",
                "Robust to hyper-parameters",
                (
                    (
                        "sweep-attention",
                        "Shift of S_ext against a setting",
                        "From the method’s own setting, rms over heads, on the same texts, less what seeds differ by. "
                        "Bars: confidence intervals. Runs that learned nothing are left out.",
                    ),
                ),
            ),
            Claim(
                "theory-attention",
                "Attention against theory",
                (
                    (
                        "mixture",
                        "An outlier and a bulk",
                        "A dot a head of the base model. On the line, the largest Schmidt value and a random bulk "
                        "explain the entropy.",
                    ),
                ),
            ),
            Claim(
                "drift", "How far attention moved", (("drift", "Change of row entropies", "Faint: heads and seeds."),)
            ),
        ),
    ),
    (
        "iii",
        "No hair",
        "Methods leave their mark on the updates; does attention keep it? Equal means prove nothing, so heads are "
        "compared "
        "one by one, methods against seeds, within a margin stated beforehand, beside controls that a test must tell.",
        (
            Claim(
                "no-hair",
                "Attention does not tell methods apart",
                (
                    ("hair-updates", "In the updates", "A mark a run. Apart by colour: methods tell."),
                    ("hair-attention", "In attention", "A mark a run. On each other: no hair."),
                    (
                        "ratios",
                        "Methods as a multiple of seeds",
                        "Pairs of runs that differ in method and seed, against pairs that differ in seed alone. "
                        "Value: median.",
                    ),
                    (
                        "equivalence",
                        "The test",
                        "What two methods differ beyond what seeds do, with its interval. Within the shaded margin: "
                        "alike. The untrained model and LoRA at 10× its learning rate must lie beyond it, or the test "
                        "has no power; the other controls may lie within, and say how small a change it sees.",
                    ),
                    (
                        "distances",
                        "Distances and controls",
                        "Every head by itself, seeds included. Shaded: within the margin. Value: median over heads.",
                    ),
                ),
            ),
        ),
    ),
    (
        "iv",
        "MPS adaptation",
        "LoRA with its factor A as a chain of small cores whose bond has dimension χ.",
        (
            Claim(
                "mps-valley",
                "Its updates look like LoRA’s",
                (("mps", "MPS beside LoRA of its rank", "Dotted: random updates of the same shapes."),),
            ),
            Claim(
                "mps-loss",
                "Its loss is about LoRA’s",
                (("losses", "Held-out loss at the end", "Faint: seeds. Bars: their range."),),
            ),
        ),
    ),
    (
        "v",
        "What was learned",
        "What the comparison stands on: every method trained, at learning rates that suit it.",
        (
            Claim(
                "learning",
                "Every method learned",
                (
                    ("loss-new", "New text, held out", "Bands: range over seeds."),
                    ("loss-old", "Old text, held out", "What was forgotten."),
                ),
            ),
            Claim(
                "learning-rates",
                "Learning rates",
                (("sweep-loss", "Held-out loss against a setting", "At the end of each run."),),
            ),
        ),
    ),
)

# Sections of the page that look closer, after the claims: (id, title, words, figures).
ABOUT = (
    (
        "by-layer",
        "By layer and by step",
        "Any quantity of the profiles, means over seeds with their range.",
        (("layers", "Over the layers", ""), ("steps", "Over the steps", "")),
    ),
    (
        "heads",
        "Heads",
        "Every layer and head, mean over texts. Colours of one quantity mean the same for every model but the "
        "untrained.",
        (("heads", "By layer and head", "Point at a cell, or focus the chart and use the arrow keys."),),
    ),
    (
        "sweeps",
        "Settings that were swept",
        "One setting at a time, the rest as the method has it.",
        (("sweep", "At the end of each run", ""),),
    ),
    (
        "matched",
        "At equal loss",
        "At equal steps, methods have learned different amounts. Here each is drawn against its own held-out loss, "
        "so what stands above the same loss may be compared.",
        (("matched", "Against the held-out loss", ""),),
    ),
)
