"""``artent profile`` under torchrun."""

import json

import pytest
import torch
from artent import entanglement_profile
from artent.records import read_records
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base, a tuned checkpoint, and the profiles of their difference."""
    folder, generator = tmp_path_factory.mktemp("pair"), torch.Generator().manual_seed(0)
    keys = [f"model.layers.{i}.self_attn.{name}_proj.weight" for i in range(3) for name in "qv"]
    base = {key: torch.randn(24, 36, generator=generator) for key in keys}
    tuned = {key: weight + 0.1 * torch.randn(24, 36, generator=generator) for key, weight in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    profiles = {key.removesuffix(".weight"): entanglement_profile(tuned[key] - base[key]) for key in keys}
    return [folder / "tuned", "--base", folder / "base", "--no-plot"], profiles


def measured(folder):
    records = read_records(folder / "results.jsonl")
    return [record for record in records if record["kind"] == "profile"], records


def test_killed_then_resumed(pair, launch, tmp_path):
    arguments, profiles = pair
    killed = launch("profiled.py", "profile", *arguments, "--out", tmp_path, torchrun=2, KILL="2")
    assert killed.returncode != 0
    found, _ = measured(tmp_path)
    assert 2 <= len(found) < len(profiles)  # of the first round, of which both processes took part
    resumed = launch("profiled.py", "profile", *arguments, "--out", tmp_path, "--resume", "--json", torchrun=2)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    found, records = measured(tmp_path)
    assert sorted(record["module"] for record in found) == sorted(profiles)  # each once
    assert [record["kind"] for record in records].count("done") == 1
    told = json.loads(resumed.stdout)  # one object: the first process alone prints
    assert told["processes"] == 2
    for record in (*found, *told["modules"]):
        assert record["entropy"] == pytest.approx(profiles[record["module"]].entropy.tolist(), abs=1e-6)
    assert len(told["modules"]) == len(profiles)
