"""Small models with MPS adapters, and what they should compute: dense float64 weights, contracted here by NumPy."""

import copy

import numpy as np
import peft
import torch
from artent import MPSConfig
from artent.mps import MPSShape, largest_bonds
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(24, 36), nn.Linear(36, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 8, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.down(torch.tanh(self.up(x)))))


def mlp():
    torch.manual_seed(0)
    return MLP().eval()


def llama(cls=LlamaForCausalLM, **options):
    shape = {"vocab_size": 48, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
    torch.manual_seed(0)
    return cls(LlamaConfig(**shape | heads | options)).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_embd=24, n_layer=1, n_head=2, n_positions=16, use_cache=False)
    return GPT2LMHeadModel(config).eval()


def chain_shape(r, sites, carrier, chi=4):
    """A chain whose bonds are ``chi``, or what they can hold."""
    return MPSShape(r, sites, tuple(min(chi, most) for most in largest_bonds(r, sites, carrier)), carrier)


def mps(**options):
    return MPSConfig(**{"r": 4, "lora_alpha": 6, "chi": 3} | options)


def on_mlp(**options):
    return mps(**{"target_modules": ["up", "down"]} | options)


# How to build the base model, the configuration, and the modules adapted: {name: (r, α)}, (4, 6) where nothing is told.
CASES = {
    "two sites": (mlp, on_mlp(), {"up", "down"}),
    "two sites, r at the last": (mlp, on_mlp(carrier="last"), {"up", "down"}),
    "three sites": (mlp, on_mlp(sites=3, chi=(2, 3)), {"up", "down"}),
    "four sites, r at the last": (mlp, on_mlp(sites=4, chi=2, carrier="last"), {"up", "down"}),
    "sites as numbers": (mlp, mps(sites=(2, 3, 4), carrier="first", target_modules=["up"]), {"up"}),
    "B": (mlp, on_mlp(tensorize="B", sites=3, chi=2), {"up", "down"}),
    "A and B": (mlp, on_mlp(tensorize="both", chi=2), {"up", "down"}),
    "rsLoRA": (mlp, on_mlp(use_rslora=True), {"up", "down"}),
    "patterns": (
        mlp,
        on_mlp(rank_pattern={"down": 3}, alpha_pattern={"^up$": 9}, target_modules=["up", "down", "head"]),
        {"up": (4, 9), "down": (3, 6), "head": (4, 6)},
    ),
    "dropout": (mlp, on_mlp(lora_dropout=0.3), {"up", "down"}),
    "modules_to_save": (mlp, mps(target_modules=["up"], modules_to_save=["norm", "head"]), {"up"}),
    "expression": (mlp, mps(target_modules="up|he.*"), {"up", "head"}),
    "excluded": (mlp, mps(target_modules="all-linear", exclude_modules=["down"]), {"up", "head"}),
    "Conv1D": (gpt2, mps(target_modules=["c_attn", "mlp.c_proj"]), {"attn.c_attn", "mlp.c_proj"}),
    "llama, usual targets": (llama, mps(chi=2), {f"layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qv"}),
    "llama, one layer": (
        llama,
        mps(target_modules=["o_proj", "up_proj"], layers_to_transform=1, layers_pattern="layers"),
        {"layers.1.self_attn.o_proj", "layers.1.mlp.up_proj"},
    ),
    "llama, all linear": (
        llama,
        mps(target_modules="all-linear", chi=2),
        {f"layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qkvo"}
        | {f"layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("gate", "up", "down")},
    ),
}


def config_of(case, **options):
    """The case's configuration, a copy of its own, with ``options`` in place of its."""
    config = copy.deepcopy(CASES[case][1])
    for name, value in options.items():
        setattr(config, name, value)
    return config


def adapted(case, dtype=torch.float32, shaken=True, autocast_adapter_dtype=True, **options):
    """(the case's model with its adapter, evaluating; its inputs; the base model as it was)."""
    base = CASES[case][0]().to(dtype)
    before = copy.deepcopy(base)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, config_of(case, **options), autocast_adapter_dtype=autocast_adapter_dtype).eval()
    return (shake(model) if shaken else model), inputs_of(before), before


def inputs_of(model):
    if not isinstance(model, MLP):
        return TOKENS
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x.to(next(model.parameters()).dtype)


def logits(model, inputs):
    out = model(inputs)
    return getattr(out, "logits", out)


@torch.no_grad()
def shake(model, seed=3, scale=0.3):
    """Random values wherever training would write some."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += scale * noise.to(parameter.dtype)
    return model


def layers(model):
    """{module name, as the base model has it: its adapted layer}."""
    from artent.adapters.mps.layer import MPSLinear

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {name: module for name, module in base.named_modules() if isinstance(module, MPSLinear)}


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def factors(layer, adapter="default"):
    """A (r, in) and B (out, r) in float64, contracted from the stored cores."""
    A, B = layer.artent_mps_A[adapter], layer.artent_mps_B[adapter]
    A = _stored(A.weight) if hasattr(A, "weight") else _contracted(A).T
    return A, _stored(B.weight) if hasattr(B, "weight") else _contracted(B)


def _stored(parameter):
    return parameter.detach().double().numpy()


def _contracted(factor):
    """(long side, r) of a chain: the end core with three indices carries r."""
    cores = [_stored(parameter) for _, parameter in sorted(factor.named_parameters())]
    whole = cores[0]
    for core in cores[1:]:
        whole = np.tensordot(whole, core, 1)
    r_first = cores[0].ndim == 3
    return whole.reshape(whole.shape[0], -1).T if r_first else whole.reshape(-1, whole.shape[-1])


def expected_delta(case, name, layer, adapter="default", config=None):
    """α/r · B · A (out, in) in float64: by the definition, with the case's own r and α."""
    config, modules = config or CASES[case][1], CASES[case][2]
    asked = [modules[key] for key in modules if name.endswith(key)] if isinstance(modules, dict) else []
    r, alpha = asked[0] if asked else (config.r, config.lora_alpha)
    A, B = factors(layer, adapter)
    assert (A.shape, B.shape) == ((r, layer.in_features), (layer.out_features, r))
    return torch.from_numpy(alpha / (r**0.5 if config.use_rslora else r) * B @ A)


@torch.no_grad()
def expected_model(case, model, before, adapters=("default",)):
    """The base model in float64 with dense ΔW added to its weights, and the modules saved whole in their places."""
    expected = copy.deepcopy(before).double()
    for name, layer in layers(model).items():
        module = expected.get_submodule(name)
        for adapter in adapters:
            if adapter in layer.artent_mps_A:
                delta = expected_delta(case, name, layer, adapter, model.peft_config[adapter])
                module.weight += delta.T if type(module).__name__ == "Conv1D" else delta
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "modules_to_save") and adapters[-1] in module.modules_to_save:
            expected.set_submodule(name, copy.deepcopy(module.modules_to_save[adapters[-1]]).double())
    return expected
