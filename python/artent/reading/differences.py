"""Updates as differences of two sets of weights: which weights pair up, and what is wrong where they do not."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from artent.distributed import is_sharded
from artent.reading.names import module_name
from artent.reading.pending import PendingUpdate
from artent.reading.targets import few, meant, select
from artent.reading.weights import Weights, resolved

_QUANTISED = (
    "an update is read from floating-point matrices only. Likely cause: a quantised checkpoint (bitsandbytes, GPTQ, "
    "AWQ, FP8); load it dequantised, or leave it out with targets"
)


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
    """tuned − base, pending, for each matrix of ``tuned`` that ``targets`` means.

    Warns (UserWarning) of matrices that only one of the two holds as floating-point numbers.
    """
    pending = [_difference(tuned, base, name, keys) for name, keys in matrices(tuned, targets)]
    if targets is None and (odd := [group[0] for group in tuned.groups if _quantised(tuned, base, group)]):
        warnings.warn(
            f"{len(odd)} matrices are not floating point and have no update: {few(odd)} "
            f"({tuned.facts(odd[0]).kind}). Likely cause: a quantised checkpoint",
            stacklevel=2,
        )
    lost = [group[0] for group in base.groups if not any(key in tuned.tensors for key in group)]
    lost = [key for key in lost if len(base.facts(key).shape) == 2 and meant(module_name(key), targets)]
    if lost:
        warnings.warn(
            f"{len(lost)} weights of base are not in the tuned model and were left out: {few(lost)}. Likely cause: an "
            "incomplete checkpoint, or a base with more layers",
            stacklevel=2,
        )
    return pending


def _quantised(tuned, base, group):
    """Is it a matrix of other numbers? Refused where base has floating-point ones."""
    shape, dtype, kind = tuned.facts(group[0])
    if len(shape) != 2 or dtype is not None or not min(shape):
        return False
    partner = next((key for key in group if key in base.tensors), None)
    if partner is not None and base.facts(partner).dtype is not None:
        raise ValueError(f"{module_name(group[0])}: the weight is {kind} in the tuned model; {_QUANTISED}")
    return True


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
    if before.dtype is None:
        raise ValueError(f"{name}: the weight is {before.kind} in base; {_QUANTISED}")
    check_pair(name, after.shape, before.shape)
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
