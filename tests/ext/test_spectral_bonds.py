"""attention_bond_entropies against the singular values of every unfolding in float64."""

import math

import pytest
import torch
from spectral_samples import entropy, make, matrix, probabilities

from artent_ext.spectral import attention_bond_entropies, attention_spectral_entropy

CAUSAL, TRUE_CAUSAL = {"is_causal": True}, {"diagonal": 0}
FEW = {"rank": 4, "steps": 3}


def _profile(A, dims):
    """Entropies (..., N − 1) of A (..., m, n) as a chain of sites ``dims``, one unfolding a bond."""
    left = [math.prod(dims[:l]) for l in range(1, len(dims))]
    if not left:
        return A.new_empty(*A.shape[:-2], 0)
    return torch.stack([entropy(probabilities(A.reshape(*A.shape[:-2], D, -1))) for D in left], -1)


def _check(found, truth, tolerance):
    assert found.value.shape == truth.shape
    assert (found.lower <= truth).all()
    assert (truth <= found.upper).all()
    error = (found.value - truth).abs()
    assert (error <= tolerance * (1 + truth)).all(), error.max()


CHAINS = [  # T_q, T_k, sites of each, given or prime factors
    (1, 1, (), (), False),
    (1, 12, (), (3, 2, 2), False),
    (12, 1, (3, 2, 2), (), False),
    (7, 1, (7,), (), False),
    (7, 11, (7,), (11,), False),
    (33, 20, (11, 3), (5, 2, 2), False),
    (48, 90, (3, 2, 2, 2, 2), (5, 3, 3, 2), False),
    (90, 48, (5, 3, 3, 2), (3, 2, 2, 2, 2), False),
    (24, 24, (4, 6), (2, 12), True),
    (128, 128, (2,) * 7, (2,) * 7, False),
    (400, 6, (5, 5, 2, 2, 2, 2), (3, 2), False),
]


@pytest.mark.parametrize(("T_q", "T_k", "rows", "columns", "given"), CHAINS)
@pytest.mark.parametrize("options", ["plain", "causal"])
def test_every_bond(T_q, T_k, rows, columns, given, options):
    """Exact with the defaults; from four columns an estimate within its bounds."""
    generator = torch.Generator().manual_seed(T_q)
    query, key = (1.4 * torch.randn(2, H, T, 8, generator=generator) for H, T in ((4, T_q), (2, T_k)))
    options, true_options = ({}, {}) if options == "plain" else (CAUSAL, TRUE_CAUSAL)
    truth = _profile(matrix(query, key, true_options), rows + columns)
    options = {**options, "enable_gqa": True, "sites": (rows, columns) if given else None}
    found = attention_bond_entropies(query, key, **options)
    assert found.left_dims == tuple(math.prod((rows + columns)[:l]) for l in range(1, len(rows + columns)))
    _check(found, truth, 1e-6)
    _check(attention_bond_entropies(query, key, **options, **FEW), truth, 0.15)


def _window(T, size):
    rows = torch.arange(T)
    return {"key_range": torch.stack((rows - size + 1, rows + 1), -1)[None]}


def _bias(T):
    return torch.randn(1, 2, T, T, generator=torch.Generator().manual_seed(4))


MASKS = {
    "window": ({"window": 9}, _window(96, 9)),
    "causal and ranges": (
        {**CAUSAL, "key_range": torch.tensor([[[10, 70]] * 96])},
        {**TRUE_CAUSAL, "key_range": torch.tensor([[[10, 70]] * 96])},
    ),
    "bool": ({"attn_mask": _bias(96) > 0.5}, {"attn_mask": _bias(96) > 0.5}),
    "additive": ({"attn_mask": _bias(96)}, {"attn_mask": _bias(96)}),
    "soft cap": ({"softcap": 1.5}, {"softcap": 1.5}),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks_follow_the_slices(name, dtype):
    options, true_options = MASKS[name]
    query, key = (torch.randn(1, 2, 96, 8, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1))
    truth = _profile(matrix(query, key, true_options), (3, 2, 2, 2, 2, 2) * 2)
    _check(attention_bond_entropies(query, key, **options), truth, 1e-6)
    _check(attention_bond_entropies(query, key, **options, **FEW), truth, 0.15)


def test_estimated_bonds_of_a_long_text():
    """T = 1024, 19 bonds, those of 256 to 1024 estimated from 17 columns: a hundredth of the entropy."""
    query, key = make("gaussian, cold", 1024, seeds=1, D=8)
    A = matrix(query, key, TRUE_CAUSAL)
    found = attention_bond_entropies(query, key, **CAUSAL, rank=16, steps=5)
    truth = []
    for D in found.left_dims:
        M = A.reshape(1, 1, D, -1)
        p = torch.linalg.eigvalsh(M @ M.mT if D <= 1024 else M.mT @ M).clamp_min(0.0)
        truth.append(entropy(p / p.sum(-1, keepdim=True)))
    _check(found, torch.stack(truth, -1), 0.01)


@pytest.mark.parametrize(("T_q", "T_k"), [(300, 200), (200, 300)])
def test_the_cut_is_the_spectral_entropy(T_q, T_k):
    query, key = torch.randn(1, 2, T_q, 8), torch.randn(1, 2, T_k, 8)
    bonds = attention_bond_entropies(query, key, **CAUSAL, **FEW, seed=3)
    cut = attention_spectral_entropy(query, key, **CAUSAL, **FEW, seed=3)
    at = bonds.left_dims.index(T_q)
    for x, y in zip(bonds[:4], cut[:4], strict=True):
        torch.testing.assert_close(x[..., at], y, rtol=1e-9, atol=1e-12)


def test_nan_and_no_keys_are_no_state():
    query, key = torch.randn(2, 1, 3, 64, 8)
    query[0, 0, 3] = math.nan
    hidden = torch.tensor([0, 64]).repeat(1, 3, 64, 1)
    hidden[:, 1] = 0
    found = attention_bond_entropies(query, key, key_range=hidden)
    for x in found[:4]:
        assert x[0, :2].isnan().all()
        assert x[0, 2].isfinite().all()


@pytest.mark.parametrize(
    ("sites", "error", "words"),
    [
        (3, TypeError, "sites must be"),
        (((2, 3), (2, 4)), ValueError, "row sites .* multiply to the 8 rows"),
        (((2, 2, 2), (8, 1)), ValueError, "column sites .* at least 2"),
        (((2, 4.0), (8,)), TypeError, "row site of sites must be an integer"),
    ],
)
def test_sites_that_do_not_fit_are_named(sites, error, words):
    query, key = torch.randn(2, 1, 1, 8, 4)
    with pytest.raises(error, match=words):
        attention_bond_entropies(query, key, sites=sites)
