"""Sampled attention rows and attention outputs of a model: what no-hair is tested on beside S_ext (docs/math.md §5)."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from artent.distributed import processes
from artent.study.measuring.growth import of_length
from artent.study.measuring.watched import attention_rows, one_text, watched

__all__ = ["positions", "samples", "samples_record", "write_samples"]

_TOKENS = 1 << 14  # texts go through the model together up to so many


def samples(model, texts, rows):
    """Attention rows and attention outputs of every layer at a few query positions.

    Args:
        model: as for ``attention_entanglement``: any dtype, grouped queries, under PEFT; it is left as it was.
        texts: (texts, T) token ids, all of them real tokens.
        rows: how many query positions, see ``positions``.

    Returns:
        {"rows": (layers, texts, heads, rows, T) float16, "outputs": (layers, texts, rows, heads·D) float32}: softmax
        probabilities, from the model's queries and keys in float64, rounded at the end (a total variation is right to
        3·10⁻⁸ a key); and what goes into the output projection. Both on the CPU.
    """
    T = texts.shape[1]
    at, found = positions(T, rows), {}

    def see(layer, query, key, visible, output):
        where = at.to(query.device)
        A = [attention_rows(*of[:2], where, **of[2]) for of in _each(query, key, visible)]
        kept = torch.cat(A).half().cpu(), output[:, where].flatten(2).float().cpu()
        found.setdefault(layer, []).append(kept)

    for part in texts.split(max(1, _TOKENS // T)):
        watched(model, part, see)
    with torch.autocast("cpu", enabled=False):  # which joins no float16
        layers = [tuple(map(torch.cat, zip(*found[layer]))) for layer in sorted(found)]
        return dict(zip(("rows", "outputs"), map(torch.stack, zip(*layers))))


def positions(T, rows):
    """(rows,) query positions evenly spread over the second half of T tokens, the last one included.

    Raises ValueError where the half holds fewer.
    """
    if not 1 <= rows <= T - T // 2:
        raise ValueError(f"rows is {rows}; expected 1 … {T - T // 2}, the second half of {T} tokens (measure.rows)")
    return torch.linspace(T - 1, T // 2, rows, dtype=torch.float64).round().long().flip(0)


def samples_record(model, texts, measure, name, folder, stem=None):
    """The samples of ``model`` at the longest of ``measure.lengths``, written to ``folder``/samples: their record.

    ``stem`` names the file, ``name`` the model in the record; None: as the model. Of several processes, all of which
    run the model, the first one writes.
    """
    file = f"samples/{stem or name}.safetensors"
    found = samples(model, of_length(texts, max(measure.lengths)), measure.rows)
    if processes().main:
        write_samples(Path(folder) / file, found)
    return {"kind": "samples", "model": name, "file": file}


def write_samples(path, tensors):
    """A safetensors file of ``samples`` that is whole or absent, whenever the process is killed.

    Its metadata names the query positions, which are also those of the rows' last dimension.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    *_, rows, T = tensors["rows"].shape
    told = {"positions": " ".join(map(str, positions(T, rows).tolist()))}
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, told)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _each(query, key, visible):
    return (one_text(text, query, key, visible) for text in range(len(query)))
