"""The derivative of a truncated SVD whose remainder is not zero, and its registration with autograd.

With A v_i = σ_i u_i, Aᵀu_i = σ_i v_i for the k kept triplets and E = A − U S Vh, differentiating these equations gives,
for P = Uᵀ dA V:

- dσ_i = P_ii;
- inside the kept subspaces, with dU = U C and dV = V D there (both antisymmetric):
  (C + D)_ji = (P_ji + P_ij)/(σ_i − σ_j) and (C − D)_ji = (P_ji − P_ij)/(σ_i + σ_j);
- outside, x_i = (I − UUᵀ) du_i and z_i = (I − VVᵀ) dv_i solve
  [σ_i I, −E; −Eᵀ, σ_i I] [x_i; z_i] = [(I − UUᵀ) dA v_i; (I − VVᵀ) dAᵀ u_i],
  symmetric, and positive definite while σ_i > ‖E‖₂.

The backward pass is the adjoint of these: the same system with the gradients of U and V on the right. It presupposes
what they do: that the kept subspaces have converged, and a gap after σ_k. Source: ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from artent_ext._rsvd_ops import without_autocast

_MAX_STEPS = 200  # of conjugate gradients; ‖E‖₂ = 0.9 σ_k takes about 40 to float64 rounding
_ROUNDING = 8  # singular values are known to this many eps·σ₁, inner products to this many eps·|x||y|


def _reciprocal(x: Tensor, floor: Tensor) -> Tensor:
    """1/x, and 0 where |x| ≤ floor."""
    known = x.abs() > floor
    return torch.where(known, 1 / torch.where(known, x, 1.0), 0.0)


def _floor(S: Tensor) -> Tensor:
    return _ROUNDING * torch.finfo(S.dtype).eps * S[..., :1]


def _mixing(x: Tensor, known: Tensor) -> Tensor:
    """The antisymmetric part of x, and 0 where it is the rounding of a difference of equal numbers."""
    difference = (x - x.mT) / 2
    return torch.where(difference.abs() > known, difference, 0.0)


def gradient(A, U, S, Vh, grad_U, grad_S, grad_Vh, grad_residual):
    """Gradient of A (B, m, n) from those of U, S, Vh and residual, each of which may be None.

    Where singular values coincide to rounding, or vanish, the part of the gradient that mixes their vectors is taken as
    zero: so it is for a loss of the subspace that they span; for others it is infinite, or 0/0 and lost (of U S Vh, the
    off-diagonal part among equal singular values).
    """
    m, n, k = A.shape[-2], A.shape[-1], S.shape[-1]
    A, V = A.to(S.dtype), Vh.mT
    inner = torch.zeros_like(S[..., None] * S[..., None, :]) if grad_S is None else torch.diag_embed(grad_S)
    x = z = None
    if (grad_U is not None or grad_Vh is not None) and k > 0:
        a = torch.zeros_like(U) if grad_U is None else grad_U
        b = torch.zeros_like(V) if grad_Vh is None else grad_Vh.mT
        inside_a, inside_b = U.mT @ a, V.mT @ b
        floor = _floor(S)[..., None]
        size = (a.double().square().sum(-2) + b.double().square().sum(-2)).sqrt().to(S.dtype)  # squares overflow
        known = _ROUNDING * torch.finfo(S.dtype).eps * (size[..., None, :] + size[..., :, None])
        difference, total = S[..., None, :] - S[..., :, None], S[..., None, :] + S[..., :, None]
        inner = inner + _mixing(inside_a + inside_b, known) * _reciprocal(difference, floor)
        inner = inner + _mixing(inside_a - inside_b, known) * _reciprocal(total, floor)
        # A full set of vectors leaves nothing outside, and with k = min(m, n) there is no remainder to solve with.
        a = a - U @ inside_a if k < m else torch.zeros_like(a)
        b = b - V @ inside_b if k < n else torch.zeros_like(b)
        if k < min(m, n):
            x, z = remainder_solve(A, U, S, Vh, a.contiguous(), b.contiguous())
        else:
            inverse = _reciprocal(S, _floor(S))[..., None, :]
            x, z = a * inverse, b * inverse
    left = U @ inner
    if grad_residual is not None:
        twice = 2 * grad_residual[..., None, None].to(S.dtype)
        left = left - twice * (U * S[..., None, :])
    out = (left if x is None else left + x) @ Vh
    if z is not None:
        out = out + U @ z.mT
    if grad_residual is not None:
        out = out + twice * A
    return out


@torch.library.custom_op("artent::rsvd_remainder_solve", mutates_args=())
def remainder_solve(A: Tensor, U: Tensor, S: Tensor, Vh: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, m, k), z (B, n, k) with [σ_i I, −E; −Eᵀ, σ_i I] [x_i; z_i] = [a_i; b_i], E = A − U S Vh never stored.

    Conjugate gradients on (I − EᵀE/σ_i²)(σ_i z_i) = b_i + Eᵀa_i/σ_i, every i and matrix at once, until all are solved
    to rounding. An op of its own because it stops when it is done, which a traced graph could not say.
    """
    with without_autocast(A):
        inverse = _reciprocal(S, _floor(S))[:, None, :]
        US = U * S[:, None, :]
        # Unit size, because squares of small gradients underflow.
        unit = torch.maximum(a.abs().amax(1, keepdim=True), b.abs().amax(1, keepdim=True))
        unit = torch.where(unit > 0, unit, 1.0)
        a, b = a / unit, b / unit

        def remainder(z):  # E z_i/σ_i
            return (A @ z - US @ (Vh @ z)) * inverse

        def adjoint(x):  # Eᵀ x_i/σ_i
            return ((x.mT @ A).mT - Vh.mT @ (US.mT @ x)) * inverse

        solution = torch.zeros_like(b)
        rest = b + adjoint(a)
        step = rest
        rest2 = rest.square().sum(1, keepdim=True)
        enough = torch.finfo(S.dtype).eps ** 2 * (a.square().sum(1, keepdim=True) + b.square().sum(1, keepdim=True))
        for _ in range(_MAX_STEPS):
            going = rest2 > enough
            if not going.any():
                break
            image = step - adjoint(remainder(step))
            curvature = (step * image).sum(1, keepdim=True)
            going = going & (curvature > 0)  # not positive: σ_i ≤ ‖E‖₂, and there is no derivative to find
            length = torch.where(going, rest2 / torch.where(going, curvature, 1.0), 0.0)
            solution = solution + length * step
            rest = rest - length * image
            before, rest2 = rest2, torch.where(going, rest.square().sum(1, keepdim=True), 0.0)
            step = rest + torch.where(going, rest2 / torch.where(going, before, 1.0), 0.0) * step
        return (a + remainder(solution)) * (inverse * unit), solution * (inverse * unit)


@remainder_solve.register_fake
def _(A, U, S, Vh, a, b):
    return torch.empty_like(a), torch.empty_like(b)


def _solve_context(ctx, inputs, output):
    A, U, S, Vh, _, _ = inputs
    ctx.save_for_backward(A, U, S, Vh, *output)


def _solve_backward(ctx, grad_x, grad_z):
    # The matrix is symmetric, so its adjoint is another solve; then d(matrix) acts on the solution. With this a second
    # derivative of rsvd is as good as the first.
    A, U, S, Vh, x, z = ctx.saved_tensors
    with without_autocast(A):
        grad_a, grad_b = remainder_solve(A, U, S, Vh, grad_x.contiguous(), grad_z.contiguous())
        grad_E = grad_a @ z.mT + x @ grad_b.mT
        EV, UE = grad_E @ Vh.mT, U.mT @ grad_E
        grad_S = -(U * EV).sum(1) - (grad_a * x).sum(1) - (grad_b * z).sum(1)
        return grad_E, -EV * S[:, None, :], grad_S, -S[:, :, None] * UE, grad_a, grad_b


remainder_solve.register_autograd(_solve_backward, setup_context=_solve_context)


def _context(ctx, inputs, output):
    U, S, Vh, _ = output
    ctx.save_for_backward(inputs[0], U, S, Vh)
    ctx.set_materialize_grads(False)


def _backward(ctx, *grads):
    A, U, S, Vh = ctx.saved_tensors
    if all(g is None for g in grads):
        return (None,) * 5
    with without_autocast(A):
        return gradient(A, U, S, Vh, *grads).to(A.dtype), None, None, None, None


torch.library.register_autograd("artent::rsvd", _backward, setup_context=_context)
