"""Mistakes in the arguments of the attention ops are told by name, with what was given and a likely cause."""

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right

import artent_ext

Q, K = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 7, 8)

MISTAKES = {
    "query is a list": ([[1.0]], K, {}, TypeError, "query must be a torch.Tensor, got list"),
    "integer query": (Q.long(), K, {}, TypeError, "query must be float16.*int64"),
    "complex key": (Q, K.to(torch.complex64), {}, TypeError, "key must be float16.*complex64"),
    "vector query": (Q[0, 0, 0], K, {}, ValueError, "query must have at least two dimensions"),
    "other dtype": (Q, K.double(), {}, TypeError, "query is torch.float32 and key is torch.float64"),
    "other head dimension": (Q, K[..., :5], {}, ValueError, "share a non-empty last .*heads|share a non-empty last"),
    "empty head dimension": (Q[..., :0], K[..., :0], {}, ValueError, "non-empty last"),
    "other number of dimensions": (Q, K[0], {}, ValueError, "same number of dimensions"),
    "heads without gqa": (Q, K[:, :2], {}, ValueError, "different numbers of heads.*enable_gqa=True"),
    "heads that do not divide": (Q, K[:, :3], {"enable_gqa": True}, ValueError, "multiple of key heads"),
    "batches that do not match": (Q, K.repeat(2, 1, 1, 1)[:3], {}, ValueError, "batch.*do not broadcast"),
    "other device": (Q, K.to("meta"), {}, ValueError, "query is on cpu and key is on meta"),
    "scale not finite": (Q, K, {"scale": float("nan")}, ValueError, "scale must be a finite number"),
    "scale is no number": (Q, K, {"scale": "a"}, TypeError, "scale must be a number or None.*str"),
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
    "key_range is a tuple": (Q, K, {"key_range": (0, 7)}, TypeError, "key_range must be a torch.Tensor"),
}


@pytest.mark.parametrize(("query", "key", "options", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(query, key, options, error, message):
    with pytest.raises(error, match=message):
        artent_ext.attention_stats(query, key, **options)


def test_a_direct_call_with_wrong_shapes_does_not_read_out_of_bounds():
    ones = torch.ones(2, 4, 6, 9, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="attn_mask: size 9 at dimension 3, expected 7"):
        torch.ops.artent.attention_stats(Q, K, ones, None, None, 1.0)
    with pytest.raises(RuntimeError, match="key_range"):
        torch.ops.artent.attention_stats(Q, K, None, torch.zeros(2, 4, 5, 2).long(), None, 1.0)
    with pytest.raises(RuntimeError, match="multiple of key heads"):
        torch.ops.artent.attention_stats(Q, K[:, :3], None, None, None, 1.0)


def test_meta_tensors_get_shapes():
    stats = artent_ext.attention_stats(Q.to("meta"), K.to("meta"))
    assert stats.lse.shape == (2, 4, 6)
    assert stats.lse.device.type == "meta"
