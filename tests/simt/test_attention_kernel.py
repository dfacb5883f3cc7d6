"""The CUDA kernels of attention, run on the simulated machine, against the plain definition in float64.

The yardstick is what plain torch in the accumulator's type gets wrong on the same input, not a guessed tolerance.
"""

from __future__ import annotations

import ctypes
import functools

import pytest
import torch
from attention_cases import BF16, CASES, F16, F32, F64, NAN, Case, make, materialised

from artent_ext import reference


@functools.cache
def prepared(name):
    """Inputs, the float64 truth, the same in the accumulator's type, and what rounding excuses."""
    case = CASES[name]
    inputs = make(case)
    real = F64 if case.dtype == F64 else F32
    exact, plain = materialised(inputs, F64), materialised(inputs, real)
    unit = torch.finfo(real).eps * (4 + exact[4])  # a logit's own rounding, which p = e^(s − lse) inherits
    stored = torch.finfo(case.dtype).eps if case.dtype != real else 0.0  # weights and results have the inputs' type
    return case, inputs, exact, plain, unit, stored


def check(name, got, exact, plain, unit):
    """got is as near to exact as twice the plain computation, or as its own rounding allows."""
    assert got.shape == exact.shape
    if not got.numel():
        return
    finite = torch.isfinite(exact)
    assert torch.equal(got[~finite].double(), exact[~finite]), f"{name}: infinities differ"
    if not finite.any():
        return
    error, yardstick = ((x.double() - exact)[finite].abs().max().item() for x in (got, plain))
    allowed = 2 * yardstick + unit * (1 + exact[finite].abs().max().item())
    assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}, plain torch {yardstick:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_forward(attention, name):
    case, inputs, exact, plain, unit, stored = prepared(name)
    driver = attention(case.dtype)
    keys = inputs.query, inputs.key
    for value in (None, inputs.value):
        out, *rows = driver.forward(*keys, value, multiprocessors=case.multiprocessors, **inputs.options)[-4:]
        if value is None:
            rows = [out, *rows]
        else:
            check("out", out, exact[1], plain[1], unit + stored)
        for row, got, truth, other in zip(("lse", "entropy", "purity"), rows, exact[0], plain[0]):
            check(row, got, truth, other, unit)


@pytest.mark.parametrize("name", CASES)
def test_backward(attention, name):
    case, inputs, exact, plain, unit, stored = prepared(name)
    driver, options = attention(case.dtype), {"multiprocessors": case.multiprocessors, **inputs.options}
    keys = inputs.query, inputs.key
    out, *rows = driver.forward(*keys, inputs.value, **options)
    delta = (out.double() * inputs.grad_out.double()).sum(-1).to(rows[0].dtype)
    got = driver.backward(inputs.grads, rows, *keys, inputs.grad_out, inputs.value, delta, **options)
    for grad, x, truth, other in zip(("grad_query", "grad_key", "grad_value"), got, exact[2], plain[2]):
        check(grad, x, truth, other, unit + stored)


@pytest.mark.parametrize("name", ["grouped", "causal", "additive mask", "bfloat16", "float64", "shared ranges"])
def test_backward_of_the_statistics_alone(attention, name):
    case, inputs, exact, _, unit, stored = prepared(name)
    truth, plain = (materialised(inputs, dtype, False)[2] for dtype in (F64, exact[0][0].dtype))
    driver, options = attention(case.dtype), {"multiprocessors": case.multiprocessors, **inputs.options}
    keys = inputs.query, inputs.key
    got = driver.backward(inputs.grads, driver.forward(*keys, **options), *keys, **options)
    for grad, x, t, other in zip(("grad_query", "grad_key"), got, truth, plain):
        check(grad, x, t, other, unit + stored)


@pytest.mark.parametrize("name", CASES)
def test_apply(attention, name):
    """A·x and Aᵀ·x, x in the inputs' type and in the accumulator's."""
    case, inputs, exact, plain, unit, stored = prepared(name)
    driver, options = attention(case.dtype), {"multiprocessors": case.multiprocessors, **inputs.options}
    real = F64 if case.dtype == F64 else F32
    lse = driver.forward(inputs.query, inputs.key, **options)[0]
    random = torch.Generator().manual_seed(1)
    for transpose in (False, True):
        A = [p.mT if transpose else p for p in (exact[3], plain[3])]
        x = torch.randn(*A[0].shape[:2], A[0].shape[3], case.columns, generator=random, dtype=F64)
        for dtype in {case.dtype, real}:
            given = x.to(dtype)
            got = driver.apply(inputs.query, inputs.key, given, lse, transpose, **options)
            assert got.dtype == dtype
            rounding = unit + (stored if dtype == case.dtype else 0)
            check(f"{transpose=}", got, A[0] @ given.double(), A[1] @ given.to(real), rounding)


@pytest.mark.parametrize("name", ["a tile", "dim 256", "dim 256, bfloat16", "dim 300", "float64"])
def test_what_fits_runs_on_tensor_cores(attention, name):
    """Up to 256 components, of value too: an A100's shared memory holds them. The rest has scalar kernels."""
    case, inputs, *_ = prepared(name)
    driver, keys = attention(case.dtype), (inputs.query, inputs.key)
    products = driver.library.simt_matrix_products  # since it was last asked
    products.restype = ctypes.c_uint64
    products()
    rows = driver.forward(*keys, **inputs.options)
    counts = [products()]
    driver.forward(*keys, inputs.value, **inputs.options)
    counts.append(products())
    through = inputs.grad_out, inputs.value, rows[1]
    for more in ((), through):
        driver.backward(inputs.grads, rows, *keys, *more, **inputs.options)
        counts.append(products())
    fits = case.dtype != F64 and case.shape[-1] <= 256
    assert counts == sorted(set(counts)) if fits else not any(counts)  # each does more than the one before


@pytest.mark.parametrize("name", ["grouped", "causal", "packed", "additive mask", "bfloat16", "shared ranges"])
def test_any_schedule_gives_the_same_bits(attention, name):
    case, inputs, *_ = prepared(name)
    driver, keys = attention(case.dtype), (inputs.query, inputs.key)
    options = {"multiprocessors": case.multiprocessors, **inputs.options}

    def run(seed):
        out, *rows = driver.forward(*keys, inputs.value, seed=seed, **options)
        through = inputs.grad_out, inputs.value, rows[1]
        return [out, *rows, *driver.backward(inputs.grads, rows, *keys, *through, seed=seed, **options)]

    first = run(1)
    assert all(torch.equal(x, y) for seed in (2, 3) for x, y in zip(first, run(seed)))


@pytest.mark.parametrize("present", [(), (0,), (1,), (2,), (0, 2)])
def test_absent_gradients_are_zero(attention, present):
    case, inputs, exact, *_ = prepared("below a tile")
    rows = [x.float() for x in exact[0]]
    some = [g if n in present else None for n, g in enumerate(inputs.grads)]
    zeros = [g if n in present else torch.zeros_like(g) for n, g in enumerate(inputs.grads)]
    run = lambda g: attention(case.dtype).backward(g, rows, inputs.query, inputs.key, **inputs.options)  # noqa: E731
    assert all(torch.equal(x, y) for x, y in zip(run(some), run(zeros)))


@pytest.mark.parametrize("name", ["bool mask", "soft cap, bfloat16, bool mask", "float64, masked"])
def test_an_empty_row_passes_no_gradient(attention, name):
    case, inputs, *_ = prepared(name)
    driver, keys = attention(case.dtype), (inputs.query, inputs.key)
    out, *rows = driver.forward(*keys, inputs.value, **inputs.options)
    assert torch.isneginf(rows[0][:, :, 3]).all()
    assert not any(x[:, :, 3].any() for x in (out, rows[1], rows[2]))
    wild = [g.clone() for g in inputs.grads]
    for g in wild:
        g[:, :, 3] = float("inf")
    grad_query, grad_key = driver.backward(wild, rows, *keys, **inputs.options)
    assert not grad_query[:, :, 3].any()
    assert torch.isfinite(grad_key).all()


@pytest.mark.parametrize("dtype", [F32, F16, F64])
def test_nan_stays_in_its_row(attention, dtype):
    inputs = make(Case((1, 2, 1, 130, 130, 16), dtype, diagonal=0))
    inputs.query[0, 1, 70, 2] = NAN
    for x in attention(dtype).forward(inputs.query, inputs.key, inputs.value, **inputs.options):
        bad = torch.isnan(x).reshape(1, 2, 130, -1)
        assert bad[0, 1, 70].all()
        assert bad.any(-1).sum() == 1


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_hidden_keys_may_hold_anything(attention, dtype):
    inputs = make(Case((1, 2, 1, 150, 150, 16), dtype, key_range="packed", diagonal=0))
    run = lambda: attention(dtype).forward(inputs.query, inputs.key, **inputs.options)  # noqa: E731
    expected = run()
    inputs.key[:, :, 149] = NAN  # seen by the last query only
    assert all(torch.equal(x[:, :, :149], y[:, :, :149]) for x, y in zip(run(), expected))


def test_small_probabilities_of_float16_keep_their_digits(attention):
    """2⁻¹⁵ and less lie where float16 loses bits; A·1 must still be 1, and Aᵀ·1 the number of queries over keys."""
    keys = 1200
    query, key = torch.zeros(1, 1, 40, 8, dtype=F16), torch.zeros(1, 1, keys, 8, dtype=F16)
    lse = torch.full((1, 1, 40), float(torch.tensor(1e6, dtype=F64).log()))  # as of a million keys
    for transpose, rows, count in ((False, keys, keys / 1e6), (True, 40, 40 / 1e6)):
        x = torch.ones(1, 1, rows, 3, dtype=F16)
        out = attention(F16).apply(query, key, x, lse, transpose)
        torch.testing.assert_close(out.double(), torch.full_like(out, count).double(), rtol=2**-10, atol=2**-24)


def test_small_gradients_of_float16_survive(attention):
    """Of a mean over a million rows: ds is far below float16's smallest number, dK is not."""
    random = torch.Generator().manual_seed(0)
    query = 100 * torch.randn(1, 1, 40, 16, generator=random)
    key = torch.randn(1, 1, 70, 16, generator=random)
    query, key = query.half(), key.half()
    options = {"scale": 1e-3}
    rows = attention(F16).forward(query, key, **options)
    grads = [torch.full((1, 1, 40), 1e-6), None, None]
    grad_key = attention(F16).backward(grads, rows, query, key, **options)[1]
    p = reference.attention_probabilities(query.double(), key.double(), **options)
    exact = 1e-9 * p.mT @ query.double()
    torch.testing.assert_close(grad_key.double(), exact, rtol=2**-9, atol=2**-24)
    assert grad_key.any()
