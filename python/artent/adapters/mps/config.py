"""``MPSConfig``: what an MPS adapter is, as PEFT saves and loads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from numbers import Real

from peft import PeftConfig

from artent.adapters.mps.peft_shim import PEFT_TYPE, SAVES_BIAS
from artent.mps import CARRIERS

__all__ = ["MPSConfig"]

TENSORIZED = ("A", "B", "both")
BIASES = ("none", "all", "artent_mps_only")


@dataclass
class MPSConfig(PeftConfig):
    """ΔW = scaling · B · A with A (r × in), B (out × r) or both a chain of cores joined by bonds χ; B starts at zero.

    Used like ``peft.LoraConfig``; names that are the same mean the same. The side of a chain is cut into sites, and
    one end core carries the rank: [r, d₁, χ], [χ, d₂] for two sites. Its parameters are r·d₁·χ + χ·d₂ in place of
    r·d₁·d₂, and it represents every A of LoRA once χ reaches min(r·d₁, d₂).

    Args:
        r: the rank.
        lora_alpha: the scaling is lora_alpha / r, or lora_alpha / √r with ``use_rslora``.
        chi: the bond dimension, one for all bonds or one for each. Where a chain can hold less, it is lowered, with a
            warning.
        sites: ``"balanced"`` for two sites as near √dimension as its divisors allow, the smaller first; a number K
            ≥ 2 for K balanced sites; or the sites themselves, the most significant first, whose product must be the
            dimension of every tensorised side.
        carrier: the end core that carries r, ``"first"``, ``"last"``, or ``"auto"``: the end with the smaller site
            (the first on a tie), which takes the fewest parameters.
        tensorize: ``"A"`` (as in the paper), ``"B"`` or ``"both"``.
        target_modules: names, name endings or a regular expression of ``nn.Linear`` and ``Conv1D`` modules, or
            ``"all-linear"``; None for the model type's usual LoRA targets.
        exclude_modules: names or a regular expression of modules to leave alone.
        lora_dropout: dropout of the adapter's input.
        bias: ``"none"``, ``"all"`` or ``"artent_mps_only"``: which biases train too (PEFT ≥ 0.21).
        use_rslora: scale by 1/√r.
        rank_pattern, alpha_pattern: {module name or regular expression: its own r or lora_alpha}.
        modules_to_save: other modules that train whole and are saved along.
        layers_to_transform, layers_pattern: only the layers of these indices.
        init_weights: True: B zero and A with the variance of LoRA's, 1/(3·in), for any sites and χ (docs/math.md
            §6). False: B is random too.

    Raises:
        TypeError, ValueError: for a value of the wrong kind or range, named.
    """

    r: int = 8
    lora_alpha: float = 8
    chi: int | tuple[int, ...] = 32
    sites: str | int | tuple[int, ...] = "balanced"
    carrier: str = "auto"
    tensorize: str = "A"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    lora_dropout: float = 0.0
    bias: str = "none"
    use_rslora: bool = False
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_weights: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list | tuple):
                setattr(self, name, set(getattr(self, name)))
        self.rank_pattern, self.alpha_pattern = dict(self.rank_pattern or {}), dict(self.alpha_pattern or {})
        for name, r in {"r": self.r, **{f"rank_pattern[{k!r}]": v for k, v in self.rank_pattern.items()}}.items():
            _check_whole(name, r, 1)
        alphas = {f"alpha_pattern[{k!r}]": v for k, v in self.alpha_pattern.items()}
        for name, alpha in {"lora_alpha": self.lora_alpha, **alphas}.items():
            if isinstance(alpha, bool) or not isinstance(alpha, Real) or not (isfinite(alpha) and alpha > 0):
                raise ValueError(f"{name}: expected a positive number, got {alpha!r}")
        self.chi = _whole_or_many("chi", self.chi, 1)
        if self.sites != "balanced":
            if isinstance(self.sites, str):
                raise ValueError(
                    f"sites: expected 'balanced', a number of sites or the sites themselves, got {self.sites!r}"
                )
            self.sites = _whole_or_many("sites", self.sites, 2 if isinstance(self.sites, int) else 1)
        count = {"balanced": 2}.get(self.sites, self.sites) if not isinstance(self.sites, tuple) else len(self.sites)
        if count < 2:
            raise ValueError(f"sites: a chain has at least two, got {self.sites}; a dense factor is LoRA's")
        if isinstance(self.chi, tuple) and len(self.chi) != count - 1:
            raise ValueError(f"chi: {count} sites have {count - 1} bonds, got {len(self.chi)}: {self.chi}")
        _check_among("carrier", self.carrier, ("auto", *CARRIERS))
        _check_among("tensorize", self.tensorize, TENSORIZED)
        _check_among("bias", self.bias, BIASES)
        if self.bias != "none" and not SAVES_BIAS:
            raise ValueError(
                f"bias: {self.bias!r} needs peft ≥ 0.21, as older ones train these biases and do not save them: leave"
                " it at 'none'"
            )
        if (
            isinstance(self.lora_dropout, bool)
            or not isinstance(self.lora_dropout, Real)
            or not 0 <= self.lora_dropout < 1
        ):
            raise ValueError(f"lora_dropout: expected a probability in [0, 1), got {self.lora_dropout!r}")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: target_modules is a regular expression, {self.target_modules!r}: name layers there"
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern: only with layers_to_transform, which is None")


def _check_whole(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _whole_or_many(name, value, least):
    """``value`` checked, and a sequence of several (a list, when it comes from a file) as a tuple."""
    many = isinstance(value, list | tuple)
    for item in value if many else (value,):
        _check_whole(name, item, least)
    if many and not value:
        raise ValueError(f"{name}: empty")
    return tuple(value) if many else value


def _check_among(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
