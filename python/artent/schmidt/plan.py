"""What is asked of a profile: the method, the entropy and the error, checked together."""

from dataclasses import dataclass
from math import inf
from numbers import Integral, Real

from artent.entropy import check_alpha, check_log_base, nats_per_unit

METHODS = ("auto", "exact", "randomized", "hybrid")


@dataclass(frozen=True)
class Plan:
    """Options of ``artent.entanglement_profile``, checked; ``max_error`` is in the unit of ``log_base``.

    It is a bound on the error, and of "hybrid" on the standard error.

    Raises TypeError or ValueError for an option that is wrong, alone or beside the others.
    """

    method: str = "auto"
    alpha: float = 1.0
    log_base: float | None = None
    rank: int | None = None
    max_error: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(map(repr, METHODS))}, got {self.method!r}")
        checked = {
            "alpha": check_alpha(self.alpha),
            "log_base": check_log_base(self.log_base),
            "rank": _check_rank(self.rank),
            "max_error": _check_error(self.max_error),
            "seed": _check_seed(self.seed),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("rank", "max_error"):
            if checked[name] is not None and self.method == "exact":
                raise ValueError(
                    f"{name}: got {checked[name]!r} with method='exact', which has no error to trade: leave it out, or"
                    " use method='auto' or 'randomized'"
                )
        if self.method == "hybrid" and self.alpha != 1:
            raise ValueError(
                f"alpha: got {self.alpha:g} with method='hybrid', which estimates the von Neumann entropy, alpha=1, and"
                " no other: use method='exact' or 'randomized'"
            )
        if self.method == "hybrid" and self.rank is not None:
            raise ValueError(
                f"rank: got {self.rank} with method='hybrid', which takes as many columns as its standard error needs:"
                " leave it out, and say which max_error is wanted"
            )
        if self.rank is not None and self.exact:
            raise ValueError(
                f"rank: got {self.rank} with method='auto' and no max_error, which is exact and has no sketch: say"
                " which max_error is wanted, or method='randomized'"
            )

    @property
    def exact(self) -> bool:
        """Nothing else is asked for."""
        return self.method == "exact" or (self.method == "auto" and self.max_error is None)

    @property
    def nats(self) -> float:
        """``max_error`` in nats; ∞ where none is given."""
        return inf if self.max_error is None else self.max_error * nats_per_unit(self.log_base)


def _check_rank(rank) -> int | None:
    if rank is None:
        return None
    if isinstance(rank, bool) or not isinstance(rank, Integral):
        raise TypeError(f"rank: expected the width of a sketch, an integer ≥ 1, got {rank!r}")
    if rank < 1:
        raise ValueError(f"rank: expected the width of a sketch, an integer ≥ 1, got {rank}")
    return int(rank)


def _check_seed(seed) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed: expected an integer, got {seed!r}")
    return int(seed)


def _check_error(max_error) -> float | None:
    if max_error is None:
        return None
    if isinstance(max_error, bool) or not isinstance(max_error, Real):
        raise TypeError(f"max_error: expected an error in the unit of the entropy, a number > 0, got {max_error!r}")
    if not 0 < max_error < inf:
        raise ValueError(
            "max_error: expected an error in the unit of the entropy, finite and > 0 (for none use method='exact'),"
            f" got {max_error}"
        )
    return float(max_error)
