"""rsvd of operators, and of tensors through the same orchestration, which is what large matrices run on CUDA."""

import math

import pytest
import torch
from rsvd_samples import FAMILIES, SHAPES, departure, family, matrix

import artent_ext
from artent_ext import Operator, _rsvd_ops, reference


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [(5, 0, 0), (6, 4, 2), (100, 0, 1)], ids=str)
def test_orchestrated_and_native_agree(shape, options, dtype):
    """The same algorithm with the same random numbers: equal to rounding where the answer is determined."""
    A = torch.stack([family(name, shape) for name in FAMILIES]).to(dtype)
    for seed in (torch.tensor([3]), torch.arange(len(A))):
        ours, native = _rsvd_ops.dense(A, *options, seed), torch.ops.artent.rsvd(A, *options, seed)
        assert [x.shape for x in ours] == [x.shape for x in native]
        assert [x.dtype for x in ours] == [x.dtype for x in native]
        assert all(x.is_contiguous() for x in ours)
        eps = torch.finfo(native[1].dtype).eps
        torch.testing.assert_close(ours[1], native[1], rtol=0, atol=64 * eps)
        norm2 = A.double().square().sum((1, 2))
        assert ((ours[3] - native[3]).abs() <= 64 * eps * norm2).all()
        true = (A.double() - (ours[0] * ours[1][:, None, :]).double() @ ours[2].double()).square().sum((1, 2))
        assert ((ours[3] - true).abs() <= 1e-2 * true + (16 * eps) ** 2 * norm2).all()
        limit = 1e-12 if dtype == torch.float64 else 1e-5
        assert max(departure(ours[0]), departure(ours[2].mT)) <= limit


def test_orchestrated_nan_stays_with_its_matrix(dtype):
    A = torch.stack([family("fast", "tall")] * 3).to(dtype)
    clean = _rsvd_ops.dense(A, 4, 4, 2, torch.tensor([0]))
    A[1, 5, 6] = float("inf")
    for ours, truth in zip(_rsvd_ops.dense(A, 4, 4, 2, torch.tensor([0])), clean, strict=True):
        assert ours[1].isnan().all()
        torch.testing.assert_close(ours[::2], truth[::2])


def test_orchestration_ignores_autocast():
    A = family("slow", "tall").float()[None]
    plain = _rsvd_ops.dense(A, 4, 4, 2, torch.tensor([0]))
    with torch.autocast("cpu", torch.bfloat16):
        inside = _rsvd_ops.dense(A, 4, 4, 2, torch.tensor([0]))
    assert all(torch.equal(x, y) for x, y in zip(plain, inside, strict=True))


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 2)], ids=str)
@pytest.mark.parametrize(("m", "n"), [(50, 30), (30, 50)])
def test_an_operator_is_its_matrix(batch, m, n):
    A = matrix(0.6 ** torch.arange(30.0), m, n, batch)
    operator = Operator(lambda X: A @ X, lambda Y: A.mT @ Y, A.shape, A.dtype, norm2=A.square().sum((-2, -1)))
    seeds = torch.arange(math.prod(batch)).reshape(batch)
    for options in ({"rank": 5}, {"rank": 8, "tol": 0.03}, {"tol": 0.03}, {"rank": 4, "seed": seeds}):
        ours, dense = artent_ext.rsvd(operator, **options), artent_ext.rsvd(A, **options)
        assert [x.shape for x in ours] == [x.shape for x in dense]
        assert torch.equal(ours.ranks, dense.ranks)
        torch.testing.assert_close(ours.S, dense.S)
        torch.testing.assert_close(
            (ours.U * ours.S[..., None, :]) @ ours.Vh, (dense.U * dense.S[..., None, :]) @ dense.Vh
        )
        torch.testing.assert_close(ours.residual, dense.residual, rtol=1e-6, atol=1e-13)


def test_an_operator_without_a_norm_knows_no_residual():
    A = matrix(0.6 ** torch.arange(30.0), 50, 30)
    result = artent_ext.rsvd(Operator(lambda X: A @ X, lambda Y: A.mT @ Y, A.shape, A.dtype), 4)
    assert result.residual.isnan()
    torch.testing.assert_close(result.S, reference.truncated_svd(A, 4)[1])


def test_lora_factors_are_never_multiplied_out():
    B, A = torch.randn(3, 40_000, 4), torch.randn(4, 50_000)  # the product would take 24 GB
    result = artent_ext.rsvd(Operator.from_factors(B, A, scaling=2.0), tol=1e-3, rank=8)
    assert result.ranks.tolist() == [4, 4, 4]
    R = torch.linalg.qr(B.double()).R @ torch.linalg.qr(A.double().mT).R.mT
    torch.testing.assert_close(result.S[:, :4].double(), 2 * torch.linalg.svdvals(R), rtol=1e-5, atol=0)
    norm2 = 4 * R.square().sum((-2, -1))
    assert (result.residual <= 1e-5 * norm2).all()
    assert departure(result.U[..., :4]) <= 1e-5


def test_growing_with_an_operator_gives_each_matrix_its_own_width():
    A = torch.stack([matrix(d ** torch.arange(150.0), 160, 150) for d in (0.5, 0.9, 0.97)])
    operator = Operator(lambda X: A @ X, lambda Y: A.mT @ Y, A.shape, A.dtype, norm2=A.square().sum((-2, -1)))
    ours, dense = artent_ext.rsvd(operator, tol=1e-2), artent_ext.rsvd(A, tol=1e-2)
    assert torch.equal(ours.ranks, dense.ranks)
    assert ours.ranks[0] < 32 < ours.ranks[1]
    torch.testing.assert_close(ours.residual, dense.residual)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 5, 4)], ids=str)
def test_empty_operators(shape):
    operator = Operator(
        lambda X: X.new_zeros(*shape[:-1], X.shape[-1]),
        lambda Y: Y.new_zeros(*shape[:-2], shape[-1], Y.shape[-1]),
        shape,
        norm2=0.0,
    )
    result = artent_ext.rsvd(operator, tol=0.1)
    k = min(shape[-2:])
    assert (result.U.shape, result.Vh.shape) == ((*shape[:-1], k), (*shape[:-2], k, shape[-1]))
    assert not result.residual.any()
