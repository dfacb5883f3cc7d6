"""Profiles against the singular values of every unfolding, in float64, of the very same numbers."""

from math import inf, prod

import artent
import numpy as np
import pytest
import torch
from artent import schmidt
from entropy_reference import entropies

LIMIT = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-4, torch.float16: 1e-4}  # nats
SHAPES = [(1, 1), (1, 12), (12, 1), (7, 1), (2, 2), (8, 8), (13, 17), (12, 35), (64, 6), (6, 64), (49, 27), (48, 64)]
SPECTRA = {
    "flat": lambda k: torch.ones(k),
    "exponential": lambda k: torch.exp(-1.5 * torch.arange(k)),
    "power": lambda k: 1 / (1.0 + torch.arange(k)),
    "one dominates": lambda k: torch.cat([torch.ones(1), torch.full((k - 1,), 1e-4)]),
    "low rank": lambda k: (torch.arange(k) < max(1, k // 3)).double(),
}


def by_svdvals(W, dims):
    """Probabilities at each bond from one singular value decomposition a bond, float64."""
    W = W.detach().double()
    W = W / W.abs().max()
    sigma = [torch.linalg.svdvals(W.reshape(prod(dims[:l]), -1)) for l in range(1, len(dims))]
    return [(s.square() / s.square().sum()).numpy() for s in sigma]


def by_svd_chain(W, dims):
    """Probabilities at each bond by the successive decompositions that build a matrix product state."""
    rest = W.detach().double().numpy().reshape(1, -1)
    rest = rest / np.linalg.norm(rest)
    probabilities = []
    for d in dims[:-1]:
        _, sigma, Vh = np.linalg.svd(rest.reshape(rest.shape[0] * d, -1), full_matrices=False)
        probabilities.append(sigma**2)
        rest = sigma[:, None] * Vh
    return probabilities


def frame(rows, k, generator):
    return torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64)).Q


def matrix(shape, spectrum, seed):
    generator = torch.Generator().manual_seed(seed)
    k = min(shape)
    return (frame(shape[0], k, generator) * SPECTRA[spectrum](k)) @ frame(shape[1], k, generator).mT


def check(update, W, dtype, **options):
    profile = artent.entanglement_profile(update, **options)
    probabilities = by_svdvals(W, profile.dims)
    expected = entropies(probabilities, options.get("alpha", 1.0))
    np.testing.assert_allclose(profile.entropy.numpy(), expected, rtol=0, atol=LIMIT[dtype])
    most = np.log([len(p) for p in probabilities])
    assert (profile.entropy.numpy() <= most + 1e-9).all()
    return profile


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("double_size", [schmidt.exact._DOUBLE_SIZE, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dense(spectrum, dtype, double_size, monkeypatch):
    monkeypatch.setattr(schmidt.exact, "_DOUBLE_SIZE", double_size)  # 1: the float32 ladder, also at small sizes
    for seed, shape in enumerate(SHAPES):
        for scale in (1.0, 1e-30, 1e30) if dtype == torch.float32 else (1.0, 1e-150, 1e150):
            W = (scale * matrix(shape, spectrum, seed)).to(dtype)
            check(W, W, dtype)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_dense_beyond_the_size_that_is_always_float64(spectrum):
    W = matrix((768, 560), spectrum, 0).float()
    profile = artent.entanglement_profile(W, sites=((48, 16), (14, 40)))
    expected = entropies(by_svdvals(W, profile.dims))
    np.testing.assert_allclose(profile.entropy.numpy(), expected, rtol=0, atol=LIMIT[torch.float32])


@pytest.mark.parametrize("rank", [1, 2, 5, 70])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_factored(rank, dtype):
    generator = torch.Generator().manual_seed(rank)
    for m, n in SHAPES:
        for kind in ("gaussian", "decaying", "dependent"):
            B = torch.randn(m, rank, generator=generator, dtype=torch.float64)
            A = torch.randn(rank, n, generator=generator, dtype=torch.float64)
            if kind == "decaying":
                B = B * torch.exp(-torch.arange(rank) / 4)
            if kind == "dependent":
                B, A = B[:, :1].expand(m, rank) + 0 * B, A
            B, A = B.to(dtype), A.to(dtype)
            check(artent.LoRAUpdate(B, A, scaling=-3.0), B.double() @ A.double(), dtype)


def test_factors_of_any_scale():
    B, A = torch.randn(12, 3), torch.randn(3, 10)
    plain = artent.entanglement_profile(artent.LoRAUpdate(B, A)).entropy
    for up, down in ((1e30, 1e-30), (1e30, 1e30), (1e-36, 1e-36)):
        scaled = artent.entanglement_profile(artent.LoRAUpdate(B * up, A * down)).entropy
        torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_are_exact_values(dtype):
    for seed, shape in enumerate(SHAPES):
        W = matrix(shape, "power", seed).to(dtype)
        check(W, W, dtype)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.99, 2.0, 5.0, inf])
def test_renyi(alpha):
    for seed, shape in enumerate(SHAPES):
        for spectrum in ("power", "exponential"):
            W = matrix(shape, spectrum, seed)
            check(W, W, torch.float64, alpha=alpha)
        B, A = W[:, :1] @ torch.ones(1, 2).double() + torch.eye(*W.shape[:1], 2), torch.randn(2, W.shape[1]).double()
        check(artent.LoRAUpdate(B, A), B @ A, torch.float64, alpha=alpha)


@pytest.mark.parametrize("shape", [(16, 16), (12, 35), (8, 27)])
def test_against_the_chain_of_decompositions_that_makes_an_mps(shape):
    W = matrix(shape, "power", 3)
    profile = artent.entanglement_profile(W)
    np.testing.assert_allclose(profile.entropy.numpy(), entropies(by_svd_chain(W, profile.dims)), rtol=0, atol=1e-9)


def test_mps_cores_are_their_contraction():
    cores = [torch.randn(4, 3), torch.randn(3, 2, 5), torch.randn(5, 6, 2)]
    B = torch.randn(20, 2)
    update = artent.MPSUpdate(B, cores, scaling=0.1)
    profile = check(update, update.dense(), torch.float32)
    assert (profile.shape, profile.rank) == ((20, 48), 2)
    bond = check(update, update.dense(), torch.float32, sites=((20,), (4, 2, 6)))
    assert bond.schmidt_ranks == (2, 6, 6)  # no more than χ times what the rank lets through, or the sites behind


def test_one_matrix_of_a_batch_does_not_feel_the_others():
    updates = [matrix((640, 600), spectrum, 1).float() for spectrum in ("flat", "low rank", "power")]
    options = {"sites": ((32, 20), (24, 25))}
    together = artent.entanglement_profile(updates, **options)
    for update, profile in zip(updates, together):
        alone = artent.entanglement_profile(update, **options)
        torch.testing.assert_close(profile.entropy, alone.entropy, rtol=0, atol=1e-12)


def test_a_factored_update_never_becomes_a_matrix():
    n = 2**18  # n×n would be 256 GiB
    B, A = torch.randn(n, 1), torch.randn(1, n)
    profile = artent.entanglement_profile(artent.LoRAUpdate(B, A))
    assert len(profile.bonds) == 35
    assert profile.cut_entropy == pytest.approx(0, abs=1e-9)
    assert profile.entropy[8] == pytest.approx(9 * np.log(2) - 0.5, abs=0.01)  # Page: 512 of 512


def test_lower_matmul_precision_and_autocast_do_not_reach_the_profile():
    W = matrix((640, 600), "power", 1).float()
    options = {"sites": ((640,), (600,))}
    expected = artent.entanglement_profile(W.double(), **options).entropy
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = artent.entanglement_profile(W, **options).entropy
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = artent.entanglement_profile(W, **options).entropy
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_ranks():
    p = torch.tensor([[0.5, 0.5, 0.0, 1e-18], [1.0, 1e-6, 1e-11, 0.0]], dtype=torch.float64)
    assert schmidt.ranks(p, torch.finfo(torch.float64).eps).tolist() == [2, 3]
    assert schmidt.ranks(p, torch.finfo(torch.float32).eps).tolist() == [2, 3]
    W = matrix((32, 32), "low rank", 0)
    assert artent.entanglement_profile(W).schmidt_ranks[4] == 10
    assert artent.entanglement_profile(W.float()).schmidt_ranks[4] == 10
