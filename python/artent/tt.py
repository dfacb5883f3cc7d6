"""TT-SVD of one factor of an update, in the geometry of the whole update (docs/math.md §6). All in float64.

What counts is the error of ΔW = other · factor, not the factor's own. ‖other · X‖ = ‖R X‖ with other = Q R, so the
right singular vectors of R · factor, one bond after another from the free end, span what is kept; the carrier core is
the factor itself contracted with them, and the other factor stays as it is. At two sites this is the best chain there
is (Eckart–Young for the unfolding of ΔW at that bond). The steps' errors are orthogonal, so their squares add up.
"""

from itertools import pairwise
from math import prod, sqrt

import torch
from torch import Tensor
from torch.nn.functional import pad

from artent.mps import MPSShape, largest_bonds

# Directions that the other factor does not read weigh this much of the one it reads best: the square, which counts,
# is rounding, and the weight is above the rounding of factors in float32.
_FLOOR = 1e-7


def tt_svd(
    factor: Tensor, other: Tensor, sites: tuple[int, ...], carrier: str, chi, *, least=None, tol: float | None = None
) -> tuple[list[Tensor], MPSShape, float]:
    """``factor`` (r, n) as a chain of cores such that ``other`` (m, r) times it changes least.

    Where ``other`` has no say (it is zero, or of lower rank), directions of ``factor`` are kept as there is room, so a
    chain that can hold ``factor`` gives it back to rounding.

    Args:
        factor, other: float64, on the CPU, finite.
        chi: the most of every bond (K − 1); a chain that can hold less takes less.
        tol: take no more of the bonds than a relative error ``tol`` of the product needs (of ``factor`` alone where
            ``other`` is zero). None: all of ``chi``.
        least: with ``tol``, the least of every bond.

    Returns:
        The cores as stored, those off the carrier with entries of variance 1/χ of the bond towards it, as the adapter
        draws them; their shape; and the squared relative error.
    """
    r, first = len(factor), carrier == "first"
    caps = [min(pair) for pair in zip(chi, largest_bonds(r, sites, carrier), strict=True)]
    floors = [min(pair) for pair in zip(least or [1] * len(caps), caps)]
    state = factor.reshape(r, *sites)
    if not first:  # the same from the other end
        sites, caps, floors = sites[::-1], caps[::-1], floors[::-1]
        state = state.permute(0, *range(len(sites), 0, -1))
    state = state.reshape(r, -1)
    weight, floored = _weights(other)
    whole = (weight @ state).square().sum().item()
    allowed, spent = None, 0.0
    cores, bonds = [], []
    for k in range(len(sites) - 1, 0, -1):
        right = cores[0].shape[0] if cores else 1
        if tol is not None:
            allowed = max(tol**2 * whole - spent, 0.0) / k  # what earlier bonds left is shared by those to come
        basis, bond, lost = _basis(state, sites[k] * right, weight, floored, floors[k - 1], caps[k - 1], allowed)
        spent += lost
        state = (state.reshape(-1, sites[k] * right) @ basis.mT).reshape(r, -1)
        cores.insert(0, basis.reshape(len(basis), sites[k], right))
        bonds.insert(0, bond)
    cores.insert(0, state.reshape(r, sites[0], -1))
    cores = _gauged(cores, [r, *bonds, 1])
    if not first:
        sites, bonds = sites[::-1], bonds[::-1]
        cores = [core.permute(2, 1, 0) for core in reversed(cores)]
    shape = MPSShape(r, tuple(sites), tuple(bonds), carrier)
    return [core.reshape(stored) for core, stored in zip(cores, shape.cores)], shape, spent / whole if whole else 0.0


def relative_error(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> float:
    """‖BA − B′A′‖/‖BA‖ of factors (B, A) and (B′, A′) in float64, m×n never formed; 0 where both are zero."""
    (B, A), (B2, A2) = old, new
    # BA − B′A′ = B(A − A′) + (B − B′)A′ loses no digits where the two are close.
    error, whole = _norm(torch.cat([B, B - B2], 1), torch.cat([A - A2, A2])), _norm(B, A)
    return error / whole if whole else (float("inf") if error else 0.0)


def _norm(B, A):
    return (torch.linalg.qr(B, "r").R @ torch.linalg.qr(A.mT, "r").R.mT).norm().item()


def _weights(other):
    """R (r, r) with ‖R X‖ = ‖other · X‖, and the same with small singular values raised; the identity for zero."""
    r = other.shape[1]
    _, sigma, Vh = torch.linalg.svd(torch.linalg.qr(other, "r").R, full_matrices=True)
    if not sigma[0]:
        return (torch.eye(r, dtype=other.dtype),) * 2
    sigma = pad(sigma, (0, r - len(sigma)))
    return sigma[:, None] * Vh, sigma.clamp_min(_FLOOR * sigma[0])[:, None] * Vh


def _basis(state, columns, weight, floored, least, cap, allowed):
    """Orthonormal rows (at most bond, columns) for the cut before the last ``columns``; the bond; the squared loss."""
    sigma, rows = _right(state.reshape(-1, columns))
    held = int((sigma > sigma[0] * max(state.numel() // columns, columns) * torch.finfo(sigma.dtype).eps).sum())
    bond, lost = cap, 0.0
    if allowed is not None or cap < held:
        weighted = _right((floored @ state).reshape(-1, columns))[1]
        shares = ((weight @ state).reshape(-1, columns) @ weighted.mT).square().sum(0)
        losses = pad(shares.flip(0).cumsum(0).flip(0), (0, 1))  # of keeping 0, 1, … rows
        if allowed is not None:
            bond = min(max(int((losses > allowed).sum()), least), cap)
        if bond < held:
            rows, lost = weighted, losses[min(bond, len(weighted))].item()
    return _completed(rows[: min(held, bond)], min(bond, columns)), bond, lost


def _right(matrix):
    """Singular values and right singular vectors, as rows."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = torch.linalg.qr(matrix, "r").R
    return torch.linalg.svd(matrix, full_matrices=False)[1:]


def _completed(rows, count):
    """``rows`` and random ones orthonormal to them, ``count`` in all: new directions as the adapter would draw them."""
    if len(rows) < count:
        generator = torch.Generator().manual_seed(0)
        more = torch.randn(count - len(rows), rows.shape[1], dtype=rows.dtype, generator=generator)
        for _ in range(2):
            more = torch.linalg.qr((more - more @ rows.mT @ rows).mT).Q.mT
        rows = torch.cat([rows, more])
    return rows


def _gauged(cores, bonds):
    """Cores (left, site, right), the carrier first, filled up to ``bonds`` and scaled as the adapter draws them.

    Bonds wider than what lies beyond them get zeros: nothing could be written there.
    """
    filled = []
    for core, (left, right) in zip(cores, pairwise(bonds)):
        filled.append(pad(core, (0, right - core.shape[2], 0, 0, 0, left - core.shape[0])))
    for k, core in enumerate(filled[1:], start=1):
        scale = sqrt(prod(core.shape) / (core.shape[0] * core.square().sum().item()))
        filled[k], filled[0] = core * scale, filled[0] / scale
    return filled
