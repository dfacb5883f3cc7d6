"""Growth of S_ext with T, and the fits S = c·ln T + b over all heads, by layer and by head (docs/math.md §5)."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from tqdm import tqdm

import artent
from artent import theory

__all__ = ["TREATMENTS", "fit", "growth", "measured", "of_length"]

# What may be done to A first. The base model is measured in every way, the others as they are ("raw").
TREATMENTS = ("sink_removed", "row_normalised")

# Texts go through the model together up to so many tokens.
_TOKENS = 1 << 14
# Fields of AttentionEntanglement with a dimension of texts, and which one it is.
_TEXT_DIM = {"s_ext": 2, "s_ext_stderr": 2, "s_ext_lower": 2, "s_ext_upper": 2, "lse": 1, "entropy": 1, "purity": 1}


def growth(model, texts, measure, name, *, treatment="raw", confidence=0.95, seed=0):
    """S_ext of every head of ``model`` on ``texts`` at ``measure.lengths``, and its fits: two records.

    Args:
        texts: (texts, T) token ids; what is behind the longest of the lengths is cut off.
        treatment: "raw", or one of ``TREATMENTS``: ``variant`` of ``attention_entanglement``, under another name,
            since "variant" in a study's records is a run of a sweep. The fit is then of "<name>, sink removed".
        confidence: of the intervals of c.
        seed: of the bootstrap, and of the estimates beyond 1024 tokens.
    """
    found = measured(model, texts, measure.lengths, variant=treatment, seed=seed)
    values = found.to_dict()
    values["treatment"] = values.pop("variant")
    record = {"kind": "growth", "model": name, **values}
    per_text = found.s_ext.mean((1, 3)).T  # (texts, lengths)
    called = name if treatment == "raw" else f"{name}, {treatment.replace('_', ' ')}"
    law = fit(called, measure, per_text, found.s_ext, confidence=confidence, seed=seed)
    return [record, {**law, "of": name, "treatment": treatment}]


def measured(model, texts, lengths, **options):
    """``attention_entanglement`` of texts (texts, T), a few at a time: memory does not grow with their number."""
    texts = of_length(texts, max(lengths))
    parts = texts.split(max(1, _TOKENS // texts.shape[1]))
    if len(parts) > 1:
        parts = tqdm(parts, desc="S_ext", unit="batch", leave=False)
    found = [artent.attention_entanglement(model, part, lengths=tuple(lengths), **options) for part in parts]
    joined = {name: torch.cat([getattr(part, name) for part in found], dim) for name, dim in _TEXT_DIM.items()}
    return replace(found[0], **joined, tokens=tuple(n for part in found for n in part.tokens))


def of_length(texts, length):
    """The first ``length`` tokens of every text. Raises ValueError where there are fewer."""
    if texts.dim() != 2 or not len(texts) or texts.shape[1] < length:
        raise ValueError(
            f"texts has shape {tuple(texts.shape)}; expected (texts, T) token ids with T ≥ {length}, the longest of "
            "measure.lengths (is data.context shorter?)"
        )
    return texts[:, :length]


def fit(name, measure, per_text, per_head=None, *, confidence=0.95, seed=0):
    """The fit record of S_ext = c ln T + b.

    ``per_text`` (texts, lengths) is what c and its interval come from. With ``per_head`` (lengths, layers, texts,
    heads) the record also holds the c of every layer's mean over heads, ``layer_c`` (layers,), and of every head,
    ``head_c`` (layers, heads), with their bootstrap intervals over texts, ``layer_interval`` and ``head_interval``,
    (…, 2).
    """

    def law(S):
        return theory.fit_growth(measure.lengths, S, confidence=confidence, seed=seed)

    over_all = law(per_text)
    record = {"kind": "fit", "model": name, **asdict(over_all), "verdict": over_all.verdict}
    if per_head is not None:
        heads = per_head.permute(1, 3, 2, 0)  # (layers, heads, texts, lengths)
        by_layer = [law(S) for S in heads.mean(1)]
        by_head = [[law(S) for S in layer] for layer in heads]
        record["layer_c"] = [one.c for one in by_layer]
        record["layer_interval"] = [one.interval for one in by_layer]
        record["head_c"] = [[one.c for one in layer] for layer in by_head]
        record["head_interval"] = [[one.interval for one in layer] for layer in by_head]
    return record
