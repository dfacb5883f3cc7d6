"""What S_ext(T) would be without a trained model behind it: causal attention matrices made by rule.

A measured growth law means something only beside such nulls. Of the four, the uniform mask is
``artent.theory.causal_uniform``, and the model before training is measured.
"""

from __future__ import annotations

import torch

__all__ = ["gaussian_attention", "matching_spread", "window_attention"]


def window_attention(length, window, dtype=torch.float64):
    """The last ``window`` visible keys alike, ``(T, T)``."""
    visible = torch.ones(length, length, dtype=dtype).tril().triu(1 - window)
    return visible / visible.sum(-1, keepdim=True)


def gaussian_attention(noise, spread):
    """softmax of ``spread · noise`` under the causal mask: noise ``(…, T, T)``, spread broadcast over it."""
    hidden = torch.ones(noise.shape[-2:], dtype=torch.bool).triu(1)
    return (spread * noise).masked_fill(hidden, float("-inf")).softmax(-1)


def matching_spread(noise, row_entropy, steps=40):
    """The standard deviation of independent Gaussian logits whose mean row entropy is ``row_entropy``.

    The entropy falls as the spread grows, so bisection finds it; noise ``(T, T)`` fixes the draw. The search stops
    at a spread of 64, where a row has all but collapsed onto one key.
    """
    low, high = 0.0, 64.0
    for _ in range(steps):
        middle = (low + high) / 2
        p = gaussian_attention(noise, middle)
        entropy = torch.special.entr(p).sum(-1).mean()
        low, high = (middle, high) if entropy > row_entropy else (low, middle)
    return (low + high) / 2
