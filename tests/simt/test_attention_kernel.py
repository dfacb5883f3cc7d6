"""The CUDA kernels of attention_stats, run on the simulated machine, against the plain definition in float64.

The yardstick is what plain float32 torch gets wrong on the same input, not a guessed tolerance.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from artent_ext import reference

NAN = float("nan")


class Case(NamedTuple):
    shape: tuple  # B, H, Hk, Tq, Tk, D
    dtype: torch.dtype = torch.float32
    diagonal: int | None = None
    mask: str | None = None
    key_range: str | None = None
    layout: str = "contiguous"
    logits: float = 3.0  # standard deviation


CASES = {
    "one": Case((1, 1, 1, 1, 1, 1)),
    "one key": Case((1, 2, 2, 5, 1, 7)),
    "below a tile": Case((1, 1, 1, 63, 63, 31)),
    "a tile": Case((1, 1, 1, 64, 64, 32)),
    "above a tile": Case((1, 1, 1, 65, 65, 33)),
    "batch and heads": Case((2, 3, 3, 20, 70, 16)),
    "long keys": Case((1, 1, 1, 10, 300, 8)),
    "long queries": Case((1, 1, 1, 300, 10, 8)),
    "dim 65": Case((1, 1, 1, 9, 70, 65)),
    "dim 128": Case((1, 2, 1, 30, 40, 128)),
    "dim 256": Case((1, 1, 1, 70, 66, 256)),
    "grouped": Case((2, 6, 2, 67, 70, 24)),
    "one key head": Case((1, 4, 1, 33, 65, 12)),
    "causal": Case((1, 2, 1, 130, 130, 16), diagonal=0),
    "causal, more keys": Case((1, 1, 1, 40, 140, 16), diagonal=0),
    "causal lower right": Case((1, 1, 1, 40, 140, 16), diagonal=100),
    "causal, empty rows": Case((1, 2, 2, 140, 40, 16), diagonal=-100),
    "no key visible": Case((1, 1, 1, 6, 7, 4), diagonal=-50),
    "bool mask": Case((2, 2, 1, 66, 70, 16), mask="bool"),
    "bool mask, broadcast": Case((2, 2, 2, 66, 70, 16), mask="keys"),
    "additive mask": Case((2, 2, 1, 66, 70, 16), mask="additive"),
    "lowest number": Case((1, 2, 1, 66, 130, 16), mask="lowest"),
    "lowest number, bfloat16": Case((1, 2, 1, 66, 130, 16), torch.bfloat16, mask="lowest"),
    "lowest number, float64": Case((1, 2, 1, 66, 130, 16), torch.float64, mask="lowest"),
    "additive mask, causal": Case((1, 2, 2, 66, 70, 16), mask="additive", diagonal=0),
    "packed": Case((2, 2, 2, 150, 150, 16), key_range="packed", diagonal=0),
    "padding": Case((2, 2, 1, 70, 130, 16), key_range="padding"),
    "range past the ends": Case((1, 2, 2, 70, 66, 16), key_range="beyond"),
    "heads before tokens": Case((2, 3, 3, 66, 70, 20), layout="BTHD"),
    "component stride": Case((1, 2, 2, 66, 65, 20), layout="every other"),
    "float16": Case((1, 2, 1, 66, 70, 40), torch.float16),
    "bfloat16": Case((1, 2, 1, 66, 70, 40), torch.bfloat16, diagonal=4),
    "bfloat16, strided, masked": Case((1, 2, 2, 30, 66, 17), torch.bfloat16, mask="additive", layout="BTHD"),
    "float64": Case((1, 2, 1, 66, 70, 40), torch.float64, diagonal=0),
    "float64, masked": Case((1, 1, 1, 20, 70, 33), torch.float64, mask="additive"),
    "logits of 1e4": Case((1, 2, 2, 66, 70, 16), logits=4e3, diagonal=2),
    "logits of 1e4 in float64": Case((1, 1, 1, 20, 70, 16), torch.float64, logits=4e3),
    "tiny logits": Case((1, 1, 1, 66, 70, 16), logits=1e-6),
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
    else:
        return x
    return view.copy_(x)


def make(case, seed=0):
    """query, key, options of the native op, three row gradients."""
    b, h, hk, tq, tk, d = case.shape
    random = torch.Generator().manual_seed(seed)
    normal = lambda *size: torch.randn(size, generator=random, dtype=torch.float64)  # noqa: E731
    width = case.logits**0.5
    query = lay_out((normal(b, h, tq, d) * width).to(case.dtype), case.layout)
    key = lay_out((normal(b, hk, tk, d) * width).to(case.dtype), case.layout)
    real = torch.float64 if case.dtype == torch.float64 else torch.float32
    options = {"diagonal": case.diagonal, "scale": d**-0.5}
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
    return query, key, options, grads


def truth(query, key, options, grads, dtype):
    """Rows and gradients of the plain definition, computed in `dtype`, and the largest |logit|."""
    query, key = (x.detach().to(dtype).clone().requires_grad_() for x in (query, key))
    rows = reference.attention_stats(query, key, **options)
    seen = ~torch.isneginf(rows[0].detach())
    total = sum(((x * g.to(dtype))[seen]).sum() for x, g in zip(rows, grads))
    s = reference.attention_logits(query.detach(), key.detach(), **options)
    seen_logits = s[s > torch.finfo(torch.float32).min]
    largest = seen_logits.abs().max().item() if seen_logits.numel() else 0.0
    return [x.detach() for x in rows], torch.autograd.grad(total, (query, key)), largest


def check(name, got, exact, plain, unit):
    """got is as near to exact as plain float32 (float64) arithmetic, thrice over, or as its own rounding allows."""
    assert got.shape == exact.shape
    if not got.numel():
        return
    finite = torch.isfinite(exact)
    assert torch.equal(got[~finite].double(), exact[~finite]), f"{name}: infinities differ"
    if not finite.any():
        return
    error, yardstick = ((x.double() - exact)[finite].abs().max().item() for x in (got, plain))
    allowed = 3 * yardstick + unit * (1 + exact[finite].abs().max().item())
    assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}, plain torch {yardstick:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(attention, name):
    case = CASES[name]
    query, key, options, grads = make(case)
    real = grads[0].dtype
    exact_rows, exact_grads, largest = truth(query, key, options, grads, torch.float64)
    plain_rows, plain_grads, _ = truth(query, key, options, grads, real)
    unit = torch.finfo(real).eps * (4 + largest)  # a logit's own rounding, which p = e^(s − lse) inherits
    rows = attention.forward(query, key, **options)
    for row, got, exact, plain in zip(("lse", "entropy", "purity"), rows, exact_rows, plain_rows):
        check(row, got, exact, plain, unit)
    half = torch.finfo(case.dtype).eps if case.dtype != real else 0.0  # the gradients are stored in the inputs' type
    got_grads = attention.backward(grads, rows, query, key, **options)
    for grad, got, exact, plain in zip(("grad_query", "grad_key"), got_grads, exact_grads, plain_grads):
        check(grad, got, exact, plain, unit + half)


@pytest.mark.parametrize("name", ["grouped", "causal", "packed", "additive mask", "bfloat16"])
def test_any_schedule_gives_the_same_bits(attention, name):
    query, key, options, grads = make(CASES[name])
    first = attention.forward(query, key, **options, seed=1)
    first += attention.backward(grads, first, query, key, **options, seed=1)
    for seed in (2, 3):
        rows = attention.forward(query, key, **options, seed=seed)
        again = rows + attention.backward(grads, rows, query, key, **options, seed=seed)
        assert all(torch.equal(x, y) for x, y in zip(first, again))


@pytest.mark.parametrize("present", [(), (0,), (1,), (2,), (0, 2)])
def test_absent_gradients_are_zero(attention, present):
    query, key, options, grads = make(CASES["grouped"])
    rows = attention.forward(query, key, **options)
    some = [g if n in present else None for n, g in enumerate(grads)]
    zeros = [g if n in present else torch.zeros_like(g) for n, g in enumerate(grads)]
    got, expected = (attention.backward(g, rows, query, key, **options) for g in (some, zeros))
    assert all(torch.equal(x, y) for x, y in zip(got, expected))


def test_an_empty_row_passes_no_gradient(attention):
    query, key, options, grads = make(CASES["bool mask"])
    rows = attention.forward(query, key, **options)
    assert torch.isneginf(rows[0][:, :, 3]).all()
    assert not rows[1][:, :, 3].any()
    assert not rows[2][:, :, 3].any()
    wild = [g.clone() for g in grads]
    for g in wild:
        g[:, :, 3] = float("inf")
    grad_query, grad_key = attention.backward(wild, rows, query, key, **options)
    assert not grad_query[:, :, 3].any()
    assert torch.isfinite(grad_key).all()


def test_nan_stays_in_its_row(attention):
    query, key, options, _ = make(CASES["causal"])
    query[0, 1, 70, 2] = NAN
    rows = attention.forward(query, key, **options)
    for row in rows:
        bad = torch.isnan(row)
        assert bad[0, 1, 70]
        assert bad.sum() == 1


def test_hidden_keys_may_hold_anything(attention):
    query, key, options, _ = make(CASES["packed"])
    expected = attention.forward(query, key, **options)
    key[:, :, 149] = NAN  # seen by the last query only
    got = attention.forward(query, key, **options)
    assert all(torch.equal(x[:, :, :149], y[:, :, :149]) for x, y in zip(got, expected))
