"""The models of a study: the small LLaMA made here or one from a folder or the hub, and what a method trains of it."""

from __future__ import annotations

import os

import torch

import artent
from artent.study.data.tokens import byte_tokenizer

__all__ = ["adapt", "base_model", "device_of", "save_weights", "tokenizer_of", "trainable", "untrained", "weights_of"]


def device_of(training):
    """Where the study computes: what ``training.device`` says, ``auto`` being the GPU where there is one."""
    if training.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return training.device


def untrained(model, context):
    """The model before any training, on the CPU, the same for every call: its seed is ``model.seed``."""
    torch.manual_seed(model.seed)
    if model.small:
        return _small(model, context)
    import transformers

    config = transformers.AutoConfig.from_pretrained(model.name, trust_remote_code=False)
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, model.dtype), attn_implementation="artent", trust_remote_code=False
    )


def _small(model, context):
    from transformers import LlamaConfig, LlamaForCausalLM

    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=model.width,
            intermediate_size=model.mlp_width,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=model.width**-0.5,  # LLaMA's 0.02 suits widths in the thousands, and learns slowly here
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )
    return made.to(getattr(torch, model.dtype))


def base_model(model, context, weights):
    """The model that every fine-tuning begins from, on the CPU: pretrained here (``weights``), or of ``model.name``.

    Raises ValueError as ``artent attention MODEL`` does: no such model, not causal, an adapter, no safetensors.
    """
    if model.small:
        from safetensors.torch import load_model as load_weights

        made = untrained(model, context)
        load_weights(made, weights)
        return made
    from artent.attention.load import load_model

    loaded, _ = load_model(model.name, dtype=getattr(torch, model.dtype), device="cpu", quiet=True)
    if hasattr(loaded, "peft_config"):
        raise ValueError(f"model.name: {model.name!r} is an adapter; merge it, or name the model that it belongs to")
    loaded.config.use_cache = False
    return loaded


def tokenizer_of(model):
    """The model's tokenizer; the small model reads bytes."""
    if model.small:
        return byte_tokenizer()
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(model.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.name: {model.name!r} has no tokenizer that can be loaded ({why})") from error


def save_weights(model, file):
    """Write the model's weights to a safetensors file that is whole or absent, whenever the process is killed."""
    from safetensors.torch import save_model

    part = file.with_name(file.name + ".part")
    save_model(model, part)
    os.replace(part, file)


def adapt(model, method, targets, seed):
    """What ``method`` trains: the model itself for full FT (of the targets alone: the rest frozen), else adapters.

    What full FT trains is float32, as adapters are: in bfloat16 nearly every step of AdamW would be rounded away.
    """
    torch.manual_seed(seed)  # the adapter's start
    if method.kind == "full-ft":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(method.train == "all" or name.endswith(tuple(f"{t}.weight" for t in targets)))
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return model
    import peft

    common = {"r": method.rank, "lora_alpha": method.lora_alpha, "target_modules": list(targets), "lora_dropout": 0.0}
    if method.kind == "lora":
        return peft.get_peft_model(model, peft.LoraConfig(**common, init_lora_weights=method.init))
    chain = {"chi": method.chi}
    if method.cores != 2:
        chain["sites"] = method.cores
    return peft.get_peft_model(model, artent.MPSConfig(**common, **chain))


def weights_of(model, targets):
    """{name: copy} of the weights of the modules that ``targets`` means, on the CPU."""
    wanted = tuple(f"{target}.weight" for target in targets)
    return {name: weight.detach().cpu().clone() for name, weight in model.named_parameters() if name.endswith(wanted)}


def trainable(model):
    """(trained, all) parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())
