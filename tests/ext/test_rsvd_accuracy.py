"""rsvd against float64 truth and torch.svd_lowrank: families of spectra, dtypes, shapes, scales, strides."""

import pytest
import torch
from rsvd_samples import FAMILIES, SHAPES, departure, family, matrix, spectral_error

import artent_ext
from artent_ext import reference

SEEDS = 8
RANK, OVERSAMPLE, POWER = 10, 6, 2


def _working(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_triplets(result, A):
    """What holds for every result: types, shapes, order, orthonormal vectors, a residual that is the residual."""
    U, S, Vh, residual, ranks = result
    working = _working(A.dtype)
    k = S.shape[-1]
    assert (U.dtype, S.dtype, Vh.dtype, residual.dtype, ranks.dtype) == (*[working] * 3, torch.float64, torch.int64)
    assert (U.shape[-2:], Vh.shape[-2:]) == ((A.shape[-2], k), (k, A.shape[-1]))
    assert (S.diff(dim=-1) <= 0).all()
    assert (S >= 0).all()
    limit = 1e-12 if working == torch.float64 else 1e-5
    assert departure(U) <= limit
    assert departure(Vh.mT) <= limit
    difference = A.double() - (U.double() * S.double()[..., None, :]) @ Vh.double()
    truth, norm2 = (x.square().sum((-2, -1)) for x in (difference, A.double()))
    assert (residual >= 0).all()
    # Singular values carry the rounding of inner products of m and n terms; a small residual has digits of its own,
    # down to the rounding of this comparison.
    rounding = 4 * (A.shape[-2] + A.shape[-1]) ** 0.5 * torch.finfo(working).eps
    assert ((residual - truth).abs() <= rounding * norm2).all()
    assert ((residual - truth).abs() <= 1e-2 * truth + (16 * torch.finfo(torch.float64).eps) ** 2 * norm2).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_as_good_as_torch_and_near_the_optimum(name, shape, dtype):
    A = family(name, shape).to(dtype)
    result = artent_ext.rsvd(
        A.expand(SEEDS, *A.shape), RANK, oversample=OVERSAMPLE, power_iters=POWER, seed=torch.arange(SEEDS)
    )
    _check_triplets(result, A.expand(SEEDS, *A.shape))
    ours = spectral_error(A, *result[:3]).mean()

    torch.manual_seed(0)
    peer = []
    for _ in range(SEEDS):
        U, S, V = torch.svd_lowrank(A.to(_working(dtype)), q=RANK + OVERSAMPLE, niter=POWER)
        peer.append(spectral_error(A, U[:, :RANK], S[:RANK], V[:, :RANK].mT))
    sigma = torch.linalg.svdvals(A.double())
    # Where nothing is left both are at rounding: 5 eps here (float64; float32: 2), 6 to 8 for torch, by its BLAS.
    rounding = 8 * torch.finfo(_working(dtype)).eps * sigma[0]
    assert ours <= max(1.2 * sigma[RANK], 1.02 * torch.stack(peer).mean(), rounding)


@pytest.mark.parametrize("name", ["fast", "step", "exact low rank", "condition 1e12"])
def test_converged_triplets_are_the_truncated_svd(name, dtype):
    A = family(name, "wide", (2,)).to(dtype)
    k = 6
    U, S, Vh, residual, _ = artent_ext.rsvd(A, k, power_iters=6)
    tU, tS, tVh, t_residual, _ = reference.truncated_svd(A, k)
    eps = torch.finfo(_working(dtype)).eps
    torch.testing.assert_close(S.double(), tS, rtol=0, atol=16 * eps * tS[:, 0].max().item())
    if name != "step":  # its leading values are equal: the vectors are anybody's
        for ours, truth in ((U.double(), tU), (Vh.double().mT, tVh.mT)):
            sign = (ours * truth).sum(-2, keepdim=True).sign()
            gap = (tS[:, :-1] - tS[:, 1:]).min().item()
            torch.testing.assert_close(ours * sign, truth, rtol=0, atol=64 * eps / gap)
        floor = k * (16 * eps) ** 2 * tS[:, 0].max().item() ** 2  # of factors in the working precision
        torch.testing.assert_close(residual, t_residual, rtol=1e-3, atol=floor)


EDGES = {
    "one element": ((1, 1), 1),
    "a row": ((1, 30), 3),
    "a column": ((30, 1), 3),
    "rank beyond the sides": ((7, 5), 100),
    "square, full rank": ((12, 12), 12),
    "rank zero": ((6, 9), 0),
    "many batch dimensions": ((2, 1, 3, 9, 8), 3),
}


@pytest.mark.parametrize(("shape", "rank"), EDGES.values(), ids=EDGES)
def test_edges(shape, rank, dtype):
    A = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    result = artent_ext.rsvd(A, rank)
    k = min(rank, *shape[-2:])
    assert result.S.shape == (*shape[:-2], k)
    assert result.residual.shape == result.ranks.shape == shape[:-2]
    assert (result.ranks == k).all()
    _check_triplets(result, A)
    truth = reference.truncated_svd(A, rank)  # the sketch is as wide as the matrix: exact
    torch.testing.assert_close(result.S.double(), truth[1], rtol=1e-4 if dtype != torch.float64 else 1e-10, atol=0)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 5, 4), (2, 0, 5, 4), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("options", [{"rank": 2}, {"tol": 0.1}, {"rank": 2, "tol": 0.1}], ids=str)
def test_nothing_in_nothing_out(shape, options):
    A = torch.zeros(shape, requires_grad=True)
    result = artent_ext.rsvd(A, **options)
    k = min(options.get("rank", 100), *shape[-2:])
    *batch, m, n = shape
    assert [tuple(x.shape) for x in result] == [(*batch, m, k), (*batch, k), (*batch, k, n), (*batch,), (*batch,)]
    assert not result.residual.any()
    (result.U.sum() + result.residual.sum()).backward()
    assert A.grad.shape == shape


@pytest.mark.parametrize("exponent", [-30, -12, 12, 30])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_scale_changes_nothing(exponent, kind):
    A = family("fast", "tall").to(kind)
    scaled = (A.double() * 10.0**exponent).to(kind)
    result = artent_ext.rsvd(scaled, 5)
    truth = reference.truncated_svd(scaled, 5)
    torch.testing.assert_close(result.S.double(), truth[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(result.residual, truth[3], rtol=1e-3, atol=0)
    assert departure(result.U) <= 1e-5


VIEWS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "every second row and column": lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., ::2, 1::2],
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "reversed storage offset": lambda x: torch.cat([torch.zeros_like(x), x], -1)[..., x.shape[-1] :],
}


@pytest.mark.parametrize("shape", ["tall", "wide"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strides_change_nothing(view, shape, dtype):
    A = family("slow", shape, (3,)).to(dtype)
    assert torch.equal(view(A), A)
    assert view(A).stride() != A.stride()
    tolerance = 64 * torch.finfo(_working(dtype)).eps
    for ours, contiguous in zip(artent_ext.rsvd(view(A), 5), artent_ext.rsvd(A, 5), strict=True):
        torch.testing.assert_close(ours, contiguous, rtol=tolerance, atol=tolerance)


def test_an_expanded_batch_is_the_matrix_again(dtype):
    A = family("slow", "tall").to(dtype)
    expanded, alone = artent_ext.rsvd(A.expand(4, -1, -1), 5), artent_ext.rsvd(A, 5)
    assert all(torch.equal(x[3], y) for x, y in zip(expanded, alone, strict=True))


def test_zero_matrices_beside_others():
    A = torch.stack([matrix(0.5 ** torch.arange(20.0), 30, 20), torch.zeros(30, 20, dtype=torch.float64)]).float()
    result = artent_ext.rsvd(A, 4)
    _check_triplets(result, A)
    assert not result.S[1].any()
    assert result.residual[1] == 0
    assert result.S[0, 0] > 0.9
