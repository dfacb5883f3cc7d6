"""``EntanglementLoss``: a term of a training loss that makes updates, or attention, more or less entangled."""

from math import isfinite
from numbers import Real

import torch
from torch import Tensor, nn

from artent.checkpoints import pending_updates
from artent.distributed import is_sharded
from artent.measure import profiles_of
from artent.reading.differences import differences, matrices
from artent.reading.live_adapters import adapted_layers
from artent.reading.weights import Weights, read_weights
from artent.training.recorder import TARGETS

TERMS = ("valley_depth", "cut_entropy", "attention_entropy")


class EntanglementLoss(nn.Module):
    """A differentiable term on the entanglement of what training writes, or on the entropy of attention::

        term = artent.EntanglementLoss(model, on="valley_depth", weight=-0.01)  # deepens the valleys
        for step, batch in enumerate(batches):
            output = model(**batch)
            (output.loss + term()).backward()

    ``on`` names a value v, in nats; the term is weight · mean(v), or weight · mean((v − target)²):

    - "valley_depth", max_l S(l) − S(cut) of each weight update that ``targets`` means: the gradient is that of the bond
      where the maximum lies now. Both are zero where that is the cut itself.
    - "cut_entropy", S at the row|column cut of each, ln of the effective rank.
    - "attention_entropy", the mean entropy of the rows of each layer's heads. It is read from the model's output::

          model.set_attn_implementation("artent")  # after `import artent`
          output = model(**batch, output_attentions=True)
          (output.loss + term(output, batch["attention_mask"])).backward()

    It has no parameters of its own. The gradient reaches LoRA factors, the cores of an MPS adapter, modules that PEFT
    trains as a copy, and with full fine-tuning the weights themselves, of which the first values are kept beside them:
    a copy of the targets in their own dtype, on their device. To resume such a run pass the weights that it began with
    as ``base``: the original model, or the ``artent_base.safetensors`` of ``artent.attach``.

    A zero update (LoRA before its first step) has no state: it counts as 0, with a zero gradient. From then on beware
    of small ones: entropies do not depend on the scale of ΔW, so their gradient goes as 1/‖ΔW‖, and would be most of
    what an optimiser sees in the first steps. ``weight`` may be changed at any time, and a linear rise from zero keeps
    that gradient bounded: ``term.weight = 0.01 * min(1, step / 100)``.

    A call costs exact profiles of all targets and backward goes back through them: little for LoRA factors; for dense
    updates an eigendecomposition a bond, and float32 copies of the matrices for as long as the graph lives
    (docs/math.md §2). Calling it every k-th step costs a k-th. In each of k accumulated micro-batches it counts k
    times, unless ``weight`` is divided by k. Under DistributedDataParallel every process computes the same term from
    the same parameters, and averaging gradients leaves it right; attention is that of the process's own batch, as the
    loss is. Add it to the loss before backward, which synchronises once.

    Args:
        model: as trained; inside torch.compile, DistributedDataParallel or DeepSpeed (ZeRO ≤ 2) it is found. It is not
            registered as a submodule.
        base: the weights that full fine-tuning started from, as in ``artent.weight_updates``; None: those of now.
        targets: the updates, as in ``artent.weight_updates``.
        on: "valley_depth", "cut_entropy" or "attention_entropy".
        target: a value in nats to be drawn to. None: the value itself is the term, and the sign of ``weight`` says
            which way it goes: it falls where that is positive.
        weight: a number that the mean over updates, or over layers and heads, is multiplied with.

    Attributes:
        values: what the last call measured, detached: {module name: value}, or {layer: values of its heads (H,)}.

    Raises:
        ValueError: an argument that is wrong; nothing that requires a gradient; an adapter whose update is no product
            of live factors (DoRA, PiSSA, …); sharded parameters (FSDP, ZeRO-3). When called also NaN or Inf in an
            update, and an output without the statistics, or with statistics that have no graph.
        TypeError: an argument of another kind.
    """

    def __init__(self, model, base=None, *, targets=TARGETS, on="valley_depth", target=None, weight=1.0):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if on not in TERMS:
            raise ValueError(f"on={on!r}: expected one of {', '.join(map(repr, TERMS))}")
        self.on, self.targets = on, targets
        self.target = None if target is None else _number("target", target)
        self.weight = _number("weight", weight)
        self.values = {}
        self._read = model, base  # in a tuple, where modules are no submodules
        if on == "attention_entropy":
            if base is not None or targets != TARGETS:
                raise ValueError('base, targets: are of weight updates, and on="attention_entropy" reads every layer')
            return
        if not adapted_layers(model):
            self._read = model, _kept(model, base, targets)
        if not any(parameter.requires_grad for update in self._pending() for parameter in update.parameters):
            raise ValueError(
                f"model: nothing that targets={targets!r} means requires a gradient: the term would change nothing. "
                "Likely cause: a frozen model, or an adapter that was loaded without is_trainable=True or is not active"
            )

    def forward(self, output=None, attention_mask=None) -> Tensor:
        """The term, a scalar in float32 (float64 where the weights are).

        ``output`` and ``attention_mask`` are read for "attention_entropy" only: what the model returned, and the mask
        (B, T) that it was given, 1 at real tokens. Without a mask every row that sees a key counts, those of padding on
        the right too.
        """
        if self.on == "attention_entropy":
            measured, unchanged = attention_values(output, attention_mask), []
        else:
            measured, unchanged = self._profiled()
        self.values = {name: value.detach() for name, value in measured.items()}
        terms = [value if self.target is None else (value - self.target).square() for value in measured.values()]
        terms = [term.mean() for term in (*terms, *unchanged)]
        return self.weight * torch.stack([term.to(terms[0].device) for term in terms]).mean()

    def _profiled(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """{module: value} of the updates there are, and for each of the others a zero with a zero gradient."""
        pending = self._pending()
        parameters = [parameter for update in pending for parameter in update.parameters]
        double = any(parameter.dtype == torch.float64 for parameter in parameters)
        dtype = torch.float64 if double else torch.float32
        updates, unchanged = {}, []
        with torch.autocast(parameters[0].device.type, enabled=False):  # which would add up adapters in half precision
            for update in pending:
                found = update.read()
                if found is None:
                    unchanged.append(_nothing(update.parameters).to(dtype))
                else:
                    updates[update.name] = found
        profiles = profiles_of(updates, method="exact")
        return {name: getattr(profile, self.on).to(dtype) for name, profile in profiles.items()}, unchanged

    def _pending(self):
        """What is to be read: listed at every call, for parameters are replaced when models move or are wrapped."""
        model, base = self._read
        pending = pending_updates(model, base, targets=self.targets)
        if not pending:
            raise ValueError(f"model: no active adapter has an update that targets={self.targets!r} means")
        for update in pending:
            _check_whole(update.name, update.parameters)
        if any(update.rank is None for update in pending):
            layers = adapted_layers(model)
            merged = [u.name for u in pending if u.rank is None and _is_merged(layers.get(u.name))]
            if merged:
                raise ValueError(
                    f"targets={self.targets!r} means {merged[0]} ({len(merged)} such modules), where the adapter's "
                    "update is the merged minus the original weight, read without a gradient: DoRA, PiSSA and others "
                    "whose update is not the product of live factors. Use LoRA or MPS, or leave it out with targets"
                )
        return pending

    def extra_repr(self):
        return f"on={self.on!r}, targets={self.targets!r}, target={self.target}, weight={self.weight}"


def attention_values(output, attention_mask=None) -> dict[int, Tensor]:
    """{layer: (H,)}, the mean row entropy of each head in nats, from ``output.attentions``, of rows of real tokens.

    Raises ValueError as ``EntanglementLoss`` does.
    """
    layers = {i: stats for i, stats in enumerate(getattr(output, "attentions", None) or ()) if stats is not None}
    if not layers or not all(hasattr(stats, "entropy") for stats in layers.values()):
        found = "attention matrices" if layers else "no attentions"
        raise ValueError(
            f'output: holds {found}, and on="attention_entropy" reads the statistics of artent\'s attention. Load the '
            'model with attn_implementation="artent", or call model.set_attn_implementation("artent"); call it with '
            "output_attentions=True; and pass what it returned"
        )
    if torch.is_grad_enabled() and not any(stats.entropy.requires_grad for stats in layers.values()):
        raise ValueError(
            "output: its attention statistics carry no gradient. Likely cause: reentrant gradient checkpointing (pass "
            'gradient_checkpointing_kwargs={"use_reentrant": False}), or nothing that queries or keys depend on is '
            "trained"
        )
    return {layer: _row_mean(stats, attention_mask) for layer, stats in layers.items()}


def _row_mean(stats, attention_mask):
    """(H,): the mean entropy over the rows (B, H, T) of real tokens that see a key."""
    real = stats.lse.detach() > -torch.inf
    if attention_mask is not None:
        batch, _, tokens = real.shape
        if attention_mask.shape != (batch, tokens):
            raise ValueError(
                f"attention_mask: expected shape {(batch, tokens)}, a number a row of attention, got "
                f"{tuple(attention_mask.shape)}: pass the mask of real tokens that the model was given"
            )
        real = real & attention_mask.to(real.device).bool()[:, None]
    return torch.where(real, stats.entropy, 0).sum((0, 2)) / real.sum((0, 2)).clamp(min=1)


def _kept(model, base, targets) -> Weights:
    """A copy of the matrices of ``base`` (None: of ``model``) that ``targets`` means, where the model's own lie."""
    tuned = read_weights(model, "model")
    given = tuned if base is None else read_weights(base, "base")
    differences(tuned, given, targets)  # tells what has no partner, or another shape
    tensors = {}
    for name, keys in matrices(tuned, targets):
        key = next(key for key in keys if key in given.tensors)
        before, now = given.tensors[key], tuned.tensors[keys[0]]
        _check_whole(name, (before, now))
        tensors[key] = before.detach().to(now.device, copy=True)
    return Weights(tensors, tuple((key,) for key in tensors))


def _check_whole(name, parameters):
    if any(is_sharded(parameter) for parameter in parameters):
        raise ValueError(
            f"{name}: its parameters are sharded (FSDP, tensor parallelism or DeepSpeed ZeRO-3), and the term needs "
            "whole matrices at every step. Train with DDP or ZeRO ≤ 2; to measure without a gradient use artent.attach"
        )


def _is_merged(layer):
    """Whether the update of this layer is read as merged minus base; a module trained as a copy has a plain one."""
    return layer is not None and not hasattr(layer, "modules_to_save")


def _nothing(parameters):
    """Zero, with a zero gradient for each of ``parameters``: backward works at step 0 too."""
    empty = (parameter[:0].sum() for parameter in parameters if parameter.requires_grad)
    return sum(empty, start=parameters[0].new_zeros(()))


def _number(name, value) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not isfinite(value):
        raise ValueError(f"{name}={value!r}: expected a finite number")
    return float(value)
