"""Adapter folders of methods whose factors are not the update (DoRA, LoHa, OFT, PiSSA, …): merged weight − base weight.

PEFT merges, one module at a time: a model of a single layer is made of the base weight, so neither the architecture
nor the other weights are needed.
"""

import copy
import warnings

import torch
from torch import nn

from artent.reading.adapter_files import read_config
from artent.reading.live_adapters import adapted_layers, merged_update
from artent.reading.names import module_name, plain, saved_name
from artent.reading.pending import PendingUpdate
from artent.reading.safetensors_files import SafetensorsFiles
from artent.reading.saved_whole import saved_whole
from artent.reading.targets import few, select
from artent.reading.weights import Weights, resolved

_WRAPPER = "base_model.model."
# What would need the whole model, or ask for modules that are not there.
_NOT_HERE = ("modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules", "trainable_token_indices")


def merged_folder_updates(path, base: Weights, targets, device="cpu") -> list[PendingUpdate]:
    """The pending updates of an adapter folder, dense, as PEFT merges them into the weights of ``base``.

    A start that changed the base weight is taken again, as PEFT does when it loads such an adapter: where that draws
    random numbers (``pissa_niter_…``) the update is known to their noise only.

    Raises:
        ValueError: ``base`` lacks a module of the adapter; when read: PEFT cannot load or merge the adapter onto it.
        ImportError: without PEFT.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("this adapter is merged by PEFT: `pip install artent[peft]`") from error
    saved = SafetensorsFiles(path, "model_or_path", device)
    config = peft.PeftConfig.from_pretrained(str(path))
    for option in _NOT_HERE:
        if hasattr(config, option):
            setattr(config, option, None)
    modules, whole = _modules(saved, base)
    pending = []
    for name in select([*modules, *whole], targets, "adapted modules"):
        key = base.key(name)
        shape, dtype, kind = base.facts(key)
        if name in whole:
            if len(shape) == 2:
                pending.append(saved_whole(saved, whole[name], name, base, read_config(path)))
            continue
        if len(shape) != 2 or dtype is None:
            raise ValueError(
                f"{name}: a {config.peft_type.value} adapter over a {kind} weight of shape {shape}: an update is read "
                "from floating-point matrices only. Leave it out with targets, or load the base unquantised"
            )
        turned = key in base.turned or bool(getattr(config, "fan_in_fan_out", False))
        reader = _Merged(path, name, base, config, saved, modules[name])
        pending.append(PendingUpdate(name, shape[::-1] if turned else shape, None, reader, base.parameters(key)))
    return pending


class _Merged:
    """Reads the update of one module."""

    def __init__(self, path, name, base, config, saved, keys):
        self.path, self.name, self.base, self.config, self.saved, self.keys = path, name, base, config, saved, keys

    def __call__(self, whole):
        weight = resolved(self.base.weight(self.name), whole)
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")  # of a model without configuration, and of what training would need
                model = self._adapted(weight)
        except Exception as error:  # whatever PEFT raises for what it cannot load
            raise ValueError(
                f"{self.path}: {self.name}: PEFT cannot put this {self.config.peft_type.value} adapter onto base's "
                f"weight of shape {tuple(weight.shape)} ({error}). Likely cause: another base, or a start that needs "
                "data; load it onto its model with PEFT and pass the live model, with base"
            ) from error
        base = Weights({f"{self.name}.weight": weight}, ((f"{self.name}.weight",),))
        start = getattr(self.config, "init_lora_weights", True)
        return merged_update(self.name, adapted_layers(model)[self.name], start, base).read()

    def _adapted(self, weight):
        """A model whose only layer is this one, with the adapter's tensors."""
        import peft

        config = copy.copy(self.config)
        config.target_modules = [self.name]
        model = _single(self.name, weight.detach().clone(), self._layer())
        peft.inject_adapter_in_model(config, model)
        for key, parameter in model.named_parameters():  # PEFT's own loading keeps the float32 of a file, too
            if ".base_layer." not in key and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        tensors = {key.removeprefix(_WRAPPER): self.saved[key] for key in self.keys}
        found = peft.set_peft_model_state_dict(model, tensors)
        if found.unexpected_keys:
            raise ValueError(f"{found.unexpected_keys[0]} has no place in it")
        return model

    def _layer(self):
        if any(".lora_embedding_" in key for key in self.keys):
            return lambda weight: nn.Embedding.from_pretrained(weight)
        if not getattr(self.config, "fan_in_fan_out", False):
            return _linear
        from transformers.pytorch_utils import Conv1D

        def conv(weight):  # in × out
            layer = Conv1D(weight.shape[1], weight.shape[0]).to(weight.dtype)
            layer.weight = nn.Parameter(weight)
            return layer

        return conv


def _linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer


def _single(name, weight, make):
    model = parent = nn.Module()
    *path, last = name.split(".")
    for part in path:
        parent.add_module(part, nn.Module())
        parent = parent.get_submodule(part)
    parent.add_module(last, make(weight))
    return model


def _modules(saved, base):
    """({module of base: its adapter's keys}, {module saved whole: its key}), by the longest name of base that fits."""
    known = {module_name(key) for key in (*base.tensors, *base.tied) if key.endswith(".weight")}
    modules, whole, lost = {}, {}, []
    for key in saved:
        name = plain(key)
        parts = name.split(".")
        owner = next((".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1) if ".".join(parts[:k]) in known), None)
        if owner is None:
            lost.append(key)
        elif saved_name(key) == owner:
            whole[owner] = key
        elif ".base_layer." not in key:
            modules.setdefault(owner, []).append(key)
    if lost or not modules:
        raise ValueError(
            f"base has no module for {few(lost or saved)} of the adapter; it holds {few(base.tensors)}. Likely cause: "
            "another architecture, a model without its head (another prefix), or a method whose modules share tensors "
            "(VeRA): load it onto its model with PEFT and pass the live model"
        )
    return modules, whole
