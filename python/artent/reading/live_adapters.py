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
from torch import nn

from artent.distributed import is_sharded
from artent.reading.adapter_files import BASE_KEPT
from artent.reading.differences import check_pair, difference
from artent.reading.names import module_name, plain
from artent.reading.pending import PendingUpdate, shape_of
from artent.reading.targets import select
from artent.reading.weights import resolved, unwrap
from artent.updates import LoRAUpdate, is_zero


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
        memory = frozenset(id(p) if is_sharded(p) else p.data_ptr() or id(p) for p in module.parameters())  # 0: empty
        if memory not in seen:
            layers[plain(name)] = module
            seen.add(memory)
    return layers


def live_updates(model, layers, base, targets) -> list[PendingUpdate]:
    """The pending updates of a live model's ``layers``.

    ``base`` (``Weights`` or None) is asked only where a layer no longer holds the weight that it started
    from.
    """
    configs = next((module.peft_config for module in model.modules() if hasattr(module, "peft_config")), {})
    pending = []
    for name in select(layers, targets, "adapted modules"):
        layer = layers[name]
        if hasattr(layer, "modules_to_save"):
            pending += _saved_whole(name, layer)
            continue
        if not any(a in getattr(layer, parts) for parts in layer.adapter_layer_names for a in layer.active_adapters):
            continue  # an adapter that is not active
        starts = {getattr(configs.get(a), "init_lora_weights", True) for a in layer.active_adapters}
        kept = starts <= set(BASE_KEPT)
        if hasattr(layer, "weight_update") or (kept and not getattr(layer, "lora_variant", None) and _factors(layer)):
            pending += _factored(name, layer)
        else:
            changing = next((start for start in starts if start not in BASE_KEPT), True)
            pending.append(merged_update(name, layer, changing, base))
    return pending


def _factored(name, layer) -> list[PendingUpdate]:
    """The update of a layer that is scaling · B · A, by its factors; none where no active adapter has any."""

    def read(whole):
        update = _product(_made_whole(layer, whole) if whole else layer)
        return None if update is None or is_zero(update) else update

    own = tuple(p for key, p in layer.named_parameters() if not key.startswith("base_layer."))
    rank = sum(layer.r[adapter] for adapter in layer.active_adapters if adapter in layer.r)
    return [PendingUpdate(name, _shape(layer), rank, read, own)] if rank else []


def _shape(layer):
    """(m, n) of a layer's update. A quantised weight is stored in another shape."""
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if weight is None or len(shape_of(weight)) != 2 or not weight.is_floating_point():
        return layer.out_features, layer.in_features
    return shape_of(weight)[::-1] if type(base).__name__ == "Conv1D" else shape_of(weight)


def _product(layer):
    """scaling · B · A of the active adapters, of the live parameters; None for no adapter or a scaling of zero."""
    if hasattr(layer, "weight_update"):
        return layer.weight_update(layer.active_adapters)
    return _joined(_factors(layer))


def _made_whole(layer, whole):
    """The layer with whole tensors in place of its sharded parameters, and all else shared with it."""
    memo = {id(p): whole.get(id(p), p) for p in layer.parameters()}
    return copy.deepcopy(layer, memo)


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
        if len(shape_of(B)) != 2 or len(shape_of(A)) != 2:
            return []
        factors.append((B, A, layer.scaling[adapter]))
    return factors


def _joined(factors):
    """One ``LoRAUpdate``, the sum over adapters."""
    if len(factors) == 1:
        B, A, scaling = factors[0]
    elif factors:
        B = torch.cat([s * B for B, _, s in factors], dim=1)
        A, scaling = torch.cat([A for _, A, _ in factors]), 1.0
    return LoRAUpdate(B, A, scaling) if factors and scaling else None


def _saved_whole(name, layer) -> list[PendingUpdate]:
    """The matrices of a module that PEFT trains as a copy (``modules_to_save``)."""
    adapter = next((a for a in layer.active_adapters if a in layer.modules_to_save), None)
    if adapter is None:
        return []
    turned = type(layer.original_module).__name__ == "Conv1D"
    pending = []
    for key, before in layer.original_module.named_parameters():
        shape = shape_of(before)
        if len(shape) == 2:
            after = layer.modules_to_save[adapter].get_parameter(key)

            def read(whole, after=after, before=before):
                return difference(name, resolved(after, whole), resolved(before, whole), turned)

            called = module_name(f"{name}.{key}")
            pending.append(PendingUpdate(called, shape[::-1] if turned else shape, None, read, (after, before)))
    return pending


def merged_update(name, layer, start, base) -> PendingUpdate:
    """Merged weight − the weight that it started from, pending.

    ``start`` is ``init_lora_weights``: where it changed the layer's own weight, ``base`` has the one from before.

    Raises ValueError where no such difference can be taken.
    """
    weight = getattr(layer.get_base_layer(), "weight", None)
    changed_by = None if start in BASE_KEPT else start
    kind = f"{name}, a {type(layer).__module__.removeprefix('peft.tuners.')}.{type(layer).__name__}"
    if weight is None or len(shape_of(weight)) != 2 or not weight.is_floating_point():
        what = "no weight" if weight is None else f"a {weight.dtype} weight of shape {shape_of(weight)}"
        raise ValueError(
            f"{kind} over {what}: an update is read from floating-point matrices only (plain LoRA from its "
            "factors over quantised ones too). Leave it out with targets, or load the base unquantised"
        )
    if changed_by and base is None:
        raise ValueError(
            f"{kind}: its start ({changed_by!r}) changed the base weight, so the update needs the original: "
            "pass base, the model or weights from before the adapter was added"
        )
    parameters = tuple(layer.parameters())
    if changed_by:
        key = base.key(name)
        check_pair(name, shape_of(weight), base.facts(key).shape)
        parameters += base.parameters(key)

    def read(whole):
        before = resolved(base.weight(name), whole) if changed_by else None
        return _merged_minus_base(name, kind, layer, before, whole)

    return PendingUpdate(name, _shape(layer), None, read, parameters)


@torch.no_grad()
def _merged_minus_base(name, kind, layer, before, whole):
    """ΔW as a dense matrix: a copy of the layer, in float32 or better, merged, minus ``before`` (None: its own base).

    The copy is merged before rounding to the layer's dtype, which would swamp an update in bfloat16.
    """
    memo = {id(p): nn.Parameter(whole[id(p)].clone()) for p in layer.parameters() if id(p) in whole}
    merged = copy.deepcopy(layer, memo)
    merged = merged.to(torch.promote_types(merged.get_base_layer().weight.dtype, torch.float32))
    if merged.merged:
        merged.unmerge()
    if before is None:
        before = merged.get_base_layer().weight.detach().clone()
    try:
        merged.merge(adapter_names=list(layer.active_adapters))
    except (NotImplementedError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{kind}: its update is not one matrix, it cannot be merged ({error})") from error
    turned = type(layer.get_base_layer()).__name__ == "Conv1D"
    return difference(name, merged.get_base_layer().weight.detach(), before, turned)
