"""A itself as a chain of sites: its entropy at every bond, rows before columns (docs/math.md §1, §4).

The external law's other reading: not S_ext over T, but over the bonds of one attention matrix.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

import artent
from artent.sites import chain as chain_of
from artent.study.measuring.growth import of_length
from artent.study.measuring.watched import attention_rows, one_text, some_heads, watched
from artent_ext import attention_bond_entropies, attention_spectral_entropy

__all__ = ["chain", "chain_sites"]

_EXACT_TOKENS = 1024  # beyond, A is never formed, and its entropies are estimates
_HEAD_BYTES = 256 << 20  # heads of a text are profiled in groups of this size
_ARRAYS = 8  # of T×T in float64, alive at once: logits, masks, A, density matrices
# Operations that one model's chains may take: some two minutes on two cores. Of a large model that is some of its
# layers. A head takes about 10·T³ exactly, and 65 forward passes of its attention where it is streamed.
_BUDGET = 1 << 41


def chain(model, texts, measure, name, *, seed=0):
    """The all-bond profile of A, of every head on ``measure.chain_texts`` texts at the longest length: its record.

    A list with one record, or none where ``chain_texts`` is 0. "entropy" (layers, heads, bonds) in nats is the mean
    over texts, "spread" their standard deviation; "top" and "s_cut" (layers, heads) are the largest Schmidt probability
    and the entropy at the row|column cut; "dims" and "cut" tell the chain. "layers" are the indices of the layers: all,
    or in a large model the first, the last and some evenly between, as far as a budget of some minutes goes.
    "estimator" is "exact" up to 1024 tokens, and "streamed" beyond, with "stderr" (layers, heads, bonds).

    Raises ValueError for a length that makes no chain, as ``chain_sites`` does.
    """
    T = max(measure.lengths)
    if not measure.chain_texts:
        return []
    sites, texts = chain_sites(T), of_length(texts, T)[: measure.chain_texts]
    layers = _layers(model, texts)
    found = {layer: [] for layer in layers}
    with tqdm(total=len(layers) * len(texts), desc="chains of attention", unit="layer", leave=False) as bar:

        def see(layer, query, key, visible, output):
            if layer in found:
                found[layer].append(_profiles(*one_text(0, query, key, visible), sites, seed))
                bar.update()

        for text in texts:
            watched(model, text[None], see)
    entropy, stderr, top = (
        torch.stack([torch.stack([text[i] for text in found[layer]]) for layer in layers]) for i in range(3)
    )  # (layers, texts, heads, bonds), twice, and (layers, texts, heads)
    exact, mean = T <= _EXACT_TOKENS, entropy.mean(1)
    record = {
        "kind": "chain",
        "model": name,
        "dims": sites.dims,
        "cut": sites.cut,
        "layers": layers,
        "entropy": mean,
        "spread": entropy.std(1, correction=min(1, len(texts) - 1)),
        "top": top.mean(1),
        "s_cut": mean[..., sites.cut - 1],
        "estimator": "exact" if exact else "streamed",
    }
    return [record if exact else {**record, "stderr": stderr.square().sum(1).sqrt() / len(texts)}]


def chain_sites(T):
    """The chain of a T×T matrix. Raises ValueError where T has fewer than three prime factors: no law is seen then."""
    sites = chain_of((T, T))
    if sites.cut < 3:
        raise ValueError(
            f"measure.lengths: the longest, {T}, has the prime factors {' · '.join(map(str, sites.rows))}; a chain of "
            "sites needs three or more a side. Take a length such as a power of two, or measure.chain_texts = 0"
        )
    return sites


def _layers(model, texts):
    """Which layers the budget allows, ascending: all, or the first, the last and some between; at least one."""
    heads, T = {}, texts.shape[1]
    watched(model, texts[:1, :2], lambda layer, query, *_: heads.update({layer: query.shape[1:]}))
    H, _, D = max(heads.values())
    a_head = 10 * T**3 if T <= _EXACT_TOKENS else 65 * 4 * T**2 * D
    count = min(len(heads), max(1, _BUDGET // (a_head * H * len(texts))))
    ends = (0, len(heads) - 1) if count > 1 else (len(heads) // 2,) * 2
    chosen = torch.linspace(*ends, count, dtype=torch.float64).round().long().tolist()
    return [sorted(heads)[i] for i in chosen]


def _profiles(query, key, visible, sites, seed):
    """Of one text: entropy and its standard error (heads, bonds), the largest probability at the cut (heads,)."""
    heads, T = range(query.shape[1]), query.shape[2]
    if T > _EXACT_TOKENS:
        return _streamed(query, key, visible, seed)
    size, at, entropy, top = max(1, _HEAD_BYTES // (_ARRAYS * 8 * T * T)), torch.arange(T, device=query.device), [], []
    for start in heads[::size]:
        q, k, seen = some_heads(list(heads[start : start + size]), query, key, visible)
        for profile in artent.entanglement_profile(list(attention_rows(q, k, at, **seen)[0])):
            entropy.append(profile.entropy.cpu())
            top.append(profile.cut_probabilities[0].cpu())
    entropy = torch.stack(entropy)
    return entropy, torch.zeros_like(entropy), torch.stack(top)


def _streamed(query, key, visible, seed):
    """The same by products with A, a head at a time: it is never formed. Every head has random signs of its own."""
    found = []
    for h in range(query.shape[1]):
        q, k, seen = some_heads([h], query, key, visible)
        bonds = attention_bond_entropies(q, k, seed=seed + h, **seen)
        at_cut = attention_spectral_entropy(q, k, seed=seed + h, **seen)
        found.append((bonds.value[0, 0].cpu(), bonds.stderr[0, 0].cpu(), at_cut.top[0, 0, 0].cpu()))
    return tuple(map(torch.stack, zip(*found)))
