"""torch.ops.artent.attention_* as citizens of PyTorch: shapes for tracing, and gradients from one streamed backward.

The schemas stand in csrc/library.cpp, the gradients in docs/math.md §4. An upstream gradient that reaches A through a
product is ∂/∂A = grad_out · valueᵀ, whichever product it was.
"""

from __future__ import annotations

import torch

from artent_ext import _native  # noqa: F401 (registers torch.ops.artent)
from artent_ext._arguments import accumulator_dtype

ops = torch.ops.artent


def _rows(query, key):
    torch._check(query.dim() == 4 and key.dim() == 4, lambda: "query and key must be 4-d")
    torch._check(query.shape[1] % key.shape[1] == 0, lambda: "query heads must be a multiple of key heads")
    return query.new_empty(query.shape[:-1], dtype=accumulator_dtype(query.dtype))


def _has_rows(x, rows, name):
    torch._check(x.dim() == 4, lambda: f"{name} must be 4-d, got {x.dim()}-d")
    torch._check(x.shape[2] == rows, lambda: f"{name}: size {x.shape[2]} at dimension 2, expected {rows}")


@torch.library.register_fake("artent::attention_stats")
def _(query, key, attn_mask, key_range, diagonal, scale, softcap):
    rows = _rows(query, key)
    return rows, *(torch.empty_like(rows) for _ in range(3))


@torch.library.register_fake("artent::attention_forward")
def _(query, key, value, attn_mask, key_range, diagonal, scale, softcap):
    rows = _rows(query, key)
    _has_rows(value, key.shape[2], "value")
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, rows, *(torch.empty_like(rows) for _ in range(3))


@torch.library.register_fake("artent::attention_apply")
def _(query, key, x, lse, lse_low, transpose, attn_mask, key_range, diagonal, scale, softcap):
    _rows(query, key)
    result, rows = (key, query) if transpose else (query, key)
    _has_rows(x, rows.shape[2], "x")
    return x.new_empty((*query.shape[:2], result.shape[2], x.shape[-1]))


@torch.library.register_fake("artent::attention_backward")
def _(
    grad_out,
    value,
    delta,
    grad_lse,
    grad_entropy,
    grad_purity,
    query,
    key,
    lse,
    entropy,
    purity,
    lse_low,
    attn_mask,
    key_range,
    diagonal,
    scale,
    softcap,
    needs_value,
):
    grad_value = value.new_empty(value.shape) if needs_value else query.new_empty((0, 0, 0, 0))
    return query.new_empty(query.shape), key.new_empty(key.shape), grad_value


def _stats_context(ctx, inputs, output):
    query, key, attn_mask, key_range, *ctx.numbers = inputs
    ctx.save_for_backward(query, key, *output, attn_mask, key_range)
    ctx.set_materialize_grads(False)


def _stats_backward(ctx, *grads):
    *saved, attn_mask, key_range = ctx.saved_tensors
    grad_query, grad_key, _ = ops.attention_backward(
        None, None, None, *grads[:3], *saved, attn_mask, key_range, *ctx.numbers, False
    )
    return grad_query, grad_key, None, None, None, None, None


def _forward_context(ctx, inputs, output):
    query, key, value, attn_mask, key_range, *ctx.numbers = inputs
    ctx.save_for_backward(value, *output[:1], query, key, *output[1:], attn_mask, key_range)
    ctx.set_materialize_grads(False)


def _forward_backward(ctx, grad_out, *grads):
    value, out, *saved, attn_mask, key_range = ctx.saved_tensors
    through_value = (None, None, None) if grad_out is None else (grad_out, value, _row_products(grad_out, out))
    needs_value = grad_out is not None and ctx.needs_input_grad[2]
    grad_query, grad_key, grad_value = ops.attention_backward(
        *through_value, *grads[:3], *saved, attn_mask, key_range, *ctx.numbers, needs_value
    )
    return grad_query, grad_key, grad_value if needs_value else None, None, None, None, None, None


def _apply_context(ctx, inputs, output):
    query, key, x, lse, lse_low, ctx.transpose, attn_mask, key_range, *ctx.numbers = inputs
    ctx.of_A = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]  # x and A·x are for the gradient of A only
    x, out = (x, None if ctx.transpose else output) if ctx.of_A else (None, None)
    ctx.save_for_backward(query, key, x, lse, lse_low, out, attn_mask, key_range)


def _apply_backward(ctx, grad):
    query, key, x, lse, lse_low, out, *masks = ctx.saved_tensors
    product = grad_query = grad_key = None
    if ctx.needs_input_grad[2] or (ctx.of_A and ctx.transpose):
        g = grad.to(lse.dtype) if ctx.of_A and ctx.transpose else grad  # delta below is a difference's small part
        product = ops.attention_apply(query, key, g, lse, lse_low, not ctx.transpose, *masks, *ctx.numbers)
    if ctx.of_A:
        # delta = Σ_j A_ij ∂/∂A_ij is grad·(A x) for A x, and x·(A grad) for Aᵀ x.
        grad_out, value, out = (x, grad, product) if ctx.transpose else (grad, x, out)
        delta = _row_products(grad_out, out)
        q, k = query.to(x.dtype), key.to(x.dtype)  # of float32 columns nothing is rounded to half precision
        grads = ops.attention_backward(
            grad_out, value, delta, None, None, None, q, k, lse, lse, lse, lse_low, *masks, *ctx.numbers, False
        )
        grad_query, grad_key = grads[0].to(query.dtype), grads[1].to(key.dtype)
    grad_x = product.to(grad.dtype) if ctx.needs_input_grad[2] else None
    return grad_query, grad_key, grad_x, *(None,) * 8


def _row_products(a, b):
    """Σ_c a·b, (B, H, T_q), in the accumulator's dtype."""
    return (a.to(accumulator_dtype(a.dtype)) * b).sum(-1)


def _double_backward(ctx, *grads):
    raise RuntimeError(
        "attention_stats, attention_apply and scaled_dot_product_attention_with_stats are differentiable once: for "
        "second derivatives use the functions of the same names in artent_ext.reference"
    )


torch.library.register_autograd("artent::attention_stats", _stats_backward, setup_context=_stats_context)
torch.library.register_autograd("artent::attention_forward", _forward_backward, setup_context=_forward_context)
torch.library.register_autograd("artent::attention_apply", _apply_backward, setup_context=_apply_context)
torch.library.register_autograd("artent::attention_backward", _double_backward)
