"""Exact Schmidt probabilities at every bond of a chain, without an SVD per bond (docs/math.md §2).

A state X of N sites is reshaped at bond l to M_l of D_l rows. The reduced density matrix of the smaller side has the
squared singular values of M_l as eigenvalues, and tracing a site out of it gives the next one, so one product and a
ladder of symmetric eigenvalue problems serve all bonds on that side. Nothing here knows what a row or a column is
until ``dense`` and ``factored``: a matrix is a chain, and so is each half of a factored update.
"""

from math import log, prod

import torch
from torch import Tensor

from artent.sites import Chain

# Up to this size of the smaller side everything is done in float64, whatever the input; it costs little there.
_DOUBLE_SIZE = 256
# Gram matrices above this size are multiplied out by halves; below it the products get too small to be fast.
_GRAM_SIZE = 512
# A float32 ladder is redone in float64 where the bound on its entropy error (nats) exceeds this. The error observed
# is a tenth of the bound.
TOLERANCE = 1e-4


def dense(W: Tensor, chain: Chain, singular: bool = False) -> list[Tensor]:
    """Schmidt probabilities of W (batch, m, n): a (batch, k_l) float64 tensor, descending, for each bond 1 … N−1.

    ``singular`` takes singular values of every unfolding instead of eigenvalues of its Gram matrix: the small
    probabilities keep their digits, which Rényi entropies of α < 1 need.
    """
    return probabilities(_working(W, double=singular), chain.dims, singular)


def outwards(W: Tensor, chain: Chain, bond: int, on_left: bool, double: bool) -> list[Tensor]:
    """The same for ``bond`` and the bonds beyond it on its side, away from the middle; ``double``: all in float64."""
    sites = chain.dims[:bond] if on_left else chain.dims[bond:]
    return _side(_working(W, double), prod(chain.dims[:bond]), sites, on_left)


def one(W: Tensor, chain: Chain, bond: int) -> Tensor:
    """The same at one bond, by the singular values of its unfolding."""
    return _by_singular_values(_working(W, double=True), prod(chain.dims[:bond]))


def halves(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """C (batch, m, k) and D (batch, k′, n) in float64, all that the spectra of ΔW = B A need; m×n is never formed.

    With the rows of A spanned by an orthonormal Q (n, k), C = B (A Q) and ΔW = C Qᵀ: Q is an isometry, so the
    bonds up to the row|column cut have the spectrum of C. Mirrored for D and the bonds from the cut on.
    """
    B, A = _scaled(B.double()), _scaled(A.double())
    C, D = B @ (A @ _span(A.mT)), (_span(B).mT @ B) @ A
    for half in (C, D):
        if half.requires_grad:
            half.register_hook(first_derivative_only)
    return C, D


def vanish(C: Tensor, D: Tensor, rank: int) -> Tensor:
    """(batch,) bool: is B A rounding of the products in ``halves``, although neither factor is zero?"""
    rounding = rank * torch.finfo(torch.float64).eps * (C.shape[-2] * D.shape[-1]) ** 0.5
    return torch.linalg.matrix_norm(C.detach()) <= rounding


def factored(C: Tensor, D: Tensor, chain: Chain, singular: bool = False) -> list[Tensor]:
    """The same as ``dense`` from the ``halves`` of B A: chains of the row sites and k, of k′ and the column sites."""
    rows = probabilities(C.flatten(1), (*chain.rows, C.shape[-1]), singular)
    cols = probabilities(D.flatten(1), (D.shape[-2], *chain.cols), singular)
    return (rows + cols[1:])[: len(chain.bonds)] if chain.rows else cols[1:]


def ranks(p: Tensor, eps: float) -> Tensor:
    """(batch,) numerical Schmidt rank of p (batch, k) for entries known to ``eps``.

    A singular value counts above k·eps of the largest; a probability also above k·(float64 epsilon), below which
    the eigenvalues of a Gram matrix are rounding.
    """
    k = p.shape[-1]
    threshold = max((k * eps) ** 2, k * torch.finfo(torch.float64).eps)
    return (p > threshold * p[..., :1]).sum(-1)


def _working(W: Tensor, double: bool) -> Tensor:
    """W (batch, mn) with a largest element of one, in the precision of the computation."""
    peak = W.detach().abs().amax((-2, -1), keepdim=True)
    working = torch.float64 if double or W.dtype == torch.float64 else torch.float32
    return (W.to(working) / peak.to(working)).flatten(1)


def _scaled(X: Tensor) -> Tensor:
    """X with a largest element of one: scale drops out of the state, and squares must not overflow or vanish."""
    return X / X.detach().abs().amax((-2, -1), keepdim=True)


def _span(X: Tensor) -> Tensor:
    """An orthonormal basis (…, m, k) of the columns of X (…, m, r), as a constant.

    The spectrum does not depend on which basis is taken, so to first order its gradient flows through the factors
    alone, and QR's own derivative, which does not exist for dependent columns, is not needed.
    """
    return torch.linalg.qr(X.detach()).Q


def first_derivative_only(gradient: Tensor) -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "profiles of factored updates have first derivatives only (create_graph=True was asked for):"
            " profile update.dense() for a second"
        )


def probabilities(X: Tensor, dims: tuple[int, ...], singular: bool) -> list[Tensor]:
    """Probabilities at each bond of the chains X (batch, Πdims)."""
    left = [prod(dims[:l]) for l in range(1, len(dims))]
    total = X.shape[1]
    if singular:
        return [_by_singular_values(X, D) for D in left]
    middle = sum(total // D >= D for D in left)  # the bonds 1 … middle have their smaller side on the left
    rows = _side(X, left[middle - 1], dims[:middle], on_left=True) if middle else []
    cols = _side(X, left[middle], dims[middle + 1 :], on_left=False) if middle < len(left) else []
    return rows[::-1] + cols


def _side(X: Tensor, D: int, sites: tuple[int, ...], on_left: bool) -> list[Tensor]:
    """Probabilities of the ladder that starts at the bond of left dimension D and walks outwards over ``sites``."""
    size = D if on_left else X.shape[1] // D
    if X.dtype == torch.float64 or size <= _DOUBLE_SIZE or reduced_products():
        return _ladder(X.double(), D, sites, on_left)
    chains = []
    for x in X.split(1):  # one at a time: at this size a batch saves nothing, and only some may need float64
        p = _ladder(x, D, sites, on_left)
        chains.append(p if all(map(trustworthy, p)) else _ladder(x.double(), D, sites, on_left))
    return [torch.cat(bond) for bond in zip(*chains)]


def reduced_products() -> bool:
    """May float32 products run in TF32 or bfloat16 here? torch raises where its two ways to say so were mixed."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        return True


def _ladder(X: Tensor, D: int, sites: tuple[int, ...], on_left: bool) -> list[Tensor]:
    M = X.view(len(X), D, -1)
    return descend(_gram(M if on_left else M.mT), sites, on_left)


def descend(G: Tensor, sites: tuple[int, ...], on_left: bool) -> list[Tensor]:
    """Probabilities of a density matrix G (batch, Πsites, Πsites), then with one site after the other traced out."""
    spectra = []
    # The site next to the bond is the least significant digit on the left side, the most significant on the right.
    for d in [*reversed(sites[1:]), None] if on_left else [*sites[:-1], None]:
        size = G.shape[-1]
        eigenvalues = torch.linalg.eigvalsh(G.double() if size <= _DOUBLE_SIZE else G)
        spectra.append(_normalised(eigenvalues.flip(-1).double().clamp(min=0)))
        if d is not None:
            kept = size // d
            if on_left:
                G = G.view(-1, kept, d, kept, d).diagonal(dim1=2, dim2=4).sum(-1)
            else:
                G = G.view(-1, d, kept, d, kept).diagonal(dim1=1, dim2=3).sum(-1)
    return spectra


def _gram(M: Tensor) -> Tensor:
    """M Mᵀ. Of a large one only the lower half is multiplied out: three of four quarters, and so on within two."""
    size = M.shape[-2]
    if size <= _GRAM_SIZE:
        return M @ M.mT
    top, bottom = M.split([size // 2, size - size // 2], -2)
    corner = bottom @ top.mT
    rows = [_gram(top), corner.mT], [corner, _gram(bottom)]
    return torch.cat([torch.cat(row, -1) for row in rows], -2)


def trustworthy(p: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Is float32 good enough? Its noise lifts every probability below it, by about the noise each."""
    noise = torch.finfo(torch.float32).eps / 2 * p[0, 0].item()
    lifted = (p[0] < 10 * noise).sum().item()
    return lifted * noise * log(1 / noise) <= tolerance


def _by_singular_values(X: Tensor, D: int) -> Tensor:
    M = X.view(len(X), D, -1)
    return _normalised(torch.linalg.svdvals(M).square())


def _normalised(weights: Tensor) -> Tensor:
    """By their own sum rather than the trace, from which it differs by rounding: no entropy then exceeds its bound."""
    return weights / weights.sum(-1, keepdim=True)
