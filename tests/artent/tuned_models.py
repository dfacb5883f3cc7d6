"""Small models after a training that never was: adapters of every method, full fine-tuning, and what they do."""

import copy

import peft
import torch
from artent import LoRAUpdate
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

QV = ["q_proj", "v_proj"]
Q0 = "model.layers.0.self_attn.q_proj"


def llama(**options):
    shape = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = LlamaConfig(**shape | heads | options)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).double().eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=24, n_layer=1, n_head=2, n_positions=16)).double().eval()


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": QV} | options)


def train(model, scale=0.3):
    """Random weights where training would write some."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += scale * noise.to(parameter.dtype)
    return model.eval()


def dense(update):
    return update.scaling * update.B @ update.A if isinstance(update, LoRAUpdate) else update


@torch.no_grad()
def acted(model, name, original):
    """ΔW as the model acts: its layer on every unit vector (or token), minus the original weight."""
    layer = model.get_base_model().get_submodule(name)
    weight = original[f"{name}.weight"]
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    if isinstance(base, torch.nn.Embedding):
        return layer(torch.arange(len(weight))) - weight
    if type(base).__name__ == "Conv1D":
        return (layer(torch.eye(len(weight), dtype=torch.float64)) - base.bias).T - weight.T
    return layer(torch.eye(weight.shape[1], dtype=torch.float64)).T - weight


FACTORED = {
    "plain": (llama, lora()),
    "rsLoRA": (llama, lora(use_rslora=True)),
    "patterns": (
        llama,
        lora(
            rank_pattern={"v_proj": 2, r"^model\.layers\.1\..*q_proj": 7},
            alpha_pattern={"layers.0.self_attn.q_proj": 9},
        ),
    ),
    "nonzero start": (llama, lora(init_lora_weights=False)),
    "orthogonal start": (llama, lora(init_lora_weights="orthogonal")),
    "embedding": (llama, lora(target_modules=["embed_tokens", "o_proj"])),
    "Conv1D": (gpt2, lora(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
}
MERGED = {
    "DoRA": (llama, lora(use_dora=True)),
    "DoRA Conv1D": (gpt2, lora(use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)),
    "LoHa": (llama, peft.LoHaConfig(r=2, alpha=4, target_modules=QV)),
    "OFT": (llama, peft.OFTConfig(oft_block_size=4, target_modules=QV)),
    "AdaLoRA": (llama, peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=QV)),
    "modules_to_save": (gpt2, lora(target_modules=["c_attn"], modules_to_save=["lm_head"], fan_in_fan_out=True)),
}
CHANGED_START = {
    "PiSSA": (llama, lora(init_lora_weights="pissa")),
    "OLoRA": (llama, lora(init_lora_weights="olora")),
}


def full_ft():
    base = llama()
    tuned = copy.deepcopy(base)
    for layer in tuned.model.layers:
        layer.mlp.requires_grad_(False)
    return base, train(tuned)
