"""Matrices of known spectra: the families by which the randomized SVD is judged."""

from __future__ import annotations

import torch


def _steps(n):
    return torch.arange(n, dtype=torch.float64)


# n → singular values, descending.
FAMILIES = {
    "fast": lambda n: 0.5 ** _steps(n),
    "slow": lambda n: 1 / (1 + _steps(n)),
    "step": lambda n: torch.where(_steps(n) < 8, 1.0, 1e-3),
    "flat": lambda n: 1 - 0.1 * _steps(n) / n,
    "exact low rank": lambda n: torch.where(_steps(n) < 6, 1 - 0.1 * _steps(n), 0.0),
    "condition 1e12": lambda n: 10 ** (-12 * _steps(n) / max(n - 1, 1)),
    "zero": lambda n: 0 * _steps(n),
    "repeated": lambda n: 2.0 ** -(_steps(n) // 4),
}

SHAPES = {"tall": (150, 60), "wide": (60, 150), "square": (80, 80)}


def matrix(values, m, n, batch=(), seed=0):
    """U diag(values) Vᵀ (*batch, m, n) in float64 with random orthonormal U, V; values of min(m, n) elements."""
    generator = torch.Generator().manual_seed(seed)
    k = min(m, n)
    U, V = (
        torch.linalg.qr(torch.randn(*batch, rows, k, generator=generator, dtype=torch.float64)).Q for rows in (m, n)
    )
    return (U * values) @ V.mT


def family(name, shape="tall", batch=(), seed=0):
    m, n = SHAPES[shape]
    return matrix(FAMILIES[name](min(m, n)), m, n, batch, seed)


def spectral_error(A, U, S, Vh):
    """‖A − U diag(S) Vh‖₂ of every matrix, in float64."""
    return torch.linalg.matrix_norm(A.double() - (U.double() * S.double()[..., None, :]) @ Vh.double(), 2)


def departure(Q):
    """Largest |QᵀQ − I| of all, in float64; 0 without a column."""
    Q = Q.double()
    difference = (Q.mT @ Q - torch.eye(Q.shape[-1], dtype=torch.float64)).abs()
    return difference.max().item() if difference.numel() else 0.0
