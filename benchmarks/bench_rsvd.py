"""Randomized SVD of batches on the CPU: ours beside peers that do equal work, each answer checked first.

    python -m pytest benchmarks/bench_rsvd.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

All sketch q columns with two power steps, except ``torch.linalg.svd``, which does it all and is left out where that
takes minutes. ``rsvd_table.py`` pairs the runs, prints ratios and holds them against the time of the products alone.
"""

from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch

import artent_ext

NITER = 2
OVERSAMPLE = 8  # errors are judged at rank k = q − 8
CHECKED = 4  # matrices of a batch, the first ones
SEEDS = 3


class Case(NamedTuple):
    batch: int
    m: int
    n: int
    q: int
    target: float  # times as fast as torch.svd_lowrank

    def __str__(self):
        return f"{self.batch}×({self.m}×{self.n}) q {self.q}"

    @property
    def large(self):
        return max(self.m, self.n) > 512

    @property
    def flops(self):
        """Of the 2(niter + 1) products with A or Aᵀ."""
        return 2 * (NITER + 1) * 2 * self.batch * self.m * self.n * self.q


CASES = [
    Case(256, 128, 128, 16, 4),
    Case(64, 512, 512, 24, 2.5),
    Case(64, 2048, 512, 24, 1.2),
    Case(16, 2048, 2048, 40, 1.2),
    Case(1, 4096, 4096, 40, 1.2),
]

SPECTRA = {
    "decaying": lambda rank: 1 / torch.arange(1, rank + 1),
    "flat": lambda rank: torch.ones(rank),
}


def matrices(case, spectrum, device="cpu"):
    """A (B,m,n) float32 and its singular values: the same singular vectors in every matrix, with random signs."""
    generator = torch.Generator(device).manual_seed(0)
    rank = min(case.m, case.n)
    U, V = (torch.linalg.qr(torch.randn(side, rank, generator=generator, device=device))[0] for side in case[1:3])
    signs = torch.randint(0, 2, (case.batch, 1, rank), generator=generator, device=device) * 2 - 1
    sigma = SPECTRA[spectrum](rank).to(device)
    return (U * (signs * sigma)) @ V.mT, sigma


def ours(A, q, seed=None):
    """``artent_ext.svd_lowrank``, which takes no seed; for other sketches the function that it fronts."""
    if seed is None:
        return artent_ext.svd_lowrank(A, q, NITER)
    found = artent_ext.rsvd(A, q, oversample=0, power_iters=NITER, seed=seed)
    return found.U, found.S, found.Vh.mT


def torch_lowrank(A, q, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return torch.svd_lowrank(A, q, NITER)


def linalg_svd(A, q, seed=None):
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    return U[..., :q], S[..., :q], Vh[..., :q, :].mT


def sklearn(A, q, seed=None):
    """scikit-learn's ``randomized_svd`` of one matrix after the other, re-orthonormalised by QR as the others do."""
    from sklearn.utils.extmath import randomized_svd

    factors = [
        randomized_svd(M, q - OVERSAMPLE, n_oversamples=OVERSAMPLE, n_iter=NITER, power_iteration_normalizer="QR",
                       random_state=seed)
        for M in A.numpy()
    ]  # fmt: skip
    U, S, Vh = (torch.stack([torch.as_tensor(f[i]) for f in factors]) for i in range(3))
    return U, S, Vh.mT


def peers(case):
    """The peers of this case that are installed and end within seconds."""
    found = [torch_lowrank]
    if case.batch * case.m * case.n * min(case.m, case.n) <= 1e10:
        found.append(linalg_svd)
    if find_spec("sklearn"):
        found.append(sklearn)
    return found


def spectral_norm(R, width=8, steps=12):
    """‖R‖₂ of each matrix (…,m,n), float64, by block Lanczos with full orthogonalisation: from below, to about 10⁻³."""
    generator = torch.Generator(R.device).manual_seed(0)
    start = torch.randn(R.shape[-1], min(width, *R.shape[-2:]), generator=generator, device=R.device, dtype=R.dtype)
    block = torch.linalg.qr(start.expand(*R.shape[:-2], *start.shape))[0]
    basis = block
    for _ in range(min(steps, min(R.shape[-2:]) // start.shape[-1]) - 1):
        block = R.mT @ (R @ block)
        for _ in range(2):
            block = torch.linalg.qr(block - basis @ (basis.mT @ block))[0]
        basis = torch.cat([basis, block], -1)
    G = R @ basis
    return torch.linalg.eigvalsh(G.mT @ G)[..., -1].clamp_min(0).sqrt()


def accuracy(peer, A, sigma, q):
    """Spectral error at rank k over the optimal σ_{k+1}, a mean over seeds and matrices; worst |QᵀQ − 1| of U and V."""
    k = q - OVERSAMPLE
    errors, orthonormality = [], 0.0
    for seed in (None, *range(1, SEEDS)):
        U, S, V = (f[:CHECKED].double() for f in peer(A, q, seed))
        approximation = (U[..., :k] * S[..., None, :k]) @ V[..., :k].mT
        errors.append(spectral_norm(A[:CHECKED] - approximation).mean() / sigma[k])
        for Q in (U, V):
            gap = Q.mT @ Q - torch.eye(Q.shape[-1], device=Q.device)
            orthonormality = max(orthonormality, gap.abs().max().item())
    return torch.stack(errors).mean().item(), orthonormality


def check(peer, A, sigma, q, torchs=None):
    """(the peer's error, torch.svd_lowrank's), over the optimal one; raises where the peer's is not as good."""
    if torchs is None:
        torchs, _ = accuracy(torch_lowrank, A, sigma, q)
    error, orthonormality = accuracy(peer, A, sigma, q)
    name, limit = peer.__name__, max(1.2, 1.02 * torchs)
    assert error <= limit, f"{name}: spectral error {error:.3f} times the optimal, torch's {torchs:.3f}: not equal work"
    assert orthonormality <= 1e-5, f"{name}: singular vectors off orthonormal by {orthonormality:.1e}: not equal work"
    return error, torchs


@lru_cache(maxsize=1)
def prepared(case):
    A, sigma = matrices(case, "decaying")
    return A, sigma, accuracy(torch_lowrank, A, sigma, case.q)[0]


@pytest.mark.parametrize(
    ("case", "peer"),
    [
        pytest.param(case, peer, id=f"{case.batch}x{case.m}x{case.n}-q{case.q}-{peer.__name__}")
        for case in CASES
        for peer in (ours, *peers(case))
    ],
)
def test_rsvd(benchmark, case, peer):
    A, sigma, torchs = prepared(case)
    benchmark.group = str(case)
    check(peer, A, sigma, case.q, torchs)
    benchmark.pedantic(peer, (A, case.q), rounds=5, warmup_rounds=1)
