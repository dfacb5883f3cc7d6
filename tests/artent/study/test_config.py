"""Configurations: read from YAML, changed on the command line, refused with the key named."""

from dataclasses import replace

import artent
import pytest
import torch
from artent.records import RecordWriter, read_records
from artent.study import models
from artent.study.config import CONTROLS, Method, Sweep, as_config, config_names, described, named_config, override

SMOKE = named_config("smoke")
PAPER = {"llama-1b-tulu3", "llama-8b-tulu3", "llama-1b-openthoughts3", "llama-8b-openthoughts3", "mps"}


def test_the_configurations_are_there_and_say_what_they_are_for():
    assert config_names()[0] == "quick"
    assert {"quick", "small", "smoke"} | PAPER == set(config_names())
    assert all(described(name) for name in config_names())


@pytest.mark.parametrize("name", config_names())
def test_a_configuration_survives_json(name, tmp_path):
    config = named_config(name)
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        writer.write(config.to_dict())
    assert as_config(read_records(tmp_path / "r.jsonl")[0]) == config
    assert config.name == name


@pytest.mark.parametrize("name", sorted({"small"} | PAPER))
def test_what_verdicts_need_is_asked_for(name):
    config = named_config(name)
    assert len(config.seeds) >= config.judge.seeds
    assert set(config.controls) == set(CONTROLS)
    assert {v.vary for v in config.variations} >= {"learning_rate", "chi" if name == "mps" else "rank"}


def test_the_papers_ranks_and_models():
    one, eight = named_config("llama-1b-tulu3"), named_config("llama-8b-openthoughts3")
    ranks = {m.rank for m in one.methods if m.kind == "lora"} | {v.value for v in one.variations if v.vary == "rank"}
    assert ranks == {2, 4, 8, 16, 32, 64, 128, 256}
    assert {m.name for m in one.methods} >= {"full-ft", "full-ft-targets"}
    assert (one.model.name, one.data.samples) == ("meta-llama/Llama-3.2-1B", 5000)
    assert (eight.model.name, eight.data.name) == ("meta-llama/Llama-3.1-8B", "openthoughts3")
    assert eight.training.parallel == "fsdp"
    assert {m.rank for m in named_config("mps").methods if m.kind == "mps"} == {64, 256}


def test_seeds_are_outermost_so_that_a_cut_study_compares_methods():
    assert [seed for _, seed in SMOKE.runs] == sorted(seed for _, seed in SMOKE.runs)


def test_the_control_of_a_tenfold_rate_is_the_largest_lora():
    config = named_config("small")
    assert config.reference.name == "lora-r16"
    assert config.tenfold == replace(config.reference, learning_rate=0.1, alias="lora-10x")
    assert [m.name for m, seed in config.runs if seed == 3][-1] == "lora-10x"


@pytest.mark.parametrize(
    ("method", "name", "label"),
    [
        (Method("full-ft", 1.0), "full-ft", "full FT"),
        (Method("full-ft", 1.0, train="targets"), "full-ft-targets", "full FT of the targets"),
        (Method("lora", 1.0, rank=4), "lora-r4", "LoRA r = 4"),
        (Method("lora", 1.0, rank=4, alpha=8), "lora-r4", "LoRA r = 4"),
        (Method("lora", 1.0, rank=4, alpha=32), "lora-r4-a32", "LoRA r = 4 (α = 32)"),
        (Method("lora", 1.0, rank=4, init="pissa"), "lora-r4-pissa", "LoRA r = 4 (pissa)"),
        (Method("mps", 1.0, rank=4, chi=2), "mps-r4", "MPS r = 4 (χ = 2)"),
        (Method("mps", 1.0, rank=4, chi=2, alias="mine"), "mine", "MPS r = 4 (χ = 2, mine)"),
    ],
)
def test_names_and_labels(method, name, label):
    assert (method.name, method.label) == (name, label)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("dora", 1.0, 4), "kind must be one of full-ft, lora, mps"),
        (("lora", 1.0), "rank of lora must be at least 1, but it is None"),
        (("mps", 1.0, 4), "chi of mps must be at least 1"),
        (("mps", 1.0, 4, None, 0), "chi of mps must be at least 1"),
        (("lora", 1.0, 4, None, 2), "chi of lora must be None"),
        (("full-ft", 1.0, 4), "rank of full-ft must be None"),
        (("full-ft", 1.0, None, 2.0), "alpha is a setting of an adapter"),
        (("full-ft", 0.0), "learning_rate must be positive"),
    ],
)
def test_methods_refuse(values, words):
    with pytest.raises(ValueError, match=words):
        Method(*values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model.layers=0"], "model: model.layers must be at least 1"),
        (["width=36"], "even multiple of heads"),
        (["kv_heads=3"], "multiple of kv_heads"),
        (["data.held_out=0"], "held_out must be a share"),
        (["lengths=8,64"], "data.context = 32"),
        (["lengths=8"], "at least two"),
        (["seeds="], "seeds must be distinct"),
        (["targets="], "targets must be distinct and not empty"),
        (["step_texts=9"], "step_texts must be at most texts = 4"),
        (["methods=[&m {kind: mps, learning_rate: 1, rank: 2, chi: 4}, *m]"], "mps-r2, mps-r2"),
        (["methods=full-ft"], "are made from a LoRA"),
        (["methods=lora-r3"], "has full-ft, lora-r2, mps-r2, not lora-r3"),
        (["methods=[{kind: lora, learning_rate: 1, rank: 2, alias: base}]"], "a name that the study uses itself"),
        (["controls=random,random"], "controls must be distinct"),
        (["controls=broken"], "among untrained"),
        (["sweep=[{vary: size, values: [1]}]"], "vary must be one of learning_rate"),
        (["sweep=[{vary: rank, of: lora-r9, values: [1]}]"], "of must be"),
        (["sweep=[{vary: rank}]"], "give values or times"),
        (["sweep=[{vary: alpha, values: [1, 1]}]"], "distinct positive"),
        (["sweep=[{vary: rank, values: [3]}, {vary: rank, values: [3], of: lora-r2}]"], "asked for twice"),
        (["sweep=[{vary: rank, of: lora-r2, values: [2]}]"], "no method has that setting at another value"),
        (["seeds=4294967296"], "2³² − 1"),
        (["methods=[{kind: lora, learning_rate: 1, rank: 2, init: false}]"], "starts with a random update"),
        (["judge.loss_margin=0"], "judge.loss_margin must be positive"),
        (["judge.seeds=1"], "judge.seeds must be at least 2"),
        (["stepz=7"], "unknown key 'stepz' .did you mean steps"),
        (["seed=1"], "model.seed or data.seed"),
        (["steps"], "key=value"),
        (["steps=many"], "training: steps must be a whole number, but it is 'many'"),
        (["steps=1.5"], "a whole number"),
        (["bf16=1"], "true or false"),
        (["sweep=[{vary: rank, vales: [1]}]"], r"sweep\[0\]: unknown key 'vales' .did you mean values"),
        (["methods=[{kind: lora}]"], r"methods\[0\]: learning_rate must be given"),
        (["lengths=[8, 16"], "not readable as YAML"),
    ],
)  # fmt: skip
def test_changes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        override(SMOKE, changes)


def test_changes_are_read_as_what_they_replace():
    changed = override(
        SMOKE,
        [
            "steps=7",
            "seeds=0,1,2",
            "model.pretrain_lr=1e-4",
            "targets=q_proj",
            "samples=",
            "methods=mps-r2",
            "controls=",
        ],
    )
    assert (changed.training.steps, changed.seeds, changed.model.pretrain_lr) == (7, (0, 1, 2), 1e-4)
    assert (changed.measure.targets, changed.data.samples, changed.controls) == (("q_proj",), None, ())
    assert changed.methods == (Method("mps", 1e-2, rank=2, chi=2),)
    assert SMOKE.training.steps == 4


def test_a_sweep_is_every_method_that_has_the_setting():
    stages = [v.stage for v in override(SMOKE, ["sweep=[{vary: rank, times: [2, 4]}]"]).variations]
    assert stages == [(m, 0, f"rank={r}") for m in ("lora-r2", "mps-r2") for r in (4, 8)]
    (point,) = override(SMOKE, ["sweep=[{vary: alpha, values: [4, 16], of: lora-r2}]"]).variations
    assert (point.value, point.method.alpha) == (16, 16)  # 4 is its own
    assert [v.seed for v in override(SMOKE, ["sweep=[{vary: chi, values: [1], seeds: [0, 1]}]"]).variations] == [0, 1]
    ranks = Sweep("rank", times=(0.1,)).of_method(Method("lora", 1.0, rank=2))
    assert [(value, m.lora_alpha) for value, m in ranks] == [(1, 2)]


def test_files_extend_one_another(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: smoke\ntraining: {steps: 9}\nseeds: [5]\n")
    config = named_config(mine)
    assert (config.name, config.training.steps, config.training.save_every, config.seeds) == ("mine", 9, 2, (5,))
    for text, words in (
        ("trainin: {steps: 9}", "unknown key 'trainin' .did you mean training"),
        ("training: 9", "training: expected steps"),
        ("- 1", "expected sections"),
        ("training: {steps: [", "not readable as YAML"),
    ):
        mine.write_text(text)
        with pytest.raises(ValueError, match=words):
            named_config(mine)
    (tmp_path / "a.yaml").write_text("extends: b.yaml")  # found beside it
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ValueError, match="it extends itself"):
        named_config(tmp_path / "a.yaml")
    mine.write_bytes("name: Gr\xfcn".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine.yaml: .* not UTF-8"):
        named_config(mine)
    with pytest.raises(FileNotFoundError, match="no file"):
        named_config(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match=r"quick, .*'smok' .did you mean smoke"):
        named_config("smok")


def test_the_quick_study_compares_an_mps_with_lora_of_its_rank_at_fewer_parameters():
    """Counted on PEFT's own layers: the chain must be smaller than the factor that it replaces, and below full χ."""
    config = named_config("quick")
    mps = next(m for m in config.methods if m.kind == "mps")
    lora = next(m for m in config.methods if m.kind == "lora" and m.rank == mps.rank)
    factors = {}
    for method in (lora, mps):
        model = models.adapt(models.untrained(config.model, 64), method, config.measure.targets, 0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_()  # B is no longer zero: there is an update
        factors[method.kind] = dict(artent.weight_updates(model))
    assert len(factors["mps"]) == len(factors["lora"]) == config.model.layers * 2
    for name, update in factors["mps"].items():
        assert sum(core.numel() for core in update.A) < 0.6 * factors["lora"][name].A.numel()
        assert update.A[0].shape[-1] == mps.chi < max(update.A[-1].shape)


def test_full_ft_of_the_targets_trains_them_alone():
    """In float32, whatever the model's dtype: a step of 5e-6 is lost on a bfloat16 weight."""
    model = models.untrained(replace(SMOKE.model, dtype="bfloat16"), 32)
    everything = sum(p.numel() for p in model.parameters())
    models.adapt(model, Method("full-ft", 1.0, train="targets"), ("q_proj", "v_proj"), 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"model.layers.{i}.self_attn.{t}.weight" for i in (0, 1) for t in ("q_proj", "v_proj")}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert models.trainable(model) == (2 * (32 * 32 + 32 * 16), everything)
