"""A study as a value: its sections, its methods, what is varied. Everything random or adjustable is named here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import NamedTuple

from artent.study.config.methods import CONTROLS, Method, Sweep
from artent.study.config.sections import (
    DataConfig,
    JudgeConfig,
    MeasureConfig,
    ModelConfig,
    TrainingConfig,
    distinct,
)

__all__ = ["SECTIONS", "StudyConfig", "Variation"]


class Variation(NamedTuple):
    """One run of the sweep: ``method`` is the base method ``of`` with ``vary`` set to ``value``."""

    of: str
    vary: str
    value: float | str
    method: Method
    seed: int

    @property
    def stage(self):
        value = self.value if isinstance(self.value, str) else f"{self.value:.6g}"
        return self.of, self.seed, f"{self.vary}={value}"


@dataclass(frozen=True)
class StudyConfig:
    """One study. Lengths are tokens, entropies downstream are nats.

    Attributes:
        name: what the report calls it.
        methods: the ways of fine-tuning that are compared.
        sweep: settings that are varied, one at a time.
        controls: models that the test of no-hair must be able to tell: untrained, lora-10x (ten times the learning
            rate), negated (−ΔW), haar (ΔW with random singular vectors), random (of equal norm).
        seeds: one run of every method each: the order of the texts and the adapter's start.
    """

    name: str
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen)
    data: DataConfig = DataConfig()  # noqa: RUF009 (frozen)
    training: TrainingConfig = TrainingConfig()  # noqa: RUF009 (frozen)
    measure: MeasureConfig = MeasureConfig()  # noqa: RUF009 (frozen)
    judge: JudgeConfig = JudgeConfig()  # noqa: RUF009 (frozen)
    methods: tuple[Method, ...] = field(
        default=(
            Method("full-ft", 1e-3),
            Method("lora", 2e-2, rank=4),
            Method("lora", 1e-2, rank=16),
            # Sites of 256 are (16, 16): r meets 16 first, so the bond holds 16 at most, and 8 halves it, as in the
            # paper (32 of 64). A then has 16·16·8 + 8·16 = 2176 parameters, LoRA's 16·256 = 4096.
            Method("mps", 1e-2, rank=16, chi=8),
        )
    )
    sweep: tuple[Sweep, ...] = ()
    controls: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self):
        distinct("methods", [method.name for method in self.methods], "; alias gives a method a name of its own")
        distinct("seeds", self.seeds)
        if min(*self.seeds, self.model.seed) < 0 or max(*self.seeds, self.model.seed, self.data.seed) >= 2**32:
            raise ValueError(f"seeds must be from 0 to 2³² − 1, but they are {', '.join(map(str, self.seeds))}")
        if len(set(self.controls)) != len(self.controls) or set(self.controls) - set(CONTROLS):
            raise ValueError(
                f"controls must be distinct names among {', '.join(CONTROLS)}, but they are {self.controls}"
            )
        names = {method.name for method in self.methods}
        if taken := names & {*CONTROLS, "base"}:
            raise ValueError(f"methods: {', '.join(sorted(taken))} is a name that the study uses itself")
        if set(self.controls) - {"untrained"} and self.reference is None:
            raise ValueError(
                f"controls {', '.join(self.controls)} are made from a LoRA that keeps the base, but there is none"
            )
        for sweep in self.sweep:
            if sweep.of != "*" and sweep.of not in names:
                raise ValueError(f"sweep: of must be * or one of {', '.join(sorted(names))}, but it is {sweep.of!r}")
            if not any(sweep.of_method(m) for m in self.methods if sweep.of in ("*", m.name)):
                raise ValueError(f"sweep of {sweep.vary}: no method has that setting at another value than these")
        if self.measure.length > self.data.context:
            raise ValueError(
                f"measure.lengths must be at most data.context = {self.data.context}, but they are "
                f"{self.measure.lengths}: beyond the training context the growth law means nothing"
            )
        stages = [variation.stage for variation in self.variations]
        if len(set(stages)) != len(stages):
            twice = sorted({stage[2] for stage in stages if stages.count(stage) > 1})
            raise ValueError(f"sweep: {', '.join(twice)} is asked for twice of one method")

    @property
    def reference(self):
        """The method that controls are made from: the LoRA of highest rank that keeps the base's weights, or None."""
        return max((m for m in self.methods if m.kind == "lora" and m.keeps_base), key=lambda m: m.rank, default=None)

    @property
    def tenfold(self):
        """The control lora-10x: the reference at ten times its learning rate."""
        return replace(self.reference, learning_rate=10 * self.reference.learning_rate, alias="lora-10x")

    @property
    def runs(self):
        """Every (method, seed), seeds outermost, so that a study cut short has whole comparisons."""
        methods = (*self.methods, *((self.tenfold,) if "lora-10x" in self.controls else ()))
        return [(method, seed) for seed in self.seeds for method in methods]

    @property
    def variations(self):
        """Every run of the sweep."""
        return [
            Variation(method.name, sweep.vary, value, changed, seed)
            for sweep in self.sweep
            for method in self.methods
            if sweep.of in ("*", method.name)
            for value, changed in sweep.of_method(method)
            for seed in (sweep.seeds or self.seeds[:1])
        ]

    def to_dict(self):
        return asdict(self)


SECTIONS = {f.name: type(f.default) for f in fields(StudyConfig) if hasattr(f.default, "__dataclass_fields__")}
