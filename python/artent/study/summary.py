"""The numbers of a study, from its records: what was measured, by what it is about. No words, no drawing, no tests."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from artent import EntanglementProfile, theory
from artent.study.config import as_config
from artent.study.config.methods import VARIED
from artent.study.store import BASE, current_records, stage_of

__all__ = ["AttentionChain", "Control", "StepAttention", "Summary", "SweepRun"]

CONTROL_LABELS = {
    "untrained": "untrained model",
    "lora-10x": "{} at 10× its learning rate",
    "negated": "−ΔW of {}",
    "haar": "ΔW of {} with Haar vectors",
    "random": "random ΔW of the norm of {}",
}


class StepAttention(NamedTuple):
    """S_ext on the way: of a prefix of ``length`` tokens, ``s_ext`` (layers, texts, heads)."""

    length: int
    s_ext: torch.Tensor


class AttentionChain(NamedTuple):
    """All bonds of A, means over texts. ``dims``, ``cut``; ``entropy``, ``spread`` (layers, heads, bonds);
    ``top`` (layers, heads) the largest Schmidt probability at the cut; ``s_cut`` (layers, heads)."""

    dims: tuple[int, ...]
    cut: int
    entropy: torch.Tensor
    spread: torch.Tensor
    top: torch.Tensor
    s_cut: torch.Tensor


class Control(NamedTuple):
    """A changed update in place of that of the method ``of``: (layers, texts, heads) at the longest length."""

    of: str
    s_ext: torch.Tensor
    entropy: torch.Tensor


class SweepRun(NamedTuple):
    """One run of a sweep. ``stage`` leads to its profiles and its attention in the Summary.

    ``loss``: held out, of the new text at its end; ``start``: at its start, None where not recorded.
    """

    stage: tuple
    of: str
    vary: str
    value: object
    seed: int
    loss: float
    settings: dict  # learning_rate, rank, alpha, chi, init, as far as recorded
    start: float | None = None

    @property
    def learned(self):
        """Whether its loss fell. What unlearned or diverged says how a run breaks, not what a setting does."""
        return isfinite(self.loss) and (self.start is None or self.loss < self.start)


class Summary:
    """A study's records by what they are about. Only stages that are done count.

    A *run* is (method name, seed); a *stage* a run, the same with a setting (a run of a sweep), or of a control. A
    *model* is a run, ("lora-10x", seed), "base" or "untrained".

    Attributes:
        config, setup: of the latest start. begun, resumed: when it first was, and how often it went on since.
        folder: where ``samples`` are looked for, or None.
        runs: ``[(method name, seed)]`` done. methods: the Methods among them, in the configuration's order.
        diverged: stages that ended with a loss that is not finite; none of the runs.
        labels: name of a method or a control → what readers see.
        reference: the LoRA of the highest rank (or None), from which the controls are made.
        profiles: ``{stage: {module: {step: EntanglementProfile}}}``, stages of sweeps and of lora-10x among them.
        nulls: ``{stage: {module: record}}`` at the last step: bound, line, gaussian, gaussian_spread, haar.
        losses: ``{stage: {"old"|"new": [(step, nats a token)]}}``; the base's under ``pretraining``.
        lengths: tokens of the prefixes of ``s_ext``.
        s_ext: ``{model: tensor (lengths, layers, texts, heads)}``; entropy: their row entropies (layers, texts, heads).
        s_ext_variants: ``{"sink_removed"|"row_normalised": {model: as s_ext}}``, where recorded.
        attention: ``{stage: {step: StepAttention}}``.
        over_steps: ``{run: [(step, mean S_ext)]}`` at ``step_length``.
        fits: ``{model or null: record}``.
        growth_nulls: ``{null: [S_ext of every length]}``; growth_null_draws: ``{null: (draws, lengths)}``.
        chains: ``{model: AttentionChain}``.
        sample_files: ``{model or (control, seed): name in the run's folder}``; ``sample_path`` finds one.
        controls: ``{(control, seed): Control}``: negated, haar, random.
        parameters: ``{method name: how many it trains}``.
        sweeps: ``[SweepRun]``.
        swept: ``{method name: {learning rate: held-out loss}}`` at the first seed, the method's own rate included.
        seconds: ``{stage: wall time}``.

    Raises ValueError when the records hold no finished pretraining, or no finished fine-tuning.
    """

    def __init__(self, records, folder=None):
        records = current_records(records)
        setups = [r for r in records if r["kind"] == "setup"]
        self.seconds = {stage_of(r): r["seconds"] for r in records if r["kind"] == "done"}
        if not setups or not any(method == BASE for method, *_ in self.seconds):
            raise ValueError("records: no finished pretraining among them; let the study run on with --resume")
        self.setup, self.begun, self.resumed = setups[-1], setups[0]["time"], len(setups) - 1
        self.config = as_config(self.setup["config"], where="results.jsonl")
        self.folder = None if folder is None else Path(folder)
        self.diverged = [stage_of(r) for r in records if r["kind"] == "diverged"]
        done = self.seconds.keys() - set(self.diverged)
        self.runs = [(m.name, s) for s in self.config.seeds for m in self.config.methods if (m.name, s) in done]
        if not self.runs:
            raise ValueError("records: no finished fine-tuning among them; let the study run on with --resume")
        self.methods = [m for m in self.config.methods if any(m.name == name for name, _ in self.runs)]
        self.reference = self.config.reference
        of = self.reference.label if self.reference else "LoRA"
        self.labels = {m.name: m.label for m in self.methods}
        self.labels |= {control: label.format(of) for control, label in CONTROL_LABELS.items()}

        self.profiles = defaultdict(lambda: defaultdict(dict))
        self.nulls, self.losses = defaultdict(dict), defaultdict(lambda: defaultdict(list))
        self.lengths, self.s_ext, self.entropy = (), {}, {}
        self.s_ext_variants, self.attention = defaultdict(dict), defaultdict(dict)
        self.over_steps, self.step_length = defaultdict(list), None
        self.fits, self.growth_nulls, self.growth_null_draws, self.parameters = {}, {}, {}, {}
        self.chains, self.controls, self.sweeps, self.sample_files = {}, {}, [], {}
        for record in records:
            read = getattr(self, "_read_" + record["kind"].replace("-", "_"), None)
            if read and stage_of(record) in self.seconds:
                read(stage_of(record), record)
        self.swept = self._learning_rates()

    # How a kind of record is read, one method each; other kinds are left alone.

    def _read_profile(self, stage, record):
        self.profiles[stage][record["module"]][record["step"]] = EntanglementProfile.from_dict(record)

    def _read_profile_null(self, stage, record):
        self.nulls[stage][record["module"]] = record

    def _read_loss(self, stage, record):
        key = "pretraining" if stage[0] == BASE else stage
        self.losses[key][record["text"]].append((record["step"], record["loss"]))

    def _read_attention(self, stage, record):
        s_ext = _tensor(record["s_ext"][-1])
        self.attention[stage][record["step"]] = StepAttention(record["lengths"][-1], s_ext)
        if stage in self.runs:
            self.step_length = record["lengths"][-1]
            self.over_steps[stage].append((record["step"], s_ext.nanmean().item()))

    def _read_growth(self, stage, record):
        model, s_ext = _model(stage, record), _tensor(record["s_ext"])
        treated = record.get("treatment", "raw")
        if treated != "raw":
            self.s_ext_variants[treated][model] = s_ext
            return
        self.lengths = tuple(record["lengths"])
        self.s_ext[model], self.entropy[model] = s_ext, _tensor(record["entropy"])

    def _read_growth_null(self, _, record):
        draws = _tensor(record["s_ext"])
        self.growth_null_draws[record["model"]], self.growth_nulls[record["model"]] = draws, draws.mean(0).tolist()

    def _read_fit(self, stage, record):
        self.fits[_model(stage, record)] = record

    def _read_parameters(self, stage, record):
        if len(stage) == 2:
            self.parameters[stage[0]] = record["trainable"]

    def _read_chain(self, stage, record):
        tensors = [_tensor(record[key]) for key in ("entropy", "spread", "top", "s_cut")]
        self.chains[_model(stage, record)] = AttentionChain(tuple(record["dims"]), record["cut"], *tensors)

    def _read_samples(self, stage, record):
        self.sample_files[_model(stage, record)] = record["file"]

    def _read_control(self, stage, record):
        at = (record["control"], stage[1])
        self.controls[at] = Control(record["from"], _tensor(record["s_ext"]), _tensor(record["entropy"]))
        if record.get("samples"):
            self.sample_files[at] = record["samples"]

    def _read_sweep(self, stage, record):
        settings = {key: record.get(key) for key in VARIED}
        about = (record["of"], record["vary"], record["value"], stage[1], record["loss"])
        self.sweeps.append(SweepRun(stage, *about, settings, record.get("start")))

    # Lookups and means.

    def seeds(self, method):
        """The seeds of a method, or of the control "lora-10x", that are done."""
        if method in {m.name for m in self.methods}:
            return [seed for name, seed in self.runs if name == method]
        of_control = [stage for stage in self.seconds if stage[0] == method and len(stage) == 2]
        return [stage[1] for stage in of_control if stage not in self.diverged]

    def last(self, stage, module):
        """The profile of ``module`` at the last step measured."""
        steps = self.profiles[stage][module]
        return steps[max(steps)]

    def last_profiles(self, stage):
        """``{module: profile}`` at the last step, modules in order."""
        return {module: self.last(stage, module) for module in sorted(self.profiles[stage])}

    def last_attention(self, stage):
        """The StepAttention of a run's last step; None where it was not measured there, as of what diverged before."""
        return self.attention.get(stage, {}).get(self.config.training.steps) if stage not in self.diverged else None

    def mean_last(self, method, quantity):
        """Mean over modules and seeds of a profile's attribute at the last step."""
        stages = [(method, seed) for seed in self.seeds(method)]
        return fmean(float(getattr(p, quantity)) for stage in stages for p in self.last_profiles(stage).values())

    def beside_nulls(self, method):
        """(last profile, its null record) of every module and seed."""
        return [
            (self.last(stage, module), null)
            for stage in ((method, seed) for seed in self.seeds(method))
            for module, null in self.nulls[stage].items()
        ]

    def null_depth(self, method):
        """Mean valley depth of Gaussian updates of the same shapes, and the mean spread of their entropy at the cut."""
        pairs = self.beside_nulls(method)
        depth = fmean(max(null["gaussian"]) - null["gaussian"][p.cut - 1] for p, null in pairs)
        return depth, fmean(null["gaussian_spread"][p.cut - 1] for p, null in pairs)

    @property
    def loss_unit(self):
        """Of a loss: the small model's tokens are bytes."""
        return "nats a byte" if self.config.model.small else "nats a token"

    def final_losses(self, method):
        """Held-out loss of the new text at the last step, nats a token, of every seed."""
        return [self.losses[(method, seed)]["new"][-1][1] for seed in self.seeds(method)]

    def loss_change(self, method):
        """(new before, new after, old before, old after), nats a token, means over seeds; None where not measured."""
        texts = [self.losses[(method, seed)] for seed in self.seeds(method)]
        return tuple(
            fmean(text[key][at][1] for text in texts) if all(text.get(key) for text in texts) else None
            for key in ("new", "old")
            for at in (0, -1)
        )

    def core_bond(self, method):
        """(S, bound) of an MPS's update at the bond that its χ narrows most, nats, means over modules and seeds.

        None where χ narrows nothing that the rank does not.
        """
        narrowed = []
        for p, null in self.beside_nulls(method):
            gain = [r - b for r, b in zip(theory.rank_bound(p.dims, p.cut, p.rank), null["bound"])]
            if max(gain) > 1e-9:
                at = max(range(len(gain)), key=lambda i: (round(gain[i], 9), -null["bound"][i]))  # the core's own
                narrowed.append((float(p.entropy[at]), null["bound"][at]))
        return tuple(map(fmean, zip(*narrowed))) if narrowed else None

    def sample_path(self, model):
        """The file of what was sampled from a model or a control, None where there is none.

        safetensors: rows of A (layers, texts, heads, rows, T); outputs (layers, texts, rows, heads·D), before o_proj.
        """
        name = self.sample_files.get(model)
        return self.folder / name if name and self.folder and (self.folder / name).exists() else None

    def _learning_rates(self):
        """Losses by learning rate at the first seed, of the methods whose rate was swept."""
        first, swept = self.config.seeds[0], defaultdict(dict)
        for run in self.sweeps:
            if run.vary == "learning_rate" and run.seed == first:
                swept[run.of][run.value] = run.loss
        for m in self.methods:
            if m.name in swept and (m.name, first) in self.runs:
                swept[m.name][m.learning_rate] = self.losses[(m.name, first)]["new"][-1][1]
        return dict(swept)


def _model(stage, record):
    """Whose record it is: of the base's stage the model that the record names, else the run."""
    return record["model"] if stage[0] == BASE else stage


def _tensor(values):
    """Nested lists as float64; None, which stands for a value that was not measured, as NaN."""
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (TypeError, RuntimeError):
        import numpy

        return torch.from_numpy(numpy.array(values, dtype=float))
