"""Every claim of the report, fed with numbers for which it holds and for which it fails: the words must turn."""

from dataclasses import asdict

import pytest
import torch
from artent import theory
from artent.study import findings

FULL = (0.2, 0.0, 0.01)  # depth, null depth and spread of full FT
NULLS = {"uniform causal mask": 0.17, "local window": 0.98}


SWEPT = (0.01, {0.1: float("nan"), 0.01: 2.0, 0.001: 2.2})  # own rate; diverged at the highest


def chain(depth, null, lora=1.5):
    return findings.chain_valley(("LoRA r = 4", lora, 1.2, 0.02), ("MPS r = 4", depth, null, 0.02), (1.0, 1.1))


def equal_rank(lora, mps, at_best=True):
    return findings.equal_rank(
        findings.Trained("LoRA r = 4", lora, 0.01, 4000, True), findings.Trained("MPS r = 4", mps, 0.01, 3000, at_best)
    )


def growth(*curves):
    """The finding for texts whose S_ext is these multiples of ln T, as fitted."""
    T = torch.tensor([16.0, 64.0, 256.0])
    fit = theory.fit_growth(T, torch.stack([c * T.log() for c in curves]))
    return findings.growth({**asdict(fit), "verdict": fit.verdict}, NULLS)


@pytest.mark.parametrize(
    ("made", "claim", "standing"),
    [
        (findings.learning({"full FT": (2.4, 1.9, 2.0, 2.3)}), "Every method learned", "measured here"),
        (
            findings.learning({"full FT": (2.4, 1.9, 2.0, 2.3), "LoRA r = 4": (2.4, 2.5, 2.0, 2.0)}),
            "LoRA r = 4 hardly",
            "measured here",
        ),
        (findings.rank_bound([-0.3, -1e-9, 1e-9]), "All 3 LoRA profiles respect", "measured here"),
        (findings.rank_bound([-0.3, 0.2]), "1 of 2 LoRA profiles exceed", "fault"),
        (findings.rank_bound([-0.3], "LoRA and MPS"), "All 1 LoRA and MPS profiles respect", "measured here"),
        (chain(1.9, 1.5), "an entanglement valley, as LoRA's do", "as in the paper"),
        (chain(1.4, 1.5), "an entanglement valley, as LoRA's do", "measured here"),
        (chain(0.01, 1.5), "No entanglement valley in MPS's", "not as in the paper"),
        (chain(1.9, 1.5, lora=0.01), "LoRA's of its rank have none", "not as in the paper"),
        (equal_rank([2.0, 2.1, 2.2, 2.1], [2.1, 2.2, 2.15, 2.05]), "within LoRA's seed spread", "as in the paper"),
        (equal_rank([2.0, 2.1, 2.2, 2.1], [2.5, 2.5, 2.4, 2.4]), "above LoRA's", "not as in the paper"),
        (equal_rank([2.0, 2.1, 2.2, 2.1], [1.5, 1.5, 1.4, 1.4]), "below LoRA's", "measured here"),
        (equal_rank([2.0, 2.1], [2.05, 2.1]), "within LoRA's seed spread", "not enough data"),
        (equal_rank([2.0, 2.1], [2.5, 2.6]), "above LoRA's", "not enough data"),
        (equal_rank([2.0], [2.0]), "One seed cannot tell", "not enough data"),
        (
            equal_rank([2.0, 2.1, 2.2, 2.1], [2.1, 2.2, 2.15, 2.05], at_best=False),
            "within LoRA's seed spread",
            "not enough data",
        ),
        (findings.learning_rates({"full FT": SWEPT}), "Every method ran at the best", "measured here"),
        (
            findings.learning_rates({"full FT": SWEPT, "LoRA": (0.1, SWEPT[1])}),
            "LoRA did better at another learning rate",
            "measured here",
        ),
        (findings.valley(FULL, {"LoRA r = 4": (1.9, 1.6, 0.02)}), "full FT's is shallower", "as in the paper"),
        (findings.valley(FULL, {"LoRA r = 4": (1.7, 1.6, 0.02)}), "full FT's is shallower", "measured here"),
        (findings.valley(None, {"LoRA r = 4": (1.4, 1.6, 0.02)}), "LoRA's updates have", "as in the paper"),
        (
            findings.valley((1.5, 0.0, 0.01), {"LoRA r = 4": (1.4, 1.6, 0.02)}),
            "does not set LoRA apart",
            "not as in the paper",
        ),
        (findings.valley(FULL, {"LoRA r = 4": (0.01, 1.6, 0.02)}), "No entanglement valley", "not as in the paper"),
        (findings.rank_use({"LoRA r = 4": (2.0, 4)}), "a part of the rank", "measured here"),
        (findings.rank_use({"LoRA r = 4": (3.9, 4)}), "nearly all", "measured here"),
        (findings.rank_use({"LoRA r = 4": (3.9, 4), "LoRA r = 16": (6.0, 16)}), "depends on the rank", "measured here"),
        (growth(0.4, 0.5, 0.6), "between 0 and 1", "as in the paper"),
        (growth(0.9, 0.95, 1.1), "a volume law", "not as in the paper"),
        (growth(-0.1, 0.0, 0.1), "an area law", "not as in the paper"),
        (growth(-1.0, 0.5, 2.0), "do not settle", "not enough data"),
        (growth(-0.6, -0.5, -0.4), "neither law", "not as in the paper"),
        (growth(0.5), "Too few texts", "not enough data"),
        (findings.no_hair(1.1, 8.0, "not enough data: 2"), "updates more than in attention", "not enough data"),
        (findings.no_hair(5.0, 8.0, "not enough data: 2"), "in the updates and in attention", "not enough data"),
        (findings.no_hair(5.0, 1.0, "no verdict"), "attention more than in the updates", "measured here"),
        (findings.no_hair(1.0, 1.0, "no verdict"), "no more than seeds do", "measured here"),
        (findings.no_hair(None, 1.0, "not enough data"), "No comparison", "not enough data"),
        (findings.off_cut({"full FT": (0.02, 0.03), "LoRA r = 4": (0.06, 0.13)}), "follows from", "measured here"),
        (findings.off_cut({"full FT": (0.02, 0.03), "LoRA r = 4": (0.3, 0.9)}), "hold more", "measured here"),
        (findings.off_cut({"full FT": (0.02, 0.03)}, {"MPS": (0.9, 1.2)}), "a chain's excepted", "measured here"),
        (findings.off_cut({"full FT": (0.3, 0.9)}, {"MPS": (0.9, 1.2)}), "hold more", "measured here"),
        (findings.attention_drift({"full FT": 0.01}), "hardly moved", "measured here"),
        (findings.attention_drift({"full FT": 0.01, "LoRA": 0.2}), "moved attention's row", "measured here"),
    ],
)
def test_words_follow_numbers(made, claim, standing):
    assert claim in made.claim
    assert made.standing == standing


def test_a_valley_that_random_factors_share_is_called_the_ranks():
    shared = findings.valley(FULL, {"LoRA r = 4": (1.6, 1.6, 0.02)}).detail
    deeper = findings.valley(FULL, {"LoRA r = 4": (1.9, 1.6, 0.02)}).detail
    assert "the rank alone accounts for it" in shared
    assert "LoRA r = 4: deeper than the rank alone makes it" in deeper


def test_growth_that_a_null_shares_is_not_called_the_papers():
    shared, own = growth(0.18, 0.19, 0.2), growth(0.4, 0.5, 0.6)
    assert "The null “uniform causal mask” grows alike" in shared.detail
    assert shared.standing == "measured here"
    assert "grows alike" not in own.detail
    assert own.standing == "as in the paper"


def test_numbers_are_told():
    detail = findings.rank_use({"LoRA r = 16": (6.04, 16)}).detail
    assert "6.0 of 16 used" in detail


def test_the_numbers_behind_mps_beside_lora_are_told():
    detail = equal_rank([2.0, 2.1], [2.05, 2.1], at_best=False).detail
    for part in ("LoRA r = 4: 2.050 (2.000 to 2.100), 4,000 parameters", "seed by seed: +0.050, +0.000"):
        assert part in detail
    assert "2 seeds give a rough spread" in detail
    assert "MPS r = 4 did better at another learning rate" in detail
    assert "1.00 of at most 1.10 nats" in chain(1.4, 1.5).detail
    assert "2.200 at 0.001, 2.000 at 0.01, nan at 0.1" in findings.learning_rates({"full FT": SWEPT}).detail
