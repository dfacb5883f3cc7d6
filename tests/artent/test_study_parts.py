"""The parts of the study that need no training: configuration, texts, nulls, the no-hair ratio, the folder."""

import math

import artent
import pytest
import torch
from artent.records import RecordWriter, read_records
from artent.study import corpus, finetune, nohair, nulls
from artent.study.config import CONFIGS, Method, StudyConfig, named_config
from artent.study.store import BASE, Store, current_records

SMOKE = CONFIGS["smoke"]


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_survives_json(name, tmp_path):
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        writer.write(CONFIGS[name].to_dict())
    assert StudyConfig.from_dict(read_records(tmp_path / "r.jsonl")[0]) == CONFIGS[name]


def test_seeds_are_outermost_so_that_a_cut_study_compares_methods():
    assert [seed for _, seed in SMOKE.runs] == sorted(seed for _, seed in SMOKE.runs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"width": 36}, "even multiple of heads"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"held_out": 0.0}, "held_out must be a share"),
        ({"lengths": (8, 64)}, "context of 32"),
        ({"lengths": (8,)}, "at least two"),
        ({"seeds": ()}, "seeds must be distinct"),
        ({"methods": (Method("mps", 1.0, 2, 4), Method("mps", 0.1, 2, 8))}, "methods must be distinct.*mps-r2, mps-r2"),
        ({"targets": ()}, "targets must be distinct and not empty"),
        ({"sweep": (0.1, 1.0)}, "sweep must be distinct factors"),
        ({"sweep": (0.1, 0.1)}, "sweep must be distinct factors"),
        ({"sweep": (0.0,)}, "sweep must be distinct factors"),
    ],
)
def test_configuration_refuses(change, words):
    values = {**{f: getattr(SMOKE, f) for f in SMOKE.__dataclass_fields__}, **change}
    with pytest.raises(ValueError, match=words):
        StudyConfig(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("dora", 1.0, 4), "kind must be one of full-ft, lora, mps"),
        (("lora", 1.0), "rank of lora must be at least 1, but it is None"),
        (("mps", 1.0, 4), "chi of mps must be at least 1"),
        (("mps", 1.0, 4, 0), "chi of mps must be at least 1"),
        (("lora", 1.0, 4, 2), "chi of lora must be None"),
        (("full-ft", 1.0, 4), "rank of full-ft must be None"),
    ],
)
def test_methods_refuse(values, words):
    with pytest.raises(ValueError, match=words):
        Method(*values)


def test_records_from_before_there_were_kinds_and_sweeps_are_read():
    old = SMOKE.to_dict()
    old["methods"] = [{"rank": None, "learning_rate": 1e-3}, {"rank": 4, "learning_rate": 1e-2}]
    del old["sweep"]
    config = StudyConfig.from_dict(old)
    assert config.methods == (Method("full-ft", 1e-3), Method("lora", 1e-2, rank=4))
    assert [m.name for m in config.methods] == ["full-ft", "lora-r4"]
    assert config.sweeps == []


def test_the_sweep_is_every_method_at_other_rates_with_one_seed():
    sweeps = [(method.name, seed, factor) for method, seed, factor in SMOKE.sweeps]
    low, high = SMOKE.sweep
    assert low * high == pytest.approx(1)
    assert sweeps == [(name, 0, f) for name in ("full-ft", "lora-r2", "mps-r2") for f in (low, high)]


def test_the_quick_study_compares_an_mps_with_lora_of_its_rank_at_fewer_parameters():
    """Counted on PEFT's own layers: the chain must be smaller than the factor that it replaces, and below full χ."""
    config = CONFIGS["quick"]
    mps = next(m for m in config.methods if m.kind == "mps")
    lora = next(m for m in config.methods if m.kind == "lora" and m.rank == mps.rank)
    factors = {}
    for method in (lora, mps):
        model = finetune.adapt(finetune.untrained(config), method, config.targets, 0)
        updates = dict(artent.weight_updates(perturbed(model)))
        factors[method.kind] = updates
        assert all(name.endswith(config.targets) for name in updates)
    assert len(factors["mps"]) == len(factors["lora"]) == config.layers * len(config.targets)
    for name, update in factors["mps"].items():
        assert sum(core.numel() for core in update.A) < 0.6 * factors["lora"][name].A.numel()
        assert update.A[0].shape[-1] == mps.chi < max(update.A[-1].shape)


def perturbed(model):
    """Adapters whose B is no longer zero, so that they have an update."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model


def test_overrides_read_the_type_they_replace():
    assert SMOKE.override(["sweep=0.5,2"]).sweep == (0.5, 2.0)
    assert SMOKE.override(["sweep="]).sweeps == []
    changed = SMOKE.override(["tune_steps=7", "seeds=0,1,2", "pretrain_lr=1e-4", "targets=q_proj"])
    assert (changed.tune_steps, changed.seeds, changed.pretrain_lr, changed.targets) == (
        7,
        (0, 1, 2),
        1e-4,
        ("q_proj",),
    )


@pytest.mark.parametrize("text", ["steps=7", "tune_steps", "tune_steps=many", "methods=x", "name=x"])
def test_overrides_refuse(text):
    with pytest.raises(ValueError, match="--set"):
        SMOKE.override([text])


def test_unknown_configuration_lists_the_known():
    with pytest.raises(ValueError, match=r"quick, smoke.*'big'"):
        named_config("big")


@pytest.mark.parametrize("make", [corpus.english, corpus.source])
def test_texts_are_bytes_split_without_overlap(make):
    text = make(64, 0.05)
    assert text.train.shape[1] == text.held_out.shape[1] == 64
    assert text.train.min() >= 0
    assert text.train.max() < 256
    assert len(text.held_out) / (len(text.train) + len(text.held_out)) == pytest.approx(0.05, abs=0.005)
    assert make(64, 0.05).fingerprint == text.fingerprint
    assert text.size > 300_000


def test_english_lost_its_layout():
    text = bytes(corpus.english(64, 0.05).train.flatten().tolist()).decode(errors="replace")
    assert "\n****" not in text
    assert "\n    " not in text


def test_a_module_without_source_is_named():
    with pytest.raises(ValueError, match="'no_such_module'"):
        corpus.source(64, 0.05, modules=["ast", "no_such_module"])
    with pytest.raises(ValueError, match="too few to hold out"):
        corpus.source(4096, 0.05, modules=["token"])


def test_nulls_are_causal_and_stochastic():
    noise = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for A in (nulls.window_attention(12, 3), nulls.gaussian_attention(noise, 2.0)):
        assert torch.allclose(A.sum(-1), torch.ones(12, dtype=torch.float64))
        assert not A.triu(1).any()
    assert torch.equal((nulls.window_attention(12, 3) > 0).sum(-1), torch.tensor([1, 2, *[3] * 10]))


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_matching_spread_inverts_the_row_entropy(spread):
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = nulls.gaussian_attention(noise, spread)
    assert nulls.matching_spread(noise, torch.special.entr(p).sum(-1).mean()) == pytest.approx(spread, abs=1e-6)


def _runs(method_effect, seed_effect, seeds=(0, 1)):
    """Two methods whose every sample is method_effect · method + seed_effect · (a number of its own)."""
    own = iter([0.0, 1.0, 3.0, 7.0])
    return {
        (m, seed): torch.full((3, 5), method_effect * i + seed_effect * next(own), dtype=torch.float64)
        for i, m in enumerate("ab")
        for seed in seeds
    }


def test_ratio_of_methods_to_seeds_by_hand():
    # a: 0, 1; b: 3, 7. Methods, seeds differing: |0−7|, |1−3|. Seeds: |0−1|, |3−7|.
    r, methods, seeds = nohair.method_seed_ratio(_runs(0.0, 1.0))
    assert torch.allclose(methods, torch.full((3,), math.sqrt((49 + 4) / 2), dtype=torch.float64))
    assert torch.allclose(seeds, torch.full((3,), math.sqrt((1 + 16) / 2), dtype=torch.float64))
    assert torch.allclose(r, methods / seeds)


def test_ratio_tells_methods_that_differ():
    assert nohair.method_seed_ratio(_runs(100.0, 1.0))[0].min() > 10


@pytest.mark.parametrize("keys", [[("a", 0), ("b", 0)], [("a", 0), ("a", 1)], [("a", 0), ("b", 1)]])
def test_ratio_needs_two_methods_and_two_seeds(keys):
    assert nohair.method_seed_ratio({key: torch.ones(2, 2) for key in keys}) is None


def test_ratio_refuses_unlike_shapes():
    with pytest.raises(ValueError, match="same"):
        nohair.method_seed_ratio({("a", 0): torch.ones(2, 2), ("b", 0): torch.ones(2, 3)})


@pytest.mark.parametrize(("seeds", "start"), [(1, "not enough data"), (3, "not enough data"), (4, "no verdict")])
def test_verdict_waits_for_seeds_and_controls(seeds, start):
    assert nohair.verdict(seeds).startswith(start)


def test_a_later_start_supersedes_what_a_kill_left():
    stage = {"method": "lora-r4", "seed": 0}
    other = {"method": "lora-r4", "seed": 1, "kind": "loss", "loss": 3}
    records = [
        {"kind": "setup"},
        {**stage, "kind": "start"},
        {**stage, "kind": "loss", "loss": 1},
        other,
        {**stage, "kind": "start"},
        {**stage, "kind": "loss", "loss": 2},
    ]
    assert current_records(records) == [{"kind": "setup"}, other, {**stage, "kind": "loss", "loss": 2}]


def test_stages_of_the_sweep_are_their_own():
    run, swept = {"method": "lora-r4", "seed": 0}, {"method": "lora-r4", "seed": 0, "factor": 0.5}
    records = [
        {**run, "kind": "start"},
        {**run, "kind": "loss", "loss": 1},
        {**swept, "kind": "start"},
        {**swept, "kind": "sweep", "loss": 2},
        {**swept, "kind": "start"},
        {**swept, "kind": "sweep", "loss": 3},
    ]
    assert current_records(records) == [{**run, "kind": "loss", "loss": 1}, {**swept, "kind": "sweep", "loss": 3}]


def test_a_folder_in_use_wants_resume(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--resume"):
        Store(tmp_path, SMOKE)


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    store = Store(tmp_path / "run", SMOKE)
    store.writer.write({"kind": "setup", "config": SMOKE.to_dict()})
    store.close()
    with pytest.raises(ValueError, match=r"another configuration: tune_steps \(4 there, 5 now\)"):
        Store(tmp_path / "run", SMOKE.override(["tune_steps=5"]), resume=True)


def test_without_base_weights_nothing_is_done(tmp_path):
    store = Store(tmp_path / "run", SMOKE)
    for kind in ("start", "done"):
        store.writer.write({"kind": kind, "method": BASE, "seed": 0}, {"kind": kind, "method": "full-ft", "seed": 0})
    store.close()
    again = Store(tmp_path / "run", SMOKE, resume=True)
    assert again.done == set()
    again.close()
