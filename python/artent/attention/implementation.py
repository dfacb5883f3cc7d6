"""``attn_implementation="artent"``: attention as sdpa computes it, with row statistics from the same pass."""

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from artent.attention.masks import artent_mask, dense_mask
from artent_ext import attention_stats, scaled_dot_product_attention_with_stats

NAME = "artent"

# What models and trainers hand down that says nothing of this attention, or that the mask has said already.
_HARMLESS = {
    "cache_position", "logits_to_keep", "max_length_k", "max_length_q", "num_items_in_batch",
    "output_hidden_states", "output_router_logits", "position_ids", "return_dict", "use_cache",
}  # fmt: skip


def artent_attention(
    module,
    query,  # (B, H, T_q, D)
    key,  # (B, H_kv, T_k, D)
    value,  # (B, H_kv, T_k, D)
    attention_mask,  # None, intervals (B, 1, T_q, 2) of artent_mask, or a dense mask
    dropout=0.0,
    scaling=None,
    is_causal=None,
    output_attentions=False,
    attention_probe=None,
    softcap=None,
    sliding_window=None,
    **options,
):
    """A transformers attention function (``AttentionInterface``): output (B, T_q, H, D) and statistics.

    The second value is None or, with ``output_attentions``, ``artent_ext.AttentionStats`` (fields (B, H, T_q),
    nats) of the attention matrix before dropout. ``attention_probe`` is called with what defines the matrix.

    Without statistics the output is that of transformers' own sdpa function, bit for bit. Output and statistics
    together come from one pass over the keys, equal to sdpa's to rounding; so does the output under a ``softcap``,
    which sdpa doesn't know. With dropout the output is sdpa's again and the statistics are a pass beside it.

    The statistics carry gradients (not under reentrant checkpointing, which keeps none of a layer's extra outputs:
    use ``use_reentrant=False``). Models that drop ``output_attentions`` before their attention, such as GPT-2, get
    the output alone.

    Raises ValueError for a keyword argument that would change the attention and isn't supported: none is ignored.
    NotImplementedError for dropout with a soft cap.
    """
    if query.shape[-1] != key.shape[-1] or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} don't match; expected (B, H, T_q, D) and "
            "(B, H_kv, T_k, D) with the same D and H a multiple of H_kv"
        )
    _refuse_unsupported(options, attention_mask)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if attention_mask is None and sliding_window is not None:
        attention_mask = _window(query, key, sliding_window, causal)
    ranges, mask = _split_mask(attention_mask, query, key)
    visible = {
        "attn_mask": mask,
        "key_range": ranges,
        # an explicit mask wins; upper-left otherwise
        "is_causal": causal and attention_mask is None and query.shape[2] > 1,
        "scale": scaling,
        "softcap": softcap,
    }
    if attention_probe is not None:
        attention_probe(module, query, key, **visible)
    visible["enable_gqa"] = query.shape[1] != key.shape[1]
    if softcap is not None or (output_attentions and not dropout):
        output, stats = scaled_dot_product_attention_with_stats(query, key, value, dropout_p=dropout, **visible)
        return output.transpose(1, 2).contiguous(), stats if output_attentions else None
    if ranges is not None:
        mask = _sdpa_mask(attention_mask, key.shape[2])
    output, _ = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal
    )
    return output, attention_stats(query, key, **visible) if output_attentions else None


def _split_mask(attention_mask, query, key):
    """(intervals (B, T_q, 2), dense mask), at most one of them not None."""
    if attention_mask is None or attention_mask.is_floating_point() or attention_mask.dtype == torch.bool:
        return None, attention_mask
    if attention_mask.shape[1:] != (1, query.shape[2], 2):
        raise ValueError(
            f"attention_mask is {attention_mask.dtype} of shape {tuple(attention_mask.shape)}; expected a "
            f"bool or floating-point mask that broadcasts to {(*query.shape[:3], key.shape[2])}, or the "
            "(B, 1, T_q, 2) intervals of artent's mask function. Convert an integer 0/1 mask with .bool()"
        )
    return attention_mask[:, 0], None


def _sdpa_mask(ranges, kv_length):
    """``dense_mask``, made once a forward: every layer of a kind is handed the same intervals, which keep it."""
    if torch.compiler.is_compiling():
        return dense_mask(ranges, kv_length)
    mask = getattr(ranges, "_artent_dense_mask", None)
    if mask is None or mask.shape[-1] != kv_length:
        mask = ranges._artent_dense_mask = dense_mask(ranges, kv_length)
    return mask


def _window(query, key, window, causal):
    """The mask of a sliding window where the model made none: because all keys are inside, or nobody asked it to."""
    queries, keys = query.shape[2], key.shape[2]
    if (queries if causal and queries > 1 else keys) <= window:
        return None
    if not causal:
        raise ValueError(
            f"sliding_window={window}, but no attention mask was given, {keys} keys are visible and the module isn't "
            "causal: the window would be ignored. Call the model instead of its attention module: it builds the mask"
        )
    # Where masks are absent, many queries stand at the upper left and one stands at the last key.
    end = torch.arange(queries, device=query.device) + (1 if queries > 1 else keys)
    ranges = torch.stack(((end - window).clamp(min=0), end.clamp(max=keys)), -1).to(torch.int32)
    return ranges.expand(query.shape[0], 1, -1, -1)


def _refuse_unsupported(options, attention_mask):
    packed = options.pop("cu_seq_lens_q", None), options.pop("cu_seq_lens_k", None)
    if attention_mask is None and any(lengths is not None and len(lengths) > 2 for lengths in packed):
        raise ValueError(
            "cu_seq_lens describes several packed texts, but the mask shows one: pass position_ids that "
            "restart at 0 in every text (and no attention_mask, and no cache)"
        )
    unknown = sorted(name for name in options.keys() - _HARMLESS if options[name] is not None)
    if unknown:
        raise ValueError(
            f'attn_implementation="artent" does not support the keyword argument(s) {", ".join(unknown)}: '
            "sinks (s_aux) and position biases change the attention and would be ignored. Use "
            '"eager" for this model; or, if it is an argument of yours, check its spelling'
        )


# Both, as soon as this module is imported: without its mask function a model would ignore padding silently.
AttentionInterface.register(NAME, artent_attention)
AttentionMaskInterface.register(NAME, artent_mask)
