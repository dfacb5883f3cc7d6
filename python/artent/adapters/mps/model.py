"""``MPSModel``: puts MPS adapters beside the linear layers that a configuration targets."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

from peft.tuners.tuners_utils import BaseTuner, onload_layer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from artent.adapters.mps.layer import MPSLinear
from artent.adapters.mps.peft_shim import PREFIX

__all__ = ["MPSModel"]


class MPSModel(BaseTuner):
    """What ``peft.get_peft_model(model, MPSConfig(…))`` wraps a model in.

    Raises:
        TypeError: a targeted module is neither ``nn.Linear`` nor ``Conv1D``.
        ValueError: sites that do not fit a targeted module.
    """

    prefix = PREFIX
    tuner_layer_cls = MPSLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **_):
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern, current_key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, current_key), config.lora_alpha)
        if isinstance(target, MPSLinear):
            target.update_layer(adapter_name, config, r, alpha, current_key)
            return
        base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
        if isinstance(base, NonDynamicallyQuantizableLinear):
            raise TypeError(
                f"target_modules: {current_key} belongs to an nn.MultiheadAttention, which reads its weight without "
                "calling it, so an adapter there would have no effect. Leave it out"
            )
        if not isinstance(base, nn.Linear | Conv1D):
            raise TypeError(
                f"target_modules: {current_key} is a {type(base).__name__}, and MPS adapters go beside torch.nn.Linear "
                "and transformers' Conv1D only. Name the linear layers, or use target_modules='all-linear'"
            )
        layer = MPSLinear(target, adapter_name, config, r, alpha, current_key)
        if adapter_name not in self.active_adapters:  # a further adapter does not train until it is switched to
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        """As PEFT's, and all or nothing: where one module takes no adapter, those before it are as they were."""
        tuned = {name: set(layer.artent_mps_A) for name, layer in _layers(model)}
        trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            for name, layer in _layers(model):
                if name not in tuned:
                    parent, _, child = name.rpartition(".")
                    setattr(model.get_submodule(parent), child, layer.base_layer)
                elif adapter_name in set(layer.artent_mps_A) - tuned[name]:
                    layer.delete_adapter(adapter_name)
            for parameter, flag in trains:
                parameter.requires_grad = flag
            raise

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """As PEFT's, and all or nothing: where one layer cannot be merged, none is."""
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """As PEFT's, and all or nothing: where one layer cannot be merged, the model stays as it is."""
        self._check_merge(adapter_names, safe_merge)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def _check_merge(self, adapter_names, safe_merge):
        for _, layer in _layers(self.model):
            with warnings.catch_warnings(), onload_layer(layer):
                warnings.simplefilter("ignore")  # PEFT's own, which come again
                adapters = layer.to_merge(adapter_names)
                if adapters and safe_merge:
                    layer.merged_weight(adapters, safe_merge)

    def _enable_peft_forward_hooks(self, *_, adapter_names=None, **__):
        """PEFT asks before every forward pass. A method without this hook would drop ``adapter_names`` in silence."""
        if adapter_names is not None:
            raise ValueError(
                "adapter_names: MPS adapters cannot be chosen sample by sample. Call set_adapter and run the samples "
                "of each adapter together"
            )
        return nullcontext()


def _layers(model: nn.Module) -> list[tuple[str, MPSLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, MPSLinear)]
