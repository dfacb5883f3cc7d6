"""External entanglement of a model on texts: one forward pass, in which every layer is measured as it is computed."""

import inspect
from contextlib import contextmanager

import torch

from artent.attention.plan import check_inputs, make_plan
from artent.attention.probe import Probe
from artent.attention.result import AttentionEntanglement

_NO_INTERFACE = (
    "model: no layer called transformers' attention interface; is it a transformers ≥ 5.0 model that supports "
    "attn_implementation?"
)


def attention_entanglement(
    model, inputs, *, lengths=None, layers=None, variant="raw", method="auto", rank=32, steps=6, seed=0, progress=None
):
    """S_ext of every head on prefixes of texts: entropy of attention at its row|column cut, in nats.

    Args:
        model: a causal transformers model that uses the attention interface, as it is, under PEFT, or wrapped; it is
            run once without gradient in eval mode and left as it was.
        inputs: token ids (batch, T) or a mapping with ``input_ids`` and optionally ``attention_mask`` (batch, T) with
            1 at real tokens; further entries reach the model. Rows and columns of padding are left out.
        lengths: numbers of real tokens, or one; default: the shortest text, halved down to 16. A causal model's
            leading block *is* the prefix's attention, so one pass serves all lengths.
        layers: layer indices, default all.
        variant: ``"raw"``: A itself. ``"sink_removed"``: the softmax with the first real token hidden, without its
            row: what the other tokens make of each other; renormalised, since otherwise the mass that each row spends
            on the sink would go on weighting the rows; a length T then is a (T−1)×(T−1) matrix. ``"row_normalised"``:
            every row scaled to unit 2-norm, so that the few keys of early rows don't dominate.
        method: ``"exact"``, eigenvalues of each head's T×T density matrix in float64, up to 4096 tokens;
            ``"streamed"``, ``artent_ext.attention_spectral_entropy``, for any length, without a T×T matrix, with a
            standard error and bounds; ``"auto"``, exact up to 1024 tokens and streamed above. A head costs O(T³)
            exactly, and streamed about ten forward passes of its attention a length; heads are measured in groups of
            some 256 MiB.
        rank, steps, seed: of the streamed method. ``seed`` fixes the random signs; heads and layers have different
            ones.
        progress: called with the index of each layer as soon as it is measured.

    The row statistics are those of the whole text and of A itself in every variant. Source: ``docs/math.md`` §3, §4,
    §5.

    Raises:
        TypeError, ValueError: inputs, lengths, layers, a variant or a method that can't be used, a model whose
            attention isn't causal or doesn't pass through transformers' attention interface, NaN in attention.
    """
    inputs, real = check_inputs(inputs, _device(model))
    tokens = tuple(int(n) for n in real.sum(-1))
    plan = make_plan(tokens, lengths, layers, variant, method, rank, steps, seed)
    probe = Probe(real, plan, progress)
    with _as_probed(model):
        model(**inputs, **_extra(model, inputs), use_cache=False, attention_probe=probe)
    if probe.failed is not None:
        raise probe.failed
    return _result(probe, plan, tokens)


def _result(probe, plan, tokens):
    layers = plan.layers if plan.layers is not None else tuple(sorted(probe.measured))
    if not probe.seen:
        raise ValueError(_NO_INTERFACE)
    missing = [layer for layer in layers if layer not in probe.measured]
    if missing or not layers:
        raise ValueError(f"layers is {layers}; the model's attention layers are {sorted(set(probe.seen))}")
    columns = zip(*(probe.measured[layer] for layer in layers))
    stacked = (torch.stack(column, dim) for column, dim in zip(columns, (1, 1, 1, 1, 0, 0, 0)))
    return AttentionEntanglement(*stacked, plan.lengths, plan.methods, layers, tokens, variant=plan.variant)


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
