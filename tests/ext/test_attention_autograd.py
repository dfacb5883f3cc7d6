"""attention_stats as a citizen of PyTorch: gradients, opcheck, torch.compile."""

import math

import pytest
import torch

import artent_ext
from artent_ext import reference
from artent_ext._arguments import attention_arguments


def _loss(stats, weights):
    """A weighted sum of the three statistics over the rows that have a key."""
    finite = stats[0].isfinite()
    return sum((torch.where(finite, x.double(), 0.0) * w).sum() for x, w in zip(stats, weights, strict=True))


def _gradients(function, query, key, options, weights):
    query, key = query.detach().clone().requires_grad_(), key.detach().clone().requires_grad_()
    _loss(function(query, key, **options), weights).backward()
    return query.grad, key.grad


def test_gradients_match_float64_truth(sample, dtype):
    """No further from float64 truth than twice a materialised computation in the same type."""
    query, key, options, truth_options = sample.make(dtype)
    if truth_options.get("attn_mask") is not None and truth_options["attn_mask"].is_floating_point():
        truth_options["attn_mask"] = truth_options["attn_mask"].double()
    rows = artent_ext.attention_stats(query, key, **options).lse
    weights = [torch.randn(rows.shape, dtype=torch.float64) for _ in range(3)]
    ours = _gradients(artent_ext.attention_stats, query, key, options, weights)
    truth = _gradients(reference.attention_stats, query.double(), key.double(), truth_options, weights)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    peer = _gradients(reference.attention_stats, query.to(accumulator), key.to(accumulator), truth_options, weights)
    # Σ_j |∂/∂s_ij| ≤ |g|·(1 + 2 ln T + 4) bounds the summands of a gradient, and p carries the rounding of its logit.
    scale = options["scale"] if options["scale"] is not None else query.shape[-1] ** -0.5
    terms = max((w.abs().max().item() for w in weights if w.numel()), default=0.0)
    terms = 0.0 if key.numel() == 0 else terms * scale * (5 + 2 * math.log(max(key.shape[-2], 1)))
    logit = (query.double().norm(dim=-1).amax() * key.double().norm(dim=-1).amax() * scale).item() if terms else 0.0
    for a, b, t, other in zip(ours, peer, truth, (key, query), strict=True):
        assert a.dtype == dtype
        assert a.isfinite().all()
        if t.numel() == 0 or other.numel() == 0:
            assert not a.any()
            continue
        error, peer_error = ((x.double() - t).abs().max().item() for x in (a, b))
        rounding = torch.finfo(dtype).eps * t.abs().max().item()  # of the result to the input's type
        summation = (4 + logit) * torch.finfo(accumulator).eps * terms * other.abs().max().item()
        assert error <= 2 * peer_error + rounding + summation


@pytest.mark.parametrize("output", ["lse", "entropy", "purity"])
def test_gradcheck(sample, output):
    query, key, options, _ = sample.make(torch.float64)

    def finite(q, k):
        x = getattr(artent_ext.attention_stats(q, k, **options), output)
        return torch.where(x.isfinite(), x, 0.0)

    if sample.scale == 600.0:
        options["scale"] = 2.0  # finite differences need a function that moves
    inputs = (query.requires_grad_(), key.requires_grad_())
    assert torch.autograd.gradcheck(finite, inputs, fast_mode=True)


def test_rows_without_a_key_and_their_keys_get_zero_gradient():
    query, key = torch.randn(1, 1, 6, 4, requires_grad=True), torch.randn(1, 1, 5, 4, requires_grad=True)
    ranges = torch.tensor([[[0, 0], [0, 3], [3, 3], [1, 3], [0, 0], [0, 2]]])
    stats = artent_ext.attention_stats(query, key, key_range=ranges)
    (stats.entropy.sum() + stats.purity.sum()).backward()
    assert torch.equal(query.grad[0, 0, [0, 2, 4]], torch.zeros(3, 4))
    assert torch.equal(key.grad[0, 0, 3:], torch.zeros(2, 4))
    assert query.grad[0, 0, [1, 3, 5]].abs().min() > 0


def test_an_unused_output_costs_no_gradient_and_a_second_derivative_is_refused():
    query, key = torch.randn(1, 1, 6, 4, requires_grad=True), torch.randn(1, 1, 5, 4)
    (grad,) = torch.autograd.grad(artent_ext.attention_entropy(query, key).sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


def test_opcheck(sample, dtype):
    query, key, options, _ = sample.make(dtype)
    arguments = attention_arguments(
        query.requires_grad_(),
        key.requires_grad_(),
        options.get("attn_mask"),
        options.get("is_causal", False),
        options["scale"],
        options["enable_gqa"],
        options.get("key_range"),
    )
    torch.library.opcheck(torch.ops.artent.attention_stats, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic):
    def loss(q, k, mask):
        causal = artent_ext.attention_stats(q, k, is_causal=True, enable_gqa=True)
        masked = artent_ext.attention_entropy(q * 2, k, attn_mask=mask, enable_gqa=True)
        return causal.entropy.mean() + masked.mean() + causal.purity.mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (17, 23):
        query, key = torch.randn(2, 4, length, 8), torch.randn(2, 2, length, 8)
        mask = torch.rand(length, length) < 0.7
        grads = []
        for function in (loss, compiled):
            q, k = query.clone().requires_grad_(), key.clone().requires_grad_()
            function(q, k, mask).backward()
            grads.append((q.grad, k.grad))
        torch.testing.assert_close(grads[0], grads[1])


def test_compiles_with_the_default_backend():
    query, key = torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)
    compiled = torch.compile(lambda q, k: artent_ext.attention_entropy(q.sin(), k).exp(), fullgraph=True)
    torch.testing.assert_close(compiled(query, key), artent_ext.attention_entropy(query.sin(), key).exp())
