"""Laws, residuals and sensitivity: each number against the records that it comes from, or against what was put in."""

from math import log
from statistics import fmean, stdev

import pytest
import scipy.stats
import torch
from artent import theory
from artent.study.analysis import laws, residuals, sensitivity
from artent.study.summary import Summary
from study import synthetic
from study.synthetic import SWEEP, Effects


def summary(**effects):
    return Summary(synthetic.records(Effects(**effects)))


@pytest.fixture(scope="module")
def published():
    return summary()


def test_slopes_are_those_of_the_rising_side(published):
    rise = laws.rises(published)["full-ft"]
    x = torch.tensor([log(2**l) for l in range(1, 6)])  # up to half of the middle
    slopes = []
    for seed in range(4):
        each = [p.entropy[:5] for p in published.last_profiles(("full-ft", seed)).values()]
        slopes.append(fmean(scipy.stats.linregress(x, S).slope for S in each))
    assert rise.slope.value == pytest.approx(fmean(slopes))
    low, high = scipy.stats.t.interval(0.95, 3, loc=fmean(slopes), scale=stdev(slopes) / 2)
    assert rise.slope[1:3] == pytest.approx((low, high))
    assert rise.null == pytest.approx(scipy.stats.linregress(x, synthetic.line(None)[:5]).slope)
    assert sum(rise.weights.values()) == pytest.approx(1)
    assert rise.linear == 1


def test_growth_over_texts_and_over_seeds(published):
    found = laws.growths(published)
    assert {"base", "untrained", "full-ft", "lora-r16"} <= set(found)
    assert found["base"].texts.value == pytest.approx(0.5, abs=0.03)
    assert found["base"].seeds is None
    c = [published.fits[("full-ft", seed)]["c"] for seed in range(4)]
    assert found["full-ft"].seeds.value == pytest.approx(fmean(c))
    assert found["full-ft"].layers == pytest.approx([fmean(c)] * synthetic.LAYERS)
    assert laws.window_exponent(published) == pytest.approx(0.95, abs=0.01)
    assert laws.window_exponent(summary(seeds=1, null_c=(0.2, 1.3, 0.7, 0.2))) == 1


@pytest.mark.parametrize("form", ["calabrese-cardy", "linear", "flat"])
def test_the_form_of_a_chain(form):
    found = laws.chain_forms(summary(seeds=1, cardy=form), "base")
    assert max(found.weights, key=found.weights.get) == form
    assert found.heads == synthetic.LAYERS * synthetic.HEADS
    assert sum(found.shares.values()) == pytest.approx(1)
    assert form != "calabrese-cardy" or found.c == pytest.approx(1.2, abs=0.1)


def test_residuals_are_distances_over_the_bonds(published):
    found = residuals.residuals(published, "lora-r4")
    rms, largest = [], []
    for seed in range(4):
        left = [p.entropy - synthetic.line(4) for p in published.last_profiles(("lora-r4", seed)).values()]
        rms.append(fmean((x @ x / 11).sqrt().item() for x in left))
        largest += [x.abs().max().item() for x in left]
    assert found["line"].rms.value == pytest.approx(fmean(rms))
    assert found["line"].largest == pytest.approx(max(largest))
    assert found["line"].mean == pytest.approx(fmean(largest))
    assert found["haar"].rms.value != found["line"].rms.value


def test_flat_spectra_have_no_outliers(published):
    count, share, left = residuals.outliers(published, "full-ft")
    assert (count, share) == (0, 0)
    assert abs(left) < 0.6  # k equal probabilities, where the bulk would spread by half a nat


@pytest.mark.parametrize("bulk", [1.0, 0.4])
def test_the_bulk_of_attention_is_found_again(bulk):
    found = residuals.attention_mixture(summary(seeds=1, bulk=bulk, bulk_noise=0.02), "base")
    assert found.share == pytest.approx(bulk, rel=0.1)
    assert found.fitted.value < 0.04
    assert found.explained > 0.95
    # without the fit, every head is off by (1 − p₁) ln(T_eff/T)
    p = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    assert found.line.value == pytest.approx(((1 - p).square().mean().sqrt() * -log(bulk)).item(), abs=0.03)


def test_what_a_sweep_moves_is_told_from_what_seeds_do():
    s = summary(varied={"learning_rate": 0.3, "*": 0.0}, sweep=SWEEP[:3])
    found = {(m.vary, m.quantity): m for m in sensitivity.updates_moved(s)}
    depth = found[("learning_rate", "depth")]
    assert set(depth.values) == {0.01, 0.0025, 0.04}
    assert depth.moves
    seeds = [fmean(float(p.valley_depth) for p in s.last_profiles(("lora-r16", k)).values()) for k in range(4)]
    assert depth.values[0.01] == pytest.approx(fmean(seeds))
    assert depth.spread == pytest.approx(stdev(seeds))
    assert depth.least == pytest.approx(
        scipy.stats.studentized_range.ppf(1 - 0.05 / 3, 3, 3) * stdev(seeds), rel=0.03
    )  # 3 sweeps
    assert not found[("alpha", "depth")].moves
    # the rank moves the depth of any factors, random ones too: the excess over them moves less
    assert found[("rank", "excess")].range < found[("rank", "depth")].range
    line = theory.lora_line(synthetic.DIMS, synthetic.CUT, 16)
    expected = depth.values[0.01] - max(line) + line[synthetic.CUT - 1]
    assert found[("rank", "excess")].values[16] == pytest.approx(expected)
    few = sensitivity.updates_moved(summary(seeds=3, sweep=SWEEP[:1]))
    assert all(moved.moves is None for moved in few)


def test_attention_in_a_sweep_is_compared_on_its_own_texts():
    s = summary(attention_varied={"alpha": 0.4, "*": 0.0}, sweep=SWEEP[:2])
    shifts = {shift.vary: shift for shift in sensitivity.attention_shifts(s)}
    run = next(run for run in s.sweeps if run.vary == "alpha" and run.value == 128)
    own = torch.stack([s.s_ext[("lora-r16", seed)][-1][:, -2:].mean(1).flatten() for seed in range(4)])
    apart = s.last_attention(run.stage).s_ext.mean(1).flatten() - own[1:].mean(0)  # the run has seed 0
    noise = [(own[k] - (own.sum(0) - own[k]) / 3).square().mean() for k in range(4)]
    expected = (apart.square().mean() - sum(noise) / 4).sqrt().item()
    assert shifts["alpha"].shifts[128].mean == pytest.approx(expected)
    assert list(shifts["alpha"].shifts) == [8, 128]
    assert (shifts["alpha"].beyond, shifts["alpha"].same) == (True, False)
    assert (shifts["learning_rate"].beyond, shifts["learning_rate"].same) == (False, True)


def test_steps_are_compared_with_the_first():
    found = sensitivity.step_shifts(summary(attention_drift=0.3))
    test, largest, steps = found["lora-r4"]
    assert steps == (0, 10)
    assert test.mean == pytest.approx(0.3, abs=0.03)
    assert largest == pytest.approx(0.3, abs=0.03)
    assert test.beyond


def test_a_start_taken_out_of_the_base_has_twice_the_rank():
    records = synthetic.records(Effects(seeds=1, sweep=SWEEP[3:], varied={"*": 0.0}))
    for record in records:
        if record["kind"] == "profile" and record.get("setting") == "init=pissa":
            record["rank"] = None  # ΔW is a difference of two products of rank 16
    s = Summary(records)
    found = {m.quantity: m for m in sensitivity.updates_moved(s)}
    line = theory.lora_line(synthetic.DIMS, synthetic.CUT, 32)
    expected = found["depth"].values["pissa"] - max(line) + line[synthetic.CUT - 1]
    assert found["excess"].values["pissa"] == pytest.approx(expected)


def test_attention_of_what_diverged_is_not_its_first_steps():
    records = synthetic.records(Effects(seeds=1, sweep=SWEEP[:1]))
    swept = [r for r in records if r.get("setting") == "learning_rate=0.04"]
    for record in swept:
        if record["kind"] == "attention":
            record["step"] = 0
    s = Summary(records)
    run = next(run for run in s.sweeps if run.value == 0.04)
    assert s.last_attention(run.stage) is None
    assert 0.04 not in sensitivity.attention_shifts(s)[0].shifts
