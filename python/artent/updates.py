"""A weight update ΔW as an operator: a dense tensor, LoRA factors, or factors given as MPS cores."""

import warnings
from dataclasses import dataclass
from math import isfinite
from numbers import Real

import torch
from torch import Tensor

from artent.mps import MPSShape, contract, dense_shape


def check_matrix(name: str, value) -> Tensor:
    """``value`` as a dense real floating 2-d tensor without empty dimensions, or an error that names it."""
    _check_floating(name, value)
    if value.ndim != 2:
        hint = "; pass a batch as a list of matrices" if value.ndim == 3 else ""
        raise ValueError(f"{name}: expected a matrix (m, n), got shape {tuple(value.shape)}{hint}")
    if 0 in value.shape:
        raise ValueError(f"{name}: has an empty dimension, shape {tuple(value.shape)}")
    return value


@dataclass(frozen=True, eq=False)
class LoRAUpdate:
    """ΔW = scaling · B A with B (m, r) and A (r, n), never formed unless ``dense()`` is called.

    Raises TypeError or ValueError for factors that are not floating matrices, do not match or are empty.
    """

    B: Tensor
    A: Tensor
    scaling: float = 1.0

    def __post_init__(self):
        check_matrix("B", self.B)
        check_matrix("A", self.A)
        _check_pair(self.B.shape, self.A.shape, (self.B.device, self.A.device), self.scaling)

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """The nominal rank r; the update's own may be lower."""
        return self.B.shape[1]

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """B (m, r) and A (r, n), in ``dtype`` or their own."""
        return self.B.to(dtype or self.B.dtype), self.A.to(dtype or self.A.dtype)

    def dense(self) -> Tensor:
        """ΔW as an m×n tensor."""
        return self.scaling * (self.B @ self.A)


@dataclass(frozen=True, eq=False)
class MPSUpdate:
    """ΔW = scaling · B A where B (m, r) and A (r, n), or either of them, are lists of MPS cores (docs/math.md §6).

    A core is (left bond, site dimension, right bond); the two ends lack their outer bond, and one of them carries the
    rank index outermost: [d₁, χ], [χ, d₂, r] or, mirrored, [r, d₁, χ], [χ, d₂]. Any number of cores ≥ 2. The sites are
    the digits of the factor's long side, the first core the most significant.

    Raises TypeError or ValueError for factors and cores that are not floating tensors of these shapes, or do not match.
    """

    B: Tensor | list[Tensor]
    A: Tensor | list[Tensor]
    scaling: float = 1.0

    def __post_init__(self):
        B, A = self.chains
        devices = (f[0].device if isinstance(f, (list, tuple)) else f.device for f in (self.B, self.A))
        _check_pair((B.dimension, B.rank), (A.rank, A.dimension), tuple(devices), self.scaling)

    @property
    def chains(self) -> tuple[MPSShape, MPSShape]:
        """B's and A's rank, sites, bonds and carrier; a dense factor is a chain of one core."""
        return _chain("B", self.B), _chain("A", self.A)

    @property
    def shape(self) -> tuple[int, int]:
        B, A = self.chains
        return B.dimension, A.dimension

    @property
    def rank(self) -> int:
        """The nominal rank r; the update's own may be lower."""
        return self.chains[0].rank

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """B (m, r) and A (r, n), contracted from their cores: in ``dtype``, or in the cores' own."""
        B = self.B if isinstance(self.B, Tensor) else contract_cores("B", self.B, dtype)
        A = self.A if isinstance(self.A, Tensor) else contract_cores("A", self.A, dtype).mT
        return B.to(dtype or B.dtype), A.to(dtype or A.dtype)

    def dense(self) -> Tensor:
        """ΔW as an m×n tensor."""
        B, A = self.factors()
        return self.scaling * (B @ A)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Update = Tensor | LoRAUpdate | MPSUpdate


@torch.no_grad()
def is_zero(update: LoRAUpdate | MPSUpdate) -> bool:
    """Whether factors multiply to zero (B before the first step), told from their Gram matrices, r × r."""
    B, A = update.factors(torch.float64)
    gram_B, gram_A = B.mT @ B, A @ A.mT
    # ‖BA‖ against ‖B‖·‖A‖: an orthogonal start, which PEFT draws in float32, has BA = 0 to rounding only
    # (up to 1.4 eps). NaN is not zero.
    given = update.A if isinstance(update.A, Tensor) else update.A[0]
    rounding = max(torch.finfo(given.dtype).eps, 4 * torch.finfo(torch.float32).eps)
    return bool((gram_B * gram_A).sum() <= rounding**2 * gram_B.trace() * gram_A.trace())


def contract_cores(name: str, cores, dtype: torch.dtype | None = None) -> Tensor:
    """The (Πd, r) matrix of a list of cores as described at MPSUpdate, in ``dtype`` or the cores' own."""
    shape = _chain(name, cores)
    return contract([core.to(dtype or core.dtype) for core in cores], shape).mT


def _chain(name: str, factor) -> MPSShape:
    """The shape of a factor, read off its tensors: a matrix, B's as (m, r) and A's as (r, n), or a list of cores."""
    if isinstance(factor, Tensor):
        shape = check_matrix(name, factor).shape
        return dense_shape(*shape, "first") if name == "A" else dense_shape(*reversed(shape), "last")
    if not isinstance(factor, (list, tuple)) or len(factor) < 2:
        raise TypeError(f"{name}: expected a matrix or a list of at least two MPS cores, got {_describe(factor)}")
    for i, core in enumerate(factor):
        _check_floating(f"{name}[{i}]", core)
    shapes = [tuple(core.shape) for core in factor]
    ranks = [len(shape) for shape in shapes]
    first = ranks[0] == 3
    if ranks != [2 + first, *[3] * (len(factor) - 2), 3 - first] or any(0 in shape for shape in shapes):
        raise ValueError(
            f"{name}: cores must be shaped [d₁, χ], …, [χ, d, r] or [r, d₁, χ], …, [χ, d], none empty, got {shapes}"
        )
    for i in range(len(factor) - 1):
        if shapes[i][-1] != shapes[i + 1][0]:
            raise ValueError(f"{name}: bond {i + 1} does not match between cores {shapes[i]} and {shapes[i + 1]}")
    for what, all_of in (("dtype", [core.dtype for core in factor]), ("device", [core.device for core in factor])):
        if len(set(all_of)) > 1:
            raise TypeError(f"{name}: cores must have one {what}, got {', '.join(map(str, all_of))}")
    sites = tuple(shape[i > 0 or first] for i, shape in enumerate(shapes))  # behind the left bond, if there is one
    bonds = tuple(shape[-1] for shape in shapes[:-1])
    return MPSShape(shapes[0][0] if first else shapes[-1][-1], sites, bonds, "first" if first else "last")


def _check_floating(name: str, value) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {_describe(value)}")
    if value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name}: expected a dense tensor with data, got layout {value.layout} on {value.device}")
    if value.dtype not in _FLOATS:
        hint = " (quantised weights must be dequantised first)" if not value.is_complex() else ""
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {value.dtype}{hint}")


def _check_pair(B: tuple[int, int], A: tuple[int, int], devices, scaling) -> None:
    """Check what factors of these shapes, on these devices, must have in common."""
    if B[1] != A[0]:
        swapped = " (are B and A swapped?)" if A[1] == B[0] else ""
        raise ValueError(
            f"B, A: ranks do not match: B is {tuple(B)} and A is {tuple(A)}, expected (m, r) and (r, n){swapped}"
        )
    if B[1] > max(B[0], A[1]):
        warnings.warn(
            f"rank {B[1]} exceeds both sides of the {B[0]}×{A[1]} update: are B and A swapped? "
            "(B is (m, r), A is (r, n))",
            stacklevel=4,
        )
    if devices[0] != devices[1]:
        raise ValueError(f"B, A: on different devices, {devices[0]} and {devices[1]}")
    if not isinstance(scaling, Real) or isinstance(scaling, bool):
        raise TypeError(f"scaling: expected a number such as lora_alpha / r, got {_describe(scaling)}")
    if not isfinite(scaling) or scaling == 0:
        raise ValueError(f"scaling: expected a finite number other than zero, got {scaling} (zero leaves no update)")


def _describe(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}"
