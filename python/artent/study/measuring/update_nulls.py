"""Beside every profile of an update: bound, theory line, Gaussian and Haar nulls (docs/math.md §1, §5)."""

from __future__ import annotations

import torch
from tqdm import tqdm

import artent
from artent import theory
from artent.checkpoints import pending_updates
from artent.measure import read_whole

__all__ = ["profile_nulls"]

# A draw of a dense 4096² costs seconds, and its entropies differ between draws by less than 10⁻³ nats: from this size
# of the smaller side on there are two Gaussian draws a shape, and one Haar draw a module.
_LARGE = 1024


@torch.no_grad()
def profile_nulls(model, base, measure, *, profiles=None, seed=0):
    """The nulls of every module that ``measure.targets`` means, in nats a bond: records.

    Updates are read one at a time, as ``artent.weight_updates`` reads them, so memory is that of one matrix; a Gaussian
    null is drawn once a shape. The Gaussian null of an MPS is of Gaussian cores; its theory line is LoRA's, Gaussian
    factors without a chain. "draws" in a record says of how many (Gaussian, Haar) draws they are: fewer than
    ``measure.null_draws`` for dense updates of more than 1024 rows and columns.

    Args:
        model: a live model, with or without PEFT layers, or a path: whatever ``weight_updates`` takes.
        base: what full FT started from: a model, a state dict or a path; None for adapters that need none.
        profiles: {module: EntanglementProfile} where they are known; modules without one are left out. A dense update
            is then not read again, so ``base`` may have left this process's memory: the Haar null asks only for the
            spectrum at the row|column cut, which has to be exact (else the update is read).
        seed: of the draws. Every module has the same, so a module's null does not depend on which others there are.
    """
    gaussian, records = {}, []
    pending = pending_updates(model, base, targets=measure.targets)
    for one in tqdm(pending, desc="nulls", unit="module", leave=False):
        if profiles is not None and one.name not in profiles:
            continue
        profile = None if profiles is None else profiles[one.name]
        if profile is not None and profile.cut in profile.bonds and profile.bond_methods[profile.cut - 1] != "exact":
            profile = None  # its spectrum is known in part only
        update = read_whole(one) if profile is None or one.rank is not None else None
        if profile is None:
            if update is None:
                continue  # it did not change
            profile = artent.entanglement_profile(update)
        chains = update.chains if isinstance(update, artent.MPSUpdate) else None
        draws = _draws(profile, measure.null_draws)
        alike = profile.shape, profile.rank, chains
        if alike not in gaussian:  # it knows only the shapes
            known = {"rank": profile.rank} if chains is None else {}
            of = profile.shape if chains is None else update
            gaussian[alike] = theory.gaussian_null(of, draws=draws[0], seed=seed, **known)
        records.append(
            {
                "kind": "profile-null",
                "module": one.name,
                "bound": theory.rank_bound(
                    profile.dims, profile.cut, profile.rank, None if chains is None else theory.core_ranks(update)
                ),
                "line": _line(profile),
                "gaussian": gaussian[alike].mean,
                "gaussian_spread": gaussian[alike].std,
                "haar": haar_entropy(profile, draws[1], seed),
                "draws": draws,
            }
        )
    return records


def haar_entropy(profile, draws, seed):
    """Mean entropy at every bond of updates with this spectrum at the cut and Haar-random singular vectors: a list.

    As ``artent.theory.haar_null``, from the profile alone and on its device; factored updates stay factored.
    """
    p = profile.cut_probabilities
    dtype = torch.float32 if profile.rank is None else torch.float64
    generator, sigma, total = torch.Generator().manual_seed(seed), p.sqrt().to(dtype), 0
    for _ in range(draws):
        U, V = (_frame(size, len(p), generator, sigma) for size in profile.shape)
        update = (U * sigma) @ V.mT if profile.rank is None else artent.LoRAUpdate(U * sigma, V.mT)
        total = total + artent.entanglement_profile(update, sites=profile.sites).entropy
    return (total / draws).tolist()


def _frame(size, k, generator, like):
    """(size, k) Haar-distributed orthonormal columns, drawn on the CPU, so that they are the same on every device."""
    Q, R = torch.linalg.qr(torch.randn(size, k, generator=generator, dtype=like.dtype).to(like.device))
    return Q * R.diagonal().sign()


def _line(profile):
    if profile.rank is None:
        return theory.page_line(profile.dims)
    return theory.lora_line(profile.dims, profile.cut, profile.rank)


def _draws(profile, wanted):
    """(Gaussian, Haar) draws."""
    large = profile.rank is None and min(profile.shape) > _LARGE
    return (min(wanted, 2), 1) if large else (wanted, wanted)
