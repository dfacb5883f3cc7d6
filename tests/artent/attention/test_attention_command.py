"""``artent attention`` on a tiny model that was saved to a folder."""

import io
import json
import re
import sys
from pathlib import Path

import artent
import peft
import pytest
import torch
import transformers
from artent import theory
from artent.attention import METHODS, VARIANTS
from artent.attention.table import growth_by_layer
from artent.cli import _parser, main
from artent.records import read_records
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config

TEXT = Path(__file__).read_text(encoding="utf-8")
POSITIONS = 96


def save_tokenizer(folder):
    """A token a byte."""
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model, and beside it adapter folders and what is no model."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.25,
    )
    model = transformers.LlamaForCausalLM(config)
    for name in ("whole", "without tokenizer", "small vocabulary"):
        model.save_pretrained(root / name)
    config.max_position_embeddings = 5000
    transformers.LlamaForCausalLM(config).save_pretrained(root / "long context")
    (root / "long.txt").write_text("long" * 1200, encoding="utf-8")
    config.vocab_size = 8
    transformers.LlamaForCausalLM(config).save_pretrained(root / "small vocabulary")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    for name, base in (("adapter", root / "whole"), ("orphan", root / "gone"), ("foundling", None)):
        adapted.peft_config["default"].base_model_name_or_path = base and str(base)
        adapted.save_pretrained(root / name)
    T5Config().save_pretrained(root / "encoder-decoder")
    config.save_pretrained(root / "without weights")
    (root / "empty").mkdir()
    for name in ("whole", "long context", "small vocabulary", "encoder-decoder", "without weights"):
        save_tokenizer(root / name)
    (root / "text.txt").write_text(TEXT, encoding="utf-8")
    (root / "blank.txt").write_text(" \n", encoding="utf-8")
    (root / "short.txt").write_text("hello", encoding="utf-8")
    (root / "picture.png").write_bytes(b"\x89PNG")
    return root


def run(folder, model, *options, text="text.txt"):
    return main(["attention", str(folder / model), "--text", text if text == "-" else str(folder / text), *options])


def first_tokens(count):
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    [(letters, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(TEXT)
    return torch.tensor([[symbols.index(letter) for letter in letters[:count]]])


def test_the_record_is_what_python_measures(folder, capsys, tmp_path):
    assert run(folder, "whole", "--lengths", "24,48,96", "--json", "--out", str(tmp_path)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # no bar, no warning: it is no terminal
    record = json.loads(captured.out)
    assert read_records(tmp_path / "results.jsonl") == [record]
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "whole")
    want = artent.attention_entanglement(model, first_tokens(POSITIONS), lengths=(24, 48, 96))
    assert {name: record[name] for name in want.to_dict()} == want.to_dict()
    assert record["tokens_read"] == len(TEXT.encode())
    fit = theory.fit_growth([24, 48, 96], want.s_ext[:, 1, 0].mean(-1))
    assert record["growth"][1]["c"] == pytest.approx(fit.c, abs=1e-12)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["s-ext-growth.png", "s-ext-heads.png"]


def test_the_table(folder, capsys):
    assert run(folder, "whole", "--max-tokens", "64", "--layers", "1", "--variant", "sink_removed") == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "whole")
    want = artent.attention_entanglement(model, first_tokens(64), layers=1, variant="sink_removed")
    S, out = want.s_ext[-1, 0, 0], captured.out.splitlines()
    assert out[1].endswith(f"{len(TEXT.encode())} tokens, 64 used (--max-tokens)")
    assert out[2] == "T = 16, 32, 64: exact"
    at = next(i for i, line in enumerate(out) if "T = 64, over the heads" in line)
    row = dict(zip(out[at + 1].replace("mean S", "mean").replace("row entropy", "rows").split(), range(99)))
    assert list(row) == ["layer", "mean", "±", "error", "min", "S", "max", "exp(S)", "rows", "purity", "c", "R²"]
    cells = out[at + 2].split()
    c = growth_by_layer(want)[0]["c"]
    rows, purity = want.entropy.mean().item(), want.purity.mean().item()
    told = [S.mean(), 0.0, S.min(), S.max(), S.exp().mean(), rows, purity, c]
    assert cells[0] == "1"
    assert [float(cell) for cell in cells[1:-1]] == pytest.approx([float(x) for x in told], abs=0.06)
    by_length = [f"{x:.3f}" for x in want.s_ext.mean((1, 2, 3)).tolist()]
    assert out[at + 6].split() == ["1", *by_length]


def test_streamed_lengths_tell_their_error(folder, capsys):
    assert run(folder, "whole", "--lengths", "48,96", "--method", "streamed", "--dtype", "bfloat16") == 0
    assert "T = 48, 96: streamed, with a standard error and bounds" in capsys.readouterr().out


def test_standard_input_and_an_adapter_on_its_base(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert run(folder, "adapter", "--json", text="-") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["architecture"], record["tokens"]) == ("-", "LlamaForCausalLM", [POSITIONS])
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "whole")
    base = artent.attention_entanglement(model, first_tokens(POSITIONS))
    want = artent.attention_entanglement(
        peft.PeftModel.from_pretrained(model, folder / "adapter"), first_tokens(POSITIONS)
    )
    assert record["s_ext"] == want.s_ext.tolist()
    assert (want.s_ext - base.s_ext).abs().max() > 1e-2


def test_records_are_appended(folder, capsys, tmp_path):
    for dtype in ("float32", "bfloat16"):
        assert run(folder, "whole", "--out", str(tmp_path), "--no-plot", "--dtype", dtype) == 0
    assert [record["dtype"] for record in read_records(tmp_path / "results.jsonl")] == ["float32", "bfloat16"]
    assert not (tmp_path / "figures").exists()


MISTAKES = {  # model, text, options, what the message says
    "no such folder": ("nowhere", "text.txt", (), "there is no such folder"),
    "a file": ("text.txt", "text.txt", (), "there is no such folder"),
    "an empty folder": ("empty", "text.txt", (), "can't be read"),
    "no causal model": ("encoder-decoder", "text.txt", (), "no causal language model.*'t5'"),
    "no weights": ("without weights", "text.txt", (), r"can't be loaded.*model\.safetensors"),
    "no tokenizer": ("without tokenizer", "text.txt", (), "no tokenizer"),
    "another tokenizer": ("small vocabulary", "text.txt", (), "embedding ends at 7"),
    "an adapter whose base is gone": ("orphan", "text.txt", (), "adapter of .*gone.*isn't there"),
    "an adapter of nothing": ("foundling", "text.txt", (), "names no base_model_name_or_path"),
    "no such text": ("whole", "nothing.txt", (), "can't be read .No such file"),
    "an empty text": ("whole", "blank.txt", (), "is empty"),
    "a picture": ("whole", "picture.png", (), "no utf-8 text .byte 0 is 0x89"),
    "a short text": ("whole", "short.txt", (), "5 tokens, too few"),
    "a text shorter than lengths": ("whole", "short.txt", ("--lengths", "4,8"), "8 asked for, and the text has 5"),
    "lengths beyond the context": ("whole", "text.txt", ("--lengths", "128"), "128 asked.*96.*max_position_embeddings"),
    "a length of zero": ("whole", "text.txt", ("--lengths", "0,16"), r"1 … 96"),
    "no such layer": ("whole", "text.txt", ("--layers", "2"), r"attention layers are \[0, 1\]"),
    "too many tokens to be exact": ("long context", "long.txt", ("--method", "exact"), "up to 4096.*'streamed'"),
    "a device": ("whole", "text.txt", ("--device", "abacus"), "expected cpu, cuda"),
    "a plot without a folder": ("whole", "text.txt", ("--plot",), "--plot needs --out"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_a_sentence(folder, capsys, case):
    model, text, options, match = MISTAKES[case]
    assert run(folder, model, *options, text=text) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("artent attention: ")
    assert re.search(match, line)


@pytest.mark.parametrize("value", ["16,x", "", "-4", "1.5"])
def test_lengths_that_are_no_numbers(folder, capsys, value):
    with pytest.raises(SystemExit, match="2"):
        run(folder, "whole", f"--lengths={value}")
    assert "such as 256,1024" in capsys.readouterr().err


def test_without_matplotlib_it_is_told_before_anything_is_measured(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for name in [name for name in sys.modules if name.startswith("artent.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(artent), "plots", raising=False)
    assert run(folder, "whole", "--out", str(tmp_path / "out")) == 2
    told = "artent attention: figures need matplotlib: pip install artent[plots], or give --no-plot\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_records_is_left_alone(folder, capsys, tmp_path):
    (tmp_path / "results.jsonl").write_text('{"kind": "setup"}\n')
    assert run(folder, "whole", "--out", str(tmp_path)) == 2
    assert "records of something else" in capsys.readouterr().err
    assert read_records(tmp_path / "results.jsonl") == [{"kind": "setup"}]


def test_the_parser_knows_every_variant_and_method():
    actions = next(iter(_parser()._subparsers._group_actions)).choices["attention"]._actions
    choices = {action.dest: action.choices for action in actions if action.choices}
    assert (choices["variant"], choices["method"]) == (VARIANTS, METHODS)
