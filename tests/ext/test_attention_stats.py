"""attention_stats against float64 truth: values, identities, invariances, determinism, memory."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import artent_ext
from artent_ext import reference


def _double(options):
    mask = options.get("attn_mask")
    return {**options, "attn_mask": mask.double()} if mask is not None and mask.is_floating_point() else options


def _largest_error(stats, truth):
    """Largest absolute error of (lse, entropy, purity); infinities must agree exactly."""
    errors = []
    for value, true in zip(stats, truth, strict=True):
        assert value.shape == true.shape
        finite = true.isfinite()
        assert torch.equal(value.double()[~finite], true[~finite])
        errors.append((value.double() - true)[finite].abs().max().item() if finite.any() else 0.0)
    return errors


def test_matches_float64_truth(sample, dtype):
    """No further from float64 truth than twice a materialised computation in the accumulator's type."""
    query, key, options, truth_options = sample.make(dtype)
    stats = artent_ext.attention_stats(query, key, **options)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(x.dtype == accumulator for x in stats)
    truth = reference.attention_stats(query.double(), key.double(), **_double(truth_options))
    peer = reference.attention_stats(query.to(accumulator), key.to(accumulator), **truth_options)
    eps = torch.finfo(accumulator).eps
    finite = truth[0][truth[0].isfinite()]
    ulp = eps * max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
    for ours, theirs in zip(_largest_error(stats, truth), _largest_error(peer, truth), strict=True):
        assert ours <= 2 * theirs + 4 * ulp


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


def test_two_ranges_of_keys_merge_to_one_pass():
    query, key = torch.randn(1, 1, 50, 8, dtype=torch.float64), torch.randn(1, 1, 900, 8, dtype=torch.float64)
    whole = artent_ext.attention_stats(query, key)
    a, b = (artent_ext.attention_stats(query, k) for k in key.split([333, 567], -2))
    weight = torch.sigmoid(a.lse - b.lse)  # the share of all probability that falls on the first range
    merged = weight * a.entropy + (1 - weight) * b.entropy - torch.special.xlogy(weight, weight)
    merged = merged - torch.special.xlogy(1 - weight, 1 - weight)
    torch.testing.assert_close(whole.lse, torch.logaddexp(a.lse, b.lse), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(whole.entropy, merged, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.purity, weight**2 * a.purity + (1 - weight) ** 2 * b.purity, rtol=1e-12, atol=0)


def test_strided_views_need_no_copy_to_be_right(dtype):
    """(B, T, H, D) seen as (B, H, T, D); every second key, broadcast over the batch; D not the fastest dimension."""
    query = torch.randn(2, 30, 4, 16).to(dtype).transpose(1, 2)
    key = torch.randn(1, 4, 80, 16).to(dtype)[:, :, ::2].expand(2, -1, -1, -1)
    strided_d = torch.randn(2, 4, 16, 30).to(dtype).transpose(2, 3)
    for q, k in [(query, key), (strided_d, key), (query, strided_d)]:
        stats = artent_ext.attention_stats(q, k)
        dense = artent_ext.attention_stats(q.contiguous(), k.contiguous())
        for a, b in zip(stats, dense, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_same_bits_for_any_number_of_threads(dtype):
    query, key = torch.randn(2, 3, 200, 32).to(dtype), torch.randn(2, 3, 700, 32).to(dtype)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            q, k = query.clone().requires_grad_(), key.clone().requires_grad_()
            stats = artent_ext.attention_stats(q, k)
            (stats.entropy.sum() + stats.lse.sum()).backward()
            results.append([*stats, q.grad, k.grad])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


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


def test_autocast_computes_in_the_dtype_of_fused_attention():
    query, key = torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stats = artent_ext.attention_stats(query, key)
    expected = artent_ext.attention_stats(query.bfloat16(), key)
    assert torch.equal(stats.entropy, expected.entropy)


_IN_A_PROCESS = """
import torch, artent_ext
from artent_ext import reference
info = artent_ext.build_info()
assert (info["isa"], info["gemm"]) == ("portable", "fallback"), info
torch.manual_seed(0)
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    q, k = torch.randn(1, 4, 75, 16).to(dtype).requires_grad_(), torch.randn(1, 2, 530, 16).to(dtype).requires_grad_()
    stats = artent_ext.attention_stats(q, k, is_causal=True, enable_gqa=True)
    sum(x.sum() for x in stats).backward()
    q2, k2 = (x.detach().double().requires_grad_() for x in (q, k))
    truth = reference.attention_stats(q2, k2, diagonal=0)
    sum(x.sum() for x in truth).backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    for a, b in zip(stats, truth):
        torch.testing.assert_close(a.double(), b, **tolerance)
    grad_tolerance = tolerance if dtype in (torch.float64, torch.float32) else {"rtol": 2e-2, "atol": 2e-2}
    for a, b in ((q, q2), (k, k2)):
        torch.testing.assert_close(a.grad.double(), b.grad, **grad_tolerance)
"""


def test_portable_path_and_fallback_product_give_the_same_answers():
    environment = {**os.environ, "ARTENT_ISA": "portable", "ARTENT_GEMM": "fallback"}
    subprocess.run([sys.executable, "-c", _IN_A_PROCESS], check=True, env=environment)


_PEAK = """
import resource, torch, artent_ext
q, k = torch.randn(1, 1, 16384, 16, requires_grad=True), torch.randn(1, 1, 16384, 16, requires_grad=True)
artent_ext.attention_entropy(q[..., :64, :], k[..., :64, :]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
artent_ext.attention_entropy(q, k, is_causal=True).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_linear_in_the_context():
    """T = 16384 forward and backward: T×T floats would be 1 GiB; inputs, gradients and tiles are a few MiB."""
    grown = subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 64 * 1024  # KiB


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(3, 3, dtype=torch.bool).tril()}])
def test_a_single_visible_key_has_no_entropy(options):
    query, key = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    stats = artent_ext.attention_stats(query, key, **options)
    assert stats.entropy[0, 0, 0] == 0
    assert stats.purity[0, 0, 0] == 1
    torch.testing.assert_close(stats.lse[0, 0, 0], (query[0, 0, 0] @ key[0, 0, 0]) / 2)
