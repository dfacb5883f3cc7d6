"""Attention of the kinds that entropies are estimated of, and the float64 truth about them."""

from __future__ import annotations

import torch

from artent_ext import reference


def _gaussian(strength):
    def build(T, D, g):
        return tuple(torch.randn(T, D, generator=g) * strength**0.5 for _ in "qk")

    return build


def _local(T, D, g):
    """One direction everywhere, turned by position as rotary embeddings do, and a little content."""
    half = D // 2
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    direction = torch.randn(2, half, generator=g)
    turned = torch.cat(
        [
            direction[0] * angle.cos() - direction[1] * angle.sin(),
            direction[0] * angle.sin() + direction[1] * angle.cos(),
        ],
        -1,
    )
    return 1.5 * turned + 0.3 * torch.randn(T, D, generator=g), 1.5 * turned + 0.3 * torch.randn(T, D, generator=g)


def _sink(T, D, g):
    """Half of the attention on the first key, the rest diffuse."""
    q, k = (0.7 * torch.randn(T, D, generator=g) for _ in "qk")
    u = torch.nn.functional.normalize(torch.randn(D, generator=g), dim=0)
    k[0] = 6.0 * u
    return q + 4.0 * u, k


def _clusters(T, D, g):
    """Twelve meanings of a query, twelve of a key: nearly low rank."""
    return tuple(
        1.3 * torch.randn(12, D, generator=g)[torch.randint(12, (T,), generator=g)]
        + 0.3 * torch.randn(T, D, generator=g)
        for _ in "qk"
    )


KINDS = {
    "gaussian, cold": _gaussian(3.0),
    "gaussian, warm": _gaussian(1.0),
    "local": _local,
    "sink": _sink,
    "clusters": _clusters,
}


def make(kind, T, seeds, D=32):
    """query, key (1, seeds, T, D)."""
    pairs = [KINDS[kind](T, D, torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    return tuple(torch.stack(x)[None] for x in zip(*pairs, strict=True))


def probabilities(M):
    """p = σ(M)²/‖M‖_F² descending, of M (..., m, n); zero for a zero matrix."""
    p = torch.linalg.svdvals(M.double()).square()
    return p / p.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)


def entropy(p):
    return -torch.special.xlogy(p, p).sum(-1)


def matrix(query, key, options):
    """A in float64, from the inputs as they are rounded; ``options`` in the reference's words."""
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options = {**options, "attn_mask": mask.double()}
    return reference.attention_probabilities(query.double(), key.double(), **options)
