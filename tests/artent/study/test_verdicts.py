"""Every claim, on data for which it holds, for which it fails, and that are too few: the verdict turns each time."""

import math
from dataclasses import asdict
from functools import cache

import pytest
from artent.records import read_records
from artent.study.findings import FAILS, FAULT, HOLDS, OPEN, OURS, QUESTIONS, findings_of
from artent.study.summary import Summary
from study import synthetic
from study.synthetic import METHODS, SWEEP, Effects

JUDGED = (
    "volume-law",
    "valley",
    "valley-full-ft",
    "valley-sensitive",
    "theory-updates",
    "external-law",
    "external-chain",
    "external-steps",
    "external-hyperparameters",
    "no-hair",
    "theory-attention",
    "mps-valley",
    "mps-loss",
)
OUR_OWN = ("rank-use", "off-cut", "drift", "learning", "learning-rates", "rank-bound")
LORAS, ONE_SWEEP = METHODS[2:4], SWEEP[:2]


def found(effects, keys=QUESTIONS):
    """The findings of a study with these effects, those of ``keys`` alone."""
    summary = Summary(synthetic.records(effects))
    answers = {key: QUESTIONS[key](summary) for key in keys}
    return {key: finding for key, finding in answers.items() if finding is not None}


@cache
def as_published():
    return found(Effects())


@pytest.mark.parametrize("key", JUDGED)
def test_on_data_made_as_the_paper_reports_every_claim_holds(key):
    finding = as_published()[key]
    assert finding.standing == HOLDS, finding.detail
    assert finding.paper
    assert finding.numbers


def test_every_question_is_answered_once_and_in_order():
    assert tuple(QUESTIONS) == tuple(as_published()) == JUDGED + OUR_OWN
    assert all(as_published()[key].standing == OURS and as_published()[key].paper is None for key in OUR_OWN)
    for finding in as_published().values():
        for value in finding.numbers.values():
            for number in value if isinstance(value, list) else [value]:
                assert number is None or math.isfinite(number), (finding.key, finding.numbers)


# What is changed of the data, and what turns: {key: (standing, words of the claim or the detail)}.
TURNS = {
    "rise of a logarithm": ({"rise": "log"}, {"volume-law": (FAILS, "a logarithm rather than a volume law")}),
    "a rise that noise hides": ({"rise": "log", "update_noise": 0.3}, {"volume-law": (OPEN, "too few or too")}),
    "no rise": (
        {"rise": "flat", "lora_dip": 0.0, "mps_dip": 0.0},
        {
            "volume-law": (FAILS, "does not follow a volume law"),
            "valley": (FAILS, "no entanglement valley"),
            "mps-valley": (FAILS, "MPS's updates have no"),
        },
    ),
    "a valley in MPS alone": (
        {"rise": "flat", "lora_dip": 0.0},
        {"mps-valley": (FAILS, "LoRA's of its rank have none")},
    ),
    "a valley of the rank": (
        {"lora_dip": 0.0},
        {"valley": (HOLDS, "as deep as the rank alone makes it"), "valley-full-ft": (HOLDS, "deeper than full FT's")},
    ),
    "a valley that seeds scatter": (
        {"update_noise": 0.5},
        {"valley-full-ft": (OPEN, "too few or too different")},
    ),
    "deeper in full FT": (
        {"full_dip": 2.0, "methods": (*METHODS[:2], METHODS[3])},
        {"valley-full-ft": (HOLDS, "Full FT's valley is deeper than LoRA's")},
    ),
    "as deep in full FT": (
        {"rise": "flat", "lora_dip": 0.0, "update_noise": 0.002},
        {"valley-full-ft": (FAILS, "does not set LoRA apart")},
    ),
    "as deep, but for noise": (
        {"rise": "flat", "lora_dip": 0.0, "update_noise": 0.1},
        {"valley-full-ft": (OPEN, "too few or too different")},
    ),
    "excess deeper in full FT": ({"full_dip": 1.2}, {"valley-full-ft": (HOLDS, "which has one too")}),
    "shallower beyond the shape's": (
        {"full_dip": 1.2},
        {"valley-full-ft": (HOLDS, "that of LoRA r = 16 is shallower than that of full FT (")},
    ),
    "nothing moves the valley": (
        {"sweep": ONE_SWEEP, "varied": {"*": 0.0}, "update_noise": 0.003},
        {"valley-sensitive": (FAILS, "No setting moves the valley's depth by 0.05 nats")},
    ),
    "something may move the valley": (
        {"sweep": ONE_SWEEP, "varied": {"*": 0.1}, "update_noise": 0.2},
        {"valley-sensitive": (OPEN, "leave room for a range")},
    ),
    "the learning rate alone moves it": (
        {"sweep": ONE_SWEEP, "varied": {"learning_rate": 0.3, "*": 0.0}, "update_noise": 0.003},
        {"valley-sensitive": (HOLDS, "moves with learning rate, by more than between seeds, not with α")},
    ),
    "the learning rate, and α may": (
        {"sweep": ONE_SWEEP, "varied": {"learning_rate": 0.3, "*": 0.0}},
        {"valley-sensitive": (HOLDS, "Not settled for α")},
    ),
    "half the slope": (
        {"slope": 0.5},
        {"theory-updates": (FAILS, "not those of random"), "volume-law": (HOLDS, "volume law")},
    ),
    "more than the spectrum": ({"off_cut": 0.5}, {"off-cut": (OURS, "hold more than the spectrum")}),
    "volume law": ({"c": 0.995}, {"external-law": (FAILS, "as fast as a volume law")}),
    "area law": ({"c": 0.0}, {"external-law": (FAILS, "an area law")}),
    "shrinking": ({"c": -0.3}, {"external-law": (FAILS, "neither law")}),
    "texts that differ": ({"text_noise": 1.5}, {"external-law": (OPEN, "do not settle")}),
    "no growth, in texts that differ": ({"c": 0.05, "text_noise": 0.3}, {"external-law": (OPEN, "do not settle")}),
    "a volume law, in texts that differ": ({"c": 0.95, "text_noise": 0.4}, {"external-law": (OPEN, "do not settle")}),
    "less than a window's": ({"c": 0.7, "null_c": (0.2, 0.7, 0.75, 0.25)}, {"external-law": (FAILS, "plain rule")}),
    "as a null grows": ({"c": 0.76}, {"external-law": (HOLDS, "as the null “Gaussian logits” does")}),
    "A of a volume law": ({"cardy": "linear"}, {"external-chain": (FAILS, "of the base model follow a volume law")}),
    "A of no growth": ({"cardy": "flat"}, {"external-chain": (FAILS, "of the base model follow no growth")}),
    "A of the base alone": (
        {"cardy": "linear", "tuned_cardy": "calabrese-cardy"},
        {"external-chain": (OPEN, "depends on the model")},
    ),
    "A with noise": ({"cardy": "flat", "chain_noise": 1.0}, {"external-chain": (FAILS, "no growth")}),
    "training moves attention": ({"attention_drift": 0.3}, {"external-steps": (FAILS, "by LoRA moves S_ext by more")}),
    "training may move it": ({"attention_drift": 0.09, "seed_noise": 0.06}, {"external-steps": (OPEN, "not settled")}),
    "rank moves attention": (
        {"attention_varied": {"rank": 0.4, "*": 0.0}},
        {"external-hyperparameters": (FAILS, "by more than 0.1 nats: rank")},
    ),
    "noise of a run's own": (
        {"sweep_noise": 0.08, "seed_noise": 0.08, "attention_varied": {"*": 0.0}},
        {"external-hyperparameters": (OPEN, "it takes 3 seeds a value")},
    ),
    "a swept run that broke": (
        {
            "sweep": ONE_SWEEP,
            "attention_varied": {"learning_rate": 0.4, "*": 0.0},
            "varied": {"learning_rate": 0.3, "*": 0.0},
            "broken": {("learning_rate", 0.0025): float("nan"), ("learning_rate", 0.04): 3.2},
        },
        {
            "external-hyperparameters": (HOLDS, "0.04 of LoRA r = 16, seed 0, its loss rose from 3.00 to 3.20"),
            "valley-sensitive": (OPEN, "learning rate 0.0025 of LoRA r = 16, seed 0, diverged"),
        },
    ),
    "every swept run broke": (
        {"sweep": SWEEP[:1], "broken": {("learning_rate", 0.0025): float("nan"), ("learning_rate", 0.04): 3.2}},
        {"external-hyperparameters": (OPEN, "was not measured"), "valley-sensitive": (OPEN, "was not measured")},
    ),
    "rank may move it": (
        {"attention_varied": {"rank": 0.11, "*": 0.0}},
        {"external-hyperparameters": (OPEN, "not settled for rank")},
    ),
    "methods tell": ({"method_shift": 0.3}, {"no-hair": (FAILS, "Attention tells methods apart")}),
    "methods may tell": ({"method_shift": 0.07}, {"no-hair": (OPEN, "neither equivalent nor different")}),
    "seeds drown methods": ({"seed_noise": 0.5}, {"no-hair": (OPEN, "neither equivalent nor different")}),
    "updates do not tell": (
        {"alike_updates": True, "rise": "flat", "lora_dip": 0.0, "mps_dip": 0.0},
        {"no-hair": (FAILS, "Updates do not tell methods apart")},
    ),
    "updates hardly tell": (
        {"alike_updates": True, "rise": "flat", "lora_dip": 0.0, "mps_dip": 0.0, "update_noise": 0.2},
        {"no-hair": (OPEN, "Whether updates tell methods apart is not settled")},
    ),
    "broken models are not told": (
        {"control_shift": 0.03, "c": 0.25},
        {"no-hair": (OPEN, "does not tell broken models")},
    ),
    "without controls": ({"controls": ()}, {"no-hair": (OPEN, "by a test of unknown power")}),
    "a smaller bulk": ({"bulk": 0.3}, {"theory-attention": (FAILS, "bulk of 0.3")}),
    "no bulk": ({"bulk_noise": 1.5}, {"theory-attention": (FAILS, "does not describe")}),
    "MPS worse": ({"mps_loss": 0.3}, {"mps-loss": (FAILS, "above LoRA's")}),
    "MPS better": ({"mps_loss": -0.3}, {"mps-loss": (FAILS, "below LoRA's")}),
    "MPS as LoRA, but for noise": ({"loss_noise": 1.0}, {"mps-loss": (OPEN, "not settled")}),
    "MPS a little worse, told by seeds": ({"mps_loss": 0.005, "loss_noise": 0.0005}, {"mps-loss": (HOLDS, "about")}),
    "nothing learned": (
        {"learned": 0.0, "loss_noise": 0.001},
        {
            "learning": (OURS, "verdicts on them say little"),
            "mps-loss": (OPEN, "hardly learned"),
            "external-steps": (OPEN, "hardly learned"),
            "external-hyperparameters": (OPEN, "its loss rose from"),
            "no-hair": (OPEN, "hardly learned"),
        },
    ),
    "MPS learned nothing": ({"mps_loss": 0.99}, {"no-hair": (OPEN, "MPS r = 16 (χ = 8) hardly learned")}),
    "better at another rate": ({"loss_noise": 0.3}, {"learning-rates": (OURS, "")}),
    "beyond the bound": ({"beyond_bound": 0.1}, {"rank-bound": (FAULT, "exceed their rank bound")}),
    "no sweep": (
        {"sweep": ()},
        {"valley-sensitive": (OPEN, "was not measured"), "external-hyperparameters": (OPEN, "was not measured")},
    ),
    "LoRA alone": (
        {"methods": LORAS},
        {"valley-full-ft": None, "mps-valley": None, "mps-loss": None, "valley": (HOLDS, "entanglement valley")},
    ),
    "one method": (
        {"methods": METHODS[:1], "sweep": (), "controls": ()},
        {"no-hair": (OPEN, "No comparison"), "valley": None},
    ),
    "no chain": ({"chain": False}, {"external-chain": None, "theory-attention": None}),
    "no steps": ({"step_records": False}, {"external-steps": None, "no-hair": (OPEN, "A verdict takes matched loss")}),
}


# What is left out of the records where none of these questions is asked: it would only take time.
UNASKED = {
    "sweep": ((), {"valley-sensitive", "external-hyperparameters", "learning-rates"}),
    "controls": ((), {"no-hair"}),
    "chain": (False, {"external-chain", "theory-attention"}),
}


@pytest.mark.parametrize("turn", TURNS)
def test_verdicts_turn_with_the_data(turn):
    changed, expected = TURNS[turn]
    asked = {name: value for name, (value, keys) in UNASKED.items() if not keys & expected.keys()}
    findings = found(Effects(**{**asked, **changed}), expected)
    for key, wanted in expected.items():
        if wanted is None:
            assert key not in findings
            continue
        finding, (standing, words) = findings[key], wanted
        assert finding.standing == standing, f"{finding.claim} {finding.detail}"
        assert words in f"{finding.claim}. {finding.detail}"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_too_few_seeds_give_no_verdict(seeds):
    findings = found(Effects(seeds=seeds))
    assert set(findings) == {*JUDGED, *OUR_OWN}
    for key in JUDGED:
        assert findings[key].standing == OPEN, (key, findings[key].claim)
        assert findings[key].numbers
    few = [key for key in JUDGED if "4" in findings[key].detail]
    assert set(few) == set(JUDGED)  # and each says how many it would take


def test_faults_come_first():
    first, *_ = findings_of(Summary(synthetic.records(Effects(seeds=1, beyond_bound=0.1))))
    assert (first.key, first.standing) == ("rank-bound", FAULT)


def test_samples_are_told_beside_the_verdict(tmp_path):
    folder = synthetic.write(tmp_path / "run", Effects(samples=True))
    finding = {f.key: f for f in findings_of(Summary(read_records(folder / "results.jsonl"), folder))}["no-hair"]
    assert finding.standing == HOLDS
    assert "Total variation of attention rows: 0.011 between methods, 0.011 between seeds" in finding.detail
    rows = "total variation of attention rows, "
    assert (
        finding.numbers[rows + "LoRA r = 16 at 10× its learning rate"][0]
        > 5 * finding.numbers[rows + "between methods"]
    )


def test_a_control_that_diverged_is_not_told():
    records = []
    for record in synthetic.records(Effects(sweep=(), chain=False)):
        control = record.get("method") == "lora-10x"
        if control and record["kind"] == "done":
            records.append({**record, "kind": "diverged"})
        if not (control and record["kind"] in ("growth", "fit", "profile-null")):
            records.append(record)
    findings = {f.key: f for f in findings_of(Summary(records))}
    assert findings["no-hair"].standing == OPEN
    assert "nothing shows that it can tell" in findings["no-hair"].detail
    assert "Diverged" in findings["learning"].detail


def test_a_finding_is_plain_data():
    assert asdict(as_published()["valley"])["numbers"]["LoRA r = 4: depth"][0] == pytest.approx(1.3, abs=0.1)


def test_two_seeds_that_a_judge_takes_for_enough_still_have_no_error():
    records = synthetic.records(Effects(seeds=2, sweep=(), chain=False))
    records[0]["config"]["judge"]["seeds"] = 2
    finding = QUESTIONS["no-hair"](Summary(records))
    assert finding.standing == OPEN
    assert "estimated from 3 seeds a method" in finding.detail
