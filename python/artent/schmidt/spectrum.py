"""What is known of the Schmidt probabilities at one bond, and what that says of their entropy."""

from typing import NamedTuple

import torch
from torch import Tensor

from artent.entropy import certificate, entropy


class Spectrum(NamedTuple):
    """Schmidt probabilities λ at a bond, of a batch of updates: all of them, or a lower bound on each of the largest.

    Without a ``tail`` p is λ, to the rounding of the exact method. With one, λ_i ≥ p_i for the k largest and the λ sum
    to Σp + tail = 1, but for a change of trace distance ``rounding``.
    """

    p: Tensor  # (batch, k) float64, descending
    tail: Tensor | None = None  # (batch,)
    dim: int = 0  # how many λ there are, with a tail
    rounding: float = 0.0
    method: str = "exact"

    def bounds(self, alpha: float) -> tuple[Tensor, Tensor]:
        """(lower, upper) on S_α in nats, (batch,) each; both are S_α where there is no tail."""
        if self.tail is None:
            S = entropy(self.p, alpha).clamp(min=0)
            return S, S
        return certificate(self.p, self.tail, self.dim, alpha, self.rounding)

    def error(self, alpha: float) -> Tensor:
        """(batch,): half of the width between the bounds, in nats."""
        lower, upper = self.bounds(alpha)
        return (upper - lower).detach() / 2

    def entropy(self, alpha: float) -> Tensor:
        """(batch,): S_α, or midway between its bounds."""
        lower, upper = self.bounds(alpha)
        return (lower + upper) / 2

    def stderr(self) -> Tensor:
        """(batch,): nothing here is left to chance."""
        return torch.zeros_like(self.p[:, 0]).detach()


class Estimated(NamedTuple):
    """The same of one update where S is estimated: von Neumann's, with what is certain of it and of the λ."""

    p: Tensor  # (1, k) float64, descending: λ_i ≥ p_i, but for a trace distance
    value: Tensor  # (1,) nats
    deviation: Tensor  # (1,) nats, one standard error
    lower: Tensor  # (1,) nats, certain
    upper: Tensor  # (1,)
    method: str = "hybrid"

    def bounds(self, alpha: float) -> tuple[Tensor, Tensor]:
        """(lower, upper) on S in nats, (1,) each."""
        return self.lower, self.upper

    def entropy(self, alpha: float) -> Tensor:
        """(1,): the estimate."""
        return self.value

    def stderr(self) -> Tensor:
        """(1,): its standard error."""
        return self.deviation
