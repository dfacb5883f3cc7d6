"""``AttentionEntanglement`` as text: a table by layer, and one over lengths."""

import torch

from artent.theory import fit_growth


def growth_by_layer(result):
    """S_ext = c ln T + b of each layer's mean over heads and texts: dictionaries; none under three lengths.

    Lengths that some text is shorter than are left out. The error of c over texts is told where there are several.
    """
    whole = ~result.s_ext.isnan().any((1, 2, 3))
    lengths = [length for length, there in zip(result.lengths, whole.tolist()) if there]
    if len(set(lengths)) < 3:
        return []
    fits = []
    for at, layer in enumerate(result.layers):
        fit = fit_growth(lengths, result.s_ext[whole, at].mean(-1).T)
        interval = list(fit.interval) if fit.texts > 1 else None
        fits.append({"layer": layer, "c": fit.c, "b": fit.b, "interval": interval, "r_squared": fit.r_squared})
    return fits


def lines(result, growth):
    """The lines of the tables: each layer at the greatest length, then its mean over heads at every length."""
    longest = result.lengths.index(max(result.lengths))
    flat = result.s_ext.flatten(2)  # (lengths, layers, texts · heads)
    S, stderr = flat[longest], result.s_ext_stderr.flatten(2)[longest]
    measured = ~S.isnan()
    mean = S.nanmean(-1)
    error = stderr.nan_to_num(0.0).square().sum(-1).sqrt() / measured.sum(-1)
    titles = ["layer", "mean S", "± error", "min S", "max S", "exp(S)", "row entropy", "purity"]
    columns = [
        [str(layer) for layer in result.layers],
        _numbers(mean, 3),
        _numbers(error, 4),
        _numbers(S.nan_to_num(torch.inf).amin(-1), 3),
        _numbers(S.nan_to_num(-torch.inf).amax(-1), 3),
        _numbers(S.exp().nanmean(-1), 1),
        _numbers(result.entropy.flatten(1).mean(-1), 3),
        _numbers(result.purity.flatten(1).mean(-1), 4),
    ]
    if growth:
        titles += ["c", "R²"]
        columns += [[f"{fit['c']:.3f}" for fit in growth], [f"{fit['r_squared']:.3f}" for fit in growth]]
    yield f"S_ext in nats at T = {result.lengths[longest]}, over the heads of a layer ({result.variant})"
    yield from _table(titles, columns)
    if len(result.lengths) > 1:
        yield ""
        yield "S_ext in nats, mean over heads, against T"
        order = sorted(range(len(result.lengths)), key=result.lengths.__getitem__)
        columns = [[str(layer) for layer in result.layers], *(_numbers(flat[i].nanmean(-1), 3) for i in order)]
        yield from _table(["layer", *(str(result.lengths[i]) for i in order)], columns)


def _numbers(values, digits):
    return [f"{value:.{digits}f}" for value in values.tolist()]


def _table(titles, columns):
    widths = [max(map(len, (title, *column))) for title, column in zip(titles, columns, strict=True)]
    for row in (titles, *zip(*columns, strict=True)):
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
