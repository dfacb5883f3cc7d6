"""Intervals and tests against scipy, and by how often they are wrong."""

from itertools import permutations
from math import inf, isnan
from statistics import fmean

import pytest
import scipy.stats
import torch
from artent.study.analysis import statistics
from artent.study.analysis.nohair import excess, updates_differ


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dof", [1, 1.5, 3, 4.7, 30, 2000])
def test_students_t(dof):
    for t in (-40, -3, -0.4, 0, 0.01, 1, 2.5, 60):
        assert statistics.t_cdf(t, dof) == pytest.approx(scipy.stats.t.cdf(t, dof), abs=1e-11)
    for p in (0.005, 0.2, 0.5, 0.9, 0.975, 0.9999):
        assert statistics.t_quantile(p, dof) == pytest.approx(scipy.stats.t.ppf(p, dof), rel=1e-7, abs=1e-9)


def test_no_degrees_of_freedom_say_nothing():
    assert statistics.t_quantile(0.9, 0) == inf
    assert isnan(statistics.t_cdf(1.0, 0))
    assert statistics.interval([2.0], 0.95)[:3] == (2.0, -inf, inf)
    assert statistics.interval([2.0], 0.95).numbers == [2.0, None, None]
    assert not statistics.equivalence([0.0], 0.1, 0.95).equivalent
    assert statistics.welch([1.0], [2.0, 3.0], 0.95).high == inf


def test_intervals_are_students_and_welchs():
    a, b = (draws(n, seed=n) for n in (5, 4))
    low, high = scipy.stats.t.interval(0.9, 4, loc=a.mean().item(), scale=scipy.stats.sem(a.numpy()))
    assert statistics.interval(a.tolist(), 0.9)[1:3] == pytest.approx((low, high))
    between = scipy.stats.ttest_ind(a.numpy(), b.numpy(), equal_var=False).confidence_interval(0.9)
    assert statistics.welch(a.tolist(), b.tolist(), 0.9)[1:3] == pytest.approx((between.low, between.high))


@pytest.mark.parametrize("margin", [0.05, 0.5, 2.0])
def test_equivalence_is_two_one_sided_t_tests(margin):
    x = 0.2 + 0.3 * draws(6)
    found = statistics.equivalence(x.tolist(), margin, 0.95)
    above = scipy.stats.ttest_1samp(x.numpy(), -margin, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(x.numpy(), margin, alternative="less").pvalue
    assert found.p == pytest.approx(max(above, below))
    assert found.equivalent == (max(above, below) < 0.05)
    assert statistics.equivalence(x.tolist(), found.supports * 1.001, 0.95).equivalent
    assert not statistics.equivalence(x.tolist(), found.supports * 0.999, 0.95).equivalent


def test_the_studentised_range():
    for k, dof in ((2, 3), (4, 3), (6, 9)):
        exact = scipy.stats.studentized_range.ppf(0.95, k, dof)
        assert statistics.range_quantile(0.95, k, dof) == pytest.approx(exact, rel=0.02)


def test_permutations_of_two_groups_are_gone_through():
    values = [1.0, 4.0, 2.0, 9.0, 5.0, 3.5]

    def difference(groups):
        return abs(fmean(v for v, g in zip(values, groups) if g) - fmean(v for v, g in zip(values, groups) if not g))

    observed = difference((0, 0, 0, 1, 1, 1))
    every = [difference(groups) >= observed - 1e-12 for groups in permutations((0, 0, 0, 1, 1, 1))]
    assert statistics.permutation_test((0, 0, 0, 1, 1, 1), difference) == pytest.approx(fmean(every))
    drawn = statistics.permutation_test((0, 0, 0, 1, 1, 1), difference, draws=19)
    assert drawn in [k / 20 for k in range(1, 21)]  # fewer than the splits: drawn, the observed one among them


def test_the_bootstrap_has_the_width_of_the_standard_error():
    x = draws(200)
    found = statistics.bootstrap(x, 0.95)
    error = x.std().item() / 200**0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert statistics.bootstrap(x, 0.95) == found
    assert statistics.bootstrap(x[:1], 0.95).high == inf


def rate(happens):
    return fmean(map(bool, happens))


def test_equivalence_is_wrong_as_often_as_it_may_be():
    """At the margin itself: 5 % are called equivalent and 5 % beyond; within 4 standard errors of 400 draws."""
    x = 1.0 + draws(400, 4)
    found = [statistics.equivalence(row, 1.0, 0.95) for row in (0.1 * x + 0.9).tolist()]
    assert rate(f.equivalent for f in found) == pytest.approx(0.05, abs=0.044)
    assert rate(f.beyond for f in found) == pytest.approx(0.05, abs=0.044)


def test_the_permutation_test_is_wrong_as_often_as_it_may_be():
    """Five methods of 4 seeds that do not differ: p ≤ 0.05 in 5 % of 150 draws (3 errors), of two in at most that."""
    runs, of_all, of_two = [(m, seed) for m in range(5) for seed in range(4)], [], []
    for at in range(150):
        x = draws(20, 6, seed=at)
        of_two.append(updates_differ(dict(zip(runs, x)), (0, 1))["all"] <= 0.05)
        of_all.append(statistics.permutation_test([m for m, _ in runs], _between(x), draws=59, seed=at) <= 0.05)
    assert rate(of_all) == pytest.approx(0.05, abs=0.053)
    assert rate(of_two) <= 0.05 + 0.053


def _between(x):
    """How far the means of five groups of four are apart."""

    def statistic(groups):
        return (torch.nn.functional.one_hot(torch.tensor(groups)).double().T @ x).square().sum().item()

    return statistic


# Systematic difference; of either method the seeds' noise of a head and the noise common to all heads; in margins.
NOISE = {
    "quiet": (1.0, 0.2, 0.0, 0.2, 0.0),
    "noise of the margin": (1.0, 1.0, 0.0, 1.0, 0.0),
    "all heads together": (1.0, 0.5, 0.5, 0.5, 0.5),
    "scatter alone": (0.0, 5**0.5 / 2, 0.0, 0.5, 0.0),  # V_a − V_b = margin²
}


@pytest.mark.parametrize("case", NOISE)
def test_the_excess_is_wrong_at_most_as_often_as_it_may_be(case):
    """Methods one margin apart, 4 seeds, 16 heads: equivalent, or beyond, in 5 % of 300 draws at most (3 errors)."""
    theta, own_a, common_a, own_b, common_b = NOISE[case]
    found = []
    for at in range(300):
        z = draws(4, 4, 16, seed=at)
        z_common = draws(2, 4, 1, seed=at + 10_000)
        shift = z[3, 0] / z[3, 0].square().mean().sqrt() * theta
        a = shift + own_a * z[0] + common_a * z_common[0]
        b = own_b * z[1] + common_b * z_common[1]
        found.append(excess(a, b, 1.0, 0.95))
    assert rate(f.equivalent for f in found) <= 0.05 + 0.038
    assert rate(f.beyond for f in found) <= 0.05 + 0.038


def test_the_excess_tells_what_is_there():
    a, b = 0.3 * draws(4, 32), 0.3 * draws(4, 32, seed=1)
    shift = draws(32, seed=2).sign()
    assert excess(a + 2 * shift, b, 1.0, 0.95).beyond
    assert excess(a + 2 * shift, b, 1.0, 0.95).mean == pytest.approx(2, rel=0.1)
    assert excess(0.1 * a, 0.1 * b, 1.0, 0.95).equivalent
    order = draws(4, 32, seed=3)  # what the order of texts does in both methods alike is not taken for a likeness
    assert not excess(a + 3 * order, b + 3 * order, 0.5, 0.95).equivalent
    few = excess(a[:2], b[:2], 1.0, 0.95)
    assert (few.equivalent, few.beyond, few.supports) == (False, False, inf)
