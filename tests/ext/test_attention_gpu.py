"""attention_stats on CUDA against float64 truth and against the CPU. Needs a GPU: run by scripts/gpu.sh."""

import pytest
import torch

import artent_ext
from artent_ext import reference
from artent_ext._arguments import attention_arguments

pytestmark = pytest.mark.gpu


def _to_cuda(options):
    return {k: v.cuda() if type(v) is torch.Tensor else v for k, v in options.items()}


def _double(options):
    """An additive mask in float64; nothing else changes."""
    mask = options.get("attn_mask")
    return (
        {**options, "attn_mask": mask.double()} if type(mask) is torch.Tensor and mask.is_floating_point() else options
    )


def _weighted(stats, weights):
    seen = stats[0].isfinite()
    return sum((torch.where(seen, x, 0.0) * w.to(x)).sum() for x, w in zip(stats, weights, strict=True))


def _run(query, key, options, weights, device):
    """Rows and gradients, on the CPU."""
    query, key = (x.detach().to(device).requires_grad_() for x in (query, key))
    stats = artent_ext.attention_stats(query, key, **(_to_cuda(options) if device == "cuda" else options))
    assert all(x.device.type == device for x in stats)
    grads = torch.autograd.grad(_weighted(stats, weights), (query, key))
    return [x.detach().cpu() for x in stats], [x.cpu() for x in grads]


def _error(value, true):
    finite = true.isfinite()
    assert torch.equal(value.double()[~finite], true[~finite])
    return (value.double() - true)[finite].abs().max().item() if finite.any() else 0.0


def test_matches_float64_truth(sample, dtype):
    """No further from float64 truth than thrice a materialised computation in the accumulator's type."""
    query, key, options, truth_options = sample.make(dtype)
    stats = artent_ext.attention_stats(query.cuda(), key.cuda(), **_to_cuda(options))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    truth = reference.attention_stats(query.double(), key.double(), **_double(truth_options))
    peer = reference.attention_stats(query.to(real), key.to(real), **truth_options)
    finite = truth[0][truth[0].isfinite()]
    ulp = torch.finfo(real).eps * max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
    for ours, theirs, true in zip(stats, peer, truth, strict=True):
        assert ours.dtype == real
        assert _error(ours.cpu(), true) <= 3 * _error(theirs, true) + 4 * ulp


def test_gradients_match_the_cpu(sample):
    """In float64, where the order of a sum shows in the last digits only."""
    query, key, options, _ = sample.make(torch.float64)
    shape = artent_ext.attention_stats(query, key, **options).lse.shape
    weights = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    cpu, cuda = (_run(query, key, options, weights, device) for device in ("cpu", "cuda"))
    for ours, theirs in zip(cuda[1], cpu[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_in_lower_precision_match_float64(sample, dtype):
    """Twice the CPU kernel's own error, and a rounding to the inputs' type."""
    query, key, options, _ = sample.make(dtype)
    shape = artent_ext.attention_stats(query, key, **options).lse.shape
    weights = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    _, truth = _run(query.double(), key.double(), _double(options), weights, "cpu")
    (_, cpu), (_, cuda) = (_run(query, key, options, weights, device) for device in ("cpu", "cuda"))
    for ours, theirs, true in zip(cuda, cpu, truth, strict=True):
        rounding = torch.finfo(dtype).eps * (true.abs().max().item() if true.numel() else 0.0)
        assert _error(ours, true) <= 2 * _error(theirs, true) + 4 * rounding


def test_the_same_bits_every_run():
    query, key = torch.randn(2, 8, 700, 64, device="cuda"), torch.randn(2, 2, 700, 64, device="cuda")
    options, weights = {"is_causal": True, "enable_gqa": True}, torch.randn(3, 2, 8, 700)
    first, again = (_run(query, key, options, weights, "cuda") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first[0] + first[1], again[0] + again[1], strict=True))


def test_more_heads_than_a_grid_has_rows():
    """65,536 heads: the launch must not put them on a grid axis that ends at 65,535."""
    query, key = torch.randn(2, 1 << 15, 3, 4), torch.randn(2, 1 << 15, 5, 4)
    cpu, cuda = artent_ext.attention_stats(query, key), artent_ext.attention_stats(query.cuda(), key.cuda())
    for ours, theirs in zip(cuda, cpu, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


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
    artent_ext.attention_entropy(query, key).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 64 << 20  # the matrix would take 4 GiB


def test_opcheck(sample):
    query, key, options, _ = sample.make(torch.float32)
    known = {"attn_mask": None, "key_range": None, "is_causal": False, **_to_cuda(options)}
    arguments = attention_arguments(query.cuda().requires_grad_(), key.cuda().requires_grad_(), **known)
    torch.library.opcheck(torch.ops.artent.attention_stats.default, tuple(arguments))


def test_compiles():
    query, key = torch.randn(1, 2, 100, 32, device="cuda"), torch.randn(1, 2, 100, 32, device="cuda")
    entropy = torch.compile(lambda q, k: artent_ext.attention_entropy(q * 2, k).sum(-1), fullgraph=True)
    torch.testing.assert_close(entropy(query, key), artent_ext.attention_entropy(query * 2, key).sum(-1))
