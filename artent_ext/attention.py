"""Row statistics of softmax attention, streamed over keys: no T_q×T_k matrix is ever stored.

For A = softmax(scale·QKᵀ + mask): log-sum-exp, Shannon entropy (nats) and purity Σp² of every row.
Definitions: docs/math.md §4. Plain-torch truth: :mod:`artent_ext.reference`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from artent_ext import _native  # noqa: F401 (registers torch.ops.artent)
from artent_ext._arguments import accumulator_dtype, attention_arguments

__all__ = ["AttentionStats", "attention_entropy", "attention_stats"]


class AttentionStats(NamedTuple):
    """Statistics of every attention row, each (..., H, T_q), float32 (float64 for float64 input).

    A row without a visible key has ``lse`` −∞, ``entropy`` 0 and ``purity`` 0.
    """

    lse: Tensor  # ln Σ_j exp(s_j)
    entropy: Tensor  # −Σ_j p_j ln p_j, nats
    purity: Tensor  # Σ_j p_j²


def attention_stats(
    query: Tensor,  # (..., H, T_q, D)
    key: Tensor,  # (..., H_k, T_k, D)
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_range: Tensor | None = None,
) -> AttentionStats:
    """Log-sum-exp, Shannon entropy and purity of every attention row, in one pass over the keys.

    Arguments mean what they mean in :func:`torch.nn.functional.scaled_dot_product_attention`; any strides; float16,
    bfloat16, float32, float64. Memory is O(T_q) whatever T_k. Differentiable (once) in ``query`` and ``key`` by
    torch.autograd (reverse mode), not by torch.func.

    Args:
        query: (..., H, T_q, D).
        key: (..., H_k, T_k, D); H_k = H, or with ``enable_gqa`` a divisor of H.
        attn_mask: broadcastable to (..., H, T_q, T_k), boolean (True: attend) or added to the logits; or a
            :class:`torch.nn.attention.bias.CausalBias`, which is never materialised.
        is_causal: query i sees keys j ≤ i (upper-left alignment, also when T_q ≠ T_k); excludes ``attn_mask``.
        scale: factor on QKᵀ, by default 1/√D.
        enable_gqa: lets groups of query heads share a key head.
        key_range: integers, (..., T_q, 2) or (..., H, T_q, 2), broadcastable: the keys [start, end) that each query
            sees, together with the other masks. Padding and packed sequences are said so without a T_q×T_k mask.

    Returns:
        :class:`AttentionStats` of (..., H, T_q) tensors.

    Raises:
        TypeError: an argument is no tensor, has an unsupported dtype, or query and key differ in dtype.
        ValueError: shapes, devices or masks do not fit together; the message names the argument.
        NotImplementedError: a forward-mode or torch.func derivative is asked for.

    Source: docs/math.md §4 (recurrence, gradients, empty rows).
    """
    arguments = attention_arguments(query, key, attn_mask, is_causal, scale, enable_gqa, key_range)
    lead = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    shape = (*lead, *query.shape[-3:-1])
    return AttentionStats(*(x.reshape(shape) for x in torch.ops.artent.attention_stats(*arguments)))


def attention_entropy(query: Tensor, key: Tensor, **options) -> Tensor:
    """Shannon entropy of every attention row in nats, (..., H, T_q); arguments and errors of :func:`attention_stats`.

    Differentiable, so it can stand in a loss (entropy collapse, regularisers).
    """
    return attention_stats(query, key, **options).entropy


@torch.library.register_fake("artent::attention_stats")
def _(query, key, attn_mask, key_range, diagonal, scale):
    rows = query.new_empty(query.shape[:-1], dtype=accumulator_dtype(query.dtype))
    return rows, torch.empty_like(rows), torch.empty_like(rows)


@torch.library.register_fake("artent::attention_stats_backward")
def _(
    grad_lse,
    grad_entropy,
    grad_purity,
    query,
    key,
    lse,
    entropy,
    purity,
    attn_mask,
    key_range,
    diagonal,
    scale,
):
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _setup_context(ctx, inputs, output):
    query, key, attn_mask, key_range, ctx.diagonal, ctx.scale = inputs
    ctx.save_for_backward(query, key, *output, attn_mask, key_range)
    ctx.set_materialize_grads(False)


def _backward(ctx, *grads):
    *saved, attn_mask, key_range = ctx.saved_tensors
    grad_query, grad_key = torch.ops.artent.attention_stats_backward(
        *grads, *saved, attn_mask, key_range, ctx.diagonal, ctx.scale
    )
    return grad_query, grad_key, None, None, None, None


def _double_backward(ctx, *grads):
    raise RuntimeError(
        "attention_stats is differentiable once: for second derivatives use artent_ext.reference.attention_stats"
    )


torch.library.register_autograd("artent::attention_stats", _backward, setup_context=_setup_context)
torch.library.register_autograd("artent::attention_stats_backward", _double_backward)
