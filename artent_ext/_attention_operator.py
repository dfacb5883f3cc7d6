"""Reduced density matrices of an attention matrix A as a state, by streamed products (docs/math.md §1, §4).

At a bond with D row digits on its left, ρ = Σ_s A_s A_sᵀ/‖A‖_F² over the T_q/D slices of rows s, s + T_q/D, …; at one
with C column digits on its right, ρ = Σ_e A_eᵀA_e/‖A‖_F² over the T_k/C blocks of C keys. The row|column cut is both
with a single slice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from artent_ext._attention_arguments import AttentionArguments
from artent_ext._attention_ops import ops
from artent_ext._krylov import State, gram


class AttentionState:
    """A of every head, one after the other (N = B·H), with ‖A‖_F² from one pass for its row statistics.

    With ``row_normalised`` every row is divided by its 2-norm, the root of its purity.
    """

    def __init__(self, arguments: AttentionArguments, row_normalised: bool = False):
        self.query, self.key, self.mask, self.key_range, self.diagonal, *self.numbers = arguments
        self.query, self.key = self.query.detach(), self.key.detach()
        self.lse, _, purity, self.lse_low = ops.attention_stats(self.query, self.key, *arguments[2:])
        self.rows, self.columns = self.query.shape[2], self.key.shape[2]
        self.count = self.query.shape[0] * self.query.shape[1]
        self.dtype = self.lse.dtype
        self.weight = None  # of every row, (B, H, T_q, 1)
        seen = ~(purity == 0)  # the row has a key, or is NaN
        if row_normalised:
            self.weight = torch.where(seen, purity.rsqrt(), 0.0)[..., None]
            purity = torch.where(seen, purity * self.weight[..., 0].square(), 0.0)  # 1, or NaN
        purity, self.seen = purity.double().flatten(0, 1), seen.flatten(0, 1)  # (N, T_q)
        self.norm2 = purity.sum(-1)
        relative = torch.where(purity > 0, self._relative_rounding() * (3.0 if row_normalised else 1.0), 0.0)
        self.relative = relative.amax(-1)
        # ρ and the rounded ρ are reductions of two pure states, and no further apart than those.
        self.distance = ((purity * relative.square()).sum(-1) / self.norm2).sqrt()

    def left(self, D: int) -> State:
        """The density matrix of the D leading row digits; D = T_q at the row|column cut."""
        step = self.rows // D
        support = self.seen.view(self.count, D, step).any(-1)
        slices = [self._rows(s, step) for s in range(step)]

        def product(x):
            return sum(self._apply(a, self._apply(a, x, True), False) for a in slices)

        def matrix():
            return sum(self._gram(a, D, True) for a in slices)

        return self._state(product, matrix, support, support.sum(-1).clamp_max(step * self.columns))

    def right(self, C: int) -> State:
        """The density matrix of the last column digits, of dimension C; C = T_k at the row|column cut."""
        support = torch.ones(self.count, C, dtype=torch.bool, device=self.seen.device)
        slices = [self._columns(first, C) for first in range(0, self.columns, C)]

        def product(x):
            return sum(self._apply(a, self._apply(a, x, False), True) for a in slices)

        def matrix():
            return sum(self._gram(a, C, False) for a in slices)

        return self._state(product, matrix, support, (self.seen.sum(-1) * (self.columns // C)).clamp_max(C))

    def _state(self, product, matrix, support, dim):
        # Sums of T terms in the dtype of the products round like √T.
        products = torch.finfo(self.dtype).eps * (math.sqrt(self.rows) + math.sqrt(self.columns)) / 2
        support = support.to(self.dtype)
        return State(product, matrix, support, self.norm2, dim.double(), self.distance, self.relative, products)

    def _apply(self, arguments, x, transpose):
        weight, query, key, lse, lse_low, *visible = arguments
        x = x.reshape(*query.shape[:2], *x.shape[-2:])
        if weight is not None and transpose:
            x = x * weight
        out = ops.attention_apply(query, key, x, lse, lse_low, transpose, *visible, *self.numbers)
        return (out if weight is None or transpose else out * weight).flatten(0, 1)

    def _gram(self, arguments, n, transpose):
        """A_s A_sᵀ, or A_sᵀA_s without ``transpose``, from the elements of A_s: sums in float64 leave no rounding."""
        identity = torch.eye(n, dtype=self.dtype, device=self.lse.device).expand(self.count, n, n)
        elements = self._apply(arguments, identity, transpose)
        return gram(elements, elements)

    def _rows(self, s, step):
        if step == 1:
            return self.weight, self.query, self.key, self.lse, self.lse_low, self.mask, self.key_range, self.diagonal
        at = slice(s, None, step)
        mask = None if self.mask is None else self.mask[:, :, at]
        key_range = self.key_range
        if self.diagonal is not None:  # of every step-th row it is none
            end = torch.arange(self.rows, device=self.lse.device) + (self.diagonal + 1)
            if key_range is None:
                key_range = torch.stack((torch.zeros_like(end), end.clamp(0, self.columns)), -1)
                key_range = key_range.expand(*self.query.shape[:2], -1, -1)
            else:
                key_range = torch.stack((key_range[..., 0], key_range[..., 1].minimum(end)), -1)
        key_range = None if key_range is None else key_range[:, :, at]
        weight = None if self.weight is None else self.weight[:, :, at]
        lse, low = (x[:, :, at].contiguous() for x in (self.lse, self.lse_low))
        return weight, self.query[:, :, at], self.key, lse, low, mask, key_range, None

    def _columns(self, first, size):
        at = slice(first, first + size)
        mask = None if self.mask is None else self.mask[..., at]
        key_range = None if self.key_range is None else (self.key_range - first).clamp(0, size)
        diagonal = None if self.diagonal is None else self.diagonal - first
        return self.weight, self.query, self.key[:, :, at], self.lse, self.lse_low, mask, key_range, diagonal

    def _relative_rounding(self) -> Tensor:
        """(N, T_q) bound on the relative rounding of the elements of every row, e^{s − lse}, as rounding goes.

        A logit is a sum of D products, of which no partial sum is larger than ‖q‖‖k‖, and roundings add up like √D;
        a soft cap makes it no larger.
        """
        query, key = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64) for x in (self.query, self.key))
        longest = torch.where(key.isfinite(), key, 0.0).amax(-1, keepdim=True)  # of a key that a mask hides may be NaN
        longest = longest.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scale, softcap = self.numbers
        of_sum = 1.0 + math.sqrt(self.query.shape[-1]) / 4.0 + (2.0 if softcap else 0.0)
        of_logit = of_sum * abs(scale) * query * longest
        units = 4.0 + math.sqrt(self.columns) / 2.0 + of_logit + 2.0 * self.lse.double().abs()
        return units.flatten(0, 1) * torch.finfo(self.dtype).eps
