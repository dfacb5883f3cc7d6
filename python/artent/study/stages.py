"""The stages of a study: the base model, a fine-tuning, its controls, a run of the sweep."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import shutil
import time

import torch

import artent
from artent.study import finetune, models
from artent.study.controls import control_records
from artent.study.data.blocks import collate
from artent.study.measuring import TREATMENTS, chain, growth, growth_nulls, profile_nulls, samples, samples_record
from artent.study.store import BASE
from artent.training.base import together

__all__ = ["Stages"]


class Stages:
    """What the stages share: the texts, the probe, the store. Each is skipped if the store has it already."""

    def __init__(self, config, store, old, new, tokenizer):
        self.config, self.store, self.old, self.new = config, store, old, new
        measure = config.measure
        # What is forgotten of the old text is large beside its error: half as many texts do.
        self.held_out = {
            "old": old.held_out[: measure.loss_texts // 2 or 1],
            "new": new.held_out[: measure.loss_texts],
        }
        half = measure.texts // 2  # texts of both kinds, none of them trained on
        parts = [corpus.probe(n, measure.length) for corpus, n in ((old, half), (new, measure.texts - half)) if n]
        self.probe = torch.cat(parts)
        if tokenizer.bos_token_id is not None:  # the sink of a model that knows one; chats bring it along
            begun = self.probe[:, :1] == tokenizer.bos_token_id
            first = torch.full_like(self.probe[:, :1], tokenizer.bos_token_id)
            self.probe = torch.where(begun, self.probe, torch.cat([first, self.probe[:, :-1]], 1))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.collate = collate(0 if pad is None else pad)
        # Of a large vocabulary the logits are what takes most.
        self.loss = {"collate": self.collate, "batch": config.training.batch}
        self.device = models.device_of(config.training)
        # Every model is measured in the arithmetic that they are trained in, the base and the controls too.
        self.precision = functools.partial(torch.autocast, self.device, torch.bfloat16, enabled=config.training.bf16)

    def base(self):
        """The base model: trained on the old text or loaded, measured beside its untrained self and the nulls."""
        config, stage = self.config, (BASE, self.config.model.seed)
        if stage in self.store.done:
            return
        with self._stage(stage) as write:
            self._resumed(stage, write)
            model = models.untrained(config.model, config.data.context).to(self.device)
            self._growth(write, model, "untrained")
            self._samples(write, model, "untrained")
            if config.model.small:
                self._pretrain(model, stage, write)
            else:
                model = self._base().to(self.device)
            records = self._growth(write, model, "base")
            for treatment in TREATMENTS:
                self._growth(write, model, "base", treatment=treatment)
            write(*growth_nulls(records[0], config.measure, seed=config.model.seed))
            self._chain(write, model, "base")
            self._samples(write, model, "base")

    def _pretrain(self, model, stage, write):
        config = self.config
        steps = config.model.pretrain_steps
        trainer = finetune.make_trainer(
            model,
            self.old.train,
            config.training,
            steps=steps,
            learning_rate=config.model.pretrain_lr,
            seed=config.model.seed,
            label="pretraining",
            folder=self.store.scratch(stage),
            callbacks=[finetune.HeldOut(self.held_out, steps, write, **self.loss)],
            saved=lambda step: write({"kind": "checkpoint", "step": step}),
        )
        trainer.train(resume_from_checkpoint=self._checkpoint(stage))
        with together(self.store.processes):  # nobody reads it before it is there
            if self.store.processes.main:
                models.save_weights(model, self.store.base_weights)

    def _base(self):
        return models.base_model(self.config.model, self.config.data.context, self.store.base_weights)

    @functools.cached_property
    def start(self):
        """The base model's held-out losses, with which every fine-tuning begins."""
        model = self._base().to(self.device)
        with self.precision():
            return {text: finetune.held_out_loss(model, rows, **self.loss) for text, rows in self.held_out.items()}

    def tune(self, method, seed):
        """One fine-tuning on the new text, measured by the callback on the way and in full at its end."""
        config, stage = self.config, (method.name, seed)
        if stage in self.store.done:
            return
        with self._stage(stage) as write:
            start = self.start  # first: making the base model moves the random state that orders the texts
            self._resumed(stage, write)
            model, trainer, base = self._fine_tuning(method, seed, stage, write, f"{method.label}, seed {seed}")
            write({"kind": "parameters", **dict(zip(("trainable", "total"), models.trainable(model)))})
            losses = finetune.HeldOut(self.held_out, config.measure.every, write, start, **self.loss)
            trainer.add_callback(losses)
            context = dict(zip(("method", "seed"), stage))
            watching = finetune.watch(trainer, config.measure, self.probe, base=base, **self._out(context))
            trainer.train(resume_from_checkpoint=self._checkpoint(stage))
            if not math.isfinite(losses.last["new"]):  # at ten times the rate, perhaps: nothing is left to measure
                write({"kind": "diverged"})
                self.store.diverged.add(stage)
                return
            if method.kind != "full-ft" and method.keeps_base:  # else it fits a base that is nowhere
                self._save_adapter(model, method.name, seed)
            self._growth(write, model, method.name)
            self._chain(write, model, method.name)
            self._samples(write, model, f"{method.name}-{seed}", method.name)
            write(*profile_nulls(model, watching.recorder.base, config.measure, profiles=self._profiles(watching)))

    def controls(self, seed):
        """What the reference wrote with this seed, broken on purpose and put into the base model, kind by kind."""
        kinds = [kind for kind in ("negated", "haar", "random") if kind in self.config.controls]
        left = [kind for kind in kinds if (kind, seed) not in self.store.done]
        if not left:
            return
        reference = self.config.reference.name
        diverged = (reference, seed) in self.store.diverged
        updates = None if diverged else dict(artent.weight_updates(self.store.adapter(reference, seed)))
        model = self._base().to(self.device)
        for kind in left:
            with self._stage((kind, seed)) as write:
                if diverged:  # what it would be made from
                    write({"kind": "diverged"})
                    continue
                folder = self.store.folder if self.store.processes.main else None
                options = {"method": reference, "seed": seed, "folder": folder, "stem": f"{kind}-{seed}"}
                with self.precision():
                    records = control_records(model, updates, self.probe, self.config.measure, kind, **options)
                write(*records)

    def vary(self, variation):
        """A fine-tuning with one setting changed: its loss, its profiles, and S_ext where the sweep measures it."""
        stage, config, method = variation.stage, self.config, variation.method
        if stage in self.store.done:
            return
        with self._stage(stage) as write:
            start = self.start["new"]
            self._resumed(stage, write)
            told = f"{variation.method.label}, {variation.vary} {variation.value}"
            model, trainer, base = self._fine_tuning(method, variation.seed, stage, write, told)
            few, length = config.measure.sweep_texts, config.measure.length
            targets = config.measure.targets
            options = {"every": config.training.steps, "targets": targets, "external": few > 0, "base": base}
            if few:
                options |= {"probe": self.probe[-few:, :length], "lengths": (length,)}
            artent.attach(trainer, **options, **self._out(dict(zip(("method", "seed", "setting"), stage))))
            trainer.train(resume_from_checkpoint=self._checkpoint(stage))
            with self.precision():
                loss = finetune.held_out_loss(model, self.held_out["new"], **self.loss)
            settings = {"learning_rate": method.learning_rate, "rank": method.rank, "alpha": method.lora_alpha}
            settings |= {"chi": method.chi, "init": method.init, "loss": loss, "start": start}
            write({"kind": "sweep", "of": variation.of, "vary": variation.vary, "value": variation.value, **settings})

    def _fine_tuning(self, method, seed, stage, write, label):
        """(model, trainer, base) of ``method`` on the new text; base None where the model itself tells its update."""
        config = self.config
        model, base = self._base(), None
        if not method.keeps_base:
            base = models.weights_of(model, config.measure.targets)
        model = models.adapt(model, method, config.measure.targets, seed)
        if config.training.checkpointing and method.kind != "full-ft":
            model.enable_input_require_grads()
        trainer = finetune.make_trainer(
            model,
            self.new.train,
            config.training,
            learning_rate=method.learning_rate,
            weight_decay=method.weight_decay,
            seed=seed,
            label=label,
            folder=self.store.scratch(stage),
            collate=self.collate,
            shard=config.training.parallel == "fsdp" and method.kind == "full-ft" and self.store.processes.size > 1,
            saved=lambda step: write({"kind": "checkpoint", "step": step}),
        )
        return model, trainer, base

    def _out(self, context):
        """Where the recorder writes; first weights of large models are kept on the disk."""
        return {
            "out": self.store.writer,
            "context": context,
            "keep_base": "memory" if self.config.model.small else "disk",
        }

    def _profiles(self, watching):
        """The last profiles of the recorder, on every process."""
        profiles = None
        if self.store.processes.main:
            records = [r for r in watching.recorder.records if r["kind"] == "profile"]
            profiles = {r["module"]: artent.EntanglementProfile.from_dict(r) for r in records}
        return self.store.processes.broadcast(profiles)

    def _save_adapter(self, model, name, seed):
        folder = self.store.adapter(name, seed)
        part = folder.with_name(folder.name + ".part")
        with together(self.store.processes):
            if self.store.processes.main:
                for old in (folder, part):
                    shutil.rmtree(old, ignore_errors=True)
                model.save_pretrained(part)
                os.replace(part, folder)

    def _growth(self, write, model, name, **options):
        judge = self.config.judge
        options |= {"confidence": judge.confidence, "seed": self.config.model.seed}
        with self.precision():
            records = growth(model, self.probe, self.config.measure, name, **options)
        write(*records)
        return records

    def _chain(self, write, model, name):
        with self.precision():
            records = chain(model, self.probe.flip(0), self.config.measure, name)  # the new text first
        write(*records)

    def _samples(self, write, model, file, name=None):
        measure, folder = self.config.measure, self.store.folder
        with self.precision():
            if self.store.processes.main:
                write(samples_record(model, self.probe, measure, name or file, folder, stem=file))
            else:  # a sharded model's forward pass takes all processes
                samples(model, self.probe[:, : measure.length], measure.rows)

    def _resumed(self, stage, write):
        if stage in self.store.reached:
            write({"kind": "resumed", "step": self.store.reached[stage]})

    def _checkpoint(self, stage):
        step = self.store.reached.get(stage)
        return None if step is None else str(self.store.checkpoint(stage, step))

    @contextlib.contextmanager
    def _stage(self, stage):
        """Between ``start`` (none where it is resumed) and ``done``; yields what writes the records of the stage."""
        started = time.perf_counter()
        head = dict(zip(("method", "seed", "setting"), stage))

        def write(*records):
            self.store.write(*({**head, **record} for record in records))

        if stage not in self.store.reached:
            self.store.clear(stage)
            write({"kind": "start"})
        yield write
        write({"kind": "done", "seconds": time.perf_counter() - started})
        self.store.clear(stage)
        gc.collect()  # a model and its trainer hold each other: without it, two would be there at once
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
