"""What cannot run is told before anything is trained, by the name of the setting."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from artent.study import preflight
from artent.study.config import Method, named_config, override
from artent.study.models import tokenizer_of, untrained
from safetensors.torch import save_model

SMOKE = named_config("smoke")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder: configuration, weights, tokenizer."""
    made = tmp_path_factory.mktemp("models") / "tiny"
    model = untrained(SMOKE.model, SMOKE.data.context)
    model.config.save_pretrained(made)
    save_model(model, made / "model.safetensors")
    tokenizer_of(SMOKE.model).save_pretrained(made)
    return made


def refused(config, out, words, **options):
    with pytest.raises(ValueError, match=words):
        preflight.check(config, out, **options)
    assert not out.exists()


@pytest.mark.parametrize("name", ["quick", "small", "smoke"])
def test_what_comes_with_artent_can_run_and_nothing_is_touched(name, tmp_path):
    state = torch.random.get_rng_state()
    preflight.check(named_config(name), tmp_path / "out" / "deep")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.name=/no/such/folder", "model.name: there is no folder"),
        ("measure.targets=q_prj", "q_prj is no linear layer of small; it has down_proj, gate_proj, k_proj"),
        ("data.name=./missing.jsonl", r"data.name: there is no file or folder ./missing.jsonl"),
        ("training.parallel=fsdp", "training.parallel is fsdp.*there is one: start the study under torchrun"),
        ("measure.rows=17", "measure.rows is 17.*which has 16"),
        ("measure.lengths=8,31 measure.step_length=31", "the longest, 31, has the prime factors 31"),
        ("sweep=[{of: lora-r2, vary: rank, values: [17]}]", "sweep of rank, LoRA r = 17.*17 is larger.*16×32.*, 16"),
        ("sweep=[{of: mps-r2, vary: chi, values: [9]}]", r"sweep of chi.*chi 9 is more.*sites 4 · 8.*rank 2, 8"),
        ("sweep=[{of: lora-r2, vary: init, values: [pisa]}]", "PEFT cannot make adapters of init 'pisa'.*nknown"),
        ("sweep=[{of: lora-r2, vary: init, values: [eva]}]", "init 'eva'.*activations of a text"),
    ],
)
def test_each_fault_is_named(change, words, tmp_path):
    changes = [change] if "[" in change else change.split()
    refused(override(SMOKE, changes), tmp_path / "out", words)


def test_what_bfloat16_weights_would_round_away(tmp_path):
    half = override(SMOKE, ["model.dtype=bfloat16"])
    refused(half, tmp_path / "out", "training.bf16: full FT keeps float32 weights")
    swept = override(half, ["bf16=true", "sweep=[{of: lora-r2, vary: init, values: [pissa]}]"])
    refused(swept, tmp_path / "out", "init 'pissa' takes a part of the base's weights")
    preflight.check(override(half, ["bf16=true"]), tmp_path / "out")


def test_a_chain_needs_as_many_factors_as_cores(tmp_path):
    config = replace(SMOKE, methods=(Method("mps", 1e-2, rank=2, chi=2, cores=6),), controls=(), sweep=())
    refused(config, tmp_path / "out", "32 inputs of a target are no product of 6 sites, but of 2 · 2 · 2 · 2 · 2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there(tmp_path):
    refused(override(SMOKE, ["training.device=cuda"]), tmp_path / "out", "training.device is cuda, but")


def test_several_processes_want_a_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    preflight.check(override(SMOKE, ["training.parallel=fsdp"]), tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused(SMOKE, tmp_path / "out", "2 processes were started for 1 GPUs")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    refused(override(SMOKE, ["training.bf16=true"]), tmp_path / "out", "an old GPU has no bfloat16 arithmetic")


def test_folders_of_models(folder, tmp_path):
    config = override(SMOKE, [f"model.name={folder}"])
    preflight.check(config, tmp_path / "out")
    refused(override(config, ["data.context=64"]), tmp_path / "out", "data.context is 64 tokens, but .* takes 32")

    def without(name, *patterns):
        copy = shutil.copytree(folder, tmp_path / name)
        for pattern in patterns:
            for file in copy.glob(pattern):
                file.unlink()
        return copy, override(SMOKE, [f"model.name={copy}"])

    _, config = without("no config", "config.json")
    refused(config, tmp_path / "out", "no config has no config.json")
    copy, config = without("pickled", "*.safetensors")
    (copy / "pytorch_model.bin").touch()
    refused(config, tmp_path / "out", r"no weights in safetensors files \(pytorch_model.bin are not read\)")
    _, config = without("wordless", "tokenizer*", "special_tokens*")
    refused(config, tmp_path / "out", "wordless' has no tokenizer")
    copy, config = without("translator")
    (copy / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 32}))
    refused(config, tmp_path / "out", "translator is no causal language model: its config.json says 't5'")
    (copy / "config.json").write_text("{")
    refused(config, tmp_path / "out", "config.json of .*translator cannot be read")


def test_the_folder_of_results(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        preflight.check(SMOKE, tmp_path / "file")
    with pytest.raises(ValueError, match=r"--out: .*/out cannot be made: .*file is a file"):
        preflight.check(SMOKE, tmp_path / "file" / "out")
    with pytest.raises(FileExistsError, match="Give --resume"):
        preflight.check(SMOKE, tmp_path)
    monkeypatch.setattr(preflight.os, "access", lambda *_: False)
    refused(SMOKE, tmp_path / "out", "cannot be written to")


def test_no_disk_space(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    refused(SMOKE, tmp_path / "out", r"has 1.0 MiB free, but the study writes up to .* MiB \(checkpoints .*records")
    done = tmp_path / "done"  # what a study that goes on has written already is not asked for again
    done.mkdir()
    (done / "results.jsonl").touch()
    with open(done / "large", "wb") as file:
        file.truncate(10**9)
    preflight.check(SMOKE, done, resume=True)
