"""External entanglement of a model on texts: one forward pass, T×T arrays of a few heads at a time."""

import inspect
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch

from artent.attention.spectrum import VARIANTS, check_tokens, prefix_entropies
from artent_ext import attention_stats, reference

# Of a group of heads some six T×T float64 arrays live at once: logits, mask, A, A Aᵀ, the eigensolver's copy.
_GROUP_BYTES = 256 << 20
_ARRAYS = 6
_NO_INTERFACE = (
    "model: no layer called transformers' attention interface; is it a transformers ≥ 5.0 model that supports "
    "attn_implementation?"
)


@dataclass(frozen=True)
class AttentionEntanglement:
    """What ``attention_entanglement`` measured; all tensors on the CPU in float64, entropies in nats."""

    s_ext: torch.Tensor  # (lengths, layers, batch, heads); NaN where a text is shorter than the length
    lse: torch.Tensor  # (layers, batch, heads): means over the rows of real tokens
    entropy: torch.Tensor  # (layers, batch, heads): mean row Shannon entropy
    purity: torch.Tensor  # (layers, batch, heads): mean row Σp²
    lengths: tuple  # tokens of each prefix
    layers: tuple  # layer indices
    tokens: tuple  # real tokens of each text
    variant: str

    def to_dict(self):
        """Plain lists and strings for JSON; a value that wasn't measured is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items()}


def attention_entanglement(model, inputs, *, lengths=None, layers=None, variant="raw"):
    """S_ext of every head on prefixes of texts: entropy of attention at its row|column cut, in nats.

    model: a causal transformers model that uses the attention interface, as it is, under PEFT, or wrapped; it
    is run once without gradient in eval mode and left as it was. inputs: token ids (batch, T) or a mapping
    with ``input_ids`` and optionally ``attention_mask`` (batch, T) with 1 at real tokens; further entries
    reach the model. Rows and columns of padding are left out. lengths: numbers of real tokens, at most 4096
    each, or one; default: the shortest text, halved down to 16. A causal model's leading block *is* the prefix's
    attention, so one pass serves all lengths. layers: layer indices, default all. variant:

    - ``"raw"``: A itself.
    - ``"sink_removed"``: the softmax with the first real token hidden, without its row: what the other tokens
      make of each other. Renormalised, since otherwise the mass that each row spends on the sink would go on
      weighting the rows. A length T then is a (T−1)×(T−1) matrix.
    - ``"row_normalised"``: every row scaled to unit 2-norm, so that the few keys of early rows don't
      dominate.

    The row statistics are those of the whole text and of A itself in every variant. Source: ``docs/math.md``
    §4, §5. Raises TypeError or ValueError for inputs, lengths, layers or a variant that can't be used, for a
    model whose attention isn't causal or doesn't pass through transformers' attention interface, and for NaN
    in attention.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; expected one of {', '.join(map(repr, VARIANTS))}")
    inputs, real = _check_inputs(inputs, _device(model))
    tokens = tuple(int(n) for n in real.sum(-1))
    lengths = _check_lengths(lengths, tokens, smallest=2 if variant == "sink_removed" else 1)
    if layers is not None:
        layers = tuple(layers) if isinstance(layers, Iterable) else (layers,)
    probe = _Probe(real, lengths, layers, variant)
    with _as_probed(model):
        model(**inputs, **_extra(model, inputs), use_cache=False, attention_probe=probe)
    return probe.result(tokens)


class _Probe:
    """Called by the attention function in every layer; keeps numbers, no matrices."""

    def __init__(self, real, lengths, layers, variant):
        self.real, self.lengths, self.layers, self.variant = real, lengths, layers, variant
        self.measured, self.seen = {}, []

    def __call__(self, module, query, key, *, mask, ranges, is_causal, scale):
        layer = module.layer_idx
        self.seen.append(layer)
        if self.layers is not None and layer not in self.layers:
            return
        if not query.shape[2] == key.shape[2] == self.real.shape[1]:
            raise ValueError(
                f"layer {layer} attends from {query.shape[2]} to {key.shape[2]} tokens, inputs hold "
                f"{self.real.shape[1]}: virtual tokens (prompt or prefix tuning) are not supported"
            )
        dense = mask if ranges is None else None
        options = {"is_causal": is_causal, "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
        stats = attention_stats(query, key, attn_mask=dense, key_range=ranges, **options)
        counted = self.real[:, None].to(stats.lse.device) & (stats.lse > -torch.inf)  # a row without a key: no mean
        means = [_mean(value, counted).double().cpu() for value in stats]
        if is_causal:
            mask = torch.ones(query.shape[2:3] * 2, dtype=torch.bool, device=query.device).tril()[None, None]
        s_ext = [self._spectra(layer, text, query, key, mask, scale) for text in range(len(self.real))]
        self.measured[layer] = (torch.stack(s_ext, 1), *means)

    def _spectra(self, layer, text, query, key, mask, scale):
        """S_ext of one text, (lengths, heads)."""
        heads, group = query.shape[1], query.shape[1] // key.shape[1]
        s_ext = torch.full((len(self.lengths), heads), torch.nan, dtype=torch.float64)
        rows = self.real[text].nonzero()[:, 0].to(query.device)
        fitting = [i for i, length in enumerate(self.lengths) if length <= len(rows)]
        if not fitting:
            return s_ext
        first = 1 if self.variant == "sink_removed" else 0
        sizes = [self.lengths[i] - first for i in fitting]
        rows = rows[first : first + max(sizes)]
        chunk = max(1, _GROUP_BYTES // (_ARRAYS * 8 * len(rows) ** 2))
        for h in torch.arange(heads, device=query.device).split(chunk):
            q, k = query[text, h][:, rows].double(), key[text, h // group][:, rows].double()
            visible = None
            if mask is not None:
                visible = mask.expand(len(self.real), heads, -1, -1)[text, h][:, rows][..., rows]
            A = reference.attention_probabilities(q, k, attn_mask=visible, scale=scale)
            self._check_matrix(layer, A)
            values = prefix_entropies(A, sizes, row_normalised=self.variant == "row_normalised")
            s_ext[torch.tensor(fitting)[:, None], h.cpu()] = values.cpu()
        return s_ext

    def _check_matrix(self, layer, A):
        if not torch.isfinite(A).all():
            raise ValueError(f"attention of layer {layer} holds NaN: the model's queries or keys are not finite")
        if (A.triu(1) != 0).any():
            raise ValueError(
                f"layer {layer} attends to later tokens; the entanglement of prefixes needs a causal model"
            )
        if (A.sum(-1) == 0).any():
            raise ValueError(f"layer {layer} leaves a real token without a visible key: its row has no state")

    def result(self, tokens):
        layers = self.layers if self.layers is not None else tuple(sorted(self.measured))
        if not self.seen:
            raise ValueError(_NO_INTERFACE)
        missing = [layer for layer in layers if layer not in self.measured]
        if missing or not layers:
            raise ValueError(f"layers is {layers}; the model's attention layers are {sorted(set(self.seen))}")
        columns = zip(*(self.measured[layer] for layer in layers))
        s_ext, lse, entropy, purity = (torch.stack(column, dim) for column, dim in zip(columns, (1, 0, 0, 0)))
        return AttentionEntanglement(s_ext, lse, entropy, purity, self.lengths, layers, tokens, variant=self.variant)


@contextmanager
def _as_probed(model):
    """The model in eval mode with artent's attention, uncompiled and without gradient; afterwards as it
    was."""
    from artent.attention.implementation import NAME

    modules = list(model.modules())
    training = [(module, module.training) for module in modules]
    configs = {id(config): config for config in (getattr(module, "config", None) for module in modules)}
    chosen = [(c, c._attn_implementation) for c in configs.values() if hasattr(c, "_attn_implementation_internal")]
    if not chosen:
        raise ValueError(_NO_INTERFACE)
    try:
        model.eval()
        for config, _ in chosen:
            config._attn_implementation_internal = NAME  # the setter would also reach configs that no module holds
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for config, implementation in chosen:
            config._attn_implementation_internal = implementation
        for module, mode in training:
            module.training = mode


def _check_inputs(inputs, device):
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
    check_tokens("lengths", max(lengths))
    return lengths


def _device(model):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a transformers model, as it is or under PEFT")
    return next(model.parameters()).device


def _extra(model, inputs):
    """Positions that start at the first real token, as in generate; logits of one position, nobody looks at them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted, extra = inspect.signature(inner.forward).parameters, {}
    if "position_ids" in accepted and "position_ids" not in inputs and inputs.get("attention_mask") is not None:
        extra["position_ids"] = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        extra["logits_to_keep"] = 1
    return extra


def _mean(value, counted):
    return value.where(counted, 0.0).sum(-1) / counted.sum(-1)


def _plain(value):
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if value != value else value  # NaN is no JSON
