"""What a study trains: a way of fine-tuning as a value, and what a sweep varies of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

__all__ = ["CONTROLS", "KINDS", "VARIED", "Method", "Sweep"]

KINDS = ("full-ft", "lora", "mps")
TRAINED = ("all", "targets")
VARIED = ("learning_rate", "rank", "alpha", "chi", "init")
# Models that a test of equivalence has to tell from the others, or it has no power (docs/math.md §5).
CONTROLS = ("untrained", "lora-10x", "negated", "haar", "random")


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning: full FT, or LoRA or MPS adapters of the study's targets.

    An MPS is LoRA with its factor A (r, n) as ``cores`` small cores, whose bonds have dimension ``chi``.

    Attributes:
        kind: full-ft, lora or mps.
        learning_rate: of AdamW, at the end of the warm-up.
        rank: r of an adapter.
        alpha: the adapter's α, ΔW = (α/r)·B·A; None: 2r.
        chi: dimension of the bonds between an MPS's cores.
        cores: how many cores an MPS has.
        init: how LoRA starts, as ``LoraConfig.init_lora_weights`` (true, gaussian, pissa, olora, orthogonal, …).
        train: what full FT trains, all weights or the targets alone.
        weight_decay: of AdamW.
        alias: a name in place of the one made from the above, for two methods that would share it.
    """

    kind: str
    learning_rate: float
    rank: int | None = None
    alpha: float | None = None
    chi: int | None = None
    cores: int = 2
    init: bool | str = True
    train: str = "all"
    weight_decay: float = 0.0
    alias: str | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, but it is {self.kind!r}")
        for key, needed in (("rank", self.kind != "full-ft"), ("chi", self.kind == "mps")):
            value = getattr(self, key)
            if needed != (value is not None) or (value is not None and value < 1):
                expected = "at least 1" if needed else "None"
                raise ValueError(f"{key} of {self.kind} must be {expected}, but it is {value}")
        if self.train not in TRAINED:
            raise ValueError(f"train must be one of {', '.join(TRAINED)}, but it is {self.train!r}")
        for key, allowed in (("alpha", "rank"), ("init", "lora"), ("cores", "mps"), ("train", "full-ft")):
            given = getattr(self, key) != type(self).__dataclass_fields__[key].default
            if given and not (self.rank is not None if allowed == "rank" else self.kind == allowed):
                whose = "an adapter" if allowed == "rank" else allowed
                raise ValueError(f"{key} is a setting of {whose}, but the method is {self.kind}")
        if not 0 < self.learning_rate < float("inf") or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"learning_rate must be positive and weight_decay at least 0, but they are {self.learning_rate} and "
                f"{self.weight_decay}"
            )
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive, but it is {self.alpha}")
        if self.init is False:
            raise ValueError("init is false: such an adapter starts with a random update; take true, or a named start")
        if self.cores < 2:
            raise ValueError(f"cores must be at least 2, but it is {self.cores}: a single core is LoRA's A")
        if self.alias is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.alias):
            raise ValueError(f"alias must be letters, digits, dots, dashes (files carry it), but it is {self.alias!r}")

    @cached_property
    def name(self):
        """What records and files call it."""
        if self.alias is not None:
            return self.alias
        if self.rank is None:
            return "full-ft" if self.train == "all" else "full-ft-targets"
        parts = [self.kind, f"r{self.rank}"]
        parts += [f"a{self.alpha:g}"] if self.scale != 2 else []
        parts += [str(self.init).lower()] if self.init is not True else []
        return "-".join(parts)

    @property
    def label(self):
        """What readers see."""
        if self.alias == "lora-10x":
            return f"LoRA r = {self.rank} at 10 × its rate"
        if self.rank is None:
            return "full FT" if self.train == "all" else "full FT of the targets"
        kind = {"lora": "LoRA", "mps": "MPS"}[self.kind]
        more = [f"χ = {self.chi}"] if self.chi else []
        more += [f"α = {self.alpha:g}"] if self.scale != 2 else []
        more += [str(self.init)] if self.init is not True else []
        more += [self.alias] if self.alias is not None else []
        return f"{kind} r = {self.rank}" + (f" ({', '.join(more)})" if more else "")

    @property
    def lora_alpha(self):
        """α as adapters take it; None for full FT."""
        return None if self.rank is None else 2 * self.rank if self.alpha is None else self.alpha

    @property
    def scale(self):
        """α/r; None for full FT."""
        return None if self.rank is None else self.lora_alpha / self.rank

    @property
    def keeps_base(self):
        """Whether its adapters start beside the base's weights; PiSSA and the like take their start out of them."""
        from artent.reading.adapter_files import BASE_KEPT

        return self.init in BASE_KEPT

    def varied(self, vary, value):
        """The same method with one setting changed; an α that was not set follows the rank."""
        return replace(self, **{vary: value})

    @classmethod
    def from_dict(cls, values):
        """The method that ``asdict`` wrote; records from before there was a kind hold full FT and LoRA only."""
        return cls(**{"kind": "full-ft" if values["rank"] is None else "lora", **values})


@dataclass(frozen=True)
class Sweep:
    """One setting of a method (or of every method that has it) at other values, everything else as it was.

    Attributes:
        of: a method's name, or ``*`` for all that have the setting.
        vary: learning_rate, rank, alpha, chi or init.
        values: the values; or
        times: factors of the method's own value.
        seeds: None for the study's first seed alone.
    """

    vary: str
    of: str = "*"
    values: tuple[float | bool | str, ...] = ()
    times: tuple[float, ...] = ()
    seeds: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.vary not in VARIED:
            raise ValueError(f"sweep: vary must be one of {', '.join(VARIED)}, but it is {self.vary!r}")
        if bool(self.values) == bool(self.times):
            raise ValueError(f"sweep of {self.vary}: give values or times (factors of the method's own), one of them")
        if self.times and self.vary == "init":
            raise ValueError("sweep of init: give values, an initialisation has no factors")
        for given in (self.values, self.times):
            numbers = [x for x in given if not isinstance(x, str)]
            if len(set(given)) != len(given) or not all(0 < x < float("inf") for x in numbers):
                raise ValueError(f"sweep of {self.vary} must be distinct positive values, but they are {given}")
        if any(isinstance(x, str) for x in self.values) != (self.vary == "init") and self.values != (True,):
            raise ValueError(f"sweep of {self.vary}: {self.values} are not values of it")

    def of_method(self, method):
        """(value, method with it) of every point, the method's own left out; none where it has no such setting."""
        own = method.lora_alpha if self.vary == "alpha" else getattr(method, self.vary)
        has = {"init": method.kind == "lora", "learning_rate": True}.get(self.vary, own is not None)
        if not has:
            return []
        whole = self.vary in ("rank", "chi")
        values = self.values or [own * factor for factor in self.times]
        values = [max(1, round(value)) if whole else value for value in values]
        return [(value, method.varied(self.vary, value)) for value in dict.fromkeys(values) if value != own]
