"""Records to numbers: what counts, where it lies, and what is missing without harm."""

import pytest
import torch
from artent.study.findings import findings_of
from artent.study.summary import Summary
from study import synthetic
from study.synthetic import Effects

STAGE = {"method": "lora-r4", "seed": 0}


@pytest.fixture(scope="module")
def records():
    return synthetic.records(Effects(seeds=2))


@pytest.fixture(scope="module")
def summary(records):
    return Summary(records)


def of(records, **wanted):
    return [r for r in records if all(r.get(key) == value for key, value in wanted.items())]


def test_runs_and_what_is_no_run(summary):
    names = [m.name for m in synthetic.METHODS]
    assert summary.runs == [(name, seed) for seed in (0, 1) for name in names]
    assert [m.name for m in summary.methods] == names
    assert summary.reference.name == "lora-r16"
    assert summary.seeds("lora-r4") == summary.seeds("lora-10x") == [0, 1]
    assert summary.labels["negated"] == "−ΔW of LoRA r = 16"
    assert {at for at, _ in summary.controls} == {"negated", "haar", "random"}
    assert set(summary.s_ext) == {"base", "untrained", *summary.runs, ("lora-10x", 0), ("lora-10x", 1)}


def test_what_is_measured_lies_where_it_says(records, summary):
    (growth,) = of(records, kind="growth", **STAGE)
    run, module = ("lora-r4", 0), synthetic.MODULES[0]
    torch.testing.assert_close(summary.s_ext[run], torch.tensor(growth["s_ext"], dtype=torch.float64))
    assert summary.s_ext[run].shape == (len(synthetic.LENGTHS), synthetic.LAYERS, synthetic.TEXTS, synthetic.HEADS)
    assert summary.lengths == synthetic.LENGTHS
    assert sorted(summary.profiles[run][module]) == list(synthetic.STEPS)
    (last,) = of(records, kind="profile", module=module, step=synthetic.STEPS[-1], **STAGE)
    assert summary.last(run, module).entropy.tolist() == last["entropy"]
    assert summary.nulls[run][module]["line"] == of(records, kind="profile-null", module=module, **STAGE)[0]["line"]
    assert [step for step, _ in summary.over_steps[run]] == list(synthetic.STEPS)
    assert summary.last_attention(run).length == summary.step_length == synthetic.LENGTHS[-2]
    assert summary.losses[run]["new"][0] == (0, 3.0)
    assert summary.final_losses("lora-r4")[0] == of(records, kind="loss", text="new", **STAGE)[-1]["loss"]
    assert summary.chains[run].entropy.shape == (synthetic.LAYERS, synthetic.HEADS, 11)
    assert summary.growth_nulls["Gaussian logits"] == pytest.approx(
        summary.growth_null_draws["Gaussian logits"].mean(0)
    )


def test_sweeps_by_what_they_vary(summary):
    ranks = {run.value: run for run in summary.sweeps if run.vary == "rank"}
    assert set(ranks) == {2, 8, 32}
    assert ranks[2].of == "lora-r16"
    assert ranks[2].settings["rank"] == 2
    assert len(summary.last_profiles(ranks[2].stage)) == len(synthetic.MODULES)
    assert summary.last_attention(ranks[2].stage).s_ext.shape[1] == 2  # its own texts
    assert set(summary.swept["lora-r16"]) == {0.0025, 0.01, 0.04}
    assert summary.swept["lora-r16"][0.01] == summary.final_losses("lora-r16")[0]


def test_treated_attention_is_kept_apart(records):
    (base,) = of(records, kind="growth", model="base")
    removed = {**base, "treatment": "sink_removed", "s_ext": [[[[1.0]]]]}
    done = next(r for r in records if r["kind"] == "done" and r["method"] == "base")
    at = records.index(done)
    s = Summary([*records[:at], removed, *records[at:]])
    assert s.s_ext_variants["sink_removed"]["base"].item() == 1
    assert s.s_ext["base"].shape[0] == len(synthetic.LENGTHS)


def test_a_stage_that_did_not_end_does_not_count(records):
    cut = [r for r in records if not (r["kind"] == "done" and r.get("method") == "lora-r4" and r.get("seed") == 1)]
    s = Summary(cut)
    assert ("lora-r4", 1) not in s.runs
    assert ("lora-r4", 1) not in s.profiles
    assert s.seeds("lora-r4") == [0]


def test_nothing_finished_is_an_error(records):
    with pytest.raises(ValueError, match="no finished pretraining"):
        Summary([r for r in records if r["kind"] != "done"])
    with pytest.raises(ValueError, match="no finished fine-tuning"):
        Summary([r for r in records if r["kind"] != "done" or r["method"] == "base"])


OLDER = ("chain", "samples", "control", "sweep", "growth-null", "profile-null", "parameters", "attention")


@pytest.mark.parametrize("missing", [(kind,) for kind in OLDER] + [OLDER])
def test_records_without_a_kind_still_give_findings(records, missing):
    found = {f.key: f for f in findings_of(Summary([r for r in records if r["kind"] not in missing]))}
    assert {"valley", "no-hair", "external-law", "learning"} <= set(found)


def test_a_value_that_was_not_measured_is_nan():
    few = synthetic.records(Effects(seeds=1, methods=synthetic.METHODS[2:3], sweep=(), controls=()))
    growth = next(r for r in few if r["kind"] == "growth" and r["model"] == "lora-r4")
    growth["s_ext"][-1][0][0] = [None] * synthetic.HEADS  # a text shorter than the longest length
    s = Summary(few)
    assert s.s_ext[("lora-r4", 0)][-1, 0, 0].isnan().all()
    assert s.s_ext[("lora-r4", 0)].isnan().sum() == synthetic.HEADS


def test_samples_are_found_in_the_folder(tmp_path):
    from artent.records import read_records

    effects = Effects(seeds=1, methods=synthetic.METHODS[2:3], sweep=(), samples=True)
    folder = synthetic.write(tmp_path / "run", effects)
    s = Summary(read_records(folder / "results.jsonl"), folder)
    assert s.sample_path(("lora-r4", 0)).is_file()
    assert s.sample_path(("haar", 0)).is_file()
    assert s.sample_path("base").is_file()
    assert s.sample_path(("full-ft", 0)) is None
    s.sample_path(("lora-r4", 0)).unlink()
    assert s.sample_path(("lora-r4", 0)) is None
