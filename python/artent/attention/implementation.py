"""``attn_implementation="artent"``: attention as sdpa computes it, row statistics on request."""

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from artent.attention.masks import artent_mask, dense_mask
from artent_ext import attention_stats

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
    **options,
):
    """A transformers attention function (``AttentionInterface``): output (B, T_q, H, D) and statistics.

    The output is that of transformers' own sdpa function on the same mask, so outputs and losses are sdpa's.
    The second value is None or, with ``output_attentions``, ``artent_ext.AttentionStats`` (fields (B, H, T_q),
    nats) of the attention matrix before dropout. ``attention_probe`` is called with what defines the matrix.
    The statistics carry gradients (not under reentrant checkpointing, which keeps none of a layer's extra outputs:
    use ``use_reentrant=False``). Models that drop ``output_attentions`` before their attention, such as GPT-2, get
    the output alone.

    Raises ValueError for a keyword argument that would change the attention and isn't supported: none is ignored.
    """
    if query.shape[-1] != key.shape[-1] or query.shape[1] % key.shape[1]:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} don't match; expected (B, H, T_q, D) and "
            "(B, H_kv, T_k, D) with the same D and H a multiple of H_kv"
        )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    causal = causal and attention_mask is None and query.shape[2] > 1  # an explicit mask wins; upper-left otherwise
    _refuse_unsupported(options, attention_mask, query.shape[2] if causal else key.shape[2])
    ranges, mask = _split_mask(attention_mask, query, key)
    output, _ = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal
    )
    if attention_probe is not None:
        attention_probe(module, query, key, mask=mask, ranges=ranges, is_causal=causal, scale=scaling)
    if not output_attentions:
        return output, None
    stats = attention_stats(
        query,
        key,
        attn_mask=mask if ranges is None else None,
        key_range=ranges,
        is_causal=causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output, stats


def _split_mask(attention_mask, query, key):
    """(intervals (B, T_q, 2) or None, what SDPA takes)."""
    if attention_mask is None or attention_mask.is_floating_point() or attention_mask.dtype == torch.bool:
        return None, attention_mask
    if attention_mask.shape[1:] != (1, query.shape[2], 2):
        raise ValueError(
            f"attention_mask is {attention_mask.dtype} of shape {tuple(attention_mask.shape)}; expected a "
            f"bool or floating-point mask that broadcasts to {(*query.shape[:3], key.shape[2])}, or the "
            "(B, 1, T_q, 2) intervals of artent's mask function. Convert an integer 0/1 mask with .bool()"
        )
    return attention_mask[:, 0], dense_mask(attention_mask, key.shape[2])


def _refuse_unsupported(options, attention_mask, reach):
    window = options.pop("sliding_window", None)
    if window is not None and attention_mask is None and reach > window:
        raise ValueError(
            f"sliding_window={window}, but no attention mask was given and {reach} keys are visible: the "
            "window would be ignored. Call the model instead of its attention module: it builds the mask"
        )
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
            "sinks (s_aux), soft caps and position biases change the attention and would be ignored. Use "
            '"eager" for this model; or, if it is an argument of yours, check its spelling'
        )


# Both, as soon as this module is imported: without its mask function a model would ignore padding silently.
AttentionInterface.register(NAME, artent_attention)
AttentionMaskInterface.register(NAME, artent_mask)
