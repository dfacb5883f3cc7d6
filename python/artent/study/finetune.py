"""Training through transformers' Trainer: arguments, the held-out loss on the way, checkpoints that a kill may cut."""

from __future__ import annotations

import contextlib
import warnings

import torch
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

import artent
from artent.distributed import processes
from artent.study.models import device_of

__all__ = ["HeldOut", "held_out_loss", "make_trainer", "quiet", "watch"]


def make_trainer(model, dataset, training, *, learning_rate, seed, label, folder, steps=None, shard=False, **more):
    """A Trainer over ``dataset`` (rows of token ids and labels): AdamW, warm-up, cosine to zero, one progress bar.

    Args:
        training: the study's ``TrainingConfig``.
        steps: in place of ``training.steps``.
        shard: FSDP's second version over the processes, if ``training.parallel`` asks for it.
        more: ``callbacks``, ``collate`` (the data collator), ``weight_decay``, ``saved`` (called with a step once a
            checkpoint of it is whole; without it, none is written).
    """
    steps, saved = steps or training.steps, more.get("saved")
    saving = saved is not None and training.save_every is not None and training.save_every < steps
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, int(training.warmup * steps)) if training.warmup else 0,
        adam_beta2=0.95,
        weight_decay=more.get("weight_decay", 0.0),
        seed=seed,
        bf16=training.bf16,
        gradient_checkpointing=training.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.checkpointing else None,
        use_cpu=device_of(training) == "cpu",
        report_to=[],
        save_strategy="steps" if saving else "no",
        save_steps=training.save_every or 500,
        save_total_limit=2,  # the older one goes when the newer is whole
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        **({"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}} if shard else {}),
    )
    callbacks = list(more.get("callbacks", ()))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=more.get("collate"),
        callbacks=[ProgressBar(label), *callbacks, *([Saving(saved)] if saving else [])],
    )
    trainer.remove_callback(PrinterCallback)  # with its bar off, Trainer would print every log instead
    return trainer


def watch(trainer, measure, probe, **options):
    """``artent.attach`` on the way: the last texts of ``probe``, cut to ``measure.on_the_way`` tokens."""
    few = probe[-measure.step_texts :, : measure.on_the_way]
    options = {"every": measure.every, "probe": few, "lengths": (few.shape[1],)} | options
    return artent.attach(trainer, targets=measure.targets, **options)


@torch.no_grad()
def held_out_loss(model, rows, collate=None, batch=8):
    """Mean cross-entropy of the labelled tokens of ``rows``, in nats a token; every process takes all of them."""
    from transformers import default_data_collator

    training, device = model.training, next(model.parameters()).device
    model.eval()
    total = count = 0
    for at in range(0, len(rows), batch):
        part = (collate or default_data_collator)(rows[at : at + batch])
        part = {key: value.to(device) for key, value in part.items()}
        tokens = (part["labels"][:, 1:] != -100).sum().item()
        total += model(**part).loss.item() * tokens
        count += tokens
    model.train(training)
    return total / count


class HeldOut(TrainerCallback):
    """Passes ``record({"step", "text", "loss"})`` for every text at the start, every ``every`` steps and the end.

    ``start``: the losses at the start where they are known, ``{text: loss}``: every fine-tuning begins as the base.
    """

    def __init__(self, texts, every, record, start=None, collate=None, batch=8):
        self.texts, self.every, self.record, self.start = texts, every, record, start
        self.options = {"collate": collate, "batch": batch}
        self.last = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not state.global_step:  # else it is there, from before the interruption
            self._measure(0, model, self.start or {})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step, model)

    def _measure(self, step, model, known=()):
        for text, rows in self.texts.items():
            loss = self.last[text] = known[text] if text in known else held_out_loss(model, rows, **self.options)
            self.record({"kind": "loss", "step": step, "text": text, "loss": loss})


class Saving(TrainerCallback):
    """Tells which checkpoints are whole. None is written at the end: what follows is measured from the live model."""

    def __init__(self, saved):
        self.saved = saved

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args, state, control, **kwargs):
        self.saved(state.global_step)


class ProgressBar(TrainerCallback):
    def __init__(self, label):
        self.label = label

    def on_train_begin(self, args, state, control, **kwargs):
        hidden = not processes().main
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step", disable=hidden)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


@contextlib.contextmanager
def quiet():
    """Libraries keep to errors inside; their own progress bars are off, ours stay."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()
