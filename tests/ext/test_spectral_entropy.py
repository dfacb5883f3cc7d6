"""attention_spectral_entropy against singular values in float64: bounds, errors, what it says of them, hard cases."""

import math
import subprocess
import sys

import pytest
import torch
from spectral_samples import KINDS, entropy, make, matrix, probabilities

from artent_ext import reference
from artent_ext.spectral import attention_spectral_entropy

CAUSAL, TRUE_CAUSAL = {"is_causal": True}, {"diagonal": 0}


def _holds(found, truth):
    assert (found.lower <= truth).all(), (found.lower - truth).max()
    assert (truth <= found.upper).all(), (truth - found.upper).max()
    assert ((found.lower <= found.value) & (found.value <= found.upper)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_sample(sample, dtype):
    _check(sample, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(sample_kind, dtype):
    _check(sample_kind, dtype)


def _check(sample, dtype):
    """Exact where small; with few columns an estimate, whose bounds hold as well; no state where A is zero."""
    query, key, options, true_options = sample.make(dtype)
    A = matrix(query, key, true_options)
    p = probabilities(A)
    truth = entropy(p)
    state = A.square().sum((-2, -1)) > 0
    for plan in ({}, {"rank": 3, "steps": 2}):
        found = attention_spectral_entropy(query, key, **plan, **options)
        assert all(x.shape == truth.shape and x.dtype == torch.float64 for x in found[:4])
        assert found.top.shape == (*truth.shape, min(plan.get("rank", 32), *A.shape[-2:]))
        assert all(torch.equal(x.isnan(), ~state) for x in found[:4])
        _holds(type(found)(*(x[state] for x in found)), truth[state])
        if not plan and min(A.shape[-2:]) <= 192 and state.any():
            error = (found.value - truth)[state].abs()
            assert (error <= found.stderr[state] + 1e-13).all()
            # Logits of size s are known to s times the rounding of their dtype.
            size = reference.attention_logits(query.double(), key.double(), scale=sample.scale).abs().max().clamp_min(8)
            unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
            assert (found.upper - found.lower)[state].max() < 500 * unit * size


def test_errors_are_small_and_as_stated():
    """Over kinds, texts and signs: rms error, and the share of errors within the stated one."""
    relative, within = [], []
    for kind in KINDS:
        query, key = make(kind, 420, seeds=6)
        p = probabilities(matrix(query, key, TRUE_CAUSAL))
        for seed in (0, 1):
            found = attention_spectral_entropy(query, key, **CAUSAL, rank=16, steps=5, seed=torch.arange(6) + 10 * seed)
            _holds(found, entropy(p))
            assert (found.top <= p[..., :16] + 1e-4 * p[..., :1]).all()
            if kind == "sink":
                torch.testing.assert_close(found.top[..., :2], p[..., :2], rtol=1e-4, atol=0)
            error = found.value - entropy(p)
            relative.append(error / entropy(p))
            within.append(error.abs() <= found.stderr)
    assert torch.stack(relative).square().mean().sqrt() < 0.005
    assert 0.53 <= torch.stack(within).double().mean() <= 0.83


def test_defaults_on_a_long_text():
    """T = 1280 in bfloat16."""
    query, key = (x.bfloat16() for x in make("gaussian, cold", 1280, seeds=1))
    truth = entropy(probabilities(matrix(query, key, TRUE_CAUSAL)))
    found = attention_spectral_entropy(query, key, **CAUSAL)
    _holds(found, truth)
    assert (found.value - truth).abs() < 4e-3 * truth
    assert found.stderr < 4e-3 * truth


@pytest.mark.parametrize("plan", [{}, {"rank": 12, "steps": 4}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_length(kind, plan):
    """``row_normalised``: of A with every row divided by its 2-norm, a row without a key left out."""
    query, key = make(kind, 300, seeds=2)
    seen = torch.tensor([0, 300]).repeat(300, 1)
    seen[7] = 0
    A = matrix(query, key, {**TRUE_CAUSAL, "key_range": seen})
    truth = entropy(probabilities(torch.nn.functional.normalize(A, dim=-1)))
    found = attention_spectral_entropy(query, key, row_normalised=True, key_range=seen, **plan, **CAUSAL)
    _holds(found, truth)
    assert ((found.value - truth).abs() <= 4 * found.stderr + 1e-6).all()


def _ranges(start, end):
    return {"key_range": torch.stack((start, end), -1)[None]}


ROWS = torch.arange(700)
HARD = {
    "uniform: rank one": {"scale": 0.0},
    "uniform, causal": {"scale": 0.0, **TRUE_CAUSAL},
    "every row its own key": _ranges(ROWS, ROWS + 1),
    "window": _ranges(ROWS - 4, ROWS + 1),
    "one key for all": _ranges(0 * ROWS, 0 * ROWS + 1),
    "three keys: rank three": _ranges(ROWS % 3 * 5, ROWS % 3 * 5 + 1),
    "fifty rows with keys": _ranges(0 * ROWS, torch.where((ROWS >= 100) & (ROWS < 150), 600, 0)),
    "five rows with keys": _ranges(0 * ROWS, torch.where((ROWS >= 100) & (ROWS < 105), 600, 0)),
    "logits of ten thousand": {"scale": 2500.0},
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("plan", [{}, {"rank": 6, "steps": 5}, {"rank": 1, "steps": 4}], ids=str)
def test_where_krylov_spaces_end(name, plan):
    """Low rank, equal eigenvalues, rows without keys: T = 700 is estimated, and to rounding where rank suffices."""
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(1, 2, 700, 16, generator=generator) for _ in "qk")
    true_options = HARD[name]
    options = {k: v for k, v in true_options.items() if k != "diagonal"}
    found = attention_spectral_entropy(query, key, is_causal="diagonal" in true_options, **options, **plan)
    truth = entropy(probabilities(matrix(query, key, true_options)))
    _holds(found, truth)
    if "rank" in name or "one key" in name or "its own" in name:
        if plan.get("rank") != 1:
            torch.testing.assert_close(found.value, truth, rtol=0, atol=1e-4)
    elif not plan:
        assert ((found.value - truth).abs() <= 3 * found.stderr).all()


def test_a_flat_spectrum_has_a_bound_from_below():
    """Of a window no eigenvalue stands out: those found sum to little, but S ≥ −ln p₁ and p₁ is bounded."""
    query, key = torch.randn(2, 1, 1, 900, 16, generator=torch.Generator().manual_seed(0))
    found = attention_spectral_entropy(query, key, window=3, rank=8, steps=4)
    p = probabilities(matrix(query, key, _ranges(torch.arange(900) - 2, torch.arange(900) + 1)))
    _holds(found, entropy(p))
    assert found.lower > -p[..., 0].log() - 0.1
    assert found.lower > 5 * entropy(found.top)


@pytest.mark.parametrize(("T_q", "T_k"), [(1100, 600), (600, 1100)])
def test_the_smaller_side_is_taken(T_q, T_k):
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(1, 4, T_q, 16, generator=generator), torch.randn(1, 2, T_k, 16, generator=generator)
    truth = entropy(probabilities(matrix(query, key, TRUE_CAUSAL)))
    found = attention_spectral_entropy(query, key, **CAUSAL, enable_gqa=True)
    _holds(found, truth)
    assert (found.value - truth).abs().max() < 5e-3


def test_nan_stays_in_its_head():
    query, key = make("gaussian, warm", 600, seeds=3)
    query[0, 1, 5, 2] = math.nan
    found = attention_spectral_entropy(query, key, **CAUSAL, rank=8, steps=3)
    alone = attention_spectral_entropy(query[:, 2:], key[:, 2:], **CAUSAL, rank=8, steps=3)
    for x, y in zip(found, alone, strict=True):
        assert torch.equal(
            x[0].flatten(1).isnan().all(-1) if x.dim() > 2 else x[0].isnan(), torch.tensor([0, 1, 0]) > 0
        )
        torch.testing.assert_close(x[:, 2:], y, rtol=1e-5, atol=1e-6)


def test_nan_of_hidden_keys_is_not_seen():
    query, key = make("gaussian, warm", 600, seeds=1)
    end = torch.full((1, 600), 550)
    clean = attention_spectral_entropy(query, key, key_range=torch.stack((0 * end, end), -1))
    key[..., 550:, :] = math.nan
    found = attention_spectral_entropy(query, key, key_range=torch.stack((0 * end, end), -1))
    assert torch.equal(found.value, clean.value)


def test_a_zero_matrix_is_no_state():
    query, key = torch.randn(2, 1, 2, 600, 8)
    found = attention_spectral_entropy(query, key, key_range=torch.zeros(1, 600, 2, dtype=torch.int64))
    assert all(x.isnan().all() for x in found)


def test_neither_threads_nor_global_random_state_matter():
    query, key = make("local", 700, seeds=2)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(threads)
            state = torch.get_rng_state()
            results.append(attention_spectral_entropy(query, key, **CAUSAL, rank=8, steps=4, seed=5))
            assert torch.equal(state, torch.get_rng_state())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_a_seed_for_every_head():
    query, key = make("local", 600, seeds=1)
    query, key = query.expand(2, 3, -1, -1), key.expand(2, 3, -1, -1)
    found = attention_spectral_entropy(query, key, rank=8, steps=3, seed=torch.tensor([4, 7, 4]))
    torch.testing.assert_close(found.value[:, 0], found.value[:, 2], rtol=1e-6, atol=0)
    assert (found.value[:, 0] != found.value[:, 1]).all()


_PEAK = """
import resource, torch
from artent_ext.spectral import attention_spectral_entropy
q, k = torch.randn(2, 1, 1, 16384, 8)
attention_spectral_entropy(q[..., :600, :], k[..., :600, :], is_causal=True, rank=4, steps=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attention_spectral_entropy(q, k, is_causal=True, rank=2, steps=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_linear_in_the_context():
    """T = 16384: T×T floats would be 1 GiB; basis, products and what is float64 at a time are a few MiB."""
    grown = subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 32 * 1024  # KiB


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": 2.5}, TypeError, "rank must be an integer"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": True}, TypeError, "steps must be an integer"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"seed": torch.arange(5)}, ValueError, "seed of shape"),
        ({"window": 0}, ValueError, "window must be at least 1"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(options, error, words):
    query, key = torch.randn(2, 1, 2, 6, 4)
    with pytest.raises(error, match=words):
        attention_spectral_entropy(query, key, **options)


def test_no_gradient_and_no_complaint():
    query = torch.randn(1, 1, 20, 4, requires_grad=True)
    assert not attention_spectral_entropy(query, query).value.requires_grad


@pytest.mark.gpu
def test_the_same_on_cuda():
    query, key = make("gaussian, warm", 900, seeds=2)
    on_cpu = attention_spectral_entropy(query, key, **CAUSAL)
    on_cuda = attention_spectral_entropy(query.cuda(), key.cuda(), **CAUSAL)
    for x, y in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(x, y.cpu(), rtol=1e-4, atol=1e-5)
