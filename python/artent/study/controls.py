"""Controls of the no-hair test: updates that are wrong on purpose, put into the base model (docs/math.md §5).

A test that finds no difference between methods says something only if it does tell these from the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor

import artent
from artent.distributed import is_sharded
from artent.reading.weights import unwrap
from artent.study.measuring.growth import measured
from artent.study.measuring.rows import samples_record
from artent.theory.nulls import haar_frame

__all__ = ["KINDS", "apply_control", "control_records", "control_update"]

KINDS = ("negated", "haar", "random")


def control_records(model, updates, texts, measure, kind, *, method, seed, folder=None, stem=None):
    """The record of one control: S_ext and row entropies at the longest of ``measure.lengths``, and its samples.

    A list with one record. With ``folder``, the run's, attention rows and outputs are written there as by
    ``samples_record`` (``stem``: by default the control's name). "rounding" is the mean over modules of what
    ``apply_control`` yields. Arguments as there; ``method`` names the method that ``updates`` come from.
    """
    with apply_control(model, updates, kind, seed) as rounding:
        found = measured(model, texts, (max(measure.lengths),), seed=seed)
        record = {"kind": "control", "control": kind, "from": method}
        record |= {"s_ext": found.s_ext[0], "entropy": found.entropy, "rounding": fmean(rounding.values())}
        if folder is not None:
            record["samples"] = samples_record(model, texts, measure, kind, folder, stem)["file"]
    return [record]


@contextmanager
def apply_control(model, updates, kind, seed):
    """W + the control's ΔW in place of every W that ``updates`` names; afterwards the weights are what they were.

    They are that bit for bit, also where the block raises.

    Added in float32 (float64 for float64 weights) and rounded to the weight's dtype. Yields {module: ‖what rounding
    changed‖_F / ‖ΔW‖_F}, some 10⁻⁶ in float32. bfloat16 has eight digits: on Gaussian weights of 1024² rounding was
    0.0017·‖W‖, whatever the rank of ΔW. Of a ΔW with ‖ΔW‖ = 0.03·‖W‖ that is 0.06 (cosine with ΔW 0.998), of 0.01·‖W‖
    0.17 (0.987), of 0.003·‖W‖ 0.48 (0.89), of 0.001·‖W‖ 0.79 (0.64); below, most of ΔW is lost. The tuned model, whose
    factors stay apart from W, has no such noise: make controls of small updates in float32.

    Args:
        model: the base model, without adapters.
        updates: {module: update} or pairs of them, as ``artent.weight_updates`` gives them of the tuned model; read
            once, a matrix at a time.
        kind, seed: as for ``control_update``.

    Raises ValueError for an unknown kind, for updates of modules that the model lacks or that fit no weight there, and
    for weights that can't be written to (quantised, sharded, under adapters); TypeError for updates of another kind.
    """
    saved, rounding = [], {}
    try:
        with torch.no_grad():
            for name, update in updates.items() if isinstance(updates, Mapping) else updates:
                delta = control_update(update, kind, name, seed)
                weight, turned = _weight(model, name, update)
                delta = (delta if isinstance(delta, Tensor) else delta.dense()).to(weight.device)
                delta = delta.mT if turned else delta
                saved.append((weight, weight.detach().clone()))
                rounding[name] = _add(weight, delta)
        if not saved:
            raise ValueError("updates is empty: there is nothing to make a control of (has training begun?)")
        yield rounding
    finally:
        with torch.no_grad():
            for weight, before in reversed(saved):
                weight.copy_(before)


def control_update(update, kind, name, seed):
    """The control that belongs to one update, in float32 or better; factored updates stay factored, but for "random".

    Args:
        kind: "negated" is −ΔW; "haar" has the singular values of ΔW and Haar-random singular vectors; "random" is
            Gaussian, of full rank, with the Frobenius norm of ΔW.
        name, seed: of the module and the draw, which together fix it: a module's control depends on no other.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if not isinstance(update, Tensor | artent.LoRAUpdate | artent.MPSUpdate):
        raise TypeError(f"updates: {name} is a {type(update).__name__}; expected what artent.weight_updates gives")
    with torch.no_grad():
        return {"negated": _negated, "haar": _haar, "random": _random}[kind](update, _generator(name, seed))


def _negated(update, _):
    if isinstance(update, Tensor):
        return -_working(update)
    B = update.B if isinstance(update.B, Tensor) else update.B[0]
    return artent.LoRAUpdate(*update.factors(_working(B).dtype), -update.scaling)


def _haar(update, generator):
    sigma = _singular_values(update)
    U, V = (haar_frame(size, len(sigma), generator, sigma.dtype) for size in update.shape)
    if isinstance(update, Tensor):
        return ((U * sigma) @ V.mT).to(_working(update).dtype)
    return artent.LoRAUpdate((U * sigma).float(), V.mT.float())


def _random(update, generator):
    delta = torch.randn(update.shape, generator=generator, dtype=torch.float32)
    norm = _singular_values(update).norm() if not isinstance(update, Tensor) else _working(update).norm().double()
    delta *= (norm.cpu() / delta.double().norm()).item()
    return delta


def _singular_values(update):
    """Those of ΔW, in float64 on the CPU; of a factored one from r × r."""
    if isinstance(update, Tensor):
        return torch.linalg.svdvals(update.double()).cpu()
    B, A = update.factors(torch.float64)
    return (abs(update.scaling) * torch.linalg.svdvals(torch.linalg.qr(B).R @ torch.linalg.qr(A.mT).R.mT)).cpu()


def _working(tensor):
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _generator(name, seed):
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def _add(weight, delta):
    """W ← W + ΔW, rounded to the weight's dtype; returns how much of ΔW the rounding is."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    wanted = weight.to(dtype) + delta.to(dtype)
    exact = weight.double() + delta.double()
    weight.copy_(wanted)
    return ((weight.double() - exact).norm() / delta.double().norm()).item()


def _weight(model, name, update):
    """(weight, whether it is stored in × out) of the module that an update names."""
    try:
        module = unwrap(model).get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"updates: the model has no module {name!r}. Likely cause: updates of another architecture"
        ) from None
    if hasattr(module, "base_layer"):
        raise ValueError(f"model: {name} is under an adapter; a control goes into the base model: load it afresh")
    weight, turned = getattr(module, "weight", None), type(module).__name__ == "Conv1D"
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or is_sharded(weight):
        raise ValueError(
            f"model: {name} has no whole floating-point weight to add an update to. Likely cause: a quantised or "
            "sharded model; load it unquantised, on one device"
        )
    shape = tuple(weight.shape[::-1] if turned else weight.shape)
    if tuple(update.shape) != shape:
        raise ValueError(f"updates: {name} is {tuple(update.shape)}, but the model's weight is {shape}: another size?")
    return weight, turned
