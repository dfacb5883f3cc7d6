"""The rank of one module for a target, and the ranks of many for a budget, from what each rank keeps of ‖ΔW‖².

The best rank-k approximation of ΔW (its truncated SVD) keeps Σ_{i≤k} p_i, p the Schmidt probabilities at the row|column
cut, and leaves the rest, the square of its relative Frobenius error.
"""

import heapq
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, exp

from artent.entanglement import EntanglementProfile
from artent.entropy import nats_per_unit
from artent_ext._arguments import integer

_ROUNDING = 1e-12  # of sums of probabilities in float64
_WIDER = "Profile with method='randomized' and a rank (the width of the sketch) above that, or with method='exact'"


def _effective(profile: EntanglementProfile) -> float:
    """exp S(cut) from above: certain, or three standard errors above an estimate where that is less."""
    upper = float(profile.effective_rank_bounds[1])
    error = float(profile.cut_stderr) * nats_per_unit(profile.log_base)
    return min(upper, float(profile.effective_rank) * exp(3 * error)) if error > 0 else upper


class Curve:
    """What each rank of an update keeps of ‖ΔW‖² and what it leaves: ``kept[k]`` and ``left[k]`` for k = 0 … ``known``.

    ``known`` is the numerical rank, beyond which there is rounding; or, where ``partial``, how many probabilities a
    sketch found, and then ``kept`` is a lower bound and ``left`` an upper one.
    """

    def __init__(self, name: str, profile: EntanglementProfile):
        p = profile.cut_probabilities.detach().clamp(min=0).tolist()
        there = profile.cut in profile.bonds  # else a single row or column
        self.name, self.shape, self.cost = name, profile.shape, sum(profile.shape)
        self.effective = _effective(profile)
        self.partial = there and profile.bond_methods[profile.cut - 1] != "exact"
        self.known = len(p) if self.partial or not there else min(len(p), profile.schmidt_ranks[profile.cut - 1])
        self.kept = [0.0, *accumulate(p)]
        if self.partial:
            self.left = [max(0.0, 1 - kept) for kept in self.kept]
        else:
            self.left = [0.0, *accumulate(reversed(p))][::-1]

    def kept_by(self, rank: int) -> float:
        return min(1.0, self.kept[min(rank, len(self.kept) - 1)])

    def left_by(self, rank: int) -> float:
        return self.left[min(rank, len(self.left) - 1)]

    def needed(self, by: str, target: float) -> int:
        """The smallest rank that meets ``target``."""
        if by == "entropy":
            most = min(self.shape) if self.partial else self.known
            return max(1, min(most, ceil(target * self.effective * (1 - 1e-6))))  # exp ln 4 may come out above 4
        for k in range(1, self.known + 1):
            enough = self.kept[k] >= target - _ROUNDING if by == "mass" else self.left[k] <= target**2 * (1 + _ROUNDING)
            if enough:
                return k
        if self.partial:
            raise ValueError(
                f"{self.name}: {by}={target:g} can't be promised: the sketch of its profile found "
                f"{self.known} probabilities, which keep {self.kept[-1]:.6f} of the mass for certain. {_WIDER}, or "
                "ask for less"
            )
        return self.known


@dataclass(frozen=True)
class Allowed:
    """The ranks that a module may have: multiples within limits, or min(m, n) where that is less."""

    multiple_of: int
    minimum: int
    maximum: int | None

    def __post_init__(self):
        for name in ("multiple_of", "minimum", "maximum"):
            value = getattr(self, name)
            if (name, value) != ("maximum", None) and integer(name, value) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if self.maximum is not None and self._floor(self.maximum) < self.minimum:
            raise ValueError(
                f"maximum: {self.maximum} leaves no rank, with minimum={self.minimum}, multiple_of={self.multiple_of}"
            )

    def _floor(self, rank: int) -> int:
        return rank // self.multiple_of * self.multiple_of

    def at_least(self, rank: int, curve: Curve) -> int:
        """The smallest allowed rank from ``rank`` on; the greatest where all are smaller."""
        rank = -self._floor(-max(rank, self.minimum))
        rank = min(rank, *curve.shape)
        return int(rank if self.maximum is None or rank <= self.maximum else self._floor(self.maximum))


def shared_out(curves: dict, budget: int, allowed: Allowed, importance: dict) -> dict[str, int]:
    """The ranks of at most ``budget`` parameters that leave the least, Σ importance · left.

    Of all next steps the one that keeps the most for a parameter is taken first. Probabilities descend, so these
    ratios do along every module; by exchange, until a step no longer fits, no choice of as many parameters keeps
    more. Where all steps cost the same that is the optimum. Else cheaper steps are filled in, and what is left is above
    the optimum by less than the gain of the first step refused: with a fraction of that step the budget would be spent
    to the last parameter, and nothing spends it better.

    Raises ValueError for a budget below the smallest ranks, or one that reaches beyond what a sketch found.
    """
    ranks = {name: allowed.at_least(1, curve) for name, curve in curves.items()}
    budget -= (least := sum(curve.cost * ranks[name] for name, curve in curves.items()))
    if budget < 0:
        raise ValueError(
            f"parameters: {budget + least:,} are fewer than the {least:,} of the smallest ranks allowed (minimum="
            f"{allowed.minimum}, multiple_of={allowed.multiple_of}); ask for more, or leave modules out with targets"
        )
    steps = []

    def offer(order: int, name: str):
        curve, rank = curves[name], ranks[name]
        further = allowed.at_least(rank + 1, curve)
        if rank < curve.known and further > rank:
            cost = curve.cost * (further - rank)
            gain = importance[name] * (curve.left_by(rank) - curve.left_by(further))
            heapq.heappush(steps, (-gain / cost, order, name, further, cost))

    for order, name in enumerate(curves):
        offer(order, name)
    while steps:
        _, order, name, further, cost = heapq.heappop(steps)
        if cost <= budget:
            budget -= cost
            ranks[name] = further
            offer(order, name)
    for name, curve in curves.items():
        further = curve.partial and ranks[name] >= curve.known and allowed.at_least(ranks[name] + 1, curve)
        if further > ranks[name] and curve.left[-1] > _ROUNDING:
            raise ValueError(
                f"{name}: the budget reaches beyond the {curve.known} probabilities that the sketch of its "
                f"profile found. {_WIDER}, or set maximum={curve.known}"
            )
    return ranks
