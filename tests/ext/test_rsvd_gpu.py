"""rsvd on CUDA against float64 truth and against the CPU, which draws the same normals. Needs a GPU: run by
scripts/gpu.sh. The kernels themselves are tested without one: tests/simt/test_rsvd_kernel.py."""

from contextlib import contextmanager

import pytest
import torch
from rsvd_samples import FAMILIES, departure, matrix, spectral_error

import artent_ext

pytestmark = pytest.mark.gpu
ops = torch.ops.artent

SHAPES = {  # batch, m, n, rank; the oversampling is 8
    "fused": (5, 96, 64, 8),
    "fused, wide": (3, 40, 200, 16),
    "fused, full sketch": (2, 30, 30, 30),
    "fused, largest": (2, 512, 512, 56),
    "fused, narrow": (2, 512, 3, 3),
    "one row": (4, 1, 300, 1),
    "parts, tall": (2, 1500, 130, 20),
    "parts, wide": (1, 200, 3000, 40),
    "parts, wide sketch": (1, 600, 500, 150),
    "parts, very wide sketch": (1, 700, 600, 240),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


def _batch(family, batch, m, n):
    return torch.stack([matrix(FAMILIES[family](min(m, n)), m, n, seed=b) for b in range(batch)])


def _check(A, U, S, Vh, residual):
    """What any truncated SVD satisfies; A as the kernel read it, on the CPU in float64."""
    double = U.dtype == torch.float64
    assert departure(U) <= (1e-12 if double else 1e-5)
    assert departure(Vh.mT) <= (1e-12 if double else 1e-5)
    assert (S >= 0).all()
    assert (S.diff() <= 0).all()
    true = (A - (U.double() * S.double()[:, None]) @ Vh.double()).square().sum((1, 2))
    unit = (1e-13 if double else 3e-6) * A.square().sum((1, 2))
    assert (residual >= 0).all()
    assert ((residual - true).abs() <= unit).all()


@pytest.mark.parametrize("family", ["fast", "step", "flat", "exact low rank", "condition 1e12", "zero"])
def test_every_family(shape, family, dtype):
    batch, m, n, rank = shape
    A = _batch(family, batch, m, n).to(dtype)
    got = [x.cpu() for x in ops.rsvd(A.cuda(), rank, 8, 2, torch.tensor([3], device="cuda"))]
    A = A.double()
    _check(A, *got)
    values = torch.linalg.svdvals(A)
    optimal = values[:, rank] if rank < min(m, n) else 0.0
    rounding = (1e-12 if dtype == torch.float64 else 1e-5) * values[:, 0]
    assert (spectral_error(A, *got[:3]) <= 1.2 * optimal + rounding).all()


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_strides(shape, layout):
    batch, m, n, rank = shape
    A = _batch("fast", batch, m, n).float().cuda()
    seed = torch.arange(batch, device="cuda")
    other = A.mT.contiguous().mT
    if layout == "strided":
        other = torch.full((batch, 2 * m, 3 * n), float("nan"), device="cuda")[:, ::2, ::3].copy_(A)
    got, expected = (ops.rsvd(x, rank, 8, 2, seed) for x in (other, A))
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-6)
    _check(A.cpu().double(), *(x.cpu() for x in got))


def test_the_same_on_the_cpu(shape):
    """In float64 with the same seeds: the same subspace to rounding."""
    batch, m, n, rank = shape
    A = _batch("slow", batch, m, n)
    cpu, cuda = (artent_ext.rsvd(x, rank, seed=torch.arange(batch)) for x in (A, A.cuda()))
    torch.testing.assert_close(cuda.S.cpu(), cpu.S, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cuda.residual.cpu(), cpu.residual, rtol=1e-8, atol=1e-14)
    low_rank = [(x.U * x.S[:, None]) @ x.Vh for x in (cpu, cuda)]
    torch.testing.assert_close(low_rank[1].cpu(), low_rank[0], rtol=0, atol=1e-8)


def test_alone_as_in_a_batch_and_again():
    A = torch.randn(300, 70, 50, device="cuda")
    seed = torch.arange(300, device="cuda")
    first, again = ops.rsvd(A, 9, 8, 2, seed), ops.rsvd(A, 9, 8, 2, seed)
    alone = ops.rsvd(A[123:124].clone(), 9, 8, 2, seed[123:124])
    assert all(torch.equal(x, y) for x, y in zip(first, again))
    assert all(torch.equal(x[123], y[0]) for x, y in zip(first, alone))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_matrix(shape, bad):
    _, m, n, rank = shape
    A = _batch("fast", 3, m, n).float().cuda()
    seed = torch.tensor([0], device="cuda")
    expected = ops.rsvd(A, rank, 8, 2, seed)
    A[1, m // 2, n // 2] = bad
    got = ops.rsvd(A, rank, 8, 2, seed)
    assert all(torch.isnan(x[1]).all() for x in got)
    for x, y in zip(got, expected):
        torch.testing.assert_close(x[::2].abs(), y[::2].abs(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="1"):
        artent_ext.rsvd(A, rank, check_finite=True)


@contextmanager
def _no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device(shape):
    batch, m, n, rank = shape
    A = _batch("fast", batch, m, n).float().cuda()
    seed = torch.tensor([0], device="cuda")
    ops.rsvd(A, rank, 8, 2, seed)  # libraries set themselves up
    with _no_waiting():
        ops.rsvd(A, rank, 8, 2, seed)


def test_in_a_graph(shape):
    batch, m, n, rank = shape
    A, B = (_batch(name, batch, m, n).float().cuda() for name in ("fast", "slow"))
    seed = torch.tensor([0], device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops.rsvd(A, rank, 8, 2, seed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.rsvd(A, rank, 8, 2, seed)
    A.copy_(B)
    graph.replay()
    torch.testing.assert_close(out[1], ops.rsvd(B, rank, 8, 2, seed)[1], rtol=1e-5, atol=1e-6)


def test_runs_on_the_current_stream(shape):
    """The input is written late on a side stream; a launch on another stream would read what was there before."""
    batch, m, n, rank = shape
    value = _batch("slow", batch, m, n).float().cuda()
    seed = torch.tensor([0], device="cuda")
    expected = ops.rsvd(value, rank, 8, 2, seed)[1]
    A = torch.zeros_like(value)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s of clock cycles
        A.copy_(value)
        got = ops.rsvd(A, rank, 8, 2, seed)[1]
    stream.synchronize()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_parts_as_on_the_cpu(kind):
    seed = torch.tensor([7, -3])
    sketch = ops.rsvd_sketch(seed, 1000, 33, kind)
    torch.testing.assert_close(ops.rsvd_sketch(seed.cuda(), 1000, 33, kind).cpu(), sketch, rtol=1e-5, atol=1e-6)
    equal = torch.cat([sketch, sketch[..., :5], torch.zeros_like(sketch[..., :2])], -1)
    for Y in (sketch, equal):
        Q, R = ops.rsvd_orthonormalise(Y.cuda(), 0, seed.cuda())
        assert departure(Q.cpu()) <= (1e-12 if kind == torch.float64 else 1e-5)
        size = Y.double().norm(dim=1, keepdim=True)
        assert ((Q.double() @ R - Y.cuda().double()).cpu().abs() <= 64 * torch.finfo(kind).eps * size).all()


@pytest.mark.parametrize("q", [1, 30, 96, 97, 200])
def test_jacobi(q):
    generator = torch.Generator().manual_seed(q)
    R = torch.randn(3, q, q, generator=generator, dtype=torch.float64).triu()
    R[1] = 0
    R[2, :, q // 2 :] = R[2, :, : q - q // 2]
    U, S, V = (x.cpu() for x in ops.rsvd_jacobi(R.cuda()))
    assert departure(U) <= 1e-12
    assert departure(V) <= 1e-12
    expected = torch.linalg.svdvals(R)
    assert ((S - expected).abs() <= 1e-13 * (1 + expected[:, :1])).all()
    assert ((U * S[:, None]) @ V.mT - R).abs().max() <= 1e-13 * (1 + expected.max())


def test_opcheck():
    A, seed = torch.randn(2, 40, 30, device="cuda"), torch.tensor([0], device="cuda")
    torch.library.opcheck(ops.rsvd_small.default, (A, 5, 8, 2, seed))
    torch.library.opcheck(ops.rsvd_sketch.default, (seed, 20, 4, torch.float32))
    torch.library.opcheck(ops.rsvd_orthonormalise.default, (A, 0, seed))
    torch.library.opcheck(ops.rsvd_jacobi.default, (A[:, :30].double(),))
    U, S, Vh, _ = ops.rsvd(A, 5, 8, 2, seed)
    needed = torch.tensor([True, False], device="cuda")
    torch.library.opcheck(ops.rsvd_residual.default, (A, U, S, Vh, needed))
