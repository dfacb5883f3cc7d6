"""The parts of the no-hair test: which runs are paired, at what loss, with which controls, and samples beside it."""

import statistics
from itertools import combinations

import pytest
import torch
from artent.records import read_records
from artent.study.analysis import nohair
from artent.study.analysis.sampled import sampled
from artent.study.summary import Summary
from safetensors.torch import load_file
from study import synthetic
from study.synthetic import Effects

NAMES = [m.name for m in synthetic.METHODS]


def summary(**effects):
    return Summary(synthetic.records(Effects(**effects)))


def test_the_ratio_divides_what_methods_do_by_what_seeds_do():
    runs = {("a", 0): [[0.0, 0.0]], ("a", 1): [[1.0, 1.0]], ("b", 0): [[4.0, 2.0]], ("b", 1): [[3.0, 3.0]]}
    runs = {run: torch.tensor(values) for run, values in runs.items()}
    r, methods, seeds = nohair.method_seed_ratio(runs)
    # pairs of other methods and seeds: a0 b1 (9), a1 b0 (5); of other seeds: a (1), b (1)
    assert methods.item() == pytest.approx(7**0.5)
    assert seeds.item() == pytest.approx(1)
    assert r.item() == pytest.approx(7**0.5)
    assert nohair.method_seed_ratio({key: runs[key] for key in (("a", 0), ("a", 1))}) is None
    with pytest.raises(ValueError, match="same \\(units, samples\\)"):
        nohair.method_seed_ratio({**runs, ("b", 1): torch.zeros(2, 1)})


def test_one_median_of_the_ratios_is_told():
    s = summary(sweep=(), controls=(), chain=False)
    found = nohair.ratios(s)
    assert len(found.attention) == synthetic.LAYERS * synthetic.HEADS
    assert len(found.updates) == len(synthetic.MODULES)
    assert found.r_ext == pytest.approx(statistics.median(found.attention))  # an even number: between the middle two
    head = {run: S[-1].mean(1).flatten()[:1, None] for run, S in s.s_ext.items() if run in s.runs}
    assert found.attention[0] == pytest.approx(nohair.method_seed_ratio(head)[0].item())
    module = {run: s.last(run, min(synthetic.MODULES)).entropy[None] for run in s.runs}
    assert found.updates[0] == pytest.approx(nohair.method_seed_ratio(module)[0].item())
    assert nohair.ratios(summary(seeds=1, sweep=(), controls=(), chain=False)) is None


def test_two_families_of_pairs_share_the_error():
    values = nohair.final_attention(summary(method_shift=0.08, sweep=(), controls=(), chain=False))
    one, two = (nohair.attention_pairs(values, NAMES, 0.1, 0.95, families) for families in (1, 2))
    assert [pair.excess.high for pair in one] == [pair.excess.high for pair in two]  # equivalence takes no correction
    for pair in two:
        x, y = (torch.stack([values[(name, seed)] for seed in range(4)]) for name in (pair.a, pair.b))
        assert pair.excess.beyond == nohair.excess(x, y, 0.1, 0.95, 2 * len(two)).beyond


def test_the_excess_is_what_its_formula_says():
    """η² = E‖a_s − b_s′‖² − E‖b_s − b_s′‖² over s ≠ s′, by going through the pairs."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=g, dtype=torch.float64) for _ in range(2))
    a = a + 1
    pairs = [(s, t) for s in range(5) for t in range(5) if s != t]

    def distance(x, y):
        return sum((x[s] - y[t]).square().mean() for s, t in pairs) / len(pairs)

    one = (distance(a, b) - distance(b, b)).item()
    other = (distance(b, a) - distance(a, a)).item()
    assert nohair.excess(a, b, 1.0, 0.95, both=False).mean == pytest.approx(one**0.5)
    assert nohair.excess(a, b, 1.0, 0.95).mean == pytest.approx(max(one, other) ** 0.5)


def test_every_pair_of_methods_is_tested_at_the_seeds_that_both_have():
    s = summary()
    values = nohair.final_attention(s)
    pairs = nohair.attention_pairs(values, NAMES, 0.1, 0.95)
    assert [(pair.a, pair.b) for pair in pairs] == list(combinations(NAMES, 2))
    x = torch.stack([values[("full-ft", k)] - values[("lora-r4", k)] for k in range(4)])
    pair = next(pair for pair in pairs if (pair.a, pair.b) == ("full-ft", "lora-r4"))
    assert pair.between == pytest.approx(x.square().mean().sqrt().item())
    assert pair.theta == pytest.approx(s_theta(x), abs=1e-12)
    assert pair.excess.supports == pair.excess.high
    gone = {run: S for run, S in values.items() if run != ("full-ft", 3)}
    assert nohair.attention_pairs(gone, NAMES[:2], 0.1, 0.95)[0].between != pytest.approx(pairs[0].between)


def s_theta(x):
    """The square root of the mean over pairs of seeds of the product of their differences."""
    products = [(x[s] * x[t]).mean().item() for s in range(4) for t in range(4) if s != t]
    return max(0.0, sum(products) / len(products)) ** 0.5


def test_controls_are_told_where_they_are_far():
    far = nohair.control_differences(summary(control_shift=0.6), 0.1, 0.95)
    assert set(far) == set(synthetic.CONTROLS)
    assert all(far[name].beyond for name in ("untrained", "lora-10x", "negated", "haar", "random"))
    near = nohair.control_differences(summary(control_shift=0.0, null_c=(0.2, 0.95, 0.75, 0.5)), 0.1, 0.95)
    assert not any(test.beyond for test in near.values())


def test_matched_loss_lies_between_the_steps_around_it():
    s = summary(method_loss=0.1, loss_noise=0.0)
    attention, profiles, loss = nohair.at_matched_loss(s)
    assert loss == pytest.approx(2.0)  # full FT's end, the highest
    run = ("mps-r16", 0)  # ends at 1.6, so 2.0 is reached after 1/1.4 of the way: between steps 5 and 10
    part = (10 / 1.4 - 5) / 5
    S = [s.attention[run][step].s_ext.mean(1).flatten() for step in (5, 10)]
    torch.testing.assert_close(attention[run], S[0] + part * (S[1] - S[0]))
    p = [s.profiles[run][synthetic.MODULES[0]][step].entropy for step in (5, 10)]
    torch.testing.assert_close(profiles[run][:11], p[0] + part * (p[1] - p[0]))
    last = s.attention[("full-ft", 0)][10].s_ext.mean(1).flatten()
    torch.testing.assert_close(attention[("full-ft", 0)], last)


@pytest.mark.parametrize(
    ("effects", "words"),
    [({"step_records": False}, "no attention and loss measured at two steps"), ({"learned": -0.5}, "is not below")],
)
def test_what_keeps_losses_from_being_matched_is_said(effects, words):
    assert words in nohair.at_matched_loss(summary(**effects))


def test_updates_that_differ_are_told_from_noise():
    s = summary()
    p = nohair.updates_differ(nohair.final_profiles(s), NAMES)
    assert p["all"] == pytest.approx(1 / 2001)
    assert p[("full-ft", "lora-r4")] == pytest.approx(2 / 70)  # the least that 4 against 4 can have
    few = nohair.updates_differ({run: x for run, x in nohair.final_profiles(s).items() if run[1] == 0}, NAMES)
    assert few == {}


def test_rows_and_outputs_of_sample_files(tmp_path):
    effects = Effects(seeds=2, methods=synthetic.METHODS[2:4], sweep=(), samples=True)
    folder = synthetic.write(tmp_path / "run", effects)
    s = Summary(read_records(folder / "results.jsonl"), folder)
    found = sampled(s, [("lora-r4", "lora-r16"), ("haar", "lora-r16"), ("full-ft", "lora-r4")], 0.95)
    assert ("full-ft", "lora-r4") not in found  # it was not run
    files = {(m, k): load_file(s.sample_path((m, k))) for m in ("lora-r4", "lora-r16") for k in (0, 1)}

    def variation(a, b):
        return (files[a]["rows"].double() - files[b]["rows"].double()).abs().sum(-1).mean().item() / 2

    between = [variation(("lora-r4", k), ("lora-r16", k)) for k in (0, 1)]
    assert found[("lora-r4", "lora-r16")]["rows"].value == pytest.approx(sum(between) / 2, rel=1e-5)
    assert found["lora-r4"]["rows"].value == pytest.approx(variation(("lora-r4", 0), ("lora-r4", 1)), rel=1e-5)
    x, y = (files[("lora-r16", k)]["outputs"].double() for k in (0, 1))
    layers = [(a - b).norm() / ((a.norm() + b.norm()) / 2) for a, b in zip(x, y)]
    assert found["lora-r16"]["outputs"].value == pytest.approx(torch.stack(layers).mean().item(), rel=1e-5)
    assert found[("haar", "lora-r16")]["rows"].value > 2 * found["lora-r16"]["rows"].value
