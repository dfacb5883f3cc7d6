"""A factor (r, n) of an update as a chain of MPS cores: its shape, its contraction, its products (docs/math.md §6).

The long side n is cut into sites d₁ … d_K, the most significant first; neighbouring cores share a bond χ_k, and one
end core, the *carrier*, holds the rank index r outermost. In the middle every core is (left bond, site, right bond):

    carrier "first"   [r, d₁, χ₁], [χ₁, d₂, χ₂], …, [χ, d_K]
    carrier "last"    [d₁, χ₁], [χ₁, d₂, χ₂], …, [χ, d_K, r]

A chain of one core is a dense factor: [r, n], or [n, r] with the carrier last. The other end is called *free*.
"""

from dataclasses import dataclass
from math import isqrt, prod

from torch import Tensor

CARRIERS = ("first", "last")


@dataclass(frozen=True)
class MPSShape:
    """The shape of a chain of K cores: rank r, sites (K), bonds (K − 1), and which end carries r."""

    rank: int
    sites: tuple[int, ...]
    bonds: tuple[int, ...]
    carrier: str = "first"

    @property
    def dimension(self) -> int:
        """n, the product of the sites."""
        return prod(self.sites)

    @property
    def full_cores(self) -> tuple[tuple[int, int, int], ...]:
        """Every core as (left, site, right), the outer bond of the free end being 1."""
        first = self.carrier == "first"
        left = (self.rank if first else 1, *self.bonds)
        right = (*self.bonds, 1 if first else self.rank)
        return tuple(zip(left, self.sites, right))

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """Every core as it is stored: the free end without its outer bond."""
        full = list(self.full_cores)
        if self.carrier == "first":
            full[-1] = full[-1][:-1]
        else:
            full[0] = full[0][1:]
        return tuple(full)

    @property
    def carrier_index(self) -> int:
        return 0 if self.carrier == "first" else len(self.sites) - 1

    @property
    def numel(self) -> int:
        """The number of parameters."""
        return sum(prod(core) for core in self.full_cores)


def dense_shape(rank: int, dimension: int, carrier: str) -> MPSShape:
    """A dense factor as a chain of one core: [r, n] with the carrier "first", [n, r] with "last"."""
    return MPSShape(rank, (dimension,), (), carrier)


def balanced_sites(dimension: int, count: int = 2) -> tuple[int, ...]:
    """``count`` factors of ``dimension``, each as near its fair share as divisors allow, in ascending order.

    >>> balanced_sites(2048), balanced_sites(2048, 3), balanced_sites(14336)
    ((32, 64), (8, 16, 16), (112, 128))
    """
    if count == 1:
        return (dimension,)
    root = round(dimension ** (1 / count)) if count > 2 else isqrt(dimension)
    smallest = next(d for d in range(max(root, 1), 0, -1) if dimension % d == 0)
    return tuple(sorted((smallest, *balanced_sites(dimension // smallest, count - 1))))


def largest_bonds(rank: int, sites: tuple[int, ...], carrier: str) -> tuple[int, ...]:
    """The bonds at which a chain holds every (r, n) matrix: the smaller side of each cut, r on its carrier's side."""
    first = carrier == "first"
    cuts = range(1, len(sites))
    left = (prod(sites[:k]) * (rank if first else 1) for k in cuts)
    right = (prod(sites[k:]) * (1 if first else rank) for k in cuts)
    return tuple(map(min, left, right))


def full_cores(cores, shape: MPSShape) -> list[Tensor]:
    """Stored cores as (left, site, right) views."""
    return [core.reshape(full) for core, full in zip(cores, shape.full_cores)]


def merge(cores: list[Tensor], carrier: str) -> list[Tensor]:
    """Neighbouring cores contracted, from the free end towards the carrier; all the states on the way.

    Args:
        cores: (left, site, right) each.

    Returns:
        K states; the last is the whole, (left, Πsite, right). That order never makes r long before its turn.
    """
    if carrier == "first":
        states = [cores[-1]]
        for core in reversed(cores[:-1]):
            state = core.flatten(0, 1) @ states[-1].flatten(1)
            states.append(state.reshape(core.shape[0], -1, states[-1].shape[2]))
    else:
        states = [cores[0]]
        for core in cores[1:]:
            state = states[-1].flatten(0, 1) @ core.flatten(1)
            states.append(state.reshape(states[-1].shape[0], -1, core.shape[2]))
    return states


def merge_gradient(cores: list[Tensor], states: list[Tensor], carrier: str, gradient: Tensor) -> list[Tensor]:
    """The gradient of every core from that of ``merge(cores, carrier)[-1]``, whose states are given."""
    found = []
    if carrier == "first":
        for core, state in zip(cores[:-1], reversed(states[:-1])):
            outer = gradient.reshape(core.shape[0] * core.shape[1], -1)
            found.append((outer @ state.flatten(1).mT).reshape(core.shape))
            gradient = (core.flatten(0, 1).mT @ outer).reshape(state.shape)
        return [*found, gradient]
    for core, state in zip(reversed(cores[1:]), reversed(states[:-1])):
        outer = gradient.reshape(-1, core.shape[1] * core.shape[2])
        found.append((state.flatten(0, 1).mT @ outer).reshape(core.shape))
        gradient = (outer @ core.flatten(1).mT).reshape(state.shape)
    return [gradient, *reversed(found)]


def contract(cores, shape: MPSShape) -> Tensor:
    """The (r, n) factor of stored ``cores``."""
    whole = merge(full_cores(cores, shape), shape.carrier)[-1]
    return whole.squeeze(-1) if shape.carrier == "first" else whole.squeeze(0).mT
