"""Where the randomness of rsvd comes from: (seed, element) and nothing else."""

import math

import numpy as np
import pytest
import torch
from rsvd_samples import FAMILIES, SHAPES, family, matrix

import artent_ext

sketch = torch.ops.artent.rsvd_sketch


def _philox(key, counter):
    """Philox4x32-10 on arrays of 32-bit words held in uint64, after Salmon et al. (SC 2011)."""
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)
    x = [np.asarray(word, dtype=np.uint64) for word in counter]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        x = [(b >> np.uint64(32)) ^ x[1] ^ k0, b & low, (a >> np.uint64(32)) ^ x[3] ^ k1, a & low]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return x


def _normals(seed, rows, cols):
    """The sketch in float64 numpy: Box and Muller on words 0, 1 and 2, 3 of the counter (row/4, column)."""
    block, column = np.meshgrid(np.arange(rows // 4 + 1), np.arange(cols), indexing="ij")
    words = _philox(seed % 2**64, (block, np.zeros_like(block), column, np.zeros_like(block)))
    u, v = ([((words[i + j] >> np.uint64(9)).astype(float) + 0.5) / 2**23 for i in (0, 2)] for j in (0, 1))
    out = [np.sqrt(-2 * np.log(u[p])) * f(2 * np.pi * v[p]) for p in (0, 1) for f in (np.cos, np.sin)]
    return torch.from_numpy(np.stack(out, 1).reshape(-1, cols)[:rows])


def test_philox_is_the_published_generator():
    """Random123's known answers."""
    words = [int(x) for x in _philox(0, [0, 0, 0, 0])]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = [int(x) for x in _philox(2**64 - 1, [0xFFFFFFFF] * 4)]
    assert ones == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
def test_the_sketch_is_philox_normals(seed):
    ours = sketch(torch.tensor([seed]), 37, 11, torch.float64)[0]
    torch.testing.assert_close(ours, _normals(seed, 37, 11), rtol=1e-4, atol=2e-6)
    assert torch.equal(sketch(torch.tensor([7, seed]), 37, 11, torch.float32)[1].double(), ours)
    assert torch.equal(sketch(torch.tensor([seed]), 13, 5, torch.float64)[0], ours[:13, :5])


def test_the_sketch_is_standard_normal():
    x = sketch(torch.arange(4), 1000, 50, torch.float64).flatten()
    n = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(x.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    inner = sketch(torch.arange(2), 1000, 50, torch.float64).reshape(2, -1)
    assert abs((inner[0] * inner[1]).mean()) < 5 / math.sqrt(inner.shape[1])  # seeds are independent


def _equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_global_state_is_neither_read_nor_written():
    A = family("slow", "tall")
    calls = [lambda: artent_ext.rsvd(A, 4), lambda: artent_ext.rsvd(A, tol=0.1), lambda: artent_ext.svd_lowrank(A, 4)]
    for call in calls:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = call()
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(2)
        assert _equal(first, call())


@pytest.mark.parametrize("shape", [(1, 700, 300), (3, 300, 90), (8, 40, 50), (7, 128, 128)], ids=str)
def test_the_number_of_threads_does_not_matter(shape, dtype):
    A = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(artent_ext.rsvd(A, 12))
    finally:
        torch.set_num_threads(before)
    assert _equal(results[0], results[1])
    assert _equal(results[0], results[2])


@pytest.mark.parametrize("shape", SHAPES)
def test_alone_as_in_a_batch(shape, dtype):
    A = torch.stack([family(name, shape) for name in FAMILIES]).to(dtype)
    seeds = torch.arange(10, 10 + len(A))
    shared, each = artent_ext.rsvd(A, 6), artent_ext.rsvd(A, 6, seed=seeds)
    for b, seed in enumerate(seeds):
        assert _equal([x[b] for x in shared], artent_ext.rsvd(A[b], 6))
        assert _equal([x[b] for x in each], artent_ext.rsvd(A[b], 6, seed=int(seed)))
        assert _equal([x[b] for x in each], artent_ext.rsvd(A[b], 6, seed=seed))
    some = artent_ext.rsvd(A[2:5], 6)
    assert _equal([x[2:5] for x in shared], some)


def test_a_seed_of_fewer_dimensions_is_broadcast():
    A = torch.randn(2, 3, 20, 15)
    result = artent_ext.rsvd(A, 3, seed=torch.tensor([5, 6, 7], dtype=torch.int32))
    for i in range(2):
        for j in range(3):
            assert _equal([x[i, j] for x in result], artent_ext.rsvd(A[i, j], 3, seed=5 + j))


def test_another_seed_is_another_sketch():
    """On a flat spectrum a sketch finds a subspace of its own; what it captures is nearly the same."""
    A = matrix(torch.ones(100), 100, 100)
    one, two = (artent_ext.rsvd(A, 5, oversample=0, power_iters=0, seed=seed) for seed in (0, 1))
    overlap = torch.linalg.svdvals(one.U.mT @ two.U)
    assert overlap.max() < 0.7
    decaying = matrix(1 / (1.0 + torch.arange(100)), 100, 100)
    one, two = (artent_ext.rsvd(decaying, 5, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.U, two.U)
    torch.testing.assert_close(one.S, two.S, rtol=1e-2, atol=0)
    torch.testing.assert_close(one.U @ one.U.mT, two.U @ two.U.mT, rtol=0, atol=1e-2)
