"""Updates as the tensors that their profile is made of, and what is wrong with them, told by name."""

from math import inf

import torch
from torch import Tensor

from artent.updates import LoRAUpdate, MPSUpdate, check_matrix
from artent_ext import Operator

_ZERO_HINTS = {
    "": "the weight did not change, or it was compared with itself",
    ".A": "was the adapter loaded, or was A set to zero?",
    ".B": "B is zero at a LoRA's initialisation: train a step first",
}


def operands_of(name: str, update) -> tuple[Tensor, ...]:
    """(W,) of a dense update, (B, A) of a factored one. Its scaling is no part of the state."""
    if isinstance(update, MPSUpdate):
        return update.factors(torch.float64)
    if isinstance(update, LoRAUpdate):
        return update.factors()
    if isinstance(update, Operator):
        raise TypeError(
            f"{name}: got an artent_ext.Operator, and the bonds off the row|column cut need more than its products with"
            " columns: pass artent.LoRAUpdate(B, A) if it stands for factors, else the dense matrix"
        )
    if not isinstance(update, Tensor):
        raise TypeError(
            f"{name}: expected a torch.Tensor, artent.LoRAUpdate or artent.MPSUpdate (or a list of them),"
            f" got {type(update).__name__}"
        )
    return (check_matrix(name, update),)


def check_peak(names: list[str], parts: list[Tensor]) -> None:
    """Refuse NaN, Inf and zero updates, by name."""
    for part, factor in zip(parts, (".B", ".A") if len(parts) == 2 else ("",)):
        peak = part.detach().abs().amax((-2, -1))
        for name, value in zip(names, peak.tolist()):
            if not value < inf:
                raise ValueError(
                    f"{name}{factor}: holds NaN or Inf (a diverged run, or an overflow in half precision?)"
                )
            if value == 0:
                hint = _ZERO_HINTS[factor]
                raise ValueError(f"{name}{factor}: is zero, and a zero update has no state ({hint})")


def check_product(names: list[str], vanishes: Tensor) -> None:
    """Refuse factors whose product is zero to rounding, by name; ``vanishes`` is a bool for each."""
    for name, zero in zip(names, vanishes.tolist()):
        if zero:
            raise ValueError(
                f"{name}: neither B nor A is zero but B @ A is, to rounding, and a zero update has no state "
                "(do columns of B and rows of A cancel, or differ in scale by 10⁸ and more?)"
            )
