"""What exact spectra cost, and on which side of each bond they are taken.

Costs are in multiplications and additions of a large float32 product, fitted on a CPU with AVX2; what takes longer than
its arithmetic (eigenvalues, narrow products, conversions to float64) counts for more. N = mn.
"""

from artent.sites import Chain


def sides(chain: Chain) -> tuple[list[int], list[int]]:
    """The bonds with their smaller dimension on the left, and those with it on the right, each from the middle out."""
    left = [l for l, D in zip(chain.bonds, chain.left_dims) if size(chain, l) == D]
    return left[::-1], [l for l in chain.bonds if l not in left]


def size(chain: Chain, bond: int) -> int:
    """The smaller dimension of a bond, min(D, N/D)."""
    m, n = chain.shape
    D = chain.left_dims[bond - 1]
    return min(D, m * n // D)


def exact_cost(chain: Chain, alpha: float, bonds) -> float:
    """Of a Gram matrix and its ladder a side, or for α < 1 of singular values a bond."""
    m, n = chain.shape
    if alpha < 1:
        return sum(50 * size(chain, l) * m * n for l in bonds)
    cost = 0.0
    for side in sides(chain):
        sizes = [size(chain, l) for l in side if l in bonds]
        if sizes:
            cost += 1.25 * max(sizes) * m * n + sum(5 * size**3 for size in sizes)
    return cost
