"""Temporary front: the native op replaces the body; the signature stays."""
from typing import NamedTuple
import torch
from artent_ext import reference


class AttentionStats(NamedTuple):
    lse: torch.Tensor
    entropy: torch.Tensor
    purity: torch.Tensor


def attention_stats(query, key, *, attn_mask=None, key_range=None, is_causal=False, scale=None, enable_gqa=False):
    return AttentionStats(*reference.attention_stats(
        query, key, attn_mask=attn_mask, key_range=key_range, diagonal=0 if is_causal else None, scale=scale))


def attention_entropy(query, key, **options):
    return attention_stats(query, key, **options).entropy
