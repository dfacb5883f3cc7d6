"""Weights by name, wherever they lie: a live module, a state dict, safetensors files; and which of them
changed.

A matrix is read as ``nn.Linear`` stores it, out × in: the rows of an update are the layer's outputs. GPT-2's
``Conv1D`` stores in × out and is turned round where a live module tells (a state dict cannot). Embeddings are
read as stored, tokens × features.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """Tensors by name; ``groups``: the names of each tensor (tied ones share), ``turned``: those stored in × out."""

    tensors: Mapping
    groups: tuple[tuple[str, ...], ...]
    turned: frozenset[str] = frozenset()

    def weight(self, module):
        """The weight of the module of that name.

        Raises:
            ValueError: there is none.
        """
        if f"{module}.weight" not in self.tensors:
            raise ValueError(
                f"base has no weight {module + '.weight'!r}; it holds {_few(self.tensors)}. Likely cause: "
                "base is the model that was adapted in place, or has another prefix; pass its state dict "
                "from before"
            )
        return self.tensors[f"{module}.weight"]


def read_weights(source, argument):
    """``Weights`` of a module (its parameters), a mapping of names to tensors, or safetensors on disk.

    ``argument`` is what the caller calls ``source``, for its messages. Nothing is copied, and files are read
    a tensor at a time.
    """
    if isinstance(source, nn.Module):
        source = unwrap(source)
        tensors = {_plain(n): p.detach() for n, p in source.named_parameters(remove_duplicate=False)}
        modules = source.named_modules(remove_duplicate=False)
        turned = (f"{_plain(n)}.weight" for n, m in modules if type(m).__name__ == "Conv1D")
        return Weights(tensors, _tied(tensors), frozenset(turned))
    if isinstance(source, Mapping):
        for name, tensor in source.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise TypeError(
                    f"{argument} must map names to tensors, as state_dict() does; {name!r} holds a "
                    f"{type(tensor).__name__}. Likely cause: a checkpoint with the state dict one level down"
                )
        return Weights(source, _tied(source))
    if isinstance(source, str | Path):
        files = SafetensorsFiles(source, argument)
        return Weights(files, tuple((name,) for name in files))
    raise TypeError(f"{argument} must be a module, a state dict or a path to safetensors, not {type(source).__name__}")


def unwrap(model):
    """The module that was written, inside what torch.compile or DistributedDataParallel put around it."""
    while hasattr(model, "_orig_mod") or isinstance(model, nn.parallel.DistributedDataParallel):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


class SafetensorsFiles(Mapping):
    """The tensors of one ``.safetensors`` file or of all in a folder, by name, each read when asked for."""

    def __init__(self, path, argument):
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError("safetensors files need `pip install artent[transformers]`") from error
        path = Path(path)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files or not all(file.is_file() and file.suffix == ".safetensors" for file in files):
            raise ValueError(
                f"{argument}={str(path)!r}: expected a .safetensors file, or a folder that holds some. "
                "Pickled checkpoints (.bin, .pt) are not opened and hub names are not fetched: load the "
                "model and pass it"
            )
        self._open = safe_open
        self._file_of = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                self._file_of |= dict.fromkeys(opened.keys(), file)

    def __getitem__(self, name):
        with self._open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self):
        return iter(self._file_of)

    def __len__(self):
        return len(self._file_of)


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
                f"targets={targets!r} matches none of the {len(names)} {whose} ({_few(names)}). A string is "
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
            f"targets {missing} match none of the {len(names)} {whose} ({_few(names)}). Likely cause: a "
            "typing error, or another model family's names"
        )
    chosen = set().union(*found.values())
    return [name for name in names if name in chosen]


def matrices(weights, targets):
    """Yield (name, tensor, its keys, the matching one first) for each floating-point matrix ``targets`` means."""
    chosen = set(select((module_name(key) for group in weights.groups for key in group), targets, "weights"))
    found = False
    for group in weights.groups:
        key = next((key for key in group if module_name(key) in chosen), None)
        if key is None:
            continue
        tensor = weights.tensors[key]
        if tensor.ndim == 2 and tensor.is_floating_point():
            found = True
            yield module_name(key), tensor, (key, *group)
        elif targets is not None and tensor.ndim > 1:
            raise ValueError(
                f"targets means {key!r}, a {tensor.dtype} tensor of shape {tuple(tensor.shape)}; an update "
                "is read from floating-point matrices only. Likely cause: a quantised, convolution or "
                "stacked-expert weight"
            )
    if not found:
        raise ValueError(
            f"no 2-d floating-point weight among {_few(weights.tensors) or 'no tensors at all'}. Likely "
            "cause: targets that mean biases or norms only, or a model whose weights are sharded away or "
            "quantised"
        )


def differences(tuned, base, targets):
    """Yield (name, ΔW or None where nothing changed) for each matrix of ``tuned`` that ``targets`` means."""
    for name, tensor, keys in matrices(tuned, targets):
        partner = next((key for key in keys if key in base.tensors), None)
        if partner is None:
            lost = [group[0] for group in tuned.groups if not any(key in base.tensors for key in group)]
            raise ValueError(
                f"base has no weight {keys[0]!r} ({len(lost)} names of the tuned model are not in it: "
                f"{_few(lost)}; it holds {_few(base.tensors)}). Likely cause: another architecture, a model "
                "without its head (another prefix), or a wrapped or adapted model. Leave weights out with "
                "targets"
            )
        turned = keys[0] in tuned.turned or partner in base.turned
        yield name, difference(name, tensor, base.tensors[partner], turned)


def difference(name, after, before, turned=False):
    """after − before in float32 or better, on the device of ``after``; None where they are equal.

    ``turned`` says that both are stored in × out; the update comes back out × in.
    """
    for tensor in (after, before):
        if tensor.is_meta or hasattr(tensor, "full_tensor"):
            raise ValueError(
                f"{name}: the weight is {'on the meta device' if tensor.is_meta else 'sharded (DTensor)'}; "
                "load or gather the whole tensor first"
            )
    if after.shape != before.shape:
        raise ValueError(
            f"{name}: shape {tuple(after.shape)} in the tuned model, {tuple(before.shape)} in base. Likely "
            "cause: resized embeddings, or another size of the model. Leave it out with targets"
        )
    dtype = torch.promote_types(torch.promote_types(after.dtype, before.dtype), torch.float32)
    delta = after.to(dtype) - before.to(after.device, dtype)
    if not delta.any():
        return None
    return delta.mT if turned else delta


def snapshot(model, targets):
    """A copy of the matrices that ``targets`` means, in their own dtype, on the CPU: a base for later."""
    weights = read_weights(model, "model")
    return {keys[0]: tensor.to("cpu", copy=True).contiguous() for _, tensor, keys in matrices(weights, targets)}


def module_name(key):
    """A weight is called by its module; another parameter keeps its own name."""
    return key.removesuffix(".weight")


def _plain(name):
    return name.replace("_orig_mod.", "")


def _tied(tensors):
    """Names grouped by the memory they name, so that a shared weight is one weight."""
    groups = {}
    for name, tensor in tensors.items():
        own = not tensor.numel() or tensor.is_meta  # nothing there to share
        memory = name if own else (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        groups.setdefault(memory, []).append(name)
    return tuple(map(tuple, groups.values()))


def _few(names):
    names = list(names)
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")
