"""A recorder in a training of two processes, under DDP and FSDP2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from artent.records import read_records

CASES = [f"{way} {kind}" for way in ("ddp", "fsdp") for kind in ("full-ft", "lora")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """(what each process found, the folder)."""
    out = tmp_path_factory.mktemp("recorded")
    script = Path(__file__).with_name("recorded.py")
    done = subprocess.run([sys.executable, script, out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)], out


@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_every_process_are_those_of_a_run_without(ranks, case):
    for found in ranks[0]:
        assert found[case]["losses"] == found[case]["plain"]
        assert len(set(found[case]["losses"])) == 4


def test_lightning_under_ddp(ranks):
    first, second = (found["lightning"] for found in ranks[0])
    assert first["losses"] == first["plain"]
    assert second["losses"] == second["plain"] != first["losses"]
    assert len(set(first["kept"])) == len(set(second["kept"])) == 2
    steps = [r["step"] for r in read_records(ranks[1] / "lightning" / "results.jsonl") if r["kind"] == "profile"]
    assert steps == [step for step in (2, 4, 6) for _ in range(4)]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_trainer_of_two_processes(ranks, way):
    first, second = (found[f"trainer {way}"] for found in ranks[0])
    assert first["watched"] == first["plain"]
    assert len(set(first["watched"])) == 5
    assert first["sharded"] == (way == "fsdp")
    assert (first["logged"], second["logged"]) == ([0, 2, 4, 5], [])
    keys = (first["keys"], second["keys"])
    assert sum(keys) == 6 and min(keys) > 0 if way == "fsdp" else keys == (6, 6)  # shared out; on disk for all
    records = read_records(ranks[1] / f"trainer-{way}" / "results.jsonl")
    assert [r["step"] for r in records if r["kind"] == "profile"] == [step for step in (2, 4, 5) for _ in range(6)]


def close(a, b):
    if isinstance(a, float):
        return torch.isclose(torch.tensor(a), torch.tensor(b), rtol=0, atol=1e-8).item()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b


@pytest.mark.parametrize("case", CASES)
def test_the_first_process_has_what_one_alone_measures_and_the_others_nothing(ranks, case):
    first, second = (found[case] for found in ranks[0])
    assert [record["kind"] for record in first["records"]] == ["profile"] * 6 + ["attention"]
    assert close(first["records"], first["alone"])
    assert {"cut_entropy", "s_ext", "seconds", "share"} < set(first["summary"])
    assert second["records"] == second["summary"] == []
    written = read_records(ranks[1] / case.replace(" ", "-") / "results.jsonl")
    assert [record["step"] for record in written] == [step for step in (1, 2, 3, 4, 4) for _ in range(7)]


def test_each_process_keeps_the_first_weights_of_its_own_modules(ranks):
    names = sorted(f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(3) for p in "qv")
    first, second = (found["ddp full-ft"]["kept"] for found in ranks[0])
    assert sorted(first + second) == names
    assert first
    assert second
    folder = ranks[1] / "fsdp-full-ft" / "artent_base"
    assert [file.name for file in sorted(folder.iterdir())] == ["rank-00000.safetensors", "rank-00001.safetensors"]


def test_the_first_process_decides_for_all_what_the_budget_allows(ranks):
    # 1 s each, 10 s of training for one: with the prediction of one more, 20, 30 and 40 s.
    assert [found["decided"] for found in ranks[0]] == [[0, 20, 30, 40]] * 2
