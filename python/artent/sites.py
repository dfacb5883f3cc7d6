"""A matrix shape as a chain of sites: which dimensions, which bonds, where the row|column cut is (docs/math.md §1)."""

from dataclasses import dataclass
from functools import cached_property
from math import log, prod

from artent_ext.spectral import prime_factors


@dataclass(frozen=True)
class Chain:
    """Row sites, then column sites; within each the most significant digit first.

    Bond l (1 … N−1) splits the first l sites from the rest. Bond ``cut`` = len(rows) is the row|column cut; it is a
    bond of the chain only if the matrix has more than one row and more than one column.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        return self.rows + self.cols

    @property
    def cut(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        return prod(self.rows), prod(self.cols)

    @property
    def bonds(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.dims)))

    @cached_property
    def left_dims(self) -> tuple[int, ...]:
        """D_l, the dimension left of each bond 1 … N−1."""
        return tuple(prod(self.dims[:l]) for l in self.bonds)

    @cached_property
    def log_dims(self) -> tuple[float, ...]:
        """ln D_l per bond."""
        return tuple(log(d) for d in self.left_dims)


def chain(shape: tuple[int, int], sites=None) -> Chain:
    """The chain of an m×n matrix: prime factors by default, or ``sites = (row_sites, col_sites)``.

    Raises TypeError or ValueError when the sites are not two sequences of integers ≥ 2 with products m and n. A
    side of length one has no sites: ``()``.
    """
    m, n = shape
    if m < 1 or n < 1:
        raise ValueError(f"shape: an update needs at least one row and one column, got {m}×{n}")
    if sites is None:
        return Chain(prime_factors(m), prime_factors(n))
    try:
        rows, cols = (tuple(side) for side in sites)
    except (TypeError, ValueError):
        raise TypeError(
            f"sites: expected (row_sites, col_sites), e.g. ((2, 2, 2), (2, 2)) for 8×4, got {sites!r}"
        ) from None
    for side, total, name in ((rows, m, "row"), (cols, n, "column")):
        if not all(isinstance(d, int) and not isinstance(d, bool) for d in side):
            raise TypeError(f"sites: {name} sites must be integers, got {side!r}")
        if any(d < 2 for d in side):
            raise ValueError(f"sites: {name} sites must be at least 2, got {side!r} (leave sites of one out)")
        if prod(side) != total:
            raise ValueError(
                f"sites: {name} sites {side!r} multiply to {prod(side)}, but the {m}×{n} update has {total} {name}s"
                " (row sites come first; leave sites=None for prime factors)"
            )
    return Chain(rows, cols)
