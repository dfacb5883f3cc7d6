"""Entropies at every bond of an update: ours beside an SVD per bond, quimb and TeNPy, each answer checked first.

    python -m pytest benchmarks/bench_profile.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

All take the same float32 numbers; ``OMP_NUM_THREADS`` sets the threads of torch and of numpy's BLAS alike.
``profile_table.py`` pairs the runs and prints ratios.
"""

from math import log, prod

import artent
import numpy as np
import pytest
import torch
from artent.sites import chain

# Nats from the float64 answer, in float32. The decompositions that build an MPS one after another add their rounding:
# quimb is at 1.04e-4 on the 1024² state.
LIMIT, PEER_LIMIT = 1e-4, 1e-3


def ours(update):
    profiles = artent.entanglement_profile(update)
    return np.concatenate([p.entropy.numpy() for p in (profiles if isinstance(profiles, list) else [profiles])])


def svd_per_bond(update):
    """``torch.linalg.svdvals`` of each unfolding, in the update's own precision."""
    W = dense(update)
    dims = chain(W.shape).dims
    sigma = [torch.linalg.svdvals(W.reshape(prod(dims[:l]), -1)) for l in range(1, len(dims))]
    p = [(s / s.norm()).square() for s in sigma]
    return torch.stack([torch.special.entr(q).sum() for q in p]).numpy()


def quimb(update):
    """``MatrixProductState.from_dense`` and ``entropy`` at each bond, its centre of orthogonality passed on."""
    from quimb.tensor import MatrixProductState

    W = dense(update)
    dims = chain(W.shape).dims
    state = MatrixProductState.from_dense((W / W.norm()).numpy().ravel(), dims)
    info = {}
    return np.array([state.entropy(l, info=info) for l in range(1, len(dims))]) * log(2)


def tenpy(update):
    """``MPS.from_full`` and ``entanglement_entropy``."""
    from tenpy.linalg import np_conserved as npc
    from tenpy.networks.mps import MPS
    from tenpy.networks.site import Site

    W = dense(update)
    dims = chain(W.shape).dims
    psi = (W / W.norm()).numpy().reshape(dims)
    sites = [Site(npc.LegCharge.from_trivial(d)) for d in dims]
    full = npc.Array.from_ndarray_trivial(psi, labels=[f"p{i}" for i in range(len(dims))])
    return MPS.from_full(sites, full, unit_cell_width=len(sites)).entanglement_entropy()


def dense(update):
    return update if isinstance(update, torch.Tensor) else update.dense()


def gaussian(m, n, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(m, n, generator=generator)
    return artent.LoRAUpdate(torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator))


def exact(update):
    """Float64 singular values per bond of the same numbers: what every peer is held against."""
    W = (
        update.double()
        if isinstance(update, torch.Tensor)
        else update.scaling * (update.B.double() @ update.A.double())
    )
    return svd_per_bond(W)


def check(peer, update, expected=None):
    """The peer's answer is near the float64 one, or there is nothing to time."""
    expected = exact(update) if expected is None else expected
    np.testing.assert_allclose(peer(update), expected, rtol=0, atol=LIMIT if peer is ours else PEER_LIMIT)


CASES = {
    "LoRA 1024², r = 8": (gaussian(1024, 1024, 8), [ours, svd_per_bond]),
    "LoRA 512×2048, r = 16": (gaussian(512, 2048, 16), [ours, svd_per_bond]),
    "dense 256²": (gaussian(256, 256), [ours, svd_per_bond, quimb, tenpy]),
    "dense 512²": (gaussian(512, 512), [ours, svd_per_bond, quimb, tenpy]),
    "dense 448×320": (gaussian(448, 320), [ours, svd_per_bond, quimb, tenpy]),
}


@pytest.mark.parametrize(
    ("case", "peer"),
    [pytest.param(case, peer, id=f"{case}-{peer.__name__}") for case, (_, peers) in CASES.items() for peer in peers],
)
def test_profile(benchmark, case, peer):
    update = CASES[case][0]
    benchmark.group = case
    check(peer, update)
    benchmark.pedantic(peer, (update,), rounds=5, warmup_rounds=1)
