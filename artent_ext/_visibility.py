"""Which keys a query sees: every way of saying so, unwrapped to what the kernels read.

That is a mask where the caller gave one, an interval of keys for each query (O(T_q) integers, shared by batch and heads
through stride 0), and a diagonal. Structure (windows, packed texts, causal biases) never becomes a T_q×T_k mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from artent_ext._arguments import _FLOATS, accumulator_dtype, integer, is_static, on_device_of


def visibility(query, target, attn_mask, is_causal, key_range, cu_seqlens_q, cu_seqlens_k, window):
    """(attn_mask, key_range, diagonal) of the native ops; target is (..., H, T_q, T_k)."""
    queries, keys = target[-2:]
    diagonal = 0 if is_causal else None
    packed = _packed(query, queries, keys, cu_seqlens_q, cu_seqlens_k)
    left, right = _window(window)
    if attn_mask is not None:
        if is_causal:
            raise ValueError(
                "attn_mask and is_causal=True exclude each other, as in scaled_dot_product_attention; "
                "add the causal part to the mask, or pass key_range for padding"
            )
        if _is_causal_bias(attn_mask):
            if packed is not None:
                raise ValueError(
                    "attn_mask is a causal bias and cu_seqlens_q is given: of packed texts each has a diagonal of its "
                    "own; pass is_causal=True, which counts from each text's start"
                )
            attn_mask, diagonal = None, _diagonal(attn_mask, queries, keys)
        else:
            attn_mask = _mask(attn_mask, query, target)
    if key_range is not None:
        key_range = _key_range(key_range, query)
    if packed is not None or left is not None or right is not None:
        ranges = _ranges(query, queries, keys, packed, left, right, diagonal)
        key_range = ranges if key_range is None else _intersection(key_range, ranges)
        diagonal = None
    if key_range is not None:
        hint = "it holds [start, end) of the keys that each query sees, (..., T_q, 2)"
        key_range = expand(key_range, (*target[:-1], 2), "key_range", hint)
    return attn_mask, key_range, diagonal


def expand(x, target, name, hint):
    """x broadcast to ``target``, then to four dimensions."""
    try:
        return four_d(x.expand(target))
    except RuntimeError:
        raise ValueError(f"{name} of shape {tuple(x.shape)} does not broadcast to {tuple(target)}; {hint}") from None


def four_d(x):
    """Leading dimensions flattened to one, or ones added: always (B, H, ·, ·)."""
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    return x.flatten(0, x.dim() - 4)


def dense_mask(query, key, attn_mask, key_range, diagonal) -> Tensor | None:
    """What the native ops' arguments say as one T_q×T_k mask for scaled_dot_product_attention; None: all is seen."""
    visible = None
    keys = torch.arange(key.shape[-2], device=query.device)
    if key_range is not None:
        visible = (keys >= key_range[..., :1]) & (keys < key_range[..., 1:])
    if diagonal is not None:
        below = keys <= torch.arange(query.shape[-2], device=query.device)[:, None] + diagonal
        visible = below if visible is None else visible & below
    if attn_mask is None or visible is None:
        return visible if attn_mask is None else _of_dtype(attn_mask, query)
    if attn_mask.dtype == torch.bool:
        return attn_mask & visible
    return _of_dtype(attn_mask, query).masked_fill(~visible, float("-inf"))


def _of_dtype(mask, query):
    return mask if mask.dtype == torch.bool else mask.to(query.dtype)


def _ranges(query, queries, keys, packed, left, right, diagonal):
    """[start, end) of the keys (T_q, 2) that each query sees through window, packing and diagonal together."""
    rows = torch.arange(queries, device=query.device)
    if packed is None:
        start, end = torch.zeros_like(rows), torch.full_like(rows, keys)
        position = rows + (diagonal or 0)
    else:
        # A row past the last boundary is in text n: the keys from cu_k[n] to cu_k[n], none.
        cu_q, cu_k = packed
        text = torch.searchsorted(cu_q[1:], rows, right=True)
        start, end = cu_k[text], cu_k[(text + 1).clamp_max(cu_k.shape[0] - 1)]
        position = start + rows - cu_q[text]
    if diagonal is not None:
        right = 0 if right is None else min(right, 0)
    if left is not None:
        start = torch.maximum(start, position - left)
    if right is not None:
        end = torch.minimum(end, position + (right + 1))
    return torch.stack((start, end), -1)


def _intersection(a, b):
    return torch.stack((torch.maximum(a[..., 0], b[..., 0]), torch.minimum(a[..., 1], b[..., 1])), -1)


def _is_causal_bias(mask):
    if type(mask) is Tensor:
        return False
    from torch.nn.attention.bias import CausalBias  # brings torch._dynamo, which takes longer to import than torch

    return isinstance(mask, CausalBias)


def _diagonal(bias, queries, keys):
    from torch.nn.attention.bias import CausalVariant

    if (bias.seq_len_q, bias.seq_len_kv) != (queries, keys):
        raise ValueError(
            f"attn_mask is a causal bias for {bias.seq_len_q} queries and {bias.seq_len_kv} keys, "
            f"but query has {queries} and key {keys}"
        )
    return keys - queries if bias.variant == CausalVariant.LOWER_RIGHT else 0


def _mask(mask, query, target):
    if not isinstance(mask, Tensor):
        raise TypeError(f"attn_mask must be a torch.Tensor or a CausalBias, got {type(mask).__name__}")
    on_device_of(query, mask, "attn_mask")
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "attn_mask requires grad, but only query, key and value get gradients here; pass attn_mask.detach()"
        )
    if mask.dtype not in (torch.bool, *_FLOATS):
        raise TypeError(
            f"attn_mask must be bool or floating point, got {mask.dtype}; a 0/1 mask becomes one by mask.bool()"
        )
    if mask.dtype != torch.bool:
        mask = mask.to(accumulator_dtype(query.dtype))
    return expand(mask, target, "attn_mask", "its last two dimensions are (T_q, T_k)")


def _key_range(key_range, query):
    _integers(key_range, query, "key_range")
    if key_range.dim() == 0 or key_range.shape[-1] != 2:
        raise ValueError(
            f"key_range of shape {tuple(key_range.shape)} must end in a dimension of 2: it holds [start, end) of the "
            "keys that each query sees, (..., T_q, 2); lengths alone become it by stacking zeros before them"
        )
    if key_range.dim() == query.dim() - 1:
        key_range = key_range.unsqueeze(-3)
    return key_range.to(torch.int64)


def _integers(x, query, name):
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {x.dtype}")
    on_device_of(query, x, name)


_UNBOUNDED = 2**48
_WINDOW = "an integer or a pair of integers (left, right)"


def _window(window):
    """(left, right): how many keys before and after its own position a query sees; None: no bound."""
    if window is None:
        return None, None
    if not isinstance(window, (tuple, list)):
        size = integer("window", window, _WINDOW)
        if size < 1:
            raise ValueError(
                f"window must be at least 1 (a query's own position counts), got {size}; None is no window, "
                "(left, right) the keys on either side"
            )
        return None if size > _UNBOUNDED else size - 1, 0
    if len(window) != 2:
        raise ValueError(f"window must be an integer or a pair (left, right), got {len(window)} numbers")
    sides = [None if side is None else integer("window", side, _WINDOW) for side in window]
    if any(side is not None and side < -1 for side in sides):
        raise ValueError(f"window's sides must be at least 0, or -1 or None where there is no bound, got {window}")
    # A side as long as any text is no bound, and one more would leave int64: sys.maxsize is what people say for "all".
    return [None if side in (None, -1) or side >= _UNBOUNDED else side for side in sides]


def _packed(query, queries, keys, cu_seqlens_q, cu_seqlens_k):
    """Boundaries (n + 1) of the packed texts among queries and among keys, int64; None where nothing is packed."""
    if cu_seqlens_q is None:
        if cu_seqlens_k is not None:
            raise ValueError("cu_seqlens_k is given without cu_seqlens_q, the boundaries of the same texts in query")
        return None
    bounds_q = _bounds(cu_seqlens_q, query, queries, "cu_seqlens_q", "query")
    if cu_seqlens_k is None:
        return bounds_q, _bounds(cu_seqlens_q, query, keys, "cu_seqlens_k (by default cu_seqlens_q)", "key")
    bounds_k = _bounds(cu_seqlens_k, query, keys, "cu_seqlens_k", "key")
    if bounds_q.shape != bounds_k.shape:
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k must bound the same texts, got {bounds_q.shape[0]} and "
            f"{bounds_k.shape[0]} boundaries"
        )
    return bounds_q, bounds_k


def _bounds(cu, query, length, name, of):
    _integers(cu, query, name.split()[0])
    if cu.dim() != 1 or cu.shape[0] == 0:
        raise ValueError(f"{name} must have shape (texts + 1,), got {tuple(cu.shape)}")
    if cu.device.type == "cpu" and not is_static(cu):  # elsewhere a look would wait for the device
        bad = None
        if cu[0] != 0:
            bad = f"starts at {cu[0].item()}, expected 0"
        elif (cu[1:] < cu[:-1]).any():
            bad = f"decreases, {cu.tolist()[:8]}…; are they lengths? torch.cumsum makes boundaries of those"
        elif cu[-1] > length:
            bad = f"ends at {cu[-1].item()}, but {of} has T = {length}"
        if bad is not None:
            raise ValueError(f"{name} {bad}; it holds where the packed texts begin along T, and the end of the last")
    return cu.to(torch.int64)
