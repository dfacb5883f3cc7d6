"""Matplotlib, imported here and nowhere else, and what all figures share."""

from __future__ import annotations

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install artent[plots]") from error

__all__ = ["COLOURS", "new_axes", "plt", "save"]

# Okabe and Ito's palette, told apart under every common colour blindness; black is kept for bounds.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

DPI = 150


def new_axes(width=6.4, height=4.0):
    """Axes of a figure of their own, inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def save(ax, path, *, close=True):
    """Write the figure that ``ax`` belongs to, as what the path's suffix says, and close it.

    ``close=False`` keeps it, as it is laid out, for another file.
    """
    figure, kind = ax.figure, str(path).rpartition(".")[2].lower()
    if kind in _WRITERS:
        dpi = figure.dpi
        _WRITERS[kind](figure, path)
        figure.set_dpi(dpi)
    else:
        figure.savefig(path, dpi=DPI)
    figure.set_layout_engine("none")
    if close:
        plt.close(figure)


# ``savefig`` draws a figure that has a layout twice, the first time to lay it out; a canvas lays it out as it draws.


def _png(figure, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 3})  # half the time of 6, files hardly larger


def _svg(figure, path):
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure).print_svg(path)


_WRITERS = {"png": _png, "svg": _svg}
