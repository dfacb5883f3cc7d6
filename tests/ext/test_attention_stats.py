"""The row statistics: identities, invariances, what NaN and masks of the lowest number do."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import artent_ext
from artent_ext import reference


def test_entropy_identity_through_fused_attention():
    """H = lse − scale·⟨q, A K⟩, with A K from scaled_dot_product_attention (value := key)."""
    query, key = torch.randn(2, 4, 100, 32, dtype=torch.float64).chunk(2, 1)
    stats = artent_ext.attention_stats(query, key, is_causal=True)
    attended = F.scaled_dot_product_attention(query, key, key, is_causal=True)
    expected = stats.lse - (query * attended).sum(-1) / math.sqrt(32)
    torch.testing.assert_close(stats.entropy, expected, rtol=0, atol=1e-12)


def test_purity_identity_through_doubled_scale():
    """Σp² = exp(lse(2·scale) − 2·lse(scale))."""
    query, key = torch.randn(2, 4, 100, 32, dtype=torch.float64).chunk(2, 1)
    stats = artent_ext.attention_stats(query, key, scale=0.3)
    doubled = artent_ext.attention_stats(query, key, scale=0.6)
    torch.testing.assert_close(stats.purity, (doubled.lse - 2 * stats.lse).exp(), rtol=1e-12, atol=0)


def test_attention_entropy_is_the_entropy():
    query, key = torch.randn(2, 2, 20, 8), torch.randn(2, 1, 30, 8)
    entropy = artent_ext.attention_entropy(query, key, enable_gqa=True)
    torch.testing.assert_close(entropy, artent_ext.attention_stats(query, key, enable_gqa=True).entropy)


def test_a_constant_on_a_rows_logits_moves_only_lse():
    query, key = torch.randn(1, 2, 40, 16, dtype=torch.float64), torch.randn(1, 2, 700, 16, dtype=torch.float64)
    constant = torch.randn(1, 2, 40, 1, dtype=torch.float64) * 100
    stats = artent_ext.attention_stats(query, key)
    shifted = artent_ext.attention_stats(query, key, attn_mask=constant)
    torch.testing.assert_close(shifted.lse, stats.lse + constant[..., 0], rtol=1e-14, atol=1e-12)
    torch.testing.assert_close(shifted.entropy, stats.entropy, rtol=0, atol=1e-11)
    torch.testing.assert_close(shifted.purity, stats.purity, rtol=1e-11, atol=0)


def test_order_of_keys_does_not_matter():
    query, key = torch.randn(1, 2, 40, 16), torch.randn(1, 2, 1500, 16)
    permuted = artent_ext.attention_stats(query, key[..., torch.randperm(1500), :])
    for a, b in zip(artent_ext.attention_stats(query, key), permuted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_nan_stays_in_its_row_and_infinity_is_not_an_empty_row():
    query, key = torch.randn(1, 1, 8, 4), torch.randn(1, 1, 9, 4)
    query[0, 0, 3] = float("nan")
    query[0, 0, 5, 0] = float("inf")
    stats = artent_ext.attention_stats(query, key)
    spoilt = torch.zeros(8, dtype=torch.bool)
    spoilt[[3, 5]] = True
    for x in stats:
        assert torch.equal(x[0, 0].isnan(), spoilt)


@pytest.mark.parametrize("hidden", [slice(None, 600), slice(600, None), slice(None)], ids=["first", "last", "all"])
def test_a_mask_of_the_lowest_number_hides_like_minus_infinity(dtype, hidden):
    """Dense masks hold finfo.min, whose products overflow; a row that sees only those is uniform over them."""
    query, key = torch.randn(1, 1, 3, 8).to(dtype).requires_grad_(), torch.randn(1, 1, 1100, 8).to(dtype)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    mask = torch.zeros(1, 1, 3, 1100, dtype=accumulator)
    mask[..., hidden] = torch.finfo(accumulator).min
    stats = artent_ext.attention_stats(query, key, attn_mask=mask)
    truth = reference.attention_stats(query.detach().double(), key.double(), attn_mask=mask.double())
    for value, true in zip(stats, truth, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(stats.entropy.sum() + stats.purity.sum(), query)
    assert gradient.isfinite().all()


def test_packed_texts_are_the_texts_alone():
    """And a window that reaches everywhere is none, a small cap of tiny logits neither."""
    cu = [0, 40, 41, 41, 200]
    query, key = torch.randn(1, 4, 200, 8, dtype=torch.float64), torch.randn(1, 2, 200, 8, dtype=torch.float64)
    options = {"enable_gqa": True, "is_causal": True}
    packed = artent_ext.attention_stats(query, key, cu_seqlens_q=torch.tensor(cu), **options)
    for begin, end in itertools.pairwise(cu):
        q, k = query[..., begin:end, :], key[..., begin:end, :]
        for alone in (
            artent_ext.attention_stats(q, k, **options),
            artent_ext.attention_stats(q, k, window=(1000, 1000), **options),
            artent_ext.attention_stats(q, k, softcap=1e6, **options),
        ):
            for a, b in zip(packed, alone, strict=True):
                torch.testing.assert_close(a[..., begin:end], b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(3, 3, dtype=torch.bool).tril()}])
def test_a_single_visible_key_has_no_entropy(options):
    query, key = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    stats = artent_ext.attention_stats(query, key, **options)
    assert stats.entropy[0, 0, 0] == 0
    assert stats.purity[0, 0, 0] == 1
    torch.testing.assert_close(stats.lse[0, 0, 0], (query[0, 0, 0] @ key[0, 0, 0]) / 2)
