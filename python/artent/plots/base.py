"""Matplotlib, imported here and nowhere else, and what all figures share."""

from __future__ import annotations

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install artent[plots]") from error

__all__ = ["COLOURS", "new_axes", "plt", "save"]

# Okabe and Ito's palette, told apart under every common colour blindness; black is kept for bounds.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def new_axes(width=6.4, height=4.0):
    """Axes of a figure of their own, inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def save(ax, path, *, close=True):
    """Write the figure that ``ax`` belongs to, as what the path's suffix says, and close it.

    ``close=False`` keeps it, as it is laid out, for another file.
    """
    ax.figure.savefig(path, dpi=150)
    ax.figure.set_layout_engine("none")
    if close:
        plt.close(ax.figure)
