"""Weight updates of live PEFT models.

Where ΔW is a product of factors (LoRA with its rank and alpha patterns, rsLoRA, several active adapters, and layers
that offer ``weight_update(adapters)``, as the MPS adapter's do) the factors are handed on as they are. For everything
else ΔW = merged weight − base weight, one layer at a time: what a method calls its delta is not ΔW once magnitudes
are learnt or the base was changed at the start (`docs/math.md §2`). PEFT is never imported here: a model without it
has no such layers.
"""

import copy
import sys

import torch

from artent.adapter_files import BASE_KEPT, plain
from artent.updates import LoRAUpdate, is_zero
from artent.weights import difference, module_name, select, unwrap


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
            layers[plain(name)] = module
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
        if hasattr(layer, "weight_update"):
            update = layer.weight_update(layer.active_adapters)
            yield name, None if update is None or is_zero(update) else update
            continue
        starts = {getattr(configs.get(a), "init_lora_weights", True) for a in layer.active_adapters}
        kept = starts <= set(BASE_KEPT)
        factors = _factors(layer)
        if factors and kept and not layer.lora_variant:
            yield name, _joined(factors)
        else:
            yield name, _merged_minus_base(name, layer, None if kept else starts, base)


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
    update = LoRAUpdate(B, A, scaling) if scaling else None
    return None if update is None or is_zero(update) else update


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
