"""Weight updates of adapted models: live PEFT layers, and adapter folders that PEFT saved.

Where ΔW is a product of factors (LoRA with its rank and alpha patterns, rsLoRA, several active adapters) the
factors are handed on as they are. For everything else ΔW = merged weight − base weight, one layer at a time:
what a method calls its delta is not ΔW once magnitudes are learnt or the base was changed at the start
(`docs/math.md §2`). PEFT is never imported here: a model without it has no such layers.
"""

import copy
import json
import re
import sys
from pathlib import Path

import torch

from artent.updates import LoRAUpdate
from artent.weights import SafetensorsFiles, difference, module_name, select, unwrap

# Starts that leave the base weight alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do not.
_BASE_KEPT = (True, False, "gaussian", "eva", "orthogonal", "mica")
_VARIANTS = (
    *("use_dora", "velora_config", "monteclora_config", "use_bdlora", "arrow_config", "kasa_config"),
    *("alora_invocation_tokens", "use_qalora", "target_parameters"),
)


def adapted_layers(model):
    """{name in the unwrapped model: PEFT layer}, tied ones once; empty for a model without adapters."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    layers, seen, outer = {}, set(), None
    for name, module in unwrap(model).named_modules():  # a layer's own parts follow it at once
        if not isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) or (outer and name.startswith(outer)):
            continue
        outer = f"{name}."
        memory = frozenset(p.data_ptr() or id(p) for p in module.parameters())  # 0: nothing there to share
        if memory not in seen:
            layers[_plain(name)] = module
            seen.add(memory)
    return layers


def live_updates(model, layers, base, targets):
    """Yield (name, update or None) of a live model's ``layers``; None where nothing changed.

    ``base`` (``Weights`` or None) is asked only where a layer no longer holds the weight that it started
    from.
    """
    configs = next((module.peft_config for module in model.modules() if hasattr(module, "peft_config")), {})
    for name in select(layers, targets, "adapted modules"):
        layer = layers[name]
        if hasattr(layer, "modules_to_save"):
            yield from _saved_whole(name, layer)
            continue
        starts = {getattr(configs.get(a), "init_lora_weights", True) for a in layer.active_adapters}
        kept = starts <= set(_BASE_KEPT)
        factors = _factors(layer)
        if factors and kept and not layer.lora_variant:
            yield name, _joined(factors)
        else:
            yield name, _merged_minus_base(name, layer, None if kept else starts, base)


def folder_updates(path, base, targets):
    """Yield (name, update or None) of an adapter folder (``adapter_config.json`` beside safetensors).

    Modules saved whole (``modules_to_save``) are read where ``base`` (``Weights``) is given.
    """
    config = json.loads((Path(path) / "adapter_config.json").read_text())
    start = config.get("init_lora_weights", True)
    odd = [f"{key}={config[key]!r}" for key in _VARIANTS if config.get(key)]
    odd += [f"init_lora_weights={start!r}"] * (start not in _BASE_KEPT)
    odd += [f"peft_type={config.get('peft_type')!r}"] * (config.get("peft_type") != "LORA")
    if odd:
        raise ValueError(
            f"{path}: the factors of this adapter are not its update ({', '.join(odd)}). Load it onto its "
            "base model with PEFT and pass the live model (and base, where the start changed the base "
            "weights)"
        )
    tensors = SafetensorsFiles(path, "model_or_path")
    names = {}
    for key in tensors:
        if ".base_layer." in key:  # PEFT saves an adapted embedding's own weight along, unchanged
            continue
        name, factor = re.fullmatch(r"(.*?)(?:\.lora_(?:embedding_)?([AB])(?:\.weight)?)?", key).groups()
        names.setdefault(module_name(_plain(name)), {})[factor] = key
    if base is None:  # what was saved whole has nothing to be held against
        names = {name: keys for name, keys in names.items() if None not in keys}
    for name in select(names, targets, "adapted modules"):
        keys = names[name]
        if None in keys:
            whole = tensors[keys[None]]
            if whole.ndim == 2:
                yield name, difference(name, whole, base.weight(name))
            continue
        if set(keys) != {"A", "B"}:
            raise ValueError(f"{path}: {name} has one factor, {list(keys.values())}. Likely cause: a damaged file")
        B, A = tensors[keys["B"]], tensors[keys["A"]]
        r = len(A)
        patterns = (config.get("alpha_pattern") or {}).items()
        alpha = next((a for k, a in patterns if re.match(rf"(.*\.)?({k})$", name)), config["lora_alpha"])
        scaling = alpha / (r**0.5 if config.get("use_rslora") else r)
        yield name, _joined([(A.T, B.T, scaling) if "lora_embedding_A" in keys["A"] else (B, A, scaling)])


def _factors(layer):
    """[(B, A, scaling)] of the active adapters of a LoRA layer over one matrix, [] for any other layer."""
    one_matrix = type(layer).__name__ not in ("MultiheadAttention", "ParamWrapper")
    if not (one_matrix and type(layer).__module__.startswith("peft.tuners.lora.")):
        return []
    factors = []
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            B, A = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
        elif adapter in layer.lora_embedding_A:  # ΔW = (B·A)ᵀ there: tokens × features
            B, A = layer.lora_embedding_A[adapter].T, layer.lora_embedding_B[adapter].T
        else:
            continue
        if B.ndim != 2 or A.ndim != 2:
            return []
        factors.append((B, A, layer.scaling[adapter]))
    return factors


def _joined(factors):
    """One ``LoRAUpdate``, the sum over adapters; None where it is zero (B before the first step)."""
    if len(factors) == 1:
        B, A, scaling = factors[0]
    else:
        B = torch.cat([s * B for B, _, s in factors], dim=1)
        A, scaling = torch.cat([A for _, A, _ in factors]), 1.0
    with torch.no_grad():
        gram_B, gram_A = B.double().mT @ B.double(), A.double() @ A.double().mT
        # ‖BA‖ against ‖B‖·‖A‖: an orthogonal start, which PEFT draws in float32, has BA = 0 to rounding only
        # (up to 1.4 eps). NaN is not zero.
        rounding = max(torch.finfo(A.dtype).eps, 4 * torch.finfo(torch.float32).eps)
        zero = scaling == 0 or bool((gram_B * gram_A).sum() <= rounding**2 * gram_B.trace() * gram_A.trace())
    return None if zero else LoRAUpdate(B, A, scaling)


def _saved_whole(name, layer):
    """The matrices of a module that PEFT trains as a copy (``modules_to_save``)."""
    adapter = next((a for a in layer.active_adapters if a in layer.modules_to_save), None)
    if adapter is None:
        return
    turned = type(layer.original_module).__name__ == "Conv1D"
    for key, before in layer.original_module.named_parameters():
        if before.ndim == 2:
            after = layer.modules_to_save[adapter].get_parameter(key)
            yield module_name(f"{name}.{key}"), difference(name, after.detach(), before.detach(), turned)


@torch.no_grad()
def _merged_minus_base(name, layer, changed_by, base):
    """ΔW as a dense matrix: a copy of the layer, in float32 or better, merged, minus the weight it started
    from.

    The copy is merged before rounding to the layer's dtype, which would swamp an update in bfloat16.
    """
    weight = getattr(layer.get_base_layer(), "weight", None)
    kind = f"{name}, a {type(layer).__module__.removeprefix('peft.tuners.')}.{type(layer).__name__}"
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        what = "no weight" if weight is None else f"a {weight.dtype} weight of shape {tuple(weight.shape)}"
        raise ValueError(
            f"{kind} over {what}: an update is read from floating-point matrices only (plain LoRA from its "
            "factors over quantised ones too). Leave it out with targets, or load the base unquantised"
        )
    if changed_by and base is None:
        raise ValueError(
            f"{kind}: its start ({changed_by}) changed the base weight, so the update needs the original: "
            "pass base, the model or weights from before the adapter was added"
        )
    merged = copy.deepcopy(layer).to(torch.promote_types(weight.dtype, torch.float32))
    if merged.merged:
        merged.unmerge()
    before = merged.get_base_layer().weight.detach().clone()
    if changed_by:
        before = base.weight(name)
    try:
        merged.merge(adapter_names=list(layer.active_adapters))
    except (NotImplementedError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{kind}: its update is not one matrix, it cannot be merged ({error})") from error
    turned = type(layer.get_base_layer()).__name__ == "Conv1D"
    return difference(name, merged.get_base_layer().weight.detach(), before, turned)


def _plain(name):
    for part in ("_orig_mod.", "base_model.model.", ".token_adapter"):
        name = name.replace(part, "")
    return name
