"""What a profile says of itself: how certain its numbers are, in its properties, in records and in one line."""

import json
from math import log

import artent
import pytest
import torch
from artent.entanglement import printed


def decaying(n=128, rate=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    return ((U * rate ** torch.arange(n)) @ V).float()


def flat(n=128, seed=0):
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed))


UPDATES = {
    "flat": flat(),
    "slow": decaying(rate=0.95),
    "fast": decaying(rate=0.5),
    "rank one": torch.outer(torch.arange(1.0, 65), torch.arange(2.0, 50)),
    "identity": torch.eye(64),
}


@pytest.mark.parametrize("case", UPDATES)
@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_bounds_of_what_follows_hold_the_truth(case, alpha, rank):
    W, options = UPDATES[case], {"alpha": alpha, "log_base": 2}
    true = artent.entanglement_profile(W.double(), **options)
    profile = artent.entanglement_profile(W, method="randomized", rank=rank, **options)
    rounding = 1e-6  # of the exact profile, from float64 eigenvalues
    assert ((profile.entropy - true.entropy).abs() <= profile.error + rounding).all()
    for name, value, middle in (
        ("cut_bounds", true.cut_entropy, profile.cut_entropy),
        ("valley_bounds", true.entropy.max() - true.entropy[true.cut - 1], profile.valley_depth),
        ("effective_rank_bounds", true.cut_entropy.mul(log(2)).exp(), profile.effective_rank),
    ):
        low, high = getattr(profile, name)
        assert low >= 0
        assert low - rounding <= value <= high + rounding, name
        assert low - rounding <= middle <= high + rounding, name


def test_a_sketch_of_a_flat_spectrum_admits_that_it_knows_nothing():
    """Its midpoints have a valley, which is not there."""
    profile = artent.entanglement_profile(flat(), method="randomized")
    assert profile.error.max() > 0.3
    assert profile.valley_bounds[0] == 0
    low, high = profile.effective_rank_bounds
    assert low < 70 < high  # e^Page(128, 128) = 78
    assert high - low > 50


def test_of_an_exact_profile_bounds_are_values():
    for update in (flat(), artent.LoRAUpdate(flat()[:, :3], flat()[:3]), torch.ones(1, 7), torch.ones(1, 1)):
        profile = artent.entanglement_profile(update, log_base=2)
        assert (profile.error == 0).all()
        assert profile.error.shape == profile.entropy.shape
        assert profile.cut_bounds == (profile.cut_entropy, profile.cut_entropy)
        assert profile.valley_bounds == (profile.valley_depth, profile.valley_depth)
        assert profile.effective_rank_bounds == (profile.effective_rank, profile.effective_rank)


def test_a_profile_is_printed_in_one_line():
    W = torch.zeros(4, 4)
    W[0, 0] = W[3, 3] = 7.0  # one bit shared by all four sites
    bell = artent.entanglement_profile(W, log_base=2)
    assert repr(bell) == "EntanglementProfile(4×4, exact: max S 1.00 bits, valley 0.00, effective rank 2.0)"
    factored = artent.entanglement_profile(
        artent.LoRAUpdate(torch.ones(8, 2), torch.ones(2, 4).requires_grad_()), alpha=2
    )
    assert repr(factored).startswith("EntanglementProfile(8×4, rank 2, exact: max S_2 0.00 nats, valley 0.00,")
    line = repr(artent.entanglement_profile(flat(), method="randomized"))
    assert "\n" not in line
    assert "128×128, randomized: max S " in line
    assert "valley 0.00 … " in line


PRINTED = {
    (1.0, 1.0): "1.00",
    (0.996, 1.004): "1.00",
    (1.4049, 1.4051): "1.40 … 1.41",
    (0.0, 2.401): "0.00 … 2.41",
    (-0.0, 0.0): "0.00",
}


@pytest.mark.parametrize("bounds", PRINTED)
def test_numbers_are_printed_as_far_as_they_are_certain(bounds):
    assert printed(*bounds) == PRINTED[bounds]


def test_what_was_done_is_said_and_written():
    W = decaying(rate=0.95)
    profile = artent.entanglement_profile(W, method="randomized", rank=4)
    assert profile.method == "randomized"
    assert profile.bond_methods[profile.cut - 1] == "randomized"
    assert profile.bond_methods[0] == profile.bond_methods[-1] == "exact"
    assert ((profile.upper - profile.lower)[[0, -1]] < 1e-8).all()
    assert profile.cut_probabilities.shape == (4,)
    assert profile.mass_kept(4) < 1
    with pytest.raises(ValueError, match=r"k: 5 probabilities.*found 4.*rank=5"):
        profile.mass_kept(5)
    exact = artent.entanglement_profile(W)
    assert all(found <= all_ for found, all_ in zip(profile.schmidt_ranks, exact.schmidt_ranks))
    assert profile.mass_kept(3) <= exact.mass_kept(3)

    record = json.loads(json.dumps(profile.to_dict()))
    again = artent.EntanglementProfile.from_dict(record)
    assert (again.method, again.bond_methods) == (profile.method, profile.bond_methods)
    assert torch.equal(again.upper, profile.upper)
    del record["bond_methods"]  # as written before there were any others
    old = artent.EntanglementProfile.from_dict({**record, "estimator": "exact"})
    assert set(old.bond_methods) == {"exact"}
    assert len(old.bond_methods) == len(old.bonds)
