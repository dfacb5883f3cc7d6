"""A model run once with artent's attention, and somebody who sees what every layer's attention is made of."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from artent.attention.measure import _as_probed, _device, _extra
from artent_ext import reference

__all__ = ["attention_rows", "watched"]


def watched(model, texts, see):
    """Runs ``model`` on ``texts`` (batch, T) without gradient, in eval mode, and leaves it as it was.

    ``see(layer, query, key, visible, output)`` is called in every attention layer: query (batch, H, T, D), key (batch,
    H_kv, T, D), ``visible`` the masks and numbers as ``attention_rows`` takes them, and output (batch, T, H, D), which
    goes into the output projection.

    Raises ValueError for a model whose attention isn't transformers' attention interface, or not from these tokens to
    themselves (virtual tokens of prompt and prefix tuning).
    """
    texts, layers = texts.to(_device(model)), []

    def checked(layer, query, key, *rest):
        layers.append(layer)
        if not query.shape[2] == key.shape[2] == texts.shape[1]:
            raise ValueError(
                f"model: layer {layer} attends from {query.shape[2]} to {key.shape[2]} tokens, texts hold "
                f"{texts.shape[1]}: virtual tokens (prompt or prefix tuning) are not supported"
            )
        see(layer, query, key, *rest)

    with _as_probed(model), _attention_seen_by(checked):
        model(input_ids=texts, **_extra(model, {"input_ids": texts}), use_cache=False)
    if not layers:
        raise ValueError(
            "model: no layer called transformers' attention interface; is it a transformers ≥ 5.0 model that supports "
            "attn_implementation?"
        )


@contextmanager
def _attention_seen_by(see):
    """artent's attention function, overridden where models look it up by one that tells ``see``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from artent.attention.implementation import NAME, artent_attention

    def attention(module, *args, **options):
        seen = []

        def probe(_, query, key, **visible):
            seen.append((query, key, visible))

        output, stats = artent_attention(module, *args, attention_probe=probe, **options)
        see(module.layer_idx, *seen[0], output)
        return output, stats

    ALL_ATTENTION_FUNCTIONS[NAME] = attention  # the instance's own, over what is registered
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[NAME]


def attention_rows(query, key, at, *, attn_mask, key_range, is_causal, scale, softcap):
    """Rows ``at`` (rows,) of A, (batch, H, rows, T) in float64, from query (batch, H, T, D), key (batch, H_kv, T, D).

    The masks are those of an attention from these T tokens to themselves, as artent's attention hands them to a probe.
    """
    batch, T = query.shape[0], key.shape[2]
    if key_range is None:
        key_range = torch.tensor([0, T], device=query.device).expand(batch, T, 2)
    key_range = key_range[:, at]
    if is_causal:
        key_range = torch.stack((key_range[..., 0], torch.minimum(key_range[..., 1], at + 1)), -1)
    if attn_mask is not None:
        attn_mask = attn_mask[..., at, :]
    return reference.attention_probabilities(
        query[:, :, at].double(),
        key.double(),
        attn_mask=attn_mask,
        key_range=key_range,
        scale=scale,
        softcap=softcap,
    )


def one_text(text, query, key, visible):
    """(query, key, visible) of one text of a batch, with a batch dimension of one."""
    here = slice(text, text + 1)
    mask, ranges = visible["attn_mask"], visible["key_range"]
    mask = mask if mask is None or len(mask) == 1 else mask[here]
    return query[here], key[here], {**visible, "attn_mask": mask, "key_range": None if ranges is None else ranges[here]}


def some_heads(heads, query, key, visible):
    """(query, key, visible) of a range of query heads, each with a key head of its own."""
    group = query.shape[1] // key.shape[1]
    mask = visible["attn_mask"]
    mask = mask if mask is None or mask.shape[1] == 1 else mask[:, heads]
    return query[:, heads], key[:, [h // group for h in heads]], {**visible, "attn_mask": mask}
