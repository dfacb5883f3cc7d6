"""One table of attention inputs: correctness, gradients, opcheck and compile all run through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right, causal_upper_left


@dataclass(frozen=True)
class Sample:
    name: str
    query: tuple[int, ...]
    key: tuple[int, ...]
    options: Callable[[torch.Generator], dict] = lambda generator: {}
    reference: Callable[[dict], dict] = lambda options: options  # the op's options in the reference's words
    scale: float | None = None

    def make(self, dtype):
        """(query, key, options of the op, options of the reference)."""
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        query = torch.randn(self.query, generator=generator).to(dtype)
        key = torch.randn(self.key, generator=generator).to(dtype)
        options = self.options(generator)
        reference = self.reference(options)
        gqa = len(self.query) > 2 and self.query[-3] != self.key[-3]
        return query, key, {**options, "enable_gqa": gqa, "scale": self.scale}, {**reference, "scale": self.scale}


def _causal(offset):
    return lambda options: {"diagonal": offset}


def _random_mask(*shape, keep=0.6):
    return lambda g: {"attn_mask": torch.rand(shape, generator=g) < keep}


def _bias(*shape, hidden=0.3):
    def build(g):
        bias = torch.randn(shape, generator=g)
        return {"attn_mask": bias.masked_fill(torch.rand(shape, generator=g) < hidden, float("-inf"))}

    return build


def _intervals(batch, queries, keys):
    def build(g):
        ends = torch.randint(0, keys + 1, (batch, queries, 2), generator=g)
        return {"key_range": ends.sort(-1).values}

    return build


SAMPLES = [
    Sample("one query, one key", (1, 1, 1, 4), (1, 1, 1, 4)),
    Sample("plain", (2, 2, 33, 16), (2, 2, 65, 16)),
    Sample("larger than a tile", (1, 2, 130, 24), (1, 2, 1050, 24)),
    Sample("odd head dimension", (1, 1, 67, 5), (1, 1, 31, 5)),
    Sample("head dimension one", (1, 2, 9, 1), (1, 2, 17, 1)),
    Sample("wide head", (1, 1, 20, 256), (1, 1, 40, 256)),
    Sample("causal", (1, 2, 70, 16), (1, 2, 70, 16), lambda g: {"is_causal": True}, _causal(0)),
    Sample("causal, more keys", (1, 1, 40, 8), (1, 1, 90, 8), lambda g: {"is_causal": True}, _causal(0)),
    Sample("causal, more queries", (1, 1, 90, 8), (1, 1, 40, 8), lambda g: {"is_causal": True}, _causal(0)),
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
    Sample("grouped queries", (2, 6, 50, 16), (2, 2, 70, 16), lambda g: {"is_causal": True}, _causal(0)),
    Sample("one key head", (1, 4, 20, 8), (1, 1, 30, 8)),
    Sample("bool mask", (2, 3, 40, 8), (2, 3, 75, 8), _random_mask(2, 3, 40, 75)),
    Sample("bool mask, rows without a key", (1, 2, 40, 8), (1, 2, 33, 8), _random_mask(1, 1, 40, 33, keep=0.05)),
    Sample("broadcast mask", (2, 3, 40, 8), (2, 3, 75, 8), _random_mask(2, 1, 1, 75)),
    Sample("two-dimensional bias", (2, 3, 40, 8), (2, 3, 75, 8), _bias(40, 75)),
    Sample("bias hiding all", (1, 1, 10, 8), (1, 1, 12, 8), _bias(10, 12, hidden=0.9)),
    Sample("key ranges", (2, 4, 60, 8), (2, 2, 600, 8), _intervals(2, 60, 600)),
    Sample("large logits", (1, 2, 64, 16), (1, 2, 100, 16), scale=600.0),
    Sample("equal logits", (1, 1, 16, 8), (1, 1, 50, 8), scale=0.0),
    Sample("no keys", (1, 2, 5, 4), (1, 2, 0, 4)),
    Sample("no queries", (1, 2, 0, 4), (1, 2, 5, 4)),
    Sample("no batch", (0, 2, 5, 4), (0, 2, 5, 4)),
    Sample("two dimensions", (30, 8), (40, 8)),
    Sample("three dimensions", (3, 30, 8), (3, 40, 8)),
    Sample("five dimensions", (2, 2, 3, 30, 8), (2, 2, 3, 40, 8), _random_mask(30, 40)),
]


def pytest_generate_tests(metafunc):
    if "sample" in metafunc.fixturenames:
        metafunc.parametrize("sample", SAMPLES, ids=lambda s: s.name)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    return request.param
