"""Adapters as PEFT saves them, ``adapter_config.json`` beside safetensors, read without PEFT or a base model."""

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from artent.reading.differences import check_pair
from artent.reading.names import lookup, plain, saved_name
from artent.reading.pending import PendingUpdate
from artent.reading.safetensors_files import SafetensorsFiles
from artent.reading.saved_whole import saved_whole
from artent.reading.targets import few, select
from artent.reading.weights import Weights
from artent.updates import LoRAUpdate, MPSUpdate, is_zero

# Starts of LoRA that leave the base weight alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do not.
BASE_KEPT = (True, False, "gaussian", "eva", "orthogonal", "mica")
_VARIANTS = (
    *("use_dora", "velora_config", "monteclora_config", "use_bdlora", "arrow_config", "kasa_config"),
    *("alora_invocation_tokens", "use_qalora", "target_parameters"),
)
_ADVICE = (
    "Pass base, the weights that it was trained on, or load it onto its base model with PEFT and pass the live model "
    "(and base, where the start changed the base weights)"
)
_DAMAGED = "likely cause: a damaged file"


@dataclass(frozen=True)
class Method:
    """How one of PEFT's methods lies in a file.

    Attributes:
        key: matches the key of a factor's tensor; its groups are the module and "A" or "B".
        update: B's and A's {key: tensor} of a module → its update, not yet scaled. Raises TypeError or ValueError
            where they make none.
        refused: configuration → what in it makes the update more than scaling · B · A.
    """

    key: re.Pattern
    update: Callable
    refused: Callable = lambda config: []


class SavedAdapter:
    """The configuration and the tensors of an adapter, by the keys that PEFT saves.

    ``where`` stands in messages, ``advice`` in the one that refuses the adapter.

    Attributes:
        modules: {name in the unwrapped model: {"A": keys, "B": keys}}.
        others: {name: key} of what was saved beside factors, such as ``modules_to_save``.

    Raises ValueError for methods and variants whose factors are not the update, and where there are no factors.
    """

    def __init__(self, where, config: dict, tensors: Mapping[str, Tensor], advice: str = _ADVICE):
        self.where, self.config, self.tensors = where, config, tensors
        kind, odd = _oddities(config)
        if odd:
            raise ValueError(f"{where}: the factors of this adapter are not its update ({', '.join(odd)}). {advice}")
        self.method = METHODS[kind]
        self.modules, self.others = {}, {}
        for key in tensors:
            if match := self.method.key.fullmatch(key):
                module, factor = match.groups()
                self.modules.setdefault(plain(module), {}).setdefault(factor, []).append(key)
            elif ".base_layer." not in key:  # PEFT saves an adapted embedding's own weight along, unchanged
                self.others[saved_name(key)] = key
        if not self.modules:
            raise ValueError(f"{where}: none of its {len(tensors)} tensors is a factor of {kind} ({_DAMAGED})")

    def pending(self, module: str) -> PendingUpdate:
        """The update of ``module``, read later. Raises ValueError where the shapes of its tensors make none."""
        keys = self.modules[module]
        self._check(module)

        def alike(factor):  # one number, spread over the shape
            facts = {key: self.tensors.facts(key) for key in keys[factor]}
            return {key: torch.zeros((), dtype=f.dtype or torch.int8).expand(f.shape) for key, f in facts.items()}

        def read(whole):
            update = self.update(module)
            return None if update is None or is_zero(update) else update

        shapes = self._made(module, alike("B"), alike("A"))
        self._scaling(module, shapes.rank)
        return PendingUpdate(module, shapes.shape, shapes.rank, read)

    def update(self, module: str) -> LoRAUpdate | MPSUpdate | None:
        """The update of ``module``, zero or not; None where ``lora_alpha`` is zero. Raises ValueError, named."""
        self._check(module)
        keys = self.modules[module]
        update = self._made(module, *({key: self.tensors[key] for key in keys[factor]} for factor in "BA"))
        scaling = self._scaling(module, update.rank)
        return replace(update, scaling=scaling) if scaling else None

    def _scaling(self, module, rank):
        """lora_alpha over the rank, or over its root; checks both against the configuration."""
        wanted, alpha = (
            self._configured("rank_pattern", "r", module),
            self._configured("alpha_pattern", "lora_alpha", module),
        )
        if wanted is not None and wanted != rank:
            raise ValueError(
                f"{self.where}: {module}: rank {rank} in the file, {wanted} by its configuration (r and rank_pattern). "
                "Likely cause: files of two adapters in one folder"
            )
        if alpha is None:
            raise ValueError(f"{self.where}: its configuration has no lora_alpha ({_DAMAGED})")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
            raise ValueError(f"{self.where}: lora_alpha is {alpha!r} for {module}, expected a number ({_DAMAGED})")
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _configured(self, pattern, default, module):
        """What the configuration says for ``module``: the first key of a pattern that fits, or the default."""
        patterns = self.config.get(pattern) or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{self.where}: {pattern} is {patterns!r}, expected an object ({_DAMAGED})")
        return lookup(patterns, module, self.config.get(default))

    def _check(self, module):
        keys = self.modules[module]
        if set(keys) != {"A", "B"}:
            found = [key for factor in keys.values() for key in factor]
            raise ValueError(f"{self.where}: {module} has one factor, {found} ({_DAMAGED})")

    def _made(self, module, B, A):
        try:
            with warnings.catch_warnings():  # of factors that look swapped: PEFT did not
                warnings.simplefilter("ignore")
                return self.method.update(B, A)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.where}: {module}: {error} ({_DAMAGED}, or a layer that is not linear)") from error


def read_folder(path, advice: str = _ADVICE, device="cpu") -> SavedAdapter:
    """The adapter in a folder. Raises ValueError for files that are damaged, and what ``SavedAdapter`` raises."""
    return SavedAdapter(path, read_config(path), SafetensorsFiles(path, "model_or_path", device), advice)


def read_config(path) -> dict:
    """What a folder's ``adapter_config.json`` says. Raises ValueError where it is damaged."""
    file = Path(path) / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is not JSON, {error} ({_DAMAGED})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: holds a {type(config).__name__}, not an adapter's configuration ({_DAMAGED})")
    return config


def folder_updates(path, base, targets, device="cpu") -> list[PendingUpdate]:
    """The pending updates of an adapter folder (``adapter_config.json`` beside safetensors).

    What was saved whole (``modules_to_save``, ``trainable_token_indices``) needs ``base`` (``Weights``). A base that is
    given has to fit the factors, too.

    Raises ValueError for what does not fit; warns (UserWarning) of what is left out for want of ``base``.
    """
    saved = read_folder(path, device=device)
    pending, left_out = [], []
    names = select([*saved.modules, *saved.others], targets, "adapted modules")
    if base is not None:
        _warn_of_names(path, base, [name for name in names if name in saved.modules])
    for name in names:
        if name in saved.modules:
            pending.append(saved.pending(name))
            _check_shape(base, name, pending[-1].shape)
        elif len(saved.tensors.facts(saved.others[name]).shape) != 2:
            continue
        elif base is None:
            left_out.append(name)
        else:
            pending.append(saved_whole(saved.tensors, saved.others[name], name, base, saved.config))
    if left_out:
        told = f"{path}: {len(left_out)} modules were saved whole, and their update needs base: {few(left_out)}"
        if targets is not None:
            raise ValueError(told)
        warnings.warn(f"{told}. They are left out", stacklevel=2)
    return pending


def _warn_of_names(path, base, names):
    """Factors need no base, so one that calls some modules otherwise will do, and one that knows none will not."""
    lost = [name for name in names if not base.has(name)]
    if lost and len(lost) == len(names):
        base.key(lost[0])  # which raises
    if lost:
        warnings.warn(
            f"{path}: base has no weight of {len(lost)} of its {len(names)} modules ({few(lost)}); their factors are "
            "read as they are. Likely cause: tied weights, or names that differ on disk; or another base",
            stacklevel=3,
        )


def _check_shape(base, name, shape):
    """Refuse a base whose weight has another shape; what is stored in × out only a live model tells."""
    if base is None or not base.has(name):
        return
    key = base.key(name)
    facts = base.facts(key)
    either = facts.shape == shape[::-1] and (key in base.turned or not base.live)
    if facts.dtype is not None and not either:  # quantised weights are stored in other shapes
        check_pair(name, shape, facts.shape)


def refuse_factors(weights: Weights, argument: str, path) -> None:
    """Refuse an adapter's tensors where a model's are expected. Raises ValueError."""
    key = next((key for key in weights.tensors if any(m.key.fullmatch(key) for m in METHODS.values())), None)
    if key is not None:
        raise ValueError(
            f"{argument}={str(path)!r}: its tensors are an adapter's factors ({key}), not a model's weights. "
            + (
                "Pass the adapter's folder, with its adapter_config.json"
                if argument != "base"
                else "Pass the model that the adapter was trained on"
            )
        )


def is_factored(config: dict) -> bool:
    """Are the factors of an adapter of this configuration its update?"""
    return not _oddities(config)[1]


def _oddities(config):
    """(its PEFT type, what in it makes the update more than scaling · B · A)."""
    kind = str(getattr(config.get("peft_type"), "value", config.get("peft_type")))  # PEFT's enum, if it is live
    return kind, METHODS[kind].refused(config) if kind in METHODS else [f"peft_type={kind!r}"]


def _lora_update(B, A):
    (B,), ((key, A),) = B.values(), A.items()
    return LoRAUpdate(A.T, B.T) if ".lora_embedding_A" in key else LoRAUpdate(B, A)  # tokens × features there


def _lora_refused(config):
    start = config.get("init_lora_weights", True)
    odd = [f"{key}={config[key]!r}" for key in _VARIANTS if config.get(key)]
    return odd + [f"init_lora_weights={start!r}"] * (start not in BASE_KEPT)


def _mps_factor(tensors):
    """A dense factor, or the cores of a chain in order, its carrier told by their shapes."""
    parts = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items()}
    if set(parts) == {"weight"}:
        return parts["weight"]
    cores = [f"core_{k}" for k in range(len(parts))]
    if missing := sorted(set(cores) - set(parts)):
        raise ValueError(f"{missing[0]} is missing beside {', '.join(sorted(tensors))}")
    return [parts[core] for core in cores]


METHODS = {
    "LORA": Method(re.compile(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.weight)?"), _lora_update, _lora_refused),
    "ARTENT_MPS": Method(
        re.compile(r"(.*)\.artent_mps_([AB])\.(?:core_\d+|weight)"),
        lambda B, A: MPSUpdate(_mps_factor(B), _mps_factor(A)),
    ),
}
