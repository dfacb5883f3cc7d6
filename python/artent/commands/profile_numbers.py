"""What ``artent profile`` tells of a profile: numbers, each with what is certain of it, and ranks that would do."""

from typing import NamedTuple

from artent.entanglement import EntanglementProfile

SHARES = (0.5, 0.9, 0.99)  # of ‖ΔW‖², to be kept by a rank


class Number(NamedTuple):
    """A number, certain bounds on it, and the standard error of an estimate (0 for what is not left to chance)."""

    value: float
    low: float
    high: float
    stderr: float


def numbers(profile: EntanglementProfile) -> dict[str, Number]:
    """Effective rank and entropies by name: exact ones equal their bounds, bounded ones lie in the middle of them."""
    low = high = at_max = 0.0  # of an update without bonds
    if profile.bonds:
        low, high, at_max = profile.lower.amax(), profile.upper.amax(), profile.stderr[int(profile.entropy.argmax())]
    told = {
        "effective_rank": (profile.effective_rank, profile.effective_rank_bounds, profile.effective_rank_stderr),
        "cut_entropy": (profile.cut_entropy, profile.cut_bounds, profile.cut_stderr),
        "max_entropy": (profile.max_entropy, (low, high), at_max),
        "valley_depth": (profile.valley_depth, profile.valley_bounds, profile.valley_stderr),
    }
    return {name: Number(float(x), *map(float, bounds), float(error)) for name, (x, bounds, error) in told.items()}


def nominal_rank(profile: EntanglementProfile) -> int:
    """The rank that a factored update was given, or the most that a dense one could have."""
    return profile.rank if profile.rank is not None else min(profile.shape)


def rank_keeping(profile: EntanglementProfile, share: float) -> tuple[int, int]:
    """(least, most) of the rank whose best approximation keeps ``share`` of ‖ΔW‖²; equal where the cut is exact.

    Elsewhere probabilities p̂ at the cut are lower bounds, and what they leave out, ε = 1 − Σp̂, could all belong to
    the first: Σ_{i≤k} p̂_i ≤ kept(k) ≤ Σ_{i≤k} p̂_i + ε (docs/math.md §3).
    """
    kept = profile.cut_probabilities.detach().cumsum(0) + 1e-9  # nine of ten equal ones keep 0.9, rounding or not
    exact = profile.cut not in profile.bonds or profile.bond_methods[profile.cut - 1] == "exact"
    left_out = 0.0 if exact else max(0.0, 1.0 - float(kept[-1]))
    least = 1 + int((kept + left_out < share).sum())
    most = 1 + int((kept < share).sum())
    return (least, most) if most <= len(kept) else (min(least, len(kept)), min(profile.shape))
