"""The chain that a configuration asks for at one side of one module: sites, bonds, and where r is carried."""

import warnings
from math import prod

from artent.mps import MPSShape, balanced_sites, dense_shape, largest_bonds


def factor_shapes(config, r: int, n: int, m: int, module: str) -> tuple[MPSShape, MPSShape]:
    """The shapes of A (r, n) and B (as (r, m)) for a module of n inputs and m outputs.

    Raises ValueError for sites that do not multiply to the dimension. Warns where ``chi`` is lowered to what the
    chain can hold.
    """
    chains = ("A", "B") if config.tensorize == "both" else (config.tensorize,)
    A = _chain(config, r, n, f"{module}: its {n} inputs") if "A" in chains else dense_shape(r, n, "first")
    B = _chain(config, r, m, f"{module}: its {m} outputs") if "B" in chains else dense_shape(r, m, "last")
    return A, B


def _chain(config, r, dimension, what) -> MPSShape:
    if isinstance(config.sites, tuple):
        sites = config.sites
        if prod(sites) != dimension:
            raise ValueError(
                f"sites: {sites} multiply to {prod(sites)}, not to {what}. Sites given as numbers fit modules of one "
                "size: give each size its own adapter or target_modules, or leave sites='balanced'"
            )
    else:
        sites = balanced_sites(dimension, 2 if config.sites == "balanced" else config.sites)
    carrier = config.carrier
    if carrier == "auto":
        carrier = "last" if sites[-1] < sites[0] else "first"
    most = largest_bonds(r, sites, carrier)
    asked = config.chi if isinstance(config.chi, tuple) else (config.chi,) * len(most)
    bonds = tuple(map(min, asked, most))
    if bonds != asked and not config.inference_mode:  # what is loaded to be used was warned of when it was made
        warnings.warn(
            f"chi: {_told(asked)} is more than sites {sites} with r = {r} can hold; {_told(bonds)} is used",
            stacklevel=2,
        )
    return MPSShape(r, sites, bonds, carrier)


def _told(bonds):
    return str(bonds[0]) if len(set(bonds)) == 1 else str(bonds)
