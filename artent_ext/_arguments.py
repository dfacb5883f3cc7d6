"""What the attention ops share: one check of the arguments, masks unwrapped to what the kernels read. And for all ops:
the dtypes taken, and the derivatives that they refuse.

Everything people can get wrong is told here, once, before native code runs (docs/math.md §4 for the meanings).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn.attention.bias import CausalBias, CausalVariant

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class AttentionArguments(NamedTuple):
    """Arguments of the native ops, in their order."""

    query: Tensor  # (B, H, T_q, D)
    key: Tensor  # (B, H_k, T_k, D)
    attn_mask: Tensor | None  # (B, H, T_q, T_k), bool or the accumulator's dtype, broadcast by stride 0
    key_range: Tensor | None  # (B, H, T_q, 2) int64
    diagonal: int | None  # key j is visible to query i iff j ≤ i + diagonal
    scale: float


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """NotImplementedError where a derivative is asked for that the op would answer with zeros, or obscurely."""
    if forward_ad._current_level < 0 and _functorch.maybe_current_level() is None:
        return
    for x in tensors:
        while x is not None:
            plain = forward_ad._current_level >= 0 and not _functorch.is_batchedtensor(x)
            if plain and forward_ad.unpack_dual(x).tangent is not None:
                raise NotImplementedError(
                    f"{name} has no forward-mode derivative (jvp); use reverse mode (torch.autograd, backward)"
                )
            if _functorch.is_gradtrackingtensor(x) and x.requires_grad:
                raise NotImplementedError(
                    f"{name} has no torch.func derivative (grad, vjp, jacrev); use torch.autograd (grad, backward)"
                )
            # vmap in jvp: the tangent belongs to the tensor that vmap has wrapped.
            x = _functorch.get_unwrapped(x) if _functorch.is_functorch_wrapped_tensor(x) else None


def attention_arguments(query, key, attn_mask, is_causal, scale, enable_gqa, key_range) -> AttentionArguments:
    """Checks what the caller gave and brings it to the native ops' form.

    Raises TypeError and ValueError as :func:`artent_ext.attention_stats` says.
    """
    query, key = _floating(query, "query"), _floating(key, "key")
    refuse_transforms("attention_stats", query, key, attn_mask if type(attn_mask) is Tensor else None)
    query, key = _autocast(query), _autocast(key)
    _check_pair(query, key, enable_gqa)
    if scale is None:
        scale = 1.0 / math.sqrt(query.shape[-1])
    elif not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or None (1/√D), got {type(scale).__name__}")
    elif not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    lead = _broadcast(query.shape[:-3], key.shape[:-3], "query and key: leading (batch) dimensions")
    heads = query.shape[-3] if query.dim() > 2 else 1
    target = (*lead, heads, query.shape[-2], key.shape[-2])
    diagonal = 0 if is_causal else None
    if attn_mask is not None:
        if is_causal:
            raise ValueError(
                "attn_mask and is_causal=True exclude each other, as in scaled_dot_product_attention; "
                "add the causal part to the mask, or pass key_range for padding"
            )
        if isinstance(attn_mask, CausalBias):
            attn_mask, diagonal = None, _diagonal(attn_mask, target)
        else:
            attn_mask = _mask(attn_mask, query, target)
    if key_range is not None:
        key_range = _key_range(key_range, query, target)
    return AttentionArguments(
        _four_d(query.expand(*lead, *query.shape[-3:])),
        _four_d(key.expand(*lead, *key.shape[-3:])),
        attn_mask,
        key_range,
        diagonal,
        float(scale),
    )


def _floating(x, name):
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}; convert it, e.g. {name}.float()"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {x.layout}; {name}.to_dense() makes one")
    if x.dim() < 2:
        raise ValueError(f"{name} must have at least two dimensions (..., H, T, D), got shape {tuple(x.shape)}")
    return x


def _autocast(x):
    """Under autocast, the dtype that scaled_dot_product_attention would compute in."""
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


def _check_pair(query, key, enable_gqa):
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
    if query.dtype != key.dtype:
        raise TypeError(
            f"query is {query.dtype} and key is {key.dtype}: they must have one dtype "
            "(is one of them from a cache or a rotary embedding kept in another precision?)"
        )
    if query.device != key.device:
        raise ValueError(f"query is on {query.device} and key is on {key.device}: move them to one device")
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


def _broadcast(a, b, what):
    try:
        return torch.broadcast_shapes(a, b)
    except RuntimeError:
        raise ValueError(f"{what} do not broadcast: {tuple(a)} and {tuple(b)}") from None


def _expand(x, target, name, hint):
    """x broadcast to ``target``, then to four dimensions."""
    try:
        return _four_d(x.expand(target))
    except RuntimeError:
        raise ValueError(f"{name} of shape {tuple(x.shape)} does not broadcast to {tuple(target)}; {hint}") from None


def _four_d(x):
    """Leading dimensions flattened to one, or ones added: always (B, H, ·, ·)."""
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    return x.flatten(0, x.dim() - 4)


def _diagonal(bias, target):
    queries, keys = target[-2:]
    if (bias.seq_len_q, bias.seq_len_kv) != (queries, keys):
        raise ValueError(
            f"attn_mask is a causal bias for {bias.seq_len_q} queries and {bias.seq_len_kv} keys, "
            f"but query has {queries} and key {keys}"
        )
    return keys - queries if bias.variant == CausalVariant.LOWER_RIGHT else 0


def _mask(mask, query, target):
    if not isinstance(mask, Tensor):
        raise TypeError(f"attn_mask must be a torch.Tensor or a CausalBias, got {type(mask).__name__}")
    if mask.device != query.device:
        raise ValueError(f"attn_mask is on {mask.device} and query is on {query.device}: move them to one device")
    if mask.requires_grad:
        raise ValueError("attn_mask requires grad, but only query and key get gradients here; pass attn_mask.detach()")
    if mask.dtype not in (torch.bool, *_FLOATS):
        raise TypeError(
            f"attn_mask must be bool or floating point, got {mask.dtype}; a 0/1 mask becomes one by mask.bool()"
        )
    if mask.dtype != torch.bool:
        mask = mask.to(accumulator_dtype(query.dtype))
    return _expand(mask, target, "attn_mask", "its last two dimensions are (T_q, T_k)")


def _key_range(key_range, query, target):
    if not isinstance(key_range, Tensor):
        raise TypeError(f"key_range must be a torch.Tensor, got {type(key_range).__name__}")
    if key_range.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"key_range must be int64 or int32, got {key_range.dtype}")
    if key_range.device != query.device:
        raise ValueError(f"key_range is on {key_range.device} and query is on {query.device}: move them to one device")
    if key_range.dim() == query.dim() - 1:
        key_range = key_range.unsqueeze(-3)
    hint = "it holds [start, end) of the keys that each query sees, (..., T_q, 2)"
    return _expand(key_range.to(torch.int64), (*target[:-1], 2), "key_range", hint)
