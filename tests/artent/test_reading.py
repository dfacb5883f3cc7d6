"""The same numbers however an update is read: a live PEFT model, its saved folder, merged and base weights on disk."""

import copy
import math
import weakref
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from artent import LoRAUpdate, MPSConfig, MPSUpdate, entanglement_profile, profile_model, weight_updates
from artent.checkpoints import pending_updates
from artent.reading.safetensors_files import SafetensorsFiles
from artent.sites import chain
from mps_models import llama, shake
from transformers import LlamaModel

QV = ["q_proj", "v_proj"]
FLOAT32 = 1e-4  # nats: what a profile of float32 numbers may be off, see test_profile.py


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": QV} | options)


def scaled_product(layer, adapter, alpha, root=False):
    """α/r · B·A (rsLoRA: α/√r) in float64, from the factors as the layer holds them."""
    A, B = (getattr(layer, f"lora_{f}")[adapter].weight.detach().double().numpy() for f in "AB")
    return alpha / (len(A) ** 0.5 if root else len(A)) * B @ A


def chained(layer, adapter, alpha):
    """α/r · B·A with A contracted from its cores [r, d₁, χ], [χ, d₂]: r at the first, as it is by default."""
    B = layer.artent_mps_B[adapter].weight.detach().double().numpy()
    first, last = (core.detach().double().numpy() for core in layer.artent_mps_A[adapter].parameters())
    A = np.einsum("rac,cb->rab", first, last).reshape(len(first), -1)
    return alpha / len(A) * B @ A


def magnitudes(layer, adapter, alpha):
    """DoRA's m · V/‖V‖ − W with V = W + α/r · B·A, norms along the inputs."""
    W = layer.base_layer.weight.detach().double().numpy()
    V = W + scaled_product(layer, adapter, alpha)
    m = layer.lora_magnitude_vector[adapter].weight.detach().double().numpy()
    return m[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True) - W


def residual(layer, adapter, alpha, original):
    """PiSSA's (W_res + α/r · B·A) − W: what the start took out of W, training changed before it came back."""
    W_res = layer.base_layer.weight.detach().double().numpy()
    return W_res + scaled_product(layer, adapter, alpha) - original.double().numpy()


def patterned(name, layer, adapter, original):
    return scaled_product(layer, adapter, 9 if name.endswith("layers.0.self_attn.q_proj") else 6)


# PEFT's configuration; (name, layer, adapter, original weight) → ΔW in float64; whether factors are read; roundings of
# the merged weight: one of the sum and one of what is added to it, for DoRA also of norm, quotient and product.
CASES = {
    "patterns": (
        lora(rank_pattern={"v_proj": 2, r"layers\.1\..*q_proj": 7}, alpha_pattern={"layers.0.self_attn.q_proj": 9}),
        patterned,
        LoRAUpdate,
        2,
    ),
    "rsLoRA": (lora(use_rslora=True), lambda _, layer, a, W: scaled_product(layer, a, 6, True), LoRAUpdate, 2),
    "MPS": (MPSConfig(r=4, lora_alpha=6, chi=3, target_modules=QV), lambda _, *a: chained(*a[:2], 6), MPSUpdate, 2),
    "DoRA": (lora(use_dora=True), lambda _, layer, a, W: magnitudes(layer, a, 6), torch.Tensor, 5),
    "PiSSA": (lora(init_lora_weights="pissa"), lambda _, layer, a, W: residual(layer, a, 6, W), torch.Tensor, 3),
}
DTYPES = [torch.float32, torch.bfloat16]


def adapted(config, dtype):
    """(the base model as it was, the trained PEFT model over it)."""
    base = llama().to(dtype)
    model = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(config))
    return base, shake(model).eval()


def adapted_layers(model):
    return {n: m for n, m in model.get_base_model().named_modules() if hasattr(m, "base_layer")}


def entropies(delta):
    """S at every bond by a singular value decomposition each, float64."""
    dims = chain(delta.shape).dims
    values = []
    for l in range(1, len(dims)):
        p = np.linalg.svd(delta.reshape(math.prod(dims[:l]), -1), compute_uv=False) ** 2
        p = p[p > 0] / p.sum()
        values.append(-(p * np.log(p)).sum())
    return np.array(values)


def rounded_by(delta, merged, dtype, roundings):
    """‖E‖ of what so many roundings of the merged weight may add to ΔW: each at most u of the weight or of ΔW."""
    return roundings * torch.finfo(dtype).eps / 2 * (np.linalg.norm(merged) + np.linalg.norm(delta))


def allowed(delta, error):
    """Nats per bond that an error of this norm in ΔW may move S by.

    The states of ΔW and ΔW + E are at most T = ‖E‖/‖ΔW‖ apart in trace distance, at every bond, so
    |δS| ≤ T ln(D − 1) + h(T) (Audenaert 2007).
    """
    T = error / np.linalg.norm(delta)
    assert T < 0.2  # beyond that the test says little
    dims = chain(delta.shape).dims
    sides = [math.prod(dims[:l]) for l in range(1, len(dims))]
    D = np.array([min(side, delta.size // side) for side in sides])
    return T * np.log(np.maximum(D - 1, 1)) - T * math.log(T) - (1 - T) * math.log1p(-T)


def agree(update, delta, error=0.0):
    """The update is ΔW up to ``error`` in norm, and so is its profile."""
    dense = update if isinstance(update, torch.Tensor) else replace(update, **doubled(update)).dense()
    assert np.linalg.norm(dense.detach().double().numpy() - delta) <= error + 1e-12 * np.linalg.norm(delta)
    profile = entanglement_profile(update)
    off = np.abs(profile.entropy.detach().double().numpy() - entropies(delta))
    assert (off <= FLOAT32 + (allowed(delta, error) if error else 0)).all()


def doubled(update):
    """Its factors in float64, cores too: their product is to be judged, not the rounding of a float32 product."""
    cast = {"B": update.B, "A": update.A}
    return {k: v.double() if isinstance(v, torch.Tensor) else [core.double() for core in v] for k, v in cast.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_live_saved_and_merged_weights_give_the_same_profiles(case, dtype, tmp_path):
    config, delta_of, kind, roundings = CASES[case]
    base, model = adapted(config, dtype)
    base.save_pretrained(tmp_path / "base")
    original = base.state_dict()
    expected = {
        name: delta_of(name, layer, "default", original[f"{name}.weight"])
        for name, layer in adapted_layers(model).items()
    }
    needed = tmp_path / "base" if case == "PiSSA" else None
    live = dict(weight_updates(model, needed))
    assert set(live) == set(expected)
    assert all(isinstance(update, kind) for update in live.values())
    model.save_pretrained(tmp_path / "adapter")
    if kind is not torch.Tensor:
        saved = dict(weight_updates(tmp_path / "adapter"))
        assert list(saved) == list(live)
        for name in live:
            assert all(torch.equal(*pair) for pair in zip(saved[name].factors(), live[name].factors(), strict=True))
            assert saved[name].scaling == live[name].scaling
    else:  # what PEFT merges, onto the base weights that are asked for; PiSSA's start, taken again, is rounded there
        with pytest.raises(ValueError, match="Pass base"):
            dict(weight_updates(tmp_path / "adapter"))
        saved = dict(weight_updates(tmp_path / "adapter", tmp_path / "base"))
        assert set(saved) == set(live)
        for name, delta in expected.items():
            whole = original[f"{name}.weight"].double().numpy() + delta
            agree(saved[name], delta, rounded_by(delta, whole, dtype if case == "PiSSA" else torch.float32, 9))
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "merged", max_shard_size="20KB")
    merged = dict(weight_updates(tmp_path / "merged", tmp_path / "base"))  # sharded, against a single file
    assert set(merged) == set(expected)
    for name, delta in expected.items():
        whole = original[f"{name}.weight"].double().numpy() + delta
        # What is merged here is merged in float32, and the product of factors has r roundings more.
        agree(live[name], delta, rounded_by(delta, whole, torch.float32, roundings + 4) * (kind is torch.Tensor))
        agree(merged[name], delta, rounded_by(delta, whole, dtype, roundings + 4 * (dtype == torch.float32)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_active_adapters_are_one_update_live_and_merged_and_two_folders(dtype, tmp_path):
    base, model = adapted(lora(), dtype)
    model.add_adapter("second", lora(r=3, lora_alpha=5, target_modules=["q_proj"], use_rslora=True))
    model.base_model.set_adapter(["default", "second"])
    shake(model, seed=4)
    layers = adapted_layers(model)
    parts = {name: {"default": scaled_product(layer, "default", 6)} for name, layer in layers.items()}
    for name, layer in layers.items():
        if "second" in layer.lora_A:
            parts[name]["second"] = scaled_product(layer, "second", 5, True)
    live = dict(weight_updates(model))
    assert set(live) == set(parts)
    model.save_pretrained(tmp_path / "adapters", selected_adapters=["default", "second"])
    folders = {"default": tmp_path / "adapters", "second": tmp_path / "adapters" / "second"}
    for adapter, folder in folders.items():
        saved = dict(weight_updates(folder))
        assert set(saved) == {name for name, part in parts.items() if adapter in part}
        for name, update in saved.items():
            agree(update, parts[name][adapter])
    base.save_pretrained(tmp_path / "base")
    model.merge_and_unload(adapter_names=["default", "second"]).save_pretrained(tmp_path / "merged")
    merged = dict(weight_updates(tmp_path / "merged", tmp_path / "base", targets=QV))
    for name, part in parts.items():
        delta = sum(part.values())
        whole = base.state_dict()[f"{name}.weight"].double().numpy() + delta
        agree(live[name], delta, rounded_by(delta, 0, torch.float32, len(part)))  # α/r is multiplied into B
        agree(merged[name], delta, rounded_by(delta, whole, dtype, 2 * len(part) + 7 * (dtype == torch.float32)))


def test_pissa_saved_as_the_lora_it_amounts_to_is_read_from_its_folder(tmp_path):
    base, model = llama(), None
    model = peft.get_peft_model(copy.deepcopy(base), lora(init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True  # PEFT writes down the start it would repeat on loading
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    shake(model)
    expected = {
        name: residual(layer, "default", 6, base.state_dict()[f"{name}.weight"])
        for name, layer in adapted_layers(model).items()
    }
    model.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    updates = dict(weight_updates(tmp_path / "lora"))
    assert set(updates) == set(expected)
    for name, update in updates.items():
        assert update.rank == 8  # start and end of training, 4 each
        whole = base.state_dict()[f"{name}.weight"].double().numpy() + expected[name]
        agree(
            update, expected[name], rounded_by(expected[name], whole, torch.float32, 5)
        )  # W − start of PEFT's float32


def test_a_backbone_has_names_without_a_prefix_and_the_same_profiles(tmp_path):
    base = llama()
    tuned = shake(copy.deepcopy(base))
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
        model.model.save_pretrained(tmp_path / f"{name} backbone")
    with_head = profile_model(tmp_path / "tuned", tmp_path / "base", targets=QV)
    alone = profile_model(tmp_path / "tuned backbone", tmp_path / "base backbone", targets=QV)
    live = profile_model(
        LlamaModel.from_pretrained(tmp_path / "tuned backbone"), tmp_path / "base backbone", targets=QV
    )
    assert set(alone) == set(live) == {name.removeprefix("model.") for name in with_head}
    for name, profile in with_head.items():
        for other in (alone, live):
            assert torch.equal(profile.entropy, other[name.removeprefix("model.")].entropy)
    for pair in ("tuned", "base backbone"), ("tuned backbone", "base"):
        with pytest.raises(ValueError, match="another prefix"):  # told, not guessed
            profile_model(*(tmp_path / name for name in pair))


def test_a_pair_on_disk_is_listed_unread_and_read_a_matrix_at_a_time(tmp_path, monkeypatch):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    shake(copy.deepcopy(base)).save_pretrained(tmp_path / "tuned", max_shard_size="20KB")
    tensors, alive, read = [], [], SafetensorsFiles.__getitem__

    def watched(self, name):
        tensor = read(self, name)
        tensors.append(weakref.ref(tensor))
        alive.append(sum(ref() is not None for ref in tensors))
        return tensor

    monkeypatch.setattr(SafetensorsFiles, "__getitem__", watched)
    pending = pending_updates(tmp_path / "tuned", tmp_path / "base")
    assert not tensors
    for name, update in weight_updates(tmp_path / "tuned", tmp_path / "base"):
        assert update.dtype == torch.float32
        assert name in {one.name for one in pending}
    assert len(tensors) == 2 * len(pending)
    assert max(alive) == 2  # a weight and its partner
