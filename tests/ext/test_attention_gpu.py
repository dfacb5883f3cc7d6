"""Attention's ops on CUDA against float64 truth and against the CPU. Needs a GPU: run by scripts/gpu.sh."""

import pytest
import torch
from attention_samples import OPS, ours, truth

import artent_ext
from artent_ext._attention_arguments import attention_arguments

pytestmark = pytest.mark.gpu


def _to(device, options):
    return {k: v.to(device) if type(v) is torch.Tensor else v for k, v in options.items()}


def _inputs(sample, op, dtype):
    query, key, options, truth_options = sample.make(dtype)
    return [query, key, *sample.columns_for(op, dtype)], options, truth_options


def _double(options):
    """An additive mask in float64; nothing else changes."""
    mask = options.get("attn_mask")
    return (
        {**options, "attn_mask": mask.double()} if type(mask) is torch.Tensor and mask.is_floating_point() else options
    )


def _run(op, inputs, options, weights, device):
    """Outputs and gradients of the inputs, on the CPU."""
    inputs = [x.detach().to(device).requires_grad_() for x in inputs]
    values = ours(op, inputs, _to(device, options))
    assert all(x.device.type == device for x in values)
    loss = sum((torch.where(x.isfinite(), x, 0.0) * w.to(x)).sum() for x, w in zip(values, weights, strict=True))
    return [x.detach().cpu() for x in values], [x.cpu() for x in torch.autograd.grad(loss, inputs)]


def _weights(op, inputs, options):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(x.shape, generator=generator).double() for x in ours(op, inputs, options)]


def _largest(x):
    return x.abs().max().item() if x.numel() else 0.0


def _error(value, true):
    finite = true.isfinite()
    assert torch.equal(value.double()[~finite], true[~finite])
    return _largest((value.double() - true)[finite])


def test_matches_float64_truth(sample, op, dtype):
    """No further from float64 truth than twice a materialised computation in the accumulator's type.

    A result of a 16-bit type may differ by that type's rounding besides, which the probabilities have had.
    """
    inputs, options, truth_options = _inputs(sample, op, dtype)
    values = ours(op, [x.cuda() for x in inputs], _to("cuda", options))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    exact = truth(op, [x.double() for x in inputs], truth_options)
    peer = truth(op, [x.to(real) for x in inputs], truth_options)
    for value, theirs, true in zip(values, peer, exact, strict=True):
        size = max(1.0, _largest(true[true.isfinite()]))
        rounding = (4 * torch.finfo(real).eps + (torch.finfo(value.dtype).eps if value.dtype != real else 0.0)) * size
        assert _error(value.cpu(), true) <= 2 * _error(theirs, true) + rounding


def test_gradients_match_the_cpu(sample, op):
    """In float64, where the order of a sum shows in the last digits only."""
    inputs, options, _ = _inputs(sample, op, torch.float64)
    weights = _weights(op, inputs, options)
    cpu, cuda = (_run(op, inputs, options, weights, device) for device in ("cpu", "cuda"))
    for ours_, theirs in zip(cuda[1], cpu[1], strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_in_lower_precision_match_float64(sample, op, dtype):
    """Twice the CPU kernel's own error, and a rounding to the inputs' type."""
    inputs, options, _ = _inputs(sample, op, dtype)
    weights = _weights(op, inputs, options)
    _, exact = _run(op, [x.double() for x in inputs], _double(options), weights, "cpu")
    (_, cpu), (_, cuda) = (_run(op, inputs, options, weights, device) for device in ("cpu", "cuda"))
    for ours_, theirs, true in zip(cuda, cpu, exact, strict=True):
        rounding = torch.finfo(dtype).eps * _largest(true)
        assert _error(ours_, true) <= 2 * _error(theirs, true) + 4 * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256, 320])
def test_every_tile(dim, dtype):
    """Head dimensions of every tile, long enough for the pipeline to turn and, in one head, to be shared out."""
    torch.manual_seed(dim)
    query, key, value = (torch.randn(1, 1, n, dim).to(dtype) for n in (300, 1500, 1500))
    for op in OPS:
        x = {"stats": [], "forward": [value], "apply": [value], "transposed": [query]}[op]
        inputs, options = [query, key, *x], {"is_causal": op == "forward"}
        exact = truth(op, [t.double() for t in inputs], {"diagonal": 0 if op == "forward" else None})
        got = ours(op, [t.cuda() for t in inputs], options)
        for value_, true in zip(got, exact, strict=True):
            unit = torch.finfo(value_.dtype).eps
            assert _error(value_.cpu(), true) <= 16 * unit * max(1.0, _largest(true))


def test_fills_the_chip_with_one_long_head():
    """Shares of one head's keys merge to what the CPU computes."""
    torch.manual_seed(0)
    query, key, x = torch.randn(1, 1, 64, 64), torch.randn(1, 1, 20000, 64), torch.randn(1, 1, 20000, 16)
    for op, columns in (("stats", []), ("forward", [x]), ("apply", [x]), ("transposed", [x[:, :, :64]])):
        cpu, cuda = ours(op, [query, key, *columns], {}), ours(op, [t.cuda() for t in (query, key, *columns)], {})
        for theirs, value in zip(cpu, cuda, strict=True):
            torch.testing.assert_close(value.cpu(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_run(dtype):
    shapes = [(2, 8, 700, 64), (2, 2, 700, 64), (2, 2, 700, 64)]
    inputs = [torch.randn(s, dtype=dtype, device="cuda") for s in shapes]
    options = {"is_causal": True, "enable_gqa": True}
    weights = [torch.randn(x.shape, device="cuda") for x in ours("forward", inputs, options)]
    first, again = (_run("forward", inputs, options, weights, "cuda") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first[0] + first[1], again[0] + again[1], strict=True))


def test_more_heads_than_a_grid_has_rows():
    """65,536 heads: the launch must not put them on a grid axis that ends at 65,535."""
    query, key = torch.randn(2, 1 << 15, 3, 4), torch.randn(2, 1 << 15, 5, 4)
    cpu, cuda = artent_ext.attention_stats(query, key), artent_ext.attention_stats(query.cuda(), key.cuda())
    for ours_, theirs in zip(cuda, cpu, strict=True):
        torch.testing.assert_close(ours_.cpu(), theirs)


def test_runs_on_the_current_stream():
    """The input is written late on a side stream; a launch on another stream would read what was there before."""
    query = torch.zeros(1, 4, 512, 64, device="cuda")
    key = torch.randn(1, 4, 512, 64, device="cuda")
    value = torch.randn_like(query)
    expected = artent_ext.attention_stats(value, key).entropy
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s of clock cycles
        query.copy_(value)
        got = artent_ext.attention_stats(query, key).entropy
    stream.synchronize()
    assert torch.equal(got, expected)


def test_memory_is_linear_in_the_context():
    query, key = (torch.randn(1, 1, 32768, 64, device="cuda", requires_grad=True) for _ in range(2))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, stats = artent_ext.scaled_dot_product_attention_with_stats(query, key, key.detach())
    (out.sum() + stats.entropy.sum()).backward()
    assert torch.cuda.max_memory_allocated() - before < 128 << 20  # the matrix would take 4 GiB


def test_opcheck(sample):
    query, key, options, _ = sample.make(torch.float32)
    arguments = attention_arguments(query.cuda().requires_grad_(), key.cuda().requires_grad_(), **_to("cuda", options))
    torch.library.opcheck(torch.ops.artent.attention_stats.default, tuple(arguments))


def test_compiles():
    query, key, value = (torch.randn(1, 2, 100, 32, device="cuda") for _ in range(3))

    def run(q, k, v):
        out, stats = artent_ext.scaled_dot_product_attention_with_stats(q * 2, k, v, is_causal=True)
        return out.sum(-1) + stats.entropy

    torch.testing.assert_close(torch.compile(run, fullgraph=True)(query, key, value), run(query, key, value))
