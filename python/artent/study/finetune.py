"""The small LLaMA of the study: making it, training it through transformers' Trainer, its held-out loss."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings

import torch
from safetensors.torch import load_model, save_model
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

import artent

__all__ = ["HeldOut", "adapt", "held_out_loss", "load_base", "make_trainer", "quiet", "save_base", "untrained", "watch"]


def untrained(config):
    """The model before pretraining, the same for every call: its seed is ``config.base_seed``."""
    torch.manual_seed(config.base_seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            initializer_range=config.width**-0.5,  # LLaMA's 0.02 suits widths in the thousands, and learns slowly here
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )


def save_base(model, weights):
    """Write the model's weights to a safetensors file that is whole or absent, whenever the process is killed."""
    part = weights.with_name(weights.name + ".part")
    save_model(model, part)
    os.replace(part, weights)


def load_base(config, weights):
    """The pretrained model from its safetensors file."""
    model = untrained(config)
    load_model(model, weights)
    return model


def adapt(model, method, targets, seed):
    """What ``method`` trains: the model itself for full FT, else the model under adapters of ``targets``, α = 2r."""
    if method.kind == "full-ft":
        return model
    import peft

    torch.manual_seed(seed)  # the adapter's initialisation
    common = {"r": method.rank, "lora_alpha": 2 * method.rank, "target_modules": list(targets), "lora_dropout": 0.0}
    options = peft.LoraConfig(**common) if method.kind == "lora" else artent.MPSConfig(**common, chi=method.chi)
    return peft.get_peft_model(model, options)


def make_trainer(model, blocks, *, steps, batch, learning_rate, seed, label, folder, callbacks=()):
    """A Trainer over ``blocks`` (texts, context): AdamW, 10 % warm-up, cosine to zero, one progress bar."""
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        adam_beta2=0.95,
        seed=seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    dataset = [{"input_ids": block, "labels": block} for block in blocks]
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[ProgressBar(label), *callbacks])
    trainer.remove_callback(PrinterCallback)  # with its bar off, Trainer would print every log instead
    return trainer


def watch(trainer, config, probe, **options):
    """``artent.attach`` on the way: the last text of ``probe``, half as long, for the end is measured in full."""
    few = probe[-1:, : config.context // 2]
    options = {"every": config.measure_every, "lengths": (few.shape[1],)} | options
    return artent.attach(trainer, targets=config.targets, probe=few, **options)


@torch.no_grad()
def held_out_loss(model, blocks, batch=8):
    """Mean next-byte cross-entropy over ``blocks`` (texts, context), in nats a byte."""
    training = model.training
    model.eval()
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in blocks.split(batch)]
    model.train(training)
    return sum(losses) / len(blocks)


class HeldOut(TrainerCallback):
    """Passes ``record({"step", "text", "loss"})`` for every text at the start, every ``every`` steps and the end.

    ``start``: the losses at the start where they are known, ``{text: loss}``: every fine-tuning begins as the base.
    """

    def __init__(self, texts, every, record, start=None):
        self.texts, self.every, self.record, self.start = texts, every, record, start

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._measure(state.global_step, model, self.start or {})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step, model)

    def _measure(self, step, model, known=()):
        for text, blocks in self.texts.items():
            loss = known[text] if text in known else held_out_loss(model, blocks)
            self.record({"kind": "loss", "step": step, "text": text, "loss": loss})


class ProgressBar(TrainerCallback):
    def __init__(self, label):
        self.label = label

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc=self.label, unit="step", leave=True)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


@contextlib.contextmanager
def quiet():
    """Libraries keep to errors inside; their own progress bars are off, ours stay."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        try:
            yield scratch
        finally:
            transformers_logging.set_verbosity(level)
