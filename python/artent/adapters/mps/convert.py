"""``from_lora`` and ``to_lora``: trained LoRA factors as MPS cores and back, as adapters that PEFT loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict
from torch import Tensor, nn

from artent.adapters.mps.config import MPSConfig
from artent.adapters.mps.shapes import factor_shapes
from artent.mps import contract
from artent.reading.adapter_files import SavedAdapter, read_folder
from artent.reading.live_adapters import adapted_layers
from artent.reading.weights import unwrap
from artent.tt import relative_error, tt_svd
from artent.updates import LoRAUpdate, MPSUpdate

__all__ = ["Conversion", "ConvertedUpdate", "from_lora", "to_lora"]

# What a LoRA and an MPS adapter say alike, besides bias.
_ALIKE = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "target_modules"),
    *("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "task_type", "auto_mapping"),
    *("base_model_name_or_path", "revision", "inference_mode"),
)
# What says how a LoRA was started or is stored, and nothing of what it does.
_PASSED_OVER = {
    *("bias", "peft_type", "peft_version", "init_lora_weights", "fan_in_fan_out", "megatron_core", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
}
_ADVICE = {
    "LORA": "Only plain LoRA can be converted: merge this adapter into its base, or have PEFT save it as plain LoRA "
    "(save_pretrained with path_initial_model_for_weight_conversion for PiSSA, OLoRA, CorDA and LoRA-GA)",
    "ARTENT_MPS": "Only MPS adapters can be converted back to LoRA",
}


@dataclass(frozen=True)
class Conversion:
    """A converted adapter: its PEFT configuration, its tensors by the keys that PEFT saves, and what was lost.

    ``errors`` is {module: relative Frobenius error of its ΔW}, computed from the tensors as they are, rounding to
    their dtype included.
    """

    config: PeftConfig
    state_dict: dict[str, Tensor]
    errors: dict[str, float]

    def save(self, folder) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` which ``PeftModel.from_pretrained`` loads."""
        from safetensors.torch import save_file

        self.config.save_pretrained(str(folder))
        save_file(self.state_dict, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})


class ConvertedUpdate(NamedTuple):
    """A converted update and the relative Frobenius error of its ΔW."""

    update: MPSUpdate
    error: float


@torch.no_grad()
def from_lora(
    adapter, *, chi=None, tol=None, sites="balanced", carrier="auto", tensorize="A", adapter_name="default"
) -> Conversion | ConvertedUpdate:
    """A trained LoRA as an MPS adapter: TT-SVD of its factors that keeps ΔW = scaling · B A best, in float64.

    Singular values are those of the unfoldings of ΔW, not of A (docs/math.md §6), so with two sites and one factor
    tensorised no chain of the same ``chi`` comes closer, whatever the other factor; that one stays as it is. ΔW is
    never formed. Without ``chi`` and ``tol`` bonds are as wide as the chain can use, and A comes back to rounding.

    Args:
        adapter: a LoRA adapter folder, a live PEFT model, or one ``artent.LoRAUpdate``. rank and alpha patterns,
            rsLoRA, biases and modules saved whole are carried over; other variants of LoRA, and adapted embeddings
            and convolutions, are refused.
        chi: the most of every bond, one number or one for each.
        tol: the relative Frobenius error that ΔW of any module may have, for any number of sites, before the cores
            are rounded to the LoRA's dtype; bonds are then no wider than that needs. An ``MPSConfig`` has one ``chi``
            for all its modules: of every bond the widest that any of them needs, and the others gain by it. A module
            whose B is zero is judged by A.
        sites, carrier, tensorize: as for ``artent.MPSConfig``.
        adapter_name: which adapter of a live model.

    Returns:
        A ``Conversion``; for a ``LoRAUpdate`` the ``ConvertedUpdate(update, error)``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range, an adapter that is not plain LoRA over linear
            layers (the message says why), factors that hold NaN or Inf.
    """
    asked = MPSConfig(chi=1 if chi is None else chi, sites=sites, carrier=carrier, tensorize=tensorize)
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, Real) or not 0 < tol < 1):
        raise ValueError(f"tol: expected a relative error between 0 and 1, got {tol!r}")
    most = None if chi is None else asked.chi
    if isinstance(adapter, LoRAUpdate):
        return ConvertedUpdate(*_fit("adapter", adapter, asked, most, tol))
    saved = _read(adapter, adapter_name, "LORA")
    if embeddings := [key for key in saved.tensors if ".lora_embedding_" in key]:
        raise ValueError(
            f"{saved.where}: {embeddings[0]} belongs to an embedding, and MPS adapters go beside linear layers only"
        )
    told = _carried(saved, "artent_mps_only")
    fitted, bonds = _fit_all(_updates(saved), asked, most, tol)
    told |= {"sites": asked.sites, "carrier": asked.carrier, "tensorize": asked.tensorize}
    config = MPSConfig(**told, chi=bonds[0] if len(set(bonds)) == 1 else bonds)
    state = _beside_factors(saved)
    for name, (update, _) in fitted.items():
        for factor, value in (("A", update.A), ("B", update.B)):
            parts = {"weight": value} if isinstance(value, Tensor) else {f"core_{k}": c for k, c in enumerate(value)}
            state |= {f"base_model.model.{name}.artent_mps_{factor}.{part}": _own(t) for part, t in parts.items()}
    return Conversion(config, state, {name: error for name, (_, error) in fitted.items()})


def to_lora(adapter, *, adapter_name="default") -> Conversion | LoRAUpdate:
    """An MPS adapter as plain LoRA, for use without artent: its chains contracted in float64, so exact to rounding.

    Args:
        adapter: an MPS adapter folder, a live PEFT model, or one ``artent.MPSUpdate``.
        adapter_name: which adapter of a live model.

    Returns:
        A ``Conversion`` with a ``peft.LoraConfig``; for an ``MPSUpdate`` a ``LoRAUpdate``, through which gradients
        flow.

    Raises:
        TypeError, ValueError: an argument of another kind, an adapter that is not MPS.
    """
    if isinstance(adapter, MPSUpdate):
        return _contracted(adapter)
    with torch.no_grad():
        saved = _read(adapter, adapter_name, "ARTENT_MPS")
        told = _carried(saved, "lora_only")
        state, errors = _beside_factors(saved), {}
        for name, update in _updates(saved).items():
            plain = _contracted(update)
            for factor, value in (("A", plain.A), ("B", plain.B)):
                state[f"base_model.model.{name}.lora_{factor}.weight"] = _own(value)
            errors[name] = relative_error(_double(update), _double(plain))
    layers = adapted_layers(adapter).values() if isinstance(adapter, nn.Module) else ()
    turned = {layer.is_conv1d for layer in layers if hasattr(layer, "is_conv1d")} == {True}
    config = LoraConfig(**told, fan_in_fan_out=turned)
    return Conversion(config, state, errors)


def _read(adapter, adapter_name, kind) -> SavedAdapter:
    """The adapter as PEFT saves it, live or from its folder, of the ``kind`` that is to be converted."""
    if isinstance(adapter, str | Path):
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"adapter: {str(adapter)!r} is no folder with an adapter_config.json (names on the hub are not fetched)"
            )
        saved = read_folder(adapter, _ADVICE[kind])
    elif isinstance(adapter, nn.Module):
        model = unwrap(adapter)
        configs = getattr(model, "peft_config", {})
        if adapter_name not in configs:
            has = f"has {', '.join(map(repr, configs))}" if configs else "has no PEFT adapters"
            raise ValueError(f"adapter_name: the model has no adapter {adapter_name!r}, it {has}")
        tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
        saved = SavedAdapter(f"adapter {adapter_name!r}", configs[adapter_name].to_dict(), tensors, _ADVICE[kind])
    else:
        update = {"LORA": "LoRAUpdate", "ARTENT_MPS": "MPSUpdate"}[kind]
        raise TypeError(
            f"adapter: expected an adapter folder, a live PEFT model or an artent.{update}, got "
            f"{type(adapter).__name__}"
        )
    if (given := getattr(saved.config["peft_type"], "value", saved.config["peft_type"])) != kind:
        raise ValueError(f"{saved.where}: expected an adapter of type {kind}, got {given}: is it converted already?")
    return saved


def _updates(saved):
    updates = {name: saved.update(name) for name in saved.modules}
    if zero := [name for name, update in updates.items() if update is None]:
        raise ValueError(f"{saved.where}: lora_alpha of {zero[0]} is zero, so its factors are no update")
    return updates


def _carried(saved, bias_only):
    """What the configuration says that the other kind of adapter says too."""
    given = saved.config
    extra = set(given) - {*_ALIKE, *_PASSED_OVER, "chi", "sites", "carrier", "tensorize", "init_weights"}
    if odd := [f"{key}={given[key]!r}" for key in sorted(extra) if given[key]]:
        other = "LoRA" if given["peft_type"] == "ARTENT_MPS" else "MPS"
        hint = "saved by a later artent?" if other == "LoRA" else _ADVICE["LORA"]
        raise ValueError(f"{saved.where}: {', '.join(odd)} has no counterpart in {other}: {hint}")
    bias = given.get("bias") or "none"
    alike = {key: given[key] for key in _ALIKE if key in given}
    return alike | {"bias": bias if bias in ("none", "all") else bias_only}


def _beside_factors(saved):
    """The tensors that are saved along: biases, modules trained whole."""
    factors = {key for keys in saved.modules.values() for factor in keys.values() for key in factor}
    prefix = "base_model.model."
    rest = {f"{prefix}{key.removeprefix(prefix)}": key for key in saved.tensors if key not in factors}
    return {name: _own(saved.tensors[key]) for name, key in rest.items()}


def _fit_all(updates, asked, chi, tol):
    """{name: (MPSUpdate, error)} and the bonds that hold them all; ``tol`` is met by every one of them.

    A bond that another module needs wider is taken so here as well, and the rest of the chain fitted to it: repeated
    until nothing changes, which is after the second time unless that made another bond wider.
    """
    least = None
    while True:
        fitted = {name: _fit(name, update, asked, chi, tol, least) for name, update in updates.items()}
        chains = [chain for update, _ in fitted.values() for chain in update.chains if chain.bonds]
        bonds = tuple(map(max, zip(*(chain.bonds for chain in chains))))
        if tol is None or bonds == least:
            return fitted, bonds
        least = bonds


def _fit(name, update, asked, chi, tol, least=None):
    """(MPSUpdate, error) of one update: A is fitted first, then B to what became of A."""
    B, A = _double(update)
    for factor, value in (("B", B), ("A", A)):
        if not value.isfinite().all():
            raise ValueError(f"{name}.{factor}: holds NaN or Inf (a diverged run, or an overflow in half precision?)")
    (m, n), r = update.shape, update.rank
    shapes = dict(zip("AB", factor_shapes(replace(asked, chi=1), r, n, m, name)))
    chained = [factor for factor in "AB" if shapes[factor].bonds]
    values, parts, spent = {"A": A, "B": B.mT}, {"A": update.A, "B": update.B}, 0.0
    for done, factor in enumerate(chained):
        sites, carrier = shapes[factor].sites, shapes[factor].carrier
        most = chi if isinstance(chi, tuple) else (chi or r * max(m, n),) * (len(sites) - 1)
        # ‖ΔW‖² is now 1 − spent of what it was; the errors of A's chain and of B's are orthogonal.
        share = None if tol is None else sqrt(max(tol**2 - spent, 0) / (1 - spent) / (len(chained) - done))
        other = values["B" if factor == "A" else "A"].mT
        cores, shape, lost = tt_svd(values[factor], other, sites, carrier, most, least=least, tol=share)
        spent += lost * (1 - spent)
        given = parts[factor]
        parts[factor] = [core.to(given.device, given.dtype).contiguous() for core in cores]
        values[factor] = contract([core.cpu().double() for core in parts[factor]], shape)
    error = relative_error((B, A), (values["B"].mT, values["A"]))
    return MPSUpdate(parts["B"], parts["A"], update.scaling), error


def _contracted(update):
    B, A = update.factors(torch.float64)
    dtypes = [f.dtype if isinstance(f, Tensor) else f[0].dtype for f in (update.B, update.A)]
    return LoRAUpdate(B.to(dtypes[0]), A.to(dtypes[1]), update.scaling)


def _double(update):
    return [factor.detach().cpu() for factor in update.factors(torch.float64)]


def _own(tensor):
    """A copy to save, which shares nothing with the model."""
    return tensor.detach().to("cpu", copy=True).contiguous()
