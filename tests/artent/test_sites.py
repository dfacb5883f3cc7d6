from math import log, prod

import pytest
from artent.sites import Chain, chain, prime_factors


@pytest.mark.parametrize(
    ("n", "factors"),
    [(1, ()), (2, (2,)), (13, (13,)), (12, (3, 2, 2)), (2048, (2,) * 11), (14336, (7,) + (2,) * 11), (128256, None)],
)
def test_prime_factors_multiply_back_and_never_increase(n, factors):
    found = prime_factors(n)
    assert factors is None or found == factors
    assert prod(found) == n
    assert list(found) == sorted(found, reverse=True)
    assert all(p % q for p in found for q in range(2, p))


def test_every_small_number():
    for n in range(1, 2000):
        assert prod(prime_factors(n)) == n


def test_a_chain_knows_its_bonds():
    c = chain((12, 10))
    assert c == Chain((3, 2, 2), (5, 2))
    assert (c.dims, c.cut, c.bonds, c.shape) == ((3, 2, 2, 5, 2), 3, (1, 2, 3, 4), (12, 10))
    assert c.left_dims == (3, 6, 12, 60)
    assert c.log_dims == tuple(map(log, c.left_dims))


@pytest.mark.parametrize(
    ("shape", "cut", "bonds"), [((1, 6), 0, (1,)), ((6, 1), 2, (1,)), ((1, 7), 0, ()), ((7, 1), 1, ()), ((1, 1), 0, ())]
)
def test_a_side_of_one_has_no_sites(shape, cut, bonds):
    assert (chain(shape).cut, chain(shape).bonds) == (cut, bonds)


def test_sites_of_ones_own():
    assert chain((12, 8), ((4, 3), (8,))).dims == (4, 3, 8)
    assert chain((1, 8), ([], [2, 4])).dims == (2, 4)


@pytest.mark.parametrize(
    ("shape", "sites", "error", "words"),
    [
        ((0, 4), None, ValueError, "at least one row"),
        ((4, 4), 4, TypeError, "row_sites, col_sites"),
        ((4, 4), ((2, 2),), TypeError, "row_sites, col_sites"),
        ((4, 4), ((2, 2), (2.0, 2)), TypeError, "column sites must be integers"),
        ((4, 4), ((2, 2), (4, 1)), ValueError, "leave sites of one out"),
        ((4, 6), ((2, 3), (2, 2)), ValueError, r"row sites \(2, 3\) multiply to 6, but the 4×6 update has 4 rows"),
    ],
)
def test_bad_sites_are_named(shape, sites, error, words):
    with pytest.raises(error, match=words):
        chain(shape, sites)
