"""Weights by name, wherever they lie: a live module, a state dict, safetensors files; and which of them
changed.

A matrix is read as ``nn.Linear`` stores it, out × in: the rows of an update are the layer's outputs. GPT-2's
``Conv1D`` stores in × out and is turned round where a live module tells (a state dict cannot). Embeddings are
read as stored, tokens × features.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from artent.distributed import is_sharded
from artent.pending import PendingUpdate, shape_of
from artent.safetensors_files import Facts, SafetensorsFiles


@dataclass(frozen=True)
class Weights:
    """Tensors by name.

    Attributes:
        tensors: live ones, or safetensors that are read when asked for.
        groups: the names of each tensor (tied ones share).
        turned: names of those stored in × out.
        live: whether they are a module's parameters, which may be sharded.
    """

    tensors: Mapping
    groups: tuple[tuple[str, ...], ...]
    turned: frozenset[str] = frozenset()
    live: bool = False

    def facts(self, key: str) -> Facts:
        """Shape and dtype of a tensor, which is not read for it."""
        if hasattr(self.tensors, "facts"):
            return self.tensors.facts(key)
        tensor = self.tensors[key]
        return Facts(shape_of(tensor), tensor.dtype if tensor.is_floating_point() else None, str(tensor.dtype))

    def key(self, module: str) -> str:
        """The key of the weight of the module of that name.

        Raises:
            ValueError: there is none.
        """
        if f"{module}.weight" not in self.tensors:
            raise ValueError(
                f"base has no weight {module + '.weight'!r}; it holds {few(self.tensors)}. Likely cause: "
                "base is the model that was adapted in place (pass its state dict from before), has another prefix, or "
                "ties this weight to another, under whose name alone it is saved (pass the model itself)"
            )
        return f"{module}.weight"

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
        return Weights(files, tuple((name,) for name in files))
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
    return model


def select(names, targets, whose):
    """The names that ``targets`` means: None is all; a string is a regular expression for the whole name; a
    list holds names or their endings (whole parts between dots), as PEFT's ``target_modules`` does.

    Raises:
        ValueError: a target that matches nothing, an empty list, or a string that is no regular expression.
        TypeError: ``targets`` is something else.
    """
    names = list(names)
    if targets is None:
        return names
    if isinstance(targets, str):
        try:
            chosen = [name for name in names if re.fullmatch(targets, name)]
        except re.error as error:
            raise ValueError(f"targets={targets!r} is not a regular expression: {error}") from None
        if not chosen:
            raise ValueError(
                f"targets={targets!r} matches none of the {len(names)} {whose} ({few(names)}). A string is "
                f"a regular expression for the whole name; for an ending pass a list, [{targets!r}]"
            )
        return chosen
    if not isinstance(targets, list | tuple | set | frozenset) or not all(isinstance(t, str) for t in targets):
        raise TypeError(f"targets must be None, a regular expression or a list of name endings, not {targets!r}")
    if not targets:
        raise ValueError("targets is empty: pass None for every weight, or name some")
    found = {target: [n for n in names if f".{n}".endswith(f".{target}")] for target in targets}
    if missing := sorted(target for target in targets if not found[target]):
        raise ValueError(
            f"targets {missing} match none of the {len(names)} {whose} ({few(names)}). Likely cause: a "
            "typing error, or another model family's names"
        )
    chosen = set().union(*found.values())
    return [name for name in names if name in chosen]


def matrices(weights: Weights, targets) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (name, the keys of its tensor, the matching one first) for each floating-point matrix ``targets`` means."""
    chosen = set(select((module_name(key) for group in weights.groups for key in group), targets, "weights"))
    found = False
    for group in weights.groups:
        key = next((key for key in group if module_name(key) in chosen), None)
        if key is None:
            continue
        shape, dtype, kind = weights.facts(key)
        if len(shape) == 2 and dtype is not None and min(shape):
            found = True
            yield module_name(key), (key, *group)
        elif targets is not None and len(shape) > 1:
            raise ValueError(
                f"targets means {key!r}, a {kind} tensor of shape {shape}; an update "
                "is read from floating-point matrices only. Likely cause: a quantised, convolution or "
                "stacked-expert weight, or one that is sharded away"
            )
    if not found:
        raise ValueError(
            f"no 2-d floating-point weight among {few(weights.tensors) or 'no tensors at all'}. Likely "
            "cause: targets that mean biases or norms only, or a model whose weights are sharded away or "
            "quantised"
        )


def differences(tuned: Weights, base: Weights, targets) -> list[PendingUpdate]:
    """tuned − base, pending, for each matrix of ``tuned`` that ``targets`` means."""
    return [_difference(tuned, base, name, keys) for name, keys in matrices(tuned, targets)]


def _difference(tuned: Weights, base: Weights, name: str, keys: tuple[str, ...]) -> PendingUpdate:
    key = keys[0]
    partner = next((key for key in keys if key in base.tensors), None)
    if partner is None:
        lost = [group[0] for group in tuned.groups if not any(key in base.tensors for key in group)]
        raise ValueError(
            f"base has no weight {key!r} ({len(lost)} names of the tuned model are not in it: "
            f"{few(lost)}; it holds {few(base.tensors)}). Likely cause: another architecture, a model "
            "without its head (another prefix), or a wrapped or adapted model. Leave weights out with "
            "targets"
        )
    after, before = tuned.facts(key), base.facts(partner)
    check_pair(name, after.shape, before.shape)
    if before.dtype is None:
        raise ValueError(
            f"{name}: the weight is {before.kind} in base and {after.kind} in the tuned model, and a difference needs "
            "floating-point numbers on both sides. Likely cause: a quantised base; load it unquantised"
        )
    turned = key in tuned.turned or partner in base.turned

    def read(whole):
        return difference(name, resolved(tuned.tensors[key], whole), resolved(base.tensors[partner], whole), turned)

    shape = after.shape[::-1] if turned else after.shape
    return PendingUpdate(name, shape, None, read, tuned.parameters(key) + base.parameters(partner), key)


def check_pair(name: str, after: tuple[int, ...], before: tuple[int, ...]) -> None:
    """Refuse a weight that has another shape in base."""
    if after != before:
        raise ValueError(
            f"{name}: shape {tuple(after)} in the tuned model, {tuple(before)} in base. Likely "
            "cause: resized embeddings, or another size of the model. Leave it out with targets"
        )


def resolved(tensor: Tensor, whole: Mapping[int, Tensor]) -> Tensor:
    """The whole tensor, where ``tensor`` is a part of it that was gathered."""
    return whole.get(id(tensor), tensor)


def difference(name: str, after: Tensor, before: Tensor, turned: bool = False) -> Tensor | None:
    """after − before in float32 or better, on the device of ``after``; None where they are equal.

    ``turned`` says that both are stored in × out; the update comes back out × in. Differentiable.
    """
    for tensor in (after, before):
        if tensor.is_meta or is_sharded(tensor):
            raise ValueError(
                f"{name}: the weight is {'on the meta device' if tensor.is_meta else 'sharded'}; "
                "load or gather the whole tensor first"
            )
    check_pair(name, after.shape, before.shape)
    dtype = torch.promote_types(torch.promote_types(after.dtype, before.dtype), torch.float32)
    delta = after.to(dtype) - before.to(after.device, dtype)
    if not delta.any():
        return None
    return delta.mT if turned else delta


def module_name(key):
    """A weight is called by its module; another parameter keeps its own name."""
    return key.removesuffix(".weight")


def _plain(name):
    return name.replace("_orig_mod.", "")


def _tied(tensors):
    """Names grouped by the memory they name, so that a shared weight is one weight."""
    groups = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):  # all processes must group alike, and some may hold nothing of it
            memory = id(tensor)
        elif not tensor.numel() or tensor.is_meta:  # nothing there to share
            memory = name
        else:
            memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        groups.setdefault(memory, []).append(name)
    return tuple(map(tuple, groups.values()))


def few(names):
    names = list(names)
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")
