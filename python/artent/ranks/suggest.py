"""``suggest_ranks``: a rank for every module from the profile of its update, as PEFT's ``rank_pattern``."""

import warnings
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from numbers import Real
from pathlib import Path

import torch

from artent.checkpoints import pending_updates
from artent.entanglement import EntanglementProfile
from artent.measure import measure
from artent.ranks.choice import Allowed, Curve, shared_out
from artent.ranks.suggestion import RankSuggestion, parameters_of
from artent.reading.adapter_files import METHODS, read_config
from artent.reading.live_adapters import adapted_layers
from artent.reading.names import lookup
from artent.reading.safetensors_files import BASE_FILE
from artent.reading.targets import few, select
from artent.reading.weights import unwrap
from artent.records import read_records
from artent_ext._arguments import integer

TARGETS = {"mass": 0.9, "error": 0.3, "entropy": 1.0}  # of each criterion, where nobody says
# What a record of a profile holds besides the context of its run.
_MEASURED = {field.name for field in fields(EntanglementProfile)} - {"method"}
_MEASURED |= {"estimator", "kind", "module", "seconds", "step"}


def suggest_ranks(
    source,
    base=None,
    *,
    targets=None,
    by="mass",
    target=None,
    parameters=None,
    importance=None,
    multiple_of=1,
    minimum=1,
    maximum=None,
    scaling=None,
    progress=None,
    **options,
):
    """The rank that each module's update needs: for the next training, or to truncate this adapter.

    Either every module meets ``target``, or ``parameters`` in all are shared out so that the least is lost. The
    budget's loss is the sum over modules of the share of ‖ΔW‖² that is left out, so modules count alike: profiles are
    normalised, and ‖ΔW‖ follows a module's size, learning rate and α/r, not what its directions are worth. Where
    absolute errors add up (one adapter to be truncated) pass ‖ΔW‖² as ``importance``.

    Args:
        source: {module: EntanglementProfile}; or what ``artent.weight_updates`` takes, with ``base``; or the
            results.jsonl of ``artent profile`` or of a training (the last step of every module), or its folder.
        targets: the modules to take, as in ``artent.weight_updates``.
        by: "mass", the smallest rank that keeps the share ``target`` of ‖ΔW‖² (0.9); "error", the smallest whose
            relative Frobenius error is at most ``target`` (0.3; error² = 1 − mass); "entropy", the effective rank
            exp S(cut) times ``target`` (1), rounded up.
        parameters: a budget in place of a target: a number of parameters, r·(m + n) a module, or a float up to 1, a
            share of what there are now (as told at ``RankSuggestion.parameters_before``).
        importance: {module: weight > 0} of the relative losses in the budget; None weighs all alike.
        multiple_of: ranks are multiples of it, or min(m, n) where that is less.
        minimum, maximum: of all ranks, but none exceeds min(m, n). ``maximum`` comes before the target.
        scaling: lora_alpha / r for every module. None: what the module has where ``source`` is an adapter (its
            lora_alpha stays as it is under rsLoRA, made for that), else 1.
        progress: called as progress(done, modules) while updates are profiled.
        options: go to ``entanglement_profile``.

    Randomized and hybrid profiles know the leading probabilities, from below. So a rank found from one is certain to
    suffice, though it may not be the smallest; "entropy" takes the upper bound, of an estimate three standard errors.

    Returns:
        A ``RankSuggestion``. Of sharded weights (FSDP2, ZeRO-3), for which every process makes this call, None in all
        processes but the first.

    Raises:
        ValueError: for a profile whose sketch is too narrow to tell; for a budget that the minimum
            already exceeds; for records of several runs; where nothing changed; for values out of range.
        TypeError: for an argument of another kind; and both for what ``artent.weight_updates`` refuses.
    """
    target = _target(by, target, parameters)
    allowed = Allowed(multiple_of, minimum, maximum)
    if importance is not None and parameters is None:
        raise ValueError("importance: weighs the losses in a budget; pass parameters too")
    _check_number("scaling", scaling, "lora_alpha / r, a finite number > 0")
    profiles, unchanged = _profiles(source, base, targets, progress, options)
    if profiles is None:
        return None
    if not profiles:
        raise ValueError(
            f"source: none of its {len(unchanged)} modules has an update to take a rank from. Likely cause: training "
            "has not begun (LoRA's B starts at zero), or base is the tuned model itself"
        )
    curves = {name: Curve(name, profile) for name, profile in profiles.items()}
    nominal = {name: profile.rank for name, profile in profiles.items()}
    missed = ()
    if parameters is None:
        needed = {name: curve.needed(by, target) for name, curve in curves.items()}
        ranks = {name: allowed.at_least(needed[name], curve) for name, curve in curves.items()}
        missed = tuple(name for name, rank in ranks.items() if rank < needed[name])
    else:
        budget = _budget(parameters, sum(parameters_of(curves[name].shape, rank) for name, rank in nominal.items()))
        ranks = shared_out(curves, budget, allowed, _importance(importance, curves))
    alphas, rslora = _alphas(ranks, source, scaling)
    return RankSuggestion(
        ranks=ranks,
        alphas=alphas,
        kept={name: curve.kept_by(ranks[name]) for name, curve in curves.items()},
        shapes={name: curve.shape for name, curve in curves.items()},
        nominal=nominal,
        bounded=tuple(name for name, curve in curves.items() if curve.partial),
        missed=missed,
        unchanged=tuple(unchanged),
        use_rslora=rslora,
    )


def _profiles(source, base, targets, progress, options) -> tuple[dict[str, EntanglementProfile] | None, list[str]]:
    """The profiles of ``source`` (None: they are another process's), and the names of modules that did not change."""
    unchanged = []
    if isinstance(source, Mapping) and (not source or _has_profiles(source)):
        for name, profile in source.items():
            if not isinstance(profile, EntanglementProfile):
                raise TypeError(f"source[{name!r}]: expected an EntanglementProfile, got {type(profile).__name__}")
    elif isinstance(source, str | Path) and (path := _results(Path(source))) is not None:
        source, unchanged = _recorded(path)
    else:
        found, pending = {}, pending_updates(source, base, targets=targets)
        for measured in measure(pending, **options):
            found[measured.name] = measured.profile
            if progress is not None:
                progress(len(found), len(pending))
        if pending and not found:  # in a process that is not the first
            return None, []
        changed = {name: profile for name, profile in found.items() if profile is not None}
        return changed, [name for name in found if name not in changed]
    if base is not None or options:
        given = ", ".join([*["base"] * (base is not None), *options])
        raise ValueError(f"{given}: of no use beside profiles, which are measured already")
    return {name: source[name] for name in select(source, targets, "profiled modules")}, unchanged


def _has_profiles(source: Mapping) -> bool:
    return any(isinstance(value, EntanglementProfile) for value in source.values())


def _results(path: Path) -> Path | None:
    """The records that ``path`` means, a file or a folder of them without weights; None for anything else."""
    if path.suffix == ".jsonl":
        return path
    weights = path.is_dir() and any(file.name != BASE_FILE for file in path.glob("*.safetensors"))
    return path / "results.jsonl" if not weights and (path / "results.jsonl").is_file() else None


def _recorded(path: Path) -> tuple[dict[str, EntanglementProfile], list[str]]:
    """The last profile of every module in a file of records, and the names of those that had none."""
    last, runs = {}, {}
    for record in read_records(path):
        if record.get("kind") in ("profile", "unchanged", "failed") and "module" in record:
            name, step = record["module"], record.get("step") or 0
            if name not in last or step >= last[name][0]:
                last[name] = step, record
            for key, value in record.items():  # a run is told by words, such as the method, and by its seed
                if key not in _MEASURED and (isinstance(value, str) or key == "seed"):
                    runs.setdefault((name, key), set()).add(str(value))
    if not last:
        raise ValueError(f"{path}: holds no profiles. Expected what `artent profile --out` or a recorder wrote")
    mixed = {key: values for (_, key), values in runs.items() if len(values) > 1}
    if mixed:
        told = "; ".join(f"{key}: {', '.join(sorted(values))}" for key, values in sorted(mixed.items()))
        raise ValueError(f"{path}: holds several runs ({told}), and ranks are those of one. Give the records of one")
    if failed := [name for name, (_, record) in last.items() if record["kind"] == "failed"]:
        warnings.warn(f"{path}: {len(failed)} modules have no profile, and get no rank: {few(failed)}", stacklevel=4)
    unchanged = [name for name, (_, record) in last.items() if record["kind"] == "unchanged"]
    return {n: EntanglementProfile.from_dict(r) for n, (_, r) in last.items() if r["kind"] == "profile"}, unchanged


def _alphas(ranks, source, scaling) -> tuple[dict[str, float], bool]:
    """lora_alpha of every module, and whether the adapter in ``source`` is scaled by 1/√r."""
    config = _adapter_config(source) if scaling is None else None
    if config is None:
        return {name: _plain(rank * (scaling or 1)) for name, rank in ranks.items()}, False
    alphas = {name: lookup(config.get("alpha_pattern"), name, config["lora_alpha"]) for name in ranks}
    if config.get("use_rslora"):
        return alphas, True
    before = {name: lookup(config.get("rank_pattern"), name, config["r"]) for name in ranks}
    return {name: _plain(alphas[name] * ranks[name] / before[name]) for name in ranks}, False


def _adapter_config(source) -> dict | None:
    """The configuration of the one LoRA or MPS adapter in ``source``, a folder or a live model; else None."""
    config = None
    if isinstance(source, str | Path) and (Path(source) / "adapter_config.json").is_file():
        config = read_config(source)
    elif isinstance(source, torch.nn.Module):
        active = {adapter for layer in adapted_layers(source).values() for adapter in layer.active_adapters}
        configs = next((m.peft_config for m in unwrap(source).modules() if hasattr(m, "peft_config")), {})
        config = configs[active.pop()].to_dict() if len(active) == 1 else None
    kind = config and str(getattr(config.get("peft_type"), "value", config.get("peft_type")))
    return config if kind in METHODS and config.get("lora_alpha") and config.get("r") else None


def _plain(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _target(by, target, parameters) -> float | None:
    if by not in TARGETS:
        raise ValueError(f"by={by!r}: expected one of {', '.join(TARGETS)}")
    if parameters is not None:
        if target is not None or by != "mass":
            raise ValueError("parameters: a budget takes the place of by and target; pass one or the other")
        return None
    _check_number("target", target, "a finite number > 0")
    if target is not None and (target > 1 if by == "mass" else by == "error" and target >= 1):
        raise ValueError(f"target: by={by!r} expects a share of ‖ΔW‖, between 0 and 1, got {target}")
    return TARGETS[by] if target is None else float(target)


def _check_number(name, value, expected):
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected {expected}, got {value}")


def _budget(parameters, before: int) -> int:
    if isinstance(parameters, float):
        if not 0 < parameters <= 1:
            raise ValueError(f"parameters: a float is a share of what there are now, 0 … 1, got {parameters}")
        return int(parameters * before)
    return integer("parameters", parameters, "a number of parameters, or a float up to 1 (a share)")


def _importance(importance, curves) -> dict[str, float]:
    if importance is None:
        return dict.fromkeys(curves, 1.0)
    if not isinstance(importance, Mapping) or not importance.keys() >= curves.keys():
        missing = sorted(curves.keys() - importance.keys()) if isinstance(importance, Mapping) else importance
        raise ValueError(f"importance: expected a number for every module, missing for {missing}")
    for name in curves:
        _check_number(f"importance[{name!r}]", importance[name], "a finite number > 0")
    return {name: float(importance[name]) for name in curves}
