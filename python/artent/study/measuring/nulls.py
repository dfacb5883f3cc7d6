"""What S_ext(T) would be without a trained model behind it: causal attention matrices made by rule.

A measured growth law means something only beside such nulls. Of the four, the model before training is measured.
The rows of a causal A reach no key beyond themselves, so one matrix at the longest length serves all of them.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from artent.attention.spectrum import prefix_entropies
from artent.study.measuring.growth import fit

__all__ = ["gaussian_attention", "growth_nulls", "matching_spread", "uniform_attention", "window_attention"]

# Heads that the Gaussian null stands for: all of a small model, of a large one some. An entropy costs O(T³), and this
# is how much is spent: minutes on two cores.
_HEADS = (4, 32)
_BUDGET = 1 << 40
# Rows of the noise that the spread is matched on. Beyond, the mean row entropy no longer changes.
_ROWS = 256


def growth_nulls(record, measure, *, seed=0):
    """Uniform, windowed and Gaussian attention at ``measure.lengths``: a growth-null and a fit record each.

    ``record`` is the base model's growth: the Gaussian null takes, head by head, the spread of logits that gives the
    head's mean row entropy at the longest length. Its draws stand for texts. Where a model has too many heads for that
    the null is of some at even ranks of the row entropy, and "heads" in its record says of how many.
    """
    T = max(measure.lengths)
    draws, budget = measure.null_draws, sum(length**3 for length in measure.lengths)
    row_entropy = torch.tensor(record["entropy"], dtype=torch.float64).mean(1).flatten()  # (layers · heads,) over texts
    count = min(len(row_entropy), max(_HEADS[0], min(_HEADS[1], _BUDGET // (draws * budget))))
    row_entropy = row_entropy.sort().values[torch.linspace(0, len(row_entropy) - 1, count).round().long()]
    window = max(2, T // 16)
    records = []

    def note(name, values, **told):  # values (draws, lengths)
        records.append({"kind": "growth-null", "model": name, "lengths": measure.lengths, "s_ext": values, **told})
        records.append(fit(name, measure, values, seed=seed))

    note("uniform causal mask", prefix_entropies(uniform_attention(T), measure.lengths)[None])
    note(f"local window of {window}", prefix_entropies(window_attention(T, window), measure.lengths)[None])
    generator, spreads, values = torch.Generator().manual_seed(seed), None, []
    with tqdm(total=draws * count, desc="attention nulls", unit="matrix", leave=False) as bar:
        for _ in range(draws):
            noise = torch.randn(T, T, generator=generator, dtype=torch.float64)
            spreads = spreads or [matching_spread(noise, value) for value in row_entropy]
            heads = []
            for spread in spreads:
                heads.append(prefix_entropies(gaussian_attention(noise, spread), measure.lengths))
                bar.update()
            values.append(torch.stack(heads).mean(0))
    note("Gaussian logits", torch.stack(values), heads=count)
    return records


def uniform_attention(length, dtype=torch.float64):
    """All visible keys alike, ``(T, T)``."""
    return window_attention(length, length, dtype)


def window_attention(length, window, dtype=torch.float64):
    """The last ``window`` visible keys alike, ``(T, T)``."""
    visible = torch.ones(length, length, dtype=dtype).tril().triu(1 - window)
    return visible / visible.sum(-1, keepdim=True)


def gaussian_attention(noise, spread):
    """softmax of ``spread · noise`` under the causal mask: noise ``(…, T, T)``, spread broadcast over it."""
    return _softmax(noise, spread, torch.arange(noise.shape[-1]))


def matching_spread(noise, row_entropy, steps=40):
    """The standard deviation of independent Gaussian logits whose mean row entropy is ``row_entropy``.

    The entropy falls as the spread grows, so bisection finds it; noise ``(T, T)`` fixes the draw. The search stops at a
    spread of 64, where a row has all but collapsed onto one key. Of many rows it takes 256, evenly spaced.
    """
    T = len(noise)
    rows = torch.arange(T) if T <= _ROWS else ((torch.arange(_ROWS) + 0.5) * T / _ROWS).long()
    noise, low, high = noise[rows], 0.0, 64.0
    for _ in range(steps):
        middle = (low + high) / 2
        entropy = torch.special.entr(_softmax(noise, middle, rows)).sum(-1).mean()
        low, high = (middle, high) if entropy > row_entropy else (low, middle)
    return (low + high) / 2


def _softmax(noise, spread, rows):
    """Rows ``rows`` of the attention that is made of the same rows of the noise."""
    hidden = torch.arange(noise.shape[-1]) > rows[:, None]
    return (spread * noise).masked_fill(hidden, float("-inf")).softmax(-1)
