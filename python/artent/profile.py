"""``entanglement_profile``: the entanglement entropy of a weight update at every bond (docs/math.md §1)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import torch
from torch import Tensor

from artent import schmidt
from artent.entanglement import EntanglementProfile
from artent.entropy import nats_per_unit
from artent.operands import check_peak, check_product, operands_of
from artent.schmidt import Estimated, Plan, Spectrum
from artent.sites import Chain, chain
from artent.updates import Update

__all__ = ["EntanglementProfile", "entanglement_profile"]

_BATCH_ELEMENTS = 2**24  # updates of one shape are stacked up to this many numbers


def entanglement_profile(
    update: Update | list[Update] | tuple[Update, ...],
    *,
    sites=None,
    method: str = "auto",
    alpha: float = 1.0,
    log_base: float | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    seed: int = 0,
) -> EntanglementProfile | list[EntanglementProfile]:
    """The entanglement profile of a weight update: entropies at every bond of its sites (docs/math.md §1 to §3).

    Every method is exact for factored updates. For dense ones "randomized" projects the update onto ``rank`` singular
    vectors that a randomized SVD finds and bounds what they leave out: certain bounds, float32 input included, for a
    fraction of the cost, and tight where the singular values decay; where they are flat they say little. The entropies
    are then midway between the bounds, within ``profile.error``. Outer bonds that come cheaply are exact in it.

    "hybrid" is the fastest, on any spectrum: outer bonds exact, those in the middle estimated from a few products with
    random probes (block Krylov and stochastic quadrature) to a standard error of 1 % of the entropy, or of
    ``max_error``, which ``profile.stderr`` tells. An estimate is no guarantee: it is within three standard errors in 99
    cases of 100. ``lower`` and ``upper`` stay certain, and may be far apart.

    Args:
        update: a matrix (m, n), an ``artent.LoRAUpdate`` or ``artent.MPSUpdate``; or a list of them, which gives a
            list, equal shapes computed together. float16, bfloat16, float32 or float64. Factored updates never
            allocate an m×n array.
        sites: (row_sites, col_sites) that multiply to m and n; None for the prime factors, non-increasing.
        method: "exact", "randomized", "hybrid", or "auto": exact, or with ``max_error`` the cheaper of the first two
            that meets it, which may differ from bond to bond. The profile says which it was. A sketch pays off for
            large updates only: for α ≥ 1 from about 700×700 on, and "auto" is exact below. Single rows and columns are
            always exact, and so are small updates by "hybrid".
        alpha: the Rényi order, any α > 0; 1 is von Neumann, math.inf the largest probability. The smaller α < 1, the
            more the smallest probabilities count: on a dense matrix of exactly low rank, those are rounding. "hybrid"
            knows α = 1 only.
        log_base: the unit of entropy; None for nats, 2 for bits.
        rank: columns of the sketch; with ``max_error`` of the first one, after which they widen. By default 32 for
            "randomized", and 16 for the first of "auto", which only asks how the spectrum decays. Not for "hybrid".
        max_error: the error in the entropies, in their unit, to be met at every bond: half of the distance between
            ``lower`` and ``upper``. "auto" takes exact where no sketch that is cheaper meets it (in float64 below 1e-4
            nats); "randomized" widens its sketch while that is cheaper than exact, reports the bounds it has, and warns
            (UserWarning) where they miss the error. Of "hybrid" it is the standard error instead, by default 1 % of the
            entropy or 0.001 nats where that is more; bonds that would take half the work of exact to get there are
            exact.
        seed: of the probes of "hybrid", an integer. Results depend on it and on the update alone, not on the batch nor
            on global random state.

    First derivatives flow through the entropies and what follows from them; a hybrid profile has none, and says so
    (NotImplementedError) in a backward pass.

    Raises:
        TypeError, ValueError: for anything that is no update, for NaN or Inf in it, and for a zero update, which
            has no state. The message names the argument and the likely cause.
    """
    plan = Plan(method, alpha, log_base, rank, max_error, seed)
    single = not isinstance(update, (list, tuple))
    with _without_autocast():
        profiles = _all_profiles([update] if single else update, single, sites, plan)
    _warn_of_error(profiles, plan)
    return profiles[0] if single else profiles


def _warn_of_error(profiles: list[EntanglementProfile], plan: Plan) -> None:
    """Say once that "randomized" ended above ``max_error``; "auto" never does."""
    if plan.method != "randomized" or plan.max_error is None:
        return
    worst = max((p.error.amax().item() for p in profiles if p.bonds), default=0.0)
    if worst > plan.max_error * (1 + 1e-9):  # the search compared in nats
        unit = profiles[0].unit
        warnings.warn(
            f"max_error: {plan.max_error:g} {unit} was asked for, but the bounds stay up to {worst:.2g} {unit} from "
            "their middle: method='randomized' widens its sketch only while that is cheaper than exact (is the "
            "spectrum flat?). Pass a larger rank, or method='exact' or 'auto'",
            stacklevel=3,
        )


@contextmanager
def _without_autocast():
    """Autocast would take the float32 products in half precision."""
    accelerator = torch.accelerator.current_accelerator()
    with (
        torch.autocast("cpu", enabled=False),
        torch.autocast(accelerator.type if accelerator else "cpu", enabled=False),
    ):
        yield


def _all_profiles(updates, single: bool, sites, plan: Plan) -> list[EntanglementProfile]:
    """A profile an update, in their order; those of equal shape and type are computed as one stack."""
    names = ["update" if single else f"update[{i}]" for i in range(len(updates))]
    operands = [operands_of(name, u) for name, u in zip(names, updates)]
    groups: dict[tuple, list[int]] = {}
    for i, parts in enumerate(operands):
        groups.setdefault(tuple((tuple(part.shape), part.dtype, part.device) for part in parts), []).append(i)
    profiles: list = [None] * len(operands)
    for members in groups.values():
        elements = sum(part.numel() for part in operands[members[0]])
        if len(operands[members[0]]) == 1 and not plan.exact:
            elements = _BATCH_ELEMENTS  # one at a time: what is cheapest depends on the matrix
        for batch in _chunks(members, elements):
            parts = [_stacked(part) for part in zip(*(operands[i] for i in batch))]
            for i, profile in zip(batch, _profiles([names[i] for i in batch], parts, sites, plan)):
                profiles[i] = profile
    return profiles


def _stacked(parts: tuple[Tensor, ...]) -> Tensor:
    """With a batch dimension in front; one alone is not copied."""
    return torch.stack(parts) if len(parts) > 1 else parts[0][None]


def _chunks(members: list[int], elements: int) -> Iterator[list[int]]:
    size = max(1, _BATCH_ELEMENTS // elements)
    for start in range(0, len(members), size):
        yield members[start : start + size]


def _spectra(names: list[str], parts: list[Tensor], where: Chain, plan: Plan) -> list[Spectrum | Estimated]:
    """What is known at each bond: of a stack of updates if they are factored or the plan is exact, else of one."""
    singular = plan.alpha < 1
    if len(parts) == 2:
        C, D = schmidt.halves(*parts)
        check_product(names, schmidt.vanish(C, D, parts[0].shape[-1]))
        return [Spectrum(p) for p in schmidt.factored(C, D, where, singular)]
    if plan.exact or where.cut not in where.bonds:
        return [Spectrum(p) for p in schmidt.dense(*parts, where, singular)]
    if plan.method == "hybrid":
        return schmidt.estimated(parts[0][0], where, plan)
    return (schmidt.cheapest if plan.method == "auto" else schmidt.sketched)(parts[0][0], where, plan)


def _check_values(names: list[str], parts: list[Tensor]) -> None:
    """Refuse NaN, Inf and zero updates, by name; for one large matrix in a single pass over it."""
    if len(parts) == len(parts[0]) == 1:
        low, high = (x.item() for x in parts[0].detach().aminmax())  # NaN if there is one
        if 0 < max(-low, high) < inf:
            return
    check_peak(names, parts)


def _profiles(names: list[str], parts: list[Tensor], sites, plan: Plan) -> list[EntanglementProfile]:
    """Profiles of a stack: parts are (W,) or (B, A), each with a batch dimension in front."""
    _check_values(names, parts)
    where = chain((parts[0].shape[-2], parts[-1].shape[-1]), sites)
    spectra = _spectra(names, parts, where, plan)
    certain = parts[0].new_ones((len(parts[0]), 1), dtype=torch.float64)
    at_cut = spectra[where.cut - 1].p if where.cut in where.bonds else certain
    bounds = [spectrum.bounds(plan.alpha) for spectrum in spectra]
    lower, upper = (torch.stack(bound, -1) for bound in zip(*bounds)) if bounds else (certain[:, :0],) * 2
    middle = torch.stack([s.entropy(plan.alpha) for s in spectra], -1) if spectra else lower
    stderr = torch.stack([s.stderr() for s in spectra], -1) if spectra else lower
    eps = max(torch.finfo(part.dtype).eps for part in parts)
    eps = min(eps, torch.finfo(torch.float32).eps)  # half-precision values are taken as exact
    ranks = torch.stack([schmidt.ranks(s.p, eps) for s in spectra], -1).tolist() if spectra else [()] * len(certain)
    methods = tuple(spectrum.method for spectrum in spectra)
    unit = nats_per_unit(plan.log_base)
    return [
        EntanglementProfile(
            entropy=middle[i] / unit,
            lower=lower[i] / unit,
            upper=upper[i] / unit,
            cut_probabilities=at_cut[i],
            schmidt_ranks=tuple(ranks[i]),
            sites=(where.rows, where.cols),
            rank=parts[0].shape[-1] if len(parts) == 2 else None,
            alpha=plan.alpha,
            log_base=plan.log_base,
            method=next((method for method in methods if method != "exact"), "exact"),
            bond_methods=methods,
            stderr=stderr[i] / unit,
        )
        for i in range(len(certain))
    ]
