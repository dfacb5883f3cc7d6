"""A·x, Aᵀ·x and attention's output beside torch's own; what another order or layout may change."""

import pytest
import torch
import torch.nn.functional as F
from attention_samples import SAMPLES, ours
from torch.nn.attention.bias import causal_lower_right

from artent_ext import attention_apply, attention_stats, reference
from artent_ext import scaled_dot_product_attention_with_stats as with_stats


def _randn(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def test_both_products_are_adjoint(sample):
    """⟨y, A·x⟩ = ⟨Aᵀ·y, x⟩."""
    query, key, options, _ = sample.make(torch.float64)
    (x,), (y,) = (sample.columns_for(op, torch.float64) for op in ("apply", "transposed"))
    y = y.flip(-2)
    product, back = (attention_apply(query, key, z, transpose=t, **options) for z, t in ((x, False), (y, True)))
    torch.testing.assert_close((y * product).sum(), (back * x).sum(), rtol=1e-9, atol=1e-9)


def test_rows_sum_to_one_and_columns_to_the_number_of_rows(sample):
    query, key, options, _ = sample.make(torch.float64)
    lse = attention_stats(query, key, **options).lse
    ones = [torch.ones(*query.shape[:-2], n, 1, dtype=torch.float64) for n in (key.shape[-2], query.shape[-2])]
    rows = attention_apply(query, key, ones[0], **options)[..., 0]
    columns = attention_apply(query, key, ones[1], transpose=True, **options)[..., 0]
    seen = lse.isfinite().double()
    torch.testing.assert_close(rows, seen, rtol=0, atol=1e-11)
    torch.testing.assert_close(columns.sum(-1), seen.sum(-1), rtol=0, atol=1e-9)


def test_output_is_that_of_torchs_attention(dtype):
    cases = [
        ((2, 4, 50, 16), (2, 4, 70, 16), 16, {}),
        ((2, 4, 50, 16), (2, 4, 70, 16), 5, {"is_causal": True}),
        ((2, 6, 30, 16), (2, 2, 70, 16), 16, {"enable_gqa": True, "scale": 0.7}),
        ((2, 4, 30, 16), (2, 4, 40, 16), 16, {"attn_mask": causal_lower_right(30, 40)}),
        ((2, 4, 30, 16), (2, 4, 40, 16), 16, {"attn_mask": torch.rand(2, 1, 30, 40) < 0.1}),
        ((1, 4, 30, 16), (3, 4, 40, 16), 16, {"attn_mask": torch.randn(30, 40).to(dtype)}),
        ((4, 30, 16), (4, 40, 16), 16, {}),
    ]
    for q, k, columns, options in cases:
        query, key, value = (torch.randn(shape).to(dtype) for shape in (q, k, (*k[:-1], columns)))
        out, stats = with_stats(query, key, value, **options)
        theirs = F.scaled_dot_product_attention(query, key, value, **options)
        mask = options.get("attn_mask")
        exact = (
            {**options, "attn_mask": mask.double()} if type(mask) is torch.Tensor and mask.dtype == dtype else options
        )
        true = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), **exact)
        assert (out.dtype, out.shape) == (theirs.dtype, theirs.shape)
        rounding = (16 if dtype == torch.float64 else 2) * torch.finfo(dtype).eps * true.abs().max()
        assert (out - true).abs().max() <= 2 * (theirs - true).abs().max() + rounding
        seen = stats.lse.isfinite()
        assert torch.equal(out[~seen], theirs[~seen])  # 0 where a row sees no key
        for a, b in zip(stats, attention_stats(query, key, **options), strict=True):
            torch.testing.assert_close(a, b)


def test_the_statistics_of_dropout_are_those_before_it():
    query, key, value = _randn(1, 4, 40, 8), _randn(1, 2, 60, 8), _randn(1, 2, 60, 8)
    gqa = {"enable_gqa": True}
    torch.manual_seed(3)
    out, stats = with_stats(query, key, value, None, 0.4, True, **gqa)
    torch.manual_seed(3)
    assert torch.equal(out, F.scaled_dot_product_attention(query, key, value, None, 0.4, True, **gqa))
    assert torch.equal(stats.entropy, attention_stats(query, key, is_causal=True, **gqa).entropy)


def test_dropout_sees_the_keys_that_the_one_pass_sees():
    """Its mask is made from ranges, windows and texts: every kind, with next to nothing dropped."""
    for sample in SAMPLES:
        query, key, options, truth_options = sample.make(torch.float64)
        if sample.softcap is not None or query.dim() < 4 or 0 in (query.numel(), key.numel()):
            continue
        (value,) = sample.columns_for("forward", torch.float64)
        out, _ = with_stats(query, key, value, dropout_p=1e-300, **options)
        mask = truth_options.get("attn_mask")
        if mask is not None and mask.is_floating_point():
            truth_options["attn_mask"] = mask.double()
        expected, _ = reference.scaled_dot_product_attention_with_stats(query, key, value, **truth_options)
        torch.testing.assert_close(out, expected, msg=lambda m, name=sample.name: f"{name}: {m}")


def test_the_given_lse_is_the_one_computed(sample):
    query, key, options, _ = sample.make(torch.float32)
    for op, transpose in (("apply", False), ("transposed", True)):
        (x,) = sample.columns_for(op, torch.float32)
        lse = attention_stats(query, key, **options).lse
        given = attention_apply(query, key, x, lse=lse, transpose=transpose, **options)
        computed = attention_apply(query, key, x, transpose=transpose, **options)
        # A rounded lse puts a row off by its rounding; x is of order one.
        largest = lse[lse.isfinite()].abs().max().item() if lse.isfinite().any() else 0.0
        rounding = torch.finfo(torch.float32).eps * (8 + largest)
        torch.testing.assert_close(given, computed, rtol=rounding, atol=8 * rounding)


def test_a_given_lse_has_no_gradient_of_its_own():
    """The derivative is that of A: whether lse came with its graph, without, or not at all."""
    inputs = [_randn(1, 2, 9, 4).requires_grad_() for _ in range(3)]
    query, key, x = inputs
    given = attention_stats(query, key).lse
    grads = [
        torch.autograd.grad(attention_apply(query, key, x, lse=lse, transpose=True).square().sum(), inputs)
        for lse in (None, given, given.detach())
    ]
    assert all(torch.equal(a, b) for a, b in zip(grads[1], grads[2], strict=True))
    for a, b in zip(grads[0], grads[1], strict=True):  # a given lse is rounded
        torch.testing.assert_close(a, b)


def test_two_ranges_of_keys_merge_to_one_pass():
    """Statistics, output, A·x and Aᵀ·x of all keys from those of two parts."""
    query, key, value, y = _randn(1, 2, 50, 8), _randn(1, 2, 900, 8), _randn(1, 2, 900, 5), _randn(1, 2, 50, 3)
    out, whole = with_stats(query, key, value)
    (out_a, a), (out_b, b) = (
        with_stats(query, k, v) for k, v in zip(key.split([333, 567], -2), value.split([333, 567], -2), strict=True)
    )
    weight = torch.sigmoid(a.lse - b.lse)  # the share of all probability that falls on the first range
    merged = weight * a.entropy + (1 - weight) * b.entropy - torch.special.xlogy(weight, weight)
    merged = merged - torch.special.xlogy(1 - weight, 1 - weight)
    torch.testing.assert_close(whole.lse, torch.logaddexp(a.lse, b.lse), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(whole.entropy, merged, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.purity, weight**2 * a.purity + (1 - weight) ** 2 * b.purity, rtol=1e-12, atol=0)
    share = weight[..., None]
    torch.testing.assert_close(out, share * out_a + (1 - share) * out_b, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(attention_apply(query, key, value), out, rtol=1e-12, atol=1e-13)
    back = attention_apply(query, key, y, transpose=True)
    parts = [
        attention_apply(query, k, s * y, transpose=True)
        for k, s in zip(key.split([333, 567], -2), (share, 1 - share), strict=True)
    ]
    torch.testing.assert_close(back, torch.cat(parts, -2), rtol=1e-11, atol=1e-13)


def test_order_of_keys_does_not_matter():
    query, key, x, y = (_randn(1, 2, n, 16, dtype=torch.float32) for n in (40, 1500, 1500, 40))
    order = torch.randperm(1500)
    out, back = attention_apply(query, key, x), attention_apply(query, key, y, transpose=True)
    shuffled = attention_apply(query, key[..., order, :], x[..., order, :])
    torch.testing.assert_close(shuffled, out, rtol=2e-6, atol=2e-6)
    shuffled = attention_apply(query, key[..., order, :], y, transpose=True)
    torch.testing.assert_close(shuffled, back[..., order, :], rtol=2e-6, atol=2e-6)


def test_a_constant_on_a_rows_logits_changes_no_product(op):
    """Nor what is differentiated: values and gradients stay."""
    query, key = _randn(1, 2, 40, 16), _randn(1, 2, 140, 16)
    x = _randn(1, 2, 40 if op == "transposed" else 140, 3)
    inputs = [query, key, x][: 2 if op == "stats" else 3]
    results = []
    for constant in (torch.zeros(40, 1, dtype=torch.float64), 100 * _randn(40, 1)):
        leaves = [z.clone().requires_grad_() for z in inputs]
        values = ours(op, leaves, {"attn_mask": constant.expand(40, 140)})
        kept = [
            z
            for z, lse in zip(values, {"stats": (1, 0, 0), "forward": (0, 1, 0, 0)}.get(op, (0,)), strict=True)
            if not lse
        ]
        sum(z.sin().sum() for z in kept).backward()
        results.append([*kept, *(z.grad for z in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_strided_views_need_no_copy_to_be_right(op, dtype):
    """(B, T, H, D) seen as (B, H, T, D); every second key, broadcast over the batch; D not the fastest dimension."""
    query = torch.randn(2, 30, 4, 16).to(dtype).transpose(1, 2)
    key = torch.randn(1, 4, 80, 16).to(dtype)[:, :, ::2].expand(2, -1, -1, -1)
    strided_d = torch.randn(2, 4, 16, 30).to(dtype).transpose(2, 3)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype in (torch.float32, torch.float64) else {}
    for q, k in [(query, key), (strided_d, key), (query, strided_d)]:
        rows = 30 if op == "transposed" else k.shape[-2]
        x = torch.randn(2, rows, 4, 6).to(dtype).transpose(1, 2)[..., ::2]
        inputs = [q, k, x][: 2 if op == "stats" else 3]
        results = []
        for tensors in (inputs, [z.contiguous() for z in inputs]):
            leaves = [z.detach().requires_grad_() for z in tensors]
            values = ours(op, leaves, {})
            sum(z.sum() for z in values).backward()  # the gradient that arrives is broadcast
            results.append([*values, *(z.grad for z in leaves)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


def test_columns_broadcast_over_heads_and_batch_and_may_be_none():
    query, key = _randn(3, 4, 9, 8), _randn(3, 2, 11, 8)
    for shape in ((11, 5), (4, 11, 5), (1, 1, 11, 5), (2, 3, 4, 11, 5), (11, 0)):
        x = _randn(*shape).requires_grad_()
        product = attention_apply(query, key, x, enable_gqa=True)
        expected = reference.attention_apply(query, key, x)
        torch.testing.assert_close(product, expected)
        torch.testing.assert_close(
            torch.autograd.grad(product.square().sum(), x), torch.autograd.grad(expected.square().sum(), x)
        )
    back = attention_apply(query[0, 0], key[0, 0], _randn(9, 0), transpose=True)
    assert back.shape == (11, 0)
    out, _ = with_stats(query, key, key[..., :0], enable_gqa=True)
    assert out.shape == (3, 4, 9, 0)


@pytest.mark.parametrize("columns", [1, 2, 3, 17, 256, 300])
def test_any_number_of_columns(columns, dtype):
    """Each column is what it is alone, to rounding, for those that fill no vector and those that fill many."""
    query, key = (torch.randn(1, 2, n, 16).to(dtype) for n in (70, 140))
    for transpose, rows in ((False, 140), (True, 70)):
        x = torch.randn(1, 2, rows, columns).to(dtype)
        product = attention_apply(query, key, x, transpose=transpose, is_causal=True)
        expected = reference.attention_apply(query.double(), key.double(), x.double(), transpose=transpose, diagonal=0)
        torch.testing.assert_close(product, expected.to(dtype))
