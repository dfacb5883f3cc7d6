"""What a method trains of a model, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from artent.reading.targets import select
from artent.study.config import Method
from artent.study.estimate.architecture import adapted, linear_layers

__all__ = ["Trained", "count"]


@dataclass(frozen=True, eq=False)
class Trained:
    """Of one method: ``parameters`` and ``trainable`` numbers; bytes of all ``weights``, of the ``gradients`` (the
    trained weights' own size), of what a checkpoint has ``saved`` beside the optimizer, and of the
    ``target_weights``; the ``shapes`` (outputs, inputs) of the targets; ``model`` on the meta device."""

    method: Method
    parameters: int
    trainable: int
    weights: int
    gradients: int
    saved: int
    target_weights: int
    shapes: tuple[tuple[int, int], ...]
    model: object


def count(architecture, method, targets, dtype):
    """The :class:`Trained` of ``method``. Raises ValueError as ``adapted`` does."""
    plain = linear_layers(architecture.model(dtype))
    model = adapted(architecture, method, targets, dtype)
    shapes = tuple(plain[name] for name in select(plain, list(targets), "linear layers"))
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights, gradients = (sum(p.nbytes for p in of) for of in (parameters, trained))
    return Trained(
        method,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in trained),
        weights,
        gradients,
        weights if method.kind == "full-ft" else gradients,
        sum(m * n for m, n in shapes) * (2 if dtype == "bfloat16" else 4),
        shapes,
        model,
    )
