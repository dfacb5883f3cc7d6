"""A base, a tuned model and an adapter as transformers and PEFT save them, and what may happen to their files."""

import copy
import json

import peft
from mps_models import llama, shake
from safetensors.torch import load_file, save_file

Q0 = "model.layers.0.self_attn.q_proj"
KEY, A0 = f"{Q0}.weight", f"base_model.model.{Q0}.lora_A.weight"
INDEX = "model.safetensors.index.json"
PAIR, SHARDED, ADAPTER = ("tuned", "base"), ("sharded", "base"), ("adapter",)


def save_all(folder):
    """A base, tuned weights in one file and in shards, and an adapter, as transformers and PEFT save them."""
    base = llama()
    tuned = shake(copy.deepcopy(base))
    base.save_pretrained(folder / "base")
    tuned.save_pretrained(folder / "tuned")
    tuned.save_pretrained(folder / "sharded", max_shard_size="20KB")
    adapter = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    shake(peft.get_peft_model(base, adapter)).save_pretrained(folder / "adapter")
    return folder


def edited(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def model(change, side="tuned"):
    """A damage done to the tensors of ``side``."""
    return lambda files: edited(files / side / "model.safetensors", change)


def raw(change, where="tuned/model.safetensors"):
    """A damage done to the bytes of a file."""
    return lambda files: (files / where).write_bytes(change((files / where).read_bytes()))


def adapter(change):
    return lambda files: edited(files / "adapter" / "adapter_model.safetensors", change)


def described(change, where="adapter/adapter_config.json"):
    """A damage done to a JSON file."""

    def damage(files):
        found = json.loads((files / where).read_text())
        change(found)
        (files / where).write_text(json.dumps(found))

    return damage


def other_base(make):
    return lambda files: make().save_pretrained(files / "base")


def without(name):
    def damage(files):
        for file in (files / "sharded").glob(f"{name}*"):
            file.unlink()

    return damage


def replaced(key, value):
    return lambda tensors: tensors.update({key: value(tensors[key]) if callable(value) else value})


def lost(key):
    return lambda tensors: tensors.pop(key)
