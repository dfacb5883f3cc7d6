"""Entropy of an attention matrix at the row|column cut, from its Gram matrix, always in float64."""

import math

import torch

MAX_TOKENS = 4096

VARIANTS = ("raw", "sink_removed", "row_normalised")

_EPS = torch.finfo(torch.float64).eps


def spectral_entropy(A):
    """Von Neumann entropy of A/‖A‖_F at the row|column cut, in nats: S = −Σ p ln p, p = σ²/‖A‖_F².

    A: (..., m, n) floating point → (...), float64 on A's device. The p are the eigenvalues of the Gram matrix
    of the smaller side (``docs/math.md`` §2, §4). Of attention without its matrix, at any length:
    ``artent_ext.attention_spectral_entropy``. Raises TypeError for a non-floating A; ValueError for fewer
    than two dimensions, an empty side, a smaller side above 4096, a NaN, an infinity or a zero matrix.
    """
    if not isinstance(A, torch.Tensor) or not A.is_floating_point():
        kind = A.dtype if isinstance(A, torch.Tensor) else type(A).__name__
        raise TypeError(f"A is {kind}; expected a floating-point tensor (..., m, n) of attention probabilities")
    if A.dim() < 2 or 0 in A.shape[-2:]:
        raise ValueError(f"A has shape {tuple(A.shape)}; expected (..., m, n) with m, n ≥ 1")
    if min(A.shape[-2:]) > MAX_TOKENS:
        raise ValueError(
            f"A: {min(A.shape[-2:])} tokens; an exact spectral entropy takes up to {MAX_TOKENS} (a T×T eigenvalue "
            "problem a head). artent_ext.attention_spectral_entropy takes queries and keys of any length"
        )
    A = A.detach().double()
    if not torch.isfinite(A).all():
        raise ValueError("A holds a NaN or an infinity: was a row without visible keys divided by its zero sum?")
    if A.numel() and not (A != 0).flatten(-2).any(-1).all():
        raise ValueError("A holds an all-zero matrix, which has no normalised state: every row is without a key")
    return gram_entropy(A @ A.mT if A.shape[-2] <= A.shape[-1] else A.mT @ A)


def gram_entropy(G):
    """Entropy in nats of the density matrix G/tr G, (..., T, T) → (...)."""
    p = torch.linalg.eigvalsh(G / G.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None])
    return torch.special.entr(p.clamp_min(0)).sum(-1)


def prefix_entropies(A, sizes, *, row_normalised=False):
    """Entropy of the leading T×T block of lower-triangular A (..., N, N) for every T in sizes → (len(sizes),
    ...).

    One Gram matrix serves all prefixes: the rows of a causal A reach no key beyond themselves, so the Gram
    matrix of the leading block is the leading block of A Aᵀ.
    """
    G = A @ A.mT
    if row_normalised:  # rows of unit 2-norm: the Gram matrix becomes that of the rows' cosines
        norm = G.diagonal(dim1=-2, dim2=-1).sqrt()
        G = G / (norm[..., :, None] * norm[..., None, :])
    return torch.stack([gram_entropy(G[..., :T, :T]) for T in sizes])


def rounding(tokens, logit):
    """How far float64 may have moved the exact entropy of a ``tokens``×``tokens`` attention matrix, in nats.

    ``logit`` (...) bounds the sums that logits are made of, D·|scale|·‖q‖‖k‖. The trace distance δ is that of the
    elements' relative rounding and of T eigenvalues with errors of √T units; |ΔS| ≤ δ ln(T − 1) + h(δ) (K. M. R.
    Audenaert, J. Phys. A 40, 8127, 2007), h the entropy of (δ, 1 − δ).
    """
    if tokens == 1:
        return torch.zeros_like(logit)
    distance = _EPS * (4 + logit + tokens**1.5)
    spread = torch.special.entr(distance) + torch.special.entr((1 - distance).clamp_min(0))
    return (distance * math.log(tokens - 1) + spread).clamp_max(math.log(tokens))
