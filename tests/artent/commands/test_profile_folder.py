"""What ``artent profile --out`` leaves on disk, also where it was stopped, and how it goes on."""

import importlib.util
import json
import os
import re
import shutil
import sys

import artent
import numpy as np
import pytest
from artent.cli import main
from artent.commands import profile as command
from artent.commands import profile_results
from artent.records import read_records
from safetensors.torch import load_file, save_file


def run(*arguments):
    return main(["profile", *map(str, arguments)])


def modules(folder):
    return [r["module"] for r in read_records(folder / "results.jsonl") if r["kind"] in ("profile", "unchanged")]


def entropies(records):
    """{module: entropies}, none for what did not change."""
    return {r["module"]: r.get("entropy", []) for r in records if "module" in r}


@pytest.fixture
def interrupted(files, tmp_path, monkeypatch, capsys):
    """The folder of a run that Ctrl-C stopped after four modules; what it printed is in ``out`` beside it."""

    def first_four(pending, **options):
        for count, measured in enumerate(measure(pending, **options)):
            if count == 4:
                raise KeyboardInterrupt
            yield measured

    measure, folder = command.measure, tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(command, "measure", first_four)
        assert run(files.tuned, "--base", files.base, "--out", folder) == 130
    captured = capsys.readouterr()
    assert captured.err == "\nstopped; what was measured is kept, and --resume goes on\n"
    assert re.search(r"^4 of 9 modules measured in ", captured.out, re.MULTILINE)  # under the table of these
    assert len(modules(folder)) == 4
    assert not (folder / "profiles.parquet").exists()
    return folder


def test_records_parquet_and_figures(files, tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert run(files.adapter, "--out", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    head, *records, done = read_records(tmp_path / "results.jsonl")
    assert (head["kind"], head["command"], head["tuned"], head["base"]) == ("run", "profile", files.adapter, None)
    assert head["inputs"]["tuned"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    profiles = [r for r in records if r["kind"] == "profile"]
    assert sorted(profiles, key=lambda r: r["module"]) == sorted(told["modules"], key=lambda r: r["module"])
    assert [r["module"] for r in records if r["kind"] == "unchanged"] == told["unchanged"] == [files.idle]
    assert (done["kind"], done["modules"]) == ("done", 9)

    rows = pyarrow.read_table(tmp_path / "profiles.parquet").to_pylist()
    assert [row["module"] for row in rows] == [r["module"] for r in told["modules"]]
    for row, record in zip(rows, told["modules"]):
        assert (row["kind"], row["layer"]) == (record["module"].split(".")[-1], int(record["module"].split(".")[2]))
        assert [row["rows"], row["columns"]] == record["shape"]
        assert [row["rank_for_90_lower"], row["rank_for_90_upper"]] == record["rank_for_90"]
        for name in ("entropy", "cut_probabilities", "effective_rank", "valley_depth", "rank", "seconds"):
            assert row[name] == record[name]
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == ["effective-rank.png", *(f"profile-{kind}.png" for kind in ("q_proj", "up_proj", "v_proj"))]
    assert all((tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "profiles.parquet", "results.jsonl"]


def test_a_stopped_run_goes_on_where_it_was(files, interrupted, tmp_path, capsys, monkeypatch):
    with open(interrupted / "results.jsonl", "a") as file:
        file.write('{"kind": "profile", "module": "half wri')  # as a kill leaves it
    before, asked = modules(interrupted), []
    measure = command.measure
    monkeypatch.setattr(
        command, "measure", lambda pending, **o: asked.extend(p.name for p in pending) or measure(pending, **o)
    )
    arguments = (files.tuned, "--base", files.base, "--no-plot")
    assert run(*arguments, "--out", interrupted, "--resume") == 0
    assert sorted(before + asked) == sorted(files.updates)
    assert modules(interrupted) == before + asked
    out = capsys.readouterr().out
    assert "5 of 9 modules measured" in out
    assert "(4 more from before)" in out

    assert run(*arguments, "--out", tmp_path / "whole", "--resume") == 0  # there is nothing yet, so it begins
    whole, parts = (read_records(folder / "results.jsonl") for folder in (tmp_path / "whole", interrupted))
    assert entropies(parts).keys() == entropies(whole).keys()
    for name, found in entropies(parts).items():  # which may have been profiled in another stack
        assert found == pytest.approx(entropies(whole)[name], abs=1e-6)
    capsys.readouterr()
    asked.clear()
    assert run(*arguments, "--out", interrupted, "--resume", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert entropies(told["modules"]) == {name: S for name, S in entropies(parts).items() if name != files.idle}
    assert asked == []
    assert read_records(interrupted / "results.jsonl") == parts


DISAGREEMENTS = {  # options that the run is resumed with, what disagrees
    "another method": (["--method", "randomized"], r"method \('auto' there, 'randomized' now\)"),
    "another unit": (["--log-base", "2"], r"log_base \(None there, 2.0 now\)"),
    "other targets": (["--targets", "q_proj"], r"targets \(None there, \['q_proj'\] now\)"),
    "another base": (["--base", "{}/zero"], "base model.safetensors has changed since"),
    "an adapter": (["{}/adapter"], "tuned adapter_config.json was added; .*tuned model.safetensors is gone"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_another_run_is_not_gone_on_with(files, interrupted, capsys, case):
    options, match = DISAGREEMENTS[case]
    options = [option.format(files.root) for option in options]
    given = [files.tuned] * (case != "an adapter") + ["--base", files.base] * (case == "another base") + options
    given = given if "--base" in given else [*given, "--base", files.base]
    before = (interrupted / "results.jsonl").read_bytes()
    assert run(*given, "--out", interrupted, "--resume") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(rf"--resume: .*{match}", line)
    assert (interrupted / "results.jsonl").read_bytes() == before


def test_a_file_that_changed_meanwhile_is_told(files, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    shutil.copytree(files.adapter, adapter)
    assert run(adapter, "--out", tmp_path / "out", "--no-plot") == 0
    os.utime(adapter / "adapter_model.safetensors", ns=(1, 1))
    capsys.readouterr()
    assert run(adapter, "--out", tmp_path / "out", "--resume") == 2
    assert "tuned adapter_model.safetensors has changed since" in capsys.readouterr().err


def test_a_run_that_is_there_is_not_written_over(files, interrupted, capsys, monkeypatch):
    before = (interrupted / "results.jsonl").read_bytes()
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("it measured"))
    assert run(files.tuned, "--base", files.base, "--out", interrupted) == 2
    assert "holds a run already. Give --resume to go on with it, or another --out" in capsys.readouterr().err
    assert (interrupted / "results.jsonl").read_bytes() == before


def test_without_pyarrow_all_but_parquet_is_written(files, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pyarrow" else find(name, *a))
    assert run(files.adapter, "--out", tmp_path, "--no-plot") == 0
    captured = capsys.readouterr()
    assert captured.err == "artent profile: profiles.parquet needs pyarrow: pip install artent[parquet]\n"
    assert "9 of 9 modules measured" in captured.out
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_without_matplotlib_it_is_told_before_anything_is_measured(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for name in [name for name in sys.modules if name.startswith("artent.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(artent), "plots", raising=False)
    assert run(files.adapter, "--out", tmp_path / "out") == 2
    told = "artent profile: figures need matplotlib: pip install artent[plots], or give --no-plot\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "out").exists()
    assert run(files.adapter) == 0  # where nothing is drawn, it is not needed


@pytest.mark.parametrize("name", ["figures", "results.jsonl/x"])
def test_what_is_in_the_way_is_told_before_anything_is_measured(files, tmp_path, capsys, monkeypatch, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    monkeypatch.setattr(command, "measure", lambda *_, **__: pytest.fail("it measured"))
    assert run(files.adapter, "--out", tmp_path) == 2
    assert re.search(r"--out: .*(is a file|Is a directory)", capsys.readouterr().err)
    assert (tmp_path / name).read_text() == "mine"


def test_a_full_disk_takes_neither_records_nor_the_table(files, tmp_path, capsys, monkeypatch):
    def full(path, part):
        raise OSError(28, "No space left on device", str(part))

    monkeypatch.setattr(profile_results.os, "replace", full)
    assert run(files.adapter, "--out", tmp_path) == 2
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err
    assert "9 of 9 modules measured" in captured.out
    assert len(modules(tmp_path)) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]  # no half of a file


def test_a_damaged_tensor_in_the_middle_keeps_what_was_measured(files, tmp_path, capsys, monkeypatch):
    def damaged(pending, **options):
        for count, measured in enumerate(measure(pending, **options)):
            if count == 2:
                raise ValueError(f"{measured.name}: holds NaN")
            yield measured

    measure = command.measure
    monkeypatch.setattr(command, "measure", damaged)
    assert run(files.adapter, "--out", tmp_path) == 2
    captured = capsys.readouterr()
    assert re.search(r"^2 of 9 modules measured", captured.out, re.MULTILINE)
    assert len(modules(tmp_path)) == 2
    kept = "; what was measured is kept, and --resume goes on\n"
    assert re.fullmatch(rf"artent profile: model\S+: holds NaN{kept}", captured.err)


def test_a_module_that_holds_nan_takes_no_other_with_it(files, reference, tmp_path, capsys):
    bad = "model.layers.2.self_attn.q_proj"
    tensors = load_file(f"{files.tuned}/model.safetensors")
    tensors[f"{bad}.weight"][3, 3] = float("nan")
    save_file(tensors, tmp_path / "tuned.safetensors")
    command = (tmp_path / "tuned.safetensors", "--base", files.base, "--out", tmp_path / "run")
    assert run(*command, "--json") == 2
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert list(told["failed"]) == [bad]
    assert {m["module"] for m in told["modules"]} == set(files.updates) - {bad, files.idle}
    for module in told["modules"]:
        expected = reference(files.updates[module["module"]]).S
        np.testing.assert_allclose(module["entropy"], expected, rtol=0, atol=1e-6)
    assert re.fullmatch(rf"artent profile: 1 of 9 modules have no profile: {bad}: holds NaN.*\n", captured.err)
    assert run(*command, "--resume") == 2  # it is tried again, and it alone
    assert re.search(r"^0 of 9 modules measured.*8 more", capsys.readouterr().out, re.MULTILINE)


def test_parquet_files_of_dense_and_factored_updates_are_one_dataset(files, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    dataset = pytest.importorskip("pyarrow.dataset")
    assert run(files.adapter, "--out", tmp_path / "lora", "--no-plot") == 0
    assert run(files.tuned, "--base", files.base, "--out", tmp_path / "dense", "--no-plot") == 0
    rows = (
        dataset.dataset([str(tmp_path / run / "profiles.parquet") for run in ("lora", "dense")]).to_table().to_pylist()
    )
    assert {row["rank"] for row in rows} == {files.rank, None}
    assert pyarrow.parquet.read_schema(tmp_path / "dense" / "profiles.parquet").field("rank").type == pyarrow.int64()
