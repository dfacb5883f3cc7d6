"""Every attention op against float64 truth, values and gradients: at most twice a materialised computation's error.

That is the reference in float32, its results rounded to the op's dtype. For float64 its error stands scaled by the
ratio of the two units in the last place; truth is no better there, so its own error comes on top.
"""

import math

import torch
from attention_samples import ours, truth


def _inputs(sample, op, dtype):
    query, key, options, truth_options = sample.make(dtype)
    return [query, key, *sample.columns_for(op, dtype)], options, truth_options


def _unit(dtype):
    """Unit in the last place of the type that the op computes in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def _error(value, true):
    """Largest absolute error; infinities must agree exactly."""
    assert value.shape == true.shape
    finite = true.isfinite()
    assert torch.equal(value.double()[~finite], true[~finite])
    return _largest((value.double() - true)[finite])


def _peer_error(peer, true, dtype):
    """The same of the materialised computation in float32, as a result of ``dtype``."""
    return 1.5 * 2.0**-29 * _error(peer, true) if dtype == torch.float64 else _error(peer.to(dtype), true)


def test_values(sample, op, dtype):
    inputs, options, truth_options = _inputs(sample, op, dtype)
    values = ours(op, inputs, options)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    statistics = 3 if op in ("stats", "forward") else 0
    assert [x.dtype for x in values] == [dtype] * (len(values) - statistics) + [accumulator] * statistics
    true = truth(op, [x.double() for x in inputs], truth_options)
    peer = truth(op, [x.float() for x in inputs], truth_options)
    for value, p, t in zip(values, peer, true, strict=True):
        rounding = 4 * _unit(dtype) * max(1.0, _largest(t[t.isfinite()]))
        assert _error(value, t) <= 2 * _peer_error(p, t, value.dtype) + rounding


def _loss(values, weights):
    """A weighted sum of all outputs over the rows that have a key."""
    return sum((torch.where(x.isfinite(), x.double(), 0.0) * w).sum() for x, w in zip(values, weights, strict=True))


def _gradients(function, op, inputs, options, weights):
    """The outputs, and the gradients of the inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    values = function(op, inputs, options)
    _loss(values, weights).backward()
    return values, [x.grad for x in inputs]


def _summands(op, inputs, weights, keys):
    """Bound of Σ_j |∂loss/∂s_ij| over a row: what cancels to a gradient of query or key."""
    bound = 0.0
    if op in ("stats", "forward"):
        bound += max(_largest(w) for w in weights[-3:]) * (5 + 2 * math.log(max(keys, 1)))
    if op != "stats":
        bound += 2 * _largest(weights[0].norm(dim=-1)) * _largest(inputs[2].double().norm(dim=-1))
    return bound


def test_gradients(sample, op, dtype):
    inputs, options, truth_options = _inputs(sample, op, dtype)
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(x.shape, generator=generator).to(x.dtype).double()  # what reaches the op is exactly this
        for x in ours(op, inputs, options)
    ]
    _, grads = _gradients(ours, op, inputs, options, weights)
    outputs, true = _gradients(truth, op, [x.double() for x in inputs], truth_options, weights)
    _, peer = _gradients(truth, op, [x.float() for x in inputs], truth_options, weights)
    query, key, *_ = inputs
    scale = query.shape[-1] ** -0.5 if sample.scale is None else sample.scale
    terms = 4 * _unit(dtype) * _summands(op, inputs, weights, key.shape[-2])
    if op in ("forward", "apply") and dtype in (torch.float16, torch.bfloat16):
        # The gradient subtracts Σ grad·out from every row, with out as it was returned: rounded.
        terms += torch.finfo(dtype).eps * _largest((weights[0] * outputs[0]).abs().sum(-1))
    roundings = [
        scale * terms * _largest(key),
        scale * terms * _largest(query),
        4 * _unit(dtype) * _largest(weights[0]),
    ]
    for grad, p, t, rounding in zip(grads, peer, true, roundings, strict=False):
        assert grad.dtype == dtype
        assert grad.isfinite().all()
        rounding += torch.finfo(dtype).eps * _largest(t)
        assert _error(grad, t) <= 2 * _peer_error(p, t, dtype) + rounding
