"""An update that is known by name and shape, and read when its turn comes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from artent.updates import LoRAUpdate, MPSUpdate

NOTHING: Mapping[int, Tensor] = {}


@dataclass(frozen=True, eq=False)
class PendingUpdate:
    """One weight update to come. Listing them reads no tensor's data.

    Attributes:
        name: of its module in the unwrapped model.
        shape: (m, n).
        rank: the nominal rank of a factored update, None for a dense one.
        parameters: the live parameters that it is read from; where they are sharded, each has to be gathered first.
            Empty for what lies in files or plain tensors.
        key: of the weight in the tuned model, where the update is a difference of two.
        reader: whole → update, or None where the weight did not change.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    reader: Callable[[Mapping[int, Tensor]], Tensor | LoRAUpdate | MPSUpdate | None]
    parameters: tuple[Tensor, ...] = ()
    key: str | None = None

    def read(self, whole: Mapping[int, Tensor] = NOTHING) -> Tensor | LoRAUpdate | MPSUpdate | None:
        """The update, or None where the weight did not change.

        ``whole`` gives, by ``id(parameter)``, the whole tensors of sharded parameters (``artent.distributed.whole``).

        Raises ValueError for what cannot be read, by name.
        """
        return self.reader(whole)

    @property
    def cost(self) -> float:
        """Multiplications and additions of its exact profile, roughly: enough to share work out."""
        m, n = self.shape
        if self.rank is None:
            return 2.0 * m * n * min(m, n) + 5.0 * min(m, n) ** 3
        r = min(self.rank, m, n)
        return 2e6 + 6.0 * (m + n) * r * r + 5.0 * ((m * r) ** 1.5 + (n * r) ** 1.5)

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        m, n = self.shape
        return m * n if self.rank is None else (m + n) * self.rank


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape of the whole tensor, also where ZeRO-3 left a part of it here."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))
