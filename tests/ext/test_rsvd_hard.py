"""Matrices with graded columns or rows, quantised, out of the ordinary range: what random singular vectors hide."""

import pytest
import torch
from rsvd_samples import departure, spectral_error

import artent_ext

ops = torch.ops.artent


def _graded(n, decades, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=generator, dtype=torch.float64)
    grades = 10.0 ** -torch.linspace(0, decades, n, dtype=torch.float64)
    return {
        "rows": grades[:, None] * A,
        "columns": A * grades,
        "both": grades[:, None] * A * grades,
        "triangle": A.triu() * grades,
        "transposed triangle": (A.triu() * grades).mT,
        "diagonal": grades.diag(),
    }[kind]


@pytest.mark.parametrize("kind", ["rows", "columns", "both", "triangle", "transposed triangle", "diagonal"])
@pytest.mark.parametrize("decades", [6, 12, 20, 40])
@pytest.mark.parametrize("power_iters", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_graded(kind, decades, power_iters, dtype):
    """Pivots of the Gram matrix fall through its rounding here; nothing may grow from what is left of them."""
    A = torch.stack([_graded(60, decades, kind, seed) for seed in range(3)]).to(dtype)
    unit = torch.finfo(dtype).eps
    values = torch.linalg.svdvals(A.double())
    for k in (5, 25, 50):
        U, S, Vh, _, _ = artent_ext.rsvd(A, k, power_iters=power_iters)
        limit = 1e-12 if dtype == torch.float64 else 1e-5
        assert departure(U) <= limit
        assert departure(Vh.mT) <= limit
        # Halko, Martinsson and Tropp: the expected error in the Frobenius norm, with room for three draws.
        tail = values[:, k:].square().sum(1).sqrt()
        rounding = 64 * unit * values[:, 0]
        assert (spectral_error(A, U, S, Vh) <= (2.5 if power_iters == 0 else 1.2) * tail + rounding).all()
        assert (S.double() <= values[:, :k] + rounding[:, None]).all()


def test_many_columns_nearly_dependent_together():
    """Each pivot of 0.1 and more, and yet a condition number of 1e5."""
    generator = torch.Generator().manual_seed(0)
    grades = 10.0 ** torch.linspace(0, -12, 128)
    A = (torch.randn(4, 128, 128, generator=generator).triu() * grades).mT
    U, S, Vh, _, _ = artent_ext.rsvd(A, 120)
    assert departure(U) <= 1e-5
    assert departure(Vh.mT) <= 1e-5
    assert (spectral_error(A, U, S, Vh) <= 1e-5 * S[:, 0]).all()


SUMS = {
    "sparse zeros": ((torch.rand(1024, 1024, generator=torch.Generator().manual_seed(0)) < 0.9998).float(), 1),
    "constant": (torch.full((2**17, 4), 1.1), 1),
    "mostly ones": ((torch.rand(2**16, 8, generator=torch.Generator().manual_seed(0)) < 0.98).float(), 1),
}


@pytest.mark.parametrize("name", SUMS)
def test_long_sums_of_equal_numbers(name):
    """Constant data rounds the same way at every step of a long sum: the residual must not hide in that."""
    A, k = SUMS[name]
    U, S, Vh, residual, _ = artent_ext.rsvd(A, k)
    truth = (A.double() - (U.double() * S.double()) @ Vh.double()).square().sum()
    norm2 = A.double().square().sum()
    assert (residual - truth).abs() <= 0.05 * truth + 1e-9 * norm2


def test_a_singular_value_that_only_denormals_can_hold():
    for tiny, dtype in ((1e-40, torch.float32), (1e-161, torch.float64)):
        A = torch.diag(torch.tensor([1.0, tiny], dtype=torch.float64)).to(dtype)
        U, S, Vh, residual, _ = artent_ext.rsvd(A, 2)
        assert departure(U) <= 1e-6
        assert departure(Vh) <= 1e-6
        torch.testing.assert_close(S, torch.tensor([1.0, 0.0], dtype=dtype), rtol=0, atol=1e-6)
        assert residual <= 1e-12


@pytest.mark.parametrize("exponent", [-305, -200, -160, 160, 200, 300])
def test_the_range_of_float64(exponent):
    A = torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = artent_ext.rsvd(A, 5)
    scaled = artent_ext.rsvd(A * 10.0**exponent, 5)
    torch.testing.assert_close(scaled.S / 10.0**exponent, reference.S, rtol=1e-9, atol=0)
    torch.testing.assert_close(scaled.U.abs(), reference.U.abs(), rtol=0, atol=1e-7)
    # Shares of a norm whose square float64 holds badly, or not at all, cannot be told: nothing needed is thrown away.
    assert artent_ext.rsvd(A * 10.0**exponent, tol=0.3).ranks >= artent_ext.rsvd(A, tol=0.3).ranks
    operator = artent_ext.Operator(
        lambda X: (A * 10.0**exponent) @ X, lambda Y: (A * 10.0**exponent).mT @ Y, (40, 30), torch.float64
    )
    torch.testing.assert_close(artent_ext.rsvd(operator, 5).S / 10.0**exponent, reference.S, rtol=1e-6, atol=0)


@pytest.mark.parametrize("q", [5, 6, 191, 250])
def test_jacobi_of_nan_is_nan_beside_good_matrices(q):
    """Odd widths leave a column without a partner, wide ones go to LAPACK: neither may touch what is not theirs."""
    generator = torch.Generator().manual_seed(0)
    R = torch.randn(3, q, q, dtype=torch.float64, generator=generator)
    good = ops.rsvd_jacobi(R)
    R[1, q // 2, 0] = float("nan")
    for _ in range(20 if q < 100 else 1):
        parts = ops.rsvd_jacobi(R)
    for part, expected in zip(parts, good, strict=True):
        assert part[1].isnan().all()
        torch.testing.assert_close(part[0], expected[0])
        torch.testing.assert_close(part[2], expected[2])


def test_large_gradients_keep_their_mixing_part():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, 12, generator=generator) * 0.5 ** torch.arange(12.0)
    weight = torch.randn(20, 12, generator=generator)
    gradients = []
    for scale in (1.0, 1e10):
        A = (base * scale).requires_grad_()
        U, S, Vh, _, _ = artent_ext.rsvd(A, 4, power_iters=6)
        (weight * ((U * S) @ Vh) ** 2).sum().backward()
        gradients.append(A.grad / scale)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())
