"""Which cores are contracted before they meet the tokens: counted by hand, and against trying every way."""

from itertools import combinations, pairwise

import pytest
import torch
from artent.adapters.mps import product
from mps_models import chain_shape

# Multiply-adds a token by hand, at n = 2048, χ = 32. Over many tokens it does not count that cores are contracted.
BY_HAND = {
    "r 16: the dense A takes 2¹⁵, two cores 2¹⁶ + 2¹⁴": (16, (32, 64), 4096, "first", (2,)),
    "r 256: the dense A takes 2¹⁹, two cores 2¹⁶ + 2¹⁸": (256, (32, 64), 4096, "first", (1, 1)),
    "r 256 at the larger site: two cores 2¹⁶ + 2¹⁹": (256, (32, 64), 4096, "last", (2,)),
    "r 1024 last: the dense A takes 2²¹, two cores 2¹⁶ + 2²⁰": (1024, (64, 32), 4096, "last", (1, 1)),
    "r 16, one token: contracting takes 2²⁰": (16, (32, 64), 1, "first", (1, 1)),
    "r 256: the two far cores take 2¹⁶ as one, else 2¹⁶ + 2¹⁷": (256, (8, 16, 16), 4096, "first", (1, 2)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_blocks_are_the_cheapest_for_the_tokens(case):
    r, sites, tokens, carrier, sizes = BY_HAND[case]
    chain = chain_shape(r, sites, carrier, chi=32)
    assert [product.grouping(chain, tokens, backward) for backward in (False, True)] == [sizes] * 2


@pytest.mark.parametrize("carrier", ["first", "last"])
def test_a_chain_of_many_cores_is_planned_as_well_as_by_trying_every_way(carrier):
    torch.manual_seed(0)
    first = carrier == "first"
    every = [(0, *cut, 6) for parts in range(6) for cut in combinations(range(1, 6), parts)]

    def cost(cores, ends, tokens, backward):
        return sum(product._cost(cores, a, b, tokens, backward, first) for a, b in pairwise(ends))

    for _ in range(30):
        r, chi, *sites = torch.randint(1, 65, (2,)).tolist() + torch.randint(1, 9, (6,)).tolist()
        chain = chain_shape(r, tuple(sites), carrier, chi)
        cores = chain.full_cores if first else [core[::-1] for core in reversed(chain.full_cores)]
        for tokens, backward in ((1, False), (64, True), (4096, True)):
            sizes = product.grouping(chain, tokens, backward)
            sizes = sizes if first else sizes[::-1]
            ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
            assert cost(cores, ends, tokens, backward) == min(cost(cores, e, tokens, backward) for e in every)
    assert sum(product.grouping(chain_shape(16, (2,) * 40, carrier, 8), 512, True)) == 40  # 2³⁹ ways
