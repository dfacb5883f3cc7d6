"""The attention ops as citizens of PyTorch: derivatives, what they save, opcheck, torch.compile."""

import pytest
import torch
from attention_samples import ours, truth

import artent_ext
from artent_ext import reference
from artent_ext._attention_arguments import attention_arguments
from artent_ext._visibility import four_d

native = torch.ops.artent


def _finite(x):
    return torch.where(x.isfinite(), x, 0.0)


def test_gradcheck(sample, op):
    query, key, options, _ = sample.make(torch.float64)
    if sample.scale == 2500.0:
        options["scale"] = 2.0  # finite differences need a function that moves
    if sample.softcap == 0.5:
        options["softcap"] = 3.0  # and saturates no further than they resolve
    inputs = [x.requires_grad_() for x in (query, key, *sample.columns_for(op, torch.float64))]

    def function(*inputs):
        return tuple(_finite(x) for x in ours(op, inputs, options))

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("needed", ["query", "key", "x"])
@pytest.mark.parametrize("output", range(4))
def test_one_input_and_one_output_at_a_time(op, needed, output):
    """The other gradients are absent then, on both sides: the values are still those of the reference."""
    inputs = [torch.randn(2, 3, n, 6, dtype=torch.float64) for n in (9, 9, 9)[: 2 if op == "stats" else 3]]
    which = ["query", "key", "x"].index(needed)
    if which >= len(inputs) or output >= len(ours(op, inputs, {})):
        return
    results = []
    for function, options in ((ours, {"is_causal": True}), (truth, {"diagonal": 0})):
        x = inputs[which].clone().requires_grad_()
        value = function(op, [*inputs[:which], x, *inputs[which + 1 :]], options)[output]
        loss = value.sin().sum() + 0 * x.sum()  # the statistics know nothing of the values
        results.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


def test_rows_without_a_key_and_their_keys_get_zero_gradient(op):
    inputs = [torch.randn(1, 1, n, 4, requires_grad=True) for n in (6, 5, 6 if op == "transposed" else 5)]
    ranges = torch.tensor([[[0, 0], [0, 3], [3, 3], [1, 3], [0, 0], [0, 2]]])
    values = ours(op, inputs[: 2 if op == "stats" else 3], {"key_range": ranges})
    sum(_finite(x).square().sum() for x in values).backward()
    query, key, x = inputs
    assert torch.equal(query.grad[0, 0, [0, 2, 4]], torch.zeros(3, 4))
    assert torch.equal(key.grad[0, 0, 3:], torch.zeros(2, 4))
    assert query.grad[0, 0, [1, 3, 5]].abs().min() > 0
    if op != "stats":
        unseen, seen = ([0, 2, 4], [1, 3, 5]) if op == "transposed" else ([3, 4], [0, 1, 2])
        assert torch.equal(x.grad[0, 0, unseen], torch.zeros(len(unseen), 4))
        assert x.grad[0, 0, seen].abs().min() > 0


def test_a_second_derivative_is_refused(op):
    query, key, x = (torch.randn(1, 1, 6, 4, requires_grad=True) for _ in range(3))
    value = ours(op, [query, key, x][: 2 if op == "stats" else 3], {})[0]
    (grad,) = torch.autograd.grad(value.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


NAMES = {"stats": "attention_stats", "forward": "scaled_dot_product_attention_with_stats"}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_derivatives_other_than_autograds_are_refused_and_not_zero(op, which):
    inputs = [torch.randn(1, 1, 6, 4) for _ in range(2 if op == "stats" else 3)]
    if which >= len(inputs):
        return

    def function(x):
        return ours(op, [*inputs[:which], x, *inputs[which + 1 :]], {})[0]

    name = NAMES.get(op, "attention_apply")
    with pytest.raises(NotImplementedError, match=f"{name} has no forward-mode derivative"):
        torch.func.jvp(function, (inputs[which],), (inputs[which],))
    with pytest.raises(NotImplementedError, match=f"{name} has no torch.func derivative"):
        torch.func.grad(lambda x: function(x).sum())(inputs[which])


def _saved(function):
    """Bytes that autograd keeps for a backward."""
    total = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: total.append(x.nbytes) or x, lambda x: x):
        function()
    return sum(total)


def test_nothing_is_saved_for_a_gradient_that_nobody_asks_for(op):
    inputs = [torch.randn(1, 2, 50, 8) for _ in range(2 if op == "stats" else 3)]
    assert _saved(lambda: ours(op, inputs, {})) == 0
    for x in inputs:
        x.requires_grad_()
    with torch.no_grad():
        assert _saved(lambda: ours(op, inputs, {})) == 0
    rows, block = 4 * 2 * 50, 4 * 2 * 50 * 8
    everything = {"stats": 4 * rows + 2 * block, "forward": 4 * rows + 4 * block, "apply": 2 * rows + 4 * block}
    assert _saved(lambda: ours(op, inputs, {})) <= everything.get(op, 2 * rows + 3 * block)  # lse takes two


def test_the_gradient_of_x_alone_keeps_neither_x_nor_the_product():
    query, key, x = (torch.randn(1, 2, 50, 8) for _ in range(3))
    assert _saved(lambda: artent_ext.attention_apply(query, key, x.requires_grad_())) == 4 * 2 * 50 * (2 + 8 + 8)


def _native_call(op, kind, dtype):
    """(overload, arguments) of the native op."""
    query, key, options, _ = kind.make(dtype)
    arguments = attention_arguments(query.requires_grad_(), key.requires_grad_(), **options)
    q, k, *rest = arguments
    columns = [four_d(x) for x in kind.columns_for(op, dtype)]
    if op == "stats":
        return native.attention_stats.default, tuple(arguments)
    (x,) = (x.requires_grad_() for x in columns)
    if op == "forward":
        return native.attention_forward.default, (q, k, x, *rest)
    lse, *_, low = (x.detach() for x in native.attention_stats(*arguments))
    return native.attention_apply.default, (q, k, x, lse, low, op == "transposed", *rest)


def test_opcheck(sample_kind, op):
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(*_native_call(op, sample_kind, dtype))


def test_opcheck_of_the_backward():
    rows = [torch.randn(1, 4, 9) for _ in range(8)]  # with lse_low the last
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 5)
    both = (torch.randn(1, 4, 9, 5), value, *rows, None, None, 0, 0.3, 2.0, True)
    alone = (None, None, None, *rows[1:-1], None, None, None, None, 0.3, 0.0, False)
    for arguments in (both, alone):
        arguments = (*arguments[:6], query, key, *arguments[6:])
        torch.library.opcheck(
            native.attention_backward.default, arguments, test_utils=("test_schema", "test_faketensor")
        )


def _every_op(q, k, v, mask, bounds):
    gqa = {"enable_gqa": True}
    causal = artent_ext.attention_stats(q, k, is_causal=True, scale=0.3, **gqa)
    masked = artent_ext.attention_entropy(q * 2, k, attn_mask=mask, softcap=3.0, **gqa)
    out, stats = artent_ext.scaled_dot_product_attention_with_stats(q, k, v, window=(3, 2), key_range=bounds, **gqa)
    texts = torch.arange(0, q.shape[-2] + 1, 5)
    product = artent_ext.attention_apply(q, k, out, cu_seqlens_q=texts, is_causal=True, **gqa)
    back = artent_ext.attention_apply(q, k, product, lse=causal.lse, transpose=True, is_causal=True, scale=0.3, **gqa)
    return sum(x.square().mean() for x in (*causal, masked, out, stats.purity, product, back))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic):
    compiled = torch.compile(_every_op, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (17, 23) if dynamic else (17,):
        inputs = [torch.randn(2, heads, length, 8) for heads in (4, 2, 2)]
        mask = torch.rand(length, length) < 0.7
        start = torch.randint(0, 3, (2, length))
        bounds = torch.stack((start, start + length - 2), -1)
        grads = []
        for function in (_every_op, compiled):
            leaves = [x.clone().requires_grad_() for x in inputs]
            function(*leaves, mask, bounds).backward()
            grads.append([x.grad for x in leaves])
        torch.testing.assert_close(grads[0], grads[1])


def test_dropout_compiles_for_any_length():
    def function(q, k):
        return artent_ext.scaled_dot_product_attention_with_stats(
            q, k, k, None, 1e-300, True, window=4, enable_gqa=True
        )

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="eager")
    for length in (17, 23):
        query, key = torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8)
        torch.testing.assert_close(compiled(query, key), function(query, key))


def test_compiles_with_the_default_backend():
    query, key = torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)

    def function(q, k):
        return artent_ext.scaled_dot_product_attention_with_stats(q.sin(), k, k, softcap=2.0)[0].exp()

    torch.testing.assert_close(torch.compile(function, fullgraph=True)(query, key), function(query, key))


def test_autocast_computes_in_the_dtype_of_fused_attention(op):
    inputs = [torch.randn(1, 2, 20, 8) for _ in range(2 if op == "stats" else 3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = ours(op, [inputs[0], inputs[1].bfloat16(), *inputs[2:]], {})
    x = [x.bfloat16() for x in inputs[2:]] if op == "forward" else inputs[2:]  # x may stay float32
    expected = ours(op, [inputs[0].bfloat16(), inputs[1].bfloat16(), *x], {})
    for a, b in zip(values, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_float32_columns_of_half_precision_queries_lose_nothing(op):
    """x in float32: values and gradients are those of the same numbers in float32 throughout."""
    if op not in ("apply", "transposed"):
        return
    half = [torch.randn(1, 2, 40, 8).bfloat16() for _ in range(2)]
    x = torch.randn(1, 2, 40, 3) * 1e5  # beyond float16, too
    results = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        inputs = [y.clone().to(dtype).requires_grad_() for y in half]
        inputs.append(x.to(torch.float64 if dtype == torch.float64 else torch.float32).clone().requires_grad_())
        (value,) = ours(op, inputs, {})
        value.sum(-1).sin().sum().backward()
        results.append((value.double(), inputs[2].grad.double(), inputs[0].grad.float(), inputs[1].grad.float()))
    *_, single, true = results
    for other, dtype in zip(results, (torch.bfloat16, torch.float16), strict=False):
        torch.testing.assert_close(other[0], single[0], rtol=0, atol=0)
        for a, b in zip(other[2:], single[2:], strict=True):
            torch.testing.assert_close(a, b.to(dtype).float())
    torch.testing.assert_close(single[0], true[0], rtol=1e-5, atol=1e-5 * x.abs().max().item())


def test_the_reference_is_differentiable_twice():
    """What the refusal of second derivatives points to."""
    query, key = (torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradgradcheck(lambda q, k: reference.attention_stats(q, k), (query, key), fast_mode=True)
