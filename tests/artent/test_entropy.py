from math import inf, log, nan

import numpy as np
import pytest
import torch
from artent.entropy import certificate, entropy, purity, renyi, von_neumann

ALPHAS = [0.1, 0.5, 0.9, 1 - 1e-9, 1.0, 1 + 1e-9, 1.2, 2.0, 7.5, 400.0, inf]


def reference(p, alpha):
    """S_α of one distribution with extended-precision sums, by the textbook formula."""
    p = np.asarray(p, dtype=np.longdouble)
    p = p[p > 0]
    if abs(alpha - 1) < 1e-6:  # S_α is differentiable at one: this close they agree to 1e-5
        return float(-(p * np.log(p)).sum())
    top = p.max()
    if alpha == inf:
        return float(-np.log(top))
    return float((np.log(((p / top) ** alpha).sum()) + alpha * np.log(top)) / (1 - alpha))


def distributions():
    generator = torch.Generator().manual_seed(0)
    for k in (1, 2, 5, 64):
        w = torch.rand(k, generator=generator, dtype=torch.float64)
        yield w / w.sum()
        yield torch.eye(k, dtype=torch.float64)[0]
        w = torch.exp(-3 * torch.arange(k, dtype=torch.float64))
        yield w / w.sum()
        yield torch.full((k,), 1 / k, dtype=torch.float64)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_renyi_family(alpha):
    for p in distributions():
        assert renyi(p, alpha).item() == pytest.approx(reference(p, alpha), abs=1e-7)


def test_uniform_has_the_same_entropy_at_every_order_and_in_every_unit():
    p = torch.full((3, 16), 1 / 16, dtype=torch.float64)
    for alpha in ALPHAS:
        torch.testing.assert_close(entropy(p, alpha, log_base=2), torch.full((3,), 4.0, dtype=torch.float64))


def test_purity_is_the_second_order():
    p = next(iter(distributions()))
    assert purity(p).item() == pytest.approx(np.exp(-renyi(p, 2).item()))


@pytest.mark.parametrize("alpha", [0.7, 1.0, 1.3, 2.0, 5.0, inf])
def test_gradients(alpha):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q: renyi(q, alpha), p)
    corner = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(renyi(corner, alpha), corner)
    assert gradient.isfinite().all()


def test_von_neumann_takes_p_as_it_stands():
    p = torch.tensor([0.25, 0.25], dtype=torch.float64)
    assert von_neumann(p).item() == pytest.approx(0.5 * log(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, inf])
def test_certificates_hold_whatever_the_range_finder(alpha, dtype):
    """Any orthonormal Q inside the range: good, useless, complete; the truth lies between the bounds."""
    generator = torch.Generator().manual_seed(1)
    for trial in range(60):
        m, n = (24, 16) if trial % 2 else (16, 24)
        decay = torch.exp(-torch.arange(16, dtype=torch.float64) * (trial % 6) / 3)
        U = torch.linalg.qr(torch.randn(m, 16, generator=generator, dtype=torch.float64)).Q
        V = torch.linalg.qr(torch.randn(n, 16, generator=generator, dtype=torch.float64)).Q
        A = (U * decay) @ V.mT
        truth = reference((torch.linalg.svdvals(A) / A.norm()).square().numpy(), alpha)
        k = 1 + trial % 16
        sketch = torch.randn(n, k, generator=generator, dtype=torch.float64)
        Q = torch.linalg.qr(A @ (A.mT @ (A @ sketch)) if trial % 3 else A @ sketch).Q.to(dtype)
        A = A.to(dtype)
        p = (torch.linalg.svdvals(Q.mT @ A) / A.norm()).square()
        tail = ((A - Q @ (Q.mT @ A)).norm() / A.norm()).square()
        # Powers of a decaying A lose their last directions to rounding: there Q leaves the range.
        lower, upper = certificate(p, tail, k + min(m - k, n) if trial % 3 else 16, alpha)
        assert lower <= truth <= upper


def test_certificates_of_batches_and_their_rounding_term():
    p = torch.tensor([[0.6, 0.3], [0.9, 0.05]], dtype=torch.float64)
    tail = 1 - p.sum(-1)
    lower, upper = certificate(p, tail, 10, rounding=0.0)
    assert lower[0] == pytest.approx(reference([0.7, 0.3], 1))
    assert upper[1] == pytest.approx(reference([0.9, 0.05] + [0.05 / 8] * 8, 1))
    wide = certificate(p, tail, 10, rounding=0.01)
    assert (wide[0] < lower).all()
    assert (wide[1] > upper).all()
    assert wide[1][0] == pytest.approx(reference([0.59, 0.3] + [0.11 / 8] * 8, 1))
    assert wide[0][0] == pytest.approx(reference([0.71, 0.29], 1))
    nothing = certificate(p, tail, 10, rounding=1.0)  # a term that allows every spectrum
    torch.testing.assert_close(nothing[0], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(nothing[1], torch.full((2,), log(10), dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, inf])
def test_certificates_hold_for_any_lower_bounds_and_are_attained(alpha):
    generator = torch.Generator().manual_seed(2)
    for trial in range(200):
        dim = 1 + trial % 12
        k = 1 + trial % dim
        w = torch.rand(dim, generator=generator, dtype=torch.float64) ** (1 + trial % 5)
        truth = (w / w.sum()).sort(descending=True).values
        p = (truth[:k] * torch.rand(k, generator=generator, dtype=torch.float64)).sort(descending=True).values
        tail = 1 - p.sum()
        lower, upper = certificate(p, tail, dim, alpha)
        assert lower <= reference(truth, alpha) <= upper
        # The flattest spectrum above p, by the water level that bisection finds.
        low, high, padded = 0.0, 1.0, torch.cat([p, p.new_zeros(dim - k)])
        for _ in range(60):
            level = (low + high) / 2
            low, high = (level, high) if padded.clamp(min=level).sum() < 1 else (low, level)
        assert upper == pytest.approx(reference(padded.clamp(min=low), alpha), abs=1e-6)
        assert lower == pytest.approx(reference(torch.cat([p[:1] + tail, p[1:]]), alpha), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: renyi(p, 0), ValueError, "alpha: a Rényi order is > 0"),
        (lambda p: renyi(p, nan), ValueError, "alpha"),
        (lambda p: renyi(p, "2"), TypeError, "alpha"),
        (lambda p: entropy(p, log_base=1), ValueError, "log_base"),
        (lambda p: entropy(p, log_base="e"), TypeError, "log_base"),
        (lambda p: certificate(p, p[0], 1), ValueError, "p: expected between 1 and dim = 1"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.tensor([0.5, 0.5]))
