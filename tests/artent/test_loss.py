"""``EntanglementLoss`` against float64 unfoldings, their finite differences, and attention matrices."""

import copy
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from artent import MPSConfig
from artent.training.loss import EntanglementLoss
from entropy_reference import entropies
from mps_models import factors, gpt2, layers, llama, mlp, shake
from safetensors.torch import save_file
from torch import nn

BOTH = ["up", "down"]


def lora(**options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": BOTH} | options)


def adapted(*configs, build=mlp):
    """A model in float64 with these adapters, all active, and a copy of what it was built on."""
    base = build().double()
    before = copy.deepcopy(base)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, configs[0]).double()
    for i, config in enumerate(configs[1:]):
        model.add_adapter(f"more{i}", config)
    model.base_model.set_adapter(list(model.peft_config))
    return model.double(), before


def full(build=mlp):
    model = build().double()
    return model, copy.deepcopy(model)


# How to build the model and what it was before, and the targets.
CASES = {
    "LoRA": (lambda: adapted(lora()), BOTH),
    "two LoRAs": (lambda: adapted(lora(r=2), lora(r=3, use_rslora=True)), BOTH),
    "MPS": (lambda: adapted(MPSConfig(r=4, lora_alpha=6, chi=3, target_modules=BOTH)), BOTH),
    "MPS of both factors": (
        lambda: adapted(MPSConfig(r=4, sites=3, chi=3, tensorize="both", carrier="last", target_modules=BOTH)),
        BOTH,
    ),
    "two MPS": (lambda: adapted(*(MPSConfig(r=r, chi=3, target_modules=BOTH) for r in (2, 3))), BOTH),
    "full FT": (full, BOTH),
    "full FT of a Conv1D": (lambda: full(gpt2), ["c_attn"]),
    "trained as a copy": (lambda: adapted(lora(target_modules=["up"], modules_to_save=["head"])), ["up", "head"]),
}


def matrix(module):
    """(out, in): what the module does to every unit vector."""
    n = module.weight.shape[0] if type(module).__name__ == "Conv1D" else module.in_features
    eye = torch.eye(n, dtype=torch.float64)
    with torch.no_grad():
        return (module(eye) - module(0 * eye)).T.numpy()


def values(model, before, targets, on):
    """The values that the term is made of, from singular values of every unfolding of ΔW as it acts."""
    after, found = model.get_base_model() if hasattr(model, "get_base_model") else model, []
    for name, module in before.named_modules():
        if not any(f".{name}".endswith(f".{target}") for target in targets):
            continue
        W = matrix(after.get_submodule(name)) - matrix(module)
        rows = sites(len(W))
        lefts = np.cumprod(rows + sites(W.shape[1]))[:-1]
        squares = [np.linalg.svd(W.reshape(D, -1), compute_uv=False) ** 2 for D in lefts]
        S = entropies([p / p.sum() for p in squares])
        cut = S[len(rows) - 1]
        found.append(cut if on == "cut_entropy" else S.max() - cut)
    return np.array(found)


def sites(n):
    """Prime factors, non-increasing."""
    found = []
    for d in range(n, 1, -1):
        while n % d == 0 and all(d % q for q in range(2, d)):
            found.append(d)
            n //= d
    return found


def wanted(model, before, targets, on, target=None, weight=1.0):
    v = values(model, before, targets, on)
    return weight * float((v if target is None else (v - target) ** 2).mean())


def touched(model, term):
    """{name: gradient} of the parameters that the term has a gradient for."""
    model.zero_grad()
    term().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


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
    base = {"none": None, "aliased state dict": model.state_dict(), "model": before, "file": tmp_path / "base.safetensors"}
    save_file(before.state_dict(), base["file"])
    if kind in ("model", "file"):
        shake(model)  # a run that goes on
    term = EntanglementLoss(model, base[kind], targets=BOTH)
    shake(model, seed=7)
    assert term().item() == pytest.approx(wanted(model, before, BOTH, "valley_depth"), abs=1e-10)


@pytest.mark.parametrize("case", ["LoRA", "MPS", "two MPS", "full FT"])
def test_half_precision_and_autocast(case):
    """bfloat16 weights, the term inside autocast: the gradient of the same numbers in float64, rounded once or twice."""
    model, before = CASES[case][0]()
    half, before = shake(model).bfloat16(), before.bfloat16()
    precise = copy.deepcopy(half).double()
    exact = EntanglementLoss(precise, copy.deepcopy(before).double(), targets=BOTH)
    term = EntanglementLoss(half, before, targets=BOTH)
    with torch.autocast("cpu", torch.bfloat16):
        value = term()
    assert (value.dtype, exact().dtype) == (torch.float32, torch.float64)
    assert value.item() == pytest.approx(exact().item(), abs=1e-6)
    value.backward()
    for name, gradient in touched(precise, exact).items():
        found = half.get_parameter(name).grad
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), gradient, rtol=2**-7, atol=1e-6)


def test_beside_a_compiled_model_and_over_micro_batches():
    model, _ = adapted(lora())
    shake(model)
    x = torch.ones(3, 24, dtype=torch.float64)
    alone = touched(model, EntanglementLoss(model, targets=BOTH))
    task = touched(model, lambda: model(x).square().mean())
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    term = EntanglementLoss(compiled, targets=BOTH)
    for _ in range(2):
        (compiled(x).square().mean() + term()).backward()
    for name, gradient in alone.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * (task[name] + gradient))


def train(model, term, weight, steps=20, **options):
    """(the first loss, the last) of a small run."""
    optimiser = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-2)
    ids, losses = torch.arange(4 * 16).reshape(4, 16) % 47, []
    for step in range(1, steps + 1):
        output = model(input_ids=ids, labels=ids, **options)
        term.weight = weight * min(1, step / 5)
        (output.loss + term(output)).backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(output.loss.item())
    output = model(input_ids=ids, labels=ids, **options)
    term(output)
    return torch.stack(list(term.values.values())).mean().item(), losses[0], output.loss.item()


TRAININGS = {
    "valley depth, LoRA": ("valley_depth", peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), 1, 0.3),
    "cut entropy, MPS": ("cut_entropy", MPSConfig(r=4, chi=4, target_modules=["q_proj", "v_proj"]), 1, 0.3),
    "attention entropy, LoRA": (
        "attention_entropy",
        peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj"], lora_alpha=32),
        10,
        1.6,
    ),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_training_with_it_moves_what_it_is_on(case):
    on, config, weight, target = TRAININGS[case]
    options = {"output_attentions": True} if on == "attention_entropy" else {}

    def run(weight, target=None):
        torch.manual_seed(2)
        model = peft.get_peft_model(llama(attn_implementation="artent"), copy.deepcopy(config))
        value, first, last = train(model, EntanglementLoss(model, on=on, target=target), weight, **options)
        assert last < first  # it learns beside
        return value

    without, down, up, drawn = run(0), run(weight), run(-weight), run(3 * weight, target)
    assert down + 0.1 < without < up - 0.1
    assert abs(drawn - target) < 0.1 < abs(without - target)


IDS = torch.arange(1, 3 * 12 + 1).reshape(3, 12) % 47
REAL = torch.arange(12) < torch.tensor([[12], [9], [1]])


def attending(implementation, **options):
    """A model in float64 with logits of order one."""
    return llama(attn_implementation=implementation, initializer_range=0.3, **options).double()


@pytest.mark.parametrize("target", [None, 1.1])
@pytest.mark.parametrize("side", ["left", "right", "no mask"])
def test_attention_entropy_is_that_of_the_rows_of_real_tokens(side, target):
    mask = {"left": REAL.flip(-1), "right": REAL, "no mask": None}[side]
    inputs = {"input_ids": IDS, "output_attentions": True}
    if mask is not None:
        inputs["attention_mask"] = mask.long()
    model, eager = attending("artent"), attending("eager")
    term = EntanglementLoss(model, on="attention_entropy", target=target, weight=-2)
    found = term(model(**inputs), inputs.get("attention_mask"))
    found.backward()
    A = torch.stack(eager(**inputs).attentions)  # (layers, B, H, T, T)
    rows = -(A * A.clamp_min(1e-300).log()).sum(-1)
    real = torch.ones(3, 12) if mask is None else mask
    v = (rows * real[:, None]).sum((1, 3)) / real.sum()  # (layers, H)
    wanted = -2 * (v if target is None else (v - target).square()).mean()
    wanted.backward()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.stack([term.values[0], term.values[1]]), v)
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=name)
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().max() > 1e-3


def test_real_rows_count_alike_in_float32_under_a_mask_of_none_real():
    model = llama(attn_implementation="artent")
    term = EntanglementLoss(model, on="attention_entropy")
    output = model(input_ids=IDS, output_attentions=True)
    nothing = term(output, torch.zeros(3, 12))
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def reentrant():
    model = attending("artent", use_cache=False).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
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
    "DoRA": (
        lambda: EntanglementLoss(adapted(lora(use_dora=True))[0], targets=BOTH),
        ValueError,
        r"means up \(2 such modules\).*DoRA",
    ),
    "PiSSA": (
        lambda: EntanglementLoss(adapted(lora(init_lora_weights="pissa"))[0], mlp().double(), targets=BOTH),
        ValueError,
        r"means up \(2 such modules\).*PiSSA",
    ),
    "NaN": (broken, ValueError, r"^down\.B: holds NaN or Inf"),
    "base beside attention": (
        lambda: EntanglementLoss(mlp(), mlp(), on="attention_entropy"),
        ValueError,
        "base, targets: are of weight updates",
    ),
    "no attentions": (lambda: attention(attending("artent")), ValueError, "holds no attentions.*output_attentions=True"),
    "matrices": (
        lambda: attention(attending("eager"), output_attentions=True),
        ValueError,
        'holds attention matrices.*set_attn_implementation\\("artent"\\)',
    ),
    "mask of another shape": (
        lambda: attention(attending("artent"), torch.ones(3, 11), output_attentions=True),
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


def test_sharded_parameters_are_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
        term = EntanglementLoss(model, targets=["0"])
        torch.distributed.fsdp.fully_shard(model)
        for make in (term, lambda: EntanglementLoss(model, targets=["0"])):
            with pytest.raises(ValueError, match=r"^0: its parameters are sharded.*DDP"):
                make()
    finally:
        torch.distributed.destroy_process_group()


DDP = """
import sys
import torch
from torch import nn
from artent.training.loss import EntanglementLoss

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    before = {name: 0.5 * p.detach() for name, p in model.named_parameters()}
    return model, EntanglementLoss(model, before, targets=["0", "2"])

def gradients(model, run, x, term):
    for part in x.split(3):  # two micro-batches
        (run(part).square().mean() + term()).backward()
    return [p.grad for p in model.parameters()]

x = torch.arange(6.0 * 6 * size, dtype=torch.float64).reshape(-1, 6).sin()
if size == 1:
    torch.save(gradients(*(lambda m, t: (m, m, x, t))(*model())), f"{folder}/0.pt")
"""
