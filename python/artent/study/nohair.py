"""Do methods differ more than seeds do? The no-hair comparison of docs/math.md §5, as numbers without a verdict.

Two runs are compared by the root mean square of the difference of what was measured: S_ext of a head over the
texts, or a module's profile S(l) over the bonds. r = rms over pairs that differ in method and seed, divided by rms
over pairs that differ in seed alone. If methods left no trace of their own, r would be 1 up to sampling.
"""

from __future__ import annotations

from itertools import combinations

import torch

__all__ = ["SEEDS_NEEDED", "method_seed_ratio", "relative_change", "rms_change", "verdict"]

SEEDS_NEEDED = 4  # a permutation test of fewer seeds a method cannot reach p < 0.05


def rms_change(a, b, dim=-1):
    """Root mean square of a − b over ``dim``."""
    return (a - b).square().mean(dim).sqrt()


def relative_change(tuned, base):
    """Mean over texts of |tuned − base| / base, ``(…, texts) → (…)``: positive quantities, such as entropies."""
    return ((tuned - base).abs() / base.abs().clamp_min(1e-12)).mean(-1)


def method_seed_ratio(runs):
    """r of every unit, and the two differences it divides.

    Args:
        runs: ``{(method, seed): tensor (units, samples)}`` with equal shapes, in nats.

    Returns:
        ``(r, between_methods, between_seeds)``, each ``(units,)`` float64, or None where there are fewer than two
        methods or no method with two seeds: then there is nothing to divide.
    """
    keys = sorted(runs)
    shapes = {tuple(runs[key].shape) for key in keys}
    if len(shapes) > 1:
        raise ValueError(f"runs: every tensor must have the same (units, samples), but there are {sorted(shapes)}")
    pairs = list(combinations(keys, 2))
    methods = [(a, b) for a, b in pairs if a[0] != b[0] and a[1] != b[1]]
    seeds = [(a, b) for a, b in pairs if a[0] == b[0]]
    if not methods or not seeds:
        return None
    between_methods, between_seeds = (
        torch.stack([(runs[a].double() - runs[b].double()).square().mean(-1) for a, b in chosen]).mean(0).sqrt()
        for chosen in (methods, seeds)
    )
    return between_methods / between_seeds.clamp_min(1e-300), between_methods, between_seeds


def verdict(seeds):
    """What may be concluded about no-hair, in words, from the number of seeds a method has."""
    if seeds < SEEDS_NEEDED:
        return f"not enough data: {seeds} seeds a method, and {SEEDS_NEEDED} is the least that can decide"
    return "no verdict: the controls that show such a test can fail were not run"
