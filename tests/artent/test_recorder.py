import copy
import os

import peft
import pytest
import torch
from artent import EntanglementRecorder, attention_entanglement, entanglement_profile
from artent.attention.probe import Probe
from artent.reading.safetensors_files import SafetensorsFiles
from artent.records import RecordWriter, read_records
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qv"]
PROBE = torch.arange(2 * 24).reshape(2, 24) % 31
STEPS = 6


def build(kind, dtype=torch.float32):
    shape = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads)).to(dtype)
    if kind == "lora":
        return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"]))
    return model


def train(model, recorder=None, steps=STEPS):
    """The losses of a loop in which dropout draws from the global generator."""
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    torch.manual_seed(1)
    losses = []
    if recorder:
        recorder.step(0)
    for step in range(1, steps + 1):
        ids = torch.randint(48, (2, 16))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        if recorder and step % 2:  # with gradients there, and without
            recorder.step(step)
        optimizer.zero_grad()
        if recorder and not step % 2:
            recorder.step(step)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["full-ft", "lora"])
def test_the_losses_are_those_of_a_run_without(kind):
    plain, watched = build(kind), build(kind)
    recorder = EntanglementRecorder(watched, every=1, probe=PROBE)
    expected = train(plain)
    assert train(watched, recorder) == expected
    assert len(set(expected)) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["full-ft", "lora"])
def test_a_measurement_leaves_the_model_as_it_was(kind):
    model = build(kind)
    recorder = EntanglementRecorder(model, probe={"input_ids": PROBE, "attention_mask": torch.ones_like(PROBE)})
    train(model)
    model.train()
    next(m for n, m in model.named_modules() if n.endswith("layers.1.mlp")).eval()
    model(input_ids=PROBE, labels=PROBE).loss.backward()

    def state():
        """(what compares by ==, tensors)"""
        plain = {
            "modes": [module.training for module in model.modules()],
            "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            "config": (model.config.to_dict(), model.config._attn_implementation),
            "wanted": [(p.requires_grad, p.grad is None) for p in model.parameters()],
            "grad mode": torch.is_grad_enabled(),
        }
        weights = [p.detach().clone() for p in model.parameters()]
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return plain, [torch.get_rng_state(), *weights, *gradients]

    def check():
        assert state()[0] == before[0]
        assert all(torch.equal(a, b) for a, b in zip(state()[1], before[1], strict=True))

    before = state()
    assert recorder.measure(3)
    check()

    recorder.external.probe = torch.full((1, 8), 99)  # no such token
    with pytest.raises(IndexError):
        recorder.measure(4)
    check()


@pytest.mark.parametrize("kind", ["full-ft", "lora"])
def test_records_hold_what_the_direct_calls_give(kind, tmp_path):
    model = build(kind, torch.float64)
    start = copy.deepcopy(model)
    path, context = tmp_path / "run" / "results.jsonl", {"method": kind, "seed": 0}
    recorder = EntanglementRecorder(model, every=3, probe=PROBE, lengths=(8, 16), out=path, context=context)
    assert (recorder.base is None) == (kind == "lora")
    train(model, recorder)
    model.eval()
    records = read_records(path)
    assert [(r["kind"], r["step"]) for r in records] == [
        *[("attention", 0)],  # nothing is written before the first step
        *[("profile", 3)] * 4,
        *[("attention", 3)],
        *[("profile", 6)] * 4,
        *[("attention", 6)],
    ]
    assert all(r["method"] == kind and r["seed"] == 0 and r["seconds"] > 0 for r in records)
    *profiles, attention = records[-5:]
    assert [r["module"] for r in profiles] == NAMES
    eye = torch.eye(24, dtype=torch.float64)
    cut_entropies = []
    for record in profiles:
        after, before = (
            (m.get_base_model() if kind == "lora" else m).eval().get_submodule(record["module"]) for m in (model, start)
        )
        expected = entanglement_profile((after(eye) - before(eye)).detach().T)
        torch.testing.assert_close(record["entropy"], expected.entropy.tolist(), rtol=0, atol=1e-9)
        cut_entropies.append(record["entropy"][expected.cut - 1])
    direct = attention_entanglement(model, PROBE, lengths=(8, 16))
    assert attention["s_ext"] == direct.to_dict()["s_ext"]
    assert recorder.summary["cut_entropy"] == pytest.approx(sum(cut_entropies) / 4, abs=1e-12)
    assert recorder.summary["s_ext"] == pytest.approx(direct.s_ext[1].mean().item(), abs=1e-12)
    assert set(recorder.summary) == {"cut_entropy", "valley_depth", "effective_rank", "s_ext", "seconds", "share"}
    recorder.close()


def test_a_long_probe_is_streamed_and_its_error_recorded(tmp_path):
    model, probe = build("full-ft"), torch.arange(90)[None] % 31
    options = {"method": "streamed", "rank": 4, "steps": 3, "layers": (1,)}
    path = tmp_path / "results.jsonl"
    recorder = EntanglementRecorder(model, internal=False, probe=probe, lengths=90, attention=options, out=path)
    losses = train(model, recorder, steps=1)
    recorder.measure(1)
    recorder.close()
    assert losses == train(build("full-ft"), steps=1)
    record = read_records(path)[-1]
    direct = attention_entanglement(model, probe, lengths=90, **options)
    assert record["s_ext"] == direct.s_ext.tolist()
    assert (record["methods"], record["layers"]) == (["streamed"], [1])
    assert record["s_ext_stderr"][0][0][0][0] > 0
    exact = attention_entanglement(model, probe, lengths=90, layers=1).s_ext
    low, high = torch.tensor(record["s_ext_lower"]), torch.tensor(record["s_ext_upper"])
    assert ((low <= exact) & (exact <= high)).all()


@pytest.mark.parametrize("kind", ["full-ft", "lora"])
def test_before_the_first_step_there_are_no_profiles_and_their_names_are_kept(kind):
    recorder = EntanglementRecorder(build(kind))
    assert not recorder.external
    assert recorder.measure(0) == []
    assert recorder.unchanged == tuple(NAMES)
    assert recorder.summary == {}
    train(recorder.model, steps=1)
    assert len(recorder.measure(1)) == 4
    assert recorder.unchanged == ()


def test_a_base_may_be_given_and_the_kept_copy_is_in_the_models_own_dtype():
    model = build("full-ft", torch.bfloat16)
    start = copy.deepcopy(model.state_dict())
    own, given = EntanglementRecorder(model), EntanglementRecorder(model, start, targets=["q_proj"])
    assert sorted(own.base.tensors) == sorted(f"{name}.weight" for name in NAMES)
    assert {t.dtype for t in own.base.tensors.values()} == {torch.bfloat16}
    train(model, steps=2)
    by_name = {r["module"]: r["entropy"] for r in own.measure(2)}
    assert {r["module"]: r["entropy"] for r in given.measure(2)} == {n: by_name[n] for n in NAMES if "q_proj" in n}


def test_the_first_weights_may_be_kept_on_disk(tmp_path):
    model = build("full-ft", torch.bfloat16)
    in_memory = EntanglementRecorder(model)
    on_disk = EntanglementRecorder(model, keep_base="disk", out=tmp_path / "run" / "results.jsonl")
    assert isinstance(on_disk.base.tensors, SafetensorsFiles)
    train(model, steps=2)
    expected = {r["module"]: r["entropy"] for r in in_memory.measure(2)}
    assert {r["module"]: r["entropy"] for r in on_disk.measure(2)} == expected
    on_disk.close()
    later = EntanglementRecorder(model, tmp_path / "run" / "artent_base.safetensors")
    assert {r["module"]: r["entropy"] for r in later.measure(2)} == expected
    assert len(expected) == 4


@pytest.mark.parametrize("moment", ["attention", "writing"])
def test_an_interrupted_measurement_leaves_the_file_and_the_model(moment, monkeypatch, tmp_path):
    path, model = tmp_path / "results.jsonl", build("full-ft")
    recorder = EntanglementRecorder(model, every=2, probe=PROBE, out=path)

    def interrupted_at(call, function):
        calls = []

        def counting(*arguments):
            calls.append(arguments)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*arguments)

        return counting

    if moment == "attention":  # in the forward pass of the second measurement: two layers each
        monkeypatch.setattr(Probe, "_check_rows", staticmethod(interrupted_at(3, Probe._check_rows)))
    else:
        monkeypatch.setattr(os, "fsync", interrupted_at(2, os.fsync))
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        train(model, recorder)
    random = torch.get_rng_state()
    assert [r["step"] for r in read_records(path)] == [0]
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    train(plain := build("full-ft"), steps=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    monkeypatch.undo()
    assert len(recorder.measure(2)) == 5  # and it goes on
    assert [r["step"] for r in read_records(path)] == [0, *[2] * 5]
    recorder.close()


def test_only_what_is_due_is_measured_and_a_writer_may_be_shared(tmp_path):
    model = build("lora")
    with RecordWriter(tmp_path / "r.jsonl") as writer:
        writer.write({"kind": "setup"})
        recorder = EntanglementRecorder(model, every=4, internal=False, probe=PROBE, out=writer)
        measured = {step for step in range(10) if recorder.step(step)}
        recorder.close()
        writer.write({"kind": "done"})  # still open: it is not the recorder's
    assert measured == {0, 4, 8}
    kinds = [r["kind"] for r in read_records(tmp_path / "r.jsonl")]
    assert kinds == ["setup", "attention", "attention", "attention", "done"]


BAD = {
    "every": ({"every": 0}, ValueError, "every=0"),
    "every of a fraction": ({"every": 1.5}, ValueError, "every=1.5"),
    "no probe": ({"external": True}, ValueError, "needs probe"),
    "options of attention": ({"probe": PROBE, "attention": {"ranks": 4}}, ValueError, "ranks unknown.*method, rank"),
    "nothing": ({"internal": False}, ValueError, "nothing to measure"),
    "targets": ({"targets": ["c_attn"]}, ValueError, r"\['c_attn'\] match none"),
    "out": ({"out": 3}, TypeError, "out must be"),
    "options of profiles": ({"profile": {"errors": 1}}, ValueError, "profile: errors unknown.*max_error, method"),
    "no share": ({"budget": 1.0}, ValueError, "budget=1.0: expected a share"),
    "where the base is kept": ({"keep_base": "gpu"}, ValueError, "keep_base='gpu': expected 'memory' or 'disk'"),
    "a base nowhere": ({"keep_base": "disk"}, ValueError, "keep_base='disk' needs out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_at_once(case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        EntanglementRecorder(build("full-ft"), **options)


def test_context_cannot_overwrite_a_measurement():
    with pytest.raises(ValueError, match="context: alpha, rank would overwrite"):
        EntanglementRecorder(build("lora"), probe=PROBE, context={"method": "lora-r4", "rank": 4, "alpha": 32})


def test_no_model():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not str"):
        EntanglementRecorder("a/path")


def test_a_weight_that_diverged_is_told_and_training_goes_on():
    model = build("full-ft")
    recorder = EntanglementRecorder(model)
    train(model, steps=1)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.warns(UserWarning, match=f"1 updates have no profile: {NAMES[2]}: holds NaN"):
        records = recorder.measure(1)
    assert [r["module"] for r in records] == [name for name in NAMES if name != NAMES[2]]
    assert list(recorder.failed) == [NAMES[2]]
    assert recorder.summary["cut_entropy"] > 0  # of the others
    assert len(recorder.measure(2)) == 3  # told once


def test_what_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out=.*r.jsonl.*can't be written"):
        EntanglementRecorder(build("lora"), out=tmp_path / "file" / "r.jsonl")


def test_attention_that_diverged_is_told_once_and_profiles_are_kept(tmp_path):
    model = build("full-ft")
    recorder = EntanglementRecorder(model, probe=PROBE, out=tmp_path / "r.jsonl")
    recorder.measure(0)
    train(model, steps=1)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.warns(UserWarning, match="attention could not be measured"):
        recorder.measure(1)
    recorder.measure(2)
    kinds = [(r["kind"], r["step"]) for r in read_records(tmp_path / "r.jsonl")]
    assert kinds == [("attention", 0), *[("profile", 1)] * 3, *[("profile", 2)] * 3]
