"""Models whose training has an ``EntanglementLoss``, and what that should be: from float64 unfoldings, by NumPy."""

import copy

import numpy as np
import peft
import torch
from artent import MPSConfig
from entropy_reference import entropies
from mps_models import gpt2, mlp

BOTH = ["up", "down"]


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": BOTH} | options)


def adapted(*configs, build=mlp):
    """A model in float64 with these adapters, all active, and a copy of what it was built on."""
    base = build().double()
    before = copy.deepcopy(base)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, configs[0]).double()
    for i, config in enumerate(configs[1:]):
        model.add_adapter(f"more{i}", config)
    model.base_model.set_adapter(list(model.peft_config))
    return model.double(), before


def full(build=mlp):
    model = build().double()
    return model, copy.deepcopy(model)


# How to build the model and what it was before, and the targets.
CASES = {
    "LoRA": (lambda: adapted(lora()), BOTH),
    "two LoRAs": (lambda: adapted(lora(r=2), lora(r=3, use_rslora=True)), BOTH),
    "MPS": (lambda: adapted(MPSConfig(r=4, lora_alpha=6, chi=3, target_modules=BOTH)), BOTH),
    "MPS of both factors": (
        lambda: adapted(MPSConfig(r=4, sites=3, chi=3, tensorize="both", carrier="last", target_modules=BOTH)),
        BOTH,
    ),
    "two MPS": (lambda: adapted(*(MPSConfig(r=r, chi=3, target_modules=BOTH) for r in (2, 3))), BOTH),
    "full FT": (full, BOTH),
    "full FT of a Conv1D": (lambda: full(gpt2), ["c_attn"]),
    "trained as a copy": (lambda: adapted(lora(target_modules=["up"], modules_to_save=["head"])), ["up", "head"]),
}


def matrix(module):
    """(out, in): what the module does to every unit vector."""
    n = module.weight.shape[0] if type(module).__name__ == "Conv1D" else module.in_features
    eye = torch.eye(n, dtype=torch.float64)
    with torch.no_grad():
        return (module(eye) - module(0 * eye)).T.numpy()


def values(model, before, targets, on):
    """The values that the term is made of, from singular values of every unfolding of ΔW as it acts."""
    after, found = model.get_base_model() if hasattr(model, "get_base_model") else model, []
    for name, module in before.named_modules():
        if not any(f".{name}".endswith(f".{target}") for target in targets):
            continue
        W = matrix(after.get_submodule(name)) - matrix(module)
        rows = sites(len(W))
        lefts = np.cumprod(rows + sites(W.shape[1]))[:-1]
        squares = [np.linalg.svd(W.reshape(D, -1), compute_uv=False) ** 2 for D in lefts]
        S = entropies([p / p.sum() for p in squares])
        cut = S[len(rows) - 1]
        found.append(cut if on == "cut_entropy" else S.max() - cut)
    return np.array(found)


def sites(n):
    """Prime factors, non-increasing."""
    found = []
    for d in range(n, 1, -1):
        while n % d == 0 and all(d % q for q in range(2, d)):
            found.append(d)
            n //= d
    return found


def wanted(model, before, targets, on, target=None, weight=1.0):
    v = values(model, before, targets, on)
    return weight * float((v if target is None else (v - target) ** 2).mean())


def touched(model, term):
    """{name: gradient} of the parameters that the term has a gradient for."""
    model.zero_grad()
    term().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
