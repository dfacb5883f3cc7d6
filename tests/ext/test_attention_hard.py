"""What ordinary tables of inputs do not hold: dominant keys, NaN that a query does not see, long sparse contexts."""

import math

import pytest
import torch

import artent_ext
from artent_ext import reference


def _rms(x, truth):
    return (x.double() - truth).square().mean().sqrt().item()


@pytest.mark.parametrize("constant", [0.0, 10.0])
@pytest.mark.parametrize("sink", [0.0, 8.0, 14.0])
def test_a_dominant_key_costs_no_digits(sink, constant):
    """A sink, and a constant on all logits, which changes nothing but lse: errors at most twice a softmax's."""
    g = torch.Generator().manual_seed(3)
    query, key = torch.randn(1, 4, 64, 32, generator=g), torch.randn(1, 4, 128, 32, generator=g)
    bias = torch.full((64, 128), constant)
    bias[:, 0] += sink
    weights = [torch.randn(1, 4, 64, generator=g) for _ in range(2)]

    def run(function, dtype):
        q, k = (x.to(dtype).requires_grad_() for x in (query, key))
        _, entropy, purity = function(q, k, attn_mask=bias.to(dtype))
        found = [entropy, purity]
        for x, w in zip((entropy, purity), weights, strict=True):
            found += torch.autograd.grad((x * w.to(dtype)).sum(), (q, k), retain_graph=True)
        return [x.detach() for x in found]

    truth = run(reference.attention_stats, torch.float64)
    peer = run(reference.attention_stats, torch.float32)
    ours = run(artent_ext.attention_stats, torch.float32)
    for mine, theirs, true in zip(ours, peer, truth, strict=True):
        rounding = torch.finfo(torch.float32).eps * true.square().mean().sqrt().item()
        assert _rms(mine, true) <= 2 * _rms(theirs, true) + rounding


def test_what_a_query_does_not_see_may_be_nan():
    """Of three packed texts the second is NaN throughout: the others, and rows without a key, know nothing of it."""
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 60, 16, generator=g) for _ in "qkv")
    for x in (query, key, value):
        x[:, :, 20:41] = math.nan
    clean = torch.ones(60, dtype=torch.bool)
    clean[20:41] = False
    options = {"cu_seqlens_q": torch.tensor([0, 20, 41, 55]), "is_causal": True}  # rows from 55 on see no key
    tensors = [x.clone().requires_grad_() for x in (query, key, value)]
    out, stats = artent_ext.scaled_dot_product_attention_with_stats(*tensors, **options)
    (out.nan_to_num().square().sum() + stats.entropy.nan_to_num().sum()).backward()
    zeroed = [x.nan_to_num(0.0).requires_grad_() for x in (query, key, value)]
    expected, expected_stats = artent_ext.scaled_dot_product_attention_with_stats(*zeroed, **options)
    (expected[:, :, clean].square().sum() + expected_stats.entropy[..., clean].sum()).backward()
    assert torch.equal(out[:, :, 55:], torch.zeros(1, 2, 5, 16))
    torch.testing.assert_close(out[:, :, clean], expected[:, :, clean])
    for a, b in zip(stats, expected_stats, strict=True):
        torch.testing.assert_close(a[..., clean], b[..., clean])
    for a, b in zip(tensors, zeroed, strict=True):
        torch.testing.assert_close(a.grad[:, :, clean], b.grad[:, :, clean])
    for transpose in (False, True):
        product = artent_ext.attention_apply(query, key, value, transpose=transpose, **options)
        same = artent_ext.attention_apply(
            *(x.nan_to_num(0.0) for x in (query, key, value)), transpose=transpose, **options
        )
        torch.testing.assert_close(product[:, :, clean], same[:, :, clean])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_in_sight_is_seen(bad):
    query, key, value = (torch.randn(1, 1, 30, 8) for _ in "qkv")
    value[0, 0, 7, 3] = bad
    out, _ = artent_ext.scaled_dot_product_attention_with_stats(query, key, value, is_causal=True)
    spoilt = ~out.isfinite()
    expected = torch.zeros(30, 8, dtype=torch.bool)
    expected[7:, 3] = True
    assert torch.equal(spoilt[0, 0], expected)
