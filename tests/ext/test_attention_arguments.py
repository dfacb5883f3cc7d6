"""Mistakes in the arguments of the attention ops are told by name, with what was given and a likely cause."""

import inspect
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_samples import OPS, ours
from torch.nn.attention.bias import causal_lower_right

import artent_ext

native = torch.ops.artent
Q, K = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 7, 8)
CU = torch.tensor([0, 2, 6])

MISTAKES = {
    "query is a list": ([[1.0]], K, {}, TypeError, "query must be a torch.Tensor, got list"),
    "integer query": (Q.long(), K, {}, TypeError, "query must be float16.*int64"),
    "complex key": (Q, K.to(torch.complex64), {}, TypeError, "key must be float16.*complex64"),
    "vector query": (Q[0, 0, 0], K, {}, ValueError, "query must have at least two dimensions"),
    "other dtype": (Q, K.double(), {}, TypeError, "query is torch.float32 and key is torch.float64"),
    "other head dimension": (Q, K[..., :5], {}, ValueError, "share a non-empty last"),
    "empty head dimension": (Q[..., :0], K[..., :0], {}, ValueError, "non-empty last"),
    "other number of dimensions": (Q, K[0], {}, ValueError, "same number of dimensions"),
    "heads without gqa": (Q, K[:, :2], {}, ValueError, "different numbers of heads.*enable_gqa=True"),
    "heads that do not divide": (Q, K[:, :3], {"enable_gqa": True}, ValueError, "multiple of key heads"),
    "batches that do not match": (Q, K.repeat(2, 1, 1, 1)[:3], {}, ValueError, "batch.*do not broadcast"),
    "other device": (Q, K.to("meta"), {}, ValueError, "key is on meta and query is on cpu"),
    "scale not finite": (Q, K, {"scale": float("nan")}, ValueError, "scale must be a finite number"),
    "scale is no number": (Q, K, {"scale": "a"}, TypeError, "scale must be a number or None.*str"),
    "soft cap of zero": (Q, K, {"softcap": 0.0}, ValueError, "softcap must be positive.*None is no cap"),
    "soft cap not finite": (Q, K, {"softcap": float("inf")}, ValueError, "softcap must be a finite number"),
    "soft cap is no number": (Q, K, {"softcap": "50"}, TypeError, "softcap must be a number or None.*str"),
    "sparse query": (Q.to_sparse(), K, {}, TypeError, "query must be a dense"),
    "no heads": (Q[:, :0], K[:, :0], {}, ValueError, "at least one head"),
    "mask and causal": (
        Q,
        K,
        {"attn_mask": torch.ones(6, 7, dtype=torch.bool), "is_causal": True},
        ValueError,
        "attn_mask and is_causal=True exclude each other",
    ),
    "mask of another shape": (Q, K, {"attn_mask": torch.ones(7, 6).bool()}, ValueError, r"attn_mask of shape \(7, 6\)"),
    "integer mask": (
        Q,
        K,
        {"attn_mask": torch.ones(6, 7).long()},
        TypeError,
        r"attn_mask must be bool.*mask\.bool\(\)",
    ),
    "mask is a list": (Q, K, {"attn_mask": [1]}, TypeError, "attn_mask must be a torch.Tensor"),
    "mask with gradient": (Q, K, {"attn_mask": torch.zeros(6, 7, requires_grad=True)}, ValueError, "attn_mask.detach"),
    "bias of other lengths": (Q, K, {"attn_mask": causal_lower_right(6, 9)}, ValueError, "9 keys"),
    "float key_range": (Q, K, {"key_range": torch.zeros(2, 6, 2)}, TypeError, "key_range must be int64 or int32"),
    "key_range of another shape": (Q, K, {"key_range": torch.zeros(2, 5, 2).long()}, ValueError, "key_range of shape"),
    "key_range of lengths": (Q, K, {"key_range": torch.zeros(6, 1).long()}, ValueError, "must end in a dimension of 2"),
    "key_range is a tuple": (Q, K, {"key_range": (0, 7)}, TypeError, "key_range must be a torch.Tensor"),
    "window of nothing": (Q, K, {"window": 0}, ValueError, "window must be at least 1.*got 0"),
    "window is a float": (Q, K, {"window": 3.0}, TypeError, "window must be an integer or a pair.*float"),
    "window is true": (Q, K, {"window": True}, TypeError, "window must be an integer or a pair.*bool"),
    "window of three": (Q, K, {"window": (1, 2, 3)}, ValueError, "a pair .left, right., got 3 numbers"),
    "window beyond no bound": (Q, K, {"window": (-2, 0)}, ValueError, r"-1 or None where there is no bound, got \(-2"),
    "boundaries as a list": (
        Q,
        K,
        {"cu_seqlens_q": [0, 6]},
        TypeError,
        "cu_seqlens_q must be a torch.Tensor, got list",
    ),
    "float boundaries": (Q, K, {"cu_seqlens_q": CU.float()}, TypeError, "cu_seqlens_q must be int64 or int32"),
    "boundaries a text": (
        Q,
        K,
        {"cu_seqlens_q": CU[None]},
        ValueError,
        r"cu_seqlens_q must have shape \(texts \+ 1,\)",
    ),
    "no boundaries": (Q, K, {"cu_seqlens_q": CU[:0]}, ValueError, r"cu_seqlens_q must have shape"),
    "lengths for boundaries": (Q, K, {"cu_seqlens_q": torch.tensor([0, 3, 2])}, ValueError, "decreases.*cumsum"),
    "boundaries without a start": (Q, K, {"cu_seqlens_q": CU[1:]}, ValueError, "cu_seqlens_q starts at 2, expected 0"),
    "boundaries beyond query": (
        Q,
        K,
        {"cu_seqlens_q": CU + CU},
        ValueError,
        "cu_seqlens_q ends at 12.*query has T = 6",
    ),
    "boundaries beyond key": (
        Q,
        K[:, :, :5],
        {"cu_seqlens_q": CU},
        ValueError,
        r"cu_seqlens_k \(by default cu_seqlens_q\) ends at 6, but key has T = 5",
    ),
    "boundaries of keys alone": (Q, K, {"cu_seqlens_k": CU}, ValueError, "cu_seqlens_k is given without cu_seqlens_q"),
    "boundaries of other texts": (
        Q,
        K,
        {"cu_seqlens_q": CU, "cu_seqlens_k": CU[:2]},
        ValueError,
        "must bound the same texts, got 3 and 2",
    ),
    "boundaries elsewhere": (Q, K, {"cu_seqlens_q": CU.to("meta")}, ValueError, "cu_seqlens_q is on meta and query is"),
    "boundaries and a causal bias": (
        Q,
        K,
        {"cu_seqlens_q": CU, "attn_mask": causal_lower_right(6, 7)},
        ValueError,
        "causal bias and cu_seqlens_q is given.*is_causal=True",
    ),
}


@pytest.mark.parametrize(("query", "key", "options", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(query, key, options, error, message):
    x = {"forward": K, "apply": K, "transposed": Q}
    for op in OPS:
        with pytest.raises(error, match=message):
            ours(op, [query, key, *([x[op]] if op in x else [])], options)


X, LSE = torch.randn(2, 4, 7, 3), torch.randn(2, 4, 6)

APPLY_MISTAKES = {
    "x is a list": ([1.0], {}, TypeError, "x must be a torch.Tensor, got list"),
    "rows of queries": (Q, {}, ValueError, "x of shape .* has 6 rows, expected 7 .T_k: a row for every key"),
    "rows of keys": (X, {"transpose": True}, ValueError, "has 7 rows, expected 6 .T_q: transpose=True"),
    "another dtype": (X.double(), {}, TypeError, "x is torch.float64, but with this query it must be torch.float32"),
    "other heads": (X[:, :3], {}, ValueError, "x of shape .* does not broadcast"),
    "other batch": (X[[0, 0, 0]], {}, ValueError, "what it multiplies.*do not broadcast"),
    "another device": (X.to("meta"), {}, ValueError, "x is on meta and query is on cpu"),
    "lse is a tuple": (X, {"lse": tuple(LSE)}, TypeError, "lse must be a torch.Tensor .attention_stats"),
    "lse in double": (X, {"lse": LSE.double()}, TypeError, "lse must be torch.float32.*got torch.float64"),
    "lse of keys": (X, {"lse": torch.randn(2, 4, 7)}, ValueError, "lse of shape .* is not that of 6 queries"),
    "lse elsewhere": (X, {"lse": LSE.to("meta")}, ValueError, "lse is on meta"),
}


@pytest.mark.parametrize(("x", "options", "error", "message"), APPLY_MISTAKES.values(), ids=APPLY_MISTAKES)
def test_mistakes_in_what_A_multiplies(x, options, error, message):
    with pytest.raises(error, match=message):
        artent_ext.attention_apply(Q, K, x, **options)
    if not options and isinstance(x, torch.Tensor) and x.dtype == torch.float64:
        with pytest.raises(TypeError, match=r"must be torch\.bfloat16 or torch\.float32"):
            artent_ext.attention_apply(Q.bfloat16(), K.bfloat16(), x)


VALUE_MISTAKES = {
    "value is a list": ([1.0], {}, TypeError, "value must be a torch.Tensor, got list"),
    "rows of queries": (Q, {}, ValueError, "value of shape .* has 6 rows, expected 7 .T_k"),
    "another dtype": (K.bfloat16(), {}, TypeError, "value is torch.bfloat16 and query and key are torch.float32"),
    "other heads": (K[:, :3], {}, ValueError, "value of shape .* has 3 heads, expected key's 4"),
    "other number of dimensions": (K[0], {}, ValueError, "query and value must have the same number of dimensions"),
    "another device": (K.to("meta"), {}, ValueError, "value is on meta and query is on cpu"),
    "dropout of two": (K, {"dropout_p": 2.0}, ValueError, "dropout_p must be a number between 0 and 1, got 2.0"),
    "dropout under a cap": (K, {"dropout_p": 0.1, "softcap": 5.0}, NotImplementedError, "no soft cap"),
}


@pytest.mark.parametrize(("value", "options", "error", "message"), VALUE_MISTAKES.values(), ids=VALUE_MISTAKES)
def test_mistakes_in_the_value(value, options, error, message):
    with pytest.raises(error, match=message):
        artent_ext.scaled_dot_product_attention_with_stats(Q, K, value, **options)


@pytest.mark.parametrize(("long", "plain"), [((None, sys.maxsize), None), ((2**62, 2**63), None), (2**64, (None, 0))])
def test_a_side_longer_than_any_text_is_no_bound(long, plain):
    assert torch.equal(
        artent_ext.attention_stats(Q, K, window=long).lse, artent_ext.attention_stats(Q, K, window=plain).lse
    )


def test_numpy_integers_are_integers():
    assert torch.equal(
        artent_ext.attention_stats(Q, K, window=(None, sys.maxsize)).lse, artent_ext.attention_stats(Q, K).lse
    )
    assert torch.equal(
        artent_ext.attention_stats(Q, K, window=2**64).lse, artent_ext.attention_stats(Q, K, window=(None, 0)).lse
    )
    window = artent_ext.attention_stats(Q, K, window=(np.int64(2), np.int32(1)))
    assert torch.equal(window.lse, artent_ext.attention_stats(Q, K, window=(2, 1)).lse)


def test_arguments_come_in_the_order_of_torchs_own():
    """A drop-in: what stands by position there stands in the same place here."""
    ours = list(inspect.signature(artent_ext.scaled_dot_product_attention_with_stats).parameters)
    assert ours[:8] == [
        *("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
        *("scale", "enable_gqa"),
    ]
    out, _ = artent_ext.scaled_dot_product_attention_with_stats(Q, K, K, None, 0.0, True, scale=0.5)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(Q, K, K, None, 0.0, True, scale=0.5))


DIRECT = {
    "mask": (
        lambda: native.attention_stats(Q, K, torch.ones(2, 4, 6, 9).bool(), *_rest()),
        "size 9 at dimension 3, exp",
    ),
    "key_range": (lambda: native.attention_stats(Q, K, None, torch.zeros(2, 4, 5, 2).long(), *_rest(1)), "key_range"),
    "heads": (lambda: native.attention_stats(Q, K[:, :3], None, *_rest()), "multiple of key heads"),
    "value": (lambda: native.attention_forward(Q, K, Q, None, *_rest()), "value: size 6 at dimension 2, expected 7"),
    "x": (
        lambda: native.attention_apply(Q, K, Q, LSE, None, False, None, *_rest()),
        "x: size 6 at dimension 2, expected 7",
    ),
    "lse": (lambda: native.attention_apply(Q, K, X, LSE[..., :5], None, False, None, *_rest()), "lse must be"),
}


def _rest(skip=0):
    """key_range, diagonal, scale, softcap."""
    return (None, None, 1.0, 0.0)[skip:]


@pytest.mark.parametrize(("direct", "message"), DIRECT.values(), ids=DIRECT)
def test_a_direct_call_with_wrong_shapes_does_not_read_out_of_bounds(direct, message):
    with pytest.raises(RuntimeError, match=message):
        direct()


@pytest.mark.parametrize("name", ["heads", "value", "x"])
def test_a_direct_call_is_checked_without_data_too(name):
    direct, message = DIRECT[name]
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match=message):
        direct()


def test_meta_tensors_get_shapes():
    q, k, x = Q.to("meta"), K.to("meta"), X.to("meta")
    stats = artent_ext.attention_stats(q, k, cu_seqlens_q=CU.to("meta"), window=3)
    out, of_out = artent_ext.scaled_dot_product_attention_with_stats(q, k, x)
    product = artent_ext.attention_apply(q, k, x, lse=stats.lse)
    back = artent_ext.attention_apply(q, k, q, transpose=True)
    assert stats.lse.shape == of_out.purity.shape == (2, 4, 6)
    assert out.shape == product.shape == (2, 4, 6, 3)
    assert back.shape == (2, 4, 7, 8)
    assert {t.device.type for t in (stats.lse, out, product, back)} == {"meta"}
