"""Two processes train with a recorder, for test_recorder_processes.py: ``recorded.py OUT`` writes rank.json each."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from artent import EntanglementRecorder, attach
from artent.distributed import ALONE, is_sharded
from artent.training import LightningCallback
from artent.training.budget import Budget
from lightning_models import Lit, fit
from peft import LoraConfig, get_peft_model
from tiny_training import TEXTS, training_arguments
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

PROBE = torch.arange(2 * 12).reshape(2, 12) % 31
STEPS = 4


def build(kind):
    torch.manual_seed(0)
    shape = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.1}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))
    return model.double()


def spread(model, way):
    if way == "ddp":
        return DistributedDataParallel(model)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model.get_base_model() if hasattr(model, "peft_config") else model).model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, recorder=None):
    """The losses. Measured with gradients there, before the optimizer's step, and after it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(1 + dist.get_rank())
    losses = []
    for step in range(1, STEPS + 1):
        ids = torch.randint(31, (2, 10))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        if recorder and step == 3:
            recorder.measure(step)
        optimizer.step()
        optimizer.zero_grad()
        if recorder and step != 3:
            recorder.measure(step)
    return losses


def told(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def watched(way, kind, out, rank):
    """What a training gives with a recorder and without, and what one process measures of the end, alone."""
    plain = train(spread(build(kind), way))
    model = spread(build(kind), way)
    keep = "disk" if way == "fsdp" else "memory"
    file = out / f"{way}-{kind}" / "results.jsonl"
    options = {"every": 1, "probe": PROBE, "lengths": (6, 12)}
    recorder = EntanglementRecorder(model, keep_base=keep, out=file if not rank or keep == "disk" else None, **options)
    losses = train(model, recorder)
    records = recorder.measure(STEPS)
    recorder.close()
    found = {"plain": plain, "losses": losses, "records": told(records), "summary": sorted(recorder.summary)}
    if kind == "full-ft" and keep == "memory":
        found["kept"] = sorted(recorder.base.tensors.own)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        alone = build(kind)
        start = {name: p.detach().clone() for name, p in alone.named_parameters()} if kind == "full-ft" else None
        alone.load_state_dict(state, strict=False)
        found["alone"] = told(EntanglementRecorder(alone, start, processes=ALONE, **options).measure(STEPS))
    return found


def lightning(rank, out):
    """The losses under Lightning's DDP with the callback and without, its records and what it keeps."""
    spread = {"strategy": "ddp", "devices": 2}
    plain = fit(Lit(), out, **spread).losses
    file = out / "lightning" / "results.jsonl"
    callback = LightningCallback(every=2, probe=PROBE, module="model", out=file)
    losses = fit(Lit(), out / "lightning", callback, **spread).losses
    dist.barrier()
    return {"plain": plain, "losses": losses, "kept": sorted(callback.recorder.base.tensors.own)}


def trainer(out, fsdp):
    """The same of transformers' Trainer, under DDP or FSDP2, with the steps whose measurements this process logged."""
    found = {}
    for name in ("plain", "watched"):
        options = {"max_steps": 5, "logging_steps": 1, "save_strategy": "no", "max_grad_norm": 0.0}
        options = training_arguments(out / name, **options)
        trainer = Trainer(build("full-ft").float(), options, train_dataset=TEXTS)
        if fsdp:
            shard(trainer)
        if name == "watched":
            keep = "memory" if fsdp else "disk"
            callback = attach(trainer, every=2, out=out / "results.jsonl", keep_base=keep)
        trainer.train()
        found[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found["logged"] = [entry["step"] for entry in trainer.state.log_history if "artent/s_ext" in entry]
    found["sharded"] = is_sharded(trainer.model.get_parameter("model.layers.0.self_attn.q_proj.weight"))
    return {**found, "keys": len(getattr(callback.recorder.base.tensors, "own", callback.recorder.base.tensors))}


def shard(trainer):
    """accelerate has FSDP for GPUs only, but goes the same way when told to."""
    trainer.is_fsdp_enabled = True
    trainer.accelerator.state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"]
    )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def decided(rank):
    """The steps that are measured where the first process's clock allows every other one, and the second's none."""
    recorder = EntanglementRecorder(build("lora"), every=5, internal=False, probe=PROBE)
    clock = Clock()
    recorder.budget = Budget(0.1, 5, clock)
    measured = []
    for step in range(0, 41):
        clock.now += 1.0 if rank == 0 else 1e-6
        if recorder.due(step):
            measured.append(step)
            with recorder.budget.measurement(step):
                clock.now += 1.0
    return measured


def main(rank, out):
    # As torchrun does: Trainers then know that the processes are there already.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {f"{way} {kind}": watched(way, kind, out, rank) for way in ("ddp", "fsdp") for kind in ("full-ft", "lora")}
    found |= {"decided": decided(rank), "lightning": lightning(rank, out)}
    found |= {f"trainer {way}": trainer(out / f"trainer-{way}", way == "fsdp") for way in ("ddp", "fsdp")}
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.start_processes(main, args=(Path(sys.argv[1]),), nprocs=2, start_method="fork")
