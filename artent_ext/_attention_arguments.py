"""What the attention ops share: one check of the arguments, brought to the native ops' form (docs/math.md §4)."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

from torch import Tensor

from artent_ext._arguments import _broadcast, accumulator_dtype, autocast, floating, on_device_of, refuse_transforms
from artent_ext._visibility import expand, four_d, visibility


class AttentionArguments(NamedTuple):
    """What defines A, in the order of the native ops."""

    query: Tensor  # (B, H, T_q, D)
    key: Tensor  # (B, H_k, T_k, D)
    attn_mask: Tensor | None  # (B, H, T_q, T_k), bool or the accumulator's dtype, broadcast by stride 0
    key_range: Tensor | None  # (B, H, T_q, 2) int64
    diagonal: int | None  # key j is visible to query i iff j ≤ i + diagonal
    scale: float
    softcap: float  # 0: none


def attention_arguments(
    query,
    key,
    attn_mask=None,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    key_range=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    window=None,
    softcap=None,
    *,
    name="attention_stats",
    others=(),
) -> AttentionArguments:
    """Checks what the caller gave and brings it to the native ops' form.

    ``name`` is the op that a refusal names, ``others`` the tensors whose leading dimensions broadcast with query's.
    Raises TypeError and ValueError as :func:`artent_ext.attention_stats` says.
    """
    query, key = floating(query, "query"), floating(key, "key")
    refuse_transforms(name, query, key, *others, attn_mask if type(attn_mask) is Tensor else None)
    query, key = autocast(query), autocast(key)
    _check_pair(query, key, enable_gqa)
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    scale = _number(scale, "scale", "a number or None (1/√D)")
    if softcap is not None:
        softcap = _number(softcap, "softcap", "a number or None (no cap)")
        if softcap <= 0:
            raise ValueError(f"softcap must be positive, got {softcap}; None is no cap")
    *lead, _ = shape = leading_shape(query, key, *others) if query.dim() > 2 else (1,)
    target = (*shape, query.shape[-2], key.shape[-2])
    attn_mask, key_range, diagonal = visibility(
        query, target, attn_mask, is_causal, key_range, cu_seqlens_q, cu_seqlens_k, window
    )
    return AttentionArguments(
        four_d(query.expand(*lead, *query.shape[-3:])),
        four_d(key.expand(*lead, *key.shape[-3:])),
        attn_mask,
        key_range,
        diagonal,
        scale,
        0.0 if softcap is None else softcap,
    )


def leading_shape(query, key, *others) -> tuple[int, ...]:
    """(..., H) of the results; without H where query has no heads."""
    lead = _broadcast(query.shape[:-3], key.shape[:-3], "query and key: leading (batch) dimensions")
    for x in others:
        lead = _broadcast(lead, x.shape[:-3], "query and what it multiplies: leading (batch) dimensions")
    return (*lead, *query.shape[-3:-2])


def value_columns(value, shape, query, key, dim) -> Tensor:
    """value (..., H or H_k, T_k, c) as (B, H or H_k, T_k, c); query, key the native ops', dim the caller's."""
    value = autocast(value)
    on_device_of(query, value, "value")
    if value.dtype != query.dtype:
        raise TypeError(f"value is {value.dtype} and query and key are {query.dtype}: they must have one dtype")
    if value.dim() != dim:
        raise ValueError(f"query and value must have the same number of dimensions, got {dim} and {value.dim()}")
    heads = value.shape[-3:-2]
    if dim > 2 and heads[0] not in (key.shape[1], query.shape[1]):
        raise ValueError(
            f"value of shape {tuple(value.shape)} has {heads[0]} heads, expected key's {key.shape[1]}"
            + (f" or query's {query.shape[1]}" if key.shape[1] != query.shape[1] else "")
        )
    _check_rows(value, key.shape[2], "value", "T_k: a row for every key")
    return expand(value, (*shape[: dim - 3], *heads, *value.shape[-2:]), "value", "it is (..., H_k, T_k, c)")


def apply_columns(x, shape, query, key, transpose) -> Tensor:
    """x as (B, H, T_k or with ``transpose`` T_q, c); query, key the native ops'."""
    on_device_of(query, x, "x")
    accumulator = accumulator_dtype(query.dtype)
    if x.dtype not in (query.dtype, accumulator):
        kinds = str(query.dtype) if query.dtype == accumulator else f"{query.dtype} or {accumulator}"
        raise TypeError(f"x is {x.dtype}, but with this query it must be {kinds}")
    rows = "T_q: transpose=True multiplies Aᵀ by a row for every query" if transpose else "T_k: a row for every key"
    _check_rows(x, query.shape[2] if transpose else key.shape[2], "x", rows)
    return expand(x, (*(shape or (1,)), *x.shape[-2:]), "x", "its leading dimensions are those of query, (..., H)")


def row_vector(lse, shape, query) -> Tensor:
    """lse (..., H, T_q) as (B, H, T_q); query the native ops'."""
    if not isinstance(lse, Tensor):
        raise TypeError(f"lse must be a torch.Tensor (attention_stats(...).lse) or None, got {type(lse).__name__}")
    on_device_of(query, lse, "lse")
    accumulator = accumulator_dtype(query.dtype)
    if lse.dtype != accumulator:
        raise TypeError(f"lse must be {accumulator}, as attention_stats gives it for this query, got {lse.dtype}")
    hint = "it is attention_stats(query, key, …).lse, (..., H, T_q)"
    if lse.dim() == 0 or lse.shape[-1] != query.shape[2] or (shape and (lse.dim() < 2 or lse.shape[-2] != shape[-1])):
        raise ValueError(f"lse of shape {tuple(lse.shape)} is not that of {query.shape[2]} queries a head; {hint}")
    rows = lse.detach().unsqueeze(-1)
    return expand(rows, (*(shape or (1,)), query.shape[2], 1), "lse", hint).squeeze(-1)


def _number(x, name, expected):
    if not isinstance(x, (int, float)):
        if not isinstance(x, numbers.Real):  # numpy's scalars are
            raise TypeError(f"{name} must be {expected}, got {type(x).__name__}")
        x = float(x)
    if not abs(x) < math.inf:  # NaN too; math.isfinite would end a compiled graph
        raise ValueError(f"{name} must be a finite number, got {x}")
    return float(x)


def _check_rows(x, rows, name, what):
    if x.shape[-2] != rows:
        raise ValueError(f"{name} of shape {tuple(x.shape)} has {x.shape[-2]} rows, expected {rows} ({what})")


def _check_pair(query, key, enable_gqa):
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
    if query.dtype != key.dtype:
        raise TypeError(
            f"query is {query.dtype} and key is {key.dtype}: they must have one dtype "
            "(is one of them from a cache or a rotary embedding kept in another precision?)"
        )
    on_device_of(query, key, "key")
    if query.dim() != key.dim():
        raise ValueError(f"query and key must have the same number of dimensions, got {shapes}")
    if query.shape[-1] != key.shape[-1] or query.shape[-1] == 0:
        raise ValueError(
            f"query and key must share a non-empty last (head) dimension D, got {shapes}; "
            "is one of them (..., T, H, D) instead of (..., H, T, D)?"
        )
    if query.dim() > 2 and 0 in (query.shape[-3], key.shape[-3]):
        raise ValueError(f"query and key must have at least one head, got {shapes}")
    if query.dim() > 2 and query.shape[-3] != key.shape[-3]:
        if not enable_gqa:
            raise ValueError(
                f"query and key have different numbers of heads, {shapes}; pass enable_gqa=True if queries share keys"
            )
        if query.shape[-3] % key.shape[-3]:
            raise ValueError(f"enable_gqa needs query heads to be a multiple of key heads, got {shapes}")
