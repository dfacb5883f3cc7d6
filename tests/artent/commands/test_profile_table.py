"""What the table says of a profile: ranks that keep a share, estimates beside bounds, names that are short."""

from math import exp, log

import artent
import pytest
import torch
from artent.commands.profile_numbers import numbers, rank_keeping
from artent.commands.profile_table import by_number, kind_of, layer_of, lines, short_names, unchanged_lines

GENERATOR = torch.Generator().manual_seed(0)
FLAT = torch.randn(48, 48, generator=GENERATOR, dtype=torch.float64)
DECAYING = FLAT * 0.8 ** torch.arange(48)


def kept(W):
    p = torch.linalg.svdvals(W).square()
    return p.cumsum(0) / p.sum()


@pytest.mark.parametrize("W", [FLAT, DECAYING], ids=["flat", "decaying"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_rank_that_keeps_a_share(W, share):
    exact = artent.entanglement_profile(W)
    least, most = rank_keeping(exact, share)
    assert least == most
    assert kept(W)[most - 1] >= share > kept(W)[most - 2]
    for rank in (2, 8, 24):
        low, high = rank_keeping(artent.entanglement_profile(W, method="randomized", rank=rank), share)
        assert low <= most <= high


def test_equal_singular_values_keep_their_share():
    identity = artent.entanglement_profile(torch.eye(10))
    assert [rank_keeping(identity, share)[0] for share in (0.5, 0.9, 0.99)] == [5, 9, 10]
    row = artent.entanglement_profile(torch.randn(1, 12, generator=GENERATOR))
    assert rank_keeping(row, 0.99) == (1, 1)


def estimate(S, stderr, log_base=None):
    """A profile of 4×4 that was estimated everywhere, S ± stderr, within bounds that say little."""
    S, stderr = (torch.tensor(x, dtype=torch.float64) for x in (S, stderr))
    return artent.EntanglementProfile(
        entropy=S,
        lower=S - 0.5,
        upper=S + 0.5,
        cut_probabilities=torch.tensor([0.5, 0.2], dtype=torch.float64),
        schmidt_ranks=(2, 2, 2),
        sites=((2, 2), (2, 2)),
        log_base=log_base,
        method="hybrid",
        stderr=stderr,
    )


def test_estimates_have_a_standard_error():
    told = numbers(estimate([0.6, 0.4, 0.5], [0.03, 0.04, 0.01]))
    rank = exp(0.4)
    assert told["cut_entropy"] == pytest.approx((0.4, -0.1, 0.9, 0.04))
    assert told["max_entropy"] == pytest.approx((0.6, 0.1, 1.1, 0.03))
    assert told["valley_depth"][::3] == pytest.approx((0.2, 0.05))  # 0.03 and 0.04 at right angles
    assert told["effective_rank"][::3] == pytest.approx((rank, 0.04 * rank))
    bits = numbers(estimate([0.6, 0.4, 0.5], [0.03, 0.04, 0.01], log_base=2))
    assert bits["effective_rank"][::3] == pytest.approx((2**0.4, 2**0.4 * 0.04 * log(2)))
    row = next(line for line in lines({"a.0.q": estimate([0.6, 0.4, 0.5], [0.03, 0.04, 0.01])}) if "hybrid" in line)
    assert "1.5 ± 0.1 of 4 used  0.40 ± 0.04  0.60 ± 0.03  0.20 ± 0.05" in row
    assert row.endswith("    ≥ 2      ≥ 2  hybrid")  # 0.5, 0.2 and 0.3 that nobody has seen


NAMES = {  # names, what they have in common, what is left of each
    "one": (["model.layers.0.q_proj"], None, ["model.layers.0.q_proj"]),
    "layers": (["h.0.attn.c", "h.1.attn.c"], "h.*.attn.c", ["0", "1"]),
    "kinds": (["h.0.attn.q", "h.0.mlp.up"], "h.0.*.*", ["attn.q", "mlp.up"]),
    "layers and kinds": (["h.0.a.q", "h.0.a.v", "h.1.a.q"], "h.*.a.*", ["0.q", "0.v", "1.q"]),
    "depths": (["m.h.0.q", "m.h.0.a.q", "m.h.1.q"], "m.h.…", ["0.q", "0.a.q", "1.q"]),
    "one within another": (["m.h", "m.h.q"], "m.…", ["h", "h.q"]),
    "nothing": (["wte", "head.0"], None, ["wte", "head.0"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_are_short_and_tell_modules_apart(case):
    names, common, left = NAMES[case]
    assert short_names(names) == (common, dict(zip(names, left)))


def test_what_names_tell():
    names = ["h.10.q", "h.2.q", "wte", "h.2.experts.11", "h.2.experts.3"]
    assert sorted(names, key=by_number) == ["h.2.experts.3", "h.2.experts.11", "h.2.q", "h.10.q", "wte"]
    assert [kind_of(name) for name in names] == ["q", "q", "wte", "experts", "experts"]
    assert [layer_of(name) for name in names] == [10, 2, None, 2, 2]


def test_many_unchanged_modules_are_counted():
    names = [f"layers.{i}" for i in range(40)]
    told = " ".join(unchanged_lines(names))
    assert told.startswith("40 modules did not change: layers.0, layers.1, ")
    assert told.endswith("layers.11, … and 28 more")
    assert list(unchanged_lines([])) == list(lines({})) == []
