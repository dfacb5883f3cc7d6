"""Plain-torch truth for every op of this package: materialised, slow, easy to read.

Tests compare the kernels with these functions in float64; the documentation points here for the definitions.
"""

from __future__ import annotations

import torch

__all__ = [
    "attention_apply",
    "attention_logits",
    "attention_probabilities",
    "attention_stats",
    "scaled_dot_product_attention_with_stats",
    "truncated_svd",
]


def attention_logits(query, key, *, attn_mask=None, key_range=None, diagonal=None, scale=None, softcap=None):
    """Masked logits s, (..., H, T_q, T_k); hidden keys are −inf.

    Arguments as in :func:`artent_ext.attention_stats`, which says more ways which keys are seen; here a query i sees
    keys j ≤ i + ``diagonal`` within its ``key_range``, where the mask lets it.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    s = (query @ _for_query_heads(query, key).mT) * scale
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    rows = torch.arange(query.shape[-2], device=query.device)[:, None]
    keys = torch.arange(key.shape[-2], device=query.device)[None, :]
    visible = torch.ones_like(s, dtype=torch.bool)
    if diagonal is not None:
        visible = visible & (keys <= rows + diagonal)
    if key_range is not None:  # (..., T_q, 2): the head dimension is added when it is missing
        if key_range.dim() == query.dim() - 1:
            key_range = key_range.unsqueeze(-3)
        visible = visible & (keys >= key_range[..., :1]) & (keys < key_range[..., 1:])
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            visible = visible & attn_mask
        else:
            s = s + attn_mask.to(s.dtype)
    return s.masked_fill(~visible, float("-inf"))


def _for_query_heads(query, x):
    """x (..., H_k, T_k, ·) with a head for every query head."""
    if query.dim() == 2 or x.shape[-3] == query.shape[-3]:
        return x
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3)


def attention_probabilities(query, key, **options):
    """A = softmax of the masked logits, (..., H, T_q, T_k); a row without a key is zero."""
    s = attention_logits(query, key, **options)
    empty = torch.isneginf(s).all(-1, keepdim=True) if s.shape[-1] else torch.ones_like(s[..., :0].sum(-1, True)) > 0
    return torch.softmax(s.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)


def attention_stats(query, key, **options):
    """(lse, entropy, purity) of every row of A, each (..., H, T_q). Source: docs/math.md §4.

    A row without a key has lse = −inf, entropy 0 and purity 0.
    """
    s = attention_logits(query, key, **options)
    p = attention_probabilities(query, key, **options)
    log_p = torch.where(p > 0, p, 1.0).log()
    if s.shape[-1]:
        empty = torch.isneginf(s).all(-1)  # filled before the sum: the gradient of logsumexp is NaN there
        lse = torch.logsumexp(s.masked_fill(empty[..., None], 0.0), -1).masked_fill(empty, float("-inf"))
    else:
        lse = s.new_full(s.shape[:-1], float("-inf"))
    return lse, -(p * log_p).sum(-1), p.square().sum(-1)


def attention_apply(query, key, x, *, transpose=False, **options):
    """A·x, or Aᵀ·x with ``transpose``; x has a head for every query head. Source: docs/math.md §4."""
    A = attention_probabilities(query, key, **options)
    return (A.mT if transpose else A) @ x


def scaled_dot_product_attention_with_stats(query, key, value, **options):
    """(A·value, (lse, entropy, purity)); value (..., H_k, T_k, c) is shared by groups of query heads as key is."""
    out = attention_apply(query, key, _for_query_heads(query, value), **options)
    return out, attention_stats(query, key, **options)


def truncated_svd(A, rank=None, *, tol=None):
    """(U, S, Vh, residual, ranks) of the best approximation of A (..., m, n), in float64. Source: docs/math.md §3.

    ``rank`` columns, of which with ``tol`` those past the smallest rank with residual ≤ tol²·‖A‖_F² are zero.
    """
    U, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    tail = S.square().flip(-1).cumsum(-1).flip(-1)  # tail[r] = residual at rank r, for r < min(m, n)
    full = S.shape[-1]
    k = full if rank is None else min(rank, full)
    ranks = torch.full(A.shape[:-2], k)
    if tol is not None:
        ranks = (tail > tol**2 * tail[..., :1]).sum(-1).clamp_max(k)
    kept = torch.arange(full) < ranks[..., None]
    residual = torch.where(kept, 0.0, S.square()).sum(-1)
    U, S, Vh = (torch.where(mask, x, 0.0) for mask, x in ((kept[..., None, :], U), (kept, S), (kept[..., None], Vh)))
    return U[..., :k], S[..., :k], Vh[..., :k, :], residual, ranks
