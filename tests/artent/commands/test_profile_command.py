"""``artent profile``: what it prints and refuses, against SVDs of the updates in float64."""

import json
import re
import sys
from statistics import fmean, pstdev

import pytest
import torch
from artent import EntanglementProfile, profile_model
from artent.cli import _parser, main
from artent.commands import profile as command
from artent.schmidt.plan import METHODS


def run(*arguments):
    return main(["profile", *map(str, arguments)])


def printed(capsys, *arguments):
    """What a run that went well wrote to standard output; it wrote nothing else."""
    assert run(*arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # no bar, no warning: it is no terminal
    return captured.out


def names_in_order(files):
    return sorted(files.updates.keys() - {files.idle}, key=lambda name: (int(name.split(".")[2]), name))


@pytest.mark.parametrize("kind", ["adapter", "pair", "file"])
def test_json_is_one_object_with_what_the_updates_hold(files, reference, capsys, kind):
    file = f"{files.tuned}/model.safetensors"
    arguments = {"adapter": [files.adapter], "pair": [files.tuned, "--base", files.base]}
    told = json.loads(printed(capsys, *arguments.get(kind, [file, "--base", files.base]), "--json"))
    assert told["unchanged"] == [files.idle]
    assert [r["module"] for r in told["modules"]] == names_in_order(files)
    for record in told["modules"]:
        update = files.updates[record["module"]]
        want = reference(update)
        assert record["shape"] == list(update.shape)
        assert record["rank"] == (files.rank if kind == "adapter" else None)
        assert record["entropy"] == pytest.approx(want.S, abs=1e-5)
        found = [record[name] for name in ("cut_entropy", "max_entropy", "valley_depth", "effective_rank")]
        assert found == pytest.approx([want.cut, want.max, want.valley, want.effective], abs=2e-5)
        assert [record[f"rank_for_{share}"] for share in (50, 90, 99)] == [[rank] * 2 for rank in want.ranks.values()]
        assert torch.equal(
            EntanglementProfile.from_dict(record).entropy, torch.tensor(record["entropy"], dtype=torch.float64)
        )
    assert 0 < sum(record["seconds"] for record in told["modules"]) < told["seconds"]


def test_the_table(files, reference, capsys):
    out = printed(capsys, files.adapter)
    rows = out.splitlines()
    assert "\x1b" not in out
    assert max(map(len, rows)) <= 100
    at = rows.index("Modules: model.layers.*.*.*")
    assert rows[at + 1].split("  ")[0] == "module"
    names = names_in_order(files)
    for name, row in zip(names, rows[at + 2 :]):
        update = files.updates[name]
        want = reference(update)
        cells = re.split(r"\s{2,}", row)
        assert cells[:2] == [name.removeprefix("model.layers."), "{}×{}".format(*update.shape)]
        assert cells[2] == f"{want.effective:.1f} of 4 used"
        assert [float(cell) for cell in cells[3:6]] == pytest.approx([want.cut, want.max, want.valley], abs=5.1e-3)
        assert cells[6:] == [str(want.ranks[0.9]), str(want.ranks[0.99]), "exact"]
    at = next(i for i, row in enumerate(rows) if row.startswith("kind "))
    kinds = {row.split()[0]: re.split(r"\s{2,}", row) for row in rows[at + 1 : at + 4]}
    for kind in ("q_proj", "v_proj", "up_proj"):
        group = [reference(files.updates[name]) for name in names if name.endswith(kind)]
        assert kinds[kind][1] == str(len(group)) == ("2" if kind == "v_proj" else "3")
        effective, cut = ([getattr(want, x) for want in group] for x in ("effective", "cut"))
        assert kinds[kind][2] == f"{fmean(effective):.1f} ± {pstdev(effective):.1f} of 4"
        assert kinds[kind][3] == f"{fmean(cut):.2f} ± {pstdev(cut):.2f}"
    assert f"1 module did not change: {files.idle}" in rows
    assert re.fullmatch(r"9 of 9 modules measured in \d+\.\d\d s on cpu", rows[-1])


def test_estimates_are_told_as_bounds(files, reference, capsys):
    asked = ("--method", "randomized", "--rank", "3", "--max-error", "1e-3")
    arguments = (files.base, "--base", files.zero, "--targets", "up_proj", *asked)
    assert run(*arguments, "--json") == 0
    captured = capsys.readouterr()
    records = json.loads(captured.out)["modules"]
    assert len(records) == 3
    # Said once, and not by a warning of Python's.
    [line] = captured.err.splitlines()
    assert re.match(r"artent profile: --max-error 0.001 is missed at \d of 3 modules \(worst \d\.\d+ at model", line)
    for record in records:
        want = reference(files.weights[record["module"]])
        for name, value in (("cut_entropy", want.cut), ("valley_depth", want.valley), ("max_entropy", want.max)):
            low, high = record[f"{name}_bounds"]
            assert low - 1e-6 <= value <= high + 1e-6, name
        for share, rank in want.ranks.items():
            least, most = record[f"rank_for_{share * 100:.0f}"]
            assert least <= rank <= most
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    low, high = records[0]["effective_rank_bounds"]
    assert low < high
    assert f" {int(low * 10) / 10:.1f} … {-int(-high * 10 // 1) / 10:.1f} of 24 used " in out
    assert "certain bounds" in out


def test_options_reach_the_profile(files, reference, capsys):
    options = ("--alpha", "2", "--log-base", "2", "--targets", r".*\.0\..*_proj", "--device", "cpu:0")
    told = json.loads(printed(capsys, files.adapter, *options, "--json"))
    assert [r["module"].split(".")[2] for r in told["modules"]] == ["0"] * 3
    for record in told["modules"]:
        S = reference(files.updates[record["module"]], alpha=2).S / torch.log(torch.tensor(2.0)).item()
        assert record["entropy"] == pytest.approx(S, abs=1e-5)
    out = printed(capsys, files.adapter, *options)
    assert "S, Rényi 2, in bits" in out
    want = profile_model(files.adapter, targets=["q_proj"], alpha=float("inf"))
    told = json.loads(printed(capsys, files.adapter, "--alpha", "inf", "--targets", "q_proj", "--json"))
    assert {r["module"]: r["cut_entropy"] for r in told["modules"]} == {
        k: float(p.cut_entropy) for k, p in want.items()
    }


def test_nothing_changed(files, capsys):
    out = printed(capsys, files.base, "--base", files.base)
    assert "9 modules did not change: model.layers.0.mlp.up_proj, " in out
    assert "Likely cause: training has not begun" in out
    told = json.loads(printed(capsys, files.base, "--base", files.base, "--json"))
    assert (told["modules"], len(told["unchanged"])) == ([], 9)


def test_a_bar_on_terminals_only(files, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(files.adapter) == 0
    assert re.search(r"0/9 .*module", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "meant"),
    {
        "q_proj": ["q_proj"],
        "q_proj, self_attn.v_proj": ["q_proj", "self_attn.v_proj"],
        r".*\.(q|v)_proj": r".*\.(q|v)_proj",
        "model.layers.[0-3].{1,9}": "model.layers.[0-3].{1,9}",
    }.items(),
)
def test_targets_are_endings_or_an_expression(text, meant):
    assert _parser().parse_args(["profile", "x", "--targets", text]).targets == meant


def test_the_parser_knows_every_method():
    actions = next(iter(_parser()._subparsers._group_actions)).choices["profile"]._actions
    assert next(action.choices for action in actions if action.dest == "method") == METHODS


MISTAKES = {  # arguments, what the message says; {} is the folder of all files
    "no such file": (["{}/nowhere"], "there is no file or folder"),
    "a checkpoint without its base": (["{}/tuned"], "--base is missing.*no adapter"),
    "a base that is not there": (["{}/tuned", "--base", "{}/nowhere"], "base.*nowhere"),
    "a base of other names": (["{}/tuned", "--base", "{}/prefixed.safetensors"], "base has no weight 'model.layers"),
    "an adapter for a base": (["{}/tuned", "--base", "{}/adapter"], "an adapter's factors"),
    "a base of other shapes": (["{}/tuned", "--base", "{}/wider.safetensors"], r"shape \(36, 24\).*\(1, 1\)"),
    "a file that was cut off": (["{}/short.safetensors", "--base", "{}/base"], "short.safetensors"),
    "a pickle": (["{}/pickled.bin", "--base", "{}/base"], "[Pp]ickle"),
    "targets of nothing": (["{}/adapter", "--targets", "w_proj"], r"\['w_proj'\] match none of the 9"),
    "no regular expression": (["{}/adapter", "--targets", "(q_proj"], "not a regular expression"),
    "an error to be met exactly": (["{}/adapter", "--method", "exact", "--max-error", "1"], "max_error.*'exact'"),
    "an order of entropy": (["{}/adapter", "--alpha", "0"], "alpha"),
    "a unit of entropy": (["{}/adapter", "--log-base", "1"], "log_base"),
    "a device": (["{}/adapter", "--device", "abacus"], "expected cpu, cuda"),
    "a device without float64": (["{}/adapter", "--device", "mps"], "--device: 'mps' has no float64"),
    "a device that is not there": (["{}/adapter", "--device", "cuda:7"], r"torch sees \d CUDA devices"),
    "a plot without a folder": (["{}/adapter", "--plot"], "--plot needs --out"),
    "no run to resume": (["{}/adapter", "--resume"], "--resume needs --out"),
    "out is a file": (["{}/adapter", "--out", "{}/pickled.bin"], "--out.*is a file"),
    "out is below a file": (["{}/adapter", "--out", "{}/pickled.bin/x"], r"--out.*can't be written \(Not a dir"),
    "out is not to be written": (["{}/adapter", "--out", "/proc/here"], "--out.*can't be written"),
    "out is a study's": (["{}/adapter", "--out", "{}/study", "--resume"], "records of something else"),
    "out is no record": (["{}/adapter", "--out", "{}/scribble", "--resume"], "expected one JSON object a line"),
}


@pytest.fixture(scope="module")
def mistaken(files):
    from safetensors.torch import load_file, save_file

    tensors = load_file(f"{files.base}/model.safetensors")
    save_file({key: torch.zeros(1, 1) for key in tensors}, files.root / "wider.safetensors")
    save_file({f"module.{key}": tensor for key, tensor in tensors.items()}, files.root / "prefixed.safetensors")
    whole = (files.root / "tuned" / "model.safetensors").read_bytes()
    (files.root / "short.safetensors").write_bytes(whole[:-100])
    torch.save({"weight": torch.ones(2, 2)}, files.root / "pickled.bin")
    for folder, line in (("study", '{"kind": "setup"}\n'), ("scribble", "hello\n")):
        (files.root / folder).mkdir()
        (files.root / folder / "results.jsonl").write_text(line)
    return files


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_a_sentence_before_anything_is_measured(mistaken, capsys, monkeypatch, case):
    arguments, match = MISTAKES[case]
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("it measured"))
    assert run(*(argument.format(mistaken.root) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("artent profile: ")
    assert re.search(match, line)
    assert "model_or_path" not in line


@pytest.mark.parametrize("option", ["--targets=q_proj,", "--rank=0", "--alpha=two"])
def test_options_that_are_none(files, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        run(files.adapter, option)
    assert option.partition("=")[0] in capsys.readouterr().err


def test_memory_that_is_too_small_is_told(files, capsys, monkeypatch):
    def measure(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        yield

    monkeypatch.setattr(command, "measure", measure)
    assert run(files.adapter) == 2
    assert "--device: its memory is too small" in capsys.readouterr().err
