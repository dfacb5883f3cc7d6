"""Mistakes in the arguments of rsvd are told by name, with what was given and a likely cause."""

import types

import numpy as np
import pytest
import torch

import artent_ext
from artent_ext import Operator

A = torch.randn(2, 3, 6, 5)
NESTED = torch.nested.nested_tensor([A[0, 0], A[0, 1]], layout=torch.jagged)
NAN = A.clone()
NAN[1, 2, 3, 4] = float("nan")
INF = A[0].half().clone()
INF[1, 0, 0] = float("-inf")


def _operator(**changes):
    B = torch.randn(8, 5)
    return Operator(**({"matmat": lambda X: B @ X, "rmatmat": lambda Y: B.mT @ Y, "shape": (8, 5)} | changes))


CALLS = {
    "neither rank nor tol": (A, {}, ValueError, "give a rank .*tol=1e-2.* or both"),
    "a list": ([[1.0]], {"rank": 2}, TypeError, "A must be a torch.Tensor or an artent_ext.Operator, got list; stack"),
    "an array": (A.numpy(), {"rank": 2}, TypeError, r"got ndarray; torch\.as_tensor"),
    "a LoRA update": (
        types.SimpleNamespace(B=A, A=A),
        {"rank": 2},
        TypeError,
        r"Operator\.from_factors\(update\.B, update\.A, update\.scaling\)",
    ),
    "integers": (A.long(), {"rank": 2}, TypeError, r"A must be float16.*int64.*A\.float\(\)"),
    "complex": (A.to(torch.complex64), {"rank": 2}, TypeError, "complex64; torch.linalg.svd"),
    "sparse": (A[0, 0].to_sparse(), {"rank": 2}, TypeError, r"dense \(strided\).*sparse_coo.*Operator"),
    "nested": (
        torch.nested.nested_tensor([A[0, 0], A[0, 1]], layout=torch.jagged),
        {"rank": 2},
        TypeError,
        "a nested one",
    ),
    "a vector": (A[0, 0, 0], {"rank": 2}, ValueError, r"two dimensions.*\(5,\)"),
    "negative rank": (A, {"rank": -1}, ValueError, "rank must be at least 0, got -1"),
    "fractional rank": (A, {"rank": 2.0}, TypeError, "rank must be an integer, got float"),
    "a tolerance for the rank": (A, {"rank": 0.1}, TypeError, "rank must be .*got float; .*give tol=0.1"),
    "numpy's boolean rank": (A, {"rank": np.bool_(True)}, TypeError, "rank must be an integer, got bool"),
    "a tensor for the rank": (A, {"rank": torch.tensor(2)}, TypeError, "rank must be an integer, got Tensor"),
    "endless power_iters": (A, {"rank": 2, "power_iters": 10**30}, ValueError, "power_iters must be below"),
    "check_finite a number": (A, {"rank": 2, "check_finite": 1}, TypeError, "check_finite must be True, False or None"),
    "boolean rank": (A, {"rank": True}, TypeError, "rank must be an integer, got bool"),
    "negative oversample": (A, {"rank": 2, "oversample": -2}, ValueError, "oversample must be at least 0"),
    "fractional power_iters": (A, {"rank": 2, "power_iters": 1.5}, TypeError, "power_iters must be an integer"),
    "negative power_iters": (A, {"rank": 2, "power_iters": -1}, ValueError, "power_iters must be at least 0"),
    "negative tol": (A, {"tol": -0.1}, ValueError, "tol is the relative error.*got -0.1"),
    "tol in percent": (A, {"tol": 5}, ValueError, "relative error.*below 1.*0.05 for 5 %.*got 5; is it the rank"),
    "boolean tol": (A, {"tol": True}, TypeError, "tol must be a number, got bool"),
    "tol not a number": (A, {"tol": float("nan")}, ValueError, "tol is the relative error.*got nan"),
    "tol a string": (A, {"tol": "0.1"}, TypeError, "tol must be a number, got str"),
    "fractional seed": (
        A,
        {"rank": 2, "seed": 0.5},
        TypeError,
        "seed must be an integer, or .*broadcastable.*, got float",
    ),
    "seed beyond 64 bits": (A, {"rank": 2, "seed": 2**63}, ValueError, "seed must be a signed 64-bit integer"),
    "float seeds": (
        A,
        {"rank": 2, "seed": torch.zeros(3)},
        TypeError,
        "integer tensor .*got a tensor of torch.float32",
    ),
    "seeds of another shape": (
        A,
        {"rank": 2, "seed": torch.arange(2)},
        ValueError,
        r"seed of shape \(2,\) does not broadcast to the batch dimensions \(2, 3\)",
    ),
    "NaN": (NAN, {"rank": 2}, ValueError, r"NaN or Inf in matrix \(1, 2\) \(1 of 6 matrices\).*check_finite=False"),
    "Inf": (INF, {"rank": 2}, ValueError, "NaN or Inf in matrix 1 "),
    "NaN in the only matrix": (NAN[1, 2], {"tol": 0.1}, ValueError, r"NaN or Inf \(1 of 1 matrices\)"),
    "tol of an operator without norm2": (_operator(), {"tol": 0.1}, ValueError, "tol needs .*norm2="),
    "operator returning another shape": (
        _operator(matmat=lambda X: X),
        {"rank": 2},
        ValueError,
        r"matmat was given \(5, 5\) and must return \(8, 5\) for an operator of shape.*, got \(5, 5\); .*swapped",
    ),
    "operator returning another dtype": (
        _operator(rmatmat=lambda Y: torch.ones(5, Y.shape[-1], dtype=torch.float64)),
        {"rank": 2},
        TypeError,
        "rmatmat must return torch.float32, the operator's dtype, got torch.float64",
    ),
    "operator returning a list": (
        _operator(matmat=lambda X: [X]),
        {"rank": 2},
        TypeError,
        "matmat must return a torch",
    ),
    "operator on another device": (
        _operator(matmat=lambda X: torch.empty(8, X.shape[-1], device="meta")),
        {"rank": 2},
        ValueError,
        "matmat must return a tensor on cpu, got one on meta",
    ),
    "operator returning NaN": (
        _operator(matmat=lambda X: X.new_full((8, X.shape[-1]), float("nan"))),
        {"rank": 2},
        ValueError,
        "NaN or Inf",
    ),
    "operator of swapped callables": (
        Operator(lambda X: A[0, 0].mT @ X, lambda Y: A[0, 0] @ Y, (6, 5)),
        {"rank": 2},
        ValueError,
        r"matmat was given \(5, 5\) torch.float32 by an operator of shape \(6, 5\) and raised RuntimeError.*swapped",
    ),
    "operator of data in another dtype": (
        Operator(lambda X: A[0, 0].double() @ X, lambda Y: A[0, 0].double().mT @ Y, (6, 5)),
        {"rank": 2},
        ValueError,
        r"matmat was given .*dtype.*; are the data behind it of another dtype\? Say Operator\(\.\.\., dtype=",
    ),
    "operator that fails by itself": (
        _operator(rmatmat=lambda Y: {}["weight"]),
        {"rank": 2},
        RuntimeError,
        r"rmatmat was given \(8, 5\) .* and raised KeyError: 'weight'$",
    ),
    "norm2 not squared": (
        Operator(lambda X: 9 * X, lambda Y: 9 * Y, (2, 5, 5), norm2=torch.tensor([405.0, 405.0**0.5])),
        {"rank": 2},
        ValueError,
        r"norm2 of matrix 1 is 20\.1246, but .* sum to 405: norm2 is the squared Frobenius norm",
    ),
}


@pytest.mark.parametrize(("matrix", "options", "error", "message"), CALLS.values(), ids=CALLS)
def test_mistakes(matrix, options, error, message):
    with pytest.raises(error, match=message):
        artent_ext.rsvd(matrix, **options)


OPERATORS = {
    "no callable": ({"matmat": torch.zeros(8, 5)}, TypeError, "matmat must be callable, got Tensor"),
    "half precision": ({"dtype": torch.bfloat16}, TypeError, "dtype must be torch.float32 or torch.float64.*bfloat16"),
    "shape a number": ({"shape": 5}, TypeError, r"shape must be integers \(\.\.\., m, n\), got 5"),
    "fractional shape": ({"shape": (8, 5.0)}, TypeError, r"shape must be integers .*got \(8, 5\.0\)"),
    "one dimension": ({"shape": (8,)}, ValueError, r"shape must be \(\.\.\., m, n\), got \(8,\)"),
    "negative norm": ({"norm2": -1.0}, ValueError, "norm2 is .*finite and not negative"),
    "norm of another shape": ({"norm2": torch.ones(3)}, ValueError, r"norm2 of shape \(3,\) does not broadcast"),
    "norm a string": ({"norm2": "1"}, TypeError, "norm2 must be a number or a tensor"),
}


@pytest.mark.parametrize(("changes", "error", "message"), OPERATORS.values(), ids=OPERATORS)
def test_mistakes_in_an_operator(changes, error, message):
    with pytest.raises(error, match=message):
        _operator(**changes)


def test_mistakes_in_factors():
    with pytest.raises(ValueError, match=r"B \(4, 30\) and A \(20, 4\) have no product.*swapped"):
        Operator.from_factors(torch.ones(4, 30), torch.ones(20, 4))
    with pytest.raises(TypeError, match=r"A must be a floating-point tensor .*int64"):
        Operator.from_factors(torch.ones(4, 3), torch.ones(3, 4).long())
    with pytest.raises(TypeError, match=r"B must be a floating-point tensor .*list"):
        Operator.from_factors([1.0], torch.ones(3, 4))
    B, A = torch.ones(2, 4, 3), torch.ones(3, 4)
    with pytest.raises(TypeError, match="scaling must be a number, got str"):
        Operator.from_factors(B, A, "2")
    with pytest.raises(ValueError, match="scaling must be finite, got inf"):
        Operator.from_factors(B, A, float("inf"))
    with pytest.raises(ValueError, match=r"B and A: batch dimensions do not broadcast: \(2,\) and \(5,\)"):
        Operator.from_factors(B, A.expand(5, 3, 4))
    with pytest.raises(ValueError, match="B is on cpu and A is on meta"):
        Operator.from_factors(B, A.to("meta"))


def test_numpys_numbers_are_numbers_and_counts_stop_at_the_sides():
    plain = artent_ext.rsvd(A, 2, tol=0.25, oversample=1, power_iters=1, seed=7)
    numpys = {"tol": np.float32(0.25), "oversample": np.int8(1), "power_iters": np.uint64(1), "seed": np.int64(7)}
    ours = artent_ext.rsvd(A, np.int32(2), **numpys)
    assert all(torch.equal(x, y) for x, y in zip(ours, plain, strict=True))
    full, beyond = artent_ext.rsvd(A, 5, oversample=0), artent_ext.rsvd(A, 10**30, oversample=10**30)
    assert all(torch.equal(x, y) for x, y in zip(full, beyond, strict=True))
    lowrank, numpys = artent_ext.svd_lowrank(A, 2, 1), artent_ext.svd_lowrank(A, np.int64(2), np.int64(1))
    assert all(torch.equal(x, y) for x, y in zip(lowrank, numpys, strict=True))
    assert Operator(lambda X: X, lambda Y: Y, np.array([5, 5]), norm2=np.float32(5)).shape == (5, 5)


def test_factors_that_cancel_are_not_doubted():
    """Their products hold rounding where the norm, from float64, is next to nothing."""
    B, C = torch.randn(40, 3), torch.randn(3, 30)
    operator = Operator.from_factors(torch.cat([B, -B], 1), torch.cat([C, C * (1 + 2**-22)]))
    assert (artent_ext.rsvd(operator, 3).residual >= 0).all()


def test_the_norm_is_checked_where_the_values_are_finite():
    operator = Operator(lambda X: X * float("nan"), lambda Y: Y, (6, 6), norm2=0.0)
    assert artent_ext.rsvd(operator, 2, check_finite=False).S.isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_without_the_check_nan_stays_with_its_matrix(bad, dtype):
    given = torch.randn(4, 30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    clean = artent_ext.rsvd(given, 3)
    given[2, 29, 19] = bad
    result = artent_ext.rsvd(given, 3, check_finite=False)
    for ours, truth in zip(result[:4], clean[:4], strict=True):
        assert ours[2].isnan().all()
        assert torch.equal(ours[[0, 1, 3]], truth[[0, 1, 3]])
