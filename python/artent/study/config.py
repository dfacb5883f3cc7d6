"""What a study does, as a value: sizes, schedules, seeds. Everything random or adjustable is named here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

__all__ = ["CONFIGS", "Method", "StudyConfig", "named_config"]


KINDS = ("full-ft", "lora", "mps")


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning: full FT of all weights, or LoRA or MPS adapters of ``targets`` at a rank.

    An MPS is LoRA with its factor A (r, n) as two cores on sites n = d₁·d₂, whose bond has dimension ``chi``.
    """

    kind: str
    learning_rate: float
    rank: int | None = None
    chi: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, but it is {self.kind!r}")
        for key, needed in (("rank", self.kind != "full-ft"), ("chi", self.kind == "mps")):
            value = getattr(self, key)
            if needed != (value is not None) or (value is not None and value < 1):
                expected = "at least 1" if needed else "None"
                raise ValueError(f"{key} of {self.kind} must be {expected}, but it is {value}")

    @property
    def name(self):
        return self.kind if self.rank is None else f"{self.kind}-r{self.rank}"

    @property
    def label(self):
        if self.rank is None:
            return "full FT"
        kind = {"lora": "LoRA", "mps": "MPS"}[self.kind]
        return f"{kind} r = {self.rank}" + (f" (χ = {self.chi})" if self.chi else "")

    @classmethod
    def from_dict(cls, values):
        """The method that ``asdict`` wrote; records from before there was a kind hold full FT and LoRA only."""
        return cls(**{"kind": "full-ft" if values["rank"] is None else "lora", **values})


@dataclass(frozen=True)
class StudyConfig:
    """One study. Texts are bytes, lengths are tokens, entropies downstream are nats.

    ``sweep``: further learning rates, as factors of each method's own; tried with the first seed, for the loss alone.
    """

    name: str
    layers: int = 4
    width: int = 256
    heads: int = 8
    kv_heads: int = 4
    mlp_width: int = 512
    context: int = 256
    batch: int = 4
    pretrain_steps: int = 220
    pretrain_lr: float = 3e-3
    tune_steps: int = 30
    measure_every: int = 10
    methods: tuple[Method, ...] = (
        Method("full-ft", 1e-3),
        Method("lora", 2e-2, rank=4),
        Method("lora", 1e-2, rank=16),
        # Sites of 256 are (16, 16): r meets 16 first, so the bond holds 16 at most, and 8 halves it, as in the paper
        # (32 of 64). A then has 16·16·8 + 8·16 = 2176 parameters, LoRA's 16·256 = 4096.
        Method("mps", 1e-2, rank=16, chi=8),
    )
    sweep: tuple[float, ...] = (10**-0.5, 10**0.5)
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    seeds: tuple[int, ...] = (0, 1)
    held_out: float = 0.05
    loss_texts: int = 16
    probe_texts: int = 8
    lengths: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128, 256)
    null_draws: int = 4
    base_seed: int = 0

    def __post_init__(self):
        whole = ("layers", "width", "heads", "kv_heads", "mlp_width", "context", "batch", "pretrain_steps")
        whole += ("tune_steps", "measure_every", "loss_texts", "probe_texts", "null_draws")
        for key in whole:
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, but it is {getattr(self, key)}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"width must be an even multiple of heads, but {self.width} / {self.heads} is not an even "
                "whole number: rotary embeddings need an even head dimension"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, but they are {self.heads} and {self.kv_heads}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, but it is {self.held_out}")
        if len(self.lengths) < 2 or min(self.lengths) < 2 or max(self.lengths) > self.context:
            raise ValueError(
                f"lengths must be at least two whole numbers from 2 to the context of {self.context}, "
                f"but they are {self.lengths}: beyond the training context the growth law means nothing"
            )
        for key, values in (
            ("methods", [method.name for method in self.methods]),
            ("seeds", self.seeds),
            ("targets", self.targets),
        ):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{key} must be distinct and not empty, but they are {', '.join(map(str, values))}")
        if len({1.0, *self.sweep}) <= len(self.sweep) or not all(0 < factor < float("inf") for factor in self.sweep):
            raise ValueError(
                f"sweep must be distinct factors of the learning rate, positive and without 1 (every method's own rate "
                f"is run anyway), but they are {self.sweep}"
            )

    @property
    def runs(self):
        """Every (method, seed), seeds outermost, so that a study cut short has whole comparisons."""
        return [(method, seed) for seed in self.seeds for method in self.methods]

    @property
    def sweeps(self):
        """Every (method, seed, factor) of the learning-rate sweep."""
        return [(method, self.seeds[0], factor) for method in self.methods for factor in self.sweep]

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """The configuration that ``to_dict`` wrote; one from before there were sweeps has none."""
        values = {"sweep": (), **values}
        methods = tuple(map(Method.from_dict, values["methods"]))
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, (list, tuple))}
        return cls(**{**values, **lists, "methods": methods})

    def override(self, assignments):
        """A copy with ``key=value`` strings applied, each value read in the type of the field it replaces.

        Tuples of numbers are written ``0,1,2``, an empty one as nothing. Raises ValueError for an unknown key or an
        unreadable value.
        """
        settable = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "methods")}
        changes = {}
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals or key not in settable:
                raise ValueError(f"--set wants key=value with a key among {', '.join(settable)}; it got {assignment!r}")
            old = settable[key]
            try:
                if isinstance(old, tuple):
                    changes[key] = tuple(type(old[0])(item) for item in text.split(",")) if text else ()
                else:
                    changes[key] = type(old)(text)
            except ValueError as error:
                raise ValueError(
                    f"--set {key}: {text!r} does not read as the {type(old).__name__} it was ({old})"
                ) from error
        return replace(self, **changes)


CONFIGS = {
    config.name: config
    for config in (
        StudyConfig("quick"),
        StudyConfig(
            "smoke",
            layers=2,
            width=32,
            heads=4,
            kv_heads=2,
            mlp_width=48,
            context=32,
            batch=4,
            pretrain_steps=6,
            tune_steps=4,
            measure_every=2,
            methods=(Method("full-ft", 1e-3), Method("lora", 1e-2, rank=2), Method("mps", 1e-2, rank=2, chi=2)),
            loss_texts=4,
            probe_texts=4,
            lengths=(8, 16, 32),
            null_draws=2,
        ),
    )
}


def named_config(name):
    """The configuration called ``name``; ValueError lists the names there are."""
    if name not in CONFIGS:
        raise ValueError(f"config must be one of {', '.join(CONFIGS)}, but it is {name!r}")
    return CONFIGS[name]
