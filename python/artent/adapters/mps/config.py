"""``MPSConfig``: what an MPS adapter is, as PEFT saves and loads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from numbers import Real

from peft import PeftConfig

from artent.adapters.mps.peft_shim import PEFT_TYPE, SAVES_BIAS
from artent.mps import CARRIERS
from artent_ext._arguments import integer

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
            (the first on a tie), which takes the fewest parameters where all bonds are equal.
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
        self._read_size()
        self._read_chain()
        self._read_targets()
        _check_among("bias", self.bias, BIASES)
        if self.bias != "none" and not SAVES_BIAS:
            raise ValueError(
                f"bias: {self.bias!r} needs peft ≥ 0.21, as older ones train these biases and do not save them: leave"
                " it at 'none'"
            )
        self.lora_dropout = _number("lora_dropout", self.lora_dropout)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout: expected a probability in [0, 1), got {self.lora_dropout}")

    def _read_size(self):
        self.r, self.lora_alpha = _whole("r", self.r), _positive("lora_alpha", self.lora_alpha)
        for name, read in (("rank_pattern", _whole), ("alpha_pattern", _positive)):
            pattern = getattr(self, name) or {}
            if not isinstance(pattern, dict):
                raise TypeError(f"{name} must be a dict of module names and values, got {type(pattern).__name__}")
            setattr(self, name, {key: read(f"{name}[{key!r}]", value) for key, value in pattern.items()})
        for name in ("use_rslora", "init_weights"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def _read_chain(self):
        self.chi = _whole_or_many("chi", self.chi)
        if isinstance(self.sites, str):
            _check_among("sites, where it is a word,", self.sites, ("balanced",))
            count = 2
        else:
            self.sites = _whole_or_many("sites", self.sites)
            count = len(self.sites) if isinstance(self.sites, tuple) else self.sites
        if count < 2:
            raise ValueError(f"sites: a chain has at least two, got {self.sites}; LoRA has the dense factor")
        if isinstance(self.chi, tuple) and len(self.chi) != count - 1:
            raise ValueError(f"chi: {count} sites have {count - 1} bonds, got {len(self.chi)}: {self.chi}")
        _check_among("carrier", self.carrier, ("auto", *CARRIERS))
        _check_among("tensorize", self.tensorize, TENSORIZED)

    def _read_targets(self):
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple | set) and all(isinstance(item, str) for item in value):
                setattr(self, name, set(value))
            elif not isinstance(value, str | None):
                raise TypeError(f"{name} must be names of modules, or one regular expression, got {value!r}")
        if isinstance(self.layers_to_transform, list | tuple):
            self.layers_to_transform = [_layer(item) for item in self.layers_to_transform]
        elif self.layers_to_transform is not None:
            self.layers_to_transform = _layer(self.layers_to_transform)
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: it picks among listed names, and target_modules is {self.target_modules!r}: list "
                        "names, or name the layers in a regular expression"
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern: only with layers_to_transform, which is None")


def _whole(name, value):
    value = integer(name, value, "a whole number")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _whole_or_many(name, value):
    """``value`` checked, and a sequence of several (a list, when it comes from a file) as a tuple."""
    if isinstance(value, list | tuple):
        return tuple(_whole(name, item) for item in value)
    return _whole(name, value)


def _layer(index):
    return integer("layers_to_transform", index, "a whole number, or a list of them")


def _number(name, value):
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return value if isinstance(value, int) else float(value)


def _positive(name, value):
    value = _number(name, value)
    if not 0 < value < inf:
        raise ValueError(f"{name} must be a positive number, got {value}")
    return value


def _check_among(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
