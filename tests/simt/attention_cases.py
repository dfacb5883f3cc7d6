"""One table of attention inputs for the CUDA kernels, and the truth about them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from artent_ext import reference

NAN = float("nan")
F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


class Case(NamedTuple):
    shape: tuple  # B, H, Hk, Tq, Tk, D
    dtype: torch.dtype = F32
    columns: int = 24  # of value and of what the products multiply
    diagonal: int | None = None
    mask: str | None = None
    key_range: str | None = None
    softcap: float | None = None
    layout: str = "contiguous"
    logits: float = 3.0  # standard deviation
    value_heads: str = "key"  # or "query"
    multiprocessors: int = 1


CASES = {
    "one": Case((1, 1, 1, 1, 1, 1), columns=1),
    "one key": Case((1, 2, 2, 5, 1, 7), columns=3),
    "below a tile": Case((1, 1, 1, 63, 63, 31)),
    "a tile": Case((1, 1, 1, 64, 64, 32), columns=64),
    "above a tile": Case((1, 1, 1, 65, 129, 33), columns=65),
    "batch and heads": Case((2, 3, 3, 20, 70, 16)),
    "long keys": Case((1, 1, 1, 10, 300, 8)),
    "long queries": Case((1, 1, 1, 300, 10, 8)),
    "dim 80": Case((1, 1, 1, 40, 70, 80), columns=80),
    "dim 96": Case((1, 1, 1, 40, 70, 96), BF16, columns=96),
    "dim 128": Case((1, 2, 1, 30, 66, 128), columns=128),
    "dim 192": Case((1, 1, 1, 20, 66, 192), F16, columns=192),
    "dim 256": Case((1, 1, 1, 30, 40, 256), columns=256),
    "dim 256, bfloat16": Case((1, 1, 1, 130, 40, 256), BF16, columns=256, diagonal=3),
    "dim 300": Case((1, 2, 1, 10, 70, 300), BF16, columns=300, diagonal=60),
    "columns 300": Case((1, 2, 1, 10, 70, 20), BF16, columns=300),
    "grouped": Case((2, 6, 2, 67, 70, 24), diagonal=20),
    "grouped, value of each": Case((1, 4, 2, 70, 66, 16), value_heads="query"),
    "one key head": Case((1, 4, 1, 33, 65, 12), BF16),
    "causal": Case((1, 2, 1, 200, 200, 16), F16, diagonal=0),
    "causal, more keys": Case((1, 1, 1, 40, 140, 16), diagonal=0),
    "causal lower right": Case((1, 1, 1, 40, 140, 16), diagonal=100),
    "causal, empty rows": Case((1, 2, 2, 140, 40, 16), diagonal=-100),
    "no key visible": Case((1, 1, 1, 6, 7, 4), diagonal=-50),
    "bool mask": Case((2, 2, 1, 66, 70, 16), mask="bool"),
    "bool mask, broadcast": Case((2, 2, 2, 66, 70, 16), BF16, mask="keys"),
    "additive mask": Case((2, 2, 1, 66, 70, 16), mask="additive"),
    "lowest number": Case((1, 2, 1, 66, 130, 16), mask="lowest"),
    "lowest number, bfloat16": Case((1, 2, 1, 66, 130, 16), BF16, mask="lowest"),
    "lowest number, float64": Case((1, 2, 1, 66, 130, 16), F64, mask="lowest"),
    "additive mask, causal": Case((1, 2, 2, 66, 70, 16), mask="additive", diagonal=0),
    "packed": Case((2, 2, 2, 150, 150, 16), key_range="packed", diagonal=0),
    "packed, bfloat16": Case((1, 2, 1, 170, 300, 24), BF16, key_range="packed"),
    "padding": Case((2, 2, 1, 70, 130, 16), key_range="padding"),
    "range past the ends": Case((1, 2, 2, 70, 66, 16), key_range="beyond"),
    "soft cap": Case((1, 2, 1, 70, 66, 16), softcap=4.0, diagonal=0),
    "soft cap, bfloat16, bool mask": Case((1, 2, 1, 70, 66, 16), BF16, softcap=4.0, mask="bool"),
    "soft cap, additive mask": Case((1, 2, 1, 70, 66, 16), softcap=4.0, mask="additive"),
    "soft cap, float64": Case((1, 2, 1, 20, 66, 16), F64, softcap=2.0, mask="additive"),
    "heads before tokens": Case((2, 3, 3, 66, 70, 20), layout="BTHD"),
    "component stride": Case((1, 2, 2, 66, 65, 20), layout="every other"),
    "padded rows": Case((1, 2, 2, 66, 65, 33), columns=21, layout="padded rows"),
    "padded rows, bfloat16": Case((1, 2, 1, 66, 65, 83), BF16, columns=21, layout="padded rows"),
    "bfloat16, strided, masked": Case((1, 2, 2, 30, 66, 17), BF16, mask="additive", layout="BTHD"),
    "float16": Case((1, 2, 1, 66, 70, 40), F16, columns=40),
    "bfloat16": Case((1, 2, 1, 140, 70, 64), BF16, columns=64, diagonal=4),
    "float64": Case((1, 2, 1, 66, 70, 40), F64, diagonal=0),
    "float64, masked": Case((1, 1, 1, 20, 70, 33), F64, mask="additive"),
    "float64, grouped": Case((1, 4, 2, 20, 70, 9), F64, value_heads="query"),
    "logits of 1e4": Case((1, 2, 2, 66, 70, 16), logits=4e3, diagonal=2),
    "logits of 1e4, bfloat16": Case((1, 1, 1, 66, 70, 16), BF16, logits=4e3),
    "logits of 1e4 in float64": Case((1, 1, 1, 20, 70, 16), F64, logits=4e3),
    "tiny logits": Case((1, 1, 1, 66, 70, 16), logits=1e-6),
    "shared keys": Case((1, 1, 1, 20, 600, 16), multiprocessors=1000),
    "shared keys, bfloat16": Case((1, 1, 1, 30, 600, 16), BF16, diagonal=560, multiprocessors=1000),
    "shared queries": Case((1, 2, 1, 600, 20, 16), F16, diagonal=-3, multiprocessors=1000),
    "shared ranges": Case((1, 1, 1, 600, 600, 8), BF16, key_range="packed", multiprocessors=8),
    "shared, value of each": Case((1, 4, 2, 300, 20, 16), value_heads="query", multiprocessors=1000),
    "no keys": Case((1, 2, 2, 5, 0, 4)),
    "no queries": Case((1, 2, 2, 0, 5, 4)),
    "no batch": Case((0, 2, 2, 5, 5, 4)),
}


def lay_out(x, layout):
    """The same values at other strides, with NaN in every gap: who reads a gap shows."""
    if layout == "BTHD":
        parent = torch.full((x.shape[0], x.shape[2], x.shape[1], x.shape[3] + 3), NAN, dtype=x.dtype)
        view = parent.transpose(1, 2)[..., 1:-2]
    elif layout == "every other":
        parent = torch.full((*x.shape[:-1], 2 * x.shape[-1]), NAN, dtype=x.dtype)
        view = parent[..., ::2]
    elif layout == "padded rows":  # that start on 16-byte boundaries and do not end there
        parent = torch.full((*x.shape[:-1], x.shape[-1] // 8 * 8 + 16), NAN, dtype=x.dtype)
        view = parent[..., : x.shape[-1]]
    else:
        return x
    return view.copy_(x)


class Inputs(NamedTuple):
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    options: dict  # of the native op
    grads: list  # of lse, entropy, purity
    grad_out: torch.Tensor


def make(case, seed=0):
    b, h, hk, tq, tk, d = case.shape
    random = torch.Generator().manual_seed(seed)
    normal = lambda *size: torch.randn(size, generator=random, dtype=F64)  # noqa: E731
    width = case.logits**0.5
    query = lay_out((normal(b, h, tq, d) * width).to(case.dtype), case.layout)
    key = lay_out((normal(b, hk, tk, d) * width).to(case.dtype), case.layout)
    value = normal(b, h if case.value_heads == "query" else hk, tk, case.columns)
    real = F64 if case.dtype == F64 else F32
    options = {"diagonal": case.diagonal, "scale": d**-0.5, "softcap": case.softcap}
    if case.mask in ("bool", "additive"):
        mask = normal(b, 1, tq, tk) > -0.5
        mask[:, :, 3] = False  # an empty row
        if case.mask == "additive":
            mask = normal(b, h, tq, tk).to(real).masked_fill(~mask, float("-inf"))
        options["attn_mask"] = mask
    elif case.mask == "keys":
        options["attn_mask"] = normal(1, 1, 1, tk) > 0
    elif case.mask == "lowest":  # what dense masks of trainers hold; its products overflow
        options["attn_mask"] = torch.zeros(1, 1, 1, tk, dtype=real)
        options["attn_mask"][..., : tk // 2 + 5] = torch.finfo(real).min
    rows = torch.arange(tq)
    if case.key_range == "packed":  # texts of 40 tokens
        start = rows // 40 * 40
        options["key_range"] = torch.stack([start, (start + 40).clamp(max=tk)], -1)[None, None]
    elif case.key_range == "padding":  # left in the first text, right in the second
        bounds = torch.tensor([[tk // 2, tk], [0, tk // 3]])
        options["key_range"] = bounds[:, None, None].expand(b, 1, tq, 2)
    elif case.key_range == "beyond":
        options["key_range"] = torch.stack([rows - 20, rows * 2 - 30], -1)[None, None].expand(b, h, tq, 2)
    grads = [normal(b, h, tq).to(real) for _ in range(3)]
    value, grad_out = (lay_out(x.to(case.dtype), case.layout) for x in (value, normal(b, h, tq, case.columns)))
    return Inputs(query, key, value, options, grads, grad_out)


def materialised(inputs, dtype, through_value=True):
    """(rows, out, gradients, probabilities, largest |logit|) of the plain definition, computed in `dtype`."""
    query, key, value = (x.detach().to(dtype).clone().requires_grad_() for x in inputs[:3])
    rows = reference.attention_stats(query, key, **inputs.options)
    p = reference.attention_probabilities(query, key, **inputs.options)
    out = p @ (value if value.shape[1] == query.shape[1] else value.repeat_interleave(len(p[0]) // len(value[0]), 1))
    seen = ~torch.isneginf(rows[0].detach())
    total = sum(((x * g.to(dtype))[seen]).sum() for x, g in zip(rows, inputs.grads))
    total = total + (out * inputs.grad_out.to(dtype)).sum() * through_value
    grads = torch.autograd.grad(total, (query, key, value))
    s = reference.attention_logits(query.detach(), key.detach(), **inputs.options)
    seen = s[s > torch.finfo(F32).min]
    largest = seen.abs().max().item() if seen.numel() else 0.0
    return [x.detach() for x in rows], out.detach(), grads, p.detach(), largest
