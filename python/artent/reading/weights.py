"""Weights by name, wherever they lie: a live module, a state dict, safetensors files.

A matrix is read as ``nn.Linear`` stores it, out × in: the rows of an update are the layer's outputs. GPT-2's
``Conv1D`` stores in × out and is turned round where a live module tells (a state dict cannot). Embeddings are
read as stored, tokens × features.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from artent.distributed import at_rest, is_sharded
from artent.reading.pending import shape_of
from artent.reading.safetensors_files import FLOATS, Facts, SafetensorsFiles
from artent.reading.targets import few

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


@dataclass(frozen=True)
class Weights:
    """Tensors by name.

    Attributes:
        tensors: live ones, or safetensors that are read when asked for.
        groups: the names of each tensor (tied ones share).
        turned: names of those stored in × out.
        live: whether they are a module's parameters, which may be sharded.
        tied: {key: the key under which alone that weight is saved}, where a folder's configuration says so.
    """

    tensors: Mapping
    groups: tuple[tuple[str, ...], ...]
    turned: frozenset[str] = frozenset()
    live: bool = False
    tied: Mapping[str, str] = field(default_factory=dict)

    def facts(self, key: str) -> Facts:
        """Shape and dtype of a tensor, which is not read for it."""
        if hasattr(self.tensors, "facts"):
            return self.tensors.facts(key)
        tensor = self.tensors[key]
        dense = tensor.layout == torch.strided
        kind = str(tensor.dtype if dense else tensor.layout).removeprefix("torch.")
        return Facts(shape_of(tensor), tensor.dtype if dense and tensor.dtype in FLOATS else None, kind)

    def key(self, module: str) -> str:
        """The key of the weight of the module of that name.

        Raises:
            ValueError: there is none.
        """
        key = f"{module}.weight"
        if key not in self.tensors and key not in self.tied:
            raise ValueError(
                f"base has no weight {key!r}; it holds {few(self.tensors)}. Likely cause: "
                "base is the model that was adapted in place (pass its state dict from before), has another prefix, or "
                "ties this weight to another, under whose name alone it is saved (pass the model itself)"
            )
        return self.tied.get(key, key)

    def has(self, module: str) -> bool:
        """Whether there is a weight of the module of that name."""
        return f"{module}.weight" in self.tensors or f"{module}.weight" in self.tied

    def weight(self, module: str) -> Tensor:
        """The weight of the module of that name. Raises ValueError where there is none."""
        return self.tensors[self.key(module)]

    def parameters(self, key: str) -> tuple[Tensor, ...]:
        """What has to be whole before the tensor can be read."""
        return (self.tensors[key],) if self.live else ()


def read_weights(source, argument: str, device="cpu") -> Weights:
    """``Weights`` of a module (its parameters), a mapping of names to tensors, or safetensors on disk.

    ``argument`` is what the caller calls ``source``, for its messages. Nothing is copied, and files are read
    a tensor at a time, to ``device``.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, nn.Module):
        source = unwrap(source)
        tensors = {_plain(n): p for n, p in source.named_parameters(remove_duplicate=False)}
        modules = source.named_modules(remove_duplicate=False)
        turned = (f"{_plain(n)}.weight" for n, m in modules if type(m).__name__ == "Conv1D")
        return Weights(tensors, _tied(tensors), frozenset(turned), live=True)
    if isinstance(source, Mapping):
        for name, tensor in source.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise TypeError(
                    f"{argument} must map names to tensors, as state_dict() does; {name!r} holds a "
                    f"{type(tensor).__name__}. Likely cause: a checkpoint with the state dict one level down"
                )
        return Weights(source, _tied(source), live=any(is_sharded(tensor) for tensor in source.values()))
    if isinstance(source, str | Path):
        files = SafetensorsFiles(source, argument, device)
        return Weights(files, tuple((name,) for name in files), tied=_tied_on_disk(files))
    raise TypeError(f"{argument} must be a module, a state dict or a path to safetensors, not {type(source).__name__}")


def unwrap(model: nn.Module) -> nn.Module:
    """The module that was written, inside what torch.compile, DistributedDataParallel or DeepSpeed put around it.

    Raises:
        ValueError: FSDP's first version, which leaves no parameter as it was written.
    """
    while hasattr(model, "_orig_mod") or type(model).__name__ in ("DistributedDataParallel", "DeepSpeedEngine"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "model: FullyShardedDataParallel (FSDP's first version) flattens the parameters, and no matrix is left to "
            "read. Use its second version: torch.distributed.fsdp.fully_shard, or fsdp_version: 2 in accelerate's "
            "configuration"
        )
    at_rest(model)
    return model


def resolved(tensor: Tensor, whole: Mapping[int, Tensor]) -> Tensor:
    """The whole tensor, where ``tensor`` is a part of it that was gathered."""
    return whole.get(id(tensor), tensor)


def _plain(name):
    return name.replace("_orig_mod.", "")


def _tied_on_disk(files):
    """The head of a model whose configuration ties it to the embedding, which alone is saved then."""
    config = files.path / "config.json"
    embeddings = [key for key in files if key.endswith(_EMBEDDINGS)]
    if _HEAD in files or len(embeddings) != 1 or not config.is_file():
        return {}
    try:
        tied = json.loads(config.read_text(encoding="utf-8")).get("tie_word_embeddings") is True
    except (ValueError, AttributeError):
        tied = False  # whatever it is, it is not asked for
    return {_HEAD: embeddings[0]} if tied else {}


def _tied(tensors):
    """Names grouped by the memory they name, so that a shared weight is one weight."""
    groups = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):  # all processes must group alike, and some may hold nothing of it
            memory = id(tensor)
        elif not tensor.numel() or tensor.is_meta or tensor.layout != torch.strided:  # nothing there to share
            memory = name
        else:
            memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        groups.setdefault(memory, []).append(name)
    return tuple(map(tuple, groups.values()))
