"""Writes checkpoints in the shapes of LLaMA models, with random numbers: a base, a tuned model, LoRA adapters.

    python benchmarks/llama_files.py FOLDER [--size 1b] [--modules q_proj,v_proj] [--parts base,tuned,lora] [--rank 16]
        [--update decaying] [--shard-size 5] [--seed 0]

They lie as transformers and PEFT save them: FOLDER/base, FOLDER/tuned (config.json and model.safetensors, sharded with
an index beyond --shard-size GiB) and FOLDER/lora-r16 (adapter_config.json, adapter_model.safetensors). Sizes are those
of Llama-3.2-1B and Llama-3.1-8B, and a tiny one to try things out; ``--modules all`` writes every weight of them.
Files are written tensor by tensor, so the memory needed is that of one tensor, some times over. Equal arguments give
equal files, on equal numbers of threads.
"""

import argparse
import json
import struct
import zlib
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch


class Size(NamedTuple):
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    tied: bool


SIZES = {
    "1b": Size(16, 2048, 32, 8, 8192, 128256, True),
    "8b": Size(32, 4096, 32, 8, 14336, 128256, False),
    "tiny": Size(2, 64, 4, 2, 96, 128, True),
}
UPDATES = ("decaying", "low-rank", "bulk")
STD = 0.02  # of the base weights, LLaMA's initializer range
SHARE = 0.05  # ‖ΔW‖ / ‖W‖
RANK_OF_TRAINED = 16  # of a low-rank update; a decaying one has 16 times as many directions above its bulk
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def shapes(size, modules=("q_proj", "v_proj")):
    """{name of the weight: shape} in the model's order; ``modules`` None: every weight there is."""
    s = SIZES[size]
    kv = s.hidden // s.heads * s.kv_heads
    attention = {"q_proj": (s.hidden, s.hidden), "k_proj": (kv, s.hidden), "v_proj": (kv, s.hidden),
                 "o_proj": (s.hidden, s.hidden)}  # fmt: skip
    mlp = {"gate_proj": (s.mlp, s.hidden), "up_proj": (s.mlp, s.hidden), "down_proj": (s.hidden, s.mlp)}
    whole = {"model.embed_tokens": (s.vocab, s.hidden)}
    for layer in range(s.layers):
        at = f"model.layers.{layer}"
        whole |= {f"{at}.self_attn.{name}": shape for name, shape in attention.items()}
        whole |= {f"{at}.mlp.{name}": shape for name, shape in mlp.items()}
        whole |= {f"{at}.{name}": (s.hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    whole |= {"model.norm": (s.hidden,)} | ({} if s.tied else {"lm_head": (s.vocab, s.hidden)})
    chosen = {f"{n}.weight": shape for n, shape in whole.items() if not modules or n.rpartition(".")[2] in modules}
    if lost := set(modules or ()) - {name.split(".")[-2] for name in chosen}:
        raise ValueError(f"modules: {', '.join(sorted(lost))} unknown; a LLaMA has {', '.join((*attention, *mlp))}")
    return chosen


def generator(name, seed):
    """Of the numbers that ``name`` is made of: a tensor's do not depend on which others are written."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()) + (seed << 32))


def base_weight(name, shape, seed):
    if len(shape) == 1:
        return torch.ones(shape)  # a norm
    return torch.randn(shape, generator=generator(name, seed)).mul_(STD)


def update(name, shape, seed, kind="decaying"):
    """ΔW (m, n) of Frobenius norm ``SHARE`` of the base weight's, float32.

    "decaying": singular values like 1/i over a Gaussian bulk that carries a tenth of ‖ΔW‖², what full fine-tuning
    leaves, roughly. "low-rank": of rank ``RANK_OF_TRAINED``, but for the rounding of its sum with the base. "bulk":
    Gaussian, the spectrum that decays least.
    """
    m, n = shape
    g = generator(f"{name} update", seed)
    delta = torch.zeros(shape)
    if kind != "bulk":
        k = min(RANK_OF_TRAINED * (16 if kind == "decaying" else 1), m, n)
        decay = torch.arange(1, k + 1) ** (-1.0 if kind == "decaying" else -0.5)
        delta = (torch.randn(m, k, generator=g) * decay) @ torch.randn(k, n, generator=g)
        delta *= (0.9 if kind == "decaying" else 1.0) ** 0.5 / delta.norm()
    if kind != "low-rank":
        bulk = torch.randn(shape, generator=g)
        delta += bulk.mul_((0.1 if kind == "decaying" else 1.0) ** 0.5 / bulk.norm())
    return delta.mul_(SHARE * STD * (m * n) ** 0.5)


def tuned_weight(name, shape, seed, kind):
    weight = base_weight(name, shape, seed)
    return weight.add_(update(name, shape, seed, kind)) if len(shape) == 2 else weight


def write_model(folder, size, modules=("q_proj", "v_proj"), kind=None, seed=0, shard_bytes=5 << 30):
    """The base (``kind`` None) or tuned checkpoint, bfloat16, as transformers saves one. Returns its folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    make = base_weight if kind is None else lambda *a: tuned_weight(*a, kind)
    shards, room = [], 0
    for name, shape in shapes(size, modules).items():
        needed = 2 * prod(shape)
        if needed > room:
            shards.append({})
            room = max(shard_bytes, needed)
        shards[-1][name] = shape
        room -= needed
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
        total = sum(2 * prod(shape) for shard in shards for shape in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(names, shards):
        write_safetensors(folder / name, shard, torch.bfloat16, lambda tensor, shape: make(tensor, shape, seed))
    _config(size).save_pretrained(folder)
    return folder


def write_adapter(folder, size, rank, modules=("q_proj", "v_proj"), seed=0):
    """A LoRA adapter as PEFT saves one: float32, α = 2r, a B whose columns differ in length. Returns its folder."""
    from peft import LoraConfig

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    factors = {}
    for name, (m, n) in shapes(size, modules).items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{module}.lora_A.weight": (rank, n), f"{module}.lora_B.weight": (m, rank)}

    def make(name, shape):
        factor = torch.randn(shape, generator=generator(name, seed)).mul_(shape[1] ** -0.5)
        return factor.mul_(torch.arange(1, rank + 1) ** -0.5) if ".lora_B." in name else factor

    write_safetensors(folder / "adapter_model.safetensors", factors, torch.float32, make)
    options = {"task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": str(folder.parent / "base")}
    LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(modules), **options).save_pretrained(folder)
    return folder


def write_safetensors(path, shapes, dtype, make):
    """A safetensors file of ``{name: shape}`` in ``dtype``, each made by ``make(name, shape)`` when its turn comes.

    safetensors itself writes a whole file from memory. The format: the header's length (8 bytes, little-endian), a
    JSON header padded with spaces to a multiple of 8, and the tensors' bytes one after another.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            tensor = make(name, shape).to(dtype).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy())


def _config(size):
    from transformers import LlamaConfig

    s = SIZES[size]
    return LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.mlp, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, tie_word_embeddings=s.tied,
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1b", help="whose shapes (%(default)s)")
    parser.add_argument("--modules", default="q_proj,v_proj", help="projections, or all weights (%(default)s)")
    parser.add_argument("--parts", default="base,tuned,lora", help="what to write (%(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA adapter (%(default)s)")
    parser.add_argument("--update", choices=UPDATES, default="decaying", help="what tuning wrote (%(default)s)")
    parser.add_argument("--shard-size", type=float, default=5, help="GiB a file of a model may have (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    size, seed = arguments.size, arguments.seed
    modules = None if arguments.modules == "all" else tuple(arguments.modules.split(","))
    parts = arguments.parts.split(",")
    try:
        found = shapes(size, modules)
        if odd := set(parts) - {"base", "tuned", "lora"}:
            raise ValueError(f"parts: {', '.join(sorted(odd))} unknown; expected base, tuned, lora")
        if "lora" in parts and modules is None:
            raise ValueError("parts: a LoRA adapter needs --modules by name, not all")
    except ValueError as error:
        parser.error(str(error))
    options = {"modules": modules, "seed": seed, "shard_bytes": int(arguments.shard_size * 2**30)}
    for part in parts:
        if part == "lora":
            path = write_adapter(arguments.folder / f"lora-r{arguments.rank}", size, arguments.rank, modules, seed)
        else:
            kind = arguments.update if part == "tuned" else None
            path = write_model(arguments.folder / part, size, kind=kind, **options)
        mebibytes = sum(file.stat().st_size for file in path.glob("*.safetensors")) / 2**20
        print(f"{path}: {len(found)} weights, {mebibytes:.0f} MiB")


if __name__ == "__main__":
    main()
