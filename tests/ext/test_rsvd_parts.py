"""The parts that rsvd is made of, each against what it promises: csrc/rsvd/rsvd.h."""

import pytest
import torch
from rsvd_samples import departure, matrix

import artent_ext  # noqa: F401 (registers the ops)

ops = torch.ops.artent
SEED = torch.tensor([0])


def _columns(*values, rows=40):
    return matrix(torch.tensor(values, dtype=torch.float64), rows, len(values))


def _with_zero_columns():
    Y = _columns(1.0, 0.5, 0.2, 0.1, 0.05)
    return torch.cat([Y[:, :2], torch.zeros(40, 2, dtype=torch.float64), Y[:, 2:]], 1)


HARD = {
    "well conditioned": _columns(3.0, 2.0, 1.0),
    "graded columns": _columns(*[1.0] * 6) * 10.0 ** -torch.arange(0, 18, 3),
    "ill conditioned": _columns(*(10.0**-e for e in range(0, 16, 2))),
    "equal columns": _columns(1.0, 0.5)[:, [0, 1, 0, 0, 1]],
    "zero columns": _with_zero_columns(),
    "zero": torch.zeros(40, 6, dtype=torch.float64),
    "tiny": _columns(3.0, 2.0, 1.0) * 1e-30,
    "huge": _columns(3.0, 2.0, 1.0) * 1e30,
    "square": _columns(3.0, 2.0, 1.0, 0.0, rows=4),
    "one column": _columns(2.0),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_orthonormalise(name, kind):
    Y = torch.stack([HARD[name], HARD[name].roll(1, 0)]).to(kind)
    Q, R = ops.rsvd_orthonormalise(Y, 0, SEED)
    assert (Q.dtype, R.dtype) == (kind, torch.float64)
    assert departure(Q) <= (1e-12 if kind == torch.float64 else 1e-5)
    assert not R.tril(-1).any()
    size = Y.double().norm(dim=1, keepdim=True)  # each column to its own scale
    assert ((Q.double() @ R - Y.double()).abs() <= 64 * torch.finfo(kind).eps * size).all()


@pytest.mark.parametrize("rounds", [1, 2])
def test_fixed_rounds_keep_the_span(rounds):
    Y = torch.stack([HARD["graded columns"], HARD["graded columns"]])
    Q, R = ops.rsvd_orthonormalise(Y, rounds, SEED)
    torch.testing.assert_close(Q @ R, Y, rtol=1e-10, atol=0)
    assert departure(Q) <= 1e-10


def test_strided_input_and_a_seed_each():
    Y = torch.randn(3, 5, 20, dtype=torch.float64).mT
    seeds = torch.arange(3)
    Q, R = ops.rsvd_orthonormalise(Y, 0, seeds)
    torch.testing.assert_close(Q @ R, Y)
    zero = ops.rsvd_orthonormalise(torch.zeros(3, 20, 5), 0, seeds)[0]
    assert not torch.equal(zero[0], zero[1])
    assert torch.equal(zero[1], ops.rsvd_orthonormalise(torch.zeros(1, 20, 5), 0, seeds[1:2])[0][0])


# As they are, transposed, and what is left by a QR: upper triangular, as in the algorithm.
MATRICES = {
    "random": matrix(1.0 + torch.arange(9), 9, 9),
    "singular": matrix(torch.tensor([2.0, 1, 0.5, 0, 0, 0]), 6, 6),
    "graded": matrix(10.0 ** -torch.arange(0.0, 12.0, 1.5), 8, 8),
    "equal values": matrix(torch.ones(7), 7, 7),
    "all equal": torch.ones(6, 6, dtype=torch.float64),
    "rank one triangle": torch.ones(6, 1, dtype=torch.float64) * torch.arange(1.0, 7.0) * torch.eye(6)[:1].mT,
    "zero": torch.zeros(5, 5, dtype=torch.float64),
    "diagonal": torch.diag(torch.tensor([1.0, 3.0, -2.0, 0.0], dtype=torch.float64)),
    "one by one": -torch.ones(1, 1, dtype=torch.float64),
    "large": matrix(0.9 ** torch.arange(70.0), 70, 70),
    "left to LAPACK": matrix(0.9 ** torch.arange(200.0), 200, 200),
    "tiny": matrix(torch.tensor([3.0, 2, 1]), 3, 3) * 1e-100,
}


@pytest.mark.parametrize("name", MATRICES)
def test_jacobi(name):
    given = MATRICES[name]
    R = torch.stack([given, given.mT, torch.linalg.qr(given).R])
    U, S, V = ops.rsvd_jacobi(R)
    truth = torch.linalg.svdvals(R)
    assert departure(U) <= 1e-13
    assert departure(V) <= 1e-13
    assert (S.diff(dim=-1) <= 0).all()
    assert (S >= 0).all()
    rounding = 4 * R.shape[-1] * torch.finfo(R.dtype).eps * truth.max().item()
    torch.testing.assert_close(S, truth, rtol=0, atol=rounding)
    torch.testing.assert_close((U * S[:, None, :]) @ V.mT, R, rtol=0, atol=rounding)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)], ids=str)
def test_residual(shape, dtype):
    """Explicit to its last digits: here 1e-12 of ‖A‖², where a difference of float32 norms would be noise."""
    A = torch.stack([matrix(0.5 ** torch.arange(20.0), *shape)] * 3).to(dtype)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    U, S, Vh = (x.to(working) for x in torch.linalg.svd(A.double(), full_matrices=False))
    needed = torch.tensor([True, False, True])
    ours = ops.rsvd_residual(A, U[..., :16], S[..., :16], Vh[:, :16], needed)
    approximation = (U[..., :16].double() * S[:, None, :16].double()) @ Vh[:, :16].double()
    truth = (A.double() - approximation).square().sum((1, 2))
    assert ours.dtype == torch.float64
    assert ours[1] == 0
    torch.testing.assert_close(ours[::2], truth[::2], rtol=1e-6, atol=0)
