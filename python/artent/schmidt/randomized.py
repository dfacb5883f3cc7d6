"""Bounds on the Schmidt probabilities at every bond, from one randomized sketch at the row|column cut (math.md §3).

Split W = CVᵀ + E with k orthonormal vectors V that a randomized SVD found, C = WV and EV = 0. The projector VVᵀ acts
on columns, which every bond l up to the cut traces out. So the cross terms vanish and the reduced density matrix is a
sum of positive ones, ρ_l = σ + τ: σ has the spectrum of the small chain C, as if W were a factored update, and of τ
the trace is known, ε = 1 − ‖C‖²/‖W‖². By Weyl λ_i(ρ_l) ≥ λ_i(σ), which is what ``artent.entropy.certificate`` takes.
Mirrored, with UᵀW, for the bonds from the cut on.

The vectors are as rough as float32 makes them. All that enters a bound is computed in float64, from vectors that are
orthonormal in float64, block by block, so that no float64 copy of W is stored; its rounding is bounded a priori.
"""

from math import frexp, prod, sqrt

import torch
from torch import Tensor

import artent_ext
from artent.schmidt.exact import descend, first_derivative_only, probabilities
from artent.schmidt.spectrum import Spectrum
from artent.sites import Chain

_BLOCK = 2**18  # numbers that are float64 at a time: they stay in cache
_UNIT = torch.finfo(torch.float64).eps / 2


def sketch(W: Tensor, chain: Chain, width: int, ends: int = 1) -> list[Spectrum]:
    """What is known of the spectrum of W (m, n) at each bond 1 … N−1, from ``width`` columns, of which min(m, n) exist.

    Bonds off the cut of which one side has a dimension up to ``ends`` are exact: their density matrices come with the
    passes over W. First derivatives are those of the bounds for fixed vectors. They tend to those of the entropy as ε
    does to zero, since ρ_l = σ + τ whatever the vectors.
    """
    peak = W.detach().abs().amax()
    # A power of two, so that scaling is exact; squares then neither overflow nor vanish.
    scale = 2.0 ** -min(max(frexp(peak.item())[1], -1000), 1000)
    working = W.detach().to(torch.float64 if W.dtype == torch.float64 else torch.float32)
    found = artent_ext.rsvd((working / peak.to(working.dtype))[None], width, oversample=0, power_iters=1)
    return bounded(W, chain, found.Vh[0].mT, scale, ends)


def bounded(W: Tensor, chain: Chain, right: Tensor, scale: float = 1.0, ends: int = 1) -> list[Spectrum]:
    """``sketch`` from vectors at hand: the columns of ``right`` (n, k), k ≤ min(m, n), whatever they are."""
    V = torch.linalg.qr(right.detach().double()).Q
    last = _within(chain.cols[:0:-1], ends)[::-1]
    C, G_last = _Pass.apply(W, V, prod(last), scale, False)
    U = torch.linalg.qr(C.detach()).Q  # half a power iteration on from V
    first = _within(chain.rows[:-1], ends)
    D, G_first = _Pass.apply(W, U, prod(first), scale, True)

    k, dims = V.shape[1], [min(D_l, W.numel() // D_l) for D_l in chain.left_dims]
    rows = _side(C, V, G_last, (*chain.rows, k), dims[: chain.cut])
    cols = _side(D, U, G_first, (k, *chain.cols), dims[chain.cut - 1 :])
    spectra = rows[:-1] + cols  # the cut from U, the better vectors
    sums = max(W.shape), W.numel()
    if first:
        spectra[: len(first)] = _exact(G_first, first, True, *sums)[::-1]
    if last:
        spectra[-len(last) :] = _exact(G_last, last, False, *sums)
    return spectra


def _within(sites: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """The first sites of a product up to ``limit``."""
    count = sum(prod(sites[: l + 1]) <= limit for l in range(len(sites)))
    return sites[:count]


def _side(half: Tensor, basis: Tensor, G: Tensor, sites: tuple[int, ...], dims: list[int]) -> list[Spectrum]:
    """Bounds at the bonds of one side of the cut from its half, C or D; ‖W‖² is the trace of G."""
    kept = half.square().sum() / G.trace()
    rounding = _rounding(half, basis, G)
    return [
        Spectrum(p * kept, (1 - kept)[None], dim, rounding, "randomized")
        for p, dim in zip(probabilities(half.reshape(1, -1), sites, False), dims, strict=True)
    ]


def _exact(G: Tensor, sites: tuple[int, ...], on_left: bool, line: int, numbers: int) -> list[Spectrum]:
    """All probabilities at the outer bonds, from their density matrix outwards, with a bound on their rounding."""
    rounding = sqrt(len(G)) * _summation(len(G), line, numbers) + 4 * _UNIT * len(G) ** 2
    return [
        Spectrum(p, p.new_zeros(1), p.shape[1], rounding) for p in descend(G[None] / G.detach().trace(), sites, on_left)
    ]


def _rounding(half: Tensor, basis: Tensor, G: Tensor) -> float:
    """Trace distance by which rounding may have moved p and the tail, an a priori bound; u = 2⁻⁵³.

    The basis is orthonormal to η = ‖VᵀV − 1‖_F (itself known to nku), which moves σ and ε by η. Sums of n terms in
    C = WV: ‖δC‖_F ≤ nu√k‖W‖, and CCᵀ moves by twice that. The Gram matrix of C at its middle bond, of size
    s ≤ √(mk), by √s·(mk/s)u, its s eigenvalues by O(su) each. ‖C‖² is a sum of mk, ‖W‖² one of blocks.
    """
    (n, k), numbers = basis.shape, half.numel()
    eta = torch.linalg.matrix_norm(basis.mT @ basis - torch.eye(k, dtype=basis.dtype, device=basis.device)).item()
    return eta + _UNIT * (n * k + 2 * n * sqrt(k) + 4 * numbers) + _summation(len(G), n, n * numbers // k)


def _summation(size: int, line: int, numbers: int) -> float:
    """Relative rounding of a density matrix of ``size`` and of its trace, added up over blocks of W's ``numbers``."""
    return _UNIT * ((_BLOCK + line) / size + 2 * numbers / _BLOCK + 1 + size)


class _Pass(torch.autograd.Function):
    """One pass over W (m, n), scaled, in float64: its product with a basis, and the density matrix of an outer bond.

    From the right: C = W basis, and G of the last ``size`` digits of W's elements; in blocks of rows. From the left:
    D = basisᵀ W, and G of the first ``size``; in blocks of columns. A G of size one is ‖W‖².
    """

    @staticmethod
    def forward(ctx, W: Tensor, basis: Tensor, size: int, scale: float, left: bool) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(W, basis)
        ctx.options = size, scale, left
        products, G = [], basis.new_zeros(size, size)
        for block in _blocks(W, left):
            X = _double(block, scale)
            products.append(basis.mT @ X if left else X @ basis)
            X = X.view(size, -1) if left else X.view(-1, size).mT
            G += X @ X.mT
        return torch.cat(products, 1 if left else 0), G

    @staticmethod
    def backward(ctx, grad: Tensor, grad_G: Tensor):
        first_derivative_only(grad)
        W, basis = ctx.saved_tensors
        size, scale, left = ctx.options
        grad_G = grad_G + grad_G.mT
        grad_W = torch.empty_like(W)
        for block, g, out in zip(_blocks(W, left), _blocks(grad, left, W), _blocks(grad_W, left), strict=True):
            X = _double(block, scale)
            if left:
                dX = basis @ g + (grad_G @ X.view(size, -1)).view_as(X)
            else:
                dX = g @ basis.mT + (X.view(-1, size) @ grad_G).view_as(X)
            out.copy_(dX * scale)
        return grad_W, None, None, None, None


def _double(block: Tensor, scale: float) -> Tensor:
    return block.to(torch.float64, copy=True, memory_format=torch.contiguous_format).mul_(scale)


def _blocks(X: Tensor, columns: bool, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """X cut along its columns or rows, as many at a time as make a block of ``like`` (X itself)."""
    line = (X if like is None else like).shape[0 if columns else 1]
    return X.split(max(1, _BLOCK // line), 1 if columns else 0)
