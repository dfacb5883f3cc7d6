"""Gradients of rsvd: finite differences, the derivative of a full SVD, and where no SVD has one."""

import pytest
import torch
from rsvd_samples import FAMILIES, matrix

import artent_ext

LOSSES = {  # each is the same for every choice of signs
    "S": lambda r: r.S,
    "residual": lambda r: r.residual,
    "U": lambda r: r.U.square(),
    "Vh": lambda r: r.Vh[..., :1] * r.Vh,
    "approximation": lambda r: (r.U * r.S[..., None, :]) @ r.Vh,
    "polar factor": lambda r: r.U @ r.Vh,
    "all": lambda r: (r.U.square() * r.S[..., None, :]) @ r.Vh.square() * (1 + r.residual[..., None, None]),
}


def _spectrum(*values, n):
    return torch.tensor([*values, *[0.0] * (n - len(values))], dtype=torch.float64)


# Converged subspaces: name → (A, rank, power_iters).
CASES = {
    "fast decay": (matrix(0.3 ** torch.arange(9.0), 12, 9), 3, 6),
    "wide": (matrix(0.3 ** torch.arange(9.0), 9, 14), 4, 6),
    "large remainder": (matrix(torch.cat([torch.tensor([4.0, 3, 2]), torch.linspace(1.4, 0.7, 17)]), 30, 20), 3, 60),
    "exact low rank": (matrix(_spectrum(3, 2, 1, n=8), 10, 8), 3, 2),
    "all of a tall one": (matrix(1.0 + torch.arange(6), 10, 6), 6, 2),
    "all of a wide one": (matrix(1.0 + torch.arange(6), 6, 10), 6, 2),
    "all of a square one": (matrix(1.0 + torch.arange(6), 6, 6), 6, 2),
    "batch": (matrix(0.3 ** torch.arange(7.0), 8, 7, (2, 2)), 2, 6),
    "a column": (matrix(torch.ones(1), 7, 1), 1, 2),
}


def _weighed(x):
    return (x * torch.arange(x.numel(), dtype=torch.float64).cos().view(x.shape)).sum()


def _loss(name, rank, power_iters):
    return lambda A: LOSSES[name](artent_ext.rsvd(A, rank, power_iters=power_iters))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("A", "rank", "power_iters"), CASES.values(), ids=CASES)
def test_gradcheck(A, rank, power_iters, loss):
    A, function = A.clone().requires_grad_(), _loss(loss, rank, power_iters)
    assert torch.autograd.gradcheck(function, (A,), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (A,), fast_mode=True)


@pytest.mark.parametrize("loss", ["S", "U", "polar factor", "all"])
def test_gradients_are_those_of_a_full_svd_cut_off(loss, dtype):
    """torch.linalg.svd's derivative knows the remainder through its other triplets; ours by solving for it."""
    values, rank = 0.5 ** torch.arange(40.0), 4
    A = matrix(values, 60, 40, (2,)).to(dtype).requires_grad_()
    _weighed(LOSSES[loss](artent_ext.rsvd(A, rank, power_iters=8))).backward()
    truth = A.detach().double().requires_grad_()
    U, S, Vh = torch.linalg.svd(truth, full_matrices=False)
    residual = S[..., rank:].square().sum(-1)
    kept = artent_ext.RSVD(U[..., :rank], S[..., :rank], Vh[..., :rank, :], residual, None)
    _weighed(LOSSES[loss](kept)).backward()
    assert A.grad.dtype == dtype
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    gap = (values[rank - 1] - values[rank]).item()
    scale = truth.grad.abs().max().item()
    # Vectors are known to eps/gap, which the derivative divides by the gap once more; then one rounding to A's dtype.
    tolerance = 64 * eps / gap**2 * scale + torch.finfo(dtype).eps * scale
    torch.testing.assert_close(A.grad.double(), truth.grad, rtol=0, atol=tolerance)


def test_gradient_of_a_tolerance():
    A = matrix(0.3 ** torch.arange(9.0), 12, 9).requires_grad_()

    def function(A):
        result = artent_ext.rsvd(A, tol=0.02)
        assert result.ranks == 4
        return (result.U * result.S) @ result.Vh, result.residual

    assert torch.autograd.gradcheck(function, (A,), fast_mode=True)


def test_gradient_through_a_growing_sketch():
    """Matrices that met the tolerance at different widths: each still gets the gradient of its own result."""
    A = torch.stack([matrix(values, 170, 160) for values in (0.5 ** torch.arange(160.0), 0.9 ** torch.arange(160.0))])
    A.requires_grad_()
    result = artent_ext.rsvd(A, tol=1e-2)
    assert result.ranks[0] < 32 < result.ranks[1]
    ((result.residual * torch.tensor([1.0, 3.0])).sum() + result.S[0].sum()).backward()
    remainder = (A - (result.U * result.S[:, None, :]) @ result.Vh).detach()
    kept = result.U[0, :, : result.ranks[0]] @ result.Vh[0, : result.ranks[0]]
    expected = torch.stack([2 * remainder[0] + kept.detach(), 6 * remainder[1]])
    torch.testing.assert_close(A.grad, expected)


@pytest.mark.parametrize("name", ["zero", "exact low rank", "repeated"])
def test_no_nan_where_vectors_are_not_determined(name):
    """S and residual need no vectors; an approximation needs a subspace only."""
    A = matrix(FAMILIES[name](20), 25, 20).requires_grad_()
    result = artent_ext.rsvd(A, 8)
    (grad,) = torch.autograd.grad(result.S.sum(), A, retain_graph=True)
    torch.testing.assert_close(grad, (result.U @ result.Vh).detach())
    (grad,) = torch.autograd.grad(result.residual, A, retain_graph=True)
    torch.testing.assert_close(grad, 2 * (A - (result.U * result.S) @ result.Vh).detach())
    (grad,) = torch.autograd.grad(((result.U * result.S) @ result.Vh).sum(), A)
    assert grad.isfinite().all()


def test_equal_singular_values_in_a_loss_that_sees_their_subspace_alone():
    A = matrix(FAMILIES["repeated"](20), 25, 20).requires_grad_()  # 4 ones, 4 halves, 4 quarters, …
    for loss in (LOSSES["polar factor"], lambda r: r.U @ r.U.mT, lambda r: r.S.square().sum()):
        assert torch.autograd.gradcheck(lambda A, f=loss: f(artent_ext.rsvd(A, 8, power_iters=12)), A, fast_mode=True)


def test_small_gradients_keep_their_digits():
    A = matrix(0.5 ** torch.arange(10.0), 12, 10).float().requires_grad_()
    loss = LOSSES["polar factor"](artent_ext.rsvd(A, 3, power_iters=6)).square().sum(-1)[0]
    (grad,) = torch.autograd.grad(loss, A, retain_graph=True)
    (small,) = torch.autograd.grad(loss * 1e-25, A)
    torch.testing.assert_close(small * 1e25, grad, rtol=1e-4, atol=1e-5)


def test_an_operator_is_not_differentiated_through():
    B = torch.randn(20, 3, requires_grad=True)
    operator = artent_ext.Operator(lambda X: B @ (B.mT @ X), lambda Y: B @ (B.mT @ Y), (20, 20))
    assert not artent_ext.rsvd(operator, 3).S.requires_grad
