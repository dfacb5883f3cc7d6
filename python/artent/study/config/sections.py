"""The sections of a study's configuration: model, data, training, measurements, verdicts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataConfig", "JudgeConfig", "MeasureConfig", "ModelConfig", "TrainingConfig", "distinct"]

SMALL = "small"


def _at_least(section, of, **least):
    for key, low in least.items():
        value = getattr(of, key)
        if value is not None and not low <= value < float("inf"):
            raise ValueError(f"{section}.{key} must be at least {low}, but it is {value}")


def _one_of(section, of, **choices):
    for key, allowed in choices.items():
        if getattr(of, key) not in allowed:
            raise ValueError(f"{section}.{key} must be one of {', '.join(allowed)}, but it is {getattr(of, key)!r}")


def distinct(key, values, hint=""):
    if not values or len(set(values)) != len(values):
        told = ", ".join(map(str, values)) or "none"
        raise ValueError(f"{key} must be distinct and not empty, but they are {told}{hint}")


@dataclass(frozen=True)
class ModelConfig:
    """The model that is fine-tuned.

    Attributes:
        name: a folder or hub name of a causal LM; ``small`` is a LLaMA over bytes that the study makes and pretrains.
        dtype: of its weights, float32 or bfloat16.
        layers, width, heads, kv_heads, mlp_width: the shape of the small model.
        pretrain_steps, pretrain_lr: how long and at which learning rate it is pretrained on English.
        seed: of its weights and the order of its texts.
    """

    name: str = SMALL
    dtype: str = "float32"
    layers: int = 4
    width: int = 256
    heads: int = 8
    kv_heads: int = 4
    mlp_width: int = 512
    pretrain_steps: int = 220
    pretrain_lr: float = 3e-3
    seed: int = 0

    def __post_init__(self):
        _one_of("model", self, dtype=("float32", "bfloat16"))
        _at_least("model", self, layers=1, width=1, heads=1, kv_heads=1, mlp_width=1, pretrain_steps=1, seed=0)
        if not self.name:
            raise ValueError("model.name must be small, a folder or a hub name, but it is empty")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"model.width must be an even multiple of heads, but {self.width} / {self.heads} is not an even "
                "whole number: rotary embeddings need an even head dimension"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads must be a multiple of kv_heads, but they are {self.heads} and {self.kv_heads}"
            )
        if not 0 < self.pretrain_lr < float("inf"):
            raise ValueError(f"model.pretrain_lr must be positive, but it is {self.pretrain_lr}")

    @property
    def small(self):
        """Whether the study makes the model itself."""
        return self.name == SMALL


@dataclass(frozen=True)
class DataConfig:
    """The texts of the fine-tuning.

    Attributes:
        name: python-source or python-reference (they ship with Python), tulu3, openthoughts3, a hub name, a file
            (.jsonl, .json, .parquet, .arrow, .txt) or a folder of them.
        split: of a dataset from the hub.
        samples: rows that are taken, after shuffling; none: all.
        context: tokens of a training text at most.
        packing: several short texts in one block; they do not see each other.
        held_out: the share of rows that is never trained on.
        seed: of the shuffling and the split.
    """

    name: str = "python-source"
    split: str = "train"
    samples: int | None = None
    context: int = 256
    packing: bool = True
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self):
        _at_least("data", self, samples=1, context=2, seed=0)
        if not 0 < self.held_out < 1:
            raise ValueError(f"data.held_out must be a share between 0 and 1, but it is {self.held_out}")


@dataclass(frozen=True)
class TrainingConfig:
    """How every method is trained: AdamW (β₂ = 0.95, gradients clipped to norm 1), warm-up, cosine to zero.

    Attributes:
        steps: of the optimizer.
        batch: texts a device and forward pass.
        accumulation: forward passes a step.
        warmup: the share of the steps in which the learning rate rises.
        checkpointing: recompute activations in the backward pass, for memory.
        bf16: autocast to bfloat16. Weights keep ``model.dtype``; what is trained of them is float32.
        save_every: steps between checkpoints that a killed run goes on from; none: it starts the method again.
        parallel: with several processes, ddp (each holds the model) or fsdp (each holds a part).
        device: auto, cpu or cuda.
    """

    steps: int = 30
    batch: int = 4
    accumulation: int = 1
    warmup: float = 0.1
    checkpointing: bool = False
    bf16: bool = False
    save_every: int | None = None
    parallel: str = "ddp"
    device: str = "auto"

    def __post_init__(self):
        _at_least("training", self, steps=1, batch=1, accumulation=1, save_every=1)
        _one_of("training", self, parallel=("ddp", "fsdp"), device=("auto", "cpu", "cuda"))
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training.warmup must be a share from 0 to below 1, but it is {self.warmup}")


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured, when and on how much.

    Attributes:
        every: steps between measurements on the way.
        targets: the modules that adapters go to and whose updates are profiled.
        lengths: prefix lengths T, in tokens, of the growth of S_ext.
        texts: held-out texts that attention is measured on.
        step_texts, step_length: how many of them, and how long, on the way (none: half the longest length).
        loss_texts: held-out texts of the loss.
        null_draws: draws of every random null.
        rows: attention rows sampled a text, for total variation and outputs.
        chain_texts: texts whose attention matrices are profiled at every bond.
        sweep_texts: texts of S_ext at the end of the sweep's runs; 0: profiles and loss alone.
    """

    every: int = 10
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    lengths: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 256)
    texts: int = 8
    step_texts: int = 1
    step_length: int | None = None
    loss_texts: int = 16
    null_draws: int = 4
    rows: int = 8
    chain_texts: int = 1
    sweep_texts: int = 0

    def __post_init__(self):
        _at_least("measure", self, every=1, texts=1, step_texts=1, step_length=2, loss_texts=1, null_draws=1, rows=1)
        _at_least("measure", self, chain_texts=0, sweep_texts=0)
        distinct("measure.targets", self.targets)
        distinct("measure.lengths", self.lengths)
        if len(self.lengths) < 2 or min(self.lengths) < 2:
            raise ValueError(
                f"measure.lengths must be at least two whole numbers from 2 up, but they are {self.lengths}"
            )
        for key in ("step_texts", "chain_texts", "sweep_texts"):
            if getattr(self, key) > self.texts:
                raise ValueError(f"measure.{key} must be at most texts = {self.texts}, but it is {getattr(self, key)}")
        if self.step_length is not None and self.step_length > self.length:
            raise ValueError(
                f"measure.step_length must be at most the longest of lengths, {self.length}, not {self.step_length}"
            )

    @property
    def length(self):
        """The longest T."""
        return max(self.lengths)

    @property
    def on_the_way(self):
        """The T that is measured while training."""
        return max(2, self.length // 2) if self.step_length is None else self.step_length


@dataclass(frozen=True)
class JudgeConfig:
    """What a verdict takes, stated beforehand.

    Attributes:
        seeds: seeds a method; fewer are not enough data.
        margin: nats of S_ext; differences below it count as none (the equivalence margin).
        confidence: of intervals and tests.
        loss_margin: nats a token (of the small model a byte); differences of held-out loss below it count as none.
    """

    seeds: int = 4
    margin: float = 0.1
    confidence: float = 0.95
    loss_margin: float = 0.02

    def __post_init__(self):
        _at_least("judge", self, seeds=2)
        for key in ("margin", "loss_margin"):
            if not 0 < (value := getattr(self, key)) < float("inf"):
                raise ValueError(f"judge.{key} must be positive, but it is {value}")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"judge.confidence must be between 0.5 and 1, but it is {self.confidence}")
