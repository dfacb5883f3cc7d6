"""Bounds from a sketch hold the float64 truth: always, with no tolerance, however rough the sketch."""

from math import inf, prod

import artent
import numpy as np
import pytest
import torch
from artent import schmidt
from artent.schmidt import choice, randomized
from artent.sites import chain
from entropy_reference import entropies

ALPHAS = (0.5, 1.0, 2.0, inf)
SHAPES = [(64, 64), (96, 40), (24, 120), (49, 81), (2, 210), (30, 3)]
FAMILIES = {
    "fast": lambda k: 0.5 ** torch.arange(k),
    "slow": lambda k: 1 / (1.0 + torch.arange(k)),
    "step": lambda k: torch.where(torch.arange(k) < k / 4, 1.0, 1e-3),
    "flat": lambda k: torch.ones(k),
    "low rank": lambda k: (torch.arange(k) < max(1, k // 8)).double(),
    "κ = 1e12": lambda k: torch.logspace(0, -12, k, dtype=torch.float64),
    "repeated": lambda k: 2.0 ** -(torch.arange(k) // 3),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def matrix(shape, family, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = min(shape)
    U, V = (torch.linalg.qr(torch.randn(s, k, generator=generator, dtype=torch.float64)).Q for s in shape)
    return (U * FAMILIES[family](k).double()) @ V.mT


def probabilities(W, dims):
    """At each bond, from one float64 singular value decomposition a bond of the very same numbers."""
    W = W.detach().double()
    W = W / W.abs().max()
    p = [torch.linalg.svdvals(W.reshape(prod(dims[:l]), -1)).square().numpy() for l in range(1, len(dims))]
    return [x / x.sum() for x in p]


def truth(W, dims, alpha=1.0):
    return torch.from_numpy(entropies(probabilities(W, dims), alpha))


def check(spectra, true):
    for alpha in ALPHAS:
        lower, upper = (torch.cat(bound) for bound in zip(*(spectrum.bounds(alpha) for spectrum in spectra)))
        S = torch.from_numpy(entropies(true, alpha))
        assert (lower <= S).all(), (alpha, (lower - S).max())
        assert (upper >= S).all(), (alpha, (S - upper).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_hold_at_every_bond(family, dtype):
    for seed, shape in enumerate(SHAPES):
        W, where = matrix(shape, family, seed).to(dtype), chain(shape)
        true = probabilities(W, where.dims)
        for width, ends in ((1, 1), (5, 8), (16, 1), (200, 16)):
            check(randomized.sketch(W, where, width, ends), true)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_profiles_are_bounded_whatever_the_scale(alpha, scale):
    for seed, family in enumerate(FAMILIES):
        W = (scale * matrix((72, 56), family, seed)).float()
        profile = artent.entanglement_profile(W, method="randomized", alpha=alpha, rank=3)
        S = truth(W, profile.dims, alpha)
        assert (profile.lower <= S).all()
        assert (profile.upper >= S).all()
        assert ((profile.entropy - S).abs() <= (profile.upper - profile.lower) / 2).all()


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_for_any_vectors(seed):
    """Useless, dependent, zero or nearly parallel: of the sketch nothing is taken on trust."""
    generator = torch.Generator().manual_seed(seed)
    W = matrix((48, 36), "low rank", seed)
    where = chain((48, 36))
    true = probabilities(W, where.dims)
    x = torch.randn(36, 6, generator=generator, dtype=torch.float64)
    beside = x - W.mT @ torch.linalg.lstsq(W.mT, x).solution  # outside of everything W maps
    check(randomized.bounded(W.mT.contiguous().mT, where, x), true)  # nor the layout of W
    for right in (x, x[:, :1].expand(36, 6), 0 * x, x[:, :1] + 1e-9 * x, beside, x.float(), torch.eye(36)):
        check(randomized.bounded(W, where, right), true)


def test_probabilities_are_bounded_one_by_one():
    W, where = matrix((64, 48), "slow").float(), chain((64, 48))
    for spectrum, p in zip(randomized.sketch(W, where, 7), probabilities(W, where.dims)):
        assert (spectrum.p[0].numpy() <= p[: spectrum.p.shape[1]] + spectrum.rounding).all()
        assert spectrum.p.sum() + spectrum.tail == pytest.approx(1)


def test_the_cut_is_as_good_as_the_best_projection_can_be():
    """The tail at the cut is at least Σ_{i>k} p_i, and little more."""
    for family in ("fast", "slow", "flat"):
        W = matrix((128, 128), family)
        p = torch.linalg.svdvals(W).square()
        best = p[16:].sum() / p.sum()
        at_cut = randomized.sketch(W.float(), chain((128, 128)), 16)[6]
        assert best - 1e-6 <= at_cut.tail <= 1.1 * best + 1e-6


def test_bounds_close_as_the_sketch_widens():
    W = matrix((128, 96), "slow").float()
    errors = []
    for rank in (2, 8, 32, 96):
        profile = artent.entanglement_profile(W, method="randomized", rank=rank)
        errors.append(((profile.upper - profile.lower) / 2).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


def test_blocks_are_an_implementation_detail(monkeypatch):
    W = matrix((48, 30), "slow").float().requires_grad_()
    whole = randomized.sketch(W, chain((48, 30)), 5, 8)
    expected = torch.autograd.grad(sum(s.p.square().sum() for s in whole), W)[0]
    monkeypatch.setattr(randomized, "_BLOCK", 100)  # three rows, two columns
    cut_up = randomized.sketch(W, chain((48, 30)), 5, 8)
    for a, b in zip(whole, cut_up):
        torch.testing.assert_close(a.p, b.p, rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.autograd.grad(sum(s.p.square().sum() for s in cut_up), W)[0], expected)


@pytest.mark.parametrize("left", [False, True])
def test_gradients_of_a_pass(left, monkeypatch):
    monkeypatch.setattr(randomized, "_BLOCK", 20)
    W = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    basis = torch.randn(6 if left else 8, 3, dtype=torch.float64)
    for size in (1, 2):
        assert torch.autograd.gradcheck(lambda W: randomized._Pass.apply(W, basis, size, 0.5, left), W)  # noqa: B023


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_tend_to_those_of_the_entropy(alpha, dtype):
    """Only the entropy of what the sketch left out, of norm √ε, lacks its gradient."""
    W = matrix((64, 48), "fast").to(dtype).requires_grad_()
    (expected,) = torch.autograd.grad(artent.entanglement_profile(W, alpha=alpha).entropy.sum(), W)
    for rank in (4, 8, 12):
        profile = artent.entanglement_profile(W, method="randomized", rank=rank, alpha=alpha)
        (found,) = torch.autograd.grad(profile.entropy.sum(), W)
        assert found.dtype == dtype
        left_out = 0.5**rank * np.log(4**rank * 48)  # √ε ln(dim/ε)
        assert (found - expected).norm() <= 2 * left_out * expected.norm()
    profile = artent.entanglement_profile(W, method="randomized", rank=12)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(profile.entropy.sum(), W, create_graph=True)


@pytest.mark.parametrize("options", [{"method": "randomized"}, {"max_error": 1e-3}, {"rank": 2, "max_error": 1e-9}])
def test_factored_updates_and_vectors_are_exact_whatever_is_asked(options):
    B, cores = torch.randn(12, 3), [torch.randn(4, 2), torch.randn(2, 5, 3)]
    A = torch.randn(3, 20)
    for update in (artent.LoRAUpdate(B, A), artent.MPSUpdate(B, cores), torch.randn(1, 24), torch.ones(1, 1)):
        profile = artent.entanglement_profile(update, **options)
        assert profile.method == "exact"
        assert torch.equal(profile.entropy, artent.entanglement_profile(update).entropy)
        assert torch.equal(profile.lower, profile.upper)


def test_a_list_is_its_members():
    updates = [matrix((64, 48), family).float() for family in FAMILIES]
    B, A = torch.randn(64, 2), torch.randn(2, 48)
    profiles = artent.entanglement_profile([*updates, artent.LoRAUpdate(B, A)], method="randomized", rank=5)
    assert [p.rank for p in profiles] == [None] * len(updates) + [2]
    for update, profile in zip(updates, profiles):
        alone = artent.entanglement_profile(update, method="randomized", rank=5)
        torch.testing.assert_close(profile.entropy, alone.entropy, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("max_error", [0.3, 0.01, 1e-6])
@pytest.mark.parametrize("cheap", [True, False])
def test_auto_meets_the_error_it_was_given(alpha, max_error, cheap, monkeypatch):
    if cheap:  # as if sketches cost nothing, so that all of them are tried
        monkeypatch.setattr(choice, "_sketch_cost", lambda chain, width, ends: 0.0)
    for family in FAMILIES:
        W = matrix((90, 64), family).double()
        profile = artent.entanglement_profile(W, alpha=alpha, max_error=max_error, log_base=2)
        S = truth(W, profile.dims, alpha) / np.log(2)
        assert ((profile.upper - profile.lower) / 2 <= max_error).all()
        assert ((profile.entropy - S).abs() <= max_error).all()
        assert profile.method == "randomized" or not cheap or family != "fast" or max_error < 0.01


def test_auto_takes_what_is_cheaper():
    shape = (1024, 768)
    decaying, flat = matrix(shape, "fast").float(), torch.randn(shape)
    profiles = artent.entanglement_profile([decaying, flat, decaying[:64, :64]], max_error=0.01)
    assert [p.method for p in profiles] == ["randomized", "exact", "exact"]
    assert ((profiles[0].upper - profiles[0].lower) / 2 <= 0.01).all()
    for profile, W in zip(profiles, (decaying, flat)):
        assert ((profile.entropy - artent.entanglement_profile(W).entropy).abs() <= 0.01).all()
    assert artent.entanglement_profile(decaying).method == "exact"


def test_a_hopeless_spectrum_is_given_up_after_one_sketch(monkeypatch):
    widths = []
    real = randomized.sketch
    monkeypatch.setattr(
        choice, "sketch", lambda W, chain, width, ends: widths.append(width) or real(W, chain, width, ends)
    )
    artent.entanglement_profile(torch.randn(1024, 768), max_error=0.01)
    assert widths == [16]
    widths.clear()
    W = torch.randn(2048, 24) @ torch.randn(24, 1024)  # as flat, as far as sixteen columns can tell
    profile = artent.entanglement_profile(W, max_error=0.01)
    assert len(widths) == 2
    assert profile.method == "randomized"


def test_the_side_of_the_middle_that_meets_the_error_stays_sketched(monkeypatch):
    W = matrix((256, 256), "fast").float()  # its largest smaller side, 256, is at the cut, counted to the left
    errors = torch.cat([spectrum.error(1.0) for spectrum in randomized.sketch(W, chain(W.shape), 8)])
    max_error = float(errors[7] + errors[8]) / 2
    monkeypatch.setattr(choice, "_sketch_cost", lambda chain, width, ends: 0.0 if width == 8 else inf)
    profile = artent.entanglement_profile(W, max_error=max_error, rank=8)
    assert profile.bond_methods == ("exact",) * 8 + ("randomized",) * 7
    assert ((profile.entropy - truth(W, profile.dims)).abs() <= max_error).all()


def test_randomized_widens_for_an_error_and_reports_what_it_reached():
    W = matrix((1024, 768), "fast").float()
    narrow = artent.entanglement_profile(W, method="randomized", rank=2)
    wide = artent.entanglement_profile(W, method="randomized", rank=2, max_error=1e-3)
    assert ((narrow.upper - narrow.lower) / 2).max() > 1e-3
    assert ((wide.upper - wide.lower) / 2).max() <= 1e-3
    with pytest.warns(UserWarning, match=r"max_error: 0\.001 nats.*larger rank, or method='exact' or 'auto'") as said:
        hopeless = artent.entanglement_profile([torch.randn(256, 256)] * 2, method="randomized", max_error=1e-3)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert [profile.method for profile in hopeless] == ["randomized"] * 2
    assert f"up to {max(profile.error.max() for profile in hopeless):.2g} nats" in str(said[0].message)
    for met in ({"rank": 256}, {"method": "auto"}, {"log_base": 2, "rank": 256}):
        profile = artent.entanglement_profile(
            torch.randn(256, 256), **{"method": "randomized", "max_error": 1e-3, **met}
        )
        assert (profile.error <= 1e-3).all()


def profile_of(**options):
    return lambda: artent.entanglement_profile(torch.eye(4), **options)


BAD = {
    "rank of exact": (profile_of(method="exact", rank=3), ValueError, "rank: got 3 with method='exact'"),
    "error of exact": (profile_of(method="exact", max_error=0.1), ValueError, "max_error: got 0.1 with method='exact'"),
    "rank of auto": (profile_of(rank=3), ValueError, "rank: got 3 with method='auto' and no max_error"),
    "rank 0": (profile_of(method="randomized", rank=0), ValueError, "rank: expected.*integer ≥ 1, got 0"),
    "rank 2.5": (profile_of(method="randomized", rank=2.5), TypeError, "rank: expected.*got 2.5"),
    "rank True": (profile_of(method="randomized", rank=True), TypeError, "rank: expected.*got True"),
    "error 0": (profile_of(max_error=0), ValueError, "max_error: expected.*> 0.*method='exact'.*got 0"),
    "error nan": (profile_of(max_error=float("nan")), ValueError, "max_error: expected.*got nan"),
    "error word": (profile_of(max_error="small"), TypeError, "max_error: expected.*got 'small'"),
    "zero": (
        lambda: artent.entanglement_profile(torch.zeros(4, 4), method="randomized"),
        ValueError,
        "update: is zero",
    ),
    "NaN": (
        lambda: artent.entanglement_profile([torch.eye(4), torch.eye(4) * inf], method="randomized"),
        ValueError,
        r"update\[1\]: holds NaN",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()


def test_plans_are_checked_where_they_are_made():
    plan = schmidt.Plan("auto", max_error=np.float32(0.5), log_base=2)
    assert plan.nats == pytest.approx(0.5 * np.log(2))
    assert not plan.exact
