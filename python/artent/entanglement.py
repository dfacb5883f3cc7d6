"""``EntanglementProfile``: the entropies at every bond of an update, what follows from them, and how certain it is."""

from dataclasses import dataclass
from math import ceil, floor, inf
from numbers import Integral

import torch
from torch import Tensor

from artent.entropy import nats_per_unit
from artent.sites import Chain


def printed(low: float, high: float, digits: int = 2) -> str:
    """The number that two bounds agree on to its printed digits, or their interval, rounded outwards."""
    low, high = low + 0.0, high + 0.0  # no −0.00
    if f"{low:.{digits}f}" == f"{high:.{digits}f}":
        return f"{low:.{digits}f}"
    unit = 10.0**digits
    return f"{floor(low * unit) / unit:.{digits}f} … {ceil(high * unit) / unit:.{digits}f}"


def estimated(value: float, stderr: float, digits: int = 2) -> str:
    """The number with its standard error; alone, where that is not seen in its printed digits."""
    number = f"{round(value, digits) + 0.0:.{digits}f}"  # no −0.00
    seen = f"{stderr:.{digits}f}"
    return f"{number} ± {seen}" if float(seen) else number


@dataclass(frozen=True, eq=False, repr=False)
class EntanglementProfile:
    """Entropy at each bond of an update of shape (m, n), a chain of N sites: rows first, then columns.

    Entropies are in nats, or in units of ``log_base``; tensors are float64 on the update's device, and everything
    computed from them is differentiable with respect to it (first derivatives).

    An exact profile holds values. In a randomized or hybrid one all that is called a bound is certain. ``entropy``, and
    what follows from it, is in a randomized one the middle between two bounds, and says little where ``error`` is
    large; in a hybrid one an estimate, whose standard error ``stderr`` is small also where the bounds say little.

    Attributes:
        entropy: (N−1,), S_α at bonds 1 … N−1. At randomized bonds midway between the bounds, right within ``error``; at
            hybrid ones the estimate.
        lower, upper: (N−1,), certain bounds on the entropy. Equal to it where the bond is exact, but for the outer
            bonds of a sketch, whose bounds allow for rounding.
        cut_probabilities: (k,), Schmidt probabilities at the row|column cut, descending. Where the cut is not exact
            the certified ones: each a lower bound (at a hybrid cut to float32 rounding), and together less than one.
        schmidt_ranks: numerical Schmidt rank per bond, the bond dimension that an MPS of the update needs. A lower
            bound at bonds that are not exact, where what is known of the spectrum may be less.
        sites: (row sites, column sites).
        rank: nominal rank of a factored update, None for a dense one.
        alpha: the Rényi order of the entropies.
        log_base: their unit; None for nats.
        method: what was done: "exact", or "randomized" or "hybrid" where any bond was.
        bond_methods: (N−1,), "exact", "randomized" or "hybrid" for each bond; left out, ``method`` at all of them.
        stderr: (N−1,) float64, one standard error of the entropies at hybrid bonds, in their unit; zero at all others,
            and where left out.
    """

    entropy: Tensor
    lower: Tensor
    upper: Tensor
    cut_probabilities: Tensor
    schmidt_ranks: tuple[int, ...]
    sites: tuple[tuple[int, ...], tuple[int, ...]]
    rank: int | None = None
    alpha: float = 1.0
    log_base: float | None = None
    method: str = "exact"
    bond_methods: tuple[str, ...] = ()
    stderr: Tensor | None = None

    def __post_init__(self):
        if self.stderr is None:
            object.__setattr__(self, "stderr", torch.zeros_like(self.entropy).detach())
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
    def unit(self) -> str:
        """The unit of the entropies: "nats", "bits", or "log base b"."""
        return {None: "nats", 2: "bits"}.get(self.log_base, f"log base {self.log_base}")

    @property
    def error(self) -> Tensor:
        """(N−1,): how far the entropies can certainly not be wrong, as far as the bounds are; zero where exact.

        Midway between the bounds that is half of their distance. What is likely of a hybrid estimate says ``stderr``.
        """
        return torch.maximum(self.upper - self.entropy, self.entropy - self.lower)

    @property
    def cut_entropy(self) -> Tensor:
        """S at the row|column cut; zero where there is nothing on one side of it.

        The midpoint's; see ``cut_bounds`` where ``method`` is randomized. The estimate where it is hybrid, with
        ``cut_stderr``; so are the numbers below.
        """
        return self._at_cut(self.entropy)

    @property
    def cut_stderr(self) -> Tensor:
        """One standard error of ``cut_entropy``; zero unless it is a hybrid estimate."""
        return self._at_cut(self.stderr)

    @property
    def cut_bounds(self) -> tuple[Tensor, Tensor]:
        """Certain bounds (lower, upper) on S at the row|column cut; both equal to it where it is exact."""
        return self._at_cut(self.lower), self._at_cut(self.upper)

    @property
    def max_entropy(self) -> Tensor:
        """max_l S(l), of the midpoints where ``method`` is randomized; zero for a chain without bonds."""
        return self._max(self.entropy)

    @property
    def valley_depth(self) -> Tensor:
        """max_l S(l) − S(cut). The midpoint's; see ``valley_bounds`` where ``method`` is randomized."""
        return self.max_entropy - self.cut_entropy

    @property
    def valley_stderr(self) -> Tensor:
        """One standard error of ``valley_depth``, the bonds' estimates being independent; zero where both are exact.

        Where the cut is highest the depth is zero, and this one says how much of a valley would not have been seen.
        """
        return torch.hypot(self._at_highest(self.stderr), self.cut_stderr)

    @property
    def effective_rank_stderr(self) -> Tensor:
        """One standard error of ``effective_rank``, to first order."""
        return self.effective_rank.detach() * self.cut_stderr * nats_per_unit(self.log_base)

    @property
    def valley_bounds(self) -> tuple[Tensor, Tensor]:
        """Certain bounds (lower, upper) on max_l S(l) − S(cut); both equal to it where the profile is exact.

        (0, large) says that the bounds on the entropies are too far apart to tell a valley from none.
        """
        low, high = self.cut_bounds
        return (self._max(self.lower) - high).clamp(min=0), self._max(self.upper) - low

    @property
    def valley_fraction(self) -> Tensor:
        """The valley's depth as a fraction of the maximum, both the midpoints'; zero for a product state."""
        return self.valley_depth / self.max_entropy if self.max_entropy > 0 else torch.zeros_like(self.max_entropy)

    @property
    def effective_rank(self) -> Tensor:
        """exp S(cut): how many equal singular values would have this entropy. Compare with ``rank``.

        The midpoint's; see ``effective_rank_bounds`` where ``method`` is randomized.
        """
        return (self.cut_entropy * nats_per_unit(self.log_base)).exp()

    @property
    def effective_rank_bounds(self) -> tuple[Tensor, Tensor]:
        """Certain bounds (lower, upper) on exp S(cut), in any ``log_base``."""
        low, high = (bound * nats_per_unit(self.log_base) for bound in self.cut_bounds)
        return low.exp(), high.exp()

    def _at_cut(self, S: Tensor) -> Tensor:
        return S[self.cut - 1] if self.cut in self.bonds else S.new_zeros(())

    def _max(self, S: Tensor) -> Tensor:
        return S.amax() if self.bonds else S.new_zeros(())

    def _at_highest(self, x: Tensor) -> Tensor:
        return x[int(self.entropy.detach().argmax())] if self.bonds else x.new_zeros(())

    def printed(self, name: str, digits: int = 2) -> str:
        """ "max_entropy", "cut_entropy", "valley_depth" or "effective_rank" as far as it is known.

        The number; where bounds differ in the digits their interval, "1.20 … 1.41"; of a hybrid estimate "1.31 ± 0.02".
        """
        value, bounds, stderr = {
            "max_entropy": (
                self.max_entropy,
                (self._max(self.lower), self._max(self.upper)),
                self._at_highest(self.stderr),
            ),
            "cut_entropy": (self.cut_entropy, self.cut_bounds, self.cut_stderr),
            "valley_depth": (self.valley_depth, self.valley_bounds, self.valley_stderr),
            "effective_rank": (self.effective_rank, self.effective_rank_bounds, self.effective_rank_stderr),
        }[name]
        if self.method == "hybrid":
            return estimated(float(value.detach()), float(stderr), digits)
        return printed(*(float(bound.detach()) for bound in bounds), digits)

    def __repr__(self):
        symbol = "S" if self.alpha == 1 else f"S_{self.alpha:g}"
        size = "{}×{}".format(*self.shape) + ("" if self.rank is None else f", rank {self.rank}")
        return (
            f"EntanglementProfile({size}, {self.method}: max {symbol} {self.printed('max_entropy')} {self.unit}, "
            f"valley {self.printed('valley_depth')}, effective rank {self.printed('effective_rank', 1)})"
        )

    @property
    def slope(self) -> Tensor:
        """dS/d ln D on the row side (one is the volume law, in any ``log_base``).

        The least-squares line through the origin, S(0) = 0 at D = 1, over the row-side bonds from the first up to
        the one of largest entropy: beyond it the profile descends towards the cut. NaN without row-side bonds. Of the
        midpoints where ``method`` is randomized.
        """
        side = self.entropy[: self.cut] * nats_per_unit(self.log_base)
        if not len(side):
            return self.entropy.new_full((), torch.nan)
        rise = int(side.detach().argmax()) + 1
        x = self.log_dims[:rise]
        return x @ side[:rise] / (x @ x)

    def mass_kept(self, k: int) -> Tensor:
        """The share of ‖ΔW‖² that its best rank-k approximation keeps; a lower bound where the cut is not exact.

        Raises ValueError for a k beyond the probabilities that are known there.
        """
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 0:
            raise ValueError(f"k: expected a rank ≥ 0, got {k!r}")
        known = len(self.cut_probabilities)
        method = self.bond_methods[self.cut - 1] if self.cut in self.bonds else "exact"
        if known < k and method != "exact":
            raise ValueError(
                f"k: {k} probabilities at the row|column cut were asked for, and the {method} sketch of this profile "
                f"found {known}: profile with method='randomized' and rank={k} or more, or method='exact'"
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
            "stderr": self.stderr.tolist(),
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
            stderr=torch.tensor(values["stderr"], dtype=torch.float64) if "stderr" in values else None,
        )
