"""A weight update ΔW as an operator: a dense tensor, LoRA factors, or factors given as MPS cores."""

import warnings
from dataclasses import dataclass
from math import isfinite
from numbers import Real

import torch
from torch import Tensor


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
        _check_pair(self.B, self.A, self.scaling)

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """The nominal rank r; the update's own may be lower."""
        return self.B.shape[1]

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.B, self.A

    def dense(self) -> Tensor:
        """ΔW as an m×n tensor."""
        return self.scaling * (self.B @ self.A)


@dataclass(frozen=True, eq=False)
class MPSUpdate:
    """ΔW = scaling · B A where B (m, r) and A (r, n), or either of them, are lists of MPS cores (docs/math.md §6).

    A core is (left bond, site dimension, right bond); the two ends lack their outer bond, and one of them carries the
    rank index outermost: [d₁, χ], [χ, d₂, r] or, mirrored, [r, d₁, χ], [χ, d₂]. Any number of cores ≥ 2. The sites are
    the digits of the factor's long side, the first core the most significant.
    """

    B: Tensor | list[Tensor]
    A: Tensor | list[Tensor]
    scaling: float = 1.0

    def __post_init__(self):
        _check_pair(*self.factors(), self.scaling)

    @property
    def shape(self) -> tuple[int, int]:
        B, A = self.factors()
        return B.shape[0], A.shape[1]

    @property
    def rank(self) -> int:
        """The nominal rank r; the update's own may be lower."""
        return self.factors()[0].shape[1]

    def factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """B (m, r) and A (r, n), contracted from their cores: in ``dtype``, or in the cores' own."""
        B = self.B if isinstance(self.B, Tensor) else contract_cores("B", self.B, dtype)
        A = self.A if isinstance(self.A, Tensor) else contract_cores("A", self.A, dtype).mT
        return check_matrix("B", B).to(dtype or B.dtype), check_matrix("A", A).to(dtype or A.dtype)

    def dense(self) -> Tensor:
        """ΔW as an m×n tensor."""
        B, A = self.factors()
        return self.scaling * (B @ A)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Update = Tensor | LoRAUpdate | MPSUpdate


def contract_cores(name: str, cores, dtype: torch.dtype | None = None) -> Tensor:
    """The (Πd, r) matrix of a list of cores as described at MPSUpdate, in ``dtype`` or the cores' own."""
    if not isinstance(cores, (list, tuple)) or len(cores) < 2:
        raise TypeError(f"{name}: expected a matrix or a list of at least two MPS cores, got {_describe(cores)}")
    for i, core in enumerate(cores):
        _check_floating(f"{name}[{i}]", core)
    shapes = [tuple(core.shape) for core in cores]
    ranks = [len(shape) for shape in shapes]
    rank_first = ranks[0] == 3
    if ranks != [2 + rank_first, *[3] * (len(cores) - 2), 3 - rank_first] or any(0 in shape for shape in shapes):
        raise ValueError(
            f"{name}: cores must be shaped [d₁, χ], …, [χ, d, r] or [r, d₁, χ], …, [χ, d], none empty, got {shapes}"
        )
    for i in range(len(cores) - 1):
        if shapes[i][-1] != shapes[i + 1][0]:
            raise ValueError(f"{name}: bond {i + 1} does not match between cores {shapes[i]} and {shapes[i + 1]}")
    if dtype is None and len({core.dtype for core in cores}) > 1:
        raise TypeError(f"{name}: cores must have one dtype, got {[core.dtype for core in cores]}")
    cores = [core.to(dtype or core.dtype) for core in cores]
    state = cores[0]
    for core in cores[1:]:
        state = torch.tensordot(state, core, dims=1)
    return state.flatten(1).mT if rank_first else state.flatten(0, -2)


def _check_floating(name: str, value) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {_describe(value)}")
    if value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name}: expected a dense tensor with data, got layout {value.layout} on {value.device}")
    if value.dtype not in _FLOATS:
        hint = " (quantised weights must be dequantised first)" if not value.is_complex() else ""
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {value.dtype}{hint}")


def _check_pair(B: Tensor, A: Tensor, scaling) -> None:
    if B.shape[1] != A.shape[0]:
        swapped = " (are B and A swapped?)" if A.shape[1] == B.shape[0] else ""
        raise ValueError(
            f"B, A: ranks do not match: B is {tuple(B.shape)} and A is {tuple(A.shape)},"
            f" expected (m, r) and (r, n){swapped}"
        )
    if B.shape[1] > max(B.shape[0], A.shape[1]):
        warnings.warn(
            f"rank {B.shape[1]} exceeds both sides of the {B.shape[0]}×{A.shape[1]} update: are B and A swapped? "
            "(B is (m, r), A is (r, n))",
            stacklevel=4,
        )
    if B.device != A.device:
        raise ValueError(f"B, A: on different devices, {B.device} and {A.device}")
    if not isinstance(scaling, Real) or isinstance(scaling, bool):
        raise TypeError(f"scaling: expected a number such as lora_alpha / r, got {_describe(scaling)}")
    if not isfinite(scaling) or scaling == 0:
        raise ValueError(f"scaling: expected a finite number other than zero, got {scaling} (zero leaves no update)")


def _describe(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"{type(value).__name__}"
