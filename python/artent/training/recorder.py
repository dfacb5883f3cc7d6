"""Measurements in a training loop that leave the training bit for bit as it was."""

import time
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from statistics import fmean

import torch

from artent.attention import AttentionEntanglement, attention_entanglement
from artent.checkpoints import pending_updates
from artent.measure import measure
from artent.peft_updates import adapted_layers
from artent.profile import EntanglementProfile
from artent.records import RecordWriter
from artent.snapshot import snapshot
from artent.weights import unwrap

# What records hold besides their context.
_MEASURED = {field.name for kind in (EntanglementProfile, AttentionEntanglement) for field in fields(kind)}
_TAKEN = _MEASURED - {"method"} | {"estimator", "kind", "module", "seconds", "step"}
# Of attention_entanglement, besides lengths.
_OPTIONS = {"layers", "method", "rank", "seed", "steps", "variant"}


class EntanglementRecorder:
    """Measures a model every so many steps: profiles of what training wrote, attention on a fixed batch.

    A run with a recorder has the losses of a run without: random state, training mode, gradients, hooks and
    configuration are as before after every measurement. In a loop::

        recorder = EntanglementRecorder(model, every=50, probe=batch, out="results.jsonl")
        recorder.step(0)
        for step, batch in enumerate(batches, 1):
            ...
            recorder.step(step)

    Args:
        model: a causal transformers model, as it is or under PEFT.
        base: the weights that training started from, as in ``artent.weight_updates``. None is right for both
            common cases: adapters hold their own update, and of any other model the target weights as they
            are now are copied, in their own dtype, to the CPU.
        targets: the weights to profile, as in ``artent.weight_updates`` (None: every adapted module or
        matrix).
        every: steps between measurements.
        internal: profile the updates.
        external: measure attention on ``probe``. None: where there is one.
        probe: the fixed batch, token ids (batch, T) or a mapping with ``input_ids`` and ``attention_mask``.
        lengths: prefix lengths for ``artent.attention_entanglement``.
        attention: its further arguments, such as ``{"method": "streamed", "rank": 16, "layers": (0, 5)}``. What a
            measurement costs is in its record, "seconds": exact lengths (up to 1024 tokens, unless ``method`` says
            otherwise) grow with the cube of the tokens; streamed ones are some ten forward passes of the head's
            attention each. Fewer lengths and layers cost less.
        out: a path that records are appended to, or an open ``artent.records.RecordWriter``.
        context: entries of every record, such as ``{"method": "lora-r4", "seed": 0}``.

    Attributes:
        summary: scalars of the last measurement: means of ``cut_entropy``, ``valley_depth`` (nats) and
            ``effective_rank`` over the modules, of ``s_ext`` (nats, longest prefix) over layers, texts and
            heads.
        unchanged: names of the targets that had no update at the last measurement (LoRA before its first
            step): they have no record.

    Raises:
        ValueError, TypeError: ``every`` below 1, ``external`` without ``probe``, nothing to measure, and
            what ``artent.weight_updates`` raises for targets that match nothing.
    """

    def __init__(
        self,
        model,
        base=None,
        *,
        targets=("q_proj", "v_proj"),
        every=50,
        internal=True,
        external=None,
        probe=None,
        lengths=None,
        attention=None,
        out=None,
        context=None,
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r}: expected a number of steps, 1 or more")
        if external and probe is None:
            raise ValueError(
                "external=True needs probe, the batch of token ids that attention is measured on; "
                "or pass external=False"
            )
        self.external = probe is not None if external is None else bool(external)
        self.internal = bool(internal)
        if not (self.internal or self.external):
            raise ValueError("nothing to measure: internal=False, and no probe or external=False")
        if not isinstance(out, str | Path | RecordWriter | None):
            raise TypeError(f"out must be a path or a RecordWriter, not {type(out).__name__}")
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        self.model = unwrap(model)
        self.targets, self.every = targets, every
        self.probe, self.lengths, self.attention = probe, lengths, dict(attention or {})
        if unknown := sorted(self.attention.keys() - _OPTIONS):
            raise ValueError(f"attention: {', '.join(unknown)} unknown; expected some of {', '.join(sorted(_OPTIONS))}")
        self.context = dict(context or {})
        if taken := sorted(_TAKEN & self.context.keys()):
            raise ValueError(f"context: {', '.join(taken)} would overwrite what is measured; name them otherwise")
        self.summary, self.unchanged = {}, ()
        self.base = base
        if self.internal and base is None and not adapted_layers(self.model):
            self.base = snapshot(self.model, targets)
        self._out, self._owned = out, isinstance(out, str | Path)

    def due(self, step):
        return step % self.every == 0

    def step(self, step):
        """Measure if ``step`` is due. Returns the records, none if it is not."""
        return self.measure(step) if self.due(step) else []

    def measure(self, step):
        """Measure now: one record of kind "profile" a module, one of kind "attention".

        A record holds what ``to_dict()`` of the measurement gives, ``context``, kind, step, and "seconds":
        the wall time, of all the profiles evenly divided.
        """
        records, self.summary = [], {}
        with _undisturbed(self.model):
            if self.internal:
                records += self._profiles(step)
            if self.external:
                records.append(self._attention(step))
        if self._out is not None and records:
            if not isinstance(self._out, RecordWriter):
                self._out = RecordWriter(self._out)
            self._out.write(*records)
        return records

    def close(self):
        """Close the file, if the recorder opened one."""
        if self._owned and isinstance(self._out, RecordWriter):
            self._out.close()
            self._out = self._out.path

    def _profiles(self, step):
        found = list(measure(pending_updates(self.model, self.base, targets=self.targets)))
        self.unchanged = tuple(measured.name for measured in found if measured.profile is None)
        profiles = {measured.name: measured.profile for measured in found if measured.profile is not None}
        head = {**self.context, "kind": "profile", "step": step}
        records = [{**head, "module": name, **profile.to_dict()} for name, profile in profiles.items()]
        for record in records:
            record["seconds"] = sum(measured.seconds for measured in found) / len(records)
        if profiles:
            for scalar in ("cut_entropy", "valley_depth", "effective_rank"):
                self.summary[scalar] = fmean(float(getattr(p, scalar)) for p in profiles.values())
        return records

    def _attention(self, step):
        start = time.perf_counter()
        attention = attention_entanglement(self.model, self.probe, lengths=self.lengths, **self.attention)
        longest = attention.lengths.index(max(attention.lengths))
        self.summary["s_ext"] = attention.s_ext[longest].nanmean().item()  # NaN: a text shorter than that
        record = {**self.context, "kind": "attention", "step": step, **attention.to_dict()}
        return {**record, "seconds": time.perf_counter() - start}


@contextmanager
def _undisturbed(model):
    """Evaluation without gradients; random state and every module's mode are put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
