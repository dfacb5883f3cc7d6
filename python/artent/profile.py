"""``entanglement_profile``: the entanglement entropy of a weight update at every bond (docs/math.md §1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from numbers import Integral

import torch
from torch import Tensor

from artent import schmidt
from artent.entropy import nats_per_unit
from artent.operands import check_peak, check_product, operands_of
from artent.schmidt import Plan, Spectrum
from artent.sites import Chain, chain
from artent.updates import Update

_BATCH_ELEMENTS = 2**24  # updates of one shape are stacked up to this many numbers


@dataclass(frozen=True, eq=False)
class EntanglementProfile:
    """Entropy at each bond of an update of shape (m, n), a chain of N sites: rows first, then columns.

    Entropies are in nats, or in units of ``log_base``; tensors are float64 on the update's device, and everything
    computed from them is differentiable with respect to it (first derivatives).
    """

    entropy: Tensor
    """(N−1,): S_α at bonds 1 … N−1; midway between the bounds, so that it is right within half their distance."""
    lower: Tensor
    upper: Tensor
    """(N−1,): bounds on the entropy, at bonds that the sketch of "randomized" left them; else both equal to it."""
    cut_probabilities: Tensor
    """(k,): Schmidt probabilities at the row|column cut, descending. Of a randomized profile those found: each is a
    lower bound, and they sum to less than one."""
    schmidt_ranks: tuple[int, ...]
    """Numerical Schmidt rank per bond: the bond dimension that an MPS of the update needs. A lower bound at randomized
    bonds, where the sketch may be narrower."""
    sites: tuple[tuple[int, ...], tuple[int, ...]]
    """(row sites, column sites)."""
    rank: int | None = None
    """Nominal rank of a factored update, None for a dense one."""
    alpha: float = 1.0
    log_base: float | None = None
    method: str = "exact"
    """What was done: "exact", or "randomized" where any bond was."""
    bond_methods: tuple[str, ...] = ()
    """(N−1,): "exact" or "randomized" for each bond; left out, ``method`` at all of them."""

    def __post_init__(self):
        if not self.bond_methods:
            object.__setattr__(self, "bond_methods", (self.method,) * len(self.bonds))

    @property
    def chain(self) -> Chain:
        return Chain(*self.sites)

    @property
    def shape(self) -> tuple[int, int]:
        return self.chain.shape

    @property
    def dims(self) -> tuple[int, ...]:
        return self.chain.dims

    @property
    def bonds(self) -> tuple[int, ...]:
        return self.chain.bonds

    @property
    def cut(self) -> int:
        """The bond of the row|column cut, L_row; no bond of the chain if the update is a single row or column."""
        return self.chain.cut

    @property
    def log_dims(self) -> Tensor:
        """(N−1,): ln D_l, D_l the dimension left of the bond."""
        return self.entropy.new_tensor(self.chain.log_dims)

    @property
    def cut_entropy(self) -> Tensor:
        """S at the row|column cut; zero where there is nothing on one side of it."""
        return self.entropy[self.cut - 1] if self.cut in self.bonds else self.entropy.new_zeros(())

    @property
    def max_entropy(self) -> Tensor:
        """max_l S(l); zero for a chain without bonds."""
        return self.entropy.amax() if self.bonds else self.entropy.new_zeros(())

    @property
    def valley_depth(self) -> Tensor:
        """max_l S(l) − S(cut)."""
        return self.max_entropy - self.cut_entropy

    @property
    def valley_fraction(self) -> Tensor:
        """The valley's depth as a fraction of the maximum; zero for a product state."""
        return self.valley_depth / self.max_entropy if self.max_entropy > 0 else torch.zeros_like(self.max_entropy)

    @property
    def effective_rank(self) -> Tensor:
        """exp S(cut): how many equal singular values would have this entropy. Compare with ``rank``."""
        return (self.cut_entropy * nats_per_unit(self.log_base)).exp()

    @property
    def slope(self) -> Tensor:
        """dS/d ln D on the row side (one is the volume law, in any ``log_base``).

        The least-squares line through the origin, S(0) = 0 at D = 1, over the row-side bonds from the first up to
        the one of largest entropy: beyond it the profile descends towards the cut. NaN without row-side bonds.
        """
        side = self.entropy[: self.cut] * nats_per_unit(self.log_base)
        if not len(side):
            return self.entropy.new_full((), torch.nan)
        rise = int(side.detach().argmax()) + 1
        x = self.log_dims[:rise]
        return x @ side[:rise] / (x @ x)

    def mass_kept(self, k: int) -> Tensor:
        """The share of ‖ΔW‖² that its best rank-k approximation keeps; a lower bound where the cut is randomized.

        Raises ValueError for a k beyond the probabilities that are known there.
        """
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 0:
            raise ValueError(f"k: expected a rank ≥ 0, got {k!r}")
        known = len(self.cut_probabilities)
        if known < k and self.cut in self.bonds and self.bond_methods[self.cut - 1] == "randomized":
            raise ValueError(
                f"k: {k} probabilities at the row|column cut were asked for, and the randomized sketch of this profile "
                f"found {known}: profile with rank={k} or more, or method='exact'"
            )
        return self.cut_probabilities[:k].sum()

    def plot(self, ax=None, **options):
        """Draw the profile; see ``artent.plots.profile``. Returns the matplotlib axes."""
        from artent import plots

        return plots.profile(self, ax=ax, **options)

    def to_dict(self) -> dict:
        """Everything as lists, numbers and strings that JSON can hold.

        ``method`` goes under "estimator": in a study's records, "method" is how the model was trained.
        """
        return {
            "entropy": self.entropy.tolist(),
            "lower": self.lower.tolist(),
            "upper": self.upper.tolist(),
            "cut_probabilities": self.cut_probabilities.tolist(),
            "schmidt_ranks": list(self.schmidt_ranks),
            "sites": [list(side) for side in self.sites],
            "rank": self.rank,
            "alpha": "inf" if self.alpha == inf else self.alpha,
            "log_base": self.log_base,
            "estimator": self.method,
            "bond_methods": list(self.bond_methods),
        }

    @classmethod
    def from_dict(cls, values: dict) -> "EntanglementProfile":
        """The profile that ``to_dict`` wrote; other keys of the record are ignored."""
        names = ("entropy", "lower", "upper", "cut_probabilities")
        missing = {*names, "schmidt_ranks", "sites", "rank", "alpha", "log_base", "estimator"} - values.keys()
        if missing:
            raise ValueError(f"values: not the record of a profile, {', '.join(sorted(missing))} missing")
        rows, cols = values["sites"]
        return cls(
            **{name: torch.tensor(values[name], dtype=torch.float64) for name in names},
            schmidt_ranks=tuple(values["schmidt_ranks"]),
            sites=(tuple(rows), tuple(cols)),
            rank=values["rank"],
            alpha=float(values["alpha"]),
            log_base=values["log_base"],
            method=values["estimator"],
            bond_methods=tuple(values.get("bond_methods", ())),  # not in records of exact-only versions
        )


def entanglement_profile(
    update: Update | list[Update] | tuple[Update, ...],
    *,
    sites=None,
    method: str = "auto",
    alpha: float = 1.0,
    log_base: float | None = None,
    rank: int | None = None,
    max_error: float | None = None,
) -> EntanglementProfile | list[EntanglementProfile]:
    """The entanglement profile of a weight update: entropies at every bond of its sites (docs/math.md §1 to §3).

    Every method is exact for factored updates. For dense ones "randomized" projects the update onto ``rank`` singular
    vectors that a randomized SVD finds and bounds what they leave out: certain bounds, float32 input included, for a
    fraction of the cost, and tight where the singular values decay. Outer bonds that come cheaply are exact in it.

    Args:
        update: a matrix (m, n), an ``artent.LoRAUpdate`` or ``artent.MPSUpdate``; or a list of them, which gives a
            list, equal shapes computed together. float16, bfloat16, float32 or float64. Factored updates never
            allocate an m×n array.
        sites: (row_sites, col_sites) that multiply to m and n; None for the prime factors, non-increasing.
        method: "exact", "randomized", or "auto": exact, or with ``max_error`` the cheapest that meets it, which may
            differ from bond to bond. The profile says which it was. Single rows and columns are always exact.
        alpha: the Rényi order, any α > 0; 1 is von Neumann, math.inf the largest probability. The smaller α < 1, the
            more the smallest probabilities count: on a dense matrix of exactly low rank, those are rounding.
        log_base: the unit of entropy; None for nats, 2 for bits.
        rank: width of the sketch, 32 by default; with ``max_error`` of the first one, after which they widen.
        max_error: the error in the entropies, in their unit, to be met at every bond: half of the distance between
            ``lower`` and ``upper``. "auto" takes exact where no sketch that is cheaper meets it (in float64 below 1e-4
            nats); "randomized" widens its sketch while that is cheaper than exact, and reports the bounds it has.

    Raises:
        TypeError, ValueError: for anything that is no update, for NaN or Inf in it, and for a zero update, which
            has no state. The message names the argument and the likely cause.
    """
    plan = Plan(method, alpha, log_base, rank, max_error)
    single = not isinstance(update, (list, tuple))
    with _without_autocast():
        profiles = _all_profiles([update] if single else update, single, sites, plan)
    return profiles[0] if single else profiles


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
            parts = [torch.stack(part) for part in zip(*(operands[i] for i in batch))]
            for i, profile in zip(batch, _profiles([names[i] for i in batch], parts, sites, plan)):
                profiles[i] = profile
    return profiles


def _chunks(members: list[int], elements: int) -> Iterator[list[int]]:
    size = max(1, _BATCH_ELEMENTS // elements)
    for start in range(0, len(members), size):
        yield members[start : start + size]


def _spectra(names: list[str], parts: list[Tensor], where: Chain, plan: Plan) -> list[Spectrum]:
    """A spectrum a bond: of a stack of updates if they are factored or the plan is exact, else of one."""
    singular = plan.alpha < 1
    if len(parts) == 2:
        C, D = schmidt.halves(*parts)
        check_product(names, schmidt.vanish(C, D, parts[0].shape[-1]))
        return [Spectrum(p) for p in schmidt.factored(C, D, where, singular)]
    if plan.exact or where.cut not in where.bonds:
        return [Spectrum(p) for p in schmidt.dense(*parts, where, singular)]
    return (schmidt.cheapest if plan.method == "auto" else schmidt.sketched)(parts[0][0], where, plan)


def _profiles(names: list[str], parts: list[Tensor], sites, plan: Plan) -> list[EntanglementProfile]:
    """Profiles of a stack: parts are (W,) or (B, A), each with a batch dimension in front."""
    check_peak(names, parts)
    where = chain((parts[0].shape[-2], parts[-1].shape[-1]), sites)
    spectra = _spectra(names, parts, where, plan)
    certain = parts[0].new_ones((len(parts[0]), 1), dtype=torch.float64)
    at_cut = spectra[where.cut - 1].p if where.cut in where.bonds else certain
    bounds = [spectrum.bounds(plan.alpha) for spectrum in spectra]
    lower, upper = (torch.stack(bound, -1) for bound in zip(*bounds)) if bounds else (certain[:, :0],) * 2
    eps = max(torch.finfo(part.dtype).eps for part in parts)
    eps = min(eps, torch.finfo(torch.float32).eps)  # half-precision values are taken as exact
    ranks = torch.stack([schmidt.ranks(s.p, eps) for s in spectra], -1).tolist() if spectra else [()] * len(certain)
    methods = tuple(spectrum.method for spectrum in spectra)
    unit = nats_per_unit(plan.log_base)
    return [
        EntanglementProfile(
            entropy=(lower[i] + upper[i]) / 2 / unit,
            lower=lower[i] / unit,
            upper=upper[i] / unit,
            cut_probabilities=at_cut[i],
            schmidt_ranks=tuple(ranks[i]),
            sites=(where.rows, where.cols),
            rank=parts[0].shape[-1] if len(parts) == 2 else None,
            alpha=plan.alpha,
            log_base=plan.log_base,
            method="randomized" if "randomized" in methods else "exact",
            bond_methods=methods,
        )
        for i in range(len(certain))
    ]
