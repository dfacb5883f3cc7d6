"""The smoke study as a user runs it: its records, its folder, and going on after interruptions."""

import json
import math
import shutil

import artent
import pytest
import torch
from artent.cli import main
from artent.records import read_records
from artent.study import finetune
from artent.study.config import named_config, override
from artent.study.run import run_study, stages_of
from artent.study.store import current_records, stage_of
from safetensors.torch import load_file

SMOKE = named_config("smoke")
NAMES = ("full-ft", "lora-r2", "mps-r2", "lora-10x")
STAGES = list(stages_of(SMOKE))
APART = {"setup", "finished", "start", "done", "resumed", "checkpoint"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "smoke"
    assert main(["study", "--config", "smoke", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def records(study):
    return current_records(read_records(study / "results.jsonl"))


def stages(folder, kind):
    return [stage_of(r) for r in read_records(folder / "results.jsonl") if r["kind"] == kind]


def measured(folder):
    """What counts of a folder, without clocks, as comparable lines in any order."""
    counting = current_records(read_records(folder / "results.jsonl"))
    kept = ({k: v for k, v in r.items() if k != "seconds"} for r in counting if r["kind"] not in APART)
    return sorted(json.dumps(record, sort_keys=True) for record in kept)


def of(records, kind, **where):
    return [r for r in records if r["kind"] == kind and all(r.get(key) == value for key, value in where.items())]


def test_every_stage_is_recorded_once(study):
    assert stages(study, "start") == stages(study, "done") == STAGES
    assert len(set(STAGES)) == len(STAGES) == 1 + 2 * 4 + 2 * 3 + 7
    setup = read_records(study / "results.jsonl")[0]
    assert setup["kind"] == "setup"
    assert {"torch", "transformers", "peft", "datasets", "python", "artent"} <= setup["versions"].keys()
    assert setup["texts"]["new"]["held_out_rows"] > 0


@pytest.mark.parametrize("method", NAMES)
def test_a_run_is_measured_on_the_way_and_at_its_end(records, method):
    for seed in (0, 1):
        run = {"method": method, "seed": seed}
        plain = [r for r in records if "setting" not in r]
        assert [r["step"] for r in of(plain, "loss", text="new", **run)] == [0, 2, 4]
        assert {r["step"] for r in of(plain, "attention", **run)} == {0, 2, 4}
        assert len({r["module"] for r in of(plain, "profile", step=4, **run)}) == 4  # W_Q and W_V of two layers
        assert len(of(plain, "profile-null", **run)) == 4
        (growth,) = of(plain, "growth", **run)
        assert torch.tensor(growth["s_ext"]).shape == (3, 2, 4, 4)  # lengths, layers, texts, heads
        last = of(plain, "attention", step=4, **run)[0]
        assert torch.allclose(torch.tensor(growth["s_ext"][-1]), torch.tensor(last["s_ext"][-1]), atol=1e-9)
        for kind in ("chain", "samples", "fit", "parameters"):
            assert len(of(plain, kind, **run)) == 1


def test_fine_tunings_begin_alike_and_follow_their_seed(records):
    ends = {}
    for method in NAMES:
        first, second = (of(records, "loss", text="new", method=method, seed=s, setting=None) for s in (0, 1))
        assert first[0]["loss"] == second[0]["loss"] == of(records, "loss", text="new", method="base")[-1]["loss"]
        assert first[-1]["loss"] != second[-1]["loss"]
        ends[method] = first[-1]["loss"]
    assert len(set(ends.values())) == 4


def test_adapters_lie_in_the_folder_and_hold_what_was_profiled(study, records):
    for method in NAMES[1:]:
        updates = dict(artent.weight_updates(study / "adapters" / f"{method}-1"))
        profiles = {r["module"]: r for r in of(records, "profile", method=method, seed=1, step=4, setting=None)}
        assert updates.keys() == profiles.keys()
        for name, update in updates.items():
            entropy = artent.entanglement_profile(update).entropy
            assert torch.allclose(entropy, torch.tensor(profiles[name]["entropy"], dtype=entropy.dtype), atol=1e-6)
    assert not (study / "checkpoints").exists() or not any((study / "checkpoints").iterdir())


def test_controls_are_measured_beside_what_they_are_made_from(study, records):
    base = torch.tensor(of(records, "growth", model="base", treatment="raw")[0]["s_ext"][-1])
    for control in ("negated", "haar", "random"):
        for seed in (0, 1):
            (found,) = of(records, "control", method=control, seed=seed)
            assert found["from"] == "lora-r2"
            assert torch.tensor(found["s_ext"]).shape == base.shape
            assert not torch.equal(torch.tensor(found["s_ext"]), base)
            assert load_file(study / found["samples"]).keys() == {"rows", "outputs"}
    (tenfold,) = of(records, "fit", method="lora-10x", seed=0)
    assert math.isfinite(tenfold["c"])


def test_sweeps_tell_what_they_varied(records):
    points = of(records, "sweep")
    assert {(r["of"], r["vary"]) for r in points} == {*((m, "learning_rate") for m in NAMES[:3]), ("lora-r2", "alpha")}
    for point in points:
        stage = {key: point[key] for key in ("method", "seed", "setting")}
        assert len(of(records, "profile", step=4, **stage)) == 4
        assert torch.tensor(of(records, "attention", step=4, **stage)[0]["s_ext"]).shape == (1, 2, 2, 4)
        assert point["loss"] < point["start"]
    assert {r["alpha"] for r in points if r["vary"] == "alpha"} == {16}
    assert len({r["loss"] for r in points}) == len(points)


class Crash(BaseException):
    """What no part of a study may hold up."""


def test_interrupted_in_every_stage_it_ends_alike(study, tmp_path, monkeypatch):
    """Each kind of training is cut one step behind its checkpoint; nothing that was done is done again."""
    labels = ["pretraining", "full FT, seed 0", "LoRA r = 2, seed 0", "MPS r = 2 (χ = 2), seed 1"]
    labels += ["LoRA r = 2 (α = 16), alpha 16.0"]
    left, step_end = list(labels), finetune.ProgressBar.on_step_end

    def crash(self, args, state, control, **kwargs):
        if self.label in left and state.global_step == 3:
            left.remove(self.label)
            raise Crash
        step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(finetune.ProgressBar, "on_step_end", crash)
    folder = tmp_path / "cut"
    for _ in labels:
        with pytest.raises(Crash):
            run_study(SMOKE, folder, resume=folder.exists())
    run_study(SMOKE, folder, resume=True)
    assert not left
    assert stages(folder, "start") == stages(folder, "done") == STAGES
    assert [r["step"] for r in read_records(folder / "results.jsonl") if r["kind"] == "resumed"] == [2] * len(labels)
    assert measured(folder) == measured(study)


def test_a_finished_study_takes_more_seeds(study, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(study, folder)
    again = ["study", "--config", "smoke", "--out", str(folder), "--resume"]
    assert main(again) == 0
    assert stages(folder, "start") == STAGES
    assert main([*again, "--seeds", "0,1,5", "--set", "controls=untrained,lora-10x"]) == 0
    assert stages(folder, "start") == [*STAGES, *((name, 5) for name in NAMES)]
    assert set(measured(study)) < set(measured(folder))


def test_what_diverges_is_told_and_does_not_end_the_study(tmp_path):
    """Nor does a start that takes a part of the base's weights, which the update is then told against."""
    methods = (
        "methods=[{kind: lora, rank: 2, learning_rate: 1e30}, {kind: lora, rank: 1, learning_rate: 1e-2, init: pissa}]"
    )
    sweep = "sweep=[{of: lora-r1-pissa, vary: init, values: [olora]}]"
    config = override(SMOKE, [methods, sweep, "controls=untrained,negated", "seeds=0", "pretrain_steps=1", "bf16=true"])
    assert run_study(config, tmp_path / "run").is_file()
    found = current_records(read_records(tmp_path / "run" / "results.jsonl"))
    assert len(of(found, "diverged", method="lora-r2")) == len(of(found, "diverged", method="negated")) == 1
    assert not of(found, "growth", method="lora-r2")
    assert len(of(found, "growth", method="lora-r1-pissa")) == 1
    for stage in ({"method": "lora-r1-pissa", "setting": None}, {"setting": "init=olora"}):
        updates = of(found, "profile", step=4, **stage)
        assert len(updates) == 4
        # The difference of two matrices of rank 1, whatever else lies in the weights.
        cuts = [float(artent.EntanglementProfile.from_dict(r).cut_entropy) for r in updates]
        assert all(0 < S < math.log(2) + 1e-3 for S in cuts)


def test_command_line_tells_what_to_do(study, tmp_path, capsys):
    new = ["--out", str(tmp_path / "x")]
    for arguments, words in (
        (["study", "--config", "smoke", "--out", str(study)], "Give --resume"),
        (["study", "--config", "big", *new], "--config must be one of quick"),
        (["study", "--config", "smoke", "--set", "layers=0", *new], "model.layers must be at least 1"),
        (["study", "--config", "smoke", "--model", str(tmp_path / "none"), *new], "none"),
        (["study", "--config", "smoke", "--data", str(tmp_path / "none.jsonl"), *new], "none.jsonl"),
        (["report", str(tmp_path)], "holds no results.jsonl"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["study", "--list"]) == 0
    assert "llama-8b-openthoughts3" in capsys.readouterr().out
