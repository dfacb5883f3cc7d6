"""The weights that a run of full fine-tuning started from, kept in memory."""

from collections.abc import Mapping

import torch
from torch import nn

from artent.distributed import Processes, whole
from artent.reading.differences import differences
from artent.reading.safetensors_files import Facts
from artent.reading.weights import Weights, read_weights, resolved


class Kept(Mapping):
    """Tensors by name, of which this process holds its share; shapes and dtypes are known of all."""

    def __init__(self, facts: Mapping[str, Facts]):
        self._facts, self.own = dict(facts), {}

    def facts(self, key: str) -> Facts:
        """Shape and dtype of a tensor, wherever it lies."""
        return self._facts[key]

    def __getitem__(self, key):
        if key in self._facts and key not in self.own:
            raise RuntimeError(f"{key}: its first value is kept by another process, which has to read its update")
        return self.own[key]

    def __contains__(self, key):  # Mapping's own would ask for the tensor
        return key in self._facts

    def __iter__(self):
        return iter(self._facts)

    def __len__(self):
        return len(self._facts)


@torch.no_grad()
def snapshot(model: nn.Module, targets, processes: Processes | None = None) -> Weights:
    """A copy of the matrices that ``targets`` means, in their own dtype, on the CPU: a base for later.

    With several ``processes`` each keeps those that it will measure, so that a model larger than one machine's memory
    has a base; a sharded matrix is gathered when its turn comes. Every process must call it.
    """
    weights = read_weights(model, "model")
    pending = differences(weights, weights, targets)
    keys = [update.key for update in pending]
    kept = Kept({key: weights.facts(key) for key in keys})
    several = processes is not None and processes.size > 1
    owners = processes.owners(pending) if several else [None] * len(pending)
    for key, update, owner in zip(keys, pending, owners, strict=True):
        with whole(update.parameters) as gathered:
            if not several or owner == processes.rank:
                kept.own[key] = resolved(weights.tensors[key], gathered).to("cpu", copy=True).contiguous()
    return Weights(kept, tuple((key,) for key in keys), turned=weights.turned.intersection(keys))
