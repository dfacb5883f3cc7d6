"""rsvd with a tolerance: the smallest rank that meets it, per matrix, and zeros past it."""

import pytest
import torch
from rsvd_samples import FAMILIES, departure, family, matrix

import artent_ext
from artent_ext import reference


def _check(A, result, tol, cap):
    """The tolerance is met by no more columns than it takes, and the outputs agree about that."""
    U, S, Vh, residual, ranks = result
    norm2 = A.double().square().sum((-2, -1))
    approximation = (U.double() * S.double()[..., None, :]) @ Vh.double()
    truth = (A.double() - approximation).square().sum((-2, -1))
    floor = (4 * torch.finfo(U.dtype).eps) ** 2 * norm2.max().item()  # of factors in the working precision
    torch.testing.assert_close(residual, truth, rtol=1e-2, atol=floor)
    columns = torch.arange(S.shape[-1])
    past = columns >= ranks[..., None]
    assert not S[past].any()
    assert not U.mT[past].any()
    assert not Vh[past].any()
    met = residual <= tol**2 * norm2 * (1 + 1e-6)
    assert (met | (ranks == cap)).all()
    last = torch.where(columns == ranks[..., None] - 1, S.double().square(), 0.0).sum(-1)
    assert (residual + last > tol**2 * norm2 * (1 - 1e-6))[ranks > 0].all()
    assert not ranks[norm2 == 0].any()


@pytest.mark.parametrize("tol", [0.45, 3e-2, 1e-3])
@pytest.mark.parametrize("shape", ["tall", "wide"])
@pytest.mark.parametrize("rank", [None, 12])
def test_every_matrix_gets_its_own_smallest_rank(tol, shape, rank, dtype):
    A = torch.stack([family(name, shape) for name in FAMILIES]).to(dtype)
    result = artent_ext.rsvd(A, rank, tol=tol, power_iters=4)
    cap = 60 if rank is None else rank
    assert result.S.shape == (len(FAMILIES), cap)
    _check(A, result, tol, cap)
    truth = reference.truncated_svd(A, rank, tol=tol)[4]
    # No approximation needs fewer columns than the best one; these are converged, but for the slowly decaying ones.
    assert (result.ranks >= truth).all()
    converged = [name not in ("flat", "slow", "repeated") for name in FAMILIES]
    assert torch.equal(result.ranks[converged], truth[converged])
    for U, k in zip(result.U, result.ranks.tolist(), strict=True):
        assert departure(U[:, :k]) <= (1e-12 if dtype == torch.float64 else 1e-5)


def test_the_sketch_grows_until_the_tolerance_is_met_for_each_alone():
    """32 columns, 64, all: whichever a matrix needed, its result is the one that it has alone."""
    decays = (0.5, 0.9, 0.95, 0.99, 0.5)
    A = torch.stack([matrix(d ** torch.arange(200.0), 210, 200, seed=i) for i, d in enumerate(decays)]).float()
    seeds = torch.arange(5)
    result = artent_ext.rsvd(A, tol=1e-2, seed=seeds)
    _check(A, result, 1e-2, 200)
    assert result.ranks.tolist() == sorted(result.ranks[:4].tolist()) + [result.ranks[0].item()]
    assert result.ranks[0] < 32 < result.ranks[1] < 64 < result.ranks[2]
    for b in range(5):
        alone = artent_ext.rsvd(A[b], tol=1e-2, seed=b)
        assert all(torch.equal(x[b], y) for x, y in zip(result, alone, strict=True))


def test_a_cap_that_is_not_enough_is_told_by_the_residual():
    A = family("slow", "square").float()
    result = artent_ext.rsvd(A, 5, tol=1e-3)
    plain = artent_ext.rsvd(A, 5)
    assert result.ranks == 5
    assert all(torch.equal(x, y) for x, y in zip(result, plain, strict=True))
    assert result.residual > 1e-6 * A.double().square().sum()


@pytest.mark.parametrize("tol", [0, 0.0, 1 - 2**-53])
def test_the_ends_of_the_scale(tol):
    A = torch.stack([matrix(0.9 ** torch.arange(8.0), 10, 8), torch.zeros(10, 8, dtype=torch.float64)])
    result = artent_ext.rsvd(A, tol=tol)
    assert result.ranks.tolist() == ([8, 0] if tol == 0 else [1, 0])


def test_nan_stays_with_its_matrix():
    A = torch.stack([family("fast", "tall"), family("fast", "tall")]).float()
    A[1, 3, 4] = float("nan")
    result = artent_ext.rsvd(A, tol=1e-2, check_finite=False)
    alone = artent_ext.rsvd(A[0], tol=1e-2)
    assert all(torch.equal(x[0], y) for x, y in zip(result, alone, strict=True))
    assert all(x[1].isnan().all() for x in (result.S[:, :1], result.residual))
