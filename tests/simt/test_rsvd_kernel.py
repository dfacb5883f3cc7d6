"""The CUDA kernels of the randomized SVD, run on the simulated machine: the fused kernel and the parts.

Judged by float64 singular values, by what any SVD must satisfy, and by the CPU ops, which draw the same normals and so
must agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import artent_ext  # noqa: F401  (registers the CPU ops)

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
NAN = float("nan")


def orthogonal(m, n, random):
    return torch.linalg.qr(torch.randn(m, n, generator=random, dtype=F64))[0]


def spectrum(f):
    """Matrices U diag(f(0), f(1), …) Vᵀ with random orthonormal U, V."""

    def build(m, n, random):
        r = min(m, n)
        values = torch.tensor([f(i) for i in range(r)], dtype=F64)
        return (orthogonal(m, r, random) * values) @ orthogonal(n, r, random).mT

    return build


def gaussian(m, n, random):
    return torch.randn(m, n, generator=random, dtype=F64)


def repeated_columns(m, n, random):
    return gaussian(m, 3, random)[:, torch.arange(n) % 3]


def one_entry(m, n, random):
    A = torch.zeros(m, n, dtype=F64)
    A[m // 2, n // 3] = 3.0
    return A


def one_row(m, n, random):
    A = torch.zeros(m, n, dtype=F64)
    A[m // 2] = gaussian(1, n, random)[0]
    return A


GAP = spectrum(lambda i: 1.0 if i < 5 else 1e-3 * 0.8**i)  # a step after the fifth value: the subspace converges


class Case(NamedTuple):
    shape: tuple  # B, m, n
    build: Callable = GAP
    dtype: torch.dtype = F32
    rank: int = 5
    oversample: int = 4
    power_iters: int = 2
    layout: str = "contiguous"
    scale: float = 1.0


CASES = {
    "tall": Case((2, 70, 20)),
    "wide": Case((2, 20, 70)),
    "square": Case((1, 40, 40)),
    "odd sizes": Case((1, 37, 53), rank=7),
    "one row": Case((2, 1, 33)),
    "one column": Case((2, 33, 1)),
    "one element": Case((2, 1, 1)),
    "columns first": Case((2, 45, 30), layout="columns first"),
    "columns first, wide": Case((1, 30, 45), layout="columns first"),
    "batch last": Case((2, 26, 31), layout="batch last"),
    "every other": Case((2, 26, 31), layout="every other"),
    "float64": Case((1, 50, 41), dtype=F64),
    "float64, columns first": Case((1, 33, 50), dtype=F64, layout="columns first"),
    "float16": Case((2, 40, 24), dtype=F16),
    "bfloat16": Case((1, 24, 40), dtype=BF16, layout="columns first"),
    "full rank asked": Case((1, 30, 18), gaussian, rank=40),
    "full rank asked, float64": Case((1, 18, 30), gaussian, F64, rank=18),
    "no oversampling": Case((1, 40, 32), rank=5, oversample=0),
    "no power iteration": Case((1, 40, 32), power_iters=0),
    "rank 0": Case((2, 20, 30), gaussian, rank=0),
    "rank 0 of nothing": Case((2, 20, 30), gaussian, rank=0, oversample=0),
    "wide sketch": Case((1, 96, 70), spectrum(lambda i: 0.9**i), rank=50, oversample=12),
    "wide sketch, float64": Case((1, 64, 40), spectrum(lambda i: 0.5**i), F64, rank=24, oversample=8),
    "as large as fits, float64": Case((1, 512, 34), spectrum(lambda i: 0.6**i), F64, rank=24, oversample=8),
    "flat": Case((1, 48, 40), spectrum(lambda i: 1.0)),
    "gaussian": Case((1, 48, 40), gaussian, rank=8, oversample=8),
    "exact rank": Case((2, 48, 40), spectrum(lambda i: float(i < 3))),
    "exact rank, float64": Case((1, 40, 48), spectrum(lambda i: float(i < 3)), F64),
    "repeated columns": Case((1, 30, 24), repeated_columns, rank=8),
    "repeated columns, float64": Case((1, 24, 24), repeated_columns, F64, rank=24),
    "condition 1e12": Case((1, 40, 30), spectrum(lambda i: 10.0 ** (-12 * i / 29)), rank=20),
    "condition 1e12, float64": Case((1, 40, 30), spectrum(lambda i: 10.0 ** (-12 * i / 29)), F64, rank=30),
    "zero": Case((2, 24, 16), lambda m, n, random: torch.zeros(m, n, dtype=F64)),
    "zero, float64": Case((1, 16, 24), lambda m, n, random: torch.zeros(m, n, dtype=F64), F64, rank=16),
    "one entry": Case((1, 20, 20), one_entry, rank=20),
    "one entry, float64": Case((1, 20, 20), one_entry, F64, rank=20),
    "one row of a square": Case((1, 20, 20), one_row, rank=20),
    "1e30": Case((1, 30, 24), scale=1e30),
    "1e-30": Case((1, 30, 24), scale=1e-30),
    "1e-40, not normal": Case((1, 30, 24), gaussian, rank=3, scale=1e-40),
    "1e200 in float64": Case((1, 24, 30), dtype=F64, scale=1e150),
    "1e-30 in float64": Case((1, 30, 24), dtype=F64, scale=1e-30),
}


def lay_out(A, layout):
    """The same values at other strides, with NaN in every gap."""
    batch, m, n = A.shape
    if layout == "columns first":
        parent = torch.full((batch, n, m + 3), NAN, dtype=A.dtype)
        view = parent[..., 1:-2].mT
    elif layout == "batch last":
        parent = torch.full((m, n, batch), NAN, dtype=A.dtype)
        view = parent.permute(2, 0, 1)
    elif layout == "every other":
        parent = torch.full((batch, 2 * m, 3 * n), NAN, dtype=A.dtype)
        view = parent[:, ::2, ::3]
    else:
        return A
    return view.copy_(A)


def make(case):
    random = torch.Generator().manual_seed(sum(case.shape))
    batch, m, n = case.shape
    A = torch.stack([case.build(m, n, random) for _ in range(batch)]) * case.scale
    return lay_out(A.to(case.dtype), case.layout)


def small(rsvd, case, A, **options):
    return rsvd.small(A, case.rank, case.oversample, case.power_iters, **options)


def orthonormality(*matrices):
    return max(((M.double().mT @ M.double()) - torch.eye(M.shape[-1])).abs().amax().item() for M in matrices)


def rounding(dtype):
    """(of orthonormality, of a sum of squares): what the issue promises, and a few units of it."""
    return (1e-12, 1e-13) if dtype == F64 else (1e-5, 3e-6)


def check(case, A, U, S, Vh, residual):
    batch, m, n = A.shape
    k = min(case.rank, m, n)
    real = F64 if case.dtype == F64 else F32
    assert [x.dtype for x in (U, S, Vh, residual)] == [real, real, real, F64]
    assert (U.shape, S.shape, Vh.shape) == ((batch, m, k), (batch, k), (batch, k, n))
    unit, square_unit = rounding(case.dtype)
    if k > 0:
        assert orthonormality(U, Vh.mT) <= unit
    assert (S >= 0).all()
    assert (S.diff() <= 0).all()
    largest = A.double().abs().amax((1, 2), keepdim=True)  # squares of 1e200 have no float64
    by = torch.where(largest > 0, largest, 1.0)
    A, S, residual = A.double() / by, S.double() / by[:, 0], residual / by[:, 0, 0] ** 2
    norm2 = A.square().sum((1, 2))
    true = (A - (U.double() * S[:, None]) @ Vh.double()).square().sum((1, 2))
    assert (residual >= 0).all()
    assert ((residual - true).abs() <= square_unit * norm2).all()
    # Where the difference would cancel the residual is the explicit one.
    small = true < 1e-5 * norm2
    assert ((residual - true).abs()[small] <= 1e-6 * true[small] + 1e-30 * norm2[small]).all()
    values = torch.linalg.svdvals(A)
    optimal = values[:, k:].square().sum(1)
    if case.oversample > 1 or k == min(m, n):  # without power iterations: Halko, Martinsson and Tropp, Theorem 10.5
        factor = 1.1 if case.power_iters else 1 + k / (case.oversample - 1)
        assert (true <= factor * optimal + square_unit**2 * norm2).all()
    assert (values[:, :k] + 10 * unit * values[:, :1] >= S).all()
    if case.build is GAP:  # the leading five are converged, whatever the sketch
        converged = min(5, k)
        torch.testing.assert_close(S[:, :converged], values[:, :converged], rtol=10 * unit, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_fused_kernel(rsvd, name):
    case = CASES[name]
    A = make(case)
    got = small(rsvd, case, A)
    check(case, A, *got)
    cpu = torch.ops.artent.rsvd(A, case.rank, case.oversample, case.power_iters, torch.tensor([0]))
    largest = cpu[1].amax(1, keepdim=True) if got[1].numel() else torch.ones(1, 1)
    assert ((got[1] - cpu[1]).abs() <= 10 * rounding(case.dtype)[0] * largest).all()


@pytest.mark.parametrize("name", ["tall", "wide", "bfloat16", "repeated columns"])
def test_alone_as_in_a_batch(rsvd, name):
    """The same bits whatever else is in the batch, one seed or many, in any order of blocks and threads."""
    case = CASES[name]
    A = make(case)
    three, seeds = torch.cat([A, A.flip(-1), A[:1]])[:3], (5, -7, 2**40)
    together = small(rsvd, case, three, seed=seeds, schedule=1)
    for b in range(3):
        alone = small(rsvd, case, three[b : b + 1].clone(), seed=seeds[b : b + 1], schedule=2 + b)
        assert all(torch.equal(x[b], y[0]) for x, y in zip(together, alone))
    assert not torch.equal(together[0][0], small(rsvd, case, three, seed=(6,))[0][0])
    shared = small(rsvd, case, three, seed=seeds[:1], schedule=7)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(together, shared))


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["tall", "float64, columns first", "float16"])
def test_what_is_not_finite_stays_in_its_matrix(rsvd, name, bad):
    case = CASES[name]._replace(shape=(3, *CASES[name].shape[1:]))
    A = make(case)
    expected = small(rsvd, case, A)
    A[1, -1, 2] = bad
    got = small(rsvd, case, A)
    assert all(torch.isnan(x[1]).all() for x in got)
    assert all(torch.equal(x[::2], y[::2]) for x, y in zip(got, expected))


def test_every_size_that_is_promised_fits_one_block(rsvd):
    for m, n, q, is_double in [(512, 512, 64, False), (512, 512, 32, True), (512, 40, 40, False), (9, 9, 9, True)]:
        threads, size = rsvd.plan(m, n, q, q, is_double)
        assert threads <= 512
        assert size <= 163 * 1024


@pytest.mark.parametrize("dtype", [F32, F64])
def test_sketch(rsvd, dtype):
    """The numbers of the CPU op, up to the last digits of a logarithm and a cosine."""
    seeds = (3, -1, 2**62 + 5)
    for rows, cols in [(1, 1), (7, 3), (130, 5)]:
        out = rsvd.sketch(seeds, rows, cols, dtype)
        expected = torch.ops.artent.rsvd_sketch(torch.tensor(seeds), rows, cols, dtype)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    assert rsvd.sketch(seeds, 0, 4, dtype).shape == (3, 0, 4)


COLUMNS = {  # Y
    "one column": (gaussian, 9, 1, F32),
    "square": (gaussian, 13, 13, F32),
    "square, float64": (gaussian, 13, 13, F64),
    "chunks of rows": (gaussian, 300, 5, F32),
    "tiles of columns": (gaussian, 150, 70, F32),
    "tiles of columns, float64": (gaussian, 80, 70, F64),
    "repeated": (repeated_columns, 40, 10, F32),
    "repeated, float64": (repeated_columns, 40, 10, F64),
    "repeated, square": (repeated_columns, 12, 12, F64),
    "graded": (spectrum(lambda i: 1e-4**i), 40, 8, F64),
    "zero": (lambda m, n, random: torch.zeros(m, n, dtype=F64), 20, 20, F32),
    "zero, float64": (lambda m, n, random: torch.zeros(m, n, dtype=F64), 20, 20, F64),
    "one entry": (one_entry, 20, 20, F32),
    "one entry, float64": (one_entry, 20, 20, F64),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_orthonormalise(rsvd, name):
    build, m, q, dtype = COLUMNS[name]
    random = torch.Generator().manual_seed(m)
    Y = torch.stack([build(m, q, random), 1e-3 * gaussian(m, q, random)]).to(dtype)
    Q, R = rsvd.orthonormalise(Y)
    unit, _ = rounding(dtype)
    assert orthonormality(Q) <= unit
    assert (R.tril(-1) == 0).all()
    norms = Y.double().square().sum((1, 2), keepdim=True).sqrt()
    assert ((Q.double() @ R - Y.double()).abs() <= 0.1 * unit * norms).all()
    again, factor = rsvd.orthonormalise(Y[1:], schedule=5, in_shared=False)
    assert torch.equal(again[0], Q[1])
    assert torch.equal(factor[0], R[1])


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_rounds_as_on_the_cpu(rsvd, rounds, dtype):
    """Normals in zero columns included: of the first matrix in the first round, of the second in the next."""
    Y = torch.zeros(3, 50, 6, dtype=dtype)
    Y[1, 7] = 1.0  # equal columns, of which the first round leaves nothing
    Y[2] = gaussian(50, 6, torch.Generator().manual_seed(0))
    Q, R = rsvd.orthonormalise(Y, rounds, seed=(1, 2, 3))
    expected_Q, expected_R = torch.ops.artent.rsvd_orthonormalise(Y, rounds, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(R, expected_R, rtol=1e-6 if dtype == F32 else 1e-12, atol=1e-12)
    torch.testing.assert_close(Q, expected_Q, rtol=1e-5, atol=1e-6)


def triangles(q, random):
    graded = torch.logspace(0, -14, q, dtype=F64)[:, None]
    full = gaussian(q, q, random)
    singular = full.clone()
    singular[:, q // 2 :] = singular[:, : q - q // 2]
    return torch.stack([full.triu(), full.triu() * graded, singular, torch.zeros(q, q), 1e-290 * full, 1e290 * full])


@pytest.mark.parametrize("q", [1, 2, 5, 16, 17, 33])
def test_jacobi(rsvd, q):
    R = triangles(q, torch.Generator().manual_seed(q))[: 2 if q > 32 else 6]
    U, S, V = rsvd.jacobi(R)
    assert orthonormality(U, V) <= 1e-13
    expected = torch.linalg.svdvals(R)
    assert (S.diff() <= 0).all()
    assert ((S - expected).abs() <= 1e-13 * expected[:, :1]).all()
    size = R.abs().amax((1, 2), keepdim=True)
    by = torch.where(size > 0, size, 1.0)
    assert ((U * (S[:, None] / by)) @ V.mT - R / by).abs().amax() <= 1e-13 * q
    R[0, 0, q - 1] = NAN
    again = rsvd.jacobi(R, schedule=3, in_shared=False)
    assert all(torch.isnan(x[0]).all() for x in again)
    assert all(torch.equal(x[1:], y[1:]) for x, y in zip(again, (U, S, V)))


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 130, 3), (65, 40, 33), (20, 20, 0)])
@pytest.mark.parametrize("layout", ["contiguous", "columns first"])
def test_residual(rsvd, shape, dtype, layout):
    m, n, k = shape
    random = torch.Generator().manual_seed(m)
    real = F64 if dtype == F64 else F32
    A = lay_out(torch.randn(3, m, n, generator=random, dtype=F64).to(dtype), layout)
    U, S, Vh = (torch.randn(3, *x, generator=random, dtype=F64).to(real) for x in ((m, k), (k,), (k, n)))
    Vh = Vh.mT.contiguous().mT  # strides of a transpose
    needed = torch.tensor([True, False, True])
    A[1] = NAN  # never looked at
    got = rsvd.residual(A, U, S, Vh, needed)
    expected = (A.double() - (U.double() * S.double()[:, None]) @ Vh.double()).square().sum((1, 2))
    expected[1] = 0.0
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert torch.equal(got[:1], rsvd.residual(A[:1], U[:1], S[:1], Vh[:1], needed[:1], schedule=4))
