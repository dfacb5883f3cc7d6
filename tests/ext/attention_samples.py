"""One table of attention inputs and one of ops: correctness, gradients, opcheck and compile all run through them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import artent_ext
from artent_ext import reference


@dataclass(frozen=True)
class Sample:
    name: str
    query: tuple[int, ...]
    key: tuple[int, ...]
    options: Callable[[torch.Generator], dict] = lambda generator: {}
    reference: Callable[[dict], dict] = lambda options: options  # the op's options in the reference's words
    scale: float | None = None
    softcap: float | None = None
    columns: int = 6  # of value and x
    value_heads: int | None = None  # by default key's

    def make(self, dtype):
        """(query, key, options of the op, options of the reference)."""
        generator = self._generator()
        query = torch.randn(self.query, generator=generator).to(dtype)
        key = torch.randn(self.key, generator=generator).to(dtype)
        options = self.options(generator)
        reference = self.reference(options)
        numbers = {"scale": self.scale, "softcap": self.softcap}
        gqa = len(self.query) > 2 and self.query[-3] != self.key[-3]
        return query, key, {**options, "enable_gqa": gqa, **numbers}, {**reference, **numbers}

    def columns_for(self, op, dtype):
        """What the op multiplies: [], [value] or [x]."""
        if op == "stats":
            return []
        heads = self.query[-3:-2]
        if op == "forward":
            heads = self.key[-3:-2] if self.value_heads is None else (self.value_heads,)
        rows = self.query[-2] if op == "transposed" else self.key[-2]
        shape = (*self.query[:-3], *heads, rows, self.columns)
        return [torch.randn(shape, generator=self._generator()).to(dtype)]

    def _generator(self):
        return torch.Generator().manual_seed(sum(map(ord, self.name)))


OPS = ["stats", "forward", "apply", "transposed"]


def call(module, op, inputs, options):
    """The op's outputs as a tuple: of artent_ext, or of its reference."""
    if op == "stats":
        return tuple(module.attention_stats(*inputs, **options))
    if op == "forward":
        out, stats = module.scaled_dot_product_attention_with_stats(*inputs, **options)
        return (out, *stats)
    return (module.attention_apply(*inputs, transpose=op == "transposed", **options),)


def ours(op, inputs, options):
    return call(artent_ext, op, inputs, options)


def truth(op, inputs, options):
    """In the inputs' dtype; an additive mask follows it."""
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options = {**options, "attn_mask": mask.to(inputs[0].dtype)}
    return call(reference, op, inputs, options)


def _causal(offset):
    return lambda options: {"diagonal": offset}


def _random_mask(*shape, keep=0.6):
    return lambda g: {"attn_mask": torch.rand(shape, generator=g) < keep}


def _bias(*shape, hidden=0.3):
    def build(g):
        bias = torch.randn(shape, generator=g)
        return {"attn_mask": bias.masked_fill(torch.rand(shape, generator=g) < hidden, float("-inf"))}

    return build


def _intervals(batch, queries, keys, beyond=0):
    def build(g):
        ends = torch.randint(-beyond, keys + 1 + beyond, (batch, queries, 2), generator=g)
        return {"key_range": ends if beyond else ends.sort(-1).values}

    return build


def _given(**options):
    return lambda generator: options


def _seen(queries, keys, sees):
    """The reference's mask: does query i see key j? Key ranges stay as they are."""

    @functools.cache
    def mask():
        return torch.tensor([[sees(i, j) for j in range(keys)] for i in range(queries)])

    return lambda options: {"attn_mask": mask(), **{k: v for k, v in options.items() if k == "key_range"}}


def _text(boundaries, row):
    """(number of the text, position in it); None past the last."""
    for text, (begin, end) in enumerate(itertools.pairwise(boundaries)):
        if begin <= row < end:
            return text, row - begin
    return None


def _packed(queries, keys, cu_q, cu_k, sees):
    def same_text(i, j):
        q, k = _text(cu_q, i), _text(cu_k, j)
        return q is not None and k is not None and q[0] == k[0] and sees(q[1], k[1])

    return _seen(queries, keys, same_text)


CAUSAL = {"is_causal": True}
TEXTS, KEY_TEXTS = [0, 30, 30, 95, 140], [0, 33, 40, 97, 110]

SAMPLES = [
    Sample("one query, one key", (1, 1, 1, 4), (1, 1, 1, 4)),
    Sample("one key", (1, 2, 30, 8), (1, 2, 1, 8)),
    Sample("plain", (2, 2, 33, 16), (2, 2, 65, 16)),
    Sample("larger than a tile", (1, 2, 130, 24), (1, 2, 1050, 24), columns=40),
    Sample("many keys", (1, 1, 130, 8), (1, 1, 4099, 8)),
    Sample("many queries", (1, 1, 4099, 8), (1, 1, 67, 8), _given(**CAUSAL), _causal(0)),
    Sample("odd head dimension", (1, 1, 67, 5), (1, 1, 31, 5), columns=7),
    Sample("head dimension one", (1, 2, 9, 1), (1, 2, 17, 1), columns=1),
    Sample("head dimension 64", (1, 2, 70, 64), (1, 2, 70, 64), _given(**CAUSAL), _causal(0), columns=64),
    Sample("head dimension 80", (1, 2, 20, 80), (1, 1, 150, 80), columns=80),
    Sample("head dimension 96", (1, 1, 40, 96), (1, 1, 50, 96), columns=96),
    Sample("head dimension 128", (1, 2, 70, 128), (1, 1, 70, 128), _given(**CAUSAL), _causal(0), columns=128),
    Sample("wide head", (1, 1, 20, 256), (1, 1, 40, 256), columns=256),
    Sample("causal", (1, 2, 70, 16), (1, 2, 70, 16), _given(**CAUSAL), _causal(0)),
    Sample("causal, more keys", (1, 1, 40, 8), (1, 1, 90, 8), _given(**CAUSAL), _causal(0)),
    Sample("causal, more queries", (1, 1, 90, 8), (1, 1, 40, 8), _given(**CAUSAL), _causal(0)),
    Sample(
        "causal bias lower right",
        (1, 2, 40, 8),
        (1, 2, 90, 8),
        lambda g: {"attn_mask": causal_lower_right(40, 90)},
        _causal(50),
    ),
    Sample(
        "causal bias upper left",
        (1, 2, 40, 8),
        (1, 2, 90, 8),
        lambda g: {"attn_mask": causal_upper_left(40, 90)},
        _causal(0),
    ),
    Sample("grouped queries", (2, 6, 50, 16), (2, 2, 70, 16), _given(**CAUSAL), _causal(0)),
    Sample("one key head", (1, 4, 20, 8), (1, 1, 30, 8)),
    Sample("grouped queries, values of their own", (2, 6, 20, 8), (2, 2, 140, 8), value_heads=6),
    Sample("bool mask", (2, 3, 40, 8), (2, 3, 75, 8), _random_mask(2, 3, 40, 75)),
    Sample("bool mask, rows without a key", (1, 2, 40, 8), (1, 2, 33, 8), _random_mask(1, 1, 40, 33, keep=0.05)),
    Sample("broadcast mask", (2, 3, 40, 8), (2, 3, 75, 8), _random_mask(2, 1, 1, 75)),
    Sample("two-dimensional bias", (2, 3, 40, 8), (2, 3, 75, 8), _bias(40, 75)),
    Sample("bias hiding all", (1, 1, 10, 8), (1, 1, 12, 8), _bias(10, 12, hidden=0.9)),
    Sample("key ranges", (2, 4, 60, 8), (2, 2, 600, 8), _intervals(2, 60, 600)),
    Sample("key ranges beyond the keys", (2, 2, 60, 8), (2, 2, 40, 8), _intervals(2, 60, 40, beyond=20)),
    Sample(
        "window", (1, 2, 150, 16), (1, 2, 150, 16), _given(window=20), _seen(150, 150, lambda i, j: 0 <= i - j < 20)
    ),
    Sample(
        "window to both sides",
        (1, 2, 90, 8),
        (1, 2, 140, 8),
        _given(window=(7, 3)),
        _seen(90, 140, lambda i, j: i - 7 <= j <= i + 3),
    ),
    Sample(
        "window to one side",
        (1, 1, 30, 8),
        (1, 1, 40, 8),
        _given(window=(-1, 5)),
        _seen(30, 40, lambda i, j: j <= i + 5),
    ),
    Sample(
        "causal window",
        (1, 2, 300, 8),
        (1, 1, 200, 8),
        _given(**CAUSAL, window=(9, None)),
        _seen(300, 200, lambda i, j: 0 <= i - j <= 9),
    ),
    Sample(
        "window from the lower right",
        (1, 2, 40, 8),
        (1, 2, 90, 8),
        lambda g: {"attn_mask": causal_lower_right(40, 90), "window": 8},
        _seen(40, 90, lambda i, j: 0 <= i + 50 - j < 8),
    ),
    Sample(
        "window and key ranges",
        (2, 2, 60, 8),
        (2, 2, 60, 8),
        lambda g: {**_intervals(2, 60, 60)(g), "window": (20, 20)},
        _seen(60, 60, lambda i, j: abs(i - j) <= 20),
    ),
    Sample(
        "packed texts",
        (2, 2, 150, 8),
        (2, 2, 150, 8),
        _given(**CAUSAL, cu_seqlens_q=torch.tensor(TEXTS, dtype=torch.int32)),
        _packed(150, 150, TEXTS, TEXTS, lambda i, j: j <= i),
    ),
    Sample(
        "packed texts of other lengths",
        (1, 4, 150, 8),
        (1, 2, 120, 8),
        _given(cu_seqlens_q=torch.tensor(TEXTS), cu_seqlens_k=torch.tensor(KEY_TEXTS)),
        _packed(150, 120, TEXTS, KEY_TEXTS, lambda i, j: True),
    ),
    Sample(
        "packed texts, causal window",
        (1, 1, 150, 8),
        (1, 1, 120, 8),
        _given(**CAUSAL, cu_seqlens_q=torch.tensor(TEXTS), cu_seqlens_k=torch.tensor(KEY_TEXTS), window=12),
        _packed(150, 120, TEXTS, KEY_TEXTS, lambda i, j: 0 <= i - j < 12),
    ),
    Sample("soft cap, saturated", (1, 2, 40, 16), (1, 2, 150, 16), scale=2.0, softcap=0.5),
    Sample("soft cap, large", (1, 2, 40, 16), (1, 2, 70, 16), _given(**CAUSAL), _causal(0), softcap=50.0),
    Sample("soft cap under a bias", (1, 2, 40, 8), (1, 1, 75, 8), _bias(40, 75), softcap=1.5),
    Sample("logits of ten thousand", (1, 2, 64, 16), (1, 2, 100, 16), scale=2500.0),
    Sample("equal logits", (1, 1, 16, 8), (1, 1, 50, 8), scale=0.0),
    Sample("no keys", (1, 2, 5, 4), (1, 2, 0, 4)),
    Sample("no queries", (1, 2, 0, 4), (1, 2, 5, 4)),
    Sample("no batch", (0, 2, 5, 4), (0, 2, 5, 4)),
    Sample("two dimensions", (30, 8), (40, 8)),
    Sample("three dimensions", (3, 30, 8), (3, 40, 8)),
    Sample("five dimensions", (2, 2, 3, 30, 8), (2, 2, 3, 40, 8), _random_mask(30, 40)),
]

# One of each kind of argument, for what looks at kinds and not at numbers.
KINDS = [
    s
    for s in SAMPLES
    if s.name
    in (
        "causal bias lower right",
        "grouped queries",
        "grouped queries, values of their own",
        "bool mask, rows without a key",
        "two-dimensional bias",
        "packed texts, causal window",
        "soft cap, saturated",
        "no keys",
        "two dimensions",
    )
]
