"""Bounds on an entropy from part of a spectrum: hold for every spectrum that is allowed, and are attained."""

import math

import pytest
import torch
from spectral_samples import entropy

from artent_ext._spectral_bounds import bounds


def _spectra(count, dim, generator):
    """(count, dim) probabilities, descending, from flat to steep, some with zeros."""
    power = torch.rand(count, 1, generator=generator, dtype=torch.float64) * 6
    p = torch.rand(count, dim, generator=generator, dtype=torch.float64).pow(power)
    p[::3, dim // 2 :] = 0.0
    return (p / p.sum(-1, keepdim=True)).sort(-1, descending=True).values


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-2])
def test_hold_for_every_spectrum(k, distance):
    """λ_i ≥ p_i, λ₁ ≤ largest, and then a change of trace distance ``distance``."""
    generator = torch.Generator().manual_seed(k)
    p = _spectra(3000, 10, generator)
    known = p[:, :k] * torch.rand(3000, 1, generator=generator, dtype=torch.float64)
    largest = p[:, 0] * (1 + torch.rand(3000, generator=generator, dtype=torch.float64))
    other = _spectra(3000, 10, generator)
    apart = 0.5 * (p - other).abs().sum(-1, keepdim=True)
    moved = p + (other - p) * (distance / apart).clamp_max(1.0)
    given = torch.full((3000,), distance, dtype=torch.float64)
    lower, upper = bounds(known, torch.full_like(given, 10), largest + given, given)
    truth = entropy(moved)
    assert (lower <= truth).all()
    assert (truth <= upper).all()


def test_are_attained():
    """The steepest and the flattest spectrum with p₁ ≥ ½, p₂ ≥ ¼, and with the largest at most 0.6."""
    p, none = torch.tensor([[0.5, 0.25]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    lower, upper = bounds(p, none + 6, none + 1, none)
    steepest, flattest = [0.75, 0.25], [0.5, 0.25] + [0.0625] * 4
    largest = [0.6, 0.4]
    for value, true in (
        (lower, steepest),
        (upper, flattest),
        (bounds(p, none + 6, none + 0.6, none)[0], largest),
        (bounds(p[:, :1], none + 6, none + 0.5, none)[0], [0.5, 0.5]),
        (bounds(p[:, 1:], none + 6, none + 0.3, none)[0], [0.3, 0.3, 0.3, 0.1]),
    ):
        expected = entropy(torch.tensor(true, dtype=torch.float64))
        torch.testing.assert_close(value[0], expected, rtol=0, atol=1e-13)


def test_a_whole_spectrum_leaves_nothing_open():
    p = _spectra(100, 12, torch.Generator().manual_seed(1))
    lower, upper = bounds(p, torch.full((100,), 12.0), p[:, 0], torch.zeros(100, dtype=torch.float64))
    torch.testing.assert_close(lower, entropy(p), rtol=0, atol=1e-12)
    torch.testing.assert_close(upper, entropy(p), rtol=0, atol=1e-12)


def test_never_beyond_uniform():
    p = torch.full((1, 3), 0.25, dtype=torch.float64)
    lower, upper = bounds(p, torch.tensor([4.0]), torch.ones(1), torch.ones(1, dtype=torch.float64))
    assert lower == 0
    torch.testing.assert_close(upper[0].item(), math.log(4), rtol=0, atol=1e-13)
