"""The mask function of ``attn_implementation="artent"``: what a query sees, as an interval where it is one.

transformers describes a mask as a composition of small functions (causal, sliding window, packed, …) plus the
2-d padding mask. Each of those says "query q sees the keys [start, end)", and so does their intersection.
Reading the composition therefore gives a (B, 1, T_q, 2) tensor in O(B·T_q) where ``sdpa_mask`` builds
B×1×T_q×T_k. A composition this module can't read goes to ``sdpa_mask``: slower, never different.
"""

from functools import reduce

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask

_UNBOUNDED = 1 << 40


def artent_mask(batch_size, *, mask_function=causal_mask_function, attention_mask=None, **geometry):
    """A transformers mask function (``AttentionMaskInterface``); arguments as ``sdpa_mask``'s.

    Returns None (plain causal or, where the caller allows it, everything visible), an int32 tensor
    (B, 1, T_q, 2) of visible keys [start, end) per query, or a bool mask (B, 1, T_q, T_k) where a row is no
    interval. Under ``torch.compile`` the mask is ``sdpa_mask``'s: intervals of padding depend on data.
    """
    if _is_plain(mask_function, attention_mask, geometry):
        return None
    ranges = None
    if not torch.compiler.is_compiling():
        q = _query_positions(geometry, attention_mask)  # (1, T_q)
        ranges = _intersect(interval(mask_function, q), _padding_interval(attention_mask, q))
    if ranges is None:
        return sdpa_mask(batch_size=batch_size, mask_function=mask_function, attention_mask=attention_mask, **geometry)
    kv_length, kv_offset = geometry["kv_length"], geometry.get("kv_offset", 0)
    start, end = ((bound - kv_offset).clamp(0, kv_length) for bound in ranges)
    if _is_skippable(start, end, kv_length, geometry):
        return None
    start, end = torch.broadcast_tensors(start, torch.maximum(start, end))
    return torch.stack((start, end), -1).to(torch.int32).expand(batch_size, -1, -1)[:, None]


def dense_mask(ranges, kv_length):
    """The bool mask (B, 1, T_q, T_k) of visible-key intervals (B, 1, T_q, 2)."""
    keys = torch.arange(kv_length, dtype=ranges.dtype, device=ranges.device)
    return (keys >= ranges[..., :1]) & (keys < ranges[..., 1:])


def interval(mask_function, q):
    """Key positions [start, end) seen from query positions q (B|1, T_q); None if this can't be read off.

    Reads the functions of ``transformers.masking_utils`` by name and by the values they close over; anything
    else, a user's overlay for instance, is not read.
    """
    if mask_function.__module__ != "transformers.masking_utils":
        return None
    cells = zip(mask_function.__code__.co_freevars, mask_function.__closure__ or ())
    values = {name: cell.cell_contents for name, cell in cells}
    unbounded = torch.full_like(q, _UNBOUNDED)
    match mask_function.__qualname__.partition(".")[0], values:
        case "causal_mask_function", _:
            return -unbounded, q + 1
        case "bidirectional_mask_function", _:
            return -unbounded, unbounded
        case "sliding_window_overlay", {"sliding_window": window}:
            return q - window + 1, unbounded
        case "sliding_window_bidirectional_overlay", {"sliding_window": window}:
            return q - window, q + window + 1
        case "chunked_overlay", {"chunk_size": chunk, "left_padding": padding}:
            first = q - (q - padding[:, None].to(q)) % chunk
            return first, first + chunk
        case "packed_sequence_mask_function", {"packed_sequence_mask": sequence}:
            text = sequence.contiguous()  # (B, T): 0 0 0 1 1 2 …, a run per packed text
            return torch.searchsorted(text, text), torch.searchsorted(text, text, right=True)
        case "remap_positions_for_packed_sequence", {"mask_function": inner, "position_ids": positions}:
            # Within a packed text positions rise by one: key and query differ from their indices by the same.
            bounds = interval(inner, positions)
            return bounds and tuple(bound + (q - positions) for bound in bounds)
        case "and_masks", {"mask_functions": functions}:
            return reduce(_intersect, (interval(function, q) for function in functions))
        case _:
            return None


def _intersect(a, b):
    if a is None or b is None:
        return None
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


def _query_positions(geometry, attention_mask):
    position = geometry.get("cache_position")  # transformers < 5.2 or so; later versions pass a length and an offset
    if position is None:
        device = geometry.get("device") if attention_mask is None else attention_mask.device
        position = torch.arange(geometry["q_length"], device=device) + geometry.get("q_offset", 0)
    return position[None]


def _padding_interval(attention_mask, q):
    """The real keys of each text, (B, 1) start and end, or None where padding lies between real tokens."""
    if attention_mask is None:
        unbounded = torch.full_like(q[:, :1], _UNBOUNDED)
        return -unbounded, unbounded
    real = attention_mask.bool()
    count = real.sum(-1, keepdim=True)
    start = real.int().argmax(-1, keepdim=True)
    last = real.shape[-1] - 1 - real.flip(-1).int().argmax(-1, keepdim=True)
    if bool(((last - start + 1 != count) & (count > 0)).any()):
        return None
    return start, start + count


def _is_plain(mask_function, attention_mask, geometry):
    """The usual training step, known without reading a tensor (on a GPU that would wait for the device)."""
    offset = geometry.get("q_offset")
    return (
        mask_function is causal_mask_function
        and attention_mask is None
        and geometry.get("allow_is_causal_skip", True)
        and isinstance(offset, int)
        and offset == geometry.get("kv_offset", 0) == 0
        and (geometry["q_length"] > 1 or geometry["kv_length"] == 1)
    )


def _is_skippable(start, end, kv_length, geometry):
    """Whether no mask at all means the same: upper-left causal for many queries, all keys for one.

    A window as long as the keys keeps its mask, needed or not, as in ``sdpa_mask``: the same kernel runs then,
    and the outputs are the same bits.
    """
    if (geometry.get("local_size") or kv_length + 1) <= kv_length:
        return False
    if geometry.get("allow_is_bidirectional_skip", False) or (
        geometry.get("allow_is_causal_skip", True) and start.shape[-1] == 1
    ):
        without_mask = kv_length
    elif geometry.get("allow_is_causal_skip", True):
        without_mask = torch.arange(1, start.shape[-1] + 1, device=start.device)
    else:
        return False
    return bool(((start == 0) & (end == without_mask)).all())
