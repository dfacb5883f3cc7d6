"""The numbers of a report, from the records of a study: lookups and means, no words and no drawing."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import torch

from artent import EntanglementProfile, theory
from artent.study import nohair
from artent.study.config import StudyConfig
from artent.study.store import BASE, current_records, stage_of

__all__ = ["Summary"]


class Summary:
    """A study's records by what they are about. Only stages that are done count.

    Attributes:
        config, setup: of the latest start. begun, resumed: when it first was, and how often it went on since.
        runs: ``[(method name, seed)]`` done.
        labels: method name → what readers see.
        profiles: ``{run: {module: {step: EntanglementProfile}}}``.
        nulls: ``{run: {module: record}}`` at the last step.
        losses: ``{run: {"old"|"new": [(step, nats)]}}``; the base's under ``pretraining``.
        s_ext: ``{model: tensor (lengths, layers, texts, heads)}``, model a run, "base" or "untrained".
        entropy: the same models' row entropies, ``(layers, texts, heads)``.
        over_steps: ``{run: [(step, mean S_ext)]}`` at the length ``step_length``.
        fits: ``{model or null: record}``.
        parameters: ``{method name: how many it trains}``; none in records from before it was written.
        growth_nulls: ``{null: [S_ext of every length]}``.
        swept: ``{method name: {learning rate: held-out loss of the new text}}`` at the first seed, own rate included.
        seconds: ``{stage: wall time}``, the stages of the sweep (method name, seed, factor).

    Raises ValueError when the records hold no finished pretraining.
    """

    def __init__(self, records):
        records = current_records(records)
        setups = [r for r in records if r["kind"] == "setup"]
        self.seconds = {stage_of(r): r["seconds"] for r in records if r["kind"] == "done"}
        if not setups or not any(method == BASE for method, *_ in self.seconds):
            raise ValueError("records: no finished pretraining among them; let the study run on with --resume")
        self.setup, self.begun, self.resumed = setups[-1], setups[0]["time"], len(setups) - 1
        self.config = StudyConfig.from_dict(self.setup["config"])
        self.runs = [(m.name, seed) for m, seed in self.config.runs if (m.name, seed) in self.seconds]
        if not self.runs:
            raise ValueError("records: no finished fine-tuning among them; let the study run on with --resume")
        self.methods = [m for m in self.config.methods if any(m.name == name for name, _ in self.runs)]
        self.labels = {m.name: m.label for m in self.methods}

        self.profiles = defaultdict(lambda: defaultdict(dict))
        self.nulls, self.losses = defaultdict(dict), defaultdict(lambda: defaultdict(list))
        self.s_ext, self.entropy, self.over_steps, self.step_length = {}, {}, defaultdict(list), None
        self.fits, self.growth_nulls, self.parameters, self.swept = {}, {}, {}, defaultdict(dict)
        for record in records:
            stage = stage_of(record)
            if stage in self.seconds:
                getattr(self, "_" + record["kind"].replace("-", "_"), lambda *_: None)(stage, record)
        for m in self.methods:
            run = (m.name, self.config.seeds[0])
            if m.name in self.swept and run in self.runs:  # the sweep's factor 1
                self.swept[m.name][m.learning_rate] = self.losses[run]["new"][-1][1]

    def _profile(self, run, record):
        self.profiles[run][record["module"]][record["step"]] = EntanglementProfile.from_dict(record)

    def _profile_null(self, run, record):
        self.nulls[run][record["module"]] = record

    def _loss(self, run, record):
        self.losses["pretraining" if run[0] == BASE else run][record["text"]].append((record["step"], record["loss"]))

    def _attention(self, run, record):
        self.step_length = record["lengths"][-1]
        self.over_steps[run].append((record["step"], torch.tensor(record["s_ext"][-1]).mean().item()))

    def _growth(self, run, record):
        model = record["model"] if run[0] == BASE else run
        self.s_ext[model] = torch.tensor(record["s_ext"], dtype=torch.float64)
        self.entropy[model] = torch.tensor(record["entropy"], dtype=torch.float64)

    def _growth_null(self, run, record):
        self.growth_nulls[record["model"]] = torch.tensor(record["s_ext"]).mean(0).tolist()

    def _fit(self, run, record):
        self.fits[record["model"] if run[0] == BASE else run] = record

    def _parameters(self, run, record):
        self.parameters[run[0]] = record["trainable"]

    def _sweep(self, stage, record):
        self.swept[stage[0]][record["learning_rate"]] = record["loss"]

    def seeds(self, method):
        return [seed for name, seed in self.runs if name == method]

    def last(self, run, module):
        """The profile of ``module`` at the last step measured."""
        steps = self.profiles[run][module]
        return steps[max(steps)]

    def mean_last(self, method, quantity):
        """Mean over modules and seeds of a profile's attribute at the last step."""
        runs = [(method, seed) for seed in self.seeds(method)]
        return fmean(float(getattr(self.last(run, module), quantity)) for run in runs for module in self.profiles[run])

    def _beside_nulls(self, method):
        """(last profile, its null record) of every module and seed."""
        return [
            (self.last(run, module), null)
            for run in self.runs
            if run[0] == method
            for module, null in self.nulls[run].items()
        ]

    def null_depth(self, method):
        """Mean valley depth of Gaussian updates of the same shapes, and the mean spread of their entropy at the cut."""
        pairs = self._beside_nulls(method)
        depth = fmean(max(null["gaussian"]) - null["gaussian"][p.cut - 1] for p, null in pairs)
        return depth, fmean(null["gaussian_spread"][p.cut - 1] for p, null in pairs)

    def final_losses(self, method):
        """Held-out loss of the new text at the last step, nats a byte, of every seed."""
        return [self.losses[(method, seed)]["new"][-1][1] for seed in self.seeds(method)]

    def core_bond(self, method):
        """(S, bound) of an MPS's update at the bond that its χ narrows most, nats, means over modules and seeds.

        None where χ narrows nothing that the rank does not.
        """
        narrowed = []
        for p, null in self._beside_nulls(method):
            gain = [r - b for r, b in zip(theory.rank_bound(p.dims, p.cut, p.rank), null["bound"])]
            if max(gain) > 1e-9:
                at = max(range(len(gain)), key=lambda i: (round(gain[i], 9), -null["bound"][i]))  # the core's own
                narrowed.append((float(p.entropy[at]), null["bound"][at]))
        return tuple(map(fmean, zip(*narrowed))) if narrowed else None

    def haar_gap(self, method):
        """(mean, largest) over modules and seeds of max_l |S(l) − Haar(l)|, nats."""
        gaps = [
            max(abs(float(S) - haar) for S, haar in zip(p.entropy, null["haar"]))
            for p, null in self._beside_nulls(method)
        ]
        return fmean(gaps), max(gaps)

    def bound_excesses(self):
        """max over bonds of S(l) − bound(l), for every profile of a LoRA or MPS run at every step."""
        return [
            max(float(s) - b for s, b in zip(profile.entropy, self.nulls[run][module]["bound"]))
            for run in self.runs
            for module, steps in self.profiles[run].items()
            for profile in steps.values()
            if profile.rank is not None
        ]

    def loss_change(self, method):
        """(new before, new after, old before, old after), nats a byte, means over seeds."""
        texts = [self.losses[(method, seed)] for seed in self.seeds(method)]
        return tuple(fmean(text[key][at][1] for text in texts) for key in ("new", "old") for at in (0, -1))

    def head_runs(self):
        """S_ext at the full context for the no-hair comparison: ``{run: (heads of all layers, texts)}``."""
        return {run: self.s_ext[run][-1].transpose(1, 2).flatten(0, 1) for run in self.runs}

    def module_runs(self):
        """Final profiles alike: ``{run: [(bonds,) of every module]}``; bonds differ in number between modules."""
        return {run: [self.last(run, m).entropy.double() for m in sorted(self.profiles[run])] for run in self.runs}

    def module_ratio(self):
        """``nohair.method_seed_ratio`` of profiles, a module at a time, stacked; None as there."""
        runs = self.module_runs()
        count = len(next(iter(runs.values())))
        each = [nohair.method_seed_ratio({run: p[i][None] for run, p in runs.items()}) for i in range(count)]
        return None if None in each else tuple(torch.cat(parts) for parts in zip(*each))

    def drift(self, method):
        """Mean relative change of a head's row entropy against the base, over seeds."""
        changes = [
            nohair.relative_change(self.entropy[(method, seed)].mT, self.entropy["base"].mT)
            for seed in self.seeds(method)
        ]
        return torch.stack(changes).mean().item()
