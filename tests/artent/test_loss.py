"""``EntanglementLoss`` on updates, against float64 unfoldings and their finite differences; what it refuses."""

import copy

import numpy as np
import peft
import pytest
import torch
from artent import EntanglementLoss, MPSConfig
from loss_models import BOTH, CASES, adapted, full, lora, touched, values, wanted
from mps_models import factors, llama, mlp, shake
from safetensors.torch import save_file
from torch import nn

IDS = torch.arange(1, 3 * 12 + 1).reshape(3, 12) % 47


@torch.no_grad()
def slope(model, name, direction, measured, step=1e-6):
    """The derivative of ``measured()`` along ``direction`` of one parameter, by central differences."""
    parameter, found = model.get_parameter(name), []
    for sign in (1, -1):
        parameter += sign * step * direction
        found.append(measured())
        parameter -= sign * step * direction
    return (found[0] - found[1]) / (2 * step)


def check_gradient(model, before, targets, term):
    """The term and its gradient against the reference's value and slopes, for each parameter."""

    def measured():
        return wanted(model, before, targets, term.on, term.target, term.weight)

    assert term().item() == pytest.approx(measured(), abs=1e-10)
    gradients = touched(model, term)
    generator = torch.Generator().manual_seed(5)
    for name, gradient in gradients.items():
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        numeric = slope(model, name, direction, measured)
        assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-6, abs=3e-8), name
    return gradients


@pytest.mark.parametrize(("on", "target"), [("valley_depth", None), ("cut_entropy", None), ("cut_entropy", 0.7)])
@pytest.mark.parametrize("case", CASES)
def test_the_term_and_its_gradient_are_those_of_the_unfoldings(case, on, target):
    build, targets = CASES[case]
    model, before = build()
    term = EntanglementLoss(model, targets=targets, on=on, target=target, weight=-1.5)
    shake(model)
    gradients = check_gradient(model, before, targets, term)
    learnt = {n for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    if "full" in case:
        learnt = {n for n in learnt if any(f"{target}.weight" in n for target in targets)}
    assert gradients.keys() == learnt
    assert len(term.values) == len(values(model, before, targets, on))
    assert list(term.values.values()) == pytest.approx(values(model, before, targets, on), abs=1e-10)
    assert not any(value.requires_grad for value in term.values.values())
    assert not list(term.parameters())
    assert not term.state_dict()


@torch.no_grad()
def degenerate(model, before, kind):
    """Give every target an update of rank 2, or of four equal singular values and otherwise zeros."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name in BOTH:
        layer = base.get_submodule(name)
        if isinstance(layer, nn.Linear):
            A = torch.randn(4, layer.in_features, dtype=torch.float64)
        else:
            A = layer.lora_A["default"].weight if hasattr(layer, "lora_A") else torch.from_numpy(factors(layer)[0])
        B = torch.randn(layer.out_features, 4, dtype=torch.float64)
        if kind == "low rank":
            B = B[:, [0, 1, 0, 1]]
        else:
            B = torch.linalg.qr(B).Q @ torch.linalg.inv(torch.linalg.qr(A.mT).R.mT)
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(before.get_submodule(name).weight + B @ A)
        else:
            (layer.lora_B if hasattr(layer, "lora_B") else layer.artent_mps_B)["default"].weight.copy_(B)


@pytest.mark.parametrize("on", ["valley_depth", "cut_entropy"])
@pytest.mark.parametrize("kind", ["low rank", "equal"])
@pytest.mark.parametrize("case", ["LoRA", "MPS", "full FT"])
def test_degenerate_spectra_have_gradients(case, kind, on):
    model, before = CASES[case][0]()
    term = EntanglementLoss(model, targets=BOTH, on=on)
    degenerate(model, before, kind)
    gradients = check_gradient(model, before, BOTH, term)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    if kind == "equal" and on == "cut_entropy":  # the largest that four singular values allow
        assert term().item() == pytest.approx(np.log(4), abs=1e-12)
        assert all(gradient.abs().max() < 1e-6 for name, gradient in gradients.items() if "lora_B" in name)


@pytest.mark.parametrize("target", [None, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_an_update_of_zero_counts_as_zero(case, target):
    build, targets = CASES[case]
    model, before = build()
    term = EntanglementLoss(model, targets=targets, on="cut_entropy", target=target)
    nothing = touched(model, term)
    assert term().item() == 0
    assert term.values == {}
    assert nothing
    assert not any(gradient.any() for gradient in nothing.values())
    shake(model)
    assert touched(model, term).keys() == nothing.keys()
    if case == "LoRA":
        with torch.no_grad():
            model.get_base_model().up.lora_B["default"].weight.zero_()
        (v,) = values(model, before, ["down"], "cut_entropy")
        assert term().item() == pytest.approx((v if target is None else (v - target) ** 2) / 2, abs=1e-10)
        gradients = touched(model, term)
        assert all(gradient.any() == ("down" in name) for name, gradient in gradients.items())


def test_the_gradient_goes_as_the_inverse_of_the_updates_size():
    model, _ = adapted(lora())
    term = EntanglementLoss(model, targets=BOTH)
    shake(model)
    once, name = touched(model, term), "base_model.model.up.lora_A.default.weight"
    with torch.no_grad():
        for layer in (model.get_base_model().up, model.get_base_model().down):
            layer.lora_A["default"].weight.mul_(1e-3)
    torch.testing.assert_close(touched(model, term)[name], 1e3 * once[name])


@pytest.mark.parametrize("kind", ["none", "aliased state dict", "model", "file"])
def test_the_base_of_full_fine_tuning(kind, tmp_path):
    model, before = full()
    base = {
        "none": None,
        "aliased state dict": model.state_dict(),
        "model": before,
        "file": tmp_path / "base.safetensors",
    }
    save_file(before.state_dict(), base["file"])
    if kind in ("model", "file"):
        shake(model)  # a run that goes on
    term = EntanglementLoss(model, base[kind], targets=BOTH)
    shake(model, seed=7)
    assert term().item() == pytest.approx(wanted(model, before, BOTH, "valley_depth"), abs=1e-10)


def attending(implementation, **options):
    return llama(attn_implementation=implementation, **options)


def test_a_module_without_an_active_adapter_is_left_out():
    model = shake(inactive(lora()))
    both, alone = (EntanglementLoss(model, targets=targets)().item() for targets in (BOTH, ["down"]))
    assert both == pytest.approx(alone)
    assert alone > 0.1


def reentrant():
    model = llama(attn_implementation="artent", use_cache=False).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    return model


def inactive(config):
    """A model whose adapter of ``up`` is not the one that is active."""
    config, other = (copy.deepcopy(config) for _ in range(2))
    config.target_modules, other.target_modules = {"up"}, {"down"}
    model = peft.get_peft_model(mlp(), config)
    model.add_adapter("other", other)
    model.set_adapter("other")
    return model


def broken():
    model, _ = adapted(lora())
    term = EntanglementLoss(model, targets=BOTH)
    with torch.no_grad():
        shake(model).get_base_model().down.lora_B["default"].weight[0, 0] = torch.nan
    return term()


def attention(model, mask=None, **options):
    output = model(input_ids=IDS, **options)
    return EntanglementLoss(model, on="attention_entropy")(output, mask)


REFUSED = {
    "no model": (lambda: EntanglementLoss("a/path"), TypeError, r"model must be a torch\.nn\.Module, not str"),
    "on": (lambda: EntanglementLoss(mlp(), on="depth"), ValueError, "on='depth': expected one of 'valley_depth', "),
    "weight": (lambda: EntanglementLoss(mlp(), weight=float("nan")), ValueError, "weight=nan: expected a finite"),
    "target": (lambda: EntanglementLoss(mlp(), target="0.5"), ValueError, "target='0.5': expected a finite"),
    "no such targets": (lambda: EntanglementLoss(mlp()), ValueError, r"targets \['q_proj', 'v_proj'\] match none"),
    "base of another shape": (
        lambda: EntanglementLoss(mlp(), {"up.weight": torch.ones(3, 3)}, targets=["up"]),
        ValueError,
        r"up: shape \(36, 24\) in the tuned model, \(3, 3\) in base",
    ),
    "frozen": (
        lambda: EntanglementLoss(mlp().requires_grad_(False), targets=BOTH),
        ValueError,
        "nothing that targets=.* requires a gradient.*is_trainable=True",
    ),
    "LoRA not active": (
        lambda: EntanglementLoss(inactive(lora()), targets=["up"]),
        ValueError,
        "no active adapter has an update that targets",
    ),
    "MPS not active": (
        lambda: EntanglementLoss(inactive(MPSConfig(r=4)), targets=["up"]),
        ValueError,
        r"no active adapter has an update that targets=\['up'\] means",
    ),
    "DoRA": (
        lambda: EntanglementLoss(adapted(lora(use_dora=True))[0], targets=BOTH),
        ValueError,
        r"means up \(2 such modules\).*DoRA",
    ),
    "PiSSA": (
        lambda: EntanglementLoss(peft.get_peft_model(mlp(), lora(init_lora_weights="pissa")), mlp(), targets=BOTH),
        ValueError,
        r"means up \(2 such modules\).*PiSSA",
    ),
    "NaN": (broken, ValueError, r"^down\.B: holds NaN or Inf"),
    "base beside attention": (
        lambda: EntanglementLoss(mlp(), mlp(), on="attention_entropy"),
        ValueError,
        "base, targets: are of weight updates",
    ),
    "no attentions": (
        lambda: attention(llama(attn_implementation="artent")),
        ValueError,
        "holds no attentions.*output_attentions=True",
    ),
    "matrices": (
        lambda: attention(llama(attn_implementation="eager"), output_attentions=True),
        ValueError,
        'holds attention matrices.*set_attn_implementation\\("artent"\\)',
    ),
    "mask of another shape": (
        lambda: attention(llama(attn_implementation="artent"), torch.ones(3, 11), output_attentions=True),
        ValueError,
        r"attention_mask: expected shape \(3, 12\).*got \(3, 11\)",
    ),
    "reentrant checkpointing": (
        lambda: attention(reentrant(), output_attentions=True),
        ValueError,
        "carry no gradient.*use_reentrant",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_term_is_told(case):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make()
