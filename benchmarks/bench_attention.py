"""Row entropy of causal attention on the CPU: our op beside what people do today, answers checked first.

    python -m pytest benchmarks/bench_attention.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

Peers: the identity H = lse − scale·⟨q, A K⟩ through a fused attention with value := key (docs/math.md §4; the fused
forward alone is timed, its lse for free, which favours it), and materialising A.
"""

import pytest
import torch
import torch.nn.functional as F

import artent_ext
from artent_ext import reference

SHAPES = [(1, 8, 4096, 64), (1, 4, 8192, 128), (4, 32, 1024, 64)]  # B, H, T, D
CHECKED = 32  # last queries held against float64


def artent(query, key):
    return artent_ext.attention_entropy(query, key, is_causal=True)


def fused_identity(query, key):
    attended = F.scaled_dot_product_attention(query, key, key, is_causal=True)
    return (query * attended).sum(-1) * query.shape[-1] ** -0.5


def materialised(query, key):
    rows = [reference.attention_stats(q, k, diagonal=0)[1] for q, k in zip(query.flatten(0, 1), key.flatten(0, 1))]
    return torch.stack(rows).view(query.shape[:-1])


def inputs(shape, dtype):
    """query, key, value."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(3))


def check(entropy, query, key):
    first = query.shape[-2] - CHECKED
    truth = reference.attention_stats(query[..., first:, :].double(), key.double(), diagonal=first)[1]
    torch.testing.assert_close(entropy[..., first:].double(), truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("peer", [artent, fused_identity, materialised], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_row_entropy(benchmark, shape, dtype, peer):
    query, key, _ = inputs(shape, dtype)
    benchmark.group = f"{shape} {str(dtype).removeprefix('torch.')}"
    if peer is materialised:
        query, key = query.float(), key.float()
    if peer is not fused_identity:
        check(peer(query, key), query, key)
    benchmark.pedantic(peer, (query, key), rounds=5, warmup_rounds=1)
