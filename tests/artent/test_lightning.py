import sys

import pytest
import torch
from artent import entanglement_profile
from artent.records import read_records
from artent.training import LightningCallback
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_models import PROBE, Lit, fit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAMES = ("cut_entropy", "valley_depth", "effective_rank", "s_ext", "seconds", "share")


def profiles(path):
    """The last record of every step and module."""
    return {(r["step"], r["module"]): r["entropy"] for r in read_records(path) if r["kind"] == "profile"}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["full-ft", "lora"])
def test_a_training_is_measured_and_not_changed(kind, accumulate, tmp_path):
    plain = fit(Lit(kind), tmp_path / "plain", accumulate_grad_batches=accumulate)
    callback = LightningCallback(every=2, probe=PROBE, module="model", out=tmp_path / "out.jsonl")
    logger = TensorBoardLogger(tmp_path / "logs")
    watched = fit(Lit(kind), tmp_path / "watched", callback, steps=5, accumulate_grad_batches=accumulate, logger=logger)
    assert watched.losses == plain.losses[: 5 * accumulate]
    assert len(set(watched.losses)) == 5 * accumulate
    records = read_records(tmp_path / "out.jsonl")
    assert [r["step"] for r in records if r["kind"] == "attention"] == [0, 2, 4, 5]
    assert [r["step"] for r in records if r["kind"] == "profile"] == [2] * 4 + [4] * 4 + [5] * 4
    assert {r["module"] for r in records if r["kind"] == "profile"} == {
        f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qv"
    }
    events = EventAccumulator(logger.log_dir).Reload()
    for name in NAMES:
        scalars = events.Scalars(f"artent/{name}")
        assert [s.step for s in scalars] == ([0] if name in ("s_ext", "seconds") else []) + [2, 4, 5]
    assert events.Scalars("artent/s_ext")[-1].value == pytest.approx(callback.recorder.summary["s_ext"], rel=1e-6)
    assert (tmp_path / "watched" / "artent_base.safetensors").exists() == (kind == "full-ft")


def test_the_values_are_callback_metrics(tmp_path):
    seen = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, *arguments):
            seen[trainer.global_step] = trainer.callback_metrics.get("artent/s_ext")

    callback = LightningCallback(every=2, internal=False, probe=PROBE, module="model")
    values = {}
    inner = callback._measure

    def measure(trainer, step):
        values[step] = inner(trainer, step)["artent/s_ext"]
        return {"artent/s_ext": values[step]}

    callback._measure = measure
    fit(Lit(), tmp_path, callback, Look(), steps=4)
    assert seen[1] is None
    assert [seen[step].item() for step in (2, 3, 4)] == pytest.approx([values[2], values[2], values[4]], rel=1e-6)


class KillAt(Callback):
    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == 3:
            raise RuntimeError("killed")


@pytest.mark.parametrize("keep_base", ["memory", "disk"])
def test_a_resumed_fit_measures_what_the_whole_one_does(keep_base, tmp_path):
    def watching(name):
        return LightningCallback(every=1, module="model", out=tmp_path / f"{name}.jsonl", keep_base=keep_base)

    def saving(name):
        return ModelCheckpoint(tmp_path / name, every_n_train_steps=2, save_top_k=-1, filename="{step}")

    saved = {"enable_checkpointing": True}
    fit(Lit(), tmp_path / "whole", watching("whole"), saving("whole"), steps=4, **saved)
    with pytest.raises(RuntimeError, match="killed"):
        fit(Lit(), tmp_path / "run", watching("run"), saving("run"), KillAt(), steps=4, **saved)
    other = Lit()
    with torch.no_grad():  # the base is what the run began with, not what the resuming process happens to build
        other.model.model.layers[0].self_attn.q_proj.weight.add_(1.0)
    resume = tmp_path / "run" / "step=2.ckpt"
    fit(other, tmp_path / "run", watching("run"), saving("run"), steps=4, resume=resume, **saved)
    before, after = profiles(tmp_path / "whole.jsonl"), profiles(tmp_path / "run.jsonl")
    assert after.keys() == before.keys()
    # dropout draws other numbers after a resume
    assert {k: v for k, v in after.items() if k[0] <= 2} == {k: v for k, v in before.items() if k[0] <= 2}
    name = "model.layers.0.self_attn.q_proj"
    written = other.model.get_submodule(name).weight.detach() - Lit().model.get_submodule(name).weight.detach()
    assert after[4, name] == pytest.approx(entanglement_profile(written).entropy.tolist(), abs=1e-5)

    (tmp_path / "run" / "artent_base.safetensors").unlink()
    with pytest.raises(ValueError, match=r"resumes at step 2.*artent_base\.safetensors.*missing"):
        fit(Lit(), tmp_path / "run", watching("run"), steps=4, resume=resume)


def test_bad_input_is_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"module='net'.*it has model"):
        fit(Lit(), tmp_path, LightningCallback(module="net"))
    with pytest.raises(ValueError, match="keep_base='ram'"):
        LightningCallback(keep_base="ram")

    class FSDPStrategy:
        pass

    class Sharded:
        strategy, global_step, default_root_dir = FSDPStrategy(), 0, tmp_path

    with pytest.raises(ValueError, match=r"FSDPStrategy.*ModelParallelStrategy"):
        LightningCallback(internal=False, probe=PROBE).on_train_start(Sharded(), Lit())


def test_without_lightning_the_extra_is_named(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "artent.training.lightning")
    with pytest.raises(ImportError, match=r"pip install artent\[lightning\]"):
        sys.modules["artent.training"].LightningCallback()
