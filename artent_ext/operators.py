"""A matrix known by its products alone: what rsvd takes in place of a tensor."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from artent_ext._arguments import _broadcast

__all__ = ["Operator"]

_DTYPES = (torch.float32, torch.float64)
_SWAPPED = "; are matmat (A X) and rmatmat (Aᵀ Y) swapped?"


class Operator:
    """A batch of matrices A (..., m, n) given by the products A X and Aᵀ Y.

    >>> Operator(lambda X: B @ (A @ X), lambda Y: A.mT @ (B.mT @ Y), shape=(m, n))  # what from_factors(B, A) builds

    No gradient flows through an operator: what is computed of it is a constant to autograd.

    Args:
        matmat: X (..., n, q) → A X (..., m, q). The batch dimensions are those of ``shape``; q is chosen by the caller.
        rmatmat: Y (..., m, q) → Aᵀ Y (..., n, q).
        shape: (..., m, n).
        dtype: float32 or float64, of X, of Y, and of what the callables return.
        device: of the same tensors.
        norm2: ‖A‖_F², the squared Frobenius norm, a number or a tensor (...). With it a decomposition knows its
            residual.

    Raises:
        TypeError: a callable is none, or the dtype is not float32 or float64.
        ValueError: shape or norm2 make no sense. In a decomposition: a product has another shape or device, or fails
            over shapes or dtypes; norm2 is less than what was found.
        RuntimeError: in a decomposition, a product that fails otherwise.
    """

    def __init__(
        self,
        matmat: Callable[[Tensor], Tensor],
        rmatmat: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        norm2: float | Tensor | None = None,
    ):
        for name, function in (("matmat", matmat), ("rmatmat", rmatmat)):
            if not callable(function):
                raise TypeError(f"{name} must be callable, got {type(function).__name__}")
        if dtype not in _DTYPES:
            raise TypeError(
                f"dtype must be torch.float32 or torch.float64, got {dtype}; products with a matrix in half precision "
                "are to be returned in float32"
            )
        try:
            self.shape = torch.Size(shape)
        except TypeError:
            raise TypeError(f"shape must be integers (..., m, n), got {shape!r}") from None
        if len(self.shape) < 2 or min(self.shape) < 0:
            raise ValueError(f"shape must be (..., m, n), got {tuple(self.shape)}")
        self.dtype = dtype
        self.device = torch.device(device)
        self.norm2 = None if norm2 is None else self._norm2(norm2)
        self.norm2_is_ours = False  # and true: no decomposition need doubt it
        self._matmat, self._rmatmat = matmat, rmatmat

    @classmethod
    def from_factors(cls, B: Tensor, A: Tensor, scaling: float = 1.0) -> Operator:
        """scaling·B A from B (..., m, r) and A (..., r, n), as LoRA has them; ‖B A‖_F² from two r×r Gram matrices."""
        for name, x in (("B", B), ("A", A)):
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
                what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(f"{name} must be a floating-point tensor of two or more dimensions, got {what}")
        if B.shape[-1] != A.shape[-2]:
            raise ValueError(
                f"B {tuple(B.shape)} and A {tuple(A.shape)} have no product: B is (..., m, r) and A is (..., r, n)"
                + ("; were they swapped?" if A.shape[-1] == B.shape[-2] else "")
            )
        if isinstance(scaling, bool) or not isinstance(scaling, numbers.Real):
            raise TypeError(f"scaling must be a number, got {type(scaling).__name__}")
        if not -math.inf < scaling < math.inf:  # math.isfinite is nothing that torch.compile could trace
            raise ValueError(f"scaling must be finite, got {scaling}")
        batch = _broadcast(B.shape[:-2], A.shape[:-2], "B and A: batch dimensions")
        if B.device != A.device:
            raise ValueError(f"B is on {B.device} and A is on {A.device}: move them to one device")
        dtype = torch.float64 if torch.float64 in (B.dtype, A.dtype) else torch.float32
        B, A = B.detach().to(dtype), A.detach().to(dtype)
        scaling = scaling if isinstance(scaling, float) else float(scaling)
        wide_B, wide_A = B.double(), A.double()
        norm2 = ((wide_B.mT @ wide_B) * (wide_A @ wide_A.mT)).sum((-2, -1)) * scaling**2
        update = cls(
            lambda X: scaling * (B @ (A @ X)),
            lambda Y: scaling * (A.mT @ (B.mT @ Y)),
            (*batch, B.shape[-2], A.shape[-1]),
            dtype,
            B.device,
            norm2.clamp_min(0.0),
        )
        # Where B A cancels, its norm does so less than the products in float32.
        update.norm2_is_ours = True
        return update

    @property
    def batch(self) -> torch.Size:
        return self.shape[:-2]

    def matmat(self, X: Tensor) -> Tensor:
        """A X, checked."""
        return self._checked("matmat", self._matmat, X, self.shape[-1], self.shape[-2])

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Aᵀ Y, checked."""
        return self._checked("rmatmat", self._rmatmat, Y, self.shape[-2], self.shape[-1])

    def __repr__(self):
        return f"Operator({tuple(self.shape)}, dtype={self.dtype}, device='{self.device}')"

    def _checked(self, name, function, x, inner, outer):
        try:
            out = function(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._explained(name, x, error) from error
        expected = (*self.batch, outer, x.shape[-1])
        if not isinstance(out, Tensor):
            raise TypeError(f"{name} must return a torch.Tensor, got {type(out).__name__}")
        if tuple(out.shape) != expected:
            raise ValueError(
                f"{name} was given {tuple(x.shape)} and must return {expected} for an operator of shape "
                f"{tuple(self.shape)}, got {tuple(out.shape)}"
                + (_SWAPPED if inner != outer and out.dim() > 1 and out.shape[-2] == inner else "")
            )
        if out.dtype != self.dtype:
            raise TypeError(
                f"{name} must return {self.dtype}, the operator's dtype, got {out.dtype}"
                + (f"; say Operator(..., dtype={out.dtype}) for such data" if out.dtype in _DTYPES else "")
            )
        if out.device.type != self.device.type:
            raise ValueError(f"{name} must return a tensor on {self.device}, got one on {out.device}")
        return out

    def _explained(self, name, x, error):
        """What to raise for a product that failed."""
        text = str(error)
        words = text.lower()
        kind, hint = RuntimeError, ""
        if "dtype" in words or "scalar type" in words:
            kind = ValueError
            hint = f"; are the data behind it of another dtype? Say Operator(..., dtype=…), here {self.dtype}"
        elif any(word in words for word in ("shape", "size", "dimension")):
            kind, hint = ValueError, _SWAPPED if self.shape[-1] != self.shape[-2] else ""
        return kind(
            f"{name} was given {tuple(x.shape)} {x.dtype} by an operator of shape {tuple(self.shape)} and raised "
            f"{type(error).__name__}: {text}{hint}"
        )

    def _norm2(self, norm2):
        if isinstance(norm2, bool) or not isinstance(norm2, (numbers.Real, Tensor)):
            raise TypeError(f"norm2 must be a number or a tensor, got {type(norm2).__name__}")
        if not isinstance(norm2, Tensor) and not 0 <= norm2 < math.inf:
            raise ValueError(f"norm2 is ‖A‖_F², finite and not negative, got {norm2}")
        norm2 = torch.as_tensor(norm2, dtype=torch.float64, device=self.device).detach()
        try:
            return norm2.expand(self.batch)
        except RuntimeError:
            raise ValueError(
                f"norm2 of shape {tuple(norm2.shape)} does not broadcast to the batch dimensions {tuple(self.batch)}"
            ) from None
