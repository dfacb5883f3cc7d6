"""What is asked of ``attention_entanglement``, checked before a model runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from artent.attention.spectrum import MAX_TOKENS, VARIANTS

METHODS = ("auto", "exact", "streamed")

# "auto" is exact up to here. The estimate is cheaper from some 600 tokens on (D = 64, on a CPU: twice at 768, four
# times at 1024, ten at 2048); below a thousand the exact value costs little, and nothing is left to chance.
EXACT_TOKENS = 1024


@dataclass(frozen=True)
class Plan:
    """How S_ext is measured, and where."""

    lengths: tuple  # tokens of each prefix
    methods: tuple  # "exact" or "streamed", one a length
    layers: tuple | None  # None: all
    variant: str
    rank: int
    steps: int
    seed: int

    @property
    def first(self):
        """The first real token that is kept."""
        return 1 if self.variant == "sink_removed" else 0


def make_plan(tokens, lengths, layers, variant, method, rank, steps, seed):
    """The ``Plan`` for texts of so many real ``tokens``; arguments and errors of ``attention_entanglement``."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; expected one of {', '.join(map(repr, VARIANTS))}")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, METHODS))}")
    lengths = _check_lengths(lengths, tokens, smallest=2 if variant == "sink_removed" else 1)
    if layers is not None:
        layers = tuple(layers) if isinstance(layers, Iterable) else (layers,)
    for name, value, least in (("rank", rank, 1), ("steps", steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer, {least} or more")
    methods = tuple(_method(length, method) for length in lengths)
    return Plan(lengths, methods, layers, variant, rank, steps, seed)


def _method(length, method):
    if method == "exact" and length > MAX_TOKENS:
        raise ValueError(
            f"lengths: {length} tokens; an exact spectral entropy takes up to {MAX_TOKENS} (a T×T eigenvalue problem a "
            "head). method='streamed' takes any number, and states its error"
        )
    return "exact" if method == "exact" or (method == "auto" and length <= EXACT_TOKENS) else "streamed"


def _check_lengths(lengths, tokens, smallest):
    if lengths is None:
        lengths = [min(tokens)]
        while lengths[0] >= 32:
            lengths.insert(0, lengths[0] // 2)
    lengths = tuple(lengths) if isinstance(lengths, Iterable) else (lengths,)
    if not lengths or any(isinstance(n, bool) or not isinstance(n, int) for n in lengths):
        raise TypeError(f"lengths is {lengths!r}; expected numbers of tokens, e.g. (64, 128, 256)")
    if min(lengths) < smallest or max(lengths) > max(tokens):
        raise ValueError(
            f"lengths is {lengths}; expected {smallest} … {max(tokens)}, the real tokens of the longest text"
        )
    return lengths


def check_inputs(inputs, device):
    """Keyword arguments of the model, and the bool mask (batch, T) of real tokens."""
    if isinstance(inputs, Mapping) and "input_ids" in inputs:
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
    elif isinstance(inputs, torch.Tensor):
        inputs = {"input_ids": inputs}
    else:
        raise TypeError(f"inputs is {type(inputs).__name__}; expected token ids (batch, T) or a mapping with input_ids")
    ids = inputs["input_ids"]
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.dim() != 2:
        what = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise TypeError(
            f"input_ids is {what}; expected an integer tensor (batch, T): tokenize with return_tensors='pt'"
        )
    if 0 in ids.shape:
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}: no text to measure")
    mask = inputs.get("attention_mask")
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"attention_mask is {type(mask).__name__}; expected a tensor of the shape of input_ids")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; expected that of input_ids, {tuple(ids.shape)}"
        )
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if not real.any(-1).all():
        empty = (~real.any(-1)).nonzero()[:, 0].tolist()
        raise ValueError(f"attention_mask leaves no real token in text(s) {empty}: drop these rows")
    move = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
    return move, real
