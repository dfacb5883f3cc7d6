"""Softmax attention as a matrix A = softmax(s), streamed over keys: no T_q×T_k matrix is ever stored.

Of A with s = cap(scale·QKᵀ) + mask: log-sum-exp, Shannon entropy (nats) and purity Σp² of every row; the products A·x
and Aᵀ·x; attention's output together with the statistics. Definitions: docs/math.md §4. Plain-torch truth:
:mod:`artent_ext.reference`.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from artent_ext._arguments import floating
from artent_ext._attention_arguments import (
    apply_columns,
    attention_arguments,
    leading_shape,
    row_vector,
    value_columns,
)
from artent_ext._attention_ops import ops
from artent_ext._visibility import dense_mask

if TYPE_CHECKING:
    from torch.nn.attention.bias import CausalBias

__all__ = [
    "AttentionStats",
    "attention_apply",
    "attention_entropy",
    "attention_stats",
    "scaled_dot_product_attention_with_stats",
]


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
    attn_mask: Tensor | CausalBias | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_range: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
) -> AttentionStats:
    """Log-sum-exp, Shannon entropy and purity of every attention row, in one pass over the keys.

    Arguments mean what they mean in :func:`torch.nn.functional.scaled_dot_product_attention`; any strides; float16,
    bfloat16, float32, float64. Memory is O(T_q) whatever T_k. Differentiable (once) in ``query`` and ``key`` by
    torch.autograd (reverse mode), not by torch.func. A query sees the keys that all of the arguments below let it see.

    Args:
        query: (..., H, T_q, D).
        key: (..., H_k, T_k, D); H_k = H, or with ``enable_gqa`` a divisor of H.
        attn_mask: broadcastable to (..., H, T_q, T_k), boolean (True: attend) or added to the logits; or a
            :class:`torch.nn.attention.bias.CausalBias`, which is never materialised. It gets no gradient.
        is_causal: query i sees keys j ≤ i (upper-left alignment, also when T_q ≠ T_k); excludes ``attn_mask``.
        scale: factor on QKᵀ, by default 1/√D.
        enable_gqa: lets groups of query heads share a key head.
        key_range: integers, (..., T_q, 2) or (..., H, T_q, 2), broadcastable: the keys [start, end) that each query
            sees. Padding is said so without a T_q×T_k mask.
        cu_seqlens_q: int32 or int64 (n + 1,), from 0 up: text t is rows cu_seqlens_q[t] to cu_seqlens_q[t + 1] of
            ``query`` (in every batch element), and sees keys of its own text only. ``is_causal`` and ``window`` then
            count from each text's first query and first key. Rows past the last boundary see no key. Checked on the
            CPU; on other devices nothing waits to look at the values.
        cu_seqlens_k: the same for ``key``; by default ``cu_seqlens_q``.
        window: query i at position i sees keys i − left to i + right for a pair (left, right), None or −1 being no
            bound; an integer w is (w − 1, 0): the last w keys, its own position included. Positions count from the
            upper left, as ``is_causal`` does; with ``causal_lower_right`` as ``attn_mask`` from the lower right, where
            flash-attention's window_size counts from and where queries behind a cache of keys stand.
        softcap: c > 0 makes the logits c·tanh(scale·QKᵀ/c), before the mask (Gemma 2).

    Returns:
        :class:`AttentionStats` of (..., H, T_q) tensors.

    Raises:
        TypeError: an argument is no tensor, has an unsupported dtype, or query and key differ in dtype.
        ValueError: shapes, devices or masks do not fit together; the message names the argument.
        NotImplementedError: a forward-mode or torch.func derivative is asked for.

    Source: docs/math.md §4 (recurrence, gradients, empty rows).
    """
    arguments = attention_arguments(
        query, key, attn_mask, is_causal, scale, enable_gqa, key_range, cu_seqlens_q, cu_seqlens_k, window, softcap
    )
    return _stats(ops.attention_stats(*arguments), leading_shape(query, key))


def attention_entropy(query: Tensor, key: Tensor, **options) -> Tensor:
    """Shannon entropy of every attention row in nats, (..., H, T_q); arguments and errors of :func:`attention_stats`.

    Differentiable, so it can stand in a loss (entropy collapse, regularisers).
    """
    return attention_stats(query, key, **options).entropy


def attention_apply(
    query: Tensor,  # (..., H, T_q, D)
    key: Tensor,  # (..., H_k, T_k, D)
    x: Tensor,  # (..., H, T_k, c); with transpose (..., H, T_q, c)
    *,
    lse: Tensor | None = None,  # (..., H, T_q)
    transpose: bool = False,
    attn_mask: Tensor | CausalBias | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_range: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
) -> Tensor:  # (..., H, T_q, c); with transpose (..., H, T_k, c)
    """A·x, or Aᵀ·x with ``transpose``, of the attention matrices A of every query head, streamed: memory O(T·c).

    Args:
        query, key: as in :func:`attention_stats`, and so is every argument that is not here.
        x: (..., H, T_k, c), with ``transpose`` (..., H, T_q, c), any c; leading dimensions broadcast. In query's dtype
            or in the accumulator's, float32 (float64 for float64 input); the result has x's dtype.
        lse: ``attention_stats(...).lse`` of the same A, (..., H, T_q); computed where not given.
        transpose: multiply by Aᵀ.

    Returns:
        (..., H, T_q, c), with ``transpose`` (..., H, T_k, c); rows of A without a visible key are zero rows.

    Differentiable once in ``query``, ``key`` and ``x``. ``lse`` carries no gradient of its own: whoever computed it,
    the derivative is that of A, which query and key define alone.

    Raises: what :func:`attention_stats` raises, for x and lse too.

    Source: docs/math.md §4.
    """
    x = floating(x, "x")
    arguments = attention_arguments(
        query,
        key,
        attn_mask,
        is_causal,
        scale,
        enable_gqa,
        key_range,
        cu_seqlens_q,
        cu_seqlens_k,
        window,
        softcap,
        name="attention_apply",
        others=(x,),
    )
    q, k, *rest = arguments
    shape = leading_shape(query, key, x)
    columns = apply_columns(x, shape, q, k, transpose)
    derived = torch.is_grad_enabled() and any(y.requires_grad for y in (q, k, columns))
    if lse is None and not transpose and columns.dtype == q.dtype and not derived:
        out = ops.attention_forward(q, k, columns, *rest)[0]  # one pass; a gradient would keep more of it
    else:
        if lse is None:
            lse, _, _, low = ops.attention_stats(q.detach(), k.detach(), *rest)
        else:
            lse, low = row_vector(lse, shape, q), None
        out = ops.attention_apply(q, k, columns, lse, low, bool(transpose), *rest)
    return out.reshape(*shape, *out.shape[-2:])


def scaled_dot_product_attention_with_stats(
    query: Tensor,  # (..., H, T_q, D)
    key: Tensor,  # (..., H_k, T_k, D)
    value: Tensor,  # (..., H_k, T_k, c)
    attn_mask: Tensor | CausalBias | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_range: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    window: int | tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, AttentionStats]:
    """Attention's output A·value (..., H, T_q, c) and the statistics of A's rows, from one pass over the keys.

    The output is that of :func:`torch.nn.functional.scaled_dot_product_attention` and takes its arguments as it does;
    those that it lacks, and the statistics, are of :func:`attention_stats`. Differentiable once in ``query``, ``key``
    and ``value``, through the output and through the statistics. A row without a visible key has output 0, as there.

    Args:
        query, key, attn_mask, is_causal and what follows: as in :func:`attention_stats`.
        value: (..., H_k, T_k, c) in query's dtype, or a head for every query head; c may differ from D.
        dropout_p: as there (it drops whenever it is not 0). The statistics are of A before dropout. The one pass knows
            no dropout: the output then is torch's own, computed beside the statistics, for which a window, packed texts
            and ranges become a T_q×T_k mask.

    Returns:
        The output in query's dtype, and :class:`AttentionStats`.

    Raises: what :func:`attention_stats` raises, for value too; NotImplementedError for dropout with a soft cap.

    Source: docs/math.md §4.
    """
    value = floating(value, "value")
    if not isinstance(dropout_p, numbers.Real) or not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be a number between 0 and 1, got {dropout_p!r}")
    arguments = attention_arguments(
        query,
        key,
        attn_mask,
        is_causal,
        scale,
        enable_gqa,
        key_range,
        cu_seqlens_q,
        cu_seqlens_k,
        window,
        softcap,
        name="scaled_dot_product_attention_with_stats",
        others=(value,),
    )
    q, k, *rest = arguments
    shape = leading_shape(query, key, value)
    v = value_columns(value, shape, q, k, query.dim())
    if dropout_p == 0:
        out, *stats = ops.attention_forward(q, k, v, *rest)
    else:
        out, stats = _with_dropout(arguments, v, float(dropout_p)), ops.attention_stats(*arguments)
    return out.reshape(*shape, *out.shape[-2:]), _stats(stats, shape)


def _stats(rows, shape) -> AttentionStats:
    return AttentionStats(*(x.reshape(*shape, x.shape[-1]) for x in rows[:3]))


def _with_dropout(arguments, value, dropout_p):
    query, key, attn_mask, key_range, diagonal, scale, softcap = arguments
    if softcap:
        raise NotImplementedError(
            f"dropout_p={dropout_p} with softcap={softcap}: torch's attention, which does the dropout, has no soft "
            "cap; pass dropout_p=0.0 (is the module in training mode? Gemma 2 has no attention dropout)"
        )
    grouped = {} if query.shape[1] == key.shape[1] else {"enable_gqa": True}  # while tracing it may not be symbolic
    causal = diagonal == 0 and attn_mask is None and key_range is None
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if causal else dense_mask(query, key, attn_mask, key_range, diagonal),
        dropout_p=dropout_p,
        is_causal=causal,
        scale=scale,
        **grouped,
    )
