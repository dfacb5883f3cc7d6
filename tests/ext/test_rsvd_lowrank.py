"""svd_lowrank in the place of torch.svd_lowrank: what torch's own tests ask of it, and what it promises beside."""

import inspect

import pytest
import torch
from rsvd_samples import FAMILIES, family, spectral_error

import artent_ext
from artent_ext import svd_lowrank

# torch's cases: rank of the input, its size, batches (both orientations are run).
BATCHES = [(), (1,), (3,), (2, 3)]
CASES = [
    (2, (17, 4), BATCHES),
    (4, (17, 4), BATCHES),
    (4, (17, 17), BATCHES),
    (10, (100, 40), BATCHES),
    (7, (1000, 1000), [()]),
]


def _check_like_torch(function, actual_rank, shape, batch):
    rows, columns = shape
    generator = torch.Generator().manual_seed(rows + columns)
    left, right = (
        torch.randn(*batch, *size, generator=generator, dtype=torch.float64)
        for size in ((rows, actual_rank), (actual_rank, columns))
    )
    A = left @ right
    u, s, v = function(A, q=min(shape), niter=3)
    torch.testing.assert_close((u * s[..., None, :]) @ v.mT, A, rtol=1e-7, atol=2e-7)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    torch.testing.assert_close(s, S, rtol=5e-7, atol=1e-7)
    for ours, truth in ((u, U), (v, Vh.mT)):  # the same subspaces
        overlap = (ours[..., :actual_rank].mT @ truth[..., :actual_rank]).det().abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap))


@pytest.mark.parametrize(("actual_rank", "shape", "batches"), CASES, ids=str)
def test_exact_low_rank(actual_rank, shape, batches):
    for batch in batches:
        for size in {shape, shape[::-1]}:
            if max(shape) > 500:  # a full sketch of 1000 columns is no low-rank computation: q well above the rank
                _check_like_torch(lambda A, q, niter: _pad(svd_lowrank(A, 20, niter), q), actual_rank, size, batch)
            else:
                _check_like_torch(svd_lowrank, actual_rank, size, batch)


def _pad(factors, q):
    pad = torch.nn.functional.pad
    U, S, V = factors
    return pad(U, (0, q - U.shape[-1])), pad(S, (0, q - S.shape[-1])), pad(V, (0, q - V.shape[-1]))


def test_it_can_be_scripted():
    _check_like_torch(torch.jit.script(svd_lowrank), 2, (17, 4), ())


def _torchs_samples():
    """torch's samples for gradients: products of (m, 2) and (2, n) factors, with and without M, a batch or none."""
    for batch in ((), (2,)):
        for m in (3, 4):
            for n in (3, 4):
                for with_M in (False, True):
                    yield batch, m, n, with_M


@pytest.mark.parametrize(("batch", "m", "n", "with_M"), _torchs_samples())
def test_first_and_second_derivatives(batch, m, n, with_M):
    generator = torch.Generator().manual_seed(m * n)
    make = lambda *size: torch.randn(  # noqa: E731
        *batch, *size, generator=generator, dtype=torch.float64, requires_grad=True
    )
    inputs = (make(m, 2), make(n, 2), *((make(m, n),) if with_M else ()))

    def function(a, b, M=None):
        U, S, V = svd_lowrank(a @ b.mT, q=2, M=M)
        return U @ V.mT, S

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_the_signature_is_torchs():
    ours, torchs = (inspect.signature(f).parameters for f in (svd_lowrank, torch.svd_lowrank))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in torchs.values()]


@pytest.mark.parametrize("q", [0, 1, 3, 5, 6, 9, None, True])
@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 0, 4, 3), (0, 4), (2, 3, 40, 6)], ids=str)
def test_shapes_are_torchs(q, shape):
    A = torch.randn(shape)
    assert [x.shape for x in svd_lowrank(A, q)] == [x.shape for x in torch.svd_lowrank(A, q)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"A": torch.randn(6, 4), "q": -1},
        {"A": torch.randn(6, 4), "q": 2.5},
        {"A": torch.randn(4)},
        {"A": torch.randn(6, 4), "M": torch.randn(5, 4)},
        {"A": torch.randn(6, 4), "M": torch.randn(2, 6, 4)},
        {"A": torch.randn(6, 4), "M": torch.randn(6, 4, dtype=torch.float64)},
        {"A": torch.ones(6, 4, dtype=torch.int64)},
        {"A": torch.randn(6, 4), "M": torch.randn(6, 4).to_sparse()},
    ],
)
def test_errors_are_torchs(arguments):
    with pytest.raises(Exception) as torchs:
        torch.svd_lowrank(**arguments)
    with pytest.raises(torchs.type):
        svd_lowrank(**arguments)


def test_errors_of_its_own():
    with pytest.raises(TypeError, match=r"A must be a torch\.Tensor, got list"):
        svd_lowrank([[1.0]])
    with pytest.raises(TypeError, match=r"M must be a torch\.Tensor, got float"):
        svd_lowrank(torch.ones(4, 3), M=1.0)
    with pytest.raises(
        ValueError, match=r"NaN or Inf in matrix 1 .*artent_ext\.rsvd\(.*check_finite=False\) gives NaN"
    ):
        svd_lowrank(torch.stack([torch.ones(20, 30), torch.full((20, 30), torch.nan)]))
    with pytest.raises(TypeError, match="niter must be an integer, got float"):
        svd_lowrank(torch.ones(4, 3), niter=1.5)


@pytest.mark.parametrize("niter", [None, -1, 0, 2])
def test_q_is_the_width_of_the_sketch_and_niter_the_power_iterations(niter):
    A = family("slow", "wide").float()
    power_iters = {None: 2, -1: 0}.get(niter, niter)
    U, S, Vh = artent_ext.rsvd(A, 7, oversample=0, power_iters=power_iters)[:3]
    assert all(torch.equal(x, y) for x, y in zip(svd_lowrank(A, 7, niter), (U, S, Vh.mT), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mean_is_subtracted(name, dtype):
    A = family(name, "tall", (2,)).to(dtype)
    M = A.mean(-2, keepdim=True) + 1
    ours, plain = svd_lowrank(A, 8, M=M), svd_lowrank(A - M.expand_as(A), 8)
    assert all(torch.equal(x, y) for x, y in zip(ours, plain, strict=True))
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    error, best = spectral_error(A - M, ours[0], ours[1], ours[2].mT), torch.linalg.svdvals((A - M).double())
    assert (error <= 1.2 * best[:, 8] + 1e-6 * best[:, 0]).all()


@pytest.mark.parametrize("kind", ["sparse A", "sparse A and M", "complex"])
def test_sparse_and_complex_go_to_torch(kind):
    A = torch.randn(30, 4, dtype=torch.complex128 if kind == "complex" else torch.float64)
    A = A @ A.mT[:, :20]
    given = A if kind == "complex" else A.to_sparse()
    M = A.mean(0, keepdim=True).expand_as(A) if "M" in kind else None
    U, S, V = svd_lowrank(given, 6, M=M)
    torch.testing.assert_close((U * S) @ V.mH, A - (0 if M is None else M))
