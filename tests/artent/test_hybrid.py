"""Estimates of entropies: as near the float64 truth as they state, whatever the spectrum; exact where they say so."""

import json
from math import inf, log

import artent
import pytest
import torch
from artent import schmidt
from artent.entanglement import estimated
from artent.schmidt import costs, exact, hybrid
from entropy_reference import entropies
from hybrid_spectra import KINDS, make, of_probabilities
from test_certified import probabilities

ROUNDING = 1e-5  # nats, of bonds called exact: float32 Gram matrices, with their tolerance never used up


def truth(W, dims):
    return torch.from_numpy(entropies(probabilities(W, dims), 1.0))


@pytest.fixture
def many_estimates(monkeypatch):
    """As if exact were dear: every bond with 64 dimensions and more is estimated, and none is given up."""
    monkeypatch.setattr(hybrid, "_split", lambda chain, side: sum(costs.size(chain, l) >= 64 for l in side))
    monkeypatch.setattr(hybrid, "_STAKE", 1e6)


def test_errors_are_small_and_as_stated(many_estimates):
    shares, deviations = {}, []
    for seed, shape in enumerate([(256, 256), (192, 320)]):
        for kind in KINDS:
            W = make(kind, shape, seed)
            profile = artent.entanglement_profile(W, method="hybrid", seed=seed)
            S = truth(W, profile.dims)
            assert (profile.lower - ROUNDING <= S).all(), kind
            assert (profile.upper + ROUNDING >= S).all(), kind
            assert ((profile.entropy - S).abs() <= profile.error + ROUNDING).all(), kind
            hybrids = torch.tensor([method == "hybrid" for method in profile.bond_methods])
            assert hybrids.sum() >= 3
            assert ((profile.entropy - S).abs() <= ROUNDING)[~hybrids].all(), kind
            assert (profile.stderr[~hybrids] == 0).all()
            assert (profile.stderr <= (0.01 * profile.entropy).clamp(min=1e-3)).all()
            error = (profile.entropy - S)[hybrids]
            deviations.append(error.abs() / (profile.stderr[hybrids] + ROUNDING))
            shares.setdefault(kind, []).append(error / S[hybrids].clamp(min=0.1))
    rms = {kind: torch.cat(found).square().mean().sqrt() for kind, found in shares.items()}
    assert max(rms.values()) <= 0.012, rms
    assert torch.cat([x for found in shares.values() for x in found]).square().mean().sqrt() <= 0.006
    deviations = torch.cat(deviations)
    assert (deviations <= 3).double().mean() >= 0.97
    assert deviations.square().mean().sqrt() >= 0.4  # nor does it state much more than happens


@pytest.mark.parametrize("size", [15, 16, 17, 18, 20, 33])
def test_clusters_wider_than_the_block_are_not_taken_for_what_it_holds_of_them(size, many_estimates):
    """Equal eigenvalues of which the Krylov space has sixteen, converged, and all the weight."""
    for low in (1 / 200, 1 / 2000):
        cluster = of_probabilities(lambda i, k: torch.where(i <= size, 1.0, low))  # noqa: B023
        for seed in range(3):
            W = cluster(256, 256, torch.Generator().manual_seed(seed))
            profile = artent.entanglement_profile(W, method="hybrid", seed=seed)
            error = (profile.entropy - truth(W, profile.dims)).abs()
            assert (error <= 4 * profile.stderr + ROUNDING).all(), (low, seed)


@pytest.mark.parametrize("error", [0.1, 0.02, 0.002])
def test_the_standard_error_is_as_asked_for(error, many_estimates):
    deviations = []
    for kind in ("Gaussian", "1/i", "low rank and noise", "sparse"):
        W = make(kind, (256, 256))
        profile = artent.entanglement_profile(W, method="hybrid", max_error=error, log_base=2)
        assert (profile.stderr <= error).all()
        hybrids = profile.stderr > 0
        deviations += ((profile.entropy - truth(W, profile.dims) / log(2)).abs() / profile.stderr)[hybrids].tolist()
    assert max(deviations, default=0.0) <= 4


SHAPES = [(512, 2048), (1376, 512), (640, 480), (1021, 1024)]


@pytest.mark.parametrize("shape", SHAPES)
def test_large_updates_of_any_shape(shape):
    for kind in ("Gaussian", "1/i"):
        W = make(kind, shape)
        profile = artent.entanglement_profile(W, method="hybrid")
        S = artent.entanglement_profile(W).entropy  # held against singular values in test_schmidt.py
        assert profile.method == "hybrid"
        assert profile.bond_methods[0] == profile.bond_methods[-1] == "exact" or shape == (1021, 1024)
        assert ((profile.entropy - S).abs() <= 4 * profile.stderr + 1e-4).all()
        assert (profile.lower - 1e-4 <= S).all()
        assert (profile.upper + 1e-4 >= S).all()
        assert not profile.entropy.isnan().any()


VARIANTS = {
    "float64": lambda W: W.double(),
    "float16": lambda W: W.half(),
    "bfloat16": lambda W: W.bfloat16(),
    "transposed memory": lambda W: W.mT.contiguous().mT,
    "every other column": lambda W: torch.stack([W, -W], -1).flatten(1)[:, ::2],
    "tiny": lambda W: W * 1e-30,
    "huge": lambda W: W * 1e30,
    "tiny in float64": lambda W: W.double() * 1e-200,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_holds_the_numbers_does_not_matter(variant, many_estimates):
    plain = make("1/i", (192, 160))
    W = VARIANTS[variant](plain)
    profile = artent.entanglement_profile(W, method="hybrid")
    assert "hybrid" in profile.bond_methods
    assert ((profile.entropy - truth(W, profile.dims)).abs() <= 3 * profile.stderr + ROUNDING).all()
    half = variant in ("float16", "bfloat16")
    expected = artent.entanglement_profile(plain, method="hybrid")
    torch.testing.assert_close(profile.entropy, expected.entropy, rtol=0, atol=1e-2 if half else 1e-4)


def test_reduced_products_are_not_used(many_estimates, monkeypatch):
    """float64 instead, as for an error that float32 does not reach."""
    W = make("1/i", (192, 160))
    expected = artent.entanglement_profile(W, method="hybrid")
    monkeypatch.setattr(exact, "reduced_products", lambda: True)
    seen = []
    real = hybrid._estimate
    monkeypatch.setattr(hybrid, "_estimate", lambda M, *args: seen.append(M.dtype) or real(M, *args))
    profile = artent.entanglement_profile(W, method="hybrid")
    assert set(seen) == {torch.float64}
    torch.testing.assert_close(profile.entropy, expected.entropy, rtol=0, atol=1e-4)


def test_results_are_a_function_of_seed_and_update(many_estimates):
    updates = [make(kind, (128, 128)) for kind in ("Gaussian", "1/i", "sparse")]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    together = artent.entanglement_profile(updates, method="hybrid")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    for update, profile in zip(updates, together, strict=True):
        again = artent.entanglement_profile(update, method="hybrid", seed=0)
        assert torch.equal(again.entropy, profile.entropy)
        assert torch.equal(again.stderr, profile.stderr)
        other = artent.entanglement_profile(update, method="hybrid", seed=-7)
        assert not torch.equal(other.entropy, profile.entropy)
        assert ((other.entropy - profile.entropy).abs() <= 4 * torch.hypot(other.stderr, profile.stderr)).all()


def test_what_no_estimate_reaches_is_exact():
    W = make("Gaussian", (640, 512))
    assert artent.entanglement_profile(W, method="hybrid").method == "hybrid"
    profile = artent.entanglement_profile(W, method="hybrid", max_error=1e-5)
    assert profile.method == "exact"
    assert (profile.stderr == 0).all()
    torch.testing.assert_close(profile.entropy, artent.entanglement_profile(W.double()).entropy, rtol=0, atol=1e-7)


def test_one_side_may_be_estimated_and_the_other_given_up(monkeypatch, many_estimates):
    W = make("1/i", (192, 160))
    real = hybrid._estimate
    monkeypatch.setattr(hybrid, "_estimate", lambda M, *args: None if M.stride(0) == 1 else real(M, *args))
    profile = artent.entanglement_profile(W, method="hybrid")
    assert "hybrid" in profile.bond_methods
    right = [l for l in profile.bonds if costs.size(profile.chain, l) != profile.chain.left_dims[l - 1]]
    assert all(profile.bond_methods[l - 1] == "exact" for l in right)
    S = artent.entanglement_profile(W).entropy
    assert ((profile.entropy - S).abs() <= 4 * profile.stderr + ROUNDING).all()


def test_factored_small_and_single_updates_are_exact_and_differentiable():
    B, A = torch.randn(12, 3), torch.randn(3, 20)
    for update in (artent.LoRAUpdate(B, A), torch.randn(64, 48), torch.randn(1, 24), torch.ones(1, 1)):
        profile = artent.entanglement_profile(update, method="hybrid")
        assert profile.method == "exact"
        assert torch.equal(profile.entropy, artent.entanglement_profile(update).entropy)
        assert torch.equal(profile.stderr, torch.zeros_like(profile.entropy))
    W = torch.randn(64, 48).requires_grad_()
    artent.entanglement_profile(W, method="hybrid").cut_entropy.backward()
    assert W.grad.norm() > 0


def test_an_estimate_refuses_to_be_differentiated(many_estimates):
    W = make("Gaussian", (96, 96)).requires_grad_()
    profile = artent.entanglement_profile(W, method="hybrid")
    for number in (profile.entropy[0], profile.valley_depth, profile.effective_rank, profile.cut_bounds[0]):
        with pytest.raises(NotImplementedError, match="method='hybrid' have no derivatives"):
            number.backward(retain_graph=True)
    with torch.no_grad():
        assert not artent.entanglement_profile(W, method="hybrid").entropy.requires_grad
    assert not artent.entanglement_profile(W.detach(), method="hybrid").entropy.requires_grad


def test_what_follows_from_an_estimate_has_a_standard_error(many_estimates):
    generator = torch.Generator().manual_seed(0)  # a valley: random factors of low rank
    W = torch.randn(256, 4, generator=generator) @ torch.randn(4, 256, generator=generator)
    W += 0.02 * torch.randn(256, 256, generator=generator)
    profile = artent.entanglement_profile(W, method="hybrid", max_error=0.05, log_base=2)
    true = artent.entanglement_profile(W, log_base=2)
    assert (profile.stderr > 0).any()
    for name, stderr in (
        ("cut_entropy", profile.cut_stderr),
        ("valley_depth", profile.valley_stderr),
        ("effective_rank", profile.effective_rank_stderr),
    ):
        assert stderr >= 0
        assert abs(getattr(profile, name) - getattr(true, name)) <= 4 * stderr + 1e-4, name
    low, high = profile.valley_bounds
    assert low <= true.valley_depth <= high
    known = len(profile.cut_probabilities)
    every = true.cut_probabilities[:known]
    assert (profile.cut_probabilities <= every + 1e-6).all()
    assert profile.mass_kept(4) <= true.mass_kept(4) + 1e-6
    assert all(found <= of_all for found, of_all in zip(profile.schmidt_ranks, true.schmidt_ranks, strict=True))
    with pytest.raises(ValueError, match=rf"hybrid sketch.*found {known}.*method='randomized' and rank={known + 1}"):
        profile.mass_kept(known + 1)


def test_estimates_are_printed_and_written_with_their_error(many_estimates):
    profile = artent.entanglement_profile(make("rows of many scales", (256, 256)), method="hybrid")
    line = repr(profile)
    highest = int(profile.entropy.argmax())
    most = estimated(profile.entropy[highest].item(), profile.stderr[highest].item())
    assert f"256×256, hybrid: max S {most} nats" in line
    assert " ± " in line
    assert "…" not in line
    record = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    again = artent.EntanglementProfile.from_dict(record)
    for name in ("entropy", "stderr", "lower", "upper"):
        assert torch.equal(getattr(again, name), getattr(profile, name))
    assert (again.method, again.bond_methods) == ("hybrid", profile.bond_methods)
    del record["stderr"]  # as before there were estimates
    assert torch.equal(artent.EntanglementProfile.from_dict(record).stderr, torch.zeros(len(profile.bonds)).double())


WRITTEN = {(1.2345, 0.0123): "1.23 ± 0.01", (1.2345, 0.0): "1.23", (7.0, 0.004): "7.00", (-1e-9, 0.3): "0.00 ± 0.30"}


@pytest.mark.parametrize("numbers", WRITTEN)
def test_an_estimate_is_written_as_far_as_it_is_known(numbers):
    assert estimated(*numbers) == WRITTEN[numbers]


BAD = {
    "alpha": ({"alpha": 2}, ValueError, "alpha: got 2 with method='hybrid'.*'exact' or 'randomized'"),
    "alpha ∞": ({"alpha": inf}, ValueError, "alpha: got inf with method='hybrid'"),
    "rank": ({"rank": 32}, ValueError, "rank: got 32 with method='hybrid'.*max_error"),
    "seed": ({"seed": 0.5}, TypeError, "seed: expected an integer, got 0.5"),
    "error": ({"max_error": -1}, ValueError, "max_error: expected.*> 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named(case):
    options, error, words = BAD[case]
    with pytest.raises(error, match=words):
        artent.entanglement_profile(torch.eye(4), method="hybrid", **options)


@pytest.mark.parametrize("value", [float("nan"), inf, 0.0])
def test_no_state_is_refused(value):
    W = torch.zeros(640, 512)
    W[3, 5] = value
    with pytest.raises(ValueError, match=r"update: (holds NaN|is zero)"):
        artent.entanglement_profile(W, method="hybrid")


def test_a_plan_asks_for_estimates():
    plan = schmidt.Plan("hybrid", max_error=0.5, log_base=2, seed=3)
    assert not plan.exact
    assert plan.seed == 3
    assert plan.nats == pytest.approx(0.5 * log(2))
