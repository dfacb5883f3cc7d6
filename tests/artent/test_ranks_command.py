"""``artent ranks`` on tiny adapters and checkpoints in folders, and on records."""

import json
import os
import subprocess
import sys

import peft
import pytest
import torch
from artent import profile_model
from artent.cli import main
from artent.ranks import suggest_ranks
from artent.records import RecordWriter
from transformers import LlamaConfig, LlamaForCausalLM

QV = ["q_proj", "v_proj"]
V0 = "model.layers.0.self_attn.v_proj"


def llama():
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter of rank 6, a full fine-tuning with its base, records, and what none of it is."""
    root = tmp_path_factory.mktemp("ranks")
    model = llama()
    model.save_pretrained(root / "base")
    config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=QV, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        adapted.get_base_model().get_submodule(V0).lora_B["default"].weight.zero_()
    adapted.save_pretrained(root / "adapter")
    with RecordWriter(root / "results.jsonl") as writer:
        for name, profile in profile_model(adapted).items():
            writer.write({"kind": "profile", "module": name, **profile.to_dict(), "seconds": 0.1})
        writer.write({"kind": "unchanged", "module": V0, "seconds": 0.0})
    adapted.merge_and_unload().save_pretrained(root / "tuned")
    (root / "empty").mkdir()
    (root / "other.jsonl").write_text('{"kind": "run"}\n')
    (root / "broken").mkdir()
    (root / "broken" / "adapter_config.json").write_text("{")
    return root


def run(folder, *arguments):
    return main(["ranks", *(str(folder / a) if (folder / a).exists() else a for a in arguments)])


def test_the_table_tells_ranks_savings_and_the_pattern(folder, capsys):
    assert run(folder, "adapter", "--target", "0.8") == 0
    told = capsys.readouterr()
    suggestion = suggest_ranks(folder / "adapter", target=0.8)
    assert told.err == ""  # no progress bar where nobody looks
    rows = dict(line.split(maxsplit=1) for line in told.out.splitlines() if line.startswith(("0.", "1.")))
    for name, rank in suggestion.ranks.items():
        short = name.removeprefix("model.layers.").replace(".self_attn", "")
        assert rows[short].split() == ["6", str(rank), f"{suggestion.kept[name]:.4f}"]
    assert len(rows) == len(suggestion.ranks) == 3
    assert f"1 module did not change: {V0}" in told.out
    before = 6 * (16 + 16 + 16 + 16 + 8 + 16)
    share = 1 - suggestion.parameters / before
    assert f"{suggestion.parameters:,} parameters for {before:,}: {share:.1%} saved" in told.out
    assert "α/r is 2 (--scaling" in told.out
    pasted = json.loads(told.out[told.out.index("{") :])
    assert pasted == {key: value for key, value in suggestion.config().items() if key != "target_modules"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_rslora": True}, "lora_alpha: as it is now"),
        ({"alpha_pattern": {"q_proj": 5}}, "α/r is what each module has now"),
    ],
    ids=str,
)
def test_the_table_tells_where_alpha_comes_from(tmp_path, capsys, options, told):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=QV, init_lora_weights=False, **options)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path)
    assert main(["ranks", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert told in table
    assert json.loads(table[table.index("{") :]).get("use_rslora", False) == options.get("use_rslora", False)
    assert main(["ranks", str(tmp_path), "--scaling", "0.5"]) == 0
    assert "α/r is 0.5 (" in capsys.readouterr().out


def test_json_is_one_object_that_peft_takes(folder, capsys, tmp_path):
    out = tmp_path / "ranks.json"
    assert run(folder, "adapter", "--parameters", "50%", "--json", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert printed == out.read_text()
    told = json.loads(printed)
    assert told["parameters"] <= told["parameters_before"] / 2
    given = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
    model = peft.get_peft_model(llama(), peft.LoraConfig(**{key: told[key] for key in given}))
    assert model.get_nb_trainable_parameters()[0] == told["parameters"]
    for name, module in told["modules"].items():
        layer = model.get_base_model().get_submodule(name)
        assert (layer.r["default"], layer.scaling["default"]) == (module["rank"], 2.0)


def test_records_and_checkpoints_give_what_the_adapter_gives(folder, capsys):
    told = {}
    for name, *arguments in (
        ("adapter", "adapter"),
        ("results.jsonl", "results.jsonl"),
        ("tuned", "tuned", "--base", "base", "--targets", "q_proj,v_proj"),
    ):
        options = ("--by", "error", "--target", "0.5", "--multiple-of", "2", "--maximum", "4", "--scaling", "2")
        assert run(folder, *arguments, *options, "--json") == 0
        told[name] = json.loads(capsys.readouterr().out)
    assert told["results.jsonl"] == told["adapter"]
    full = told["tuned"]
    for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "missed", "unchanged"):
        assert full[key] == told["adapter"][key]
    assert set(full["target_modules"]) == set(told["adapter"]["target_modules"])
    assert full["parameters_before"] == 2 * 16 * 16 + 8 * 16
    assert run(folder, "tuned", "--base", "base", "--targets", "q_proj", "--maximum", "2") == 0
    table = capsys.readouterr().out
    assert "full         2*" in table
    assert "held at --maximum, below the target (2 of 2)" in table


def test_a_file_is_written_whole_or_not_at_all(folder, capsys, tmp_path, monkeypatch):
    out = tmp_path / "ranks.json"
    out.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run(folder, "adapter", "--out", str(out)) == 2
    assert f"--out: {out} can't be written (No space left on device)" in capsys.readouterr().err
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


MISTAKES = {
    "no such folder": (["nowhere"], "TUNED: there is no file or folder 'nowhere'"),
    "no base": (["tuned"], "--base is missing"),
    "nothing there": (["empty", "--base", "base"], "TUNED="),
    "records of something else": (["other.jsonl"], "holds no profiles"),
    "a broken adapter": (["broken"], "is not JSON"),
    "nothing changed": (["base", "--base", "base"], "TUNED: none of its"),
    "no such module": (["adapter", "--targets", "k_proj"], "['k_proj'] match none"),
    "a share above all": (["adapter", "--parameters", "120%"], "a share of what there are now"),
    "too few parameters": (["adapter", "--parameters", "10"], "10 are fewer than"),
    "two goals": (["adapter", "--parameters", "100", "--target", "0.5"], "one or the other"),
    "more than all": (["adapter", "--target", "2"], "between 0 and 1"),
    "a folder to write to": (["adapter", "--out", "empty"], "is a folder"),
    "a folder that is not there": (["adapter", "--out", "nowhere/ranks.json"], "there is no folder nowhere"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_a_sentence(folder, capsys, case):
    arguments, message = MISTAKES[case]
    assert run(folder, *arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("artent ranks: ")
    assert message in told.err
    assert told.out == ""


@pytest.mark.parametrize("value", ["half", "50 %%", "-3", "0", "%", "1.5"])
def test_a_budget_that_is_none(folder, capsys, value):
    with pytest.raises(SystemExit) as stopped:
        run(folder, "adapter", "--parameters", value)
    assert stopped.value.code == 2
    assert "--parameters" in capsys.readouterr().err


def test_help_loads_nothing_that_measures():
    script = """
import contextlib, sys
from artent.cli import main
with contextlib.suppress(SystemExit):
    main(["ranks", "--help"])
loaded = [name for name in ("artent.ranks", "artent.checkpoints", "peft", "transformers") if name in sys.modules]
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "results.jsonl" in found.stdout
