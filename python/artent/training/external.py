"""The external part of a measurement: attention on a fixed batch."""

import math
from dataclasses import replace

import torch

from artent.attention import attention_entanglement

# Of attention_entanglement, besides lengths.
OPTIONS = {"layers", "method", "rank", "seed", "steps", "variant"}
# Fields that have a dimension of layers, and which one it is.
_LAYER_DIM = {"s_ext": 1, "s_ext_stderr": 1, "s_ext_lower": 1, "s_ext_upper": 1, "lse": 0, "entropy": 0, "purity": 0}
# From so many tokens on the estimate is cheaper than the exact value (artent.attention.plan).
_STREAM_FROM = 600
_RANKS = (16, 8)  # below the default of 32; the standard error grows


class External:
    """``attention_entanglement`` of a model on ``probe``.

    Attributes:
        options: its further arguments.
        lowered: those that the budget set.
        seconds: the last measurement's.
    """

    def __init__(self, probe, lengths, options):
        if unknown := sorted(options.keys() - OPTIONS):
            raise ValueError(f"attention: {', '.join(unknown)} unknown; expected some of {', '.join(sorted(OPTIONS))}")
        self.probe, self.lengths, self.options = probe, lengths, dict(options)
        self.lowered, self.seconds = {}, 0.0
        self._layers = self._last = None  # which layers there are; (lengths, methods) of the last measurement

    def measure(self, model, processes):
        """(records, means) on the first process, ([], {}) on the others; every process calls it.

        All of them run the model, which is collective where it is sharded, and each measures its share of the layers:
        at first, while it is not known which there are, all of them.
        """
        options = {"lengths": self.lengths, **self.options, **self.lowered}
        if processes.size == 1:
            found = attention_entanglement(model, self.probe, **options)
        else:
            found = self._shared(model, processes, options)
        if found is None:
            return [], {}
        self._last = (found.lengths, found.methods)
        longest = found.lengths.index(max(found.lengths))
        told = {"lowered": self.lowered} if self.lowered else {}
        mean = found.s_ext[longest].nanmean().item()  # NaN: a text shorter than that
        return [{**found.to_dict(), **told}], {"s_ext": mean}

    def _shared(self, model, processes, options):
        """The whole result on the first process, None on the others."""
        own = None if self._layers is None else self._layers[processes.rank :: processes.size]
        if own is not None:
            options["layers"] = own or self._layers[-1:]  # with nothing to measure, the forward pass needs one still
        found = failed = None
        try:
            found = attention_entanglement(model, self.probe, **options)
        except Exception as error:
            failed = error
        processes.agree(failed)
        if self._layers is None:
            self._layers = found.layers
        elif parts := processes.collect(found if own else None):
            found = joined([part for part in parts if part is not None], self._layers)
        return found if processes.main else None

    @property
    def measured(self):
        """Whether there has been a measurement."""
        return self._last is not None or self._layers is not None

    def coarser(self):
        """What the next cheaper way sets, or None if there is none.

        The longest prefix alone, whose mean is what the log shows; the estimate in place of the exact value, where it
        is cheaper; a smaller rank of it. A method or rank that the user chose stays.
        """
        lengths, methods = self._last
        longest = max(lengths)
        if len(lengths) > 1:
            return {"lengths": (longest,)}
        if methods == ("exact",):
            chosen = self.options.get("method", "auto") != "auto"
            return None if chosen or longest < _STREAM_FROM else {"method": "streamed"}
        smaller = [rank for rank in _RANKS if rank < self.lowered.get("rank", math.inf)]
        return {"rank": smaller[0]} if smaller and "rank" not in self.options else None


def joined(parts, layers):
    """One result of those that processes have of layers of their own, in the order of ``layers``."""
    at = {layer: (part, place) for part in parts for place, layer in enumerate(part.layers)}

    def column(name, dim):
        return torch.stack([getattr(at[layer][0], name).select(dim, at[layer][1]) for layer in layers], dim)

    return replace(parts[0], layers=tuple(layers), **{name: column(name, dim) for name, dim in _LAYER_DIM.items()})
