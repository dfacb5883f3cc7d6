import sys

import peft
import pytest
import torch
from artent import attach
from artent.reading.safetensors_files import SafetensorsFiles
from artent.records import read_records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import TEXTS, training_arguments
from torch.utils.tensorboard import SummaryWriter
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

KEYS = {f"artent/{name}" for name in ("cut_entropy", "valley_depth", "effective_rank", "s_ext", "seconds", "share")}


def build(kind="full-ft"):
    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    if kind == "lora":
        return peft.get_peft_model(model, peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))
    return model


class CountingTrainer(Trainer):
    """As TRL's trainers do: running means of its own, emptied into every log."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen.append(float(inputs["input_ids"].float().mean()))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs, start_time=None):
        if self.seen:
            logs["mean_token"] = sum(self.seen) / len(self.seen)
        super().log(logs, start_time)
        self.seen.clear()


def trainer(folder, kind="full-ft", cls=Trainer, model=None, **options):
    defaults = {"max_steps": 6, "logging_steps": 2, "save_strategy": "no"}
    arguments = training_arguments(folder, **defaults | options)
    return cls(model=model or build(kind), args=arguments, train_dataset=TEXTS, eval_dataset=TEXTS[:3])


def ours(history):
    return {entry["step"]: {k for k in entry if k.startswith("artent/")} for entry in history if KEYS & entry.keys()}


def theirs(history):
    timing = ("runtime", "per_second", "flos")
    entries = [e for e in history if not KEYS & e.keys()]
    return [{k: v for k, v in e.items() if not any(t in k for t in timing)} for e in entries]


def profiles(path):
    """The last record of every step and module."""
    return {(r["step"], r["module"]): r["entropy"] for r in read_records(path) if r["kind"] == "profile"}


@pytest.mark.parametrize("cls", [Trainer, CountingTrainer])
@pytest.mark.parametrize("kind", ["full-ft", "lora"])
def test_a_training_is_measured_and_not_changed(kind, cls, tmp_path):
    plain = trainer(tmp_path / "plain", kind, cls)
    plain.train()
    watched = trainer(tmp_path / "watched", kind, cls)
    attach(watched, every=2, out=tmp_path / "out.jsonl")
    watched.train()
    history = watched.state.log_history
    assert ours(history) == {0: {"artent/s_ext", "artent/seconds"}, 2: KEYS, 4: KEYS, 6: KEYS}
    assert theirs(history) == theirs(plain.state.log_history)
    assert [e["step"] for e in history if "loss" in e] == [2, 4, 6]
    weights = zip(plain.model.parameters(), watched.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    records = read_records(tmp_path / "out.jsonl")
    assert [r["step"] for r in records if r["kind"] == "attention"] == [0, 2, 4, 6]
    assert len(profiles(tmp_path / "out.jsonl")) == 3 * 4
    assert (tmp_path / "watched" / "artent_base.safetensors").exists() == (kind == "full-ft")


def test_the_last_step_is_measured_whenever_training_ends(tmp_path):
    watched = trainer(tmp_path / "odd", max_steps=5)
    attach(watched, every=3, external=False)
    watched.train()
    assert set(ours(watched.state.log_history)) == {3, 5}

    class Stop(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_training_stop = True

    stopped = trainer(tmp_path / "stopped", eval_strategy="steps", eval_steps=2)
    attach(stopped, every=5, external=False)
    stopped.add_callback(Stop())
    stopped.train()
    assert set(ours(stopped.state.log_history)) == {2}

    best = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    reloaded = trainer(tmp_path / "best", **best, load_best_model_at_end=True, learning_rate=10.0)
    attach(reloaded, every=3, external=False, out=tmp_path / "best.jsonl")
    reloaded.train()
    assert sorted({step for step, _ in profiles(tmp_path / "best.jsonl")}) == [3, 4]


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("kind", "keep_base"), [("full-ft", "memory"), ("full-ft", "disk"), ("lora", "disk")])
def test_a_resumed_run_measures_what_the_whole_run_does(kind, keep_base, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", kind, **saving)
    attach(whole, every=1, out=tmp_path / "whole.jsonl")
    whole.train()

    killed = trainer(tmp_path / "run", kind, **saving)
    attach(killed, every=1, out=tmp_path / "run.jsonl", keep_base=keep_base)
    killed.add_callback(KillAt(3))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    other = build(kind)
    with torch.no_grad():  # the base is what the run began with, not what the resuming process happens to build
        next(p for n, p in other.named_parameters() if "q_proj" in n and p.requires_grad).add_(1.0)
    resumed = trainer(tmp_path / "run", kind, model=other, **saving)
    callback = attach(resumed, every=1, out=tmp_path / "run.jsonl", keep_base=keep_base)
    resumed.train(resume_from_checkpoint=True)
    assert profiles(tmp_path / "run.jsonl") == profiles(tmp_path / "whole.jsonl")

    if kind == "full-ft":
        assert isinstance(callback.recorder.base.tensors, SafetensorsFiles)
        (tmp_path / "run" / "artent_base.safetensors").unlink()
        lost = trainer(tmp_path / "run", kind, **saving)
        attach(lost, every=1)
        with pytest.raises(ValueError, match=r"resumes at step .*artent_base\.safetensors.*missing"):
            lost.train(resume_from_checkpoint=True)


def test_a_base_on_disk_leaves_no_copy_in_memory(tmp_path):
    watched = trainer(tmp_path, max_steps=2)
    start = {name: p.detach().clone() for name, p in watched.model.named_parameters()}
    callback = attach(watched, every=1, external=False, keep_base="disk", out=tmp_path / "r.jsonl")
    watched.train()
    read = callback.recorder.base.tensors
    assert isinstance(read, SafetensorsFiles)
    assert len(read) == 4
    assert all(torch.equal(read[name], start[name]) for name in read)
    assert not torch.equal(watched.model.get_parameter(next(iter(read))), start[next(iter(read))])
    assert {step for step, _ in profiles(tmp_path / "r.jsonl")} == {1, 2}


def test_the_values_reach_tensorboard(tmp_path):
    watched = trainer(tmp_path, max_steps=4)
    watched.add_callback(TensorBoardCallback(SummaryWriter(tmp_path / "events")))
    attach(watched, every=2)
    watched.train()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    for key in KEYS:
        logged = {e["step"]: e[key] for e in watched.state.log_history if key in e}
        assert {s.step: s.value for s in events.Scalars(f"train/{key}")} == pytest.approx(logged, rel=1e-6)
        assert set(logged) == ({0, 2, 4} if key in ("artent/s_ext", "artent/seconds") else {2, 4})
    assert [s.step for s in events.Scalars("train/loss")] == [2, 4]


def test_the_first_and_the_last_step_are_measured_whatever_the_budget(tmp_path):
    watched = trainer(tmp_path)
    attach(watched, every=1, budget=1e-9)
    watched.train()
    assert set(ours(watched.state.log_history)) == {0, 6}
    with pytest.raises(ValueError, match=r"budget=5: expected a share"):
        attach(other := trainer(tmp_path), budget=5) and other.train()


def test_training_again_starts_from_the_weights_of_then(tmp_path):
    watched = trainer(tmp_path, max_steps=2)
    callback = attach(watched, every=1, external=False)
    watched.train()
    first = dict(callback.recorder.base.tensors)
    middle = {name: watched.model.get_parameter(name).clone() for name in first}
    watched.train()
    assert all(torch.equal(callback.recorder.base.tensors[name], tensor) for name, tensor in middle.items())
    assert not any(torch.equal(first[name], tensor) for name, tensor in middle.items())


def test_the_default_probe_is_the_longest_real_texts(tmp_path):
    rows = [{"input_ids": list(range(n)) + [0] * 3, "attention_mask": [1] * n + [0] * 3} for n in range(1, 9)]
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    callback = attach(Trainer(build(), arguments, train_dataset=rows, eval_dataset={"a": rows[:2], "b": rows}))
    assert callback.recorder is None
    callback = attach(Trainer(build(), arguments, train_dataset=rows))
    probe = callback._probe
    assert probe["attention_mask"].sum(1).tolist() == [8, 7, 6, 5]
    assert probe["input_ids"].tolist() == [list(range(n)) + [0] * (8 - n) for n in (8, 7, 6, 5)]


def test_bad_input_is_told(tmp_path):
    with pytest.raises(TypeError, match=r"transformers Trainer, not Llama.*EntanglementRecorder"):
        attach(build())
    streamed = Trainer(build(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1))
    streamed.train_dataset = iter(TEXTS)
    with pytest.raises(ValueError, match="Pass probe"):
        attach(streamed)
    with pytest.raises(ValueError, match=r"keep_base='cpu': expected 'memory' or 'disk'"):
        attach(trainer(tmp_path), keep_base="cpu")

    class FullyShardedDataParallel(torch.nn.Module):  # by its name: the real one needs a process group
        def __init__(self, module):
            super().__init__()
            self.module = module

    flat = trainer(tmp_path)
    attach(flat, external=False)
    model = FullyShardedDataParallel(flat.model)
    with pytest.raises(ValueError, match=r"FSDP's first version.*fsdp_version: 2"):
        flat.callback_handler.callbacks[-1].on_train_begin(flat.args, flat.state, flat.control, model=model)
    typo = trainer(tmp_path)
    attach(typo, targets=["q_pro"])
    with pytest.raises(ValueError, match=r"\['q_pro'\] match none"):
        typo.train()


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "artent.training.callback")
    with pytest.raises(ImportError, match=r"pip install artent\[transformers\]"):
        sys.modules["artent.training"].attach(None)


WRONG = {
    "an option's name": ({"evry": 2}, TypeError, "evry: no such option"),
    "every": ({"every": 0}, ValueError, "every=0"),
    "budget": ({"budget": 2.0}, ValueError, r"budget=2\.0"),
    "of profiles": ({"profile": {"method": "nope"}}, ValueError, "method: expected one of"),
    "of attention": ({"attention": {"nope": 1}}, ValueError, "attention: nope unknown"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_are_checked_when_they_are_given(case, tmp_path):
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        attach(trainer(tmp_path), **options)


def test_two_that_would_keep_the_first_weights_in_one_file_are_refused(tmp_path):
    watched = trainer(tmp_path)
    attach(watched, targets=["q_proj"])
    attach(watched, internal=False)
    with pytest.raises(ValueError, match=r"attached to it already.*one file"):
        attach(watched, targets=["v_proj"])
    attach(watched, targets=["v_proj"], base=build())
