from math import log, pi, sqrt

import pytest
import torch
from artent import theory


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(W):
    p = torch.linalg.svdvals(W).square()
    return p / p.sum()


def test_the_bulk_ends_where_marchenko_and_pastur_say():
    for c in (0.01, 0.3, 1.0):
        assert theory.bulk_edge(c) == pytest.approx((1 + sqrt(c)) ** 2, rel=1e-9)
    assert theory.bulk_edge(1.0, 1.0) == pytest.approx(27 / 4)  # Fuss–Catalan of order two
    assert theory.bulk_edge(0.2, 0.7) == pytest.approx(theory.bulk_edge(0.7, 0.2))


@pytest.mark.parametrize(("m", "n", "rank"), [(64, 256, None), (128, 128, None), (512, 256, 32), (96, 96, 96)])
def test_random_matrices_have_no_outliers(m, n, rank):
    """The share of matrices with an outlier is the 5 % of the threshold; the bulk's entropy is the whole."""
    found = []
    for seed in range(60):
        W = gaussian(m, n, seed=seed) if rank is None else gaussian(m, rank, seed=seed) @ gaussian(rank, n, seed=~seed)
        found.append(theory.split_spectrum(probabilities(W)[: rank or m], (m, n), rank))
    assert sum(s.outliers > 0 for s in found) <= 8  # P(more | 5 % of 60) = 0.003
    assert sum(s.entropy - s.predicted for s in found) / 60 == pytest.approx(0, abs=0.02)
    assert all(s.mass == s.share == 0 for s in found if not s.outliers)


def test_signals_stand_out_where_they_should():
    """Noise and three signals √(θn)·uvᵀ, the last below the threshold √c: two leave the bulk, at the right place."""
    m, n, c = 200, 400, 0.5
    thetas = torch.tensor([6.0, 3.0, 0.3], dtype=torch.float64)
    U, V = (torch.linalg.qr(gaussian(size, 3, seed=size)).Q for size in (m, n))
    W = gaussian(m, n, seed=0) + (U * (thetas * n).sqrt()) @ V.mT
    top = torch.linalg.svdvals(W).square() / n
    for theta, eigenvalue in zip(thetas[:2].tolist(), top.tolist()):
        assert eigenvalue == pytest.approx(theory.outlier(theta, c), rel=0.1)
        assert theory.signal(theory.outlier(theta, c), c) == pytest.approx(theta)
    assert theory.outlier(0.3, c) is None
    assert theory.signal(2.0, c) is None
    split = theory.split_spectrum(top, (m, n))
    p = top / top.sum()
    assert split.outliers == 2
    assert p[2] <= split.edge < p[1]
    assert split.mass == pytest.approx(p[:2].sum().item())
    assert split.share == pytest.approx((-(p[:2] * p[:2].log()).sum() / -(p * p.log()).sum()).item())
    assert split.predicted == pytest.approx(split.entropy, abs=0.01)


def test_an_update_of_few_directions_is_all_outliers():
    split = theory.split_spectrum([0.9, 0.1], (64, 64))
    assert (split.outliers, split.share, split.mass) == (2, 1, pytest.approx(1))
    assert split.predicted == pytest.approx(split.entropy)


def test_an_outlier_beside_a_bulk():
    """The formula against attention-like matrices: a mean direction of weight p₁ beside a square Gaussian bulk."""
    T = 256
    for p1 in (0.05, 0.5, 0.9):
        noise = gaussian(T, T, seed=1)
        signal = torch.ones(T, T, dtype=torch.float64) / T * noise.norm() * sqrt(p1 / (1 - p1))
        p = probabilities(noise + signal)
        S = -(p * p.log()).sum().item()
        assert theory.mixture_entropy(p[0].item(), T) == pytest.approx(S, abs=0.02)
        assert theory.effective_length(p[0].item(), S) == pytest.approx(T, rel=0.15)
    assert theory.mixture_entropy(1, 10) == 0
    assert theory.effective_length(1.0, 0.0) is None


def test_the_rising_side():
    assert theory.rising_bonds((2,) * 12, 6, 4) == [1, 2, 3]  # D ≤ √(64·4)/2
    assert theory.rising_bonds((2,) * 12, 6, 1) == [1, 2, 3]  # that leaves two, √64 itself three
    assert theory.rising_bonds((2,) * 12, 6) == [1, 2, 3, 4, 5]
    assert theory.rising_bonds((2,) * 12, 4) == [1, 2, 3, 4]  # the rows end before
    assert theory.rising_bonds((2,) * 12, 8) == [1, 2, 3, 4, 5]
    assert theory.fit_rise([0.0] * 11, (2,) * 12, 2) is None


def test_fits_of_the_rise_tell_three_laws_apart():
    l = torch.arange(1, 12, dtype=torch.float64)
    for S, name, coefficient in (
        (0.8 * log(2) * l + 0.1, "linear", 0.8),
        (0.5 + 1.2 / 3 * (12 / pi * (pi * l / 12).sin()).log(), "cardy", 1.2),
        (torch.full((11,), 0.7), "flat", 0.0),
    ):
        fits = theory.fit_rise(S, (2,) * 12, 6, 16)
        assert fits[name].coefficient == pytest.approx(coefficient)
        weights = theory.akaike_weights(fits)
        assert max(weights, key=weights.get) == name
        assert sum(weights.values()) == pytest.approx(1)
    random = theory.fit_rise(theory.lora_line((2,) * 20, 10, 16), (2,) * 20, 10, 16)
    assert max(random, key=lambda form: -random[form].aic) == "linear"
    assert random["linear"].coefficient == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.split_spectrum([0.0, 0.0], (4, 4)), "p: expected probabilities"),
        (lambda: theory.split_spectrum([0.5, 0.5], (4, 4), 1), "p: 2 probabilities, but 4×4 and rank 1 allow 1"),
        (lambda: theory.bulk_edge(0.0), "c1, c2: expected ratios"),
        (lambda: theory.mixture_entropy(1.5, 4), "p1, T: expected a probability"),
        (lambda: theory.fit_rise([1.0], (2, 2, 2), 1), "S, dims: expected one entropy"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()
