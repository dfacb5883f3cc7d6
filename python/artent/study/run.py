"""The study from nothing to its report: pretrain, fine-tune by every method and seed, sweep, measure, write, tell."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import time

import torch

import artent
from artent.study import finetune, measure
from artent.study.corpus import english, source
from artent.study.store import BASE, Store

__all__ = ["run_study"]

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy")


def run_study(config, folder, resume=False):
    """Run ``config`` into ``folder`` and return the path of the report.

    Stages that ``folder`` already holds are not run again with ``resume``. Raises FileExistsError for a folder in
    use without ``resume``, ValueError for one of another configuration.
    """
    from artent.study.report import write_report

    started = time.perf_counter()
    store = Store(folder, config, resume)
    wanted = {(BASE, config.base_seed), *((method.name, *at) for method, *at in (*config.runs, *config.sweeps))}
    if wanted <= store.done:
        store.close()
        return write_report(store.folder)
    try:
        old, new = english(config.context, config.held_out), source(config.context, config.held_out)
        store.writer.write(setup_record(config, old, new))
        with finetune.quiet() as scratch:
            study = _Study(config, store, old, new, scratch)
            study.pretrain()
            for method, seed in config.runs:
                study.tune(method, seed)
            for method, seed, factor in config.sweeps:
                study.sweep(method, seed, factor)
        store.writer.write({"kind": "finished", "seconds": time.perf_counter() - started})
    finally:
        store.close()
    return write_report(store.folder)


def setup_record(config, old, new):
    """Everything the numbers depend on that is not in the code."""
    texts = {key: [t.name, t.size, t.fingerprint] for key, t in (("old", old), ("new", new))}
    versions = {"artent": artent.__version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "kind": "setup",
        "config": config.to_dict(),
        "texts": texts,
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch on {torch.get_num_threads()} threads",
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


class _Study:
    """What the stages share: the texts, the probe, the store."""

    def __init__(self, config, store, old, new, scratch):
        self.config, self.store, self.old, self.new, self.scratch = config, store, old, new, scratch
        # What is forgotten of the old text is large beside its error: half as many texts do.
        self.held_out = {"old": old.held_out[: config.loss_texts // 2 or 1], "new": new.held_out[: config.loss_texts]}
        half = config.probe_texts // 2  # texts of both kinds, none of them trained on
        self.probe = torch.cat([old.held_out[:half], new.held_out[: config.probe_texts - half]])

    def pretrain(self):
        """The base model: trained on the old text, saved, and measured beside its untrained self and the nulls."""
        config = self.config
        if (BASE, config.base_seed) in self.store.done:
            return
        with self._stage(BASE, config.base_seed) as write:
            model = finetune.untrained(config)
            write(*measure.growth(model, self.probe, config, "untrained"))
            trainer = finetune.make_trainer(
                model,
                self.old.train,
                steps=config.pretrain_steps,
                batch=config.batch,
                learning_rate=config.pretrain_lr,
                seed=config.base_seed,
                label="pretraining",
                folder=self.scratch,
                callbacks=[finetune.HeldOut(self.held_out, config.pretrain_steps, write)],
            )
            trainer.train()
            finetune.save_base(model, self.store.base_weights)
            growth = measure.growth(model, self.probe, config, "base")
            write(*growth, *measure.growth_nulls(growth[0], config))

    @functools.cached_property
    def start(self):
        """The base model's held-out losses, with which every fine-tuning begins."""
        base = finetune.load_base(self.config, self.store.base_weights)
        return {text: finetune.held_out_loss(base, blocks) for text, blocks in self.held_out.items()}

    def tune(self, method, seed):
        """One fine-tuning on the new text, measured by the callback on the way and in full at its end."""
        config = self.config
        if (method.name, seed) in self.store.done:
            return
        with self._stage(method.name, seed) as write:
            start = self.start  # first: making the base model moves the random state that orders the texts
            model, trainer = self._fine_tuning(method, seed, method.learning_rate, f"{method.label}, seed {seed}")
            trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
            write({"kind": "parameters", "trainable": trainable})
            trainer.add_callback(finetune.HeldOut(self.held_out, config.measure_every, write, start))
            context = {"method": method.name, "seed": seed}
            finetune.watch(trainer, config, self.probe, out=self.store.writer, context=context)
            trainer.train()
            write(*measure.growth(model, self.probe, config, method.name))
            base = finetune.load_base(config, self.store.base_weights) if method.kind == "full-ft" else None
            write(*measure.profile_nulls(model, base, config))

    def sweep(self, method, seed, factor):
        """The same fine-tuning at another learning rate, for its held-out loss alone."""
        if (method.name, seed, factor) in self.store.done:
            return
        with self._stage(method.name, seed, factor=factor) as write:
            rate = method.learning_rate * factor
            model, trainer = self._fine_tuning(method, seed, rate, f"{method.label}, learning rate {rate:.2g}")
            trainer.train()
            loss = finetune.held_out_loss(model, self.held_out["new"])
            write({"kind": "sweep", "learning_rate": rate, "loss": loss})

    def _fine_tuning(self, method, seed, rate, label):
        """(model, trainer) of ``method`` on the new text, from the base model."""
        config = self.config
        model = finetune.adapt(finetune.load_base(config, self.store.base_weights), method, config.targets, seed)
        trainer = finetune.make_trainer(
            model,
            self.new.train,
            steps=config.tune_steps,
            batch=config.batch,
            learning_rate=rate,
            seed=seed,
            label=label,
            folder=self.scratch,
        )
        return model, trainer

    @contextlib.contextmanager
    def _stage(self, method, seed, **at):
        """Between a ``start`` and a ``done`` record; yields what writes the records of the stage."""
        started = time.perf_counter()
        stage = {"method": method, "seed": seed, **at}

        def write(*records):
            self.store.writer.write(*({**stage, **record} for record in records))

        write({"kind": "start"})
        yield write
        write({"kind": "done", "seconds": time.perf_counter() - started})
