"""What each process of a run does for test_trained.py: a tiny LLaMA trained in several ways, and measured.

``trained.py OUT NAME…``, run by torchrun, or with ``--fork SIZE`` (``forked.py``). A name is a way of training and what
is trained, such as fsdp_lora. OUT/<name>.json holds what the processes measured and what each of them was given, and
what one process measures that trained the same alone.
"""

import json
import sys
from functools import partial
from pathlib import Path

import artent.rounds
import torch
import torch.distributed as dist
from artent import MPSConfig
from artent.checkpoints import pending_updates
from artent.distributed import is_sharded, processes
from artent.measure import measure
from artent.reading.snapshot import snapshot
from forked import run
from peft import LoraConfig, get_peft_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

artent.rounds._COST = 0.0  # a module a round for each rank, as in a large model

FULL = ["q_proj", "v_proj", "down_proj", "embed_tokens"]
ADAPTERS = {
    "lora": partial(LoraConfig, r=3, target_modules=["q_proj", "v_proj"]),
    "dora": partial(LoraConfig, r=3, target_modules=["q_proj", "v_proj"], use_dora=True),
    "mps": partial(MPSConfig, r=4, target_modules=["q_proj", "v_proj"]),
}


def model_of(kind, dtype=torch.float64):
    """The same on every process. The rows of 31 tokens are shared out unevenly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(dtype)
    return get_peft_model(model, ADAPTERS[kind]()).to(dtype) if kind in ADAPTERS else model


def texts(rank=0, size=1):
    """This rank's part of a batch of 8 texts, or all of it."""
    tokens = (torch.arange(8)[:, None] * 7 + torch.arange(10) * 3) % 31
    return tokens.chunk(size)[rank]


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def train(model, tokens, between=None, optimizer=None, backward=torch.Tensor.backward):
    """Two steps, and what is to be done between them."""
    optimizer = optimizer or optimizer_of(model)
    for step in range(2):
        backward(model(input_ids=tokens, labels=tokens).loss)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0 and between:
            between()


def sharded(model, **options):
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def ddp(kind, size):
    return DistributedDataParallel(model_of(kind)), train


def fsdp(kind, size):
    return sharded(model_of(kind)), train


def hybrid(kind, size):
    """Sharded over half of the processes, replicated over the other half."""
    mesh = dist.init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    return sharded(model_of(kind), mesh=mesh), train


def mixed(kind, size):
    """Computed in bfloat16, kept in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return sharded(model_of(kind, torch.float32), mp_policy=policy), train


def accelerated(kind, size):
    """By ``Accelerator.prepare``: accelerate has FSDP for GPUs only, but goes the same way when told to."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"]
    )
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    model = model_of(kind)
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    return model, partial(train, optimizer=optimizer, backward=accelerator.backward)


def zero(kind, size):
    """DeepSpeed's ZeRO-3, which keeps float32."""
    import deepspeed

    model = model_of(kind, torch.float32)
    stage = {"stage": 3, "stage3_param_persistence_threshold": 30}  # norms stay whole, matrices do not
    options = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": stage, "zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer_of(model), config=options)

    def training(engine, tokens, between):
        for step in range(2):
            engine.backward(engine(input_ids=tokens, labels=tokens).loss)
            engine.step()
            if step == 0:
                between()

    return engine, training


WAYS = {"ddp": ddp, "fsdp": fsdp, "hybrid": hybrid, "mixed": mixed, "accelerate": accelerated, "zero": zero}


def gathered(model):
    """A state dict of whole tensors, by the means of who sharded them."""
    if type(model).__name__ == "DeepSpeedEngine":
        from deepspeed.utils import safe_get_full_fp32_param

        trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
        return {name: safe_get_full_fp32_param(p).clone() for name, p in trained.items()}
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


ROUNDED = ("mixed", "zero")  # other roundings than alone, which Adam makes much of: the same weights, then


def check(name, here):
    way, kind = name.split("_")
    targets = FULL if kind == "full" else None
    model, training = WAYS[way](kind, here.size)
    sharded = sum(map(is_sharded, model.parameters()))
    base = snapshot(model, targets, here) if targets else None

    def measuring():
        with torch.no_grad():  # as a validation does, after which FSDP2 leaves some parameters whole
            model(input_ids=texts())
        return list(measure(pending_updates(model, base, targets=targets), processes=here))

    training(model, texts(here.rank, here.size), measuring)  # which is not to notice it
    found = measuring()
    given = here.collect(len(found))
    tuned = model_of(kind, torch.float32 if way in ROUNDED else torch.float64)
    base = None if kind in ADAPTERS else {name: p.detach().clone() for name, p in tuned.named_parameters()}
    if way in ROUNDED:
        tuned.load_state_dict(gathered(model), strict=False)
    else:
        train(tuned, texts())
    if here.main:
        return {
            "measured": measured(found),
            "given": given,
            "sharded": sharded,
            "alone": measured(measure(pending_updates(tuned, base, targets=targets))),
            "cuts": cuts(pending_updates(tuned, base, targets=targets)),
        }


def measured(found):
    return {one.name: one.profile.to_dict() for one in found if one.profile is not None}


def cuts(pending):
    """The entropies at the row|column cut by a singular value decomposition of ΔW."""
    found = {}
    for one in pending:
        update = one.read()
        W = update if isinstance(update, torch.Tensor) else update.dense()
        p = torch.linalg.svdvals(W.detach().double()).square()
        p = p / p.sum()
        found[one.name] = -torch.special.xlogy(p, p).sum().item()
    return found


def main(out, names):
    here = processes(120)
    for name in names:
        result = check(name, here)
        if here.main:
            (Path(out) / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    out, *names = sys.argv[1:]
    if names[0] == "--fork":
        run(Path(out) / "ranks", int(names[1]), lambda rank, folder: main(out, names[2:]))
    else:
        dist.init_process_group("gloo")
        main(out, names)
        dist.destroy_process_group()
