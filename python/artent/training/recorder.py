"""Measurements in a training loop that leave the training bit for bit as it was."""

import inspect
import sys
import warnings
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch

from artent.attention import AttentionEntanglement
from artent.distributed import processes as processes_now
from artent.entanglement import EntanglementProfile
from artent.reading.weights import unwrap
from artent.records import RecordWriter
from artent.training.base import check_keep, needs_base, run_base, start_base, together
from artent.training.budget import Budget
from artent.training.external import External
from artent.training.internal import Internal

# What records hold besides their context.
_MEASURED = {field.name for kind in (EntanglementProfile, AttentionEntanglement) for field in fields(kind)}
_TAKEN = _MEASURED - {"method"} | {"estimator", "kind", "lowered", "module", "seconds", "step"}
TARGETS = ("q_proj", "v_proj")


class EntanglementRecorder:
    """Measures a model every so many steps: profiles of what training wrote, attention on a fixed batch.

    A run with a recorder has the losses of a run without: random state, training mode, gradients, hooks and
    configuration are as before after every measurement. In a loop::

        recorder = EntanglementRecorder(model, every=50, probe=batch, out="results.jsonl")
        recorder.step(0)
        for step, batch in enumerate(batches, 1):
            ...
            recorder.step(step)
        recorder.measure(step)  # the last step, where it was not due

    With several processes (DistributedDataParallel, FSDP2, ZeRO-3) every one of them makes a recorder and calls it at
    the same steps: they share the work, and the first one has the records, the summary and the file.

    Args:
        model: a causal transformers model, as it is or under PEFT.
        base: the weights that training started from, as in ``artent.weight_updates``. None is right for both
            common cases: adapters hold their own update, and of any other model the target weights as they
            are now are copied, in their own dtype, to the CPU (several processes: to each its share).
        targets: the weights to profile, as in ``artent.weight_updates`` (None: every adapted module or matrix).
        every: steps between measurements.
        internal: profile the updates.
        external: measure attention on ``probe``. None: where there is one.
        probe: the fixed batch, token ids (batch, T) or a mapping with ``input_ids`` and ``attention_mask``.
        lengths: prefix lengths for ``artent.attention_entanglement``.
        attention: its further arguments, such as ``{"method": "streamed", "rank": 16, "layers": (0, 5)}``. What a
            measurement costs is in its record, "seconds": exact lengths (up to 1024 tokens, unless ``method`` says
            otherwise) grow with the cube of the tokens; streamed ones are some ten forward passes of the head's
            attention each. Fewer lengths and layers cost less.
        profile: further arguments of ``artent.entanglement_profile``, such as ``{"max_error": 0.05}``.
        budget: the share of the training time that measuring may take, such as 0.05; None: no limit. A measurement
            that is due then waits until the share, with the cost of the last one added, is below. Where more than four
            due ones in a row would be left out for good, measuring gets coarser instead, in the part that costs more:
            dense updates of 700 rows and columns or more to an error of 1 % of ln min(m, n), then estimated; of
            attention the longest prefix alone, then estimates (from 600 tokens on), then a smaller rank of them. What
            was lowered is told by a warning, and in each record, "lowered". Options that you set stay. The first
            measurement always takes place, and so does what ``measure`` is called for.
        keep_base: where the copy of full FT is kept: in "memory", or on "disk" only, in ``artent_base.safetensors``
            beside ``out``, from where it is read at every measurement. A later run can pass that file as ``base``.
        out: a path that records are appended to, or an open ``artent.records.RecordWriter``.
        context: entries of every record, such as ``{"method": "lora-r4", "seed": 0}``.
        processes: those that share the work; None: the ones of torch.distributed.

    Attributes:
        summary: scalars of the last measurement: means of ``cut_entropy``, ``valley_depth`` (nats) and
            ``effective_rank`` over the modules, of ``s_ext`` (nats, longest prefix) over layers, texts and
            heads; its ``seconds``; and from the second measurement on ``share``, the seconds spent measuring so far
            over the seconds of training (all the time between measurements).
        records: the records of the last measurement.
        unchanged: names of the targets that had no update at the last measurement (LoRA before its first
            step): they have no record.
        failed: {name: why} of the targets whose update had no profile then, such as one that holds NaN: they have no
            record either, a warning tells of each once, and training goes on.

    Raises:
        ValueError, TypeError: ``every`` below 1, ``external`` without ``probe``, nothing to measure, a ``budget`` that
            is no share, and what ``artent.weight_updates`` raises for targets that match nothing.
    """

    def __init__(
        self,
        model,
        base=None,
        *,
        targets=TARGETS,
        every=50,
        internal=True,
        external=None,
        probe=None,
        lengths=None,
        attention=None,
        profile=None,
        budget=None,
        keep_base="memory",
        out=None,
        context=None,
        processes=None,
    ):
        _check_every(every)
        external = probe is not None if external is None else external
        if external and probe is None:
            raise ValueError(
                "external=True needs probe, the batch of token ids that attention is measured on; "
                "or pass external=False"
            )
        if not (internal or external):
            raise ValueError("nothing to measure: internal=False, and no probe or external=False")
        if not isinstance(out, str | Path | RecordWriter | None):
            raise TypeError(f"out must be a path or a RecordWriter, not {type(out).__name__}")
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        check_keep(keep_base)
        if keep_base == "disk" and out is None:
            raise ValueError("keep_base='disk' needs out, beside which the first weights are written")
        self.context = dict(context or {})
        if taken := sorted(_TAKEN & self.context.keys()):
            raise ValueError(f"context: {', '.join(taken)} would overwrite what is measured; name them otherwise")
        self.model, self.every = unwrap(model), every
        self.budget = Budget(budget, every)
        self.summary, self.records = {}, []
        self.internal = Internal(base, targets, dict(profile or {})) if internal else None
        self.external = External(probe, lengths, dict(attention or {})) if external else None
        self.processes = processes_now() if processes is None else processes
        self._told = False  # that attention could not be measured
        self._out, self._owned, self._postponed = out, isinstance(out, str | Path), None
        with together(self.processes):
            if self._owned and self.processes.main:
                _check_writable(Path(out))
        if internal and needs_base(self.model, base):
            folder = _folder(out) if keep_base == "disk" else None
            self.internal.base = start_base(self.model, targets, folder, keep_base, self.processes)

    @classmethod
    def of_run(cls, model, folder, step, *, base=None, keep_base="memory", **options):
        """A recorder of a training at ``step``, which keeps what it needs to be resumed in ``folder``."""
        model, processes = unwrap(model), processes_now()
        if options.get("internal", True) and needs_base(model, base):
            base = run_base(model, options.get("targets", TARGETS), folder, step, keep_base, processes)
        return cls(model, base, processes=processes, **options)

    @property
    def base(self):
        """The weights that updates are told from; None where adapters hold them."""
        return self.internal.base if self.internal else None

    @property
    def unchanged(self):
        return self.internal.unchanged if self.internal else ()

    @property
    def failed(self):
        return self.internal.failed if self.internal else {}

    def due(self, step):
        """Whether to measure now: every ``every`` steps, later where the budget asks for it. To be asked once a step.

        With a budget and several processes the first one decides, for all.
        """
        if self.budget.limit is None:
            return step % self.every == 0
        if step % self.every and (self._postponed is None or step < self._postponed):
            return False
        wait, cheaper = self.processes.broadcast(self._decision(step) if self.processes.main else None)
        if cheaper is not None:
            self._lower(*cheaper)
        self._postponed = step + wait if wait else None
        return not wait

    def step(self, step):
        """Measure if ``step`` is due. Returns the records, none if it is not."""
        return self.measure(step) if self.due(step) else []

    def measure(self, step):
        """Measure now: one record of kind "profile" a module, one of kind "attention".

        A record holds what ``to_dict()`` of the measurement gives, ``context``, kind, step, and "seconds", the wall
        time (profiles computed together share theirs). Processes other than the first get no records.
        """
        _wait_for_device(self.model)
        records, self.summary, self._postponed = [], {}, None
        with self.budget.measurement(step):
            with _undisturbed(self.model):
                for kind, part in (("profile", self.internal), ("attention", self.external)):
                    if part is not None:
                        records += self._of(part, kind, step)
            self.records = records
            if self._out is not None and records:
                if not isinstance(self._out, RecordWriter):
                    self._out = RecordWriter(self._out)
                self._out.write(*records)
        if self.summary:
            self.summary["seconds"] = self.budget.last
            if self.budget.measurements > 1:
                self.summary["share"] = self.budget.share
        return records

    def close(self):
        """Close the file, if the recorder opened one."""
        if self._owned and isinstance(self._out, RecordWriter):
            self._out.close()
            self._out = self._out.path

    def _of(self, part, kind, step):
        """The records of one part; its means go to the summary."""
        start = self.budget.clock()
        try:
            records, means = part.measure(self.model, self.processes)
        except ValueError as error:
            if part is self.internal or not part.measured:
                raise
            self._tell_of_attention(str(error))
            records, means = [], {}
        part.seconds = self.budget.clock() - start
        self.summary |= means
        head = {**self.context, "kind": kind, "step": step}
        return [
            {**head, **record} if "seconds" in record else {**head, **record, "seconds": part.seconds}
            for record in records
        ]

    def _tell_of_attention(self, why):
        """What diverged must not end a training that has been measured before. Told once."""
        if not self._told and self.processes.main:
            warnings.warn(f"attention could not be measured: {why}", stacklevel=5)
        self._told = True

    def _decision(self, step):
        """(steps to wait, (part, cheaper options) or None)."""
        cheaper = None
        if self.budget.too_rare(step):
            parts = [name for name in ("internal", "external") if getattr(self, name) is not None]
            for name in sorted(parts, key=lambda name: -getattr(self, name).seconds):
                if (options := getattr(self, name).coarser()) is not None:
                    cheaper = (name, options)
                    break
        return self.budget.wait(step), cheaper

    def _lower(self, name, options):
        getattr(self, name).lowered |= options
        if self.processes.main:
            what = ", ".join(f"{option}={value!r}" for option, value in options.items())
            warnings.warn(
                f"a measurement takes {self.budget.last:.2g} s, which a budget of {self.budget.limit:g} of the "
                f"training time pays for far less often than every {self.every} steps: from now on "
                f"{'attention' if name == 'external' else 'profiles'} with {what}",
                stacklevel=4,
            )


def check_options(options, every):
    """What callbacks pass on when training begins, checked when it is given. Raises TypeError, ValueError."""
    known = inspect.signature(EntanglementRecorder).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise TypeError(f"{', '.join(unknown)}: no such option; expected some of {', '.join(known)}")
    _check_every(every)
    Budget(options.get("budget"), every)
    Internal(None, TARGETS, dict(options.get("profile") or {}))
    External(None, None, dict(options.get("attention") or {}))


def _check_every(every):
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every!r}: expected a number of steps, 1 or more")


def _check_writable(out):
    """What cannot be written is told before training, not at the first measurement."""
    try:
        RecordWriter(out).close()
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: {error.filename or out} can't be written ({error.strerror})") from error


def _folder(out):
    return (out.path if isinstance(out, RecordWriter) else Path(out)).parent


def _wait_for_device(model):
    """What was queued before is training, not measuring."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


@contextmanager
def _undisturbed(model):
    """Evaluation without gradients; random state and every module's mode are put back."""
    modes = [(module, module.training) for module in model.modules()]
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    sharded = [module for module, _ in modes if isinstance(module, fsdp)]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module in sharded:  # a forward pass leaves the outermost one gathered, which an optimiser step
                module.reshard()  # in between would make stale
